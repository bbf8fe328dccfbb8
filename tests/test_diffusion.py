"""Painting, small and untrained: parts, folders, sampling, guidance, prompts, training that resumes, and the judge."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from mpm_lite import UserError
from mpm_lite.data import load_captions, toyworld
from mpm_lite.data.toyworld.scenes import Scene, Thing
from mpm_lite.experiments.pretrain import painter
from mpm_lite.recipes.modules import diffusion
from mpm_lite.recipes.modules.diffusion import Autoencoder, AutoencoderOptions
from mpm_lite.recipes.mpm_paint import MpmPaint, MpmPaintOptions, Prompted
from mpm_lite.recipes.pretraining import scene_reader
from mpm_lite.towers.prompts import load_prompt_encoder
from mpm_lite.training import loop

SMALL = {"steps": 4, "batch": 4, "bf16": False}


def unet():
    torch.manual_seed(1)
    return diffusion.small_unet(8, 6, 32, (32, 32))


@pytest.fixture(scope="module")
def encoder():
    return load_prompt_encoder("toy-multilingual")


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    parts = unet(), diffusion.Bridge(128, 32), diffusion.noise_schedule(), diffusion.small_vae(8, (16, 16))
    return diffusion.PaintPipeline(*parts, "toy-multilingual").to("cpu")


def prompted(encoder, n=10):
    torch.manual_seed(3)
    return Prompted(torch.randn(n, 8, 6, 6), range(n), encoder.states([f"{i + 2} red circles" for i in range(n)]))


def test_states_are_those_of_each_prompt_alone_and_padding_is_masked(encoder):
    prompts = ["a red circle", "ein kleiner roter Kreis links", "红色的圆"]
    for reads in (encoder, load_prompt_encoder("toy")):
        states, mask = reads.states(prompts).batch([0, 1, 2])
        assert states.shape[2] == reads.width and not states[~mask].any()
        for i, prompt in enumerate(prompts):
            alone, _ = reads.states([prompt]).batch([0])
            assert torch.allclose(states[i][mask[i]], alone[0], atol=2e-2)
    # A causal model's state knows nothing of what comes after it.
    a, b = (encoder.states([t]).batch([0])[0][0] for t in ("a red circle", "a red star"))
    assert torch.allclose(a[:2], b[:2], atol=1e-2) and not torch.allclose(a[-1], b[-1], atol=1e-1)


def test_a_prompt_that_cannot_be_read_is_refused_or_warned_of(encoder, pipe):
    with pytest.raises(UserError, match="Text 1 is empty"):
        encoder.states(["a red circle", " "])
    with pytest.raises(UserError, match="tokens and toy-multilingual reads 256: shorten it"):
        pipe("red " * 400)
    with pytest.raises(UserError, match="use-m gives sentence vectors only"):
        load_prompt_encoder("use-m")
    english = load_prompt_encoder("minilm-en")
    assert english.unread("红色的圆") and not english.unread("a red circle") and not encoder.unread("红色的圆")
    other = diffusion.PaintPipeline(
        unet(), diffusion.Bridge(english.width, 32), diffusion.noise_schedule(), None, "minilm-en"
    )
    with pytest.warns(UserWarning, match="knows too few characters"):
        other("ქართული", steps=1)


def test_the_same_seed_gives_the_same_picture_whatever_stands_beside_it(pipe):
    both = pipe(["a red circle", "a blue star"], seeds=3, steps=3)
    assert both.shape == (2, 48, 48, 3) and both.dtype == np.uint8
    assert np.array_equal(both, pipe(["a red circle", "a blue star"], seeds=[3, 4], steps=3))
    alone = pipe("a blue star", seeds=4, steps=3)[0].astype(int)
    assert np.abs(alone - both[1]).max() <= 2
    assert np.abs(pipe("a blue star", seeds=5, steps=3)[0].astype(int) - alone).max() > 20


def test_guidance_of_one_is_the_prompt_alone_and_of_nought_no_prompt(pipe):
    states, mask = pipe.prompt_encoder.states(["a red circle", "a blue star"]).batch([0, 1])
    same = {"steps": 2, "sampler": "ddim"}

    def x(guidance, **more):
        return diffusion.sample_latents(
            pipe.unet, pipe.bridge, pipe.scheduler, states, mask, [7, 7], guidance, **same, **more
        )

    assert torch.allclose(x(0.0)[0], x(0.0)[1], atol=1e-5), "without a prompt only the seed decides"
    assert torch.allclose(x(0.0), x(4.0, told=False), atol=1e-5)
    assert not torch.allclose(x(1.0)[0], x(1.0)[1], atol=1e-5)
    one, none, two = x(1.0), x(0.0), x(1.5)
    assert not torch.allclose(two, one, atol=1e-4) and not torch.allclose(two, none, atol=1e-4)


@pytest.mark.parametrize(
    "dials, said",
    [
        ({"guidance": -1}, "guidance=-1 is out of range"),
        ({"guidance": 99.0}, "choose one from 0 to 20"),
        ({"sampler": "dmp"}, "Did you mean 'dpm'"),
        ({"steps": 0}, "at least one step"),
        ({"seeds": [1, 2]}, "1 prompts and 2 seeds differ"),
    ],
)
def test_dials_out_of_range(pipe, dials, said):
    with pytest.raises(UserError, match=said):
        pipe("a red circle", **dials)


def test_what_is_not_finite_is_never_painted(pipe):
    states, mask = pipe.prompt_encoder.states(["a red circle"]).batch([0])
    with pytest.raises(UserError, match="states hold NaN"):
        diffusion.sample_latents(pipe.unet, pipe.bridge, pipe.scheduler, states * float("nan"), mask, [0])
    broken = unet()
    torch.nn.init.constant_(broken.conv_out.bias, float("inf"))
    with pytest.raises(UserError, match="Painting ended in NaN"):
        diffusion.sample_latents(broken, pipe.bridge, pipe.scheduler, states, mask, [0], steps=2)


def test_a_painter_is_a_diffusers_folder_and_paints_the_same_from_it(pipe, tmp_path):
    before = pipe("a red circle", seeds=3, steps=3)
    pipe.save_pretrained(tmp_path / "painter")
    index = json.loads((tmp_path / "painter" / "model_index.json").read_text())
    assert index["encoder"] == "toy-multilingual" and index["unet"] == ["diffusers", "UNet2DConditionModel"]
    again = diffusion.load_painter(tmp_path / "painter")
    assert np.array_equal(again("a red circle", seeds=3, steps=3), before)
    with pytest.raises(UserError, match="holds no painter"):
        diffusion.load_painter(tmp_path / "nowhere")
    (tmp_path / "painter" / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="cannot be read"):
        diffusion.load_painter(tmp_path / "painter")


def test_re_alignment_moves_cross_attention_and_bridge_alone(encoder):
    recipe = MpmPaint(unet(), encoder.width, MpmPaintOptions(**SMALL))
    before = {k: v.clone() for k, v in recipe.state_dict().items()}
    loop.fit(recipe, prompted(encoder), loop.Plan(0, progress=False))
    moved = {k for k, v in recipe.now.state_dict().items() if not torch.equal(v, before["now." + k])}
    assert moved and all(".attn2." in k or k.startswith("bridge.") for k in moved)
    assert any(".attn2.to_k" in k for k in moved) and "bridge.turn.weight" in moved
    painter = recipe.painter.state_dict()
    assert all(torch.equal(painter[k], before["now." + k]) for k in painter if k not in moved)
    whole = MpmPaint(unet(), encoder.width, MpmPaintOptions(learns="all", **SMALL))
    assert whole.stages()[0].learns == ("now.bridge", "now.unet") and whole.stages()[0].name == "from scratch"


def test_the_running_mean_lies_between_start_and_end(encoder):
    options = MpmPaintOptions(**SMALL | {"steps": 40, "average": 0.9, "lr": 1e-2})
    recipe = MpmPaint(unet(), encoder.width, options)
    loop.fit(recipe, prompted(encoder), loop.Plan(0, progress=False))
    now, mean = recipe.now["bridge"].turn.weight, recipe.painter["bridge"].turn.weight
    assert not torch.equal(now, mean) and (now - mean).abs().mean() < now.abs().mean()
    plain = MpmPaint(unet(), encoder.width, replace(options, average=0.0, steps=3))
    loop.fit(plain, prompted(encoder), loop.Plan(0, progress=False))
    assert torch.allclose(plain.now["bridge"].turn.weight, plain.painter["bridge"].turn.weight)


def test_training_that_was_killed_goes_on_to_the_same_weights(encoder, tmp_path):
    def run(plan, stop=None):
        torch.manual_seed(5)
        recipe = MpmPaint(unet(), encoder.width, MpmPaintOptions(**SMALL | {"steps": 6}))
        if stop:
            usual, count = recipe.stepped, []

            def stepped():
                usual()
                count.append(1)
                if len(count) == stop:
                    raise KeyboardInterrupt

            recipe.stepped = stepped
            with pytest.raises(KeyboardInterrupt):
                loop.fit(recipe, prompted(encoder), plan)
        else:
            loop.fit(recipe, prompted(encoder), plan)
        return recipe.state_dict()

    whole = run(loop.Plan(0, progress=False))
    plan = loop.Plan(0, tmp_path, save_every=2, progress=False)
    run(plan, stop=5)
    resumed = run(plan)
    assert all(torch.equal(resumed[k], v) for k, v in whole.items())


def test_wrong_options_are_said(encoder):
    with pytest.raises(UserError, match="Did you mean 'cross-attention'"):
        MpmPaint(unet(), 8, MpmPaintOptions(learns="cross attention"))
    with pytest.raises(UserError, match="unprompted=1.0 is a share"):
        MpmPaint(unet(), 8, MpmPaintOptions(unprompted=1.0))
    with pytest.raises(UserError, match="10 pictures and 9 prompts differ"):
        Prompted(torch.randn(10, 8, 6, 6), range(10), encoder.states(["x"] * 9))


def test_an_autoencoder_learns_and_latents_go_there_and_back():
    _, pictures = painter.drawn(48, 0)
    torch.manual_seed(0)
    recipe = Autoencoder(AutoencoderOptions(widths="16,16", steps=60, batch=16))
    from mpm_lite.recipes.modules.diffusion import Drawings

    history = loop.fit(recipe, Drawings(torch.from_numpy(pictures), "x"), loop.Plan(0, progress=False))
    assert np.mean(history.losses[-5:]) < 0.7 * np.mean(history.losses[:3])
    latents = diffusion.to_latents(recipe.vae, pictures[:5])
    assert latents.shape == (5, 8, 6, 6) and diffusion.to_pictures(recipe.vae, latents).shape == (5, 48, 48, 3)
    assert np.array_equal(diffusion.to_pictures(None, diffusion.to_latents(None, pictures[:5])), pictures[:5])


# the judge


def _scene():
    return Scene((Thing("circle", "red", "small", 0, 1), Thing("star", "blue", "large", 2, 1)))


def test_what_is_read_is_held_against_what_a_caption_states():
    scene = _scene()
    red, blue = scene.things
    perfect = scene_reader.score_scene(scene.things, scene)
    assert all(value == 1.0 for value in perfect.values()) and set(perfect) == set(scene_reader.SLOTS)
    # No caption says in which row the two stand, or how far apart.
    assert scene_reader.score_scene((replace(red, row=0), replace(blue, row=0, column=1)), scene)["exact"] == 1.0
    swapped = scene_reader.score_scene((replace(red, colour="blue"), replace(blue, colour="red")), scene)
    assert swapped["colour"] == swapped["shape"] == 1.0 and swapped["bound"] == 0.0 and swapped["exact"] == 0.0
    turned = scene_reader.score_scene((replace(red, column=2), replace(blue, column=0)), scene)
    assert turned["bound"] == 1.0 and turned["exact"] == 0.0
    crowd = scene_reader.score_scene((*scene.things, Thing("book", "green", "small", 1, 1)), scene)
    assert crowd["shape"] == 1.0 and crowd["bound"] == pytest.approx(2 / 3) and crowd["exact"] == 0.0
    nothing = scene_reader.score_scene((), scene)
    assert not any(nothing.values())
    corner = Scene((Thing("circle", "red", "small", 1, 1),))
    assert scene_reader.score_scene((Thing("circle", "red", "small", 0, 0),), corner)["exact"] == 0.0


def test_a_reader_learns_what_cells_show():
    many, pictures = painter.drawn(160, 3)
    assert pictures.shape == (160, 48, 48, 3) and max(len(scene.things) for scene in many) >= 5
    known = [scene_reader.classes(scene) for scene in many]
    back = scene_reader._things(known[0])
    assert set(back) == set(many[0].things)
    from mpm_lite.recipes.modules.diffusion import Drawings

    slots = {slot: torch.from_numpy(np.stack([of[slot] for of in known])) for slot in scene_reader.CLASSES}
    torch.manual_seed(0)
    reader = scene_reader.SceneReader(scene_reader.SceneReaderOptions(width=16, steps=60, batch=32))
    history = loop.fit(reader, Drawings(torch.from_numpy(pictures), "x", **slots), loop.Plan(0, progress=False))
    assert history.losses[-1] < 0.6 * history.losses[0]
    assert np.mean([len(read) == len(s.things) for read, s in zip(reader.read(pictures), many, strict=True)]) > 0.3


def test_drawings_of_judge_and_data_differ():
    """The judge learned from other drawings than those that painters learn from."""
    scene = toyworld.split_scenes("train")[0]
    assert not np.array_equal(toyworld.render(scene, 48, seed=0), toyworld.render(scene, 48, seed=1_000))


def test_pictures_of_a_set_are_averaged_down_once(tmp_path, monkeypatch):
    monkeypatch.setenv("MPM_LITE_HOME", str(tmp_path))
    emoji = load_captions("emoji", "val").take([3, 1])
    small = painter.shrink_pictures(emoji, 32)
    assert small.shape == (2, 32, 32, 3) and small.dtype == np.uint8
    assert np.abs(small.mean(axis=(1, 2)) - emoji.images[:].mean(axis=(1, 2))).max() < 1
    assert np.array_equal(painter.shrink_pictures(emoji, 32), small)
    assert not np.array_equal(painter.shrink_pictures(emoji.take([1, 0]), 32), small)
