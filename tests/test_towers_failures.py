"""What goes wrong with a checkpoint is one sentence with what to do, and leaves nothing half-written behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import test_towers_padding as padding
import test_towers_tiny as tiny
import torch
from huggingface_hub import constants, errors

import mpm_lite as mpm
from mpm_lite import UserError
from mpm_lite.core import runtime, store
from mpm_lite.towers import folders
from mpm_lite.towers.inference import in_halves
from mpm_lite.towers.stable_diffusion import load_diffusion

LOADERS = {"text": mpm.load_text_tower, "image": mpm.load_image_tower, "lm": mpm.load_lm, "paint": load_diffusion}
SAVERS = {
    "text": tiny.encoder,
    "image": lambda at: tiny.vision(at, "vit"),
    "lm": lambda at: tiny.language_model(at, "qwen2"),
}


def sentence(error: pytest.ExceptionInfo) -> str:
    """What was said: one line, one sentence."""
    said = str(error.value)
    assert "\n" not in said and said.endswith(".") and 20 < len(said) < 420, said
    return said


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A hub that answers, and says what a test tells it to say."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(folders, "reachable", lambda: True)

    def says(error: Exception) -> None:
        def download(*args: Any, **kwargs: Any) -> str:
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)

    yield says
    assert not (tmp_path / "cache").exists()


def http(kind: type[Exception], status: int) -> Exception:
    response = SimpleNamespace(headers={}, status_code=status, request=None)
    return kind("the hub's own words,\nin two lines", response=response)


@pytest.mark.parametrize("kind", LOADERS)
def test_what_the_hub_refuses_is_said_as_what_to_do(hub: Any, kind: str) -> None:
    load = LOADERS[kind]
    for error, says in (
        (http(errors.GatedRepoError, 403), "'someone/it' is gated: accept its terms on its page and log in"),
        (http(errors.RepositoryNotFoundError, 404), "no open repository 'someone/it': check its spelling, or log in"),
        (http(errors.RevisionNotFoundError, 404), "has no revision 'v9': give one of its branches, tags or commits"),
        (http(errors.HfHubHTTPError, 503), "did not give 'someone/it@v9' and it is not in the cache; these"),
        (errors.LocalEntryNotFoundError("down"), "did not give 'someone/it@v9' and it is not in the cache; these"),
        (ConnectionError("broke"), "did not give 'someone/it@v9'"),
        (next(b for b in errors.HfHubHTTPError.__bases__ if b is not OSError)("broke midway"), "did not give"),
    ):
        hub(error)
        with pytest.raises(UserError) as told:
            load("someone/it@v9", device="cpu")
        assert says in sentence(told)
    hub(errors.HFValidationError("no"))
    with pytest.raises(UserError, match="neither a folder here nor a hub id"):
        load("someone/it..", device="cpu")


@pytest.mark.parametrize("kind", LOADERS)
def test_no_hub_names_what_runs_without_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(folders, "reachable", lambda: False)
    with pytest.raises(UserError) as told:
        LOADERS[kind]("someone/it", device="cpu")
    named = {"text": "use-m", "image": "efficientnet-lite0", "lm": "toy-multilingual", "paint": "toy-painter"}[kind]
    assert "cannot be reached" in sentence(told) and named in sentence(told) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", SAVERS)
def test_a_broken_folder_says_what_is_wrong_and_stays_as_it_was(tmp_path: Path, kind: str) -> None:
    good = tmp_path / "good"
    SAVERS[kind](good)
    (LOADERS[kind])(str(good), device="cpu")

    def fails(name: str, spoil: Any, says: str) -> None:
        bad = tmp_path / name
        shutil.copytree(good, bad)
        spoil(bad)
        before = {p: p.read_bytes() for p in sorted(bad.rglob("*"))}
        with pytest.raises(UserError) as told:
            LOADERS[kind](str(bad), device="cpu")
        assert says in sentence(told), name
        assert {p: p.read_bytes() for p in sorted(bad.rglob("*"))} == before

    def cut(at: Path) -> None:
        data = (at / "model.safetensors").read_bytes()
        (at / "model.safetensors").write_bytes(data[: len(data) // 2])

    def unnamed(at: Path) -> None:
        said = json.loads((at / "config.json").read_text())
        said.pop("model_type")
        (at / "config.json").write_text(json.dumps(said))

    def lacking(at: Path) -> None:
        from safetensors.torch import load_file, save_file

        held = load_file(at / "model.safetensors")
        held.pop(next(key for key in held if key.endswith(("query.weight", "q_proj.weight"))))
        save_file(held, at / "model.safetensors", metadata={"format": "pt"})

    def numberless(at: Path) -> None:
        from safetensors.torch import load_file, save_file

        held = load_file(at / "model.safetensors")
        held[next(key for key in held if key.endswith(("query.weight", "q_proj.weight")))][0, 0] = torch.nan
        save_file(held, at / "model.safetensors", metadata={"format": "pt"})

    def shorter(at: Path) -> None:
        said = json.loads((at / "config.json").read_text())
        (said if "num_hidden_layers" in said else said["vision_config"])["num_hidden_layers"] = 1
        for one in (said, said.get("vision_config") or {}):
            one.pop("layer_types", None)
        (at / "config.json").write_text(json.dumps(said))

    fails("numberless", numberless, "no numbers")
    fails("shorter", shorter, "more layers than its config.json says")
    fails("cut", cut, "does not load: model.safetensors is cut short or damaged")
    fails("empty", lambda at: (at / "model.safetensors").write_bytes(b""), "is cut short or damaged")
    fails(
        "pickled", lambda at: (at / "model.safetensors").rename(at / "pytorch_model.bin"), "convert them to safetensors"
    )
    fails("none", lambda at: (at / "model.safetensors").unlink(), "does not load")
    fails("unnamed", unnamed, "model_type")
    fails("torn", lambda at: (at / "config.json").write_text('{"model_type": "be'), "is damaged")
    fails("lacking", lacking, "lacks weights of its own model")
    if kind != "image":
        fails("wordless", lambda at: [p.unlink() for p in at.glob("token*")], "its tokenizer's files are missing")


def test_an_open_clip_or_timm_folder_of_pickles_says_so(tmp_path: Path) -> None:
    import timm

    tiny.open_clip_model(tmp_path / "clip")
    (tmp_path / "clip" / "open_clip_model.safetensors").rename(tmp_path / "clip" / "open_clip_pytorch_model.bin")
    for load in (mpm.load_text_tower, mpm.load_image_tower):
        with pytest.raises(UserError, match="pickled weights only .open_clip_pytorch_model.bin.*convert"):
            load(str(tmp_path / "clip"), "cpu")
    timm.models.save_for_hf(timm.create_model("test_vit"), tmp_path / "timm", safe_serialization=False)
    with pytest.raises(UserError, match="pickled weights only"):
        mpm.load_image_tower(str(tmp_path / "timm"), "cpu")


# memory


class Small:
    """A model that holds `room` items at once, and says how many it was given each time."""

    def __init__(self, inner: Any, room: int) -> None:
        self.inner, self.room, self.given = inner, room, []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        n = len(next(v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)))
        self.given.append(n)
        if n > self.room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nAnd more.")
        return self.inner(*args, **kwargs)


def test_a_batch_that_does_not_fit_is_computed_in_halves() -> None:
    given: list[tuple[int, int]] = []

    def compute(a: int, b: int) -> list[int]:
        given.append((a, b))
        if b - a > 3:
            raise torch.cuda.OutOfMemoryError
        return list(range(a, b))

    assert in_halves(compute, 0, 3, "it") == [[0, 1, 2]] and given == [(0, 3)]
    assert sum(in_halves(compute, 2, 13, "it"), []) == list(range(2, 13))
    with pytest.raises(UserError, match="it: the GPU's memory holds not even one item.*MPM_LITE_PRESET=t4"):
        in_halves(lambda a, b: compute(0, 99), 0, 5, "it")


@pytest.mark.parametrize("room", [3, 0])
def test_towers_go_on_in_smaller_batches_or_say_what_to_lower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    monkeypatch.setenv("MPM_LITE_HOME", str(tmp_path / "home"))
    text = mpm.load_text_tower(str(tiny.encoder(tmp_path / "text")), "cpu")
    tiny.vision(tmp_path / "image", "vit")
    image = mpm.load_image_tower(str(tmp_path / "image"), "cpu")
    texts, images = [*tiny.TEXTS, "red", "blue", "cat", "the"], tiny.pictures(9, 32)
    whole = text.encode(texts), image.encode(images), image.patches(images), text.tokens(texts)[0]
    text.model, image._forward = Small(text.model, room), Small(image._forward, room)
    if room:
        parts = text.encode(texts), image.encode(images), image.patches(images), text.tokens(texts)[0]
        assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(whole, parts, strict=True))
        assert max(text.model.given) == 9 and min(text.model.given) <= 3
        return
    for work in (
        lambda: text.encode(texts),
        lambda: image.encode(images),
        lambda: store.keep_features(store.Key("vectors", {"kind": "it"}), lambda: text.encode(texts)),
    ):
        with pytest.raises(UserError, match="memory holds not even one item.*lower the batch") as told:
            work()
        sentence(told)
    assert not list((runtime.home() / "features").glob("*"))  # nothing half-made is kept


@pytest.mark.parametrize("kind", ["qwen2", "mt0"])
def test_language_models_go_on_in_smaller_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    lm = mpm.load_lm(str(tiny.language_model(tmp_path, kind)), device="cpu")
    prompts, told = tiny.TEXTS, ["cat"] * 5
    before = lm.log_likelihood(prompts, told), lm.layer_states(prompts), lm.generate(prompts, new_tokens=4)
    plain = lm.read
    room = [2]

    def read(few: Any, soft: Any = None) -> Any:
        if len(few) > room[0]:
            raise torch.cuda.OutOfMemoryError
        return plain(few, soft)

    monkeypatch.setattr(lm, "read", read)
    assert np.allclose(lm.log_likelihood(prompts, told), before[0], atol=1e-4)
    assert np.allclose(lm.layer_states(prompts), before[1], atol=1e-4)
    assert lm.generate(prompts, new_tokens=4) == before[2]
    room[0] = 0
    for work in (lambda: lm.log_likelihood(prompts, told), lambda: lm.generate(prompts, new_tokens=4)):
        with pytest.raises(UserError, match="not even one item"):
            work()


def test_a_model_that_does_not_fit_as_it_is_loaded_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import PreTrainedModel

    def full(*args: Any, **kwargs: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    tiny.language_model(tmp_path, "qwen2")
    monkeypatch.setattr(PreTrainedModel, "to", full)
    with pytest.raises(
        UserError, match="does not fit in the GPU's memory: load a smaller model, or device='cpu'"
    ) as told:
        mpm.load_lm(str(tmp_path), device="cpu")
    sentence(told)


# tokenizers that lack a token, or have too many


def without_ends(root: Path, kind: str) -> Any:
    """A language model whose tokenizer has no pad, no beginning and no end-of-text token."""
    torch.manual_seed(0)
    if kind == "gpt2":
        return mpm.load_lm(str(padding.saved(root, padding.small_gpt2(), padding.bare_tokenizer())), device="cpu")
    tiny.language_model(root, kind)
    for file in root.glob("token*"):
        file.unlink()
    padding.bare_tokenizer(padding_side="left").save_pretrained(root)
    return mpm.load_lm(str(root), device="cpu")


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bloom", "mt0"])
def test_a_language_model_without_an_end_of_text_token_writes_until_it_has_written_enough(
    tmp_path: Path, kind: str
) -> None:
    """The configuration still names an end (Llama's own default is token 2), which for this tokenizer is a word."""
    lm = without_ends(tmp_path, kind)
    lm.decode = lambda rows: [" ".join(map(str, row)) for row in rows]  # every id, special or not
    for how in ("greedy", "beam", "sample"):
        said = [one.split() for one in lm.generate(tiny.TEXTS, new_tokens=6, how=how, temperature=9.0)]
        assert {len(one) for one in said} == {6}, how
    word = next(one for row in said for one in row if 3 < int(one) < len(tiny.WORDS))
    stopped = lm.generate(tiny.TEXTS, new_tokens=6, how="sample", temperature=9.0, stop=tiny.WORDS[int(word)])
    for one, whole in zip(stopped, said, strict=True):
        assert one.split() == whole[: whole.index(word) if word in whole else None]


def test_a_language_model_without_an_end_of_text_token_scores_no_end(tmp_path: Path) -> None:
    lm = without_ends(tmp_path, "gpt2")
    prompts, options = ["a red", "the"], [["cat", "cat dog"], ["dog", "blue"]]
    for work in (
        lambda: lm.log_likelihood(prompts, ["cat", "dog"]),
        lambda: lm.losses(lm.read(prompts), ["cat", "dog"]),
        lambda: lm.choose(prompts, options),
    ):
        with pytest.raises(UserError, match="has no end-of-text token: pass end=False") as told:
            work()
        sentence(told)
    scores = lm.log_likelihood(["a red", "a red", "the", "the"], sum(options, []), end=False)
    assert scores[1] < scores[0]  # what goes on is never likelier than what it begins with
    assert lm.choose(prompts, options, end=False) == [0, int(scores[3] > scores[2])]
    with pytest.raises(UserError, match="cannot read an empty prompt, because its tokenizer has no token") as told:
        lm.generate(["a", ""], new_tokens=2)
    sentence(told)


def test_an_empty_prompt_begins_with_the_beginning_of_text_token_even_where_its_id_is_0(tmp_path: Path) -> None:
    model = padding.small_gpt2()
    bare = padding.bare_tokenizer(bos_token="<s>", eos_token="</s>")
    lm = mpm.load_lm(str(padding.saved(tmp_path, model, bare)), device="cpu")
    assert lm.rows(["", "cat"]) == (False, [[0], [6]])


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "open_clip", "open_clip, transformers"])
def test_a_tokenizer_larger_than_the_embedding_says_so_as_it_is_loaded(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "it"
    if kind.startswith("open_clip"):
        tiny.open_clip_model(root, "own" if kind == "open_clip" else "hf")
    else:
        tiny.encoder(root, kind)
    mpm.load_text_tower(str(root), "cpu")
    if kind == "open_clip":  # a text half with an embedding of its own size
        from safetensors.torch import load_file, save_file

        weights = load_file(root / "open_clip_model.safetensors")
        weights["token_embedding.weight"] = weights["token_embedding.weight"][:100].contiguous()
        save_file(weights, root / "open_clip_model.safetensors")
        said = json.loads((root / "open_clip_config.json").read_text())
        said["model_cfg"]["text_cfg"]["vocab_size"] = 100
        (root / "open_clip_config.json").write_text(json.dumps(said))
        sizes = "49408 tokens and its embedding 100"
    else:
        larger = tiny.tokenizer()
        larger.add_tokens(["zebra", "yak"])
        larger.save_pretrained(root)
        sizes = "17 tokens and its embedding 15"
    with pytest.raises(UserError, match=f"its tokenizer knows {sizes}: the two belong to different models") as told:
        mpm.load_text_tower(str(root), "cpu")
    sentence(told)


def test_a_tokenizer_whose_ids_have_gaps_is_judged_by_its_highest(tmp_path: Path) -> None:
    """Fewer tokens than rows, and one of them beyond the last row."""
    for kind, save in (("text", tiny.encoder), ("lm", lambda at: tiny.language_model(at, "qwen2"))):
        root = tmp_path / kind
        save(root)
        file = root / "tokenizer.json"
        said = json.loads(file.read_text())
        said["model"]["vocab"]["dog"] = 40
        file.write_text(json.dumps(said))
        with pytest.raises(UserError, match="its tokenizer knows 41 tokens and its embedding 1[56]"):
            LOADERS[kind](str(root), device="cpu")


def test_an_open_clip_half_that_reads_padding_needs_its_pad_token(tmp_path: Path) -> None:
    """It has no mask, so that another pad token would give other vectors."""
    tiny.open_clip_model(tmp_path)
    said = json.loads((tmp_path / "open_clip_config.json").read_text())
    said["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "someone/it"
    (tmp_path / "open_clip_config.json").write_text(json.dumps(said))
    padding.bare_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match="its reading half reads padding too and its tokenizer has no pad token"
    ) as told:
        mpm.load_text_tower(str(tmp_path), "cpu")
    sentence(told)


@pytest.mark.parametrize("kind", ["vit", "whisper"])
def test_a_model_that_does_not_read_texts_says_so_as_it_is_loaded(tmp_path: Path, kind: str) -> None:
    import transformers as t

    small = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    model = (
        t.ViTModel(t.ViTConfig(**tiny.SIGHT))
        if kind == "vit"
        else t.WhisperModel(
            t.WhisperConfig(
                vocab_size=20, d_model=16, encoder_ffn_dim=32, decoder_ffn_dim=32, **small, **padding.SPECIAL
            )
        )
    )
    with pytest.raises(UserError, match="does not read texts") as told:
        mpm.load_text_tower(str(padding.saved(tmp_path, model)), "cpu")
    sentence(told)


# what is asked of a language model


def test_a_checkpoints_own_generation_settings_are_not_followed(tmp_path: Path) -> None:
    """Greedy is greedy and a sample is drawn from all tokens, whatever generation_config.json says, which stays as it was."""
    root = tiny.language_model(tmp_path / "plain", "qwen2")
    plain = mpm.load_lm(str(root), device="cpu")
    set_root = tmp_path / "settings"
    shutil.copytree(root, set_root)
    settings = {"repetition_penalty": 50.0, "no_repeat_ngram_size": 1, "top_k": 1, "min_new_tokens": 5, "num_beams": 3}
    file = set_root / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    lm = mpm.load_lm(str(set_root), device="cpu")
    for how in ("greedy", "beam", "sample"):
        assert lm.generate(tiny.TEXTS, new_tokens=8, how=how) == plain.generate(tiny.TEXTS, new_tokens=8, how=how), how
    assert lm.model.generation_config.repetition_penalty == 50.0


def test_a_sample_may_be_any_token_of_a_large_vocabulary(tmp_path: Path) -> None:
    """transformers draws from the 50 likeliest only, unless it is told not to."""
    import transformers as t

    torch.manual_seed(0)
    words = [f"w{i}" for i in range(400)]
    large = tiny.tokenizer()
    large.add_tokens(words)
    model = t.LlamaForCausalLM(t.LlamaConfig(**padding.SHORT | {"vocab_size": 415, "max_position_embeddings": 400}))
    model.save_pretrained(tmp_path)
    large.save_pretrained(tmp_path)
    lm = mpm.load_lm(str(tmp_path), device="cpu")
    said = lm.generate(["a"] * 300, new_tokens=1, how="sample", temperature=50.0)
    assert len(set(said)) > 100  # with nearly the same chance for all, 300 draws are some 210 words


@pytest.mark.parametrize(
    "options, says",
    [
        ({"new_tokens": 0}, "new_tokens=0: ask for one new token or more"),
        ({"new_tokens": -3}, "new_tokens=-3"),
        ({"how": "beam", "beams": 0}, "beams=0"),
        ({"how": "sample", "temperature": 0.0}, "temperature=0.0: take one above 0, or how='greedy'"),
        ({"how": "sample", "temperature": float("nan")}, "temperature=nan"),
        ({"how": "sample", "top_p": 2.0}, "top_p=2.0"),
        ({"how": "sample", "top_p": 0.0}, "top_p=0.0"),
    ],
)
def test_impossible_numbers_are_refused_before_anything_is_written(
    tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    lm = mpm.load_lm(str(tiny.language_model(tmp_path, "qwen2")), device="cpu")
    lm.read = lambda *args: pytest.fail("a prompt was read")
    with pytest.raises(UserError, match=says) as told:
        lm.generate(["a"], **options)
    sentence(told)


@pytest.mark.parametrize("kind", ["qwen2", "mt0"])
def test_nothing_to_read_gives_nothing_and_nothing_to_say_costs_nothing(tmp_path: Path, kind: str) -> None:
    lm = mpm.load_lm(str(tiny.language_model(tmp_path, kind)), device="cpu")
    assert lm.generate([]) == lm.choose([], []) == [] and lm.log_likelihood([], []).shape == (0,)
    assert lm.layer_states([]).shape == (3, 0, 32) and lm.layer_states(["a"]).shape == (3, 1, 32)
    assert lm.log_likelihood(["a", "cat"], ["", ""], end=False).tolist() == [0, 0]
    with pytest.raises(UserError, match="2 prompts and options for 1 do not pair up"):
        lm.choose(["a", "cat"], [["dog"]])
    with pytest.raises(UserError, match="Text 1 is a NoneType, not a string"):
        lm.generate(["a", None])


def test_a_decoder_that_starts_with_the_end_of_text_token_writes(tmp_path: Path) -> None:
    """BART's does, so that its first token is no end."""
    import transformers as t

    torch.manual_seed(0)
    halves = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = t.BartConfig(
        vocab_size=len(tiny.WORDS), d_model=16, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=34,
        **halves, **padding.SPECIAL, decoder_start_token_id=2, forced_eos_token_id=None,
    )  # fmt: skip
    lm = mpm.load_lm(str(padding.saved(tmp_path, t.BartForConditionalGeneration(config))), device="cpu")
    assert any(lm.generate(tiny.TEXTS, new_tokens=6, how="sample"))


def test_a_decoder_whose_start_nobody_names_says_so(tmp_path: Path) -> None:
    root = tiny.language_model(tmp_path, "mt0")
    for name in ("config.json", "generation_config.json"):
        said = json.loads((root / name).read_text())
        said["decoder_start_token_id"] = None
        (root / name).write_text(json.dumps(said))
    with pytest.raises(UserError, match="names no decoder_start_token_id") as told:
        mpm.load_lm(str(root), device="cpu")
    sentence(told)
