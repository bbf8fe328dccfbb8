"""Models of real size: MPM chat on photographs, and the sections of notebooks 05 to 09 for a GPU. Tiny random checkpoints in the
hub's formats stand in for those of the hub, and pictures in a parquet file for photographs."""

import ast
import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import test_towers_tiny as tiny
import torch
from PIL import Image
from test_worlds import ARM, ONE_STEP, few  # noqa: F401  a fixture
from worlds import own_home

import mpm_lite as mpm
from mpm_lite import UserError
from mpm_lite.core import runtime
from mpm_lite.experiments.m3p import REAL_M3P, Matching
from mpm_lite.experiments.mblip import MblipBench, Realigning
from mpm_lite.experiments.mla import Acquiring
from mpm_lite.experiments.mpm_chat import PHOTO_LOOKS, QUESTIONS, Chat, PhotoChat
from mpm_lite.teaching.views import show_photographs
from mpm_lite.training import presets

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def save_png(picture):
    buffer = io.BytesIO()
    Image.fromarray(picture).resize((64, 64)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    import datasets
    import transformers as t

    here = tmp_path_factory.mktemp("photographs")
    tokenizer = mpm.load_text_tower("toy").tokenizer
    torch.manual_seed(0)
    config = t.Qwen2Config(vocab_size=len(tokenizer), num_key_value_heads=2, tie_word_embeddings=True, **SIZES)
    t.Qwen2ForCausalLM(config).save_pretrained(here / "lm", max_shard_size="100KB")
    tokenizer.save_pretrained(here / "lm")
    t.SiglipVisionModel(t.SiglipVisionConfig(image_size=64, patch_size=16, **SIZES)).save_pretrained(here / "image")
    known = mpm.load_captions("toyworld", "train", ["en"]).take(range(60))
    rows = {
        "photo": [save_png(p) for p in known.images],
        "said": known.captions["en"],
        "split": ["train"] * 50 + ["test"] * 10,
    }
    (here / "set").mkdir()
    datasets.Dataset.from_dict(rows).to_parquet(here / "set" / "data.parquet")
    columns = {"image": "photo", "captions": {"en": "said"}, "split": "split"}
    models = {"lm": str(here / "lm"), "image": str(here / "image"), "pictures": f"parquet:{here / 'set'}"}
    return PhotoChat(**models, columns=columns, pairs=40, held_out=3, steps=30, batch=8, parts=2, precision="bf16")


@pytest.fixture(scope="module")
def reader(settings):
    return settings.train(progress=False)


def test_only_the_connector_learns(settings, reader):
    assert sum(reader.losses[-5:]) < sum(reader.losses[:5])
    learned = {name for name, p in reader.recipe.named_parameters() if p.requires_grad}
    assert learned and all(name.startswith("visual.") for name in learned)
    fresh = mpm.load_lm(settings.lm).model.state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in reader.recipe.decoder.state_dict().items())


def test_every_question_is_answered_under_every_look(reader):
    for language in QUESTIONS:
        assert len(reader.reply(language, new_tokens=3)) == 3
    said = {look: reader.reply("th", look, new_tokens=6) for look in PHOTO_LOOKS}
    assert len(set(said["blind"])) == 1  # all get the mean photograph
    assert said["shuffled"] == said["real"][-1:] + said["real"][:-1]


def test_a_page_shows_every_photograph_with_its_replies(reader):
    page = show_photographs(reader, ("en", "th"), count=2)
    assert page.data.count("<img") == page.data.count("<table") == 2
    assert page.data.count('lang="th"') == 2 * 3 and reader.photographs.captions["en"][1] in page.data
    assert "2 photographs" in repr(page) and "Thai" in repr(page)


def test_what_cannot_be_asked_is_refused(reader):
    with pytest.raises(UserError, match="language with a question"):
        reader.reply("xx")
    with pytest.raises(UserError, match="look"):
        reader.reply("en", "asleep")


@pytest.mark.parametrize(("cuda", "hub", "lacks"), [(False, True, "a GPU"), (True, False, "the model hub")])
def test_without_a_gpu_or_a_hub_there_is_no_real_preset(monkeypatch, cuda, hub, lacks):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(runtime, "reachable", lambda: hub)
    assert presets.find_real("auto") is None and presets.find_real("toy") is None
    with pytest.raises(UserError, match=lacks):
        presets.find_real("real")
    assert presets.find_real("t4").name == "t4"


def test_a_preset_trains_no_longer_than_its_estimate_allows():
    for name in ("t4", "l4", "a100", "h200"):
        preset = presets.find_preset(name)
        chosen = PhotoChat.of(preset)
        assert presets.minutes_of_chat(preset) * chosen.steps / preset.steps <= 8
        assert (chosen.lm, chosen.image, chosen.batch) == (preset.language.hub, preset.image.hub, preset.batch)


@pytest.mark.parametrize(("cuda", "card", "runs", "named"), [
    (False, None, False, "without a GPU; on one that reaches the model hub: real"),
    (True, None, True, "trained here: toy"),
    (True, "t4", True, "trained here: real"),
])  # fmt: skip
def test_a_plan_says_what_is_trained_and_how_long_it_may_take(monkeypatch, capsys, cuda, card, runs, named):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    card = presets.find_preset(card) if card else None
    assert presets.say_plan(card, "real", "toy", 9) is runs
    said = capsys.readouterr().out
    assert named in said and "9 minutes on a T4, an estimate" in said


# The last sections of notebooks, run with a card whose models are the tiny ones.


def run_cell(source, names):
    """Run a cell as a notebook does; returns what its last line gives."""
    *before, last = ast.parse(source).body
    shows = isinstance(last, ast.Expr)
    exec(compile(ast.Module([*before, *([] if shows else [last])], []), "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names) if shows else None


@pytest.fixture
def run_section(settings, monkeypatch, tmp_path, request):
    """A function that runs the cells about real models of a notebook, with what earlier cells made and with smaller plans."""
    if "few" not in request.fixturenames:  # which has a home of its own
        own_home(monkeypatch, tmp_path / "home")
    monkeypatch.setattr(presets, "minutes_of_chat", lambda preset: 8.0)  # of models whose layers nobody has counted
    t4 = presets.find_preset("t4")
    language, image = replace(t4.language, hub=settings.lm), replace(t4.image, hub=settings.image)
    card = replace(t4, precision="fp32", language=language, image=image)

    def run(number, made, plans):
        (path,) = (Path(__file__).parent.parent / "notebooks").glob(f"{number}_*.ipynb")
        cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
        names = {"card": card, "mpm": mpm}
        assert sum("".join(cell["source"]).count("card = ") for cell in cells) == 1  # nothing else takes its name
        exec("".join(cells[1]["source"]), names)  # the imports
        names |= made
        for cell in cells:
            if cell["id"].startswith("real-"):
                shown = run_cell("".join(cell["source"]), names)
            if cell["id"] == "real-plan":
                names |= plans
        assert names["runs"]
        return shown

    return run


def test_notebook_05_finds_the_language_of_replies_about_photographs(run_section, settings):
    found = run_section(
        "05", {"english": Chat()}, {"photo_chat": replace(settings, steps=1), "QUESTIONS": ["en", "th"]}
    )
    assert list(found.columns) == ["real", "blind", "text"] and list(found.index) == ["English", "Thai"]
    assert ((0 <= found) & (found <= 1)).all(axis=None)


def test_notebook_06_realigns_a_stable_diffusion(run_section, tmp_path):
    known = mpm.load_captions("toyworld", "train", ["en"]).take(range(4))
    known = SimpleNamespace(images=[p[::8, ::8] for p in known.images], captions=known.captions)
    small = {"STABLE": tiny.diffusion(tmp_path / "stable"), "STEPS": 1, "load_captions": lambda *a, **k: known}
    page = run_section("06", {}, small)
    assert page.data.count("<img") == 6 and "no prompt" in page.data and "Turkish" in page.data


def test_notebook_07_switches_words_before_a_pretrained_encoder(run_section, few):  # noqa: F811
    arm = Matching(**REAL_M3P | {"layers": 2, "fine": (), "options": ONE_STEP})
    asked = {"ASKED": {"split": "val", "looks": ("real", "blind"), "count": 8}, "SEED": 0}
    found = run_section("07", asked, {"arm": arm, "fetch_set": lambda name: None})
    assert list(found.columns) == ["real", "blind"] and {"English", "German", "Turkish"} <= set(found.index)


def test_notebook_08_teaches_languages_beside_a_siglip(run_section, few):  # noqa: F811
    arm = Acquiring(**ARM | {"languages": ("de", "es", "tr", "zh")})
    asked = {"ASKED": {"split": "val", "looks": ("real", "blind"), "count": 8}, "bench": None}
    asked["score"] = lambda rows: rows.groupby(["language", "look"])["choice"].mean().unstack("look")
    found = run_section("08", asked, {"arm": arm, "fetch_set": lambda name: None})
    assert len(found) == 5 and ((0 <= found) & (found <= 1)).all(axis=None)


def test_notebook_09_puts_the_q_former_before_another_language_model(run_section, settings):
    asked = {"looks": ("real", "blind"), "split": "val", "count": 4, "closed": 0}
    arm = Realigning(languages=("en", "de"), tasks=("caption",), rule="uniform")
    short = replace(arm, lm=settings.lm, pairs=40, options={"warm_steps": 1, "steps": 1, "batch": 4})
    found = run_section(
        "09", {"few": arm, "SEED": 21, "BOTH": asked, "bench": MblipBench(progress=False)}, {"arm": short}
    )
    assert list(found.columns) == ["slots", "content", "reply_language"] and len(found) == 8
