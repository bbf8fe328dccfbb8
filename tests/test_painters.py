"""Re-mapping by text alone, the rivals' table, and the command that trains one painter."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from mpm_lite import UserError
from mpm_lite.claims import comparisons
from mpm_lite.cli import main
from mpm_lite.experiments import mpm_paint
from mpm_lite.experiments.mpm_paint import Paint
from mpm_lite.experiments.rivals import RemapBench, Remapped
from mpm_lite.recipes.baselines import Glue, GlueOptions, Translated
from mpm_lite.recipes.modules import diffusion
from mpm_lite.recipes.pretraining import scene_reader
from mpm_lite.towers.prompts import States
from mpm_lite.training import loop

TINY = {"steps": 2, "batch": 4, "bf16": False}


def random_states(count, width, seed):
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 6, (count,), generator=draw).tolist()
    return States(torch.randn(sum(lengths), width, generator=draw).half(), lengths), lengths


def test_a_re_mapping_learns_another_encoders_states_and_where_a_text_ends():
    new, lengths = random_states(300, 8, 0)
    turn = torch.randn(8, 5, generator=torch.Generator().manual_seed(1))
    old = States((new.flat.float() @ turn).half(), lengths)
    torch.manual_seed(0)
    glue = Glue(8, old, GlueOptions(width=64, layers=1, steps=400, batch=64, lr=3e-3))
    history = loop.fit(glue, Translated(new, old), loop.Plan(progress=False))
    said = glue.read(new)
    right = [len(said.batch([i])[0][0]) == lengths[i] for i in range(300)]
    assert np.mean(history.losses[-20:]) < 0.5 * np.mean(history.losses[:5]) and np.mean(right) > 0.8
    with pytest.raises(UserError, match="both encoders must have read the same"):
        Translated(new, random_states(10, 5, 0)[0])


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    """A painter's folder and parts in small, untrained, where the assets are looked for."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        patch.setenv("MPM_LITE_HOME", str(home))
        torch.manual_seed(0)
        vae, reader = diffusion.small_vae(8, (16, 16)).eval(), scene_reader.SceneReader().eval()
        parts = diffusion.small_unet(8, 6, 64, (32, 32)), diffusion.Bridge(384, 64), diffusion.noise_schedule()
        diffusion.PaintPipeline(*parts, vae, "minilm-en").save_pretrained(home / "painter")
        patch.setattr(diffusion, "TOY", str(home / "painter"))
        patch.setattr(scene_reader, "load_scene_reader", lambda: reader)
        patch.setattr(mpm_paint, "WIDTHS", (32, 32))
        patch.setattr(mpm_paint, "BLOCK", 40)
        yield home


def test_a_painter_reads_another_encoder_through_a_re_mapping(assets):
    bench, arm = RemapBench(progress=False), Remapped(pairs=20)
    recipe = bench.train(arm, 1, GlueOptions(width=32, layers=1, steps=3, batch=8))
    states = recipe.encoder.states(["A red circle.", "Ein roter Kreis."])
    assert states.flat.shape[1] == 384 and recipe.encoder.name == "re-mapped toy-multilingual:1"
    assert bench.paint(recipe, ["Ein roter Kreis."], [0]).shape == (1, 48, 48, 3)
    again = bench.train(arm, 1, GlueOptions(width=32, layers=1, steps=3, batch=8))
    assert torch.equal(again.encoder.states(["A red circle."]).flat, recipe.encoder.states(["A red circle."]).flat)
    weights = diffusion.load_painter(diffusion.TOY).unet.state_dict()
    assert all(torch.equal(v, recipe.painter["unet"].state_dict()[k]) for k, v in weights.items())


def test_rivals_are_tested_once_and_stand_in_one_table(assets, tmp_path, monkeypatch):
    few = dict.fromkeys(("MPM", "best"), Paint(pairs=8, options=TINY))
    study = replace(comparisons.PAINTERS, arms=few, asked_of={"best": {"best_of": 2}})
    # Of the table alone: whoever digests the toy world meanwhile must see all of its languages.
    monkeypatch.setattr(comparisons, "grammar", SimpleNamespace(LANGUAGES=("en", "de")))
    asked, test = [], mpm_paint.PaintBench.test

    def small(bench, recipe, seed, split, looks, count, as_sets, best_of=1):
        asked.append(best_of)
        rows = test(bench, recipe, seed, split, ("en", "de"), looks, count)
        return rows.assign(fid=1.0, kid=0.1, r_precision=0.5)

    monkeypatch.setattr(mpm_paint.PaintBench, "test", small)
    for _ in range(2):
        written = replace(study, asked=study.asked | {"count": 12}).run(tmp_path, 1, "val")
    assert asked == [1, 2], "a rival that was tested is not tested again"
    rows = pd.read_csv(written[0])
    assert set(rows["arm"]) == set(few) and set(rows["language"]) == {"en", "de"}
    assert (rows["low"] <= rows["high"]).all() and (rows["n"] == 12).all()


def test_the_command_writes_a_painter_that_loads(assets, tmp_path, capsys):
    given = ["pairs=8", "steps=2", "batch=4", "bf16=False", "count=3"]
    assert main(["run", "mpm_paint", "--out", str(tmp_path), "--set", *given]) == 0
    assert "attributes" in capsys.readouterr().out
    pipe = diffusion.load_painter(tmp_path / "seed-0" / "painter")
    assert pipe("Ein roter Kreis.", seeds=3).shape == (1, 48, 48, 3) and pipe.config.encoder == "toy-multilingual"
    assert len(pd.read_parquet(tmp_path / "items.parquet")) == 2 * 10 * 3
    assert main(["run", "mpm_paint", "--set", "guidence=3"]) == 2
    assert "Did you mean 'guidance'" in capsys.readouterr().err
    assert main(["run", "mpm_paint_rivals", "--set", "steps=3"]) == 2
    assert "takes no --set" in capsys.readouterr().err
