"""A recipe whose weights lie apart: each process keeps a share of every tensor, and borrows the rest while it computes.

Fully sharded data parallelism by torch's `fully_shard`: weights, gradients and AdamW's state of W processes take a W-th of the
memory each, for more talk between them. A block (an element of a ModuleList) is gathered when its turn comes and let go again;
what stands outside of blocks is gathered once. The recipe that the caller holds is untouched meanwhile, on the CPU: training
goes on in a copy, and `collect` brings its weights home to be scored or saved.

Shapes: W processes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from mpm_lite.core.runtime import UserError
from mpm_lite.ops import distributed
from mpm_lite.recipes.base import Recipe
from mpm_lite.training.gradcache import Objective


def check(recipe: Recipe, precision: str) -> None:
    """UserError for a recipe or a precision that cannot be trained in shards."""
    if recipe.idle:
        raise UserError(
            f"A batch may leave some of what {recipe.name!r} trains without a gradient, and shards wait for every one: leave "
            "out --shard."
        )
    if type(recipe).stepped is not Recipe.stepped:
        raise UserError(
            f"{recipe.name!r} does something of its own to whole weights after each step: leave out --shard."
        )
    if precision == "fp16":
        raise UserError("Sharded weights and float16 do not go together here: take precision='bf16' or 'no'.")
    odd = next((n for n, p in recipe.named_parameters() if not p.is_floating_point()), None)
    if odd is not None:
        raise UserError(f"{odd!r} holds numbers of few bits, which cannot be sharded: leave out bits, or --shard.")


def split(recipe: Recipe, device: torch.device) -> Objective:
    """A copy of the recipe in shards, ready to train; what learns must be decided already."""
    mesh = init_device_mesh(device.type, (distributed.world(),))
    objective = Objective(copy.deepcopy(recipe))
    # A number, such as a temperature, has nothing to split: every process keeps it, and `finish` averages its gradient.
    whole = {p for p in objective.parameters() if p.ndim == 0}
    for p in whole:
        p.data = p.data.to(device)
    lists = [m for m in objective.modules() if isinstance(m, nn.ModuleList)]
    for blocks in reversed(lists):  # what is within a block comes before it
        for block in blocks:
            if any(True for _ in block.parameters()):
                fully_shard(block, mesh=mesh, ignored_params=whole)
    fully_shard(objective, mesh=mesh, ignored_params=whole)
    register_fsdp_forward_method(objective, "features")
    return objective


def whole(x: Tensor) -> Tensor:
    """A tensor as if it had never been sharded; every process must ask."""
    return x.full_tensor() if isinstance(x, DTensor) else x


@torch.no_grad()
def collect(objective: Objective, recipe: Recipe) -> None:
    """Bring what learned, and buffers, home to the caller's recipe, in place; every process must ask."""
    home = dict(recipe.named_parameters()) | dict(recipe.named_buffers())
    learned = {n: p for n, p in objective.recipe.named_parameters() if p.requires_grad}
    for name, value in (learned | dict(objective.recipe.named_buffers())).items():
        home[name].copy_(whole(value.detach()))


def finish(learning: Sequence[Tensor], clip: float) -> None:
    """After the backward pass: average the gradients of what is not sharded, and clip the norm of all (0: as it is)."""
    for p in learning:
        if not isinstance(p, DTensor) and p.grad is not None:
            dist.all_reduce(p.grad)
            p.grad /= distributed.world()
    grads = [p.grad for p in learning if p.grad is not None]
    if not clip or not grads:
        return
    here = torch.stack([g.to_local().square().sum() for g in grads if isinstance(g, DTensor)]).sum()
    square = distributed.total(here) + sum(g.square().sum() for g in grads if not isinstance(g, DTensor))
    scale = (clip / (square.sqrt() + 1e-6)).clamp(max=1.0)
    for g in grads:
        (g.to_local() if isinstance(g, DTensor) else g).mul_(scale)


def scatter(optimizer: torch.optim.Optimizer) -> None:
    """Share out an optimizer's state that was loaded whole."""
    # In the order of the groups, and by name: a file's tensors come in another order in every process.
    for p in [p for group in optimizer.param_groups for p in group["params"] if isinstance(p, DTensor)]:
        slots = optimizer.state[p]
        for name in sorted(slots):
            if slots[name].shape == p.shape and not isinstance(slots[name], DTensor):
                slots[name] = distribute_tensor(slots[name], p.device_mesh, p.placements)


def groups_apart(groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """An optimizer's groups, sharded and whole tensors not in the same one, as its fused step wants it."""
    found = []
    for group in groups:
        for kind in (True, False):
            if params := [p for p in group["params"] if isinstance(p, DTensor) is kind]:
                found.append(group | {"params": params})
    return found
