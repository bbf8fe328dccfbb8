"""Drawings of the systems and the glossary: valid, legible, committed as drawn, and of one mind with the recipes."""

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch

import mpm_lite as mpm
from mpm_lite.recipes.align import Align
from mpm_lite.recipes.base import within
from mpm_lite.recipes.dual import Dual
from mpm_lite.recipes.m3p import M3p, M3pOptions
from mpm_lite.recipes.mblip import Mblip, MblipOptions
from mpm_lite.recipes.mla import Mla
from mpm_lite.recipes.modules.connectors import QFormer
from mpm_lite.recipes.mpm_chat import MpmChat, MpmChatOptions
from mpm_lite.recipes.mpm_paint import MpmPaint
from mpm_lite.teaching import drawings
from mpm_lite.towers.load import load_lm

ROOT = Path(__file__).parent.parent
NAMES = list(drawings.SYSTEMS)
SPACE = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("name", NAMES)
def test_valid_with_title_and_description(name):
    drawing = mpm.draw_system(name)
    root = ET.fromstring(drawing._repr_svg_())
    told = [root.find(SPACE + tag) for tag in ("title", "desc")]
    assert all(len(found.text) > 8 for found in told) and root.get("role") == "img"
    assert root.get("aria-labelledby").split() == [found.get("id") for found in told]
    assert repr(drawing) == f"{told[0].text}. {told[1].text}" and "prefers-color-scheme" in drawing.svg
    assert "max-width:100%" in root.get("style") and float(root.get("viewBox").split()[2]) == drawings.WIDTH
    assert len(drawing.svg) < 8200


@pytest.mark.parametrize("name", NAMES)
def test_no_text_leaves_its_room_and_no_two_overlap(name):
    drawing = mpm.draw_system(name)
    bounds = [(label, *label.bounds()) for label in drawing.labels]
    for label, left, top, right, bottom in bounds:
        x, y, w, h = label.room or (4, 4, drawings.WIDTH - 8, drawing.height - 8)
        assert label.size >= 12 and x <= left and right <= x + w and y <= top and bottom <= y + h, label
    for i, (one, left, top, right, bottom) in enumerate(bounds):
        for other, ll, tt, rr, bb in bounds[:i]:
            assert right <= ll or rr <= left or bottom <= tt or bb <= top, (one.text, other.text)
    for label, left, top, right, bottom in bounds:  # what stands outside a box does not run into one
        for box in drawing.boxes if label.room is None else ():
            inside = left < box.x + box.w and box.x < right and top < box.y + box.h and box.y < bottom
            assert not inside, (label.text, box.lines)


@pytest.mark.parametrize("name", NAMES)
def test_every_mark_has_a_word_an_icon_and_a_pattern(name):
    drawing = mpm.draw_system(name)
    words = [label.text for label in drawing.labels]
    for mark in (drawings.FROZEN, drawings.TRAINED):
        count = sum(box.mark == mark for box in drawing.boxes)
        assert count and words.count(mark) == count
        assert drawing.svg.count(f'href="#m-{mark[0]}"') == count + 1  # and the legend's
        assert drawing.svg.count(f'class="m{mark[0].upper()}"') == count + 1


def recipe_stages(name):
    """The stages of the recipes that a drawing shows, as small as they come."""
    torch.manual_seed(0)
    if name in ("pivot", "contrastive"):
        return Align(4, 4).stages()
    if name == "m3p":
        return M3p(load_lm("toy-english").model.model, 8, 4, 3, M3pOptions()).stages()
    if name == "mpm_chat":
        return MpmChat(load_lm("toy-english"), 8, 4, MpmChatOptions(tuned="all")).stages()
    if name == "mblip":
        lm, qformer = load_lm("toy-english"), QFormer(16, 6, 50, queries=4, width=32, layers=2)
        return [s for rank in (0, 8) for s in Mblip(lm, qformer, 16, MblipOptions(rank=rank)).stages()]
    raise AssertionError(name)


def small_unet():
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        cross_attention_dim=8, attention_head_dim=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip


def small_encoder():
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    return BertModel(config, add_pooling_layer=False)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "all"])
def test_marks_are_those_of_the_recipe(name):
    if name == "mpm_paint":
        stages = MpmPaint(small_unet(), 12).stages()
    elif name == "m3p":
        stages = M3p(small_encoder(), 8, 4, 3, M3pOptions()).stages()
    elif name == "mla":
        stages = Mla(Dual(12, 6, small_encoder()), ["de", "sw"], torch.randn(50, 8)).stages()
    else:
        stages = recipe_stages(name)
    stages = {stage.name: stage for stage in stages}
    marked = [box for box in mpm.draw_system(name).boxes if box.mark != drawings.PLAIN]
    assert marked and all(box.stage and box.part for box in marked)
    for box in marked:
        stage = stages[box.stage]
        learns = any(within(one, box.part) or box.part in one.split(".") for one in stage.learns)
        assert learns == (box.mark == drawings.TRAINED), (box, stage.learns)
        assert (box.part in stage.frozen) == (box.mark == drawings.FROZEN), (box, stage.frozen)


def test_the_panel_of_four_marks_parts_as_their_own_drawings_do():
    panel = {line: box.mark for box in mpm.draw_system("all").boxes for line in box.lines}
    for name, stage, same in (
        (
            "mpm_chat",
            "alignment",
            {"image tower": "image tower", "connector": "connector", "language": "language model"},
        ),
        ("m3p", "pretraining", {"detector": "detector"}),
        ("mla", "transfer", {"acquirer": "and acquirers"}),
        ("mblip", "re-alignment", {"Q-Former": "Q-Former and", "+ LoRA": "+ LoRA"}),
    ):
        own = {line: b.mark for b in mpm.draw_system(name).boxes if b.stage == stage for line in b.lines}
        assert {line: own[line] for line in same} == {line: panel[there] for line, there in same.items()}


@pytest.mark.parametrize("name", drawings.COMMITTED)
def test_committed_drawings_are_those_drawn(name, tmp_path):
    (tmp_path / "figures").mkdir()
    drawings.update([name], tmp_path)
    path = drawings.COMMITTED[name]
    assert (tmp_path / path).read_bytes() == (ROOT / "assets" / path).read_bytes()


def test_unknown_drawing():
    with pytest.raises(mpm.UserError, match="mpm_chat"):
        mpm.draw_system("mpm_chatt")


def glossary():
    text = (ROOT / "assets" / "glossary.md").read_text(encoding="utf-8")
    return re.findall(r"^\*\*(.+?)\*\*[^\n]*", text, flags=re.M)


def test_glossary_is_alphabetical_and_each_term_occurs_in_a_notebook():
    terms = glossary()
    assert 30 <= len(terms) <= 50 and terms == sorted(terms, key=str.casefold)
    books = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    text = "\n".join("".join(cell["source"]) for book in books for cell in book["cells"]).casefold()
    text = " ".join(text.split())
    assert not [term for term in terms if term.split(" (")[0].casefold() not in text]
