"""Sharded training: each process keeps a share of every tensor, and borrows the rest while it computes.

This is fully sharded data parallelism by torch's `fully_shard`. In each of W processes, weights, gradients and AdamW's state
take a W-th of the memory, for more communication. A block (an element of a ModuleList) is gathered when its turn comes and
let go again; everything outside of blocks is gathered once. Training works on a copy of the recipe. The recipe that the
caller holds stays on the CPU meanwhile, and `gather_weights` brings the learned weights home to be scored or saved.

Accelerate's FSDP2 plugin cannot take this over. `fully_shard` refuses parameters of shape (), such as a temperature, and the
plugin can leave out whole modules only, not single parameters. It also shards the model in place, together with an optimizer,
while here each stage freezes other parts and begins a new optimizer.

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


def check_shardable(recipe: Recipe, precision: str) -> None:
    """Raises UserError for a recipe or a precision that cannot be trained in shards."""
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


def shard_recipe(recipe: Recipe, device: torch.device) -> Objective:
    """A copy of the recipe in shards, ready to train. What learns must be decided before."""
    mesh = init_device_mesh(device.type, (distributed.count_processes(),))
    objective = Objective(copy.deepcopy(recipe))
    # A single number, such as a temperature, cannot be split: every process keeps it, and `finish_gradients` averages its gradient.
    whole = {p for p in objective.parameters() if p.ndim == 0}
    for p in whole:
        p.data = p.data.to(device)
    lists = [m for m in objective.modules() if isinstance(m, nn.ModuleList)]
    for blocks in reversed(lists):  # inner blocks first
        for block in blocks:
            if any(True for _ in block.parameters()):
                fully_shard(block, mesh=mesh, ignored_params=whole)
    fully_shard(objective, mesh=mesh, ignored_params=whole)
    register_fsdp_forward_method(objective, "features")
    return objective


def gather_tensor(x: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded; every process must call this."""
    return x.full_tensor() if isinstance(x, DTensor) else x


@torch.no_grad()
def gather_weights(objective: Objective, recipe: Recipe) -> None:
    """Copy what has learned, and buffers, into the caller's recipe, in place; every process must call this."""
    home = dict(recipe.named_parameters()) | dict(recipe.named_buffers())
    learned = {n: p for n, p in objective.recipe.named_parameters() if p.requires_grad}
    for name, value in (learned | dict(objective.recipe.named_buffers())).items():
        home[name].copy_(gather_tensor(value.detach()))


def finish_gradients(learning: Sequence[Tensor], clip: float) -> None:
    """After the backward pass: average the gradients that are not sharded, and clip the norm of all together (0: leave it)."""
    for p in learning:
        if not isinstance(p, DTensor) and p.grad is not None:
            dist.all_reduce(p.grad)
            p.grad /= distributed.count_processes()
    grads = [p.grad for p in learning if p.grad is not None]
    if not clip or not grads:
        return
    here = torch.stack([g.to_local().square().sum() for g in grads if isinstance(g, DTensor)]).sum()
    square = distributed.sum_over_processes(here) + sum(g.square().sum() for g in grads if not isinstance(g, DTensor))
    scale = (clip / (square.sqrt() + 1e-6)).clamp(max=1.0)
    for g in grads:
        (g.to_local() if isinstance(g, DTensor) else g).mul_(scale)


def scatter_state(optimizer: torch.optim.Optimizer) -> None:
    """Share out the state of an optimizer that was loaded whole."""
    # In the order of the groups, and by name: the tensors of a file come in another order in every process.
    for p in [p for group in optimizer.param_groups for p in group["params"] if isinstance(p, DTensor)]:
        slots = optimizer.state[p]
        for name in sorted(slots):
            if slots[name].shape == p.shape and not isinstance(slots[name], DTensor):
                slots[name] = distribute_tensor(slots[name], p.device_mesh, p.placements)


def groups_apart(groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """An optimizer's groups with sharded and whole tensors in different ones, as its fused step needs it."""
    found = []
    for group in groups:
        for kind in (True, False):
            if params := [p for p in group["params"] if isinstance(p, DTensor) is kind]:
                found.append(group | {"params": params})
    return found
