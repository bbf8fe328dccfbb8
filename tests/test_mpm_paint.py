"""The painting experiment, small: what arms learn from, training that is kept, looks, scores; with parts untrained."""

import numpy as np
import pytest
import torch

from mpm_lite import UserError
from mpm_lite.experiments import mpm_paint
from mpm_lite.experiments.mpm_paint import Paint
from mpm_lite.recipes.modules import diffusion
from mpm_lite.recipes.pretraining import scene_reader

TINY = {"steps": 2, "batch": 4, "learns": "all", "bf16": False}
ARM = Paint(start="", pairs=12, options=TINY)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPM_LITE_HOME", str(tmp_path_factory.mktemp("home")))
        torch.manual_seed(0)
        vae, reader = diffusion.small_vae(8, (16, 16)).eval(), scene_reader.SceneReader().eval()
        load_vae = diffusion.load_vae
        patch.setattr(diffusion, "load_vae", lambda folder=None: load_vae(folder) if folder else vae)
        patch.setattr(scene_reader, "load_scene_reader", lambda: reader)
        patch.setattr(mpm_paint, "WIDTHS", (32, 32))
        patch.setattr(mpm_paint, "BLOCK", 40)
        yield mpm_paint.PaintBench(progress=False)


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
        ({"start": "pretraind"}, "Did you mean 'pretrained'"),
        ({"pairs": 1}, "toyworld has 2 to"),
        ({"start": ""}, "From scratch the whole UNet must learn"),
    ):
        with pytest.raises(UserError, match=said):
            Paint(**wrong)


def test_what_was_trained_is_kept_and_read_back(bench, recipe):
    from mpm_lite.core import runtime

    kept = list((runtime.home() / "painted").glob("*.safetensors"))
    again = bench.train(ARM, 1)
    assert len(kept) == 1 and list((runtime.home() / "painted").glob("*.safetensors")) == kept
    a, b = (r.painter.state_dict() for r in (recipe, again))
    assert all(torch.equal(a[k], b[k]) for k in a) and recipe.encoder.name.startswith("toy-multilingual")


def test_every_language_and_look_starts_from_the_same_noise(bench, recipe):
    pictures = {}
    rows = bench.test(recipe, 1, "val", ("en", "zh"), ("real", "wrong", "none"), count=4, pictures=pictures)
    prompted = {(look, code) for look in mpm_paint.PROMPTED for code in ("en", "zh")}
    assert len(rows) == (2 * 2 + 1) * 4 and set(pictures) == prompted | {("none", "en")}
    other = bench.paint(recipe, ["图里有一个红色的圆。"] * 4, [100_003 + i for i in range(4)], told=False)
    assert np.array_equal(pictures["none", "en"], other), "without a prompt no language shows"
    assert not np.array_equal(pictures["real", "en"], pictures["wrong", "en"])
    scores = rows[[*mpm_paint.SCORES]]
    assert ((scores >= 0) & (scores <= 1) | scores.isna()).all().all()
    assert set(rows["kind"]) <= {"one", "group", "pair", "three"} and (rows["lm"] == "toy-multilingual").all()
    with pytest.raises(UserError, match="Unknown way to prompt 'blind'"):
        bench.test(recipe, 1, "val", ("en",), ("blind",), count=2)


def test_a_look_without_a_prompt_knows_no_language(bench, recipe):
    rows = bench.test(recipe, 1, "val", ("en", "zh"), ("real", "none", "drawn", "decoded"), count=3)
    assert rows.groupby("look")["language"].nunique().to_dict() == {"real": 2, "none": 1, "drawn": 1, "decoded": 1}
    kinds = rows["kind"]
    assert (rows["one"].isna() == (kinds != "one")).all() and (rows["pair"].isna() == (kinds != "pair")).all()
    assert np.allclose(rows["attributes"], rows[["shape", "colour", "size"]].mean(axis=1))


def test_the_best_of_several_is_the_one_that_the_judge_prefers(bench, recipe, monkeypatch):
    class Bluest:
        def features(self, pictures):
            return torch.from_numpy(pictures[..., 2].mean(axis=(1, 2)))

        def nearness(self, features, captions):
            return features.numpy()

    monkeypatch.setitem(bench.__dict__, "likeness", Bluest())
    found = {}
    for best_of in (1, 3):
        bench.test(recipe, 1, "val", ("en",), count=4, best_of=best_of, pictures=found)
        found[best_of] = found.pop(("real", "en"))[..., 2].mean(axis=(1, 2))
    assert (found[3] >= found[1]).all() and (found[3] > found[1]).any()


def _stable_diffusion(folder, predicts="epsilon"):
    """A tiny random checkpoint in Stable Diffusion's layout: 32 px, latents of 4 x 16 x 16, noise predicted."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    torch.manual_seed(0)
    blocks = {"block_out_channels": (32, 32), "norm_num_groups": 8}
    down, up = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    UNet2DConditionModel(sample_size=16, cross_attention_dim=24, attention_head_dim=4, layers_per_block=1,
                         down_block_types=down, up_block_types=up, **blocks).save_pretrained(folder / "unet")  # fmt: skip
    sides = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    AutoencoderKL(latent_channels=4, **sides, **blocks).save_pretrained(folder / "vae")
    DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
                  prediction_type=predicts, steps_offset=1).save_pretrained(folder / "scheduler")  # fmt: skip
    return folder


def test_a_stable_diffusion_folder_takes_the_same_recipe(tmp_path, monkeypatch):
    monkeypatch.setenv("MPM_LITE_HOME", str(tmp_path / "home"))
    folder = _stable_diffusion(tmp_path / "sd")
    bench = mpm_paint.PaintBench(progress=False, painter=folder)
    arm = Paint(pairs=12, options={**TINY, "learns": "cross-attention"})
    trained = bench.train(arm, 0)
    assert bench.side == 32 and trained.schedule.config.prediction_type == "epsilon"
    assert "noise" in trained.stages()[0].objective and trained.now["bridge"].turn.out_features == 24
    before, after = bench.start(arm)[0].state_dict(), trained.painter["unet"].state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all(".attn2." in name for name in moved)
    rows = bench.test(trained, 0, "val", ("en", "de"), count=3)
    assert len(rows) == 6 and bench.paint(trained, ["a red circle"], [0]).shape == (1, 32, 32, 3)
    with pytest.raises(UserError, match="has no autoencoder"):
        mpm_paint.PaintBench(painter=tmp_path)
    with pytest.raises(UserError, match="predicts 'sample'"):
        mpm_paint.PaintBench(False, _stable_diffusion(tmp_path / "other", "sample")).train(arm, 0)
    weights = next((folder / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be read"):
        mpm_paint.PaintBench(painter=folder)


def test_a_notebook_shows_grids_rows_sliders_and_the_way_between_prompts(bench, recipe):
    from mpm_lite.data import toyworld
    from mpm_lite.data.toyworld import grammar
    from mpm_lite.teaching import views as shown
    from mpm_lite.teaching import widgets

    scenes = toyworld.split_scenes("val")[:2]
    page = shown.paint_grid(bench, recipe, scenes, ("en", "ar"))
    assert page.data.count("<img alt=") == 4 and grammar.in_order(scenes[0], "ar")[0] in page.data
    assert page.words.startswith("Attributes right: en ") and ", ar " in page.words
    prompts = [grammar.in_order(scenes[0], code)[0] for code in ("en", "de")]
    way = shown.between(bench, recipe, *prompts, (0.0, 0.5, 1.0), seed=5)
    ends = [bench.paint(recipe, [prompt], [5])[0] for prompt in prompts]
    for one, end in ((way[0], ends[0]), (way[2], ends[1])):
        assert np.abs(one.astype(int) - end).max() <= 2, "at its ends the way is the two prompts' own pictures"
    assert not np.array_equal(way[0], way[1])
    with pytest.raises(UserError, match="between 0"):
        shown.between(bench, recipe, *prompts, (1.5,))
    assert shown.show_row(way, ["a", "b", "c"], "A way").data.count("<img alt=") == 3
    box = shown.build_slider(lambda g: widgets.Page(f"<p>{g}</p>", "x"), 2.0)
    box.children[0].value = 5.0
    assert box.children[1].value == "<p>5.0</p>"


def test_what_a_painter_departs_from_is_read_off_its_recipe(recipe):
    from mpm_lite.teaching import views

    rows = {row.part: row for row in views.build_fidelity_table(recipe)}
    assert "toy-multilingual:1" in rows["text model"].here and "from scratch" in rows["UNet"].here
    assert rows["loss"].here == recipe.stages()[0].objective and "uniform" in rows["loss"].paper
    assert all(row.paper and row.here and row.why for row in rows.values())


def test_states_may_be_taken_behind_any_layer_of_a_language_model():
    from mpm_lite.towers.prompts import load_prompt_encoder

    last, first, embedded = (load_prompt_encoder("toy-english", 0, layer) for layer in (-1, 1, 0))
    states = [one.states(["a red circle", "a red star"]).flat for one in (last, first, embedded)]
    assert states[0].shape == states[1].shape and not torch.equal(states[0], states[1])
    assert len({one.fingerprint for one in (last, first, embedded)}) == 3
    half = len(states[2]) // 2
    assert torch.equal(states[2][1], states[2][half + 1]), "an embedding knows no other word"
    with pytest.raises(UserError, match="has layers 0 to"):
        load_prompt_encoder("toy-english", 0, 9)
    with pytest.raises(UserError, match="shows its last layer only"):
        load_prompt_encoder("minilm-en", layer=1)
