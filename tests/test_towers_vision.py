"""Image towers from real formats against the libraries that wrote them: what is pooled, what a patch is, what a size is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import test_towers_tiny as tiny
import torch

from mpm_lite import UserError
from mpm_lite.towers.load import load_image_tower

SAID = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4], "size": {"height": 32, "width": 32}}


def seen(images: np.ndarray) -> torch.Tensor:
    """Pictures of the model's own size, normalised as SAID says, float32 (N, 3, H, W)."""
    x = (images / 255 - np.array(SAID["image_mean"])) / np.array(SAID["image_std"])
    return torch.tensor(x.transpose(0, 3, 1, 2), dtype=torch.float32)


def close(ours: np.ndarray, theirs: torch.Tensor) -> bool:
    """Whether two agree to a part in ten thousand of the largest number."""
    return bool(np.abs(ours - theirs.numpy()).max() <= 1e-4 * theirs.abs().max().item())


@pytest.mark.parametrize("kind", ["clip", "clip-projected", "siglip", "siglip-headless", "dinov2-registers", "vit"])
def test_what_is_pooled_is_what_the_library_gives(tmp_path: Path, kind: str) -> None:
    model, images = tiny.vision(tmp_path, kind), tiny.pictures(3, 32)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(SAID))
    tower, x = load_image_tower(str(tmp_path), "cpu"), seen(images)
    with torch.inference_mode():
        if kind in ("clip", "siglip"):
            out = model.get_image_features(pixel_values=x)
            pooled = out if isinstance(out, torch.Tensor) else out.pooler_output
            states = model.vision_model(pixel_values=x).last_hidden_state
        else:
            out = model(pixel_values=x)
            states = out.last_hidden_state
            pooled = {"clip-projected": lambda: out.image_embeds, "siglip-headless": lambda: states.mean(1)}.get(
                kind, lambda: out.pooler_output
            )()
    assert tower.width == (8 if "clip" in kind else 16) and tower.has_patches
    assert close(tower.encode(images), pooled)
    assert close(tower.patches(images), states[:, -16:])


def test_siglip2_reads_patches_as_its_own_processor_cuts_them(tmp_path: Path) -> None:
    from transformers.models.siglip2 import image_processing_siglip2 as own

    model, images = tiny.vision(tmp_path, "siglip2"), tiny.pictures(2, 32)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(SAID))
    tower = load_image_tower(str(tmp_path), "cpu")
    processor = own.Siglip2ImageProcessor(
        patch_size=8, max_num_patches=16, image_mean=SAID["image_mean"], image_std=SAID["image_std"]
    )
    read = processor(list(images), return_tensors="pt", input_data_format="channels_last")
    with torch.inference_mode():
        out = model(**read)
    assert tower.size == 32 and read["spatial_shapes"].tolist() == [[4, 4]] * 2
    assert close(tower.encode(images), out.pooler_output)
    assert close(tower.patches(images), out.last_hidden_state)


def test_dinov2_is_read_at_the_size_its_file_crops_to(tmp_path: Path) -> None:
    model, images = tiny.vision(tmp_path, "dinov2"), tiny.pictures(2, 35)
    assert load_image_tower(str(tmp_path), "cpu").size == 48  # nothing about sizes: where its positions were learned
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match="no preprocessor_config.json"):
        load_image_tower(str(tmp_path), "cpu")  # how it scales colours is known from that file alone
    said = SAID | {"size": {"shortest_edge": 40}, "crop_size": {"height": 35, "width": 35}, "do_center_crop": True}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    tower = load_image_tower(str(tmp_path), "cpu")
    assert tower.size == 32 and tower.patches(images).shape == (2, 16, 16)  # whole patches of 8
    with torch.inference_mode():
        pooled = model(pixel_values=seen(tiny.pictures(2, 32))).pooler_output
    assert close(tower.encode(tiny.pictures(2, 32)), pooled)


def test_a_model_of_pictures_that_are_not_square(tmp_path: Path) -> None:
    model = tiny.vision(tmp_path, "vit", image_size=[32, 48])
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(SAID | {"size": {"height": 32, "width": 48}}))
    tower, images = load_image_tower(str(tmp_path), "cpu"), tiny.pictures(2, 32, 48)
    with torch.inference_mode():
        out = model(pixel_values=seen(images))
    assert tower.sides == (32, 48) and tower.size == 48 and tower.patches(images).shape == (2, 24, 16)
    assert close(tower.encode(images), out.pooler_output)
    assert tower.encode(tiny.pictures(2, 50)).shape == (2, 16)


@pytest.mark.parametrize("nested", [False, True], ids=["preprocessor_config", "processor_config"])
def test_the_files_interpolation_and_colours_are_followed(tmp_path: Path, nested: bool) -> None:
    from PIL import Image

    tiny.vision(tmp_path, "vit")
    images, towers = tiny.pictures(1, 75), {}
    for how, number in (("bicubic", 3), ("bilinear", 2)):
        said = SAID | {"resample": number}
        if nested:
            (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": said}))
        else:
            (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
        towers[how] = tower = load_image_tower(str(tmp_path), "cpu")
        theirs = Image.fromarray(images[0]).resize((32, 32), Image.Resampling(number))
        ours = tower.prepare(images)[0].permute(1, 2, 0).numpy() * SAID["image_std"] + SAID["image_mean"]
        assert np.abs(ours * 255 - np.asarray(theirs, np.float32)).max() <= 1.01, how
    assert towers["bicubic"].fingerprint != towers["bilinear"].fingerprint
    (tmp_path / ("processor_config.json" if nested else "preprocessor_config.json")).unlink()
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(SAID | {"do_normalize": False}))
    x = load_image_tower(str(tmp_path), "cpu").prepare(np.full((1, 32, 32, 3), 255, np.uint8))
    assert torch.equal(x, torch.ones_like(x))


def test_open_clips_timm_models_have_patches(tmp_path: Path) -> None:
    import open_clip
    from safetensors.torch import save_file

    torch.manual_seed(0)
    sight = {"timm_model_name": "test_vit", "timm_model_pretrained": False, "timm_pool": "avg", "timm_proj": "linear",
             "image_size": 160}  # fmt: skip
    text = {"context_length": 8, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 12, "vision_cfg": sight, "text_cfg": text}
    model = open_clip.CLIP(**config).eval()
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "open_clip_model.safetensors")
    said = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": said}))
    tower, images = load_image_tower(str(tmp_path), "cpu"), tiny.pictures(2, 160)
    with torch.inference_mode():
        assert close(tower.encode(images), model.encode_image(tower.prepare(images)))
    assert tower.has_patches and tower.patches(images).shape == (2, 100, 64) and tower.interpolation == "bilinear"


def test_a_text_model_is_no_image_tower(tmp_path: Path) -> None:
    tiny.encoder(tmp_path)
    with pytest.raises(UserError, match="is no vision model .*'xlm-roberta'"):
        load_image_tower(str(tmp_path), "cpu")
