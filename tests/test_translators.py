"""Translators into English: what they know, what they leave as it was, and what a user reads where one is missing."""

from __future__ import annotations

import gzip
import shutil
import subprocess

import numpy as np
import pytest
from need import require

from mpm_lite import Experiment
from mpm_lite.core.packages import DebianPackage
from mpm_lite.core.runtime import UserError
from mpm_lite.data import fetch_set, translators
from mpm_lite.data.translators import all_senses, first_sense, gloss, load_translator, read_dictionary

DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


@pytest.mark.parametrize(
    ("entry", "sense"),
    [
        ("dog /dog/\n1. köpek, it\n2. kurt\n", "köpek"),
        ("mbwa /x/ <n> (pl: {mbwa})\n\ndog\n", "dog"),
        ("Preis /x/ <masc>\nprice <n> [econ.]; award\n   Synonym: {x}\n", "price"),
        ("machungwa /x/\nPlural of : orange\n", "orange"),
        ("alone /x/\n", ""),
        ("x /x/\n(note)\n", ""),
    ],
)
def test_the_first_sense_of_an_entry(entry, sense):
    assert first_sense(entry) == sense


def test_all_senses_and_the_words_that_most_of_them_have(monkeypatch, tmp_path):
    entry = 'star /s/ <n>\n1. 恒星, 星\n(astronomy) a luminous body\n2. 星 2.\n      "a star"  - 例\n Note: x\n'
    assert all_senses(entry) == ["恒星", "星", "a luminous body", "星"]
    write_dictionary(tmp_path, {"star": entry, "big dog": "big dog /b/\nmastiff\n", "Red": "Red /r/\nहरा\n"})
    monkeypatch.setattr(
        translators, "_files", lambda code, from_english: (tmp_path / "d.index", tmp_path / "d.dict.dz")
    )
    translators.english_words.cache_clear()
    assert translators.english_words("xx") == {
        "star": ["星", "恒星"],
        "red": ["हरा"],
    }  # in one word; marks belong to letters
    translators.english_words.cache_clear()


def number(n: int) -> str:
    """A number in dictd's base 64."""
    return (number(n // 64) if n >= 64 else "") + DIGITS[n % 64]


def write_dictionary(folder, entries):
    text, lines = b"x" * 5_000, ["00database-info\tA\tB"]  # places beyond one digit
    for word, entry in entries.items():
        lines.append(f"{word}\t{number(len(text))}\t{number(len(entry.encode()))}")
        text += entry.encode()
    (folder / "d.index").write_text("\n".join(lines), encoding="utf-8")
    (folder / "d.dict.dz").write_bytes(gzip.compress(text))


def test_a_dictionary_in_dictds_format(tmp_path):
    entries = {"Hund": "Hund /h/\ndog, hound\n", "großer hund": "großer Hund /g/\nmastiff\n", "rot": "rot /r/\nred\n"}
    write_dictionary(tmp_path, entries)
    words = read_dictionary(tmp_path / "d.index", tmp_path / "d.dict.dz")
    assert words == {"hund": "dog", "grosser hund": "mastiff", "rot": "red"}  # casefolded
    assert gloss("Großer Hund, rot.", words, "de") == ("mastiff red", True)
    assert gloss("Rote Hunde im Schnee", words, "de") == ("red dog im Schnee", False)  # by their lemmas
    assert gloss("", words, "de") == ("", True)


def test_freedict_from_its_packages():
    require("freedict")
    one = load_translator("gloss")
    assert {"de", "fi", "sw", "tr"} <= one.languages
    said, whole = one.translate(["Eine Biene.", "Ein Qwertz."], "de")
    assert said[0] == "a bee" and whole.tolist() == [True, False] and "Qwertz" in said[1]
    assert one.translate([], "de")[0] == []
    with pytest.raises(UserError, match="Unknown language of gloss 'xx'"):
        one.translate(["x"], "xx")


def test_dictionaries_that_the_system_brought_are_not_fetched_again(monkeypatch, tmp_path):
    monkeypatch.setattr(DebianPackage, "places", lambda package: [tmp_path])  # /usr/share/dictd, one folder for all
    monkeypatch.setattr(DebianPackage, "fetch", lambda package, say: pytest.fail("fetched"))
    with pytest.raises(UserError, match="No dictionary"):  # the folder alone is none
        translators.Gloss()
    for code in translators.DICTIONARIES:
        for file in translators.package_of(code).wanted:
            (tmp_path / file).touch()
        if code == "af":
            assert translators.Gloss().languages == {"af"}
    for code in translators.FROM_ENGLISH:
        for file in translators.package_of(code, from_english=True).wanted:
            (tmp_path / file).touch()
    assert fetch_set("freedict", progress=False) == tmp_path


def test_packages_that_a_system_lacks_do_not_keep_the_others_away(monkeypatch, tmp_path):
    monkeypatch.setattr(DebianPackage, "places", lambda package: [tmp_path / package.name])

    def fetch(package, say):
        if package.name.endswith(("eng-jpn", "eng-bul")):
            raise UserError(f"Could not fetch {package.set}: {package.name} could not be downloaded.")
        for file in package.wanted:
            (tmp_path / package.name).mkdir(exist_ok=True)
            (tmp_path / package.name / file).touch()

    monkeypatch.setattr(DebianPackage, "fetch", fetch)
    with pytest.raises(
        UserError, match=r"51 of the 53 packages of freedict are here\. Could not fetch .*eng-bul could"
    ):
        fetch_set("freedict", progress=False)
    assert translators.package_of("tr", from_english=True).present()
    assert not translators.package_of("ja", from_english=True).present()

    tried = []

    def unreachable(package, say):
        tried.append(package.name)
        raise UserError(f"Could not fetch {package.set}: no network.")

    monkeypatch.setattr(DebianPackage, "fetch", unreachable)
    with pytest.raises(UserError, match=r"51 of the 53 packages of freedict are here\. Could not fetch .*no network"):
        fetch_set("freedict", progress=False)
    assert len(tried) == 1  # without a network each would take its time


def test_apertium_where_it_is():
    if shutil.which("apertium") is None:
        pytest.skip("apertium is not on this machine: apt-get install apertium apertium-eng-spa ...")
    one = load_translator("apertium")
    said, whole = one.translate(["Una manzana roja.", "Un qwertz [x] *y*.", "  "], "es")
    assert said[0] == "A red apple." and whole[0] and not whole[1] and "qwertz" in said[1] and len(said) == 3
    assert one.translate(["Шева."], "sr")[0] == ["Lark."]  # in Cyrillic letters


def test_what_is_missing_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("MPM_LITE_HOME", str(tmp_path))
    monkeypatch.setattr(DebianPackage, "places", lambda package: [tmp_path / package.name])
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    load_translator.cache_clear()
    with pytest.raises(UserError, match="apertium is not on this machine: .*apt-get install apertium apertium-eng-spa"):
        load_translator("apertium")
    with pytest.raises(UserError, match="No dictionary .*`mpm-lite data get freedict`"):
        load_translator("gloss")
    with pytest.raises(UserError, match="Unknown translator 'apertum'. .*apertium"):
        load_translator("apertum")
    with pytest.raises(UserError, match="Could not fetch freedict: there is no apt-get"):
        fetch_set("freedict", progress=False)
    assert not list(tmp_path.iterdir())


def test_a_program_that_fails_is_told(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda tool: tool)
    failed = subprocess.CompletedProcess([], 1, "", "Error: Mode spa-eng does not exist\n")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: failed)
    with pytest.raises(UserError, match="`apertium -V` failed: Error: Mode spa-eng does not exist"):
        translators.Apertium()


def test_a_translator_leads_to_english():
    with pytest.raises(UserError, match="A translator leads to English"):
        Experiment(text="minilm-en", train=("emoji", ["de"]), translator="gloss")
    with pytest.raises(UserError, match="A translator leads to English"):
        Experiment(text="minilm-en", train=("emoji", "all"), translator="gloss")


def test_captions_are_translated_before_they_are_read(monkeypatch):
    class Upper(translators.Translator):
        name, languages, version = "upper", frozenset({"de"}), "1"

        def _translate(self, texts, language):
            return [(text.upper(), True) for text in texts]

    monkeypatch.setitem(translators.TRANSLATORS, "upper", Upper)
    load_translator.cache_clear()
    asked = {"text": "minilm-en", "train": ("emoji", ["en"]), "translator": "upper"}
    bench = Experiment(**asked, test=("emoji", ["en", "de"])).system.bench(progress=False)
    captions = bench.tests[0][1].take(range(4))
    seen = bench.texts(captions, "de").numpy()
    assert np.allclose(seen, bench.text.encode([text.upper() for text in captions.captions["de"]]), atol=1e-5)
    assert np.allclose(bench.texts(captions, "en").numpy(), bench.text.encode(captions.captions["en"]), atol=1e-5)
    assert (
        bench.key("x").digest
        != Experiment(text="minilm-en", train=("emoji", ["en"]), test=("emoji", ["en", "de"]))
        .system.bench(progress=False)
        .key("x")
        .digest
    )
    with pytest.raises(UserError, match="upper does not translate fr: test emoji in other languages"):
        Experiment(**asked, test=("emoji", ["en", "fr"])).system.bench(progress=False).check()
    load_translator.cache_clear()
