"""The autoencoder, the judge and the painters that ship: what their cards say, made by this code, and able to paint."""

import hashlib
import json

import pytest

from mpm_lite.core import runtime
from mpm_lite.data import toyworld
from mpm_lite.data.toyworld import grammar
from mpm_lite.experiments import mpm_paint
from mpm_lite.experiments.mpm_paint import Paint
from mpm_lite.experiments.pretrain import painter
from mpm_lite.recipes.modules import diffusion


@pytest.mark.parametrize("name", ["toy-vae", "scene-reader", "toy-painter"])
def test_what_ships_is_what_its_card_says(name):
    card = json.loads(runtime.asset(f"paint/{name}.json").read_text())
    place = runtime.asset(painter.BUILDS[name])
    weights = next(place.glob("*.safetensors")) if place.is_dir() else place
    assert card["command"] == f"mpm-lite pretrain {name} --out assets" and card["seconds"] > 0
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == card["sha256"]


def test_the_painter_that_ships_paints_english():
    bench = mpm_paint.PaintBench(progress=False)
    rows = bench.test(bench.train(Paint(), 0), 0, "val", ("en",), ("real", "wrong", "decoded"), count=40)
    means = rows.groupby("look")["attributes"].mean()
    assert means["decoded"] > 0.98 and means["real"] > 0.85 > 0.6 > means["wrong"]
    pipe = diffusion.load_painter(runtime.asset(diffusion.TOY))
    many = [scene for scene in toyworld.split_scenes("val") if scene.kind == "pair"][:12]
    found = pipe([grammar.in_order(scene, "en")[0] for scene in many], seeds=1)
    assert bench.scored(found, many)["bound"].mean() > 0.8
