"""The one training loop, on Accelerate: stages, freezing, selection on validation data, checkpoints and resuming.

Which examples a step sees depends on (seed, stage, step) alone, and so does the learning rate. A checkpoint holds the weights,
the optimizer's state and the random state, so that a run that was killed continues bit for bit. If `accelerate launch` starts
several processes, each computes its share of every batch; see `gradcache.py`.
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
    """What a run recorded: losses, validation scores with their steps, the step whose weights were kept, and seconds of training.

    If a run was stopped and resumed, the seconds of all its parts are added up, as far as they were saved.
    """

    losses: list[float] = field(default_factory=list)
    scores: list[tuple[int, float]] = field(default_factory=list)
    kept_step: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Plan:
    """How to run, beside what the recipe says: the seed, how to save, how to select, what to show."""

    seed: int = 0
    out: Path | None = None  # checkpoints go to out/checkpoints; None keeps the run in memory
    save_every: int = 100
    score_every: int = 50  # every so many steps, `score` is called on validation data
    progress: bool = True
    label: str = ""
    parts: int = 1  # compute a process's share of a batch in so many parts: the same gradient, with less memory
    track: str = ""  # "tensorboard" or "wandb": log losses, rates and scores as they come, under `out`
    shard: bool = False  # share out weights and AdamW's state among the processes (FSDP); see `sharding.py`
    precision: str = ""  # of matrix products: "no", "bf16" or "fp16"; "" means what the launcher says, else "no"
    # What else decides the weights, such as what `score` looks at.
    also: Mapping[str, str] = field(default_factory=dict)


def batch_indices(n: int, batch: int, seed: int, stage: int, step: int) -> Tensor:
    """The numbers of the examples of one step, int64 (batch,). An epoch is a seeded permutation; its ragged end is left out."""
    batch = min(batch, n)
    per_epoch = n // batch
    epoch, place = divmod(step, per_epoch)
    order = torch.randperm(n, generator=torch.Generator().manual_seed((seed * 1_009 + stage) * 1_000_003 + epoch))
    return order[place * batch : (place + 1) * batch]


def learning_rate(stage: Stage, step: int) -> float:
    """The rate climbs linearly during the warm-up, then falls along a cosine that would reach `final` times lr one step after
    the last."""
    climb = max(1, round(stage.warmup * stage.steps))
    if step < climb:
        return stage.lr * (step + 1) / climb
    down = 0.5 * (1 - math.cos(math.pi * (step - climb) / max(1, stage.steps - climb)))  # from 0 to 1
    return stage.lr * (1 - (1 - stage.final) * down)


def freeze_all_but(recipe: Recipe, learns: tuple[str, ...]) -> list[Tensor]:
    """Turn on gradients for the named submodules or parameters and off for all others. Returns the parameters that learn.

    Raises UserError if a stage names something that the recipe does not have.
    """
    parameters = dict(recipe.named_parameters())
    for wanted in learns:
        if not any(within(name, wanted) for name in parameters):
            raise UserError(f"Stage trains {wanted!r}, but {recipe.name!r} has no such part with parameters.")
    for name, parameter in parameters.items():
        parameter.requires_grad_(any(within(name, wanted) for wanted in learns))
    return [parameter for parameter in parameters.values() if parameter.requires_grad]


def _groups(recipe: Recipe, stage: Stage) -> list[dict[str, Any]]:
    """The parameters that learn, as groups of an optimizer: each group has one rate, `times` the stage's.

    Raises UserError if `faster` names something that does not learn.
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
    """The set of data for each stage, from one set for all or a list with one for each. Raises UserError for any other number."""
    stages = len(recipe.stages())
    each = list(data) if isinstance(data, (list, tuple)) else [data] * stages
    if len(each) != stages:
        raise UserError(f"{recipe.name!r} has {stages} stages, but there are {len(each)} sets of data.")
    return each


def fit(
    recipe: Recipe, data: TrainData | Sequence[TrainData], plan: Plan = Plan(),
    score: Callable[[Recipe], float] | None = None, device: str | torch.device | None = None,
) -> History:  # fmt: skip
    """Train `recipe` through its stages, in place, and return what was recorded. `data` serves every stage, or is a list with
    one set for each. Training runs on `device` (CUDA where there is one, else the CPU); afterwards the recipe is back on the
    device where it was before.

    With `score` (higher is better, on validation data) the recipe is left with the weights of its best-scored step; of
    equal scores the later one wins. With plan.out the run can be stopped at any time, and the same call continues it.
    If two calls run at once with the same plan.out, the later one waits, and then finds what the earlier one saved.
    Raises UserError if there is no data, if a loss is not finite, and if the checkpoints belong to another configuration.
    """
    on = runtime.device(device)
    distributed.join_processes(on)
    folder = plan.out / "checkpoints" if plan.out else None
    with checkpoint.lock_folder(folder) if folder and distributed.rank() == 0 else nullcontext():
        run = _Run(recipe, by_stage(recipe, data), plan, folder, on)
        for number, stage in enumerate(recipe.stages()):
            if number < run.stage:  # finished before the run was stopped
                continue
            for step in range(run.begin(number, stage), stage.steps):
                run.update(number, stage, step)
                last = step + 1 == stage.steps
                scores = score is not None and ((step + 1) % plan.score_every == 0 or last)
                saves = (step + 1) % plan.save_every == 0 or last
                if run.sharded and (scores or saves):
                    sharding.gather_weights(run.objective, recipe)
                if scores:
                    run.validate(score)
                elif score is None:
                    run.history.kept_step = run.done
                if saves:
                    run.save(*((number + 1, 0) if last else (number, step + 1)))
                run.bar.update()
        return run.end()


class _Run:
    """One call of `fit`: the recipe with its devices and optimizer, what was recorded so far, and where to go on."""

    def __init__(
        self, recipe: Recipe, data: Sequence[TrainData], plan: Plan, folder: Path | None, on: torch.device
    ) -> None:
        """Check that the recipe can learn from its data as the plan says, and read what an earlier run saved."""
        self.recipe, self.data, self.plan, self.folder = recipe, data, plan, folder
        self.history, self.stage, self.done = History(), 0, 0
        _check_data(recipe, data, whole_number("parts", plan.parts))
        self.accelerator = _accelerator(recipe, plan, on)
        self.device, self.came_from = self.accelerator.device, runtime.device_of(recipe)
        # Random draws in training, such as dropout, differ between processes.
        torch.manual_seed(plan.seed + 1_000_003 * distributed.rank())
        self.key = _key(recipe, data, plan)
        self.saved = checkpoint.read_latest(folder) if folder else None
        if self.saved:
            self._read(self.saved)
        self.began = time.perf_counter() - self.history.seconds
        self.sharded = plan.shard and distributed.count_processes() > 1
        if self.sharded:
            sharding.check_shardable(recipe, self.accelerator.mixed_precision)
        # Sharded, a copy is trained on the device, and the recipe itself waits on the CPU.
        self.home = torch.device("cpu") if self.sharded else self.device
        recipe.to(self.home)
        best = self.saved.tensors.get("best") if self.saved else None
        self.best = {k: v.to(self.home) for k, v in best.items()} if best is not None else None
        self.total = sum(stage.steps for stage in recipe.stages())
        hidden = not plan.progress or runtime.quiet() or distributed.rank() > 0
        label = plan.label or recipe.name
        self.bar = tqdm(total=self.total, initial=self.done, desc=label, disable=hidden, leave=False)

    def _read(self, saved: checkpoint.Checkpoint) -> None:
        """Go on from a checkpoint. Raises UserError if it belongs to another configuration."""
        state = saved.state
        check_same(self.folder, state.get(KEY) or {}, self.key)
        scores = [(step, score) for step, score in state["scores"]]
        self.history = History(state["losses"], scores, state["kept_step"], state["seconds"])
        self.recipe.load_state_dict(saved.tensors["weights"])
        self.stage = state["stage"]
        self.done = sum(stage.steps for stage in self.recipe.stages()[: self.stage]) + state["stage_step"]

    def begin(self, number: int, stage: Stage) -> int:
        """Set up a stage: decide what learns, and make an optimizer for it. Returns the step to begin with."""
        self.learning = freeze_all_but(self.recipe, stage.learns)
        if self.sharded:
            self.objective = sharding.shard_recipe(self.recipe, self.device)
            self.learning = [p for p in self.objective.parameters() if p.requires_grad]
            groups = sharding.groups_apart(_groups(self.objective.recipe, stage))
        else:
            self.objective = gradcache.Objective(self.recipe)
            groups = _groups(self.recipe, stage)
        # Fused: one pass over the weights, which on a CPU takes a quarter of the default's time.
        how = {"betas": (0.9, stage.beta2), "weight_decay": stage.weight_decay, "fused": True}
        # What does not learn has no dropout, and no statistics of batches, in training either.
        rests = lambda part: not any(p.requires_grad for p in part.parameters())  # noqa: E731
        self.frozen = [
            part for part in self.objective.modules() if any(True for _ in part.parameters()) and rests(part)
        ]
        self.stage_began = sum(one.steps for one in self.recipe.stages()[:number])
        self.model = self.accelerator.prepare_model(
            self.objective, device_placement=not self.sharded, evaluation_mode=self.sharded
        )
        self.optimizer = self.accelerator.prepare(torch.optim.AdamW(groups, lr=stage.lr, **how))
        if not self.saved or number != self.stage:
            return 0
        distributed.set_random_state(self.saved.tensors["random"], self.device)
        if first := self.saved.state["stage_step"]:
            checkpoint.unpack_optimizer(self.optimizer.optimizer, self.saved.tensors["optimizer"])
            sharding.scatter_state(self.optimizer.optimizer)
        return first

    def update(self, number: int, stage: Stage, step: int) -> None:
        """One step of training: the gradient of a batch, clipped, and AdamW's step at that step's rate."""
        self.objective.train()
        for part in self.frozen:
            part.eval()
        indices = batch_indices(len(self.data[number]), stage.batch, self.plan.seed, number, step)
        batches = gradcache.share_batch(self.data[number], indices, self.plan.parts, self.device)
        rate = learning_rate(stage, step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["times"] * rate
        self.optimizer.zero_grad(set_to_none=True)
        place = f"at step {self.done + 1} of {self.total}"
        try:
            loss = gradcache.backward(self.accelerator, self.model, self.objective.recipe, batches)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"The GPU's memory ran out {place}, with {len(indices)} examples in {self.plan.parts} parts: "
                f"take parts={2 * self.plan.parts} (--parts), or a smaller batch (now {stage.batch})."
            ) from error
        if not math.isfinite(loss):
            raise UserError(f"The loss became {loss} {place}; lower lr (now {stage.lr:g}) or check the features.")
        if self.sharded:
            sharding.finish_gradients(self.learning, stage.clip)
        elif stage.clip:
            self.accelerator.clip_grad_norm_(self.learning, stage.clip)
        self.optimizer.step()
        self.recipe.stepped()
        self.done += 1
        self.history.losses.append(loss)
        self._track({"loss": loss, "rate": rate})

    def validate(self, score: Callable[[Recipe], float]) -> None:
        """Score the recipe, and remember its weights if no earlier step of this stage was better."""
        self.recipe.to(self.device).eval()
        found = float(score(self.recipe))
        self.recipe.to(self.home)
        self.history.scores.append((self.done, found))
        self._track({"score": found})
        if found >= max(s for step, s in self.history.scores if step > self.stage_began):
            self.best = {k: v.detach().clone() for k, v in self.recipe.state_dict().items()}
            self.history.kept_step = self.done

    def save(self, stage: int, step: int) -> None:
        """Write a checkpoint, if the plan wants any; a run that reads it goes on at that stage and step."""
        self.history.seconds = time.perf_counter() - self.began
        if not self.folder:
            return
        optimizer = checkpoint.pack_optimizer(self.optimizer)
        tensors = {
            "weights": {k: v.detach().cpu() for k, v in self.recipe.state_dict().items()},
            "optimizer": {k: sharding.gather_tensor(v).cpu() for k, v in sorted(optimizer.items())},
            "random": distributed.random_state(self.device),
        }
        if self.best is not None:
            tensors["best"] = {k: v.cpu() for k, v in self.best.items()}
        state = {KEY: self.key.describe(), "stage": stage, "stage_step": step} | vars(self.history)
        if distributed.rank() == 0:
            checkpoint.save_checkpoint(self.folder, checkpoint.Checkpoint(self.done, tensors, state))

    def end(self) -> History:
        """Leave the recipe with its best weights, where it was before."""
        self.bar.close()
        if self.plan.track:
            self.accelerator.end_training()
        if self.best is not None:
            self.recipe.load_state_dict(self.best)
        self.recipe.to(self.came_from).eval()
        return self.history

    def _track(self, values: dict[str, float]) -> None:
        if self.plan.track:
            self.accelerator.log(values, step=self.done)


def _check_data(recipe: Recipe, data: Sequence[TrainData], parts: int) -> None:
    """Raises UserError where there are too few examples, or a batch cannot be shared out among processes and parts."""
    few = min(map(len, data))
    if few < 2:
        raise UserError(f"{few} training pairs are too few: a contrast needs at least 2.")
    batch = getattr(getattr(recipe, "options", None), "batch", 2)
    if recipe.compares and batch < 2:
        raise UserError(
            f"batch={batch}: {recipe.name!r} compares the examples of a batch with each other, so it needs 2."
        )
    for stage in recipe.stages():
        gradcache.check_batch(recipe, min(stage.batch, few), parts)


def check_plan_words(precision: str, track: str) -> None:
    """Raises UserError for a precision or a tracker that nobody knows."""
    if precision not in PRECISIONS:
        raise runtime.unknown("precision", precision, [p for p in PRECISIONS if p])
    if track not in TRACKERS:
        raise runtime.unknown("tracker", track, [t for t in TRACKERS if t])


def _accelerator(recipe: Recipe, plan: Plan, on: torch.device) -> Accelerator:
    """Accelerate, set up as the plan and the launcher ask. Raises UserError for a precision or tracker that is missing here."""
    check_plan_words(plan.precision, plan.track)
    if plan.track and not (plan.out and find_spec(plan.track)):
        raise UserError(
            f"track={plan.track!r} needs a folder to write to (out) and the package: pip install {plan.track}."
        )
    wanted = precision_of(plan.precision)
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != wanted:
        AcceleratorState._reset_state()  # otherwise the precision of an earlier run in this process would stay
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
    """A key of everything that decides the weights, so that a run is never continued as a different one."""
    options: Any = getattr(recipe, "options", None)
    precision = precision_of(plan.precision)
    described = {
        "recipe": recipe.name,
        "options": asdict(options) if options is not None else None,
        "stages": [asdict(stage) for stage in recipe.stages()],
        "shapes": {k: list(v.shape) for k, v in recipe.state_dict().items()},
        "data": [[len(data), getattr(data, "digest", "")] for data in each],
        # In a sharded run, the optimizer numbers its tensors differently.
        "plan": [plan.seed, plan.score_every, *["sharded"] * (plan.shard and distributed.count_processes() > 1)],
        **plan.also,
        **({} if precision == "no" else {"precision": precision}),
    }
    return Key("checkpoints of a training run", {k: json.dumps(v, sort_keys=True) for k, v in described.items()})
