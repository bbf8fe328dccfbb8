"""The gradient of one update: a batch is shared out among processes, and each process computes its share in parts.

The result is the gradient of the whole batch, whatever the number of processes and parts, for two kinds of objectives. If it
is a mean, each share is weighted by how many things in it the mean is taken over. (An objective that adds means over different
things, such as M3P's masked words and regions, is weighted by examples: close to the whole batch's gradient, but not
equal.) If the objective compares examples with each other, their features are computed in parts without a graph, compared
once, and computed again with a graph that carries the gradient on (GradCache, 2101.06983). That takes the memory of one
part, has the negatives of the whole batch, and costs one more forward pass.

Shapes: N examples of an update, W processes, K parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mpm_lite.core.runtime import UserError
from mpm_lite.ops import distributed
from mpm_lite.recipes.base import Recipe, TrainData

Batch = dict[str, Tensor]


class Objective(nn.Module):
    """A recipe in the form that Accelerate wraps. Called with a batch it returns the loss; with `pull`, gradients of the
    features, it returns a number whose own gradient carries them on to the weights."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe

    def forward(self, batch: Batch, pull: Batch | None = None) -> Tensor:
        if pull is None:
            return self.recipe.loss(batch)
        features = self.features(batch)
        return torch.stack([(features[name] * of).sum() for name, of in pull.items()]).sum()

    def features(self, batch: Batch) -> Batch:
        """The features that the recipe compares."""
        return self.recipe.features(batch) or {}


def check_batch(recipe: Recipe, batch: int, parts: int) -> None:
    """Raises UserError if a batch of so many examples cannot be shared out among the processes and `parts`."""
    among = distributed.count_processes() * parts
    if batch % among:
        raise UserError(
            f"A batch of {batch} cannot be shared out evenly among {distributed.count_processes()} processes of {parts} parts each: take a "
            f"multiple of {among}."
        )
    if parts > 1 and recipe.compares and type(recipe).features is Recipe.features:
        raise UserError(f"Recipe {recipe.name!r} compares the examples of a batch and has no features(): set parts=1.")


def share_batch(data: TrainData, indices: Tensor, parts: int, device: torch.device) -> list[Batch]:
    """This process's examples of an update, in parts."""
    own = indices.chunk(distributed.count_processes())[distributed.rank()]
    return [{k: v.to(device) for k, v in data.batch(few).items()} for few in own.chunk(parts)]


def backward(accelerator: Accelerator, model: nn.Module, recipe: Recipe, batches: Sequence[Batch]) -> float:
    """Leave the gradient of the whole batch on what learns. Returns the batch's loss, the same in every process."""
    if len(batches) > 1 and recipe.compares:
        return _compared(accelerator, model, recipe, batches)
    weights = [float(recipe.weight(batch)) for batch in batches]
    on = next(iter(batches[0].values())).device
    every = _over_processes(sum(weights), on)
    lost = 0.0
    for k, batch in enumerate(batches):
        last = k == len(batches) - 1
        with nullcontext() if last else accelerator.no_sync(model):
            loss = model(batch)
            # Gradients are averaged over W processes, so a part counts W times its share of the whole.
            share = weights[k] * distributed.count_processes() / every if every else 1.0
            accelerator.backward(loss if share == 1.0 else share * loss)
        lost += share * float(loss.detach())
    return _over_processes(lost, on) / distributed.count_processes()


def _compared(accelerator: Accelerator, model: nn.Module, recipe: Recipe, batches: Sequence[Batch]) -> float:
    """`backward` for an objective that compares the examples of all parts with each other (GradCache)."""
    seen: list[Batch] = []
    states = []
    with torch.no_grad():
        for batch in batches:
            states.append(_random(batch))
            with accelerator.autocast():
                seen.append(accelerator.unwrap_model(model).features(batch))
    # Features with a row for each example are joined. A single number, such as a temperature, is the same in every part.
    whole = {k: torch.cat([few[k] for few in seen]) if v.ndim else v for k, v in seen[0].items()}
    whole = {k: v.detach().requires_grad_(v.is_floating_point()) for k, v in whole.items()}
    loss = recipe.compared(whole)
    named = {k: v for k, v in whole.items() if v.requires_grad}
    scale = getattr(accelerator, "scaler", None)
    grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    pulls = {k: g for k, g in zip(named, grads, strict=True) if g is not None}
    ends = {k: g.chunk(len(batches)) for k, g in pulls.items() if g.ndim}
    for k, (batch, state) in enumerate(zip(batches, states, strict=True)):
        last = k == len(batches) - 1
        pull = {name: parts[k] for name, parts in ends.items()}
        pull |= {name: g for name, g in pulls.items() if not g.ndim and last}
        _random(batch, state)  # the same dropout as before
        with nullcontext() if last else accelerator.no_sync(model):
            carried = model(batch, pull)
            (scale.scale(carried) if scale else carried).backward()
    return _over_processes(float(loss.detach()), loss.device) / distributed.count_processes()


def _over_processes(value: float, on: torch.device) -> float:
    """The sum of a number over all processes."""
    if distributed.count_processes() == 1:
        return value
    return float(distributed.sum_over_processes(torch.tensor(value, dtype=torch.float64, device=on)))


def _random(batch: Batch, state: tuple[Tensor, Tensor | None] | None = None) -> tuple[Tensor, Tensor | None]:
    """The state of the random numbers that a batch's forward pass draws. If `state` is given, they are first set back to it."""
    on = next(iter(batch.values())).device
    if state is not None:
        torch.set_rng_state(state[0])
        if state[1] is not None:
            torch.cuda.set_rng_state(state[1], on)
    return torch.get_rng_state(), torch.cuda.get_rng_state(on) if on.type == "cuda" else None
