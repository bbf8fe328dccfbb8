"""What to train on which card: sizes, batch and parts, each from a memory estimate, and the minutes to expect.

The presets are plain numbers in assets/presets/gpus.toml. The memory of each comes from `cost.py`: what a language model
saves for a token was counted once, at its real width, and lies in assets/presets/layers.csv, which `python -m
mpm_lite.training.presets` writes. Minutes are operations over what the card's data sheet promises times a utilisation: a
frozen weight costs 4 operations for each token and parameter (2 forward, 2 for the gradient that passes through), a learning
one 6. No number here was measured on a card. One that is measured goes to assets/presets/measured.csv (preset, gib, minutes)
and then stands in the table's last column.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from mpm_lite import ops
from mpm_lite.core import runtime
from mpm_lite.core.store import write_atomic
from mpm_lite.recipes.align import Align, AlignOptions
from mpm_lite.recipes.modules.connectors import build_connector
from mpm_lite.recipes.mpm_chat import MpmChatOptions
from mpm_lite.training import cost
from mpm_lite.training.cost import MARGIN, Memory, Shape

if TYPE_CHECKING:
    from transformers import PretrainedConfig

GPUS, LAYERS, MEASURED = "presets/gpus.toml", "presets/layers.csv", "presets/measured.csv"
GIB, UTILISATION = 2**30, 0.35
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Language:
    """A language model by its sizes."""

    hub: str
    kind: str  # as transformers calls it
    sizes: dict[str, Any]  # under the names of a transformers configuration

    def config(self) -> PretrainedConfig:
        """The transformers configuration; nothing is fetched."""
        from transformers import AutoConfig

        return AutoConfig.for_model(self.kind, **self.sizes)


@dataclass(frozen=True)
class Tower:
    """A frozen tower by its sizes: what it reads of one picture or text, its width, the parameters of its layers."""

    hub: str
    tokens: int
    width: int
    parameters: int


@dataclass(frozen=True)
class TrainingPreset:
    """What a card trains. Products in `precision`, weights in float32 as `load_lm` holds them, the head in float32."""

    name: str
    card: str
    card_gib: float  # of the card, as the driver reports it
    precision: str  # "fp32", "fp16" or "bf16", of matrix products
    tflops: float  # dense, in that precision, by the card's data sheet
    tflops_fp32: float  # by the same sheet, without tensor cores
    language: Language
    image: Tower
    batch: int  # exchanges an update of mpm_chat
    parts: int
    steps: int
    text: int  # tokens of a prompt and its reply
    reply: int  # how many of them the loss is taken of
    learns: str  # beside the connector: "connector" is nothing, "lora", "all"
    pairs: int  # a batch of align, two heads over cached features
    align_steps: int
    pictures: int  # of the training set: a tower sees each once, its features are kept

    @property
    def tokens(self) -> int:
        """What the language model reads an update: text and soft tokens."""
        return self.batch * (self.text + MpmChatOptions.queries)


_CARDS = tomllib.loads(runtime.asset(GPUS).read_text(encoding="utf-8"))
_LANGUAGES = {name: Language(**row) for name, row in _CARDS["language"].items()}
_TOWERS = {name: Tower(**row) for name, row in _CARDS["tower"].items()}
TEXT = _TOWERS["text"]
PRESETS = {
    name: TrainingPreset(name, **row | {"language": _LANGUAGES[row["language"]], "image": _TOWERS[row["image"]]})
    for name, row in _CARDS["preset"].items()
}


def find_preset(name: str) -> TrainingPreset:
    """The preset of that name; `big` is the A100's. Raises UserError for a name that nobody knows."""
    if name not in runtime.PRESETS:
        raise runtime.unknown("preset", name, runtime.PRESETS)
    return PRESETS[runtime.PRESETS[name].name]


def find_real(choice: str = "auto") -> TrainingPreset | None:
    """The preset for models of real size: this machine's where it has a GPU and can reach the hub, else None.

    "auto" chooses by what is there, "toy" is None always, and "real" raises UserError where something is missing. The name of
    a preset takes that one.
    """
    if choice == "toy":
        return None
    if choice not in ("auto", "real"):
        return find_preset(choice)
    lacks = [] if torch.cuda.is_available() else ["a GPU"]
    if lacks and choice == "auto":
        return None  # without asking the hub, which takes seconds where it does not answer
    lacks += [] if runtime.reachable() else ["a connection to the model hub"]
    if not lacks:
        return find_preset(runtime.preset().name)
    if choice == "auto":
        return None
    raise runtime.UserError(f"Models of real size need {' and '.join(lacks)}, not found here: take 'auto' or 'toy'.")


def say_plan(card: TrainingPreset | None, real: str, toy: str, minutes: int) -> bool:
    """Print what a section for GPUs trains, `real` with a card of `find_real` and `toy` on a GPU without; returns whether it
    runs. On a machine without a GPU it does not, and `real` is what is named. The minutes are an estimate for a T4."""
    runs = card is not None or torch.cuda.is_available()
    where = (
        "trained here" if runs else "nothing is trained on a machine without a GPU; on one that reaches the model hub"
    )
    print(f"{where}: {toy if runs and card is None else real}")
    print(f"about {minutes} minutes on a T4, an estimate that nobody has measured")
    return runs


@dataclass(frozen=True)
class Counted:
    """What was counted once: of the language model, and of the resampler before it."""

    lm: Shape
    parameters: int  # of the resampler
    fixed: int  # bytes that autograd saves of it whatever the batch
    example: float  # and of an example


def count(preset: TrainingPreset) -> Counted:
    """Build one layer and two of the language model, and the resampler, and count. Takes a minute and 6 GiB for the 7B."""
    dtype = DTYPES[preset.precision]
    lm = cost.shape_of(preset.language.config(), dtype, preset.learns, bits=32)
    o, tower, embeddings = MpmChatOptions(), preset.image, torch.randn(8, preset.language.sizes["hidden_size"])
    sizes = {"queries": o.queries, "width": o.width, "layers": o.layers, "heads": o.heads}
    made = build_connector("resampler", tower.width, tower.tokens, embeddings, **sizes)

    def saved(n: int) -> int:
        seen = torch.zeros(n, tower.tokens, tower.width)
        with torch.autocast("cpu", dtype) if dtype != torch.float32 else nullcontext():
            return cost.saved(lambda: made(seen), [*made.parameters(), *made.buffers()], [seen])

    return Counted(lm, sum(p.numel() for p in made.parameters()), *cost.line(saved, 2, 4))


@lru_cache(maxsize=1)
def _rows() -> pd.DataFrame:
    return pd.read_csv(runtime.asset(LAYERS)).set_index("preset")


def counted(preset: TrainingPreset) -> Counted:
    """What `count` found, from the committed file. Raises UserError if that file was made for other sizes."""
    rows, made_for = _rows(), _made_for(preset)
    if preset.name not in rows.index or rows.loc[preset.name, "made_for"] != made_for:
        raise runtime.UserError(f"{LAYERS} says nothing of {made_for}: run `python -m mpm_lite.training.presets`.")
    row = rows.loc[preset.name]
    shape = Shape(**{f.name: row[f.name].item() for f in fields(Shape)})
    return Counted(shape, int(row["resampler"]), int(row["resampler_fixed"]), float(row["resampler_example"]))


def _made_for(preset: TrainingPreset) -> str:
    return f"{preset.language.hub} {preset.image.hub} {preset.precision} {preset.learns}"


def estimate_chat(preset: TrainingPreset, batch: int | None = None, parts: int | None = None) -> Memory:
    """What mpm_chat takes on that preset: language model, connector, and the image tower that stays on the card."""
    batch, parts = batch or preset.batch, parts or preset.parts
    of, tokens = counted(preset), batch * (preset.text + MpmChatOptions.queries)
    lm = cost.of_lm(
        preset.language.config(), tokens, DTYPES[preset.precision], preset.learns, bits=32,
        predicted=batch * preset.reply, parts=parts, machine=preset.name, shape=of.lm,
    )  # fmt: skip
    part, own = batch / parts, 4 * of.parameters
    picture = 4 * preset.image.tokens * preset.image.width  # those of the other parts wait on the card
    activations = round(of.example * part + picture * (batch - part))
    return lm + Memory(own + of.fixed + 4 * preset.image.parameters, own, 2 * own, activations, 0)


def estimate_align(preset: TrainingPreset) -> Memory:
    """What align takes: two heads over features, and the two towers that stay on the card. Counted on small batches."""
    recipe = Align(preset.image.width, TEXT.width, AlignOptions(batch=preset.pairs))

    def batch_of(n: int) -> dict[str, torch.Tensor]:
        return {"image": torch.zeros(n, preset.image.width), "text": torch.zeros(n, TEXT.width)}

    towers = Memory(4 * (preset.image.parameters + TEXT.parameters), 0, 0, 0, 0)
    return cost.of_recipe(recipe, batch_of, preset.pairs) + towers


def room(preset: TrainingPreset) -> int:
    """Bytes of the card that an estimate may fill."""
    return round((1 - MARGIN) * preset.card_gib * GIB)


def parts_for(memory_bytes: int, batch: int, of: Callable[[int], Memory]) -> int:
    """The smallest number of parts, a divisor of `batch`, for which the estimate `of(parts)` fits into so many bytes.

    Raises UserError where not even one example at a time fits.
    """
    for parts in range(1, batch + 1):
        if batch % parts == 0 and of(parts).total <= memory_bytes:
            return parts
    least = of(batch).total / GIB
    raise runtime.UserError(
        f"{memory_bytes / GIB:.1f} GiB are too few: one example at a time takes {least:.1f} GiB. Take a smaller model."
    )


def fits(name: str) -> bool:
    """Whether the estimates of both recipes leave `MARGIN` of the card free."""
    preset = find_preset(name)
    return max(estimate_chat(preset).total, estimate_align(preset).total) <= room(preset)


def minutes_of_chat(preset: TrainingPreset) -> float:
    """Each picture through its tower once, and every update; the tower's and the head's products run in float32."""
    of, sizes = counted(preset), preset.language.sizes
    body = 4 * of.lm.linear if preset.learns != "all" else 6 * of.lm.linear
    adapters = 6 * (of.lm.learning if preset.learns == "lora" else 0)
    update = (body + adapters) * preset.tokens
    update += 6 * of.parameters * preset.batch * preset.image.tokens
    head = 4 * sizes["hidden_size"] * sizes["vocab_size"] * preset.batch * preset.reply
    updates = preset.steps * (_minutes(update, preset.tflops) + _minutes(head, preset.tflops_fp32))
    return updates + _minutes(_read(preset, preset.image), preset.tflops_fp32)


def minutes_of_align(preset: TrainingPreset) -> float:
    """Each picture and its caption through their towers once, and every update of the two heads; all in float32."""
    width, n = AlignOptions.width, preset.pairs
    towers = _read(preset, preset.image) + _read(preset, TEXT)
    heads = 6 * n * width * (preset.image.width + TEXT.width)
    loss = 1e12 * ops.explain("clip_loss", N=n, D=width, machine=preset.name).tflop_done
    return _minutes(towers + preset.align_steps * (heads + loss), preset.tflops_fp32)


def _read(preset: TrainingPreset, tower: Tower) -> float:
    """Operations of a frozen tower that reads the training set once."""
    return 2 * tower.parameters * tower.tokens * preset.pictures


def _minutes(operations: float, tflops: float) -> float:
    return operations / (tflops * 1e12 * UTILISATION) / 60


def build_preset_table() -> pd.DataFrame:
    """One row for each preset: what it trains, the memory and minutes estimated for it, and what was measured."""
    seen: dict[str, Any] = {}
    try:
        seen = pd.read_csv(runtime.asset(MEASURED)).set_index("preset").to_dict("index")
    except runtime.UserError:
        pass  # nobody has measured yet, and the column says so
    rows = []
    for name, preset in PRESETS.items():
        found = seen.get(name)
        rows.append({
            "preset": name, "card": preset.card, "precision": preset.precision,
            "language model": preset.language.hub, "image tower": preset.image.hub,
            "learns": preset.learns, "batch": preset.batch, "parts": preset.parts,
            "GiB, estimated": round(estimate_chat(preset).total / GIB, 1), "GiB of card": preset.card_gib,
            "minutes of mpm_chat, estimated": round(minutes_of_chat(preset), 1),
            "minutes of align, estimated": round(minutes_of_align(preset), 1),
            "measured": f"{found['gib']:g} GiB, {found['minutes']:g} min" if found else "not measured",
        })  # fmt: skip
    return pd.DataFrame(rows)


def main(path: Path | None = None) -> Path:
    """Count for every preset and write the file; returns its path. Takes minutes."""
    rows = []
    for preset in PRESETS.values():
        of = count(preset)
        rest = {"resampler": of.parameters, "resampler_fixed": of.fixed, "resampler_example": of.example}
        rows.append({"preset": preset.name, "made_for": _made_for(preset)} | vars(of.lm) | rest)
        print(rows[-1], file=sys.stderr, flush=True)
    path = path or runtime.asset("presets") / Path(LAYERS).name
    write_atomic(path, pd.DataFrame(rows).to_csv(index=False, lineterminator="\n").encode())
    return path


if __name__ == "__main__":
    print(main())
