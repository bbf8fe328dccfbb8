"""MPM chat as an experiment on the toy world, small: data, looks, scores, stages that are kept, clear errors."""

import numpy as np
import pytest
import torch
from worlds import own_home

from mpm_lite import UserError
from mpm_lite.cli import main
from mpm_lite.data import toyworld
from mpm_lite.data.toyworld import exchanges, grammar
from mpm_lite.data.toyworld.noise import Noise
from mpm_lite.evaluation import chat
from mpm_lite.experiments.experiment import Experiment
from mpm_lite.experiments.mpm_chat import Chat, ChatBench, language_model

TINY = {"steps": 4, "batch": 8, "queries": 4, "width": 32, "heads": 2, "layers": 1, "bf16": False}
ARM = Chat(lm="toy-english", lm_seed=0, pairs=32, options=TINY)


@pytest.fixture(scope="module")
def bench():
    return ChatBench(progress=False)


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    """Aligned connectors of these tests lie nowhere else; features may be shared."""
    own_home(monkeypatch, tmp_path)


def test_captions_are_asked_for_in_the_language_they_come_in():
    many = toyworld.split_scenes("train")[:200]
    told = exchanges.ask_captions(many, ("de", "ja"), seed=1)
    assert {e.language for e in told} == {"de", "ja"} and [e.picture for e in told] == list(range(200))
    for e, scene in zip(told, many, strict=True):
        assert e.question == grammar.describe(e.language) and e.reply in grammar.in_order(scene, e.language)
        assert e.prompt == f"\n{e.question}\n" and not e.told
    text = exchanges.ask_captions(many, ("de",), seed=1, text_only=True)
    assert all(e.told != e.reply and e.told in grammar.in_order(s, "de") for e, s in zip(text, many, strict=True))
    noisy = exchanges.ask_captions(many, ("de",), seed=1, noise=Noise(swap=0.5))
    wrong = [grammar.parse(e.reply, "de") != grammar.shown(s) for e, s in zip(noisy, many, strict=True)]
    assert 0.5 < np.mean(wrong) < 1


def test_closed_questions_are_the_same_in_every_language_and_their_options_hold_the_answer():
    many = toyworld.split_scenes("val")[:80]
    asked = {code: exchanges.ask_questions(many, [code], seed=3, each=2) for code in grammar.LANGUAGES}
    assert len({tuple((e.picture, e.kind) for e in few) for few in asked.values()}) == 1
    for code, few in asked.items():
        places = set()
        for e in few:
            assert e.reply in e.options and len(set(e.options)) == len(e.options) >= 2, (code, e)
            places.add((e.kind, e.options.index(e.reply)))
        assert len(places) > 10, "the right answer must not always stand first"
    assert {e.kind for e in asked["en"]} == set(grammar.KINDS)


def test_the_share_of_target_languages_is_a_dial_and_a_larger_one_keeps_the_smaller(bench):
    def targets(share, added="pictures"):
        arm = Chat(lm="toy-english", pairs=32, instructions=400, targets=("de", "zh"), share=share, added=added,
                   options=TINY | {"tuned": "all"})  # fmt: skip
        return {e.picture: e for e in bench.instructions(arm, 7) if e.language != "en"}

    few, many, text = targets(0.05), targets(0.2), targets(0.05, "text")
    assert len(few) == 20 and len(many) == 80 and few.items() <= many.items()
    assert set(text) == set(few) and all(e.told for e in text.values()) and not any(e.told for e in few.values())
    assert {e.language for e in many.values()} == {"de", "zh"}
    kinds = {
        e.kind
        for e in bench.instructions(
            Chat(lm="toy-english", pairs=32, instructions=40, options=TINY | {"tuned": "all"}), 7
        )
    }
    assert "caption" in kinds and len(kinds) > 2


def test_stage_1_can_be_spoilt_mixed_and_shuffled(bench):
    mixed = bench.captions(Chat(pairs=40, also=("sw",), also_pairs=20), 0)
    assert [e.picture for e in mixed] == list(range(60)) and {e.language for e in mixed[40:]} == {"sw"}
    plain, noisy = (bench.captions(Chat(languages=("zh",), pairs=60, noise=x), 0) for x in (0.0, 0.3))
    assert [e.question for e in plain] == [e.question for e in noisy] and plain != noisy
    english = Chat(pairs=60, noise=0.3)
    assert bench.captions(english, 0) == bench.captions(Chat(pairs=60), 0), "English pairs stay clean"
    shuffled = bench.captions(Chat(pairs=60, shuffled=True), 0)
    assert [e.picture for e in shuffled] == list(range(60))
    assert sorted(e.reply for e in shuffled) == sorted(e.reply for e in bench.captions(Chat(pairs=60), 0))
    assert sum(a.reply != b.reply for a, b in zip(shuffled, bench.captions(Chat(pairs=60), 0), strict=True)) > 50


def test_scores_by_look_language_and_picture(bench):
    asked = {"languages": ("en", "de"), "count": 12, "looks": ("real", "shuffled", "blind", "text"), "nats": True}
    own = {"lm": "toy-english", "pairs": 32, "options": TINY | {"lm_seed": 0}, "asked": asked}
    done = Experiment("mpm_chat", seed=3, seeds=2, **own).run(progress=False)
    items = done.items.rename(columns={"condition": "look"})
    assert len(items) == 2 * 4 * 2 * 12 and set(items["lm"]) == {"toy-english"}
    by = items.groupby(["look", "language"])
    assert by["nats"].mean()["text", "en"] < by["nats"].mean()["text", "de"], "it never read German"
    assert items[items["look"] != "text"]["nats"].isna().all()
    # A caption in the picture's place: it reads that, so the harness can score a right reply as right.
    assert by["content"].mean()["text", "en"] > 0.9 and by["answers"].mean()["text", "en"] > 0.7
    assert items[["cider_d", "chrf", "bleu"]].stack().between(0, 1 + 1e-9).all()
    assert by["chrf"].mean()["text", "en"] > by["chrf"].mean()["blind", "en"], "n-grams of the right picture"
    # Blind, every picture gets the same reply, so on equal scenes scores are equal whatever is shown.
    scores = done.table
    assert {"recipe", "lm", "condition", "seed", "language", "metric", "value", "chance", "n"} <= set(scores.columns)
    blind = scores[(scores["condition"] == "blind") & scores["value"].notna()]
    assert np.allclose(blind["value"], blind["chance"]) and scores["n"].max() == 12
    assert set(done.models) == {3, 4} and {"model_seed", "system", "asked"} <= {*items, *done.meta}


def test_an_english_caption_stands_in_the_pictures_place_in_every_language(bench):
    """A model that read English alone reads that caption when it is asked in English, and is none the wiser in German."""
    recipe = bench.train(ARM, 0)
    asked = {"languages": ("en", "de"), "looks": ("english", "text"), "count": 12, "choice": True}
    items = bench.test(recipe, 0, "val", **asked)
    by = items.groupby(["look", "language"])[["answers", "choice", "slots"]].mean()
    assert by.loc["english", "en"].equals(by.loc["text", "en"]), "in English, both looks read a gold English caption"
    assert by.loc[("english", "en"), "choice"] > 0.9 > by.loc[("english", "de"), "choice"]
    assert by.loc[("english", "en"), "answers"] > 0.7 > by.loc[("english", "de"), "answers"]
    assert bench.soft(recipe, "val", 10, "english") is None


def test_echoes_are_the_models_own_replies_in_every_language(bench):
    lm = language_model("toy-multilingual", 0)
    arm = Chat(pairs=20, options=TINY | {"distil": 0.5})
    told = bench.captions(arm, 0)
    echoes = bench.echoes(lm, told)
    assert [e.told for e in echoes] == [e.reply for e in told]
    assert {e.question for e in echoes} == {grammar.describe(code) for code in grammar.LANGUAGES}
    assert [e.reply for e in echoes] == lm.generate([e.told_prompt for e in echoes], stop="\n", new_tokens=64)
    assert bench.key(arm, 0) != bench.key(Chat(pairs=20, options=TINY), 0)
    with pytest.raises(UserError, match="reads the English captions"):
        bench.echoes(lm, bench.captions(Chat(languages=("de",), pairs=4), 0))


def test_blind_and_shuffled_see_what_they_say(bench):
    recipe = bench.train(ARM, 0)
    real, shuffled, blind = (bench.soft(recipe, "val", 10, look) for look in ("real", "shuffled", "blind"))
    assert torch.allclose(shuffled, real.roll(1, 0), atol=1e-5)
    assert torch.equal(blind[0], blind[9]) and not torch.allclose(blind[0], real[0])
    assert torch.isfinite(blind).all() and bench.soft(recipe, "val", 10, "text") is None
    with pytest.raises(UserError, match="Unknown way to look 'blnd'. Did you mean 'blind'"):
        bench.soft(recipe, "val", 10, "blnd")


def test_a_question_is_understood_where_the_right_answer_comes_in_any_language(bench, monkeypatch):
    """Three made-up models: one answers in the language asked, one in English, one replies to another question."""
    recipe = bench.recipe(language_model("toy-english", 0), ARM.recipe_options)
    many, kinds = toyworld.split_scenes("val")[:20], ("colour", "count", "where")
    of = {code: exchanges.ask_questions(many, [code], seed=5, each=3, kinds=kinds) for code in ("de", "en")}
    replies = {
        "in German": [e.reply for e in of["de"]],
        "in English": [e.reply for e in of["en"]],
        "of another question": [e.reply for e in of["de"][1:] + of["de"][:1]],
    }
    soft, found = torch.zeros(len(many), 2, recipe.lm.width), {}
    for name, said in replies.items():
        monkeypatch.setattr(recipe.lm, "generate", lambda *given, said=said, **more: said)
        found[name] = bench.free_answers(recipe, soft, many, "de", each=3, kinds=kinds)
    right = {name: rows[["understood", "in_language"]].mean().tolist() for name, rows in found.items()}
    assert right["in German"] == [1.0, 1.0] and right["in English"][0] == 1.0 and right["in English"][1] < 0.1
    assert right["of another question"][0] < 0.3
    rows = found["in German"]
    assert set(rows["kind"]) <= set(kinds) and len(rows) == len(of["de"]) and set(rows["language"]) == {"de"}


def test_a_reply_that_is_begun_begins_as_captions_of_the_language_do(bench):
    """Asked in German, a model that read English only goes on in something else; its first token is a German one."""
    recipe = bench.train(ARM, 0)
    many = toyworld.split_scenes("val")[:6]
    soft = bench.soft(recipe, "val", 6, "begun")
    assert torch.equal(soft, bench.soft(recipe, "val", 6, "real"))
    first = {row[0] for row in recipe.lm.encode(list(chat.openings("de")), special=False)}
    begun, free = (bench.say(recipe, soft, many, "de", begun=b) for b in (True, False))
    assert begun != free
    assert {row[0] for row in recipe.lm.encode(begun, special=False)} <= first
    of_val = [one for scene in toyworld.split_scenes("val") for one in grammar.in_order(scene, "de")]
    assert {row[0] for row in recipe.lm.encode(of_val, special=False)} <= first, "no caption begins otherwise"


def test_stage_1_is_kept_and_shared_by_arms_that_differ_in_stage_2(bench, tmp_path):
    first = bench.train(ARM, 0)
    kept = list((tmp_path / "aligned").iterdir())
    assert [p.suffix for p in kept] == [".safetensors"]
    stamp = kept[0].stat().st_mtime_ns
    tuned = Chat(
        lm="toy-english", lm_seed=0, pairs=32, instructions=24, options=TINY | {"tuned": "lora", "tune_steps": 2}
    )
    second = bench.train(tuned, 0)
    assert list((tmp_path / "aligned").iterdir()) == kept and kept[0].stat().st_mtime_ns == stamp
    assert second.lm.model is not first.lm.model
    again = bench.train(ARM, 0)
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.visual.state_dict().values(), again.visual.state_dict().values(), strict=True)
    )
    bench.train(ARM, 1)
    assert len(list((tmp_path / "aligned").iterdir())) == 2


def test_seeds_take_the_language_models_in_turn():
    assert [language_model("toy-multilingual", None, turn).name for turn in (0, 1, 2, 3)] == [
        "toy-multilingual", "toy-multilingual:1", "toy-multilingual:2", "toy-multilingual",
    ]  # fmt: skip
    assert language_model("toy-multilingual", 2, 0).name == "toy-multilingual:2"


def test_mistakes_are_said_before_anything_runs():
    for wrong, says in (
        ({"languages": ("gr",)}, "Unknown toyworld language 'gr'"),
        ({"also": ("xx",)}, "Unknown toyworld language 'xx'"),
        ({"share": 0.1}, "needs targets"),
        ({"pairs": 1}, "2 to 24000"),
        ({"pairs": 20_000, "also_pairs": 5_000}, "20000 \\+ 5000 pairs"),
        ({"instructions": 10}, "Stage 2 needs both"),
        ({"options": {"tuned": "all"}}, "Stage 2 needs both"),
        ({"options": {"stepz": 3}}, "Did you mean 'steps'"),
        ({"targets": ("de",), "share": 0.1, "added": "txt"}, "Did you mean 'text'"),
    ):
        with pytest.raises(UserError, match=says):
            Chat(**wrong)
    with pytest.raises(UserError, match="Unknown language model"):
        Experiment("mpm_chat", lm="toy-multi", pairs=32).run(progress=False)


def test_a_tower_without_patches_is_refused(bench):
    blindfold = ChatBench(progress=False)
    blindfold.world.tower = type("Flat", (), {"has_patches": False, "width": 8, "fingerprint": "x", "name": "flat",
                                        "patches": bench.tower.__class__.patches})()  # fmt: skip
    with pytest.raises(UserError, match="flat gives one vector a picture and no patches"):
        blindfold.seen("val", 4)


def test_the_command_line_trains_asks_and_writes(tmp_path, capsys):
    small = [f"{k}={v}" for k, v in (TINY | {"lm": "toy-english", "pairs": 32, "count": 4}).items()]
    assert main(["run", "mpm_chat", "--set", *small, "--out", str(tmp_path / "out")]) == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "model.safetensors", "results.parquet", "items.parquet", "config.json",
    }  # fmt: skip
    assert "reply_language" in capsys.readouterr().out
    assert main(["run", "mpm_chat", "--set", "lmm=toy-english"]) == 2
    assert "Did you mean 'lm'" in capsys.readouterr().err
