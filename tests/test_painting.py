"""The painting experiment, small: what arms learn from, training that is kept, looks, scores; with parts untrained."""

import numpy as np
import pytest
import torch

from mpm_lite import UserError, paint, painting, scene_reader
from mpm_lite.painting import Paint

TINY = {"steps": 2, "batch": 4, "learns": "all", "bf16": False}
ARM = Paint(start="", pairs=12, options=TINY)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPM_LITE_HOME", str(tmp_path_factory.mktemp("home")))
        torch.manual_seed(0)
        vae, reader = paint.small_vae(8, (16, 16)).eval(), scene_reader.SceneReader().eval()
        patch.setattr(paint, "load_vae", lambda: vae)
        patch.setattr(scene_reader, "load_scene_reader", lambda: reader)
        patch.setattr(painting, "WIDTHS", (32, 32))
        patch.setattr(painting, "BLOCK", 40)
        yield painting.Bench(progress=False)


@pytest.fixture(scope="module")
def recipe(bench):
    return bench.train(ARM, 1)


def test_latents_are_those_of_the_pictures_and_kept(bench):
    few = bench.latents(3)
    assert few.shape == (3, 8, 6, 6) and few.dtype == torch.float16
    assert torch.equal(bench.latents(45)[:3], few) and len(bench.latents(45)) == 45


def test_arms_say_what_they_learn_from(bench):
    assert len(bench.pairs(ARM, 0)) == 12 and all(one.isascii() for one in bench.pairs(ARM, 0))
    both = bench.pairs(Paint(start="", pairs=6, also=("zh",), also_pairs=4, options=TINY), 0)
    assert len(both) == 10 and not any(one.isascii() for one in both[6:])
    for wrong, said in (
        ({"languages": ("xx",)}, "xx"),
        ({"start": "painter"}, "Did you mean 'toy-painter'"),
        ({"pairs": 1}, "toyworld has 2 to"),
        ({"start": ""}, "From scratch the whole UNet must learn"),
    ):
        with pytest.raises(UserError, match=said):
            Paint(**wrong)


def test_what_was_trained_is_kept_and_read_back(bench, recipe):
    from mpm_lite import runtime

    kept = list((runtime.home() / "painted").glob("*.safetensors"))
    again = bench.train(ARM, 1)
    assert len(kept) == 1 and list((runtime.home() / "painted").glob("*.safetensors")) == kept
    a, b = (r.painter.state_dict() for r in (recipe, again))
    assert all(torch.equal(a[k], b[k]) for k in a) and recipe.encoder.name.startswith("toy-multilingual")


def test_every_language_and_look_starts_from_the_same_noise(bench, recipe):
    pictures = {}
    rows = bench.test(recipe, 1, "val", ("en", "zh"), ("real", "wrong", "none"), count=4, pictures=pictures)
    assert len(rows) == 2 * 3 * 4 and set(pictures) == {
        (look, code) for look in painting.LOOKS for code in ("en", "zh")
    }
    assert np.array_equal(pictures["none", "en"], pictures["none", "zh"]), "without a prompt no language shows"
    assert not np.array_equal(pictures["real", "en"], pictures["wrong", "en"])
    scores = rows[[*painting.SCORES]]
    assert ((scores >= 0) & (scores <= 1) | scores.isna()).all().all()
    assert set(rows["kind"]) <= {"one", "group", "pair", "three"} and (rows["lm"] == "toy-multilingual").all()
    with pytest.raises(UserError, match="Unknown way to prompt 'blind'"):
        bench.test(recipe, 1, "val", ("en",), ("blind",), count=2)
