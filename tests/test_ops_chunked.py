"""The chunked implementations against float64 autograd of the references, and everything a user can do wrong."""

import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

import mpm_lite
from mpm_lite import ops
from mpm_lite.ops import bench, card, chunked
from mpm_lite.ops.plan import decide

# Relative Frobenius error of a gradient against float64 on the same rounded inputs.
GRADIENT = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 5e-3}
LOSS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-5, torch.bfloat16: 1e-5}


def unit(n, d, seed, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, d, generator=g, dtype=torch.float64), dim=-1).to(dtype)


def scalar(value, dtype=torch.float64):
    return torch.tensor(value, dtype=dtype)


def results(fn, inputs, upstream=1.7, **options):
    """Loss and gradients of fn; `inputs` are copied, float ones learn."""
    learn = [t.detach().clone().requires_grad_(t.is_floating_point()) for t in inputs]
    loss = fn(*learn, **options)
    (loss * upstream).sum().backward()
    return [loss.detach(), *(t.grad for t in learn if t.requires_grad)]


def judge(fn, inputs, dtype, chunk_bytes, **options):
    """fn in chunks on `dtype` inputs against the float64 reference on the same rounded numbers."""
    rounded = [t.to(dtype) if t.is_floating_point() and t.ndim else t for t in inputs]
    truth = results(fn, [t.double() if t.is_floating_point() else t for t in rounded], impl="reference", **options)
    found = results(fn, rounded, impl="chunked", chunk_bytes=chunk_bytes, **options)
    assert found[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for got, right, given in zip(found[1:], truth[1:], [t for t in rounded if t.is_floating_point()], strict=True):
        assert got.dtype == given.dtype and torch.isfinite(got).all()
        scale = 1e-4 if given.ndim == 0 and dtype != torch.float64 else GRADIENT[dtype]
        assert float((got.double() - right).norm()) <= scale * float(right.norm()) + 1e-9
    spread = LOSS[dtype] * max(1.0, float(truth[0].abs().max()))
    torch.testing.assert_close(found[0].double(), truth[0], rtol=0, atol=spread)


SHAPES = [(1, 6, 3, 2), (33, 33, 17, 0), (64, 64, 8, 0), (29, 70, 16, 11), (5, 9, 4, 4)]


@pytest.mark.parametrize("dtype", list(GRADIENT))
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
@pytest.mark.parametrize("n, m, d, offset", SHAPES)
def test_clip_loss_in_chunks_and_at_once(n, m, d, offset, scale, dtype):
    inputs = [unit(n, d, 0), unit(m, d, 1), scalar(scale)]
    for chunk_bytes in (16 * m * 7, None):
        judge(ops.clip_loss, inputs, dtype, chunk_bytes=chunk_bytes, label_offset=offset)


def test_one_pair_has_nothing_to_learn():
    """One picture and one caption: the loss is 0, and so is the gradient, up to the rounding of exp(z - z)."""
    for scale in (1.0, 14.3, 100.0):
        inputs = [unit(1, 3, 0, torch.float32), unit(1, 3, 1, torch.float32), scalar(scale, torch.float32)]
        loss, *grads = results(ops.clip_loss, inputs, impl="chunked")
        assert abs(float(loss)) <= 1e-6 * scale and all(float(g.norm()) <= 1e-6 * scale**2 for g in grads)


@pytest.mark.parametrize("dtype", list(GRADIENT))
@pytest.mark.parametrize("scale, bias", [(1.0, 0.0), (14.3, -10.0), (100.0, -10.0)])
@pytest.mark.parametrize("n, m, d, offset", [*SHAPES, (12, 30, 8, None)])
def test_siglip_loss_in_chunks(n, m, d, offset, scale, bias, dtype):
    inputs = [unit(n, d, 0), unit(m, d, 1), scalar(scale), scalar(bias)]
    judge(ops.siglip_loss, inputs, dtype, chunk_bytes=16 * m * 5, label_offset=offset)


@pytest.mark.parametrize("dtype", list(GRADIENT))
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("softcap, with_bias, ignored", [(None, False, False), (5.0, True, True), (None, True, True)])
def test_linear_cross_entropy_in_chunks(dtype, reduction, softcap, with_bias, ignored):
    g = torch.Generator().manual_seed(3)
    n, d, v = 37, 12, 101
    inputs = [torch.randn(n, d, generator=g, dtype=torch.float64), torch.randn(v, d, generator=g, dtype=torch.float64)]
    target = torch.randint(0, v, (n,), generator=g)
    if ignored:
        target[[0, 5, 6, 36]] = -100
    inputs.append(target)
    if with_bias:
        inputs.append(torch.randn(v, generator=g, dtype=torch.float64))
    upstream = torch.linspace(-1, 2, n, dtype=torch.float64) if reduction == "none" else 1.7
    judge(ops.linear_cross_entropy, inputs, dtype, 8 * v * 5, reduction=reduction, softcap=softcap, upstream=upstream)


def test_siglip_is_open_clips():
    import open_clip.loss

    a, b = unit(17, 8, 0), unit(17, 8, 1)
    theirs = open_clip.loss.SigLipLoss()(a, b, scalar(10.0), scalar(-10.0))
    for impl in ("reference", "chunked"):
        assert math.isclose(
            ops.siglip_loss(a, b, scalar(10.0), scalar(-10.0), impl=impl).item(), theirs.item(), rel_tol=1e-12
        )


def test_ignored_rows_lose_nothing_and_learn_nothing():
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    w = torch.randn(9, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    target = torch.tensor([1, -100, 3, -100, 8, 0])
    with torch.no_grad():
        x[1] = float("nan")  # a row that counts for nothing may hold anything
    loss = ops.linear_cross_entropy(x, w, target, reduction="none")
    loss.sum().backward()
    assert loss[[1, 3]].tolist() == [0, 0] and (loss[[0, 2, 4, 5]] > 0).all()
    assert x.grad[[1, 3]].abs().max() == 0 and torch.isfinite(w.grad).all()


@pytest.mark.parametrize("impl", ["reference", "chunked"])
def test_no_rows_that_count(impl):
    x, w = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    nothing = torch.full((3,), -100)
    assert ops.linear_cross_entropy(x, w, nothing, impl=impl).isnan()
    loss = ops.linear_cross_entropy(x, w, nothing, impl=impl, reduction="sum")
    loss.backward()
    assert loss == 0 and x.grad.abs().max() == 0 and w.grad.abs().max() == 0


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_what_needs_no_gradient_costs_none(frozen, monkeypatch):
    """A frozen side gets no gradient, and its product is not even made."""
    made = []
    true_product, true_add = chunked.product, chunked.add_product
    monkeypatch.setattr(chunked, "product", lambda *a: made.append("product") or true_product(*a))
    monkeypatch.setattr(chunked, "add_product", lambda *a: made.append("add") or true_add(*a))
    inputs = [unit(8, 4, 0, torch.float32), unit(8, 4, 1, torch.float32), scalar(5.0, torch.float32)]
    for chunk_bytes, chunks in ((None, 0), (4 * 8 * 12, 2)):  # all at once; and in chunks of 4 rows, each made twice
        made.clear()
        learn = [t.clone().requires_grad_(i != frozen) for i, t in enumerate(inputs)]
        ops.clip_loss(*learn, chunk_bytes=chunk_bytes).backward()
        assert [t.grad is None for t in learn] == [i == frozen for i in range(3)]
        if chunks:
            assert made.count("product") == 2 * chunks + chunks * (frozen != 0)
            assert made.count("add") == chunks * (frozen != 1)
        else:
            assert made == ["product"] + ["product"] * (frozen != 0) + ["product"] * (frozen != 1)


def test_no_grad_makes_no_gradient(monkeypatch):
    monkeypatch.setattr(chunked, "add_product", lambda *a: pytest.fail("a gradient was made"))
    x, w = torch.randn(6, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    with torch.no_grad():
        assert not ops.linear_cross_entropy(x, w, torch.arange(6)).requires_grad
        assert not ops.siglip_loss(x, x, 5.0, -5.0).requires_grad


def test_the_same_call_gives_the_same_bits_and_a_graph_may_be_kept():
    x, w = (torch.randn(40, 8, requires_grad=True) for _ in range(2))
    target = torch.randint(0, 40, (40,))
    calls = [
        lambda: ops.clip_loss(F.normalize(x, dim=-1), F.normalize(w, dim=-1), 14.3, chunk_bytes=3000),
        lambda: ops.siglip_loss(x, w, 5.0, -5.0, chunk_bytes=3000),
        lambda: ops.linear_cross_entropy(x, w, target, chunk_bytes=3000),
    ]
    for call in calls:
        loss = call()
        first = torch.autograd.grad(loss, (x, w), retain_graph=True)
        second = torch.autograd.grad(loss, (x, w))
        again = torch.autograd.grad(call(), (x, w))
        for a, b, c in zip(first, second, again, strict=True):
            assert torch.equal(a, b) and torch.equal(a, c)


def losses(impl):
    target = torch.arange(6)
    return {
        "clip_loss": lambda x, w: ops.clip_loss(x, w, 3.0, impl=impl),
        "siglip_loss": lambda x, w: ops.siglip_loss(x, w, 3.0, -1.0, impl=impl),
        "linear_cross_entropy": lambda x, w: ops.linear_cross_entropy(x, w, target, impl=impl),
    }


@pytest.mark.parametrize("name", list(losses("auto")))
def test_twice_differentiable_by_reference_only(name):
    x, w = unit(6, 4, 0).requires_grad_(), unit(6, 4, 1).requires_grad_()
    assert torch.autograd.gradgradcheck(losses("reference")[name], (x, w))
    with pytest.raises(RuntimeError, match=f"{name}: only impl='reference' can be differentiated twice"):
        torch.autograd.grad(losses("chunked")[name](x, w), x, create_graph=True)


@pytest.mark.parametrize("name", list(losses("auto")))
def test_torch_func_by_reference_only(name):
    x, w = unit(6, 4, 0), unit(6, 4, 1)
    plain = x.clone().requires_grad_()
    losses("reference")[name](plain, w).backward()
    torch.testing.assert_close(torch.func.grad(losses("reference")[name])(x, w), plain.grad)
    with pytest.raises(RuntimeError, match="only impl='reference' works inside torch.func"):
        torch.func.grad(losses("chunked")[name])(x, w)


@pytest.mark.parametrize("name", list(losses("auto")))
def test_compiled_code_may_call_the_ops(name):
    x, w = unit(6, 4, 0, torch.float32).requires_grad_(), unit(6, 4, 1, torch.float32)

    def step(x, w):
        return 2 * losses("auto")[name](x * 1.5, w)

    step(x, w).backward()
    eager, x.grad = x.grad, None
    torch.compile(step, backend="aot_eager")(x, w).backward()
    torch.testing.assert_close(x.grad, eager)


@pytest.mark.parametrize("name", list(losses("auto")))
def test_autocast_rounds_the_matrices_once(name):
    x, w = unit(6, 4, 0, torch.float32).requires_grad_(), unit(6, 4, 1, torch.float32).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = losses("chunked")[name](x, w)
    by_hand = losses("chunked")[name](x.bfloat16(), w.bfloat16())
    assert loss.dtype == torch.float32 and torch.equal(loss, by_hand)
    loss.backward()
    assert x.grad.dtype == torch.float32 and x.grad.norm() > 0


def test_lse_comes_along():
    a, b = unit(9, 4, 0), unit(9, 4, 1)
    for impl in ("reference", "chunked"):
        loss, lse = ops.clip_loss(a.requires_grad_(), b, scalar(7.0), return_lse=True, impl=impl)
        torch.testing.assert_close(lse, (7 * a @ b.T).logsumexp(1).detach())
        assert loss.requires_grad and not lse.requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_ranks_in_chunks_are_the_references(dtype):
    g = torch.Generator().manual_seed(5)
    query, cand = (torch.randint(-2, 3, (n, 6), generator=g).to(dtype) for n in (31, 57))  # exact scores, many ties
    target = torch.randint(0, 57, (31,), generator=g)
    groups = (torch.randint(0, 9, (31,), generator=g), torch.randint(0, 9, (57,), generator=g))
    for mates in (None, groups):
        plain = ops.retrieval_ranks(query, cand, target, groups=mates, return_ties=True, impl="reference")
        found = ops.retrieval_ranks(query, cand, target, groups=mates, return_ties=True, chunk_bytes=3000)
        assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))
        assert (found.tied_correct >= 1).all() and found.tied.sum() > 0


X, W, T = torch.ones(4, 3), torch.ones(5, 3), torch.zeros(4, dtype=torch.int64)
NAN = torch.full((4, 3), float("nan"))


@pytest.mark.parametrize(
    "call, error, said",
    [
        (lambda: ops.clip_loss(X, torch.ones(4, 2), 1.0), ValueError, "differ in width"),
        (lambda: ops.clip_loss(X, X.double(), 1.0), ValueError, "convert one"),
        (lambda: ops.clip_loss(X.long(), X.long(), 1.0), ValueError, "float"),
        (lambda: ops.clip_loss(X[0], X, 1.0), ValueError, "matrix"),
        (lambda: ops.clip_loss(X[:0], X[:0], 1.0), ValueError, "at least one row"),
        (lambda: ops.clip_loss(X, X, torch.ones(2)), ValueError, "logit_scale as one float"),
        (lambda: ops.clip_loss(X, W, 1.0, label_offset=2), ValueError, "between 0 and M - N"),
        (lambda: ops.clip_loss(W, X, 1.0), ValueError, "do not fit 4 columns"),
        (lambda: ops.clip_loss(NAN, X, 1.0), ValueError, "img holds NaN"),
        (lambda: ops.clip_loss(X, X, float("nan")), ValueError, "logit_scale holds NaN"),
        (lambda: ops.clip_loss(X, X, 1.0, chunk_bytes=8), ValueError, "too small for a row of 4 columns"),
        (lambda: ops.clip_loss(X, X, 1.0, impl="cuda"), ValueError, "impl must be one of"),
        (lambda: ops.clip_loss(X, X, 1.0, impl="triton"), RuntimeError, "Use impl='chunked'"),
        (lambda: ops.clip_loss(X, X, 1.0, accum_dtype=torch.bfloat16), ValueError, "accum_dtype"),
        (lambda: ops.siglip_loss(X, X, 1.0, torch.ones(3)), ValueError, "logit_bias as one float"),
        (lambda: ops.siglip_loss(X, NAN, 1.0, 0.0), ValueError, "txt holds NaN"),
        (lambda: ops.siglip_loss(X, W, 1.0, 0.0, label_offset=3), ValueError, "label_offset"),
        (lambda: ops.linear_cross_entropy(X, W, T + 5), ValueError, "5 columns allow 0 to 4"),
        (lambda: ops.linear_cross_entropy(X, W, T - 1), ValueError, "targets run from -1"),
        (lambda: ops.linear_cross_entropy(X, W, T.int()), ValueError, "int64"),
        (lambda: ops.linear_cross_entropy(X, W, T[:2]), ValueError, r"int64 \(4,\)"),
        (lambda: ops.linear_cross_entropy(X, W, T, torch.ones(4)), ValueError, "bias"),
        (lambda: ops.linear_cross_entropy(X, W, T, reduction="avg"), ValueError, "reduction"),
        (lambda: ops.linear_cross_entropy(X, W, T, softcap=0.0), ValueError, "softcap"),
        (lambda: ops.linear_cross_entropy(NAN, W, T), ValueError, "x holds NaN"),
        (lambda: ops.linear_cross_entropy(X, W, T, impl="triton"), RuntimeError, "cannot run"),
        (lambda: ops.retrieval_ranks(X, W, T + 9), ValueError, "targets run from 9 to 9"),
        (lambda: ops.retrieval_ranks(NAN, W, T), ValueError, "query holds NaN"),
        (lambda: ops.retrieval_ranks(X, W, T, groups=(T, T)), ValueError, "cand_group"),
        (lambda: ops.explain("attention", N=1, D=1), ValueError, "explain knows"),
        (lambda: ops.explain("clip_loss", N=1, D=1, machine="tpu"), ValueError, "machines"),
    ],
)
def test_mistakes_are_one_sentence(call, error, said):
    with pytest.raises(error, match=said) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_strided_tensors_are_taken_as_they_come():
    a = unit(9, 8, 0)[:, ::2]
    b = unit(4, 9, 1).T
    assert not a.is_contiguous() and not b.is_contiguous()
    judge(ops.clip_loss, [a, b, scalar(5.0)], torch.float64, 2000)


def test_auto_decides_in_one_place():
    def impl(kind, able, dtype, missing=""):
        return decide("clip_loss", kind, able, missing, dtype, 100).impl

    assert impl("cuda", (9, 0), torch.bfloat16) == impl("cuda", (8, 0), torch.float16) == "triton"
    assert impl("cuda", (7, 5), torch.float16) == impl("cpu", (0, 0), torch.float32, "no CUDA") == "chunked"
    assert impl("cuda", (9, 0), torch.float64) == impl("cuda", (9, 0), torch.bfloat16, "no triton") == "chunked"
    exact = decide("clip_loss", "cuda", (9, 0), "", torch.float32, 100)
    assert (exact.impl, exact.elementwise) == ("chunked", True) and "no tensor cores" in exact.why
    old = decide("clip_loss", "cuda", (7, 5), "", torch.float16, 100)
    assert old.elementwise and "8.0" in old.why
    pairs = decide("siglip_loss", "cuda", (9, 0), "", torch.bfloat16, 100)
    assert (pairs.impl, pairs.elementwise) == ("chunked", True) and "measured" in pairs.why
    assert decide("linear_cross_entropy", "cuda", (9, 0), "", torch.bfloat16, 100).elementwise
    assert decide("clip_loss", "cpu", (0, 0), "x", torch.float32, 4096).rows == 512  # 24 MiB of three float32 buffers


@pytest.mark.parametrize("impl", ["chunked", "triton"])
@pytest.mark.parametrize("op", ["clip_loss", "siglip_loss", "linear_cross_entropy"])
@pytest.mark.parametrize("columns", [1000, 32_768, 65_536, 250_112, 2**20])
def test_chunks_on_a_card_are_tall_whole_tiles_within_their_bytes(columns, op, impl):
    found = decide(op, "cuda", (9, 0), "", torch.bfloat16, columns, impl)
    assert found.rows % 256 == 0 and 256 <= found.rows <= 4096 and 1 <= found.piece <= found.rows
    assert found.count_bytes(found.rows) <= 2**30
    if op != "linear_cross_entropy" and columns <= 65_536:
        assert found.rows == 4096
    small = decide(op, "cuda", (7, 5), "", torch.float16, columns, "chunked", chunk_bytes=2**24)
    assert small.count_bytes(small.rows) <= 2**24 and small.rows >= 1


def test_a_product_in_half_precision_does_not_overflow():
    """A T4 returns sums in float16: 20,000 gradients of 8 would be 160,000, and its largest number is 65,504."""
    g, t = torch.full((2, 20_000), 8.0).half(), torch.ones(20_000, 3).half()
    assert (g @ t).isinf().all()
    assert torch.equal(chunked._product_in_half(g, t, torch.float32), torch.full((2, 3), 160_000.0))
    assert decide("siglip_loss", "cuda", (7, 5), "", torch.float16, 100).grow == 8


def test_the_rank_kernel_holds_no_score_and_takes_any_number_of_candidates():
    assert decide("retrieval_ranks", "cuda", (9, 0), "", torch.bfloat16, 10**9).impl == "triton"
    with pytest.raises(ValueError, match="too small for a row"):
        decide("retrieval_ranks", "cuda", (9, 0), "", torch.bfloat16, 10**9, "chunked")


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("ignored", [[], [0, 5, 36], list(range(37))])
def test_rows_that_nobody_may_count_are_weighted(ignored, reduction, monkeypatch):
    """On a card Python waits for no value, so ignored rows are computed, and weigh nothing: the same loss and gradients as
    without them, whatever they hold."""
    g = torch.Generator().manual_seed(4)
    x, w = (torch.randn(n, 12, generator=g, dtype=torch.float64) for n in (37, 50))
    target = torch.randint(0, 50, (37,), generator=g)
    target[ignored] = -100
    x[ignored] = float("nan")
    upstream = torch.linspace(-1, 2, 37, dtype=torch.float64) if reduction == "none" else 1.7
    options = {"reduction": reduction, "upstream": upstream, "chunk_bytes": 8 * 50 * 5}
    known = results(ops.linear_cross_entropy, [x, w, target], **options)
    monkeypatch.setattr(ops, "_may_read", lambda *_: False)
    weighted = results(ops.linear_cross_entropy, [x, w, target], check=False, **options)
    for a, b in zip(known, weighted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, equal_nan=True)
    assert weighted[1].isfinite().all() and weighted[2].isfinite().all()


def test_explain_counts_as_a_person_would():
    cost = ops.explain("clip_loss", N=32768, D=1024, machine="h200")
    assert math.isclose(cost.tflop_useful, 6 * 32768**2 * 1024 / 1e12)
    assert math.isclose(cost.tflop_done / cost.tflop_useful, 8 / 6)
    assert math.isclose(cost.floor_ms, 1e3 * cost.tflop_useful / 790) and cost.impl == "triton" and cost.tile
    words = ops.explain(ops.linear_cross_entropy, N=2048, V=50_000, D=512, machine="cpu")
    assert words.bytes_matrix == 4 * 2048 * 50_000 and words.impl == "chunked" and words.floor_ms is None
    assert words.rows == 64 * 2**20 // (4 * 50_000) and words.bytes_chunk < words.bytes_matrix / 5
    own = ops.explain("retrieval_ranks", N=10, M=10, D=4, machine="cpu", rate=(1e-12, 1e9))  # one FLOP a second
    assert math.isclose(own.floor_ms, 1e3 * 2 * 10 * 10 * 4)
    assert "chunked" in str(words) and "give rate" in str(words)


@pytest.mark.parametrize(
    "case", [bench.Case("clip_loss", 1024, 1024, 32), bench.Case("linear_cross_entropy", 512, 8000, 32)], ids=str
)
def test_chunks_hold_a_fraction_of_the_matrix(case, monkeypatch):
    from mpm_lite.ops import plan

    monkeypatch.setitem(plan.BUDGET, case.op, (2**19, 2**19))
    device = torch.device("cpu")
    given = bench.tensors(case, device)
    peaks = {
        name: bench._peak(bench.call_with_gradients(loss, given, True), device)
        for name, loss in bench.providers(case, device, peers=False).items()
    }
    assert peaks["mpm_lite chunked"] < peaks["naive"] / 5


def test_a_batch_of_16k_fits_where_its_matrix_would_not():
    """16,384 x 16,384 logits are a GiB in float32, and the naive form keeps several such matrices."""
    case = bench.Case("clip_loss", 16_384, 16_384, 8)
    device = torch.device("cpu")
    loss = bench.providers(case, device, peers=False)["mpm_lite chunked"]
    peak = bench._peak(bench.call_with_gradients(loss, bench.tensors(case, device), True), device)
    assert peak < 40e6


def test_rows_are_kept_by_hardware_and_shape(tmp_path):
    path = tmp_path / "rows.csv"
    rows = list(bench.run_case(bench.Case("retrieval_ranks", 20, 30, 8), torch.device("cpu"), rounds=3, peers=False))
    assert {r["provider"] for r in rows} == {"mpm_lite chunked", "naive"} and all(r["loss_error"] == 0 for r in rows)
    bench.write_rows(path, rows)
    other = [r | {"hardware": "another"} for r in rows]
    bench.write_rows(path, other)
    bench.write_rows(path, [r | {"ms": 1e6} for r in rows])
    found = bench.read_rows(path)
    assert len(found) == 2 * len(rows) and {float(r["ms"]) for r in found if r["hardware"] != "another"} == {1e6}
    assert not list(tmp_path.glob("*.tmp"))


def test_a_peer_that_gives_something_else_is_left_out_of_the_benchmark(monkeypatch, capsys):
    real = bench.providers
    rows_each = lambda a, b, s: (a @ b.T).diagonal() * s  # noqa: E731
    monkeypatch.setattr(bench, "providers", lambda *a, **k: real(*a, **k) | {"a loss a row": rows_each})
    rows = list(bench.run_case(bench.Case("clip_loss", 8, 8, 4), torch.device("cpu"), rounds=3, peers=False))
    assert {row["provider"] for row in rows} == {"mpm_lite chunked", "naive"}
    assert "a loss a row: left out" in capsys.readouterr().err


def test_a_stay_on_a_card_runs_through_without_one(tmp_path, monkeypatch, capsys):
    """On a CPU it checks every op and times small shapes; an op that is not right is not timed, and is said."""
    device = torch.device("cpu")
    monkeypatch.setattr(bench, "list_cases", lambda kind: [bench.Case("retrieval_ranks", 20, 30, 8)])
    assert card.stay(device, tmp_path, minutes=9) == []
    checks = bench.read_rows(tmp_path / "checks.csv")
    assert {row["op"] for row in checks} == set(card.TRIALS) and {row["right"] for row in checks} == {"True"}
    # With 16 MiB the same chunks would be made.
    assert {row["provider"] for row in bench.read_rows(tmp_path / "sweep.csv")} == {"mpm_lite chunked 1 MiB"}
    monkeypatch.setattr(card, "TRIALS", {"retrieval_ranks": card.TRIALS["retrieval_ranks"]})
    assert card.stay(device, tmp_path, minutes=0)[0].startswith("retrieval_ranks 20 x 30 x 8 float32 was left out")
    monkeypatch.setattr(chunked, "count_ranks", lambda *a: ops.Ranks(*[torch.zeros(len(a[0]), dtype=torch.int64)] * 3))
    (said,) = card.stay(device, tmp_path / "wrong", minutes=9)
    assert "retrieval_ranks" in said and "not timed" in said and not (tmp_path / "wrong" / "small.csv").exists()


@pytest.mark.parametrize("file", ["cpu.csv", "cuda.csv", "cuda-7-runs.csv"])
def test_auto_takes_what_the_committed_rows_found_fastest(file):
    """No other implementation of ours is more than 5 % faster on a machine of which there are rows."""
    rows = [r for r in bench.read_rows(mpm_lite.asset("bench") / file) if r["provider"].startswith("mpm_lite")]
    cases = {}
    for r in rows:
        key = (r["hardware"], r["op"], int(r["n"]), int(r["m"]), int(r["d"]), r["dtype"], r["data"], r["direction"])
        cases.setdefault(key, {})[r["provider"].split()[1]] = float(r["ms"])
    assert len(cases) >= 4 and (file != "cuda-7-runs.csv" or all(len(times) == 2 for times in cases.values()))
    for (hardware, op, _, m, _, dtype, _, _), times in cases.items():
        kind, able = ("cuda", (9, 0)) if "H100" in hardware or "H200" in hardware else ("cpu", (0, 0))
        chosen = decide(op, kind, able, "" if kind == "cuda" else "no CUDA", getattr(torch, dtype), m).impl
        assert times[chosen] <= 1.05 * min(times.values()), (hardware, op, times)


ALONE = """
import sys
class Blocker:
    allowed = set(sys.stdlib_module_names) | {"torch", "torchgen", "functorch", "mpm_lite"}
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        caller = sys._getframe(1)
        while caller and "importlib" in caller.f_code.co_filename:
            caller = caller.f_back
        asked_by = caller.f_globals.get("__name__", "") if caller else ""
        if asked_by.startswith("mpm_lite") and top not in self.allowed:
            raise ImportError(f"{asked_by} imports {name}")
sys.meta_path.insert(0, Blocker())
import torch
import mpm_lite.ops
from mpm_lite.ops import bench
a = torch.nn.functional.normalize(torch.randn(8, 4), dim=-1).requires_grad_()
mpm_lite.ops.clip_loss(a, a.detach(), 5.0).backward()
print(mpm_lite.ops.explain("clip_loss", N=8, D=4, machine="a100"))
list(bench.run_case(bench.Case("siglip_loss", 8, 8, 4), torch.device("cpu"), rounds=3, peers=False))
assert "triton" not in [m for m in sys.modules if m.startswith("mpm_lite")] and not [m for m in sys.modules if m.startswith("mpm_lite.ops.kernels.") and not m.endswith("tiles")]
"""


def test_the_ops_and_their_bench_need_nothing_but_torch():
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_sweep_is_shared_by_early_and_late_gradients():
    """reduction='none' with equal upstream gradients is 'sum'."""
    x, w = unit(12, 5, 0).requires_grad_(), unit(7, 5, 1).requires_grad_()
    target = torch.arange(12) % 7
    early = torch.autograd.grad(ops.linear_cross_entropy(x, w, target, reduction="sum"), (x, w))
    late = torch.autograd.grad(ops.linear_cross_entropy(x, w, target, reduction="none").sum(), (x, w))
    for a, b in zip(early, late, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert chunked.LinearCrossEntropy is not None
