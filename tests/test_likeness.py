"""How near painted pictures are to drawn ones: distances that are known, and captions that must be found."""

import numpy as np
import pytest
import torch

from mpm_lite import UserError
from mpm_lite.data import toyworld
from mpm_lite.data.toyworld import grammar
from mpm_lite.experiments import mpm_paint


def test_distances_are_those_of_gaussians():
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(4_000, 6, generator=draw) for _ in range(2))
    moved = b + torch.tensor([3.0, 0, 0, 0, 0, 0])
    assert mpm_paint.measure_fid(a, a) == pytest.approx(0, abs=1e-3) and mpm_paint.measure_fid(a, b) < 0.1
    assert mpm_paint.measure_fid(a, moved) == pytest.approx(9, rel=0.05)  # the squared distance of the means
    assert mpm_paint.measure_fid(a, 2 * b) == pytest.approx(6, rel=0.1)  # (2 - 1)^2 in each of six directions
    assert mpm_paint.measure_kid(a[:200], b[:200]) < 0.05 < mpm_paint.measure_kid(a[:200], moved[:200])
    assert mpm_paint.measure_kid(a[:200], moved[:200]) == mpm_paint.measure_kid(a[:200], moved[:200])


def test_too_few_or_broken_features_say_so():
    with pytest.raises(UserError, match="each needs two and more"):
        mpm_paint.measure_fid(torch.zeros(1, 3), torch.zeros(5, 3))
    with pytest.raises(UserError, match="finite features"):
        mpm_paint.measure_kid(torch.full((4, 3), float("nan")), torch.zeros(5, 3))


@pytest.fixture
def small_world(tmp_path, monkeypatch):
    """The toy world with a twelfth of its training pictures: a tower reads them all before a pair is learned from."""
    of_split = (toyworld.split_scenes, toyworld._named, toyworld.digest_split, toyworld.parts)
    monkeypatch.setenv("MPM_LITE_HOME", str(tmp_path))
    monkeypatch.setitem(toyworld.COUNTS, "train", 2_000)
    for known in of_split:
        known.cache_clear()
    yield
    for known in of_split:
        known.cache_clear()


def test_drawings_find_their_captions_and_each_other(small_world):
    judge, many = mpm_paint.Likeness(pairs=1_500, progress=False), toyworld.split_scenes("val")[:150]
    drawn = judge.features(np.stack([toyworld.render(scene, 48, seed=1) for scene in many]))
    captions = [grammar.in_order(scene, "en")[0] for scene in many]
    right, wrong = judge.r_precision(drawn, captions), judge.r_precision(drawn.roll(1, 0), captions)
    assert right.mean() > 0.3 > 0.1 > wrong.mean()
    again = judge.features(np.stack([toyworld.render(scene, 48, seed=2) for scene in many]))
    noise = judge.features(np.random.default_rng(0).integers(0, 255, (150, 48, 48, 3)).astype(np.uint8))
    assert mpm_paint.measure_fid(drawn, again) < mpm_paint.measure_fid(drawn, noise)
    with pytest.raises(UserError, match="chooses among 100 captions"):
        judge.r_precision(drawn[:20], captions[:20])
