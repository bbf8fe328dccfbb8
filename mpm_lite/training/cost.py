"""What training costs: updates, parameters that learn, floating-point operations, and memory before anything is tried.

    with cost.kept() as book:
        bench.train(arm, seed)
    cost.table(book)

While the book is open, everything that is trained is written down, and so is what was trained earlier and is read back.

Memory is counted in bytes: weights, gradients, the optimizer's state, activations and the head. No figure is a rule of thumb.
A backward pass needs what autograd saves for it. That is counted at two small batches, which gives a line a + b N, since
every example saves as much as the next. Of a language model that is too large to build, one layer and two layers are built,
at their real width: every further layer adds what the second one added.

Where much learns, the sum is an upper bound, since activations go while gradients appear. Left out are the scratch space of
single kernels, cuBLAS's workspace, the CUDA context and the holes of the allocator. Whoever compares a total with a card
leaves `MARGIN` of that card free for them.

Shapes: N examples of an update, K parts, T tokens, D width, V vocabulary, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from mpm_lite import ops
from mpm_lite.core import runtime
from mpm_lite.recipes.base import Recipe, Stage, TrainData
from mpm_lite.recipes.mpm_chat import add_lora
from mpm_lite.towers.lm import IGNORE
from mpm_lite.training import loop


@dataclass(frozen=True)
class Entry:
    """A stage of training: updates, parameters that learn, FLOPs in all (matrix products, forward and backward)."""

    recipe: str
    stage: str
    updates: int
    trainable: int
    flops: float


_BOOK: ContextVar[list[Entry] | None] = ContextVar("book", default=None)


@contextmanager
def open_book() -> Iterator[list[Entry]]:
    """Open a book in which `note` writes; it is closed at the end of the block."""
    book: list[Entry] = []
    token = _BOOK.set(book)
    try:
        yield book
    finally:
        _BOOK.reset(token)


def open_now() -> bool:
    """Whether a book is open."""
    return _BOOK.get() is not None


def note_cost(recipe: Recipe, data: Any) -> None:
    """Write down what each stage of a recipe costs, if a book is open. `data()` gives what the recipe learns from, as
    `loop.fit` takes it. Weights stay as they are."""
    book = _BOOK.get()
    if book is None:
        return
    for stage, examples in zip(recipe.stages(), loop.by_stage(recipe, data()), strict=True):
        learns = sum(p.numel() for p in loop.freeze_all_but(recipe, stage.learns))
        book.append(
            Entry(recipe.name, stage.name, stage.steps, learns, stage.steps * count_flops(recipe, stage, examples))
        )


def count_flops(recipe: Recipe, stage: Stage, data: TrainData) -> float:
    """Floating-point operations of one update, measured on the stage's first batch. What learns must be set before."""
    from torch.utils.flop_counter import FlopCounterMode  # it brings triton with it

    batch = data.batch(loop.batch_indices(len(data), stage.batch, 0, 0, 0))
    with torch.random.fork_rng(), FlopCounterMode(display=False) as counter:
        recipe.train()
        recipe.loss(batch).backward()
    recipe.zero_grad(set_to_none=True)
    recipe.eval()
    return float(counter.get_total_flops())


def build_cost_table(book: Sequence[Entry]) -> pd.DataFrame:
    """The book as a table, one row for each stage."""
    return pd.DataFrame([asdict(entry) for entry in book])


# Memory, before anything is tried.

MARGIN = 0.15  # of a card's memory
LEARNS = ("connector", "lora", "all")
BITS = (4, 8, 16, 32)
LENGTH, FEW, MORE = 16, 1, 3  # tokens in a row that is probed, and the two numbers of rows that are tried
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Memory:
    """The memory that training takes, in bytes."""

    weights: int  # with buffers, and the copies of weights in autocast's dtype that the backward pass needs
    gradients: int
    optimizer: int  # AdamW's two moments
    activations: int  # what autograd saves for the examples of a part, and the batch
    head: int  # what the loss holds beside that for a moment

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.head

    def __add__(self, other: Memory) -> Memory:
        return Memory(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in vars(self).items())
        return f"{self.total / 2**30:.2f} GiB ({parts})"


def storages(tensors: Any) -> dict[int, int]:
    """The storages of tensors, each once: its address -> its bytes."""
    return {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}


def saved(compute: Callable[[], Any], but: Any, batch: Any = ()) -> int:
    """Bytes of `batch` and of what autograd saves while `compute()` runs, without the storages of `but`."""
    kept, found = [], storages(batch)  # what is kept stays alive, so that no two storages share an address
    known = storages(but)

    def pack(x: Tensor) -> Tensor:
        kept.append(x.detach())
        found.update(storages([x]))
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        result = compute()
    del result
    return sum(size for at, size in found.items() if at not in known)


def line(at: Callable[[int], int], few: int, more: int) -> tuple[int, float]:
    """a and b of the line a + b N through what is measured at two numbers of examples."""
    first, second = at(few), at(more)
    slope = (second - first) / (more - few)
    return round(first - slope * few), slope


def of_recipe(
    recipe: Recipe, batch_of: Callable[[int], Batch], batch: int, parts: int = 1, stage: str = "", few: int = 4
) -> Memory:
    """The memory for a stage of a recipe (the first, or the one named), with `batch` examples an update in so many `parts`.

    `batch_of(n)` gives a training batch of n examples, as long as those of training. It is asked for `few` and for twice as
    many. Raises UserError for a stage that the recipe does not have.
    """
    stages = {one.name: one for one in recipe.stages()}
    if stage and stage not in stages:
        raise runtime.unknown("stage", stage, stages)
    own, on = [*recipe.parameters(), *recipe.buffers()], runtime.device_of(recipe)

    def saved_by(n: int) -> int:
        given = {k: v.to(on) for k, v in batch_of(n).items()}
        return saved(lambda: recipe.loss(given), own, given.values())

    with learning(recipe, stages[stage] if stage else next(iter(stages.values()))) as learns:
        fixed, each = line(saved_by, few, 2 * few)
        sample = batch_of(few)
    ready = sum(x.nbytes for x in sample.values()) / few  # the whole batch waits, though one part is computed at a time
    part = batch / parts
    gradients = sum(p.nbytes for p in learns)
    weights, activations = sum(storages(own).values()) + fixed, round(each * part + ready * (batch - part))
    return Memory(weights, gradients, 2 * gradients, activations, _head(recipe, sample, batch, parts))


@contextmanager
def learning(recipe: Recipe, stage: Stage) -> Iterator[list[Tensor]]:
    """Put a recipe into training as that stage has it. Yields what learns, and at the end leaves everything, the random state
    too, as it was."""
    before, mode = [(p, p.requires_grad) for p in recipe.parameters()], [(m, m.training) for m in recipe.modules()]
    try:
        learns = loop.freeze_all_but(recipe, stage.learns)
        recipe.train()
        with torch.random.fork_rng():
            yield learns
    finally:
        for parameter, learns in before:
            parameter.requires_grad_(learns)
        for module, training in mode:
            module.training = training


@torch.no_grad()
def _head(recipe: Recipe, sample: Batch, batch: int, parts: int) -> int:
    """What the loss holds for a moment: a chunk of the matrix, and the gradient of the matrix's rows."""
    on = runtime.device_of(recipe)
    machine = "cpu" if on.type == "cpu" else None
    if recipe.compares and type(recipe).features is not Recipe.features:
        found = recipe.features({k: v.to(on) for k, v in sample.items()}).values()
        rows = [x for x in found if x.ndim]
        every = round(sum(x.nbytes for x in rows) / len(rows[0]) * batch)
        chunk = ops.explain("clip_loss", N=batch, D=rows[0].shape[-1], machine=machine).bytes_chunk
        return chunk + every * (1 if parts == 1 else 3)  # in parts the features wait, one by one and joined
    lm = getattr(recipe, "lm", None)
    if lm is None or "reply" not in sample:
        return 0
    replies = sample["reply"]
    counted = int((replies != IGNORE).sum()) / len(replies) * batch / parts
    return vocabulary(round(counted), lm.width, lm.vocabulary, machine)


def vocabulary(tokens: int, width: int, vocabulary: int, machine: str | None = None) -> int:
    """What `ops.linear_cross_entropy` holds for so many predicted tokens, in float32: the states, a chunk of logits, and the
    states' gradient. `machine` is one that `ops.explain` knows; without it, the machine at hand."""
    tokens = max(1, tokens)
    cost = ops.explain("linear_cross_entropy", N=tokens, D=width, V=vocabulary, dtype=torch.float32, machine=machine)
    return cost.bytes_chunk + 2 * 4 * tokens * width


@dataclass(frozen=True)
class Shape:
    """The numbers from which a language model's memory follows, counted once for a configuration and a way to train it."""

    parameters: int  # all of them, tied ones once, without adapters
    linear: int  # those of the layers' matrices, which quantisation packs
    learning: int  # those that learn
    copies: int  # bytes that autograd saves whatever the tokens: weights in autocast's dtype
    token: float  # bytes that autograd saves for one token, in all layers


def shape_of(config: Any, dtype: torch.dtype, learns: str = "connector", bits: int = 16, rank: int = 8) -> Shape:
    """Count the parameters without building any, and what autograd saves in one layer and in two of the real width.

    `config` is that of a transformers causal model. Raises UserError for a `learns` or `bits` that is not known.
    """
    if learns not in LEARNS:
        raise runtime.unknown("part of the language model to train", learns, LEARNS)
    if bits not in BITS:
        raise runtime.UserError(f"bits={bits!r}: weights are held in {', '.join(map(str, BITS))} bits.")
    with torch.device("meta"):
        whole = _model(config, config.num_hidden_layers)
        head = whole.get_output_embeddings()
        parameters = sum(p.numel() for p in whole.parameters())
        linear = sum(m.weight.numel() for m in whole.modules() if isinstance(m, nn.Linear) and m is not head)
        count = parameters if learns == "all" else 0
        if learns == "lora":
            add_lora(whole, rank)
            count = sum(p.numel() for name, p in whole.named_parameters() if "lora_" in name)
    # The bytes saved are a line in the number of tokens, and both coefficients of that line are lines in the layers.
    (fixed, token), (fixed_2, token_2) = (_layers(config, n, dtype, learns, bits, rank) for n in (1, 2))
    more = config.num_hidden_layers - 1
    copies = 0 if bits < 16 else fixed + more * (fixed_2 - fixed)  # packed weights are unpacked again when needed
    return Shape(parameters, linear, count, copies, token + more * (token_2 - token))


def _model(config: Any, layers: int, **other: Any) -> Any:
    """A causal model of that configuration with so many layers; the configuration itself is not changed."""
    from transformers import AutoConfig, AutoModelForCausalLM

    changed = config.to_dict() | {"num_hidden_layers": layers} | other
    changed.pop("layer_types", None)  # it lists as many as there were
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(changed.pop("model_type"), **changed))


def _layers(config: Any, layers: int, dtype: torch.dtype, learns: str, bits: int, rank: int) -> tuple[int, float]:
    """What so many layers save: bytes whatever the tokens, and bytes per token. The embedding table takes no part."""
    held = dtype if bits == 16 else torch.float32
    with torch.device("meta"):
        model = _model(config, layers, vocab_size=8, pad_token_id=None, bos_token_id=None, eos_token_id=None)
        if learns == "lora":
            add_lora(model, rank)
    model = model.to_empty(device="cpu").to(held).train()
    for name, parameter in model.named_parameters():
        nn.init.zeros_(parameter)  # what is saved depends on shapes, not on values
        parameter.requires_grad_(learns == "all" or "lora_" in name)
    own = [*model.parameters(), *model.buffers()]
    low = held != dtype

    def at(rows: int) -> int:
        embeds = torch.zeros(rows, LENGTH, config.hidden_size, dtype=held, requires_grad=True)
        mask = torch.ones(rows, LENGTH, dtype=torch.long)
        mask[:, 0] = 0  # rows of a batch are padded, and attention then works in another way
        with torch.autocast("cpu", dtype) if low else nullcontext():
            inputs = {"inputs_embeds": embeds, "attention_mask": mask, "use_cache": False}
            return saved(lambda: model.base_model(**inputs).last_hidden_state, own)

    fixed, each = line(at, FEW, MORE)
    return fixed, each / LENGTH


def of_lm(
    config: Any, tokens: int, dtype: torch.dtype, learns: str = "connector", bits: int = 16, *,
    predicted: int | None = None, parts: int = 1, machine: str | None = None, shape: Shape | None = None,
) -> Memory:  # fmt: skip
    """The memory for training on `tokens` tokens an update in a language model, which need not fit on this machine.

    dtype: that of matrix products. learns: "connector" (the model is frozen and the gradient passes through it), "lora" or
    "all". bits: how its weights are held; `load_lm` holds them in 32, and autocast then computes products in another dtype.
    predicted: the tokens that a loss is taken of (default all). shape: what `shape_of` counted, if it was counted before.
    The connector itself is not included.
    """
    of = shape or shape_of(config, dtype, learns, bits)
    packed = of.linear * bits / 8 + (of.linear / 16 if bits == 4 else 0)  # nf4: one float32 scale for 64 weights
    weights = packed + 4 * (of.parameters - of.linear) if bits < 16 else of.parameters * bits / 8
    adapters = 4 * of.learning if learns == "lora" else 0
    gradients = adapters or of.learning * bits // 8
    predicted = tokens if predicted is None else predicted
    head = vocabulary(predicted // parts, config.hidden_size, config.vocab_size, machine)
    held = round(weights + adapters + of.copies)
    return Memory(held, gradients, 2 * gradients, round(of.token * tokens / parts), head)
