"""What the notebooks on MPM chat show: composed scenes, the page of one look, the fidelity table, the menus."""

import re

import pytest
import torch

from mpm_lite import UserError
from mpm_lite.data.toyworld import grammar
from mpm_lite.experiments.mpm_chat import Chat, ChatBench, language_model
from mpm_lite.recipes import Align
from mpm_lite.teaching import views, widgets


@pytest.fixture(scope="module")
def bench():
    return ChatBench(progress=False)


@pytest.fixture(scope="module")
def recipe(bench):
    torch.manual_seed(0)
    return bench.recipe(language_model("toy-multilingual", 0), Chat(options={"tuned": "none"}).recipe_options).eval()


def test_scenes_are_composed_from_words():
    scene = views.compose("large red star", "small blue heart")
    assert grammar.in_order(scene, "en")[0] == "A large red star to the left of a small blue heart."
    assert views.compose("small green book").place == "middle"
    assert views.compose("large red star", "small blue heart", "large black book").kind == "three"
    for wrong, says in (
        (("big red star",), "no thing of this world"),
        (("large red",), "such as 'large red circle'"),
        ((), "one to three things, not 0"),
        (("large red star", "small red star"), "alike in colour and shape"),
    ):
        with pytest.raises(UserError, match=says):
            views.compose(*wrong)


def test_a_look_shows_picture_reply_attention_and_lens(bench, recipe):
    page = views.show_reply(bench, recipe, views.compose("large red star", "small blue heart"), "ar", reads=3)
    assert page.data.count("<img") == 4 and all('alt="' in tag for tag in re.findall(r"<img[^>]*>", page.data))
    assert 'lang="ar" dir="auto"' in page.data and page.words.startswith(grammar.describe("ar"))
    assert len(re.findall("<td>", page.data)) == 3 * 5 and "after layer 4" in page.data
    english = bench.recipe(language_model("toy-english", 0), recipe.options)
    with pytest.raises(UserError, match="never read 'ar': ask in one of en"):
        views.show_reply(bench, english, views.compose("large red star"), "ar")


def test_the_fidelity_table_is_read_off_the_recipe(bench, recipe):
    rows = {row.part: row for row in views.build_fidelity_table(recipe)}
    assert {"image encoder", "queries", "projection", "language model", "loss", "stage 1", "stage 2", "metric"} <= set(
        rows
    )
    assert f"{recipe.options.steps:,} steps of {recipe.options.batch}" in rows["stage 1"].here
    assert "[M]" not in "".join(row.paper for row in rows.values()), "unverified figures appear nowhere"
    arm = Chat(instructions=4, options={"tuned": "lora", "tune_steps": 7, "connector": "queries"})
    other = {row.part: row for row in views.build_fidelity_table(bench.recipe(recipe.lm, arm.recipe_options))}
    assert other["stage 2"].here.startswith("7 steps") and other["queries"].here == "16 inside the encoder"
    assert "<table" in views.fidelity_table(recipe).data
    with pytest.raises(UserError, match="has no fidelity table"):
        views.build_fidelity_table(Align(4, 4))


def test_the_menus_redraw_and_say_what_is_wrong():
    asked = []

    def draw(scene, language):
        asked.append((grammar.in_order(scene, "en")[0], language))
        return widgets.Page("<p>drawn</p>", "drawn")

    box = views.build_composer(draw)
    first, second, code, shown = box.children
    code.value = "sw"
    first.children[0].value = "small"
    assert asked[-1] == ("A small red star to the left of a small blue heart.", "sw") and "drawn" in shown.value
    second.children[1].value, second.children[2].value = "red", "star"
    assert "alike in colour and shape" in shown.value


def test_ten_replies_on_a_page_and_a_dial_that_turns_pages(bench, recipe):
    page = views.show_ten_replies(bench, recipe, views.compose("large red star", "small blue heart"))
    assert page.data.count("<tr>") == 11 and page.data.count("<img") == 1
    assert all(f'lang="{code}" dir="auto"' in page.data for code in grammar.LANGUAGES)
    assert (
        "A large red star to the left of a small blue heart." in page.words
        and "replies are exactly right" in page.words
    )
    slider, shown = views.build_dial({"weak": widgets.Page("<p>one</p>", "one"), "strongest": page}, "weak").children
    assert shown.value == "<p>one</p>"
    slider.value = "strongest"
    assert shown.value == page.data
