"""The one training loop, on Accelerate: stages, freezing, selection on validation data, checkpoint and resume.

Which examples a step sees is a function of (seed, stage, step) alone, and so is the learning rate; with the weights, the
optimizer's state and the random state in the checkpoint, a run that was killed continues bit for bit. Started several times
by `accelerate launch`, every process computes its share of each batch; see `gradcache.py`.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType
from accelerate.state import AcceleratorState
from torch import Tensor
from tqdm.auto import tqdm

from mpm_lite.core import runtime
from mpm_lite.core.keys import KEY, Key, check_same
from mpm_lite.core.runtime import UserError, whole_number
from mpm_lite.ops import distributed
from mpm_lite.recipes.base import Recipe, Stage, TrainData, within
from mpm_lite.training import checkpoint, gradcache, sharding

PRECISIONS, TRACKERS = ("", "no", "bf16", "fp16"), ("", "tensorboard", "wandb")


@dataclass
class History:
    """What a run recorded: losses and validation scores by step, the step whose weights were kept, seconds of training.

    Seconds add up over the parts of a run that was stopped and resumed, as far as it was saved.
    """

    losses: list[float] = field(default_factory=list)
    scores: list[tuple[int, float]] = field(default_factory=list)
    kept_step: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Plan:
    """How to run, apart from what the recipe says: seed, saving, selection, showing."""

    seed: int = 0
    out: Path | None = None  # checkpoints go to out/checkpoints; None keeps the run in memory
    save_every: int = 100
    score_every: int = 50  # how often `score` is asked on validation data
    progress: bool = True
    label: str = ""
    parts: int = (
        1  # in which a process computes its share of a batch, one after the other: the same gradient, less memory
    )
    track: str = ""  # "tensorboard" or "wandb": losses, rates and scores as they come, under `out`
    shard: bool = False  # weights and AdamW's state shared out among the processes (FSDP), as `sharding.py` has it
    precision: str = ""  # of matrix products: "no", "bf16" or "fp16"; "" is what the launcher says, else "no"
    also: Mapping[str, str] = field(
        default_factory=dict
    )  # what else decides the weights, such as what `score` looks at


def batch_indices(n: int, batch: int, seed: int, stage: int, step: int) -> Tensor:
    """The examples of one step, int64 (batch,): epochs are seeded permutations without their ragged ends."""
    batch = min(batch, n)
    per_epoch = n // batch
    epoch, place = divmod(step, per_epoch)
    order = torch.randperm(n, generator=torch.Generator().manual_seed((seed * 1_009 + stage) * 1_000_003 + epoch))
    return order[place * batch : (place + 1) * batch]


def learning_rate(stage: Stage, step: int) -> float:
    """Linear climb over the warm-up, then a cosine down to `final` times the rate at the last step."""
    climb = max(1, round(stage.warmup * stage.steps))
    if step < climb:
        return stage.lr * (step + 1) / climb
    down = 0.5 * (1 - math.cos(math.pi * (step - climb) / max(1, stage.steps - climb)))  # from 0 to 1
    return stage.lr * (1 - (1 - stage.final) * down)


def freeze_all_but(recipe: Recipe, learns: tuple[str, ...]) -> list[Tensor]:
    """Leave gradients on the named submodules or parameters only; returns what learns.

    Raises UserError where a stage names something that the recipe does not have.
    """
    names = {name for name, _ in recipe.named_parameters()}
    learning = []
    for wanted in learns:
        if not any(within(name, wanted) for name in names):
            raise UserError(f"Stage trains {wanted!r}, but {recipe.name!r} has no such part with parameters.")
    for name, parameter in recipe.named_parameters():
        parameter.requires_grad_(any(within(name, wanted) for wanted in learns))
        if parameter.requires_grad:
            learning.append(parameter)
    return learning


def _groups(recipe: Recipe, stage: Stage) -> list[dict[str, Any]]:
    """What learns, together where it learns at the same rate; `times` is how many times the stage's rate that is.

    Raises UserError where `faster` names something that does not learn.
    """
    groups: dict[float, list[Tensor]] = {}
    learning = {name: parameter for name, parameter in recipe.named_parameters() if parameter.requires_grad}
    for part, _ in stage.faster:
        if not any(within(name, part) for name in learning):
            raise UserError(f"Stage {stage.name!r} gives {part!r} a rate of its own, but no such part of it learns.")
    for name, parameter in learning.items():
        times = [times for part, times in stage.faster if within(name, part)]
        groups.setdefault(times[0] if times else 1.0, []).append(parameter)
    return [{"params": parameters, "times": times} for times, parameters in groups.items()]


def by_stage(recipe: Recipe, data: TrainData | Sequence[TrainData]) -> list[TrainData]:
    """What each stage learns from: one set of data for all, or as many as there are stages. UserError for another number."""
    stages = len(recipe.stages())
    each = list(data) if isinstance(data, (list, tuple)) else [data] * stages
    if len(each) != stages:
        raise UserError(f"{recipe.name!r} has {stages} stages, but there are {len(each)} sets of data.")
    return each


def fit(
    recipe: Recipe,
    data: TrainData | Sequence[TrainData],
    plan: Plan = Plan(),
    score: Callable[[Recipe], float] | None = None,
    device: str | torch.device | None = None,
) -> History:
    """Train `recipe` through its stages, in place; returns what was recorded. `data` is for every stage, or one each. It
    learns on `device` (CUDA where there is one, else the CPU), and stands afterwards where it stood before.

    With `score` (higher is better, on validation data) the weights of the best scored step are the ones left in the
    recipe; the later of equals wins. With plan.out the run can be stopped at any time and continued by the same call.
    Of two calls at once with one plan.out the later waits, and then finds what the earlier one saved.
    Raises UserError on no data, on a loss that is not finite, and on checkpoints of another configuration.
    """
    distributed.start(runtime.device(device))
    folder = plan.out / "checkpoints" if plan.out and distributed.rank() == 0 else None
    with checkpoint.alone(folder) if folder else nullcontext():
        return _fit(recipe, data, plan, score, device)


def _fit(
    recipe: Recipe,
    data: TrainData | Sequence[TrainData],
    plan: Plan,
    score: Callable[[Recipe], float] | None,
    device: str | torch.device | None,
) -> History:
    whole_number("parts", plan.parts)
    each = by_stage(recipe, data)
    if (few := min(len(one) for one in each)) < 2:
        raise UserError(f"{few} training pairs are too few: a contrast needs at least 2.")
    on, here = runtime.device(device), runtime.where(recipe)
    accelerator = _accelerator(recipe, plan, on)
    torch.manual_seed(
        plan.seed + 1_000_003 * distributed.rank()
    )  # what is drawn in training, such as dropout, is each one's own
    history = History()
    folder = plan.out / "checkpoints" if plan.out else None
    key = _key(recipe, each, plan)
    start_stage, start_step, saved = 0, 0, checkpoint.latest(folder) if folder else None
    if saved:
        check_same(folder, saved.state.get(KEY) or {}, key)
        start_stage, start_step = saved.state["stage"], saved.state["stage_step"]
        history = History(
            saved.state["losses"],
            [tuple(s) for s in saved.state["scores"]],
            saved.state["kept_step"],
            saved.state["seconds"],
        )
        recipe.load_state_dict(saved.tensors["weights"])
    began = time.perf_counter() - history.seconds
    sharded = plan.shard and distributed.world() > 1
    if sharded:
        sharding.check(recipe, accelerator.mixed_precision)
    home = torch.device("cpu") if sharded else accelerator.device
    recipe.to(home)
    batch = getattr(getattr(recipe, "options", None), "batch", 2)
    if recipe.compares and batch < 2:
        raise UserError(
            f"batch={batch}: {recipe.name!r} compares the examples of a batch with each other, so it needs 2."
        )
    for stage in recipe.stages():
        gradcache.check(recipe, min(stage.batch, *map(len, each)), plan.parts)
    best = {k: v.to(home) for k, v in saved.tensors["best"].items()} if saved and "best" in saved.tensors else None
    done = sum(stage.steps for stage in recipe.stages()[:start_stage]) + start_step
    total = sum(stage.steps for stage in recipe.stages())
    bar = tqdm(
        total=total,
        initial=done,
        desc=plan.label or recipe.name,
        disable=not plan.progress or runtime.quiet() or distributed.rank() > 0,
        leave=False,
    )
    for number, stage in enumerate(recipe.stages()):
        if number < start_stage:
            continue
        learning = freeze_all_but(recipe, stage.learns)
        # Fused: one pass over the weights, a quarter of the time of the default on a CPU.
        betas = (0.9, stage.beta2)
        objective = sharding.split(recipe, accelerator.device) if sharded else gradcache.Objective(recipe)
        groups = _groups(objective.recipe, stage)
        if sharded:
            learning = [p for p in objective.parameters() if p.requires_grad]
            groups = sharding.groups_apart(groups)
        optimizer = torch.optim.AdamW(groups, lr=stage.lr, betas=betas, weight_decay=stage.weight_decay, fused=True)
        model = accelerator.prepare_model(objective, device_placement=not sharded, evaluation_mode=sharded)
        optimizer = accelerator.prepare(optimizer)
        first = start_step if number == start_stage else 0
        if saved and number == start_stage:
            distributed.set_random_state(saved.tensors["random"], accelerator.device)
            if first:
                checkpoint.unpack_optimizer(optimizer.optimizer, saved.tensors["optimizer"])
                sharding.scatter(optimizer.optimizer)
        for step in range(first, stage.steps):
            objective.train()
            indices = batch_indices(len(each[number]), stage.batch, plan.seed, number, step)
            batches = gradcache.shares(each[number], indices, plan.parts, accelerator.device)
            for group in optimizer.param_groups:
                group["lr"] = group["times"] * learning_rate(stage, step)
            optimizer.zero_grad(set_to_none=True)
            try:
                value = gradcache.backward(accelerator, model, objective.recipe, batches)
            except torch.OutOfMemoryError as error:
                raise UserError(
                    f"The GPU's memory ran out at step {done + 1} of {total}, with {len(indices)} examples in {plan.parts} parts: "
                    f"take parts={2 * plan.parts} (--parts), or a smaller batch (now {stage.batch})."
                ) from error
            if not math.isfinite(value):
                raise UserError(
                    f"The loss became {value} at step {done + 1} of {total}; lower lr (now {stage.lr:g}) or check the features."
                )
            if sharded:
                sharding.finish(learning, stage.clip)
            elif stage.clip:
                accelerator.clip_grad_norm_(learning, stage.clip)
            optimizer.step()
            recipe.stepped()
            done += 1
            history.losses.append(value)
            if plan.track:
                accelerator.log({"loss": value, "rate": learning_rate(stage, step)}, step=done)
            history.kept_step = history.kept_step if score else done
            last = step + 1 == stage.steps
            scores, saves = score and ((step + 1) % plan.score_every == 0 or last), (step + 1) % plan.save_every == 0
            if sharded and (scores or saves or last):
                sharding.collect(objective, recipe)
            if score and scores:
                recipe.to(accelerator.device).eval()
                history.scores.append((done, float(score(recipe))))
                recipe.to(home)
                if plan.track:
                    accelerator.log({"score": history.scores[-1][1]}, step=done)
                if history.scores[-1][1] >= max(s for _, s in history.scores):
                    best = {k: v.detach().clone() for k, v in recipe.state_dict().items()}
                    history.kept_step = done
            history.seconds = time.perf_counter() - began
            if folder and (saves or last):
                _save(
                    folder,
                    recipe,
                    optimizer,
                    accelerator.device,
                    best,
                    history,
                    key,
                    done,
                    number + last,
                    0 if last else step + 1,
                )
            bar.update()
    bar.close()
    if plan.track:
        accelerator.end_training()
    if best is not None:
        recipe.load_state_dict(best)
    recipe.to(here).eval()
    return history


def check_plan_words(precision: str, track: str) -> None:
    """Raises UserError for a precision or a tracker nobody knows."""
    if precision not in PRECISIONS:
        raise runtime.unknown("precision", precision, [p for p in PRECISIONS if p])
    if track not in TRACKERS:
        raise runtime.unknown("tracker", track, [t for t in TRACKERS if t])


def _accelerator(recipe: Recipe, plan: Plan, on: torch.device) -> Accelerator:
    """Accelerate as the plan and the launcher want it. UserError for a precision or a tracker that is not here."""
    check_plan_words(plan.precision, plan.track)
    if plan.track and not (plan.out and find_spec(plan.track)):
        raise UserError(
            f"track={plan.track!r} needs a folder to write to (out) and the package: pip install {plan.track}."
        )
    wanted = precision_of(plan.precision)
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != wanted:
        AcceleratorState._reset_state()  # else the precision of an earlier run of this process would stay
    if on.type == "cpu" and wanted == "fp16":
        raise UserError("float16 needs a GPU: take precision='no', or 'bf16'.")
    unused = DistributedDataParallelKwargs(find_unused_parameters=recipe.idle)
    found = Accelerator(
        cpu=on.type == "cpu", mixed_precision=wanted, kwargs_handlers=[unused],
        log_with=plan.track or None, project_dir=plan.out,
    )  # fmt: skip
    if found.distributed_type == DistributedType.FSDP:
        raise UserError(
            "Weights are sharded by a way of our own: launch with --multi_gpu in place of --use_fsdp, and add --shard."
        )
    if plan.track:
        found.init_trackers("mpm_lite", {"label": plan.label, "seed": plan.seed})
    return found


def precision_of(asked: str) -> str:
    """The precision of matrix products: the one asked for, else what the launcher says, else "no"."""
    return asked or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")


def _key(recipe: Recipe, each: Sequence[TrainData], plan: Plan) -> Key:
    """Everything that decides the weights, so that a run is never continued as another."""
    options: Any = getattr(recipe, "options", None)
    precision = precision_of(plan.precision)
    described = {
        "recipe": recipe.name,
        "options": asdict(options) if options is not None else None,
        "stages": [asdict(stage) for stage in recipe.stages()],
        "shapes": {k: list(v.shape) for k, v in recipe.state_dict().items()},
        "data": [[len(data), getattr(data, "digest", "")] for data in each],
        # Sharded, the optimizer numbers its tensors otherwise.
        "plan": [plan.seed, plan.score_every, *(["sharded"] if plan.shard and distributed.world() > 1 else [])],
        **plan.also,
        **({} if precision == "no" else {"precision": precision}),
    }
    return Key("checkpoints of a training run", {k: json.dumps(v, sort_keys=True) for k, v in described.items()})


def _save(
    folder: Path,
    recipe: Recipe,
    optimizer: Any,
    on: torch.device,
    best: dict[str, Tensor] | None,
    history: History,
    key: Key,
    done: int,
    stage: int,
    stage_step: int,
) -> None:
    tensors = {
        "weights": {k: v.detach().cpu() for k, v in recipe.state_dict().items()},
        "optimizer": {k: sharding.whole(v).cpu() for k, v in sorted(checkpoint.pack_optimizer(optimizer).items())},
        "random": distributed.random_state(on),
    }
    if best is not None:
        tensors["best"] = {k: v.cpu() for k, v in best.items()}
    state = {
        KEY: key.describe(),
        "stage": stage,
        "stage_step": stage_step,
        "losses": history.losses,
        "scores": history.scores,
        "kept_step": history.kept_step,
        "seconds": history.seconds,
    }
    if distributed.rank() == 0:
        checkpoint.save_checkpoint(folder, checkpoint.Checkpoint(done, tensors, state))
