"""The references against independent implementations and against arithmetic by hand."""

import itertools
import math

import numpy as np
import open_clip.loss
import pytest
import torch
import torch.nn.functional as F

from mpm_lite import ops
from mpm_lite.evaluation import retrieval, stats


def pairs(n=17, d=8, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [F.normalize(torch.randn(n, d, generator=g, dtype=dtype), dim=-1).requires_grad_() for _ in range(2)]


@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_clip_loss_is_open_clips(scale):
    ours, theirs = pairs(), pairs()
    s, t = (torch.tensor(scale, dtype=torch.float64, requires_grad=True) for _ in range(2))
    a, b = ops.clip_loss(*ours, s), open_clip.loss.ClipLoss()(*theirs, t)
    a.backward(), b.backward()
    assert a.dtype == torch.float64 and math.isclose(a.item(), b.item(), rel_tol=1e-12)
    for x, y in zip([*ours, s], [*theirs, t], strict=True):
        torch.testing.assert_close(x.grad, y.grad, rtol=1e-10, atol=1e-12)


def test_clip_loss_of_a_half_precision_batch_is_float32():
    a, b = (x.detach().to(torch.bfloat16) for x in pairs())
    assert ops.clip_loss(a, b, torch.tensor(10.0)).dtype == torch.float32


def test_clip_loss_rectangular_is_the_row_direction():
    a, b = (x.detach() for x in pairs())
    expected = F.cross_entropy(5 * a[3:9] @ b.T, torch.arange(3, 9))
    torch.testing.assert_close(
        ops.clip_loss(a[3:9], b, torch.tensor(5.0, dtype=torch.float64), label_offset=3), expected
    )


@pytest.mark.parametrize(
    "shapes, offset", [(((3, 4), (3, 5)), 0), (((3, 4), (2, 4)), 0), (((0, 4), (3, 4)), 0), (((3, 4), (4, 4)), 2)]
)
def test_clip_loss_says_what_does_not_fit(shapes, offset):
    with pytest.raises(ValueError):
        ops.clip_loss(*(torch.ones(s) for s in shapes), torch.tensor(1.0), label_offset=offset)


def test_ranks_against_a_sort():
    query, cand = (x.detach() for x in pairs(30, 5))
    target = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    order = (query @ cand.T).argsort(dim=1, descending=True)
    expected = torch.tensor([order[i].tolist().index(target[i]) for i in range(30)])
    assert torch.equal(ops.retrieval_ranks(query, cand, target), expected)


@pytest.mark.parametrize("impl", ["reference", "chunked"])
def test_what_is_no_number_makes_nobody_right(impl):
    query, cand = (x.detach() for x in pairs(30, 5))
    target, groups = torch.arange(30), (torch.arange(30) // 2,) * 2
    how = {"impl": impl, "check": False}
    assert (ops.retrieval_ranks(query, cand * torch.nan, target, **how) == 29).all()
    assert (ops.retrieval_ranks(query, cand * torch.nan, target, groups=groups, **how) == 28).all()
    cand[7] = torch.nan  # it counts against every query but its own, and its own finds nothing
    ranks, before = (
        ops.retrieval_ranks(query, cand, target, **how),
        ops.retrieval_ranks(query, pairs(30, 5)[1].detach(), target),
    )
    assert ranks[7] == 29 and (ranks >= before).all()


def test_group_mates_are_correct_by_index():
    query = torch.tensor([[1.0, 0.0]])
    cand = torch.tensor([[0.5, 0.0], [0.9, 0.0], [1.0, 0.0], [0.9, 0.0]])  # the query's own candidate is number 0
    one = torch.zeros(1, dtype=torch.int64)
    assert ops.retrieval_ranks(query, cand, one).item() == 3
    groups = (torch.tensor([7]), torch.tensor([7, 7, 1, 2]))
    better, tied, right = ops.retrieval_ranks(query, cand, one, groups=groups, return_ties=True)
    assert (better.item(), tied.item(), right.item()) == (1, 1, 1)
    with pytest.raises(ValueError):
        ops.retrieval_ranks(query, cand, one + 4)


def test_expected_hits_against_every_order_of_a_tie():
    for better, tied, right, k in itertools.product(range(3), range(4), range(1, 3), (1, 2, 4)):
        block = [0] * tied + [1] * right
        orders = list(itertools.permutations(range(len(block))))
        hits = np.mean([any(block[i] for i in order[: max(0, k - better)]) for order in orders])
        got = retrieval.expected_hits(ops.Ranks(*(torch.tensor([x]) for x in (better, tied, right))), k)[0]
        assert math.isclose(got, hits, abs_tol=1e-12)


def test_a_constant_image_tower_scores_chance_not_everything():
    texts = F.normalize(torch.randn(50, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    images = torch.ones(50, 8) / math.sqrt(8)
    hits = retrieval.score_retrieval(images, texts, np.arange(50), np.arange(50))
    for k in retrieval.KS:
        assert abs(hits[f"t2i_r@{k}"].mean() - k / 50) < 1e-9
        assert np.allclose(hits[f"t2i_r@{k}"], hits[f"chance t2i_r@{k}"])


def test_equal_captions_are_equal_answers_across_languages():
    groups = retrieval.group_captions(["A cat.", "a  CAT.", "A dog.", "A pig."], ["x", "y", "y", ""])
    assert groups[0] == groups[1] == groups[2] != groups[3]
    assert len(set(retrieval.group_captions(["", "", "a"]))) == 3


def test_bootstrap_draws_concepts_whole_and_covers():
    weights, seeds = stats.draw_weights(["a", "a", "b", "c"], seeds=3, draws=500)
    assert weights.shape == (500, 4) and seeds.shape == (500, 3)
    assert (seeds.sum(axis=1) == 3).all()
    assert ((weights[:, :2].sum(axis=1) % 2) == 0).all(), "a drawn concept brings as many items as it has"
    rng, covered = np.random.default_rng(0), 0
    for trial in range(60):
        hits = (rng.random((3, 80)) < 0.4).astype(float)
        drawn = stats.average_draws(hits, *stats.draw_weights([str(i) for i in range(80)], 3, 300, trial))
        found = stats.summarise(hits.mean(), drawn)
        covered += found.low <= 0.4 <= found.high
    assert covered >= 50


def test_holm_by_hand():
    assert np.allclose(stats.holm(np.array([0.01, 0.04, 0.03])), [0.03, 0.06, 0.06])


def test_translation_recall():
    x = np.eye(4, dtype=np.float32)
    assert retrieval.translation_recall(x, x, np.arange(4)) == 1.0
    assert retrieval.translation_recall(x, np.roll(x, 1, axis=0), np.arange(4)) == 0.0
    assert math.isclose(retrieval.translation_recall(x, np.ones_like(x), np.arange(4)), 0.25)
