"""Whatever text or picture comes, a tower gives finite vectors or one UserError: properties, not examples."""

from __future__ import annotations

import io
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_towers_tiny as tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import mpm_lite as mpm
from mpm_lite import UserError
from mpm_lite.data import picture

TEXT = ("use-m", "e5-small", "minilm-en", "toy", "toy-en", "xlm-roberta", "labse", "open_clip", "open_clip hf")
IMAGES = ("toy", "efficientnet-lite0", "clip", "siglip2", "dinov2", "open_clip", "vit 32 x 48")
MADE = {
    "xlm-roberta": tiny.encoder,
    "labse": lambda at: tiny.sentence_model(at, "bert", "cls", "Tanh"),
    "open_clip": tiny.open_clip_model,
    "open_clip hf": lambda at: tiny.open_clip_model(at, "hf"),
    "clip": lambda at: tiny.vision(at, "clip"),
    "siglip2": lambda at: tiny.vision(at, "siglip2"),
    "dinov2": lambda at: tiny.vision(at, "dinov2"),
    "vit 32 x 48": lambda at: tiny.vision(at, "vit", image_size=[32, 48]),
}
usual = settings(
    max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tower by kind and name, made and loaded once."""
    root = tmp_path_factory.mktemp("towers")

    @cache
    def tower(load: Any, name: str) -> Any:
        if name not in MADE:
            return load(name, "cpu")
        place = root / name.replace(" ", "-")
        if not place.exists():
            MADE[name](place)
        return load(str(place), "cpu")

    return tower


# Anything Unicode has but halves of surrogate pairs: assigned or not, marks without a letter, what directs writing.
words = st.text(st.characters(exclude_categories=("Cs",)), max_size=60)
odd = st.sampled_from(
    ["\u0000", "\u200d", "\u202e abc", "e\u0301" * 30, "👩‍👩‍👧‍👦", "\ufeff", "<s></s>", "ﷺ", "\U0010ffff", "a\n" * 40]
)


@pytest.mark.parametrize("name", TEXT)
def test_any_text_is_a_unit_vector_or_a_user_error(towers: Any, name: str) -> None:
    tower = towers(mpm.load_text_tower, name)

    @settings(usual, max_examples=15 if name in MADE else 6)
    @given(st.lists(words | odd, min_size=1, max_size=3))
    def check(texts: list[str]) -> None:
        if not all(text.strip() for text in texts):
            with pytest.raises(UserError, match="is empty"):
                tower.encode(texts)
            return
        found = tower.encode(texts)
        assert found.shape == (len(texts), tower.width) and found.dtype == np.float32 and np.isfinite(found).all()
        assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-4)
        assert len(tower.pieces(texts)) == len(texts) and 0 <= tower.unknown_rate(texts) <= 1
        if tower.has_tokens:
            states, mask = tower.tokens(texts)
            assert states.shape[:2] == mask.shape and mask.any(1).all() and np.isfinite(states).all()

    check()


@pytest.mark.parametrize("name", TEXT)
@pytest.mark.parametrize(
    "bad", ["", " \n", "\u3000", "a\ud800", "\udfff"], ids=["empty", "blank", "wide", "high", "low"]
)
def test_no_text_and_half_a_surrogate_pair_are_user_errors(towers: Any, name: str, bad: str) -> None:
    tower = towers(mpm.load_text_tower, name)
    for ask in (tower.encode, tower.pieces, tower.unknown_rate, *([tower.tokens] if tower.has_tokens else [])):
        with pytest.raises(UserError, match="Text 1 (is empty|holds half a surrogate pair)"):
            ask(["a cat", bad])


sides = st.sampled_from([(1, 1), (1, 7), (9, 1), (1, 300), (300, 1), (3, 1000), (32, 32), (33, 31), (64, 48), (2, 2)])


@pytest.mark.parametrize("name", IMAGES)
def test_any_size_of_picture_is_a_finite_vector(towers: Any, name: str) -> None:
    tower = towers(mpm.load_image_tower, name)

    @settings(usual, max_examples=6)
    @given(sides, st.integers(1, 2), st.integers(0, 2**32 - 1))
    def check(side: tuple[int, int], count: int, seed: int) -> None:
        images = np.random.default_rng(seed).integers(0, 256, (count, *side, 3), dtype=np.uint8)
        found = tower.encode(images)
        assert found.shape == (count, tower.width) and found.dtype == np.float32 and np.isfinite(found).all()
        assert np.isfinite(tower.patches(images)).all()

    check()
    long = np.zeros((1, 4000, 3, 3), np.uint8)
    assert np.isfinite(tower.encode(long)).all() and np.isfinite(tower.encode(long.transpose(0, 2, 1, 3))).all()


shapes = st.sampled_from(
    [(1, 0, 4, 3), (1, 4, 0, 3), (1, 4, 4, 4), (1, 4, 4, 1), (4, 4), (4, 4, 3), (1, 3, 4, 4), (1, 1, 4, 4, 3)]
)
kinds = st.sampled_from(
    [np.float32, np.float64, np.float16, np.uint16, np.int64, np.bool_, np.int8, np.complex64, np.uint8]
)


@pytest.mark.parametrize("name", ["efficientnet-lite0", "clip"])
def test_what_is_no_picture_is_a_user_error(towers: Any, name: str) -> None:
    tower = towers(mpm.load_image_tower, name)

    @settings(usual, max_examples=40)
    @given(shapes | st.just((1, 4, 4, 3)), kinds)
    def check(shape: tuple[int, ...], kind: Any) -> None:
        if kind is np.uint8 and shape == (1, 4, 4, 3):
            return
        with pytest.raises(UserError, match="Pictures must be uint8 of shape"):
            tower.encode(np.zeros(shape, kind))

    check()


MODES = (
    "1",
    "L",
    "LA",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBa",
    "RGBX",
    "La",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "I;16",
    "F",
)
FORMATS = ("PNG", "TIFF", "JPEG", "WEBP", "GIF", "BMP")


def drawn(mode: str, size: tuple[int, int], seed: int) -> Image.Image:
    """A picture of noise in a mode of PIL's."""
    rng = np.random.default_rng(seed)
    if mode in ("I", "I;16", "F"):
        kind = {"I": np.int32, "I;16": np.uint16, "F": np.float32}[mode]
        return Image.fromarray(rng.integers(0, 65535, size[::-1]).astype(kind))
    bands = len(Image.new(mode, (1, 1)).getbands())
    data = rng.integers(0, 256, (size[1], size[0], bands), dtype=np.uint8).tobytes()
    if mode == "1":
        return Image.frombytes("L", size, data).convert("1")
    return Image.frombytes(mode, size, data)


def test_any_mode_and_size_of_file_is_drawn_or_a_user_error_and_a_tower_reads_it(towers: Any, tmp_path: Path) -> None:
    tower, seen = towers(mpm.load_image_tower, "clip"), set()

    @settings(usual, max_examples=120)
    @given(st.sampled_from(MODES), st.sampled_from(FORMATS), sides, st.integers(0, 9))
    def check(mode: str, form: str, size: tuple[int, int], seed: int) -> None:
        image, buffer = drawn(mode, size, seed), io.BytesIO()
        try:
            image.save(buffer, form)
        except (OSError, ValueError, KeyError):  # a format that does not hold this mode
            return
        path = tmp_path / f"it.{form.lower()}"
        path.write_bytes(buffer.getvalue())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = picture.draw(path)
            except UserError as error:
                assert "cannot be drawn" in str(error)
                return
        assert found.shape == (256, 256, 3) and found.dtype == np.uint8
        assert np.isfinite(tower.encode(found[None])).all()
        seen.add(mode)

    check()
    assert {"1", "L", "LA", "P", "RGB", "RGBA", "CMYK"} <= seen


def test_a_long_picture_file_is_drawn_and_a_torn_one_is_a_user_error(tmp_path: Path) -> None:
    path = tmp_path / "it.png"
    for size in ((4000, 3), (3, 4000), (1, 1)):
        Image.new("RGB", size, (200, 0, 0)).save(path)
        assert picture.draw(path).shape == (256, 256, 3)
    tiny_noise = drawn("RGB", (64, 64), 0)
    tiny_noise.save(path)
    data = path.read_bytes()

    @settings(usual, max_examples=25)
    @given(st.integers(0, len(data) - 1))
    def check(end: int) -> None:
        path.write_bytes(data[:end])
        try:
            assert picture.draw(path).shape == (256, 256, 3)
        except UserError as error:
            assert "cannot be drawn" in str(error)

    check()
