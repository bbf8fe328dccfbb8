"""The command that makes the toy world's models and towers: end to end on tiny ones, stopped and resumed, and its cards."""

import json
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

import mpm_lite as mpm
from mpm_lite import UserError
from mpm_lite.cli import main
from mpm_lite.core import runtime
from mpm_lite.core.keys import OtherRun
from mpm_lite.core.provenance import Artifact
from mpm_lite.data.toyworld import grammar, text_mix
from mpm_lite.data.toyworld.scenes import COLOURS, SHAPES, pair_name, scenes, split_of, split_of_combination
from mpm_lite.evaluation import text_only
from mpm_lite.experiments.pretrain import language_models, towers
from mpm_lite.recipes.pretraining.language_model import LanguageModel, LanguageModelOptions
from mpm_lite.towers import catalogue
from mpm_lite.towers.lm import IGNORE

TINY = LanguageModelOptions(width=32, layers=2, hidden=64, lookups=4, steps=8, compiled=False)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A tiny model made by the real command's code, and where its files are."""
    root = tmp_path_factory.mktemp("pretrain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPM_LITE_HOME", str(root / "home"))
        card = language_models.build(
            language_models.VARIANTS["toy-unseen"], 1, root / "out", TINY, documents=300, asked=6
        )
    return root, card


def test_a_card_says_what_was_done(built):
    root, card = built
    said = json.loads(card.read_text())
    assert said["name"] == "toy-unseen" and said["seed"] == 1 and said["parallel"] == 0.05
    assert set(said["languages"]) == set(grammar.LANGUAGES) - {"hi", "sw"} == set(said["monolingual_tokens"])
    assert said["documents"] == 300 == sum(said["documents_by_kind"].values())
    assert said["withheld_from_pairs"] == sorted(text_mix.draw_withheld(1)) and said["passes"] is False
    assert said["command"].startswith("mpm-lite pretrain toy-unseen:1") and len(said["sha256"]) == 64
    assert Artifact("toy-unseen:1", root / "out/lm/toy-unseen-1", card, dict).is_intact()


def test_what_was_made_loads_under_the_face_of_all(built):
    root, card = built
    lm = mpm.load_lm(str(root / "out/lm/toy-unseen-1"))
    assert "sw" not in lm.languages and lm.context == TINY.context and lm.width == TINY.width
    assert len(lm.generate(["The picture shows"], new_tokens=4)) == 1
    assert {p.suffix for p in (root / "out/lm/toy-unseen-1").iterdir()} == {".json", ".safetensors"}


def test_measures_cover_every_language_direction_and_layer(built):
    import pandas as pd

    root, card = built
    rows = pd.read_csv(card.with_suffix(".csv"))
    assert set(rows["split"]) == {"val", "test"} and set(rows["language"]) == set(grammar.LANGUAGES)
    of = rows[rows["split"] == "val"].groupby("metric")["value"].count()
    assert of["paraphrase"] == of["answers"] == of["perplexity"] == 10
    assert of["translation"] == of["withheld words"] == of["paired words"] == 18
    assert of["alignment"] == 9 * (TINY.layers + 1)
    assert of[text_only.FROM_ENGLISH] == of[text_only.FROM_NOTHING] == 10
    said = json.loads(card.read_text())
    assert said["strong"] is False and said["mixed"] == 0 and said["withheld"] == 3


def test_what_is_there_and_intact_is_kept_and_what_is_damaged_is_made_again(built, monkeypatch):
    root, card = built
    weights, before = root / "out/lm/toy-unseen-1/model.safetensors", card.stat().st_mtime_ns
    variant = language_models.VARIANTS["toy-unseen"]
    language_models.build(variant, 1, root / "out", TINY, documents=300)
    assert card.stat().st_mtime_ns == before
    for other in (
        {"options": replace(TINY, steps=TINY.steps + 1), "documents": 300},
        {"options": TINY, "documents": 301},
    ):
        with pytest.raises(OtherRun, match="steps|documents"):
            language_models.build(variant, 1, root / "out", **other)
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    monkeypatch.setenv("MPM_LITE_HOME", str(root / "home2"))
    language_models.build(variant, 1, root / "out", TINY, documents=300, asked=6)
    assert weights.read_bytes() == whole  # the same again, bit for bit


def test_without_a_compiler_it_says_so_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="No C.. compiler is found"):
        language_models.build(
            language_models.VARIANTS["toy-english"], 0, tmp_path, replace(TINY, compiled=True), documents=300
        )
    assert not list(tmp_path.iterdir())


def test_what_counts_are_the_segments_that_can_be_foreseen():
    tokenizer = language_models.shared_tokenizer()
    line_break = tokenizer.convert_tokens_to_ids("\n")
    kinds = set()
    for d in islice(text_mix.write_documents(text_mix.Mix(parallel=0.3)), 60):
        row = tokenizer(d.text)["input_ids"] + [tokenizer.eos_token_id]
        assert all(language_models.counted(row, d, line_break, True))
        counts = language_models.counted(row, d, line_break, False)
        told = "\n".join(said for said, foreseen in zip(d.segments, d.foreseen, strict=True) if foreseen)
        kept = tokenizer.decode([t for t, c in zip(row, counts, strict=True) if c], skip_special_tokens=True)
        assert kept.strip().replace(" ", "") == (told or d.text).replace(" ", "")
        assert d.kind == text_mix.PLAIN or (not d.foreseen[0] and d.foreseen[-1] and len(d.foreseen) == len(d.segments))
        kinds.add(d.kind)
    assert kinds == {text_mix.PLAIN, text_mix.DISCOURSE, text_mix.QUOTATION, text_mix.PARALLEL}


def attention(model, layer, ids):
    """Who looks where before any training, (N, H, T, T)."""
    model.decoder.set_attn_implementation("eager")
    return model.decoder.model(ids, output_attentions=True).attentions[layer].detach()


def test_heads_begin_by_looking_back_and_by_looking_for_tokens_like_their_own():
    torch.manual_seed(0)
    options = LanguageModelOptions(compiled=False)
    ids = torch.randint(3, 500, (16, 40))
    ids[:, 26:31] = ids[:, 20:25]
    noise, begun = (LanguageModel(500, o) for o in (replace(options, back=(), back_later=(), alike=0), options))
    looks = attention(begun, 0, ids).mean(0)  # (H, T, T)
    for head, offset in enumerate(options.back):
        by_offset = torch.stack([looks[head].diagonal(-d)[5:].mean() for d in range(6)])
        assert int(by_offset.argmax()) == offset
    for layer in (2, 3):
        looks = attention(begun, layer, ids).mean(0)
        for head, offset in enumerate(options.back_later, options.heads - len(options.back_later)):
            assert int(torch.stack([looks[head].diagonal(-d)[8:].mean() for d in range(9)]).argmax()) == offset
    for layer in (1, 2):
        # A token is like itself and, carrying the words before it, like its neighbours; of the others, like the same word
        # behind the same words.
        found, by_chance = (
            attention(model, layer, ids)[:, : options.alike, 30, :27].argmax(-1) == 24 for model in (begun, noise)
        )
        assert found.double().mean() > 0.4 > 0.1 > by_chance.double().mean()  # chance 1 in 27
    with pytest.raises(UserError, match="9 offsets to look back by need as many heads; there are 8"):
        LanguageModel(500, replace(options, back=tuple(range(1, 10))))


def test_to_begin_with_there_are_lookups_alone(monkeypatch):
    made = []
    monkeypatch.setattr(
        language_models, "corpus", lambda what, count, in_full=1: (made.append((what, in_full)), {})[1:] * 2
    )
    language_models.corpora(language_models.VARIANTS["toy-multilingual"], 3, 50)
    (first, in_full), (second, _) = made
    assert in_full == 0 and second == language_models.mix(language_models.VARIANTS["toy-multilingual"], 3)
    assert first.languages == second.languages and first.seed == 3  # the same words are withheld
    many = list(islice(text_mix.write_documents(first), 100))
    asked = [d for d in many if len(d.segments) == 3 and not d.foreseen[1]]
    assert {d.kind for d in many} == {text_mix.DISCOURSE} and len(asked) > 80


def test_variants_are_those_of_the_design():
    first = [v for v in language_models.VARIANTS.values() if v.withheld]
    found = {v.name: (len(v.languages), v.parallel, len(v.seeds)) for v in first}
    assert found["toy-multilingual"] == (10, 0.05, 3) and found["toy-noparallel"] == (10, 0.0, 3)
    assert found["toy-english"] == (1, 0.0, 3) and found["toy-unseen"] == (8, 0.05, 1)
    assert sorted(v.parallel for v in first if len(v.languages) == 10) == [0, 0.01, 0.05, 0.2, 0.7]
    assert set(catalogue.NAMES) == set(language_models.VARIANTS)
    assert all(catalogue.withheld(v.name) == v.withheld for v in language_models.VARIANTS.values())


def test_the_control_of_a_strengthened_model_reads_as_many_translations_and_mixes_no_discourse():
    for name in ("toy-mixed-short", "toy-mixed"):
        one, control = language_models.VARIANTS[name], language_models.VARIANTS[name.replace("mixed", "unmixed")]
        same = {"name": control.name, "mixed": 0.0, "parallel": control.parallel, "seeds": control.seeds}
        assert replace(one, **same) == control and one.mixed > 0
    told = [
        language_models.corpus(language_models.mix(v, 0), 1500)[1]["captions_in_two_languages"] for v in (one, control)
    ]
    assert abs(told[0] - told[1]) < 0.15 * told[1], "as many captions are said again in another language"


def test_seeds_of_one_model_are_not_those_of_another_whose_name_is_longer(tmp_path, monkeypatch):
    (tmp_path / "results/lm").mkdir(parents=True)
    for name in ("toy-mixed-2", "toy-mixed-10-1", "toy-mixed-short-0"):
        (tmp_path / f"results/lm/{name}.json").write_text("{}")
    monkeypatch.setattr(catalogue.runtime, "asset", lambda name="": tmp_path / name)
    assert catalogue.seeds("toy-mixed") == [2] and catalogue.seeds("toy-mixed-10") == [1]


def test_the_ladder_has_models_enough_and_two_seeds_where_it_bends():
    rungs = language_models.ladder()
    assert len(rungs) == len(set(rungs)) >= 12
    assert all(seed in variant.seeds for variant, seed in rungs)
    names = [variant.name for variant, _ in rungs]
    assert names.count("toy-mixed") == names.count("toy-unmixed") == 3
    assert {v.mixed for v, _ in rungs} >= {0, 0.1, 0.5} and len({v.width for v, _ in rungs}) > 1
    assert len({v.layers for v, _ in rungs}) > 1 and len({v.steps for v, _ in rungs}) > 1


def test_the_command_names_models_and_seeds(capsys):
    assert [(v.name, s) for v, s in language_models.chosen(["toy-english", "toy-unseen:4"])] == [
        ("toy-english", 0),
        ("toy-english", 1),
        ("toy-english", 2),
        ("toy-unseen", 4),
    ]
    assert len(language_models.chosen(["all"])) == sum(len(v.seeds) for v in language_models.VARIANTS.values())
    for wrong, told in (("toy-englsh", "Did you mean 'toy-english'"), ("toy-english:x", "number of a seed")):
        assert main(["pretrain", wrong]) == 2
        assert told in capsys.readouterr().err


def test_the_world_shows_a_scene_its_captions_and_each_models_words(built, tmp_path, monkeypatch, capsys):
    import shutil

    root, _ = built
    shutil.copytree(root / "out/lm/toy-unseen-1", tmp_path / "lm/toy-unseen-0")
    monkeypatch.setattr(runtime, "asset", lambda name="": tmp_path / name)
    monkeypatch.setenv("MPM_LITE_HOME", str(tmp_path / "home"))
    assert main(["world", "--seed", "2"]) == 0
    said = capsys.readouterr().out
    lines = said.splitlines()
    for code in grammar.LANGUAGES:
        caption = next(line for line in lines if line.startswith(f"{code}  "))[4:]
        facts = grammar.parse(caption, code)
        assert facts is not None and len(facts.things) == 2 and len(facts.relations) == 1
    assert "toy-unseen, read en, de, es, fr, zh, ja, ar, tr" in said  # what it has not read is not claimed
    assert sum(line.startswith("  en > ") for line in lines) == 10
    assert "`mpm-lite pretrain toy-multilingual:0` makes it" in said


# competence, on readers whose ability is known


class Reader:
    """Stands where a language model stands, and says what `reply` makes of the caption and the language asked for."""

    def __init__(self, reply):
        self.reply = reply

    def generate(self, prompts, stop=None, new_tokens=48):
        asked = {grammar.describe(code): code for code in grammar.LANGUAGES}
        said = []
        for prompt in prompts:
            caption, question = prompt.strip("\n").split("\n")
            said.append(self.reply(caption, asked.get(question)))
        return said

    def choose(self, prompts, options):
        """Answers a closed question behind a caption with the option that `reply` names, behind nothing with the first."""
        picks = []
        for prompt, few in zip(prompts, options, strict=True):
            caption, question, _ = prompt.split("\n")
            wanted = self.reply(caption, question) if caption else None
            picks.append(few.index(wanted) if wanted in few else 0)
        return picks


def told(split="val", n=40):
    return list(islice(scenes(split, 5), n))


def test_a_perfect_translator_scores_one_and_a_mute_one_nothing():
    asked, other = told(), {}
    rng = np.random.default_rng(text_only._SEED)
    for scene in asked:
        _, first, gold = text_mix.translations(scene, "en", "de", rng)
        other[first] = gold
    rows = {
        r[0]: r[4]
        for r in text_only.translation(Reader(lambda c, _: other[c]), "en", "de", asked, text_mix.draw_withheld(0))
    }
    assert rows == {"translation": 1, "translation slots": 1, "paired words": 1, "withheld words": 1}
    rows = {
        r[0]: r[4] for r in text_only.translation(Reader(lambda c, _: ""), "en", "de", asked, text_mix.draw_withheld(0))
    }
    assert set(rows.values()) == {0}


def test_text_transfer_of_readers_whose_ability_is_known():
    """One that answers every question behind an English caption transfers all; one that answers English ones, nothing."""
    import pandas as pd

    asked, languages = told(n=60), ("en", "de", "zh")
    right = {}
    for scene in asked:
        caption = grammar.in_order(scene, "en")[0]
        right |= {(caption, q): a for code in languages for q, a in grammar.questions(scene, code)}
    english = {q for scene in asked for q, _ in grammar.questions(scene, "en")}
    for reply, wanted in (
        (lambda c, q: right[c, q], 1.0),
        (lambda c, q: right[c, q] if q in english else None, 0.0),
    ):
        rows = text_only.crossing(Reader(reply), languages, asked)
        table = pd.DataFrame(rows, columns=list(text_only.COLUMNS))
        found = text_only.transfer(table, languages)
        assert set(found) == {"de", "zh"}
        assert all(abs(t - wanted) < 1e-9 for t in found.values()), found
        behind = table.set_index(["metric", "to"])["value"]
        assert behind[text_only.FROM_ENGLISH, "en"] == 1 > behind[text_only.FROM_NOTHING, "en"] + 0.2


def test_a_model_is_strong_where_both_gates_are_passed_in_every_language():
    import pandas as pd

    def rows(transfer, paraphrase=0.95):
        found = [(m, c, c, -1, v, 9) for c in ("en", "de") for m, v in (("paraphrase", paraphrase), ("answers", 0.8))]
        for code, gain in (("en", 0.5), ("de", 0.5 * transfer)):
            found += [(text_only.FROM_ENGLISH, "en", code, -1, 0.3 + gain, 9)]
            found += [(text_only.FROM_NOTHING, "en", code, -1, 0.3, 9)]
        return pd.DataFrame(found, columns=list(text_only.COLUMNS))

    assert text_only.is_strong(rows(0.95), ("en", "de")) and not text_only.is_strong(rows(0.85), ("en", "de"))
    assert not text_only.is_strong(rows(0.95, paraphrase=0.8), ("en", "de"))
    assert not text_only.is_strong(rows(0.95), ("en",))  # one language has nothing to transfer to


def test_words_are_counted_apart_by_whether_pairs_held_them():
    """A reader that knows every word but the withheld ones."""
    asked, apart, other = told(n=80), text_mix.draw_withheld(0), {}
    rng = np.random.default_rng(text_only._SEED)
    for scene in asked:
        _, first, gold = text_mix.translations(scene, "en", "de", rng)
        one = grammar.grammar("de")
        other[first] = " ".join(t for t in one.tokens(gold) if one.spotted.get(t, ("", ""))[1] not in apart)
    rows = {r[0]: r[4] for r in text_only.translation(Reader(lambda c, _: other[c]), "en", "de", asked, apart)}
    assert rows["paired words"] == 1 and rows["withheld words"] == 0 and 0 < rows["translation slots"] < 1


def test_slots_right_by_hand():
    right = "A red circle to the left of a blue star."
    assert text_only.slots_right(right, right, "en") == 1
    assert (
        text_only.slots_right("A red star to the left of a blue circle.", right, "en") == 1
    )  # of words, not of places
    assert text_only.slots_right("A red circle.", right, "en") == 0.5
    assert text_only.slots_right("Ein roter Kreis", right, "en") == 0


def test_the_gate_looks_at_the_lowest_of_the_languages_read():
    import pandas as pd

    rows = [("paraphrase", c, c, -1, v, 9) for c, v in (("en", 0.99), ("de", 0.95), ("hi", 0.1))]
    rows += [("answers", c, c, -1, v, 9) for c, v in (("en", 0.93), ("de", 0.91), ("hi", 0.1))]
    table = pd.DataFrame(rows, columns=list(text_only.COLUMNS))
    assert text_only.gate(table, ("en", "de")) == {"paraphrase": 0.95, "answers": 0.91}
    assert text_only.passes_gate(table, ("en", "de")) and not text_only.passes_gate(table, ("en", "hi"))


# towers


@pytest.mark.parametrize("name", towers.TOWERS)
def test_a_tower_is_made_and_loads_as_any_other(name, tmp_path, monkeypatch):
    monkeypatch.setenv("MPM_LITE_HOME", str(tmp_path / "home"))
    options = replace(towers.OPTIONS[name], steps=3, batch=4, width=32, layers=1, hidden=32)
    card = towers.build(name, tmp_path, options, count=12)
    said = json.loads(card.read_text())
    assert said["name"] == name and said["measured_on_val"] and len(said["sha256"]) == 64
    if name == "toy-image":
        tower = mpm.load_image_tower(str(card.parent))
        pictures = np.zeros((2, 64, 64, 3), np.uint8)
        assert tower.encode(pictures).shape == (2, 32) and tower.patches(pictures).shape == (2, 36, 32)
    else:
        tower = mpm.load_text_tower(str(card.parent))
        assert tower.encode(["A red circle.", "一个圆形"]).shape == (2, 32) and tower.has_tokens
        assert tower.languages == frozenset(said["languages"])
    before = card.stat().st_mtime_ns
    assert towers.build(name, tmp_path).stat().st_mtime_ns == before
    with pytest.raises(UserError, match="Did you mean"):
        towers.build("toy-imge", tmp_path)


def test_a_toy_tower_that_is_not_there_says_how_to_make_it(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "asset", lambda name="": tmp_path / name)
    for load, name, made in (
        (mpm.load_image_tower, "toy", "toy-image"),
        (mpm.load_text_tower, "toy", "toy-text"),
        (mpm.load_text_tower, "toy-en", "toy-text-en"),
    ):
        with pytest.raises(UserError, match=f"mpm-lite pretrain {made} --out assets"):
            load(name)


def test_patches_are_told_their_classes():
    many = [*towers.groups(3, 0), *towers.crowds(3, 0)]
    batch = towers.ScenePictures(many).batch(torch.arange(6))
    for i, group in enumerate(many):
        for k, scene in enumerate(group):
            assert int(batch["filled"][i, k].sum()) == 4 * len(scene.things)
            for thing in scene.things:
                patch = 2 * thing.row * 6 + 2 * thing.column
                assert batch["shape"][i, k, patch] == SHAPES.index(thing.shape)
                assert batch["colour"][i, k, patch] == COLOURS.index(thing.colour)
    empty = batch["filled"] == 0
    assert (batch["shape"][empty] == IGNORE).all()


def test_crowds_are_no_scene_that_a_caption_tells_of():
    many = towers.crowds(200, 0)
    assert all(len(s.things) > 3 and len({t.pair for t in s.things}) > 1 for group in many for s in group)
    assert all(len(set(group)) == towers.TOGETHER for group in many)
    told = {split_of_combination(pair_name(t.pair)) for group in many for scene in group for t in scene.things}
    assert told == {"train", "val", "test"}


def test_groups_are_of_train_and_views_of_one_scene():
    for group in towers.groups(30, 0):
        assert len(group) == towers.TOGETHER == len({s.id for s in group})
        assert {split_of(s) for s in group} == {"train"}
    captions = towers.Captions(towers.groups(20, 0), grammar.LANGUAGES, 0.5)
    batch = captions.batch(torch.arange(20))
    tokenizer = language_models.shared_tokenizer()
    pairs = zip(batch["first"].flatten(0, 1), batch["second"].flatten(0, 1), strict=True)
    for one, two in pairs:
        read = []
        for ids in (one, two):
            said = tokenizer.decode(ids, skip_special_tokens=True).strip()
            read.append({facts for code in grammar.LANGUAGES if (facts := grammar.parse(said, code))})
        assert read[0] & read[1]
