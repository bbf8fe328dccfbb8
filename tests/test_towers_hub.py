"""Checkpoints in folders and on the hub: tiny random ones, saved in the real formats, read without a network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from mpm_lite.core import runtime
from mpm_lite.towers.load import load_image_tower, load_text_tower


def pictures(count: int, size: int) -> np.ndarray:
    """Noise over a gradient, uint8 (N, H, W, 3)."""
    noise = np.random.default_rng(0).integers(0, 120, (count, size, size, 3))
    return (noise + np.linspace(0, 130, size)[None, :, None, None]).astype(np.uint8)


def save_text(root: Path, kind: str) -> Path:
    """A tiny random encoder with a word tokenizer, as transformers saves them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel

    words = ["<s>", "<pad>", "</s>", "<unk>", "a", "red", "cat", "dog"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(root)
    tiny = {"vocab_size": 8, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 32, "max_position_embeddings": 34, "pad_token_id": 1}  # fmt: skip
    torch.manual_seed(0)
    model = BertModel(BertConfig(**tiny)) if kind == "bert" else XLMRobertaModel(XLMRobertaConfig(**tiny))
    model.save_pretrained(root)
    return root


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta"])
def test_a_text_checkpoint_in_a_folder(tmp_path: Path, kind: str) -> None:
    from transformers import AutoModel

    tower = load_text_tower(str(save_text(tmp_path, kind)), "cpu")
    texts = ["a red cat", "dog", "a zebra " * 40]  # the last is longer than the model
    found = tower.encode(texts)
    assert found.shape == (3, 16) and tower.width == 16 and tower.languages == frozenset()
    assert tower.unknown_rate(["a zebra"]) == 0.5 and tower.pieces(["a zebra"]) == [["a", "<unk>"]]
    model = AutoModel.from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        direct = model(torch.tensor([[4, 5, 6]])).last_hidden_state.mean(1).numpy()
    assert np.allclose(found[:1], direct / np.linalg.norm(direct), atol=1e-5)
    before = tower.fingerprint
    assert load_text_tower(str(tmp_path), "cpu").fingerprint == before


def test_a_cached_hub_checkpoint_loads_without_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0" * 40
    save_text(tmp_path / "models--someone--tiny" / "snapshots" / commit, "bert")
    (tmp_path / "models--someone--tiny" / "refs").mkdir()
    (tmp_path / "models--someone--tiny" / "refs" / "main").write_text(commit)
    assert load_text_tower("someone/tiny", "cpu").encode(["a red cat"]).shape == (1, 16)


def test_an_unreachable_hub_names_what_runs_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(runtime.UserError, match="cannot be reached.*use-m, e5-small, minilm-en"):
        load_text_tower("intfloat/multilingual-e5-base", "cpu")
    for name in ("google/vit-base-patch16-224", "open_clip:ViT-B-32/laion2b_s34b_b79k"):
        with pytest.raises(runtime.UserError, match="cannot be reached.*efficientnet-lite0"):
            load_image_tower(name, "cpu")
    with pytest.raises(runtime.UserError, match="Did you mean 'open_clip:ViT-B-32/laion2b_s34b_b79k'"):
        load_image_tower("open_clip:ViT-B-32/laion2b_s34b_b79", "cpu")
    monkeypatch.delenv("HF_HUB_OFFLINE")  # a host that refuses is found out by asking, once
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(runtime.urllib.request, "getproxies", dict)
    runtime._answers.cache_clear()
    assert not runtime.reachable()
    with pytest.raises(runtime.UserError, match="cannot be reached"):
        load_text_tower("someone/never", "cpu")
    runtime._answers.cache_clear()


def test_damaged_folders_are_one_sentence(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for loader in (load_text_tower, load_image_tower):
        with pytest.raises(runtime.UserError):
            loader(str(empty), "cpu")
    torn = save_text(tmp_path / "torn", "bert")
    data = (torn / "model.safetensors").read_bytes()
    (torn / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(runtime.UserError, match="does not load"):
        load_text_tower(str(torn), "cpu")
    pickled = save_text(tmp_path / "pickled", "bert")
    shutil.move(pickled / "model.safetensors", pickled / "pytorch_model.bin")
    with pytest.raises(runtime.UserError, match="safetensors"):
        load_text_tower(str(pickled), "cpu")


VISION = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
          "image_size": 32, "patch_size": 8}  # fmt: skip


@pytest.mark.parametrize("kind", ["clip_vision", "clip", "vit-without-pooler"])
def test_a_transformers_vision_checkpoint_in_a_folder(tmp_path: Path, kind: str) -> None:
    import transformers as t

    torch.manual_seed(0)
    if kind == "clip_vision":
        model = t.CLIPVisionModel(t.CLIPVisionConfig(**VISION))
    elif kind == "clip":
        words = {"vocab_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = t.CLIPModel(t.CLIPConfig(text_config=words, vision_config=VISION, projection_dim=8))
    else:
        model = t.ViTModel(t.ViTConfig(**VISION), add_pooling_layer=False)
    model.save_pretrained(tmp_path)
    said = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    tower, images = load_image_tower(str(tmp_path), "cpu"), pictures(3, 32)
    found, patches = tower.encode(images), tower.patches(images)
    assert found.shape == (3, tower.width) and patches.shape == (3, 16, 16) and tower.size == 32
    x = (images / 255 - np.array(said["image_mean"])) / np.array(said["image_std"])
    vision = model.vision_model if kind == "clip" else model
    assert tower.width == (8 if kind == "clip" else 16)
    with torch.inference_mode():
        out = vision.eval()(pixel_values=torch.tensor(x.transpose(0, 3, 1, 2), dtype=torch.float32))
    pooled = out.last_hidden_state[:, 0] if kind == "vit-without-pooler" else out.pooler_output
    if kind == "clip":  # its pictures lie where its texts do
        with torch.inference_mode():
            pooled = model.visual_projection(pooled)
    assert np.allclose(found, pooled.numpy(), atol=1e-4)
    assert np.allclose(patches, out.last_hidden_state[:, 1:].numpy(), atol=1e-4)
    assert np.array_equal(found, load_image_tower(str(tmp_path), "cpu").encode(images))


def test_an_open_clip_checkpoint_in_a_folder(tmp_path: Path) -> None:
    import open_clip
    from safetensors.torch import save_file

    sight = {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8}
    model_cfg = {"embed_dim": 12, "vision_cfg": sight,
                 "text_cfg": {"context_length": 8, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1}}  # fmt: skip
    torch.manual_seed(0)
    model = open_clip.CLIP(**model_cfg).eval()
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "open_clip_model.safetensors")
    preprocess = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": preprocess}))
    tower, images = load_image_tower(str(tmp_path), "cpu"), pictures(2, 32)
    assert tower.has_patches and tower.width == 12 and tower.patches(images).shape == (2, 16, 16)
    x = torch.tensor(((images / 255 - 0.5) / 0.25).transpose(0, 3, 1, 2), dtype=torch.float32)
    with torch.inference_mode():
        assert np.allclose(tower.encode(images), model.encode_image(x).numpy(), atol=1e-4)


def test_a_timm_checkpoint_in_a_folder(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(0)
    model = timm.create_model("test_vit", pretrained=False).eval()
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    tower, images = load_image_tower(str(tmp_path), "cpu"), pictures(2, 160)
    with torch.inference_mode():
        direct = model.forward_head(model.forward_features(tower.prepare(images)), pre_logits=True).numpy()
    assert np.allclose(tower.encode(images), direct, atol=1e-4)
    assert tower.patches(images).shape == (2, 100, tower.width)
