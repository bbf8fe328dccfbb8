"""MPM chat on photographs: tiny random checkpoints in the hub's formats, and pictures in a parquet file."""

import io

import pytest
import torch
from PIL import Image

import mpm_lite as mpm
from mpm_lite import UserError
from mpm_lite.core import runtime
from mpm_lite.experiments.mpm_chat import PHOTO_LOOKS, QUESTIONS, PhotoChat
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
