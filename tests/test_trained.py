"""What was trained is read back: from MPM_LITE_HOME, or from the assets; what comes before is made only where it must be."""

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, field

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mpm_lite.core import runtime
from mpm_lite.experiments import system
from mpm_lite.experiments.pretrain import shipped
from mpm_lite.recipes.base import Recipe, Stage
from mpm_lite.training import cost, loop


@dataclass(frozen=True)
class Options:
    steps: int = 3
    bf16: bool = False


class Line(Recipe):
    """A number that learns beside one that does not."""

    name = "line"

    def __init__(self, options=Options()):
        super().__init__()
        self.options, self.learns, self.still = options, nn.Linear(1, 1), nn.Linear(1, 1)

    def stages(self):
        return [Stage("only", ("learns",), ("still",), "squares", self.options.steps, 2, 0.1)]

    def loss(self, batch):
        return (self.learns(batch["x"]) - 1).square().mean()


class Data:
    digest = "data"

    def __len__(self):
        return 4

    def batch(self, indices):
        return {"x": indices[:, None].float()}


def made(before=None, options=Options(), told=("a",)):
    torch.manual_seed(0)
    return system.train_once(Line(options), Data, 0, "lines", "one", list(told), progress=False, before=before)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MPM_LITE_HOME", str(tmp_path / "home"))
    return tmp_path


def never(*_, **__):
    raise AssertionError("trained again")


def test_only_what_learns_is_kept_and_read_back(home, monkeypatch):
    first = made()
    files = list((home / "home" / "lines").iterdir())
    assert len(files) == 1 and set(load_file(files[0])) == {"learns.weight", "learns.bias"}
    monkeypatch.setattr(loop, "fit", never)
    assert torch.equal(made().learns.weight, first.learns.weight)
    for other in ({"options": Options(steps=4)}, {"told": ("b",)}):
        with pytest.raises(AssertionError, match="again"):
            made(**other)


def test_what_comes_before_is_made_where_it_must_be(home):
    calls = []
    made(before=lambda: calls.append(1))
    made(before=lambda: calls.append(2))
    assert calls == [1]
    with cost.open_book() as book:  # its cost is to be told all the same
        made(before=lambda: calls.append(3))
    assert calls == [1, 3] and [entry.updates for entry in book] == [3]
    with cost.open_book():
        made(before=lambda: calls.append(4), told=("new",))
    assert calls == [1, 3, 4]


def test_what_ships_is_read_from_the_assets(home, monkeypatch):
    first = made()
    shutil.move(home / "home" / "lines", home / system.KEPT)
    monkeypatch.setattr(runtime, "asset", lambda name="": home)
    monkeypatch.setattr(loop, "fit", never)
    assert torch.equal(made().learns.weight, first.learns.weight)
    assert not (home / "home" / "lines").exists()


@dataclass(frozen=True)
class More(Options):
    slower: float = field(default=1.0, metadata={"added": True})


def test_a_dial_that_is_added_leaves_what_was_kept_its_name_until_it_is_turned(home, monkeypatch):
    first = made()
    assert system.deciding_dials(More()) == {"steps": 3} == system.deciding_dials(Options(bf16=True))
    monkeypatch.setattr(loop, "fit", never)
    assert torch.equal(made(options=More()).learns.weight, first.learns.weight)
    with pytest.raises(AssertionError, match="again"):
        made(options=More(slower=0.5))


class Asked:
    """A bench whose recipe is a `Line`, and that counts how often it was asked for scores."""

    asked = 0

    def train(self, arm, seed):
        return made(told=(arm.name,))

    def choose(self, *_):
        Asked.asked += 1
        return pd.DataFrame({"look": ["real", "blind"], "choice": [1.0, 0.1]})


@dataclass(frozen=True)
class Arm:
    name: str = "a"

    def bench(self):
        return Asked()


def test_a_card_stays_while_its_weights_do_and_what_no_card_names_goes(home, monkeypatch):
    monkeypatch.setattr(shipped, "SHIPPED", {"line": shipped.Shipped(Arm(), 7)})
    first = shipped.build_systems(home)
    card = (home / system.KEPT / shipped.CARD).read_text()
    assert json.loads(card)["line"]["seed"] == 7 and Asked.asked == 1
    monkeypatch.setattr(shipped, "commit", lambda: "another")
    assert shipped.build_systems(home) == first and Asked.asked == 1
    assert (home / system.KEPT / shipped.CARD).read_text() == card
    monkeypatch.setattr(shipped, "SHIPPED", {"line": shipped.Shipped(Arm("b"))})
    second = shipped.build_systems(home)
    assert second != first and list((home / system.KEPT).glob("*.safetensors")) == second
    assert json.loads((home / system.KEPT / shipped.CARD).read_text())["line"]["commit"] == "another"


@pytest.mark.parametrize("name", shipped.SHIPPED)
def test_weights_that_ship_are_those_of_the_card_and_need_no_training(home, monkeypatch, name):
    one, folder = shipped.SHIPPED[name], runtime.asset(system.KEPT)
    card = json.loads((folder / shipped.CARD).read_text())[name]
    data = (folder / card["file"]).read_bytes()
    assert hashlib.sha256(data).hexdigest() == card["sha256"]
    assert card["arm"] == json.loads(json.dumps(asdict(one.arm)))
    # Of ten captions; switching costs English, see C9, and a Q-Former's are ranked by likelihood.
    assert card["english_on_val"]["choice, real"] > (0.9 if "MLA" in name or "without" in name else 0.5)
    assert card["english_on_val"]["choice, blind"] < 0.2
    monkeypatch.setattr(loop, "fit", never)
    bench = one.arm.bench(progress=False)
    with system.collect_files() as files:
        one.make(bench, one.arm, one.seed)
    assert files[-1] == folder / card["file"]


def test_no_weights_ship_without_a_card():
    folder = runtime.asset(system.KEPT)
    cards = json.loads((folder / shipped.CARD).read_text())
    assert {p.name for p in folder.glob("*.safetensors")} == {card["file"] for card in cards.values()}
    assert set(cards) == set(shipped.SHIPPED)
