"""Language models from real formats: shards, tied embeddings, quantisation, and what is said where a part is missing."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import test_towers_tiny as tiny
import torch

import mpm_lite as mpm
from mpm_lite import UserError
from mpm_lite.core import runtime
from mpm_lite.towers import folders, inference, lm

KINDS = ("qwen2", "qwen3", "bloom", "mt0")
PROMPTS, TOLD = ["a red", "the blue dog"], ["cat", "a hund"]


@pytest.mark.parametrize("kind", KINDS)
def test_shards_are_put_together(tmp_path: Path, kind: str) -> None:
    whole = mpm.load_lm(str(tiny.language_model(tmp_path / "whole", kind)), device="cpu")
    root = tiny.language_model(tmp_path / "parts", kind, max_shard_size="9KB")
    shards = sorted(root.glob("model-*.safetensors"))
    assert len(shards) > 2 and (root / "model.safetensors.index.json").exists()
    parts = mpm.load_lm(str(root), device="cpu")
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, parts.model.state_dict()[key]), key
    assert np.array_equal(whole.log_likelihood(PROMPTS, TOLD), parts.log_likelihood(PROMPTS, TOLD))
    assert whole.generate(PROMPTS, new_tokens=4) == parts.generate(PROMPTS, new_tokens=4)
    assert whole.fingerprint != parts.fingerprint  # other files, though the same numbers
    tied = parts.model.config.tie_word_embeddings and kind != "mt0"
    same = parts.head.weight.data_ptr() == parts.model.get_input_embeddings().weight.data_ptr()
    assert same or not tied
    gone = shards[1].name
    shutil.move(root / gone, tmp_path / gone)
    with pytest.raises(UserError, match=f"does not load: {gone} is missing, one of the {len(shards)} shards"):
        mpm.load_lm(str(root), device="cpu")
    data = (tmp_path / gone).read_bytes()
    (root / gone).write_bytes(data[:-40])
    with pytest.raises(UserError, match=f"does not load: {gone} is cut short or damaged"):
        mpm.load_lm(str(root), device="cpu")
    (root / gone).write_bytes(data)
    assert mpm.load_lm(str(root), device="cpu").fingerprint == parts.fingerprint


def test_a_tokenizer_of_another_model_says_so(tmp_path: Path) -> None:
    root = tiny.language_model(tmp_path, "qwen2")
    other = tiny.tokenizer(padding_side="left")
    other.add_tokens([f"word{i}" for i in range(30)])
    other.save_pretrained(root)
    with pytest.raises(UserError, match="the two belong to different models"):
        mpm.load_lm(str(root), device="cpu")


def test_bits_are_checked_before_anything_is_fetched_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "folder", lambda *a: pytest.fail("a folder was looked for"))
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else real(name, *a)
    )
    with pytest.raises(UserError, match="bits=3: .* 4 or 8"):
        mpm.load_lm("owner/model", device="cpu", bits=3)
    with pytest.raises(UserError, match="bits=4 takes a CUDA GPU and the device is 'cpu'"):
        mpm.load_lm("owner/model", device="cpu", bits=4)
    on = torch.device("cuda")
    monkeypatch.setattr(runtime, "device", lambda name=None: on)
    with pytest.raises(UserError, match=r"bits=8 takes bitsandbytes: pip install 'mpm_lite\[quant\]'"):
        mpm.load_lm("owner/model", bits=8)
    assert inference.options(None, torch.device("cpu")) == {}


def test_bits_reach_transformers_as_its_own_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    told: list[dict] = []
    monkeypatch.setattr(transformers, "BitsAndBytesConfig", lambda **given: told.append(given) or given)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *a: (7, 5))
    on = torch.device("cuda")
    four, eight = inference.options(4, on), inference.options(8, on)
    assert told[0] == {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float16}
    assert told[1] == {"load_in_8bit": True} and four["device_map"] == {"": on} == eight["device_map"]
    assert four["torch_dtype"] == torch.float32  # embeddings, norms and head: states go in and come out as ever


def test_a_quantised_model_stays_as_it_was_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    root = tiny.language_model(tmp_path, "qwen2")
    model = AutoModelForCausalLM.from_pretrained(root)
    model.is_quantized = True
    for refused in ("to", "float"):
        monkeypatch.setattr(type(model), refused, lambda *a, **k: pytest.fail("a quantised model was moved or widened"))
    plain = tiny.tokenizer(padding_side="left")
    kept = lm.LM("it", model, plain, "0" * 64, torch.device("cpu"))
    assert kept.quantised and not any(p.requires_grad for p in kept.model.parameters())
    soft = torch.randn(2, 3, kept.width, requires_grad=True)
    lost, _ = kept.losses(kept.read(PROMPTS, soft), TOLD)
    lost.sum().backward()
    assert soft.grad.abs().sum() > 0 and kept.generate(PROMPTS, new_tokens=3)


def test_a_configuration_without_its_kind_says_so(tmp_path: Path) -> None:
    root = tiny.language_model(tmp_path, "llama")
    said = json.loads((root / "config.json").read_text())
    said.pop("model_type")
    (root / "config.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match="no config.json there names its model_type"):
        mpm.load_lm(str(root), device="cpu")


def test_attention_is_kept_from_what_is_wrong_or_slow() -> None:
    """On CUDA from cuDNN's kernel, whose gradient of places that see nothing may be NaN; on a CPU, where a recipe trains in
    bfloat16, from the fused one. Afterwards everything is as it was."""
    config, flags = SimpleNamespace(_attn_implementation="sdpa"), torch.backends.cuda
    before = flags.cudnn_sdp_enabled()
    with inference.chosen(config, torch.device("cuda")):
        assert not flags.cudnn_sdp_enabled() and flags.math_sdp_enabled() and flags.mem_efficient_sdp_enabled()
        assert config._attn_implementation == "sdpa"
    assert flags.cudnn_sdp_enabled() == before
    with torch.autocast("cpu", torch.bfloat16), inference.chosen(config, torch.device("cpu")):
        assert config._attn_implementation == "eager"
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), inference.chosen(config, torch.device("cpu")):
        assert config._attn_implementation == "sdpa"
    with pytest.raises(KeyError), inference.chosen(config, torch.device("cuda")):
        raise KeyError
    assert flags.cudnn_sdp_enabled() == before and config._attn_implementation == "sdpa"


def test_a_language_model_is_where_its_weights_are(tmp_path: Path) -> None:
    one = mpm.load_lm(str(tiny.language_model(tmp_path, "qwen2")), device="cpu")
    assert one.device == torch.device("cpu")
    one.model.to("meta")  # as a recipe takes it along to a GPU
    assert one.device == torch.device("meta")
