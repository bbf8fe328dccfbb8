"""Text towers from real formats against the libraries that wrote them: sentence-transformers' modules, open_clip's halves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import test_towers_tiny as tiny
import torch
from worlds import Meaning

from mpm_lite import UserError
from mpm_lite.towers import feature_cache
from mpm_lite.towers.load import load_text_tower
from mpm_lite.towers.prompts import PromptEncoder

KINDS = {
    "e5": {"kind": "xlm-roberta"},
    "labse": {"kind": "bert", "mode": "cls", "dense": "Tanh"},
    "narrow": {"kind": "xlm-roberta", "dense": "Identity", "out": 6},
    "max": {"kind": "bert", "mode": "max"},
    "last": {"kind": "xlm-roberta", "mode": "lasttoken"},
    "sqrt": {"kind": "bert", "mode": "mean_sqrt_len_tokens", "dense": "GELU"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_sentence_transformers_folder_says_what_its_library_says(tmp_path: Path, kind: str) -> None:
    theirs = tiny.sentence_model(tmp_path / "it", **KINDS[kind])
    tower = load_text_tower(str(tmp_path / "it"), "cpu")
    texts = [*tiny.TEXTS, "a red cat " * 12]  # the last is cut at the folder's own length
    found = tower.encode(texts)
    assert np.abs(found - theirs.encode(texts)).max() < 1e-5
    assert tower.width == found.shape[1] == KINDS[kind].get("out", 16) and tower.max_tokens == 20
    states, mask = tower.tokens(texts[:3])
    assert states.shape == (3, mask.shape[1], 16) and tower.token_width == 16
    assert PromptEncoder(tower).states(texts[:2]).batch([0, 1])[0].shape[-1] == 16
    plain = tiny.encoder(tmp_path / "plain", KINDS[kind]["kind"])
    apart = load_text_tower(str(plain), "cpu").encode(texts[:3])
    same = apart.shape[1] == tower.width and np.allclose(apart, found[:3], atol=1e-5)
    assert same == (kind == "e5")  # the modules matter
    if kind == "e5":
        return
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "it", other)
    if "dense" in KINDS[kind]:  # and so the fingerprint knows them
        path = other / "2_Dense" / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    else:
        (other / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    assert load_text_tower(str(other), "cpu").fingerprint != tower.fingerprint


def test_older_files_name_their_pooling_by_flags(tmp_path: Path) -> None:
    tiny.sentence_model(tmp_path / "it", "bert", "cls")
    new = load_text_tower(str(tmp_path / "it"), "cpu").encode(tiny.TEXTS)
    flags = {"word_embedding_dimension": 16, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (tmp_path / "it" / "1_Pooling" / "config.json").write_text(json.dumps(flags))
    assert np.array_equal(load_text_tower(str(tmp_path / "it"), "cpu").encode(tiny.TEXTS), new)


def test_prompts_are_put_where_they_are_asked_for_and_nowhere_else(tmp_path: Path) -> None:
    prompts = {"query": "query: ", "passage": "the "}
    theirs = tiny.sentence_model(tmp_path / "it", "xlm-roberta", prompts=prompts)
    name = str(tmp_path / "it")
    bare, asked, text = (load_text_tower(name, "cpu", prompt=p) for p in (None, "query", "query: "))
    assert np.abs(bare.encode(tiny.TEXTS) - theirs.encode(tiny.TEXTS)).max() < 1e-5
    assert np.abs(asked.encode(tiny.TEXTS) - theirs.encode(tiny.TEXTS, prompt_name="query")).max() < 1e-5
    assert np.array_equal(asked.encode(tiny.TEXTS), text.encode(tiny.TEXTS))
    assert len({bare.fingerprint, asked.fingerprint}) == 2 and asked.fingerprint == text.fingerprint
    assert asked.pieces(["a cat"]) == [["a", "cat"]]  # the prompt is no piece of the text
    with pytest.raises(UserError, match="Unknown prompt 'querry'. Did you mean 'query'"):
        load_text_tower(name, "cpu", prompt="querry")
    with pytest.raises(UserError, match="leave prompt out"):
        load_text_tower("e5-small", "cpu", prompt="query")
    tiny.sentence_model(tmp_path / "default", "xlm-roberta", prompts=prompts, default_prompt_name="query")
    assert np.array_equal(
        load_text_tower(str(tmp_path / "default"), "cpu").encode(tiny.TEXTS), asked.encode(tiny.TEXTS)
    )


def test_modules_that_are_not_read_say_so(tmp_path: Path) -> None:
    tiny.sentence_model(tmp_path / "it", "bert", "cls", "Tanh")
    dense, name = tmp_path / "it" / "2_Dense", str(tmp_path / "it")
    weights = (dense / "model.safetensors").read_bytes()
    (dense / "model.safetensors").write_bytes(weights[:-8])
    with pytest.raises(UserError, match="2_Dense does not load"):
        load_text_tower(name, "cpu")
    (dense / "model.safetensors").rename(dense / "pytorch_model.bin")
    with pytest.raises(UserError, match="only safetensors are read; convert"):
        load_text_tower(name, "cpu")
    (dense / "model.safetensors").write_bytes(weights)
    said = json.loads((dense / "config.json").read_text())
    (dense / "config.json").write_text(json.dumps(said | {"activation_function": "someone.Else"}))
    with pytest.raises(UserError, match="Unknown activation of a Dense module 'Else'"):
        load_text_tower(name, "cpu")
    pooling = tmp_path / "it" / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({"pooling_mode": ["cls", "mean"]}))
    with pytest.raises(UserError, match="pools by cls and mean"):
        load_text_tower(name, "cpu")
    modules = json.loads((tmp_path / "it" / "modules.json").read_text())
    modules[1]["type"] = "sentence_transformers.models.WordWeights"
    (tmp_path / "it" / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UserError, match="module 'WordWeights' that is not read"):
        load_text_tower(name, "cpu")


def unit(x: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(x, dim=-1).numpy()


@pytest.mark.parametrize("kind", ["own", "hf"])
def test_the_reading_half_of_an_open_clip_checkpoint(tmp_path: Path, kind: str) -> None:
    import open_clip

    model = tiny.open_clip_model(tmp_path / "it", kind)
    tower = load_text_tower(str(tmp_path / "it"), "cpu")
    texts = [*tiny.TEXTS, "a  red &amp; cat ! " * 9]  # cleaned first, and cut
    with torch.inference_mode():
        theirs = unit(model.encode_text(open_clip.get_tokenizer(f"local-dir:{tmp_path / 'it'}")(texts)))
    assert tower.width == 12 and np.abs(tower.encode(texts) - theirs).max() < 1e-5
    states, mask = tower.tokens(texts)
    assert tower.has_tokens and states.shape == (6, 12, 16) and mask.sum(1).max() == 12
    assert PromptEncoder(tower).width == 16
    assert tower.pieces(["a red cat"])[0] == (["a", "red", "cat"] if kind == "hf" else ["a</w>", "red</w>", "cat</w>"])
    assert 0 <= tower.unknown_rate(tiny.TEXTS) < 0.5 and tower.encode([]).shape == (0, 12)
    with pytest.raises(UserError, match="has no prompts"):
        load_text_tower(str(tmp_path / "it"), "cpu", prompt="query: ")


def test_a_reading_half_whose_encoder_is_only_a_name_is_found_beside_the_weights_or_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    tiny.open_clip_model(tmp_path / "it", "hf")
    expected = load_text_tower(str(tmp_path / "it"), "cpu").encode(tiny.TEXTS)
    config = tmp_path / "it" / "open_clip_config.json"
    said = json.loads(config.read_text())
    said["model_cfg"]["text_cfg"] |= {"hf_model_name": "someone/xlm-tiny", "hf_tokenizer_name": "someone/xlm-tiny"}
    config.write_text(json.dumps(said))
    with pytest.raises(UserError, match="cannot be reached and there is no 'someone/xlm-tiny' in its cache"):
        load_text_tower(str(tmp_path / "it"), "cpu")
    cached = tmp_path / "cache" / "models--someone--xlm-tiny"
    (cached / "snapshots" / "f" / "x").mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("f")
    shutil.copy(tmp_path / "it-text" / "config.json", cached / "snapshots" / "f")
    assert np.array_equal(load_text_tower(str(tmp_path / "it"), "cpu").encode(tiny.TEXTS), expected)
    shutil.rmtree(cached)
    shutil.copy(tmp_path / "it-text" / "config.json", tmp_path / "it")
    assert np.array_equal(load_text_tower(str(tmp_path / "it"), "cpu").encode(tiny.TEXTS), expected)


def test_a_listed_open_clip_name_is_its_hub_repository_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import open_clip
    from huggingface_hub import constants

    from mpm_lite.towers.load import load_image_tower

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    name = "ViT-B-32/laion2b_s34b_b79k"
    repo = open_clip.get_pretrained_cfg(*name.split("/"))["hf_hub"].strip("/")
    cached = tmp_path / f"models--{repo.replace('/', '--')}"
    for ref, commit in (("main", "1" * 40), ("v2", "2" * 40)):
        tiny.open_clip_model(cached / "snapshots" / commit)
        (cached / "refs").mkdir(exist_ok=True)
        (cached / "refs" / ref).write_text(commit)
    assert load_text_tower(f"open_clip:{name}", "cpu").encode(["a cat"]).shape == (1, 12)
    assert load_text_tower(f"open_clip:{name}@v2", "cpu").name == f"open_clip:{name}@v2"
    assert load_image_tower(f"open_clip:{name}", "cpu", revision="v2").encode(tiny.pictures(1, 32)).shape == (1, 12)
    with pytest.raises(UserError, match="no 'laion/.*@v3' in its cache"):
        load_text_tower(f"open_clip:{name}@v3", "cpu")
    with pytest.raises(UserError, match="Unknown open_clip model on the hub"):
        load_text_tower("open_clip:ViT-B-32", "cpu")


def test_a_half_without_token_states_says_which_towers_have_them(tmp_path: Path) -> None:
    import open_clip

    tiny.open_clip_model(tmp_path)
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["embed_cls"] = True  # as CoCa has it: the last norm comes behind pooling
    config["model_cfg"]["custom_text"] = True
    model = open_clip.CustomTextCLIP(**{k: v for k, v in config["model_cfg"].items() if k != "custom_text"}).eval()
    from safetensors.torch import save_file

    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    tower = load_text_tower(str(tmp_path), "cpu")
    assert not tower.has_tokens and tower.encode(tiny.TEXTS).shape == (5, 12)
    with pytest.raises(UserError, match="sentence vectors only; for token states take e5-small"):
        tower.tokens(["a cat"])


def test_a_two_sided_transformers_folder_is_no_text_tower(tmp_path: Path) -> None:
    tiny.vision(tmp_path, "clip")
    with pytest.raises(UserError, match="model of pictures and texts.*load_image_tower"):
        load_text_tower(str(tmp_path), "cpu")


def test_a_tower_that_was_changed_in_memory_is_told_from_the_one_that_was_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another tokenizer shows in its fingerprint; a number changed through .data is noticed before anything is kept."""
    monkeypatch.setenv("MPM_LITE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(feature_cache, "SAMPLED", 1)  # only the first number of each weight is looked at
    tower = load_text_tower(str(tiny.encoder(tmp_path / "text")), "cpu")
    before, own = tower.fingerprint, tower.tokenizer
    assert feature_cache.vectors_of(["cat"], tower).shape == (1, 16)
    words = own.get_vocab()
    tower.tokenizer = SimpleNamespace(get_vocab=lambda: {word: len(words) - 1 - i for word, i in words.items()})
    assert tower.fingerprint != before
    tower.tokenizer = own
    assert tower.fingerprint == before
    tower.model.get_input_embeddings().weight.data[3, 3] += 0.5
    with pytest.raises(UserError, match="changed through .data"):
        feature_cache.vectors_of(["a red cat"], tower)
    with pytest.raises(UserError, match="gave an array"):
        feature_cache.vectors_of(["red 1"], Short())


class Short(Meaning):
    """One vector, however many texts it is given."""

    def __init__(self) -> None:
        super().__init__(name="short")

    def encode(self, texts: object, progress: bool = False) -> np.ndarray:
        return super().encode(texts)[:0]
