"""Several processes, or a batch in parts, learn what one process learns of the whole batch: to rounding, in float64."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from worlds import small_recipe

from mpm_lite import checkpoint, parts, shards, train
from mpm_lite.recipes import Recipe
from mpm_lite.runtime import UserError

HERE = Path(__file__).parent
KINDS = ("align", "dual", "chat")


def trained(out, processes=1, in_parts=1, shard="whole"):
    """What across_run.py writes, started so many times as a launcher would."""
    out.mkdir()
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(processes):
        env = os.environ | {"PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1", "MPM_LITE_QUIET": "1"}
        if processes > 1:
            env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "MASTER_PORT": str(port),
                    "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "localhost", "ACCELERATE_USE_CPU": "true"}  # fmt: skip
        call = [sys.executable, str(HERE / "across_run.py"), str(in_parts), shard, str(out)]
        started.append(subprocess.Popen(call, env=env, stderr=subprocess.PIPE, text=True))
    said = [one.communicate(timeout=280)[1] for one in started]
    assert all(one.returncode == 0 for one in started), said
    return load_file(out / "found.safetensors")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("across") / "alone")


def apart(a, b, what):
    """The largest difference of two runs' tensors whose names begin so, over the largest of their values."""
    names = [k for k in a if k.startswith(what)]
    assert names and all(k in b for k in names)
    return max(float((a[k] - b[k]).abs().max()) for k in names) / max(float(a[k].abs().max()) for k in names)


@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_learn_what_one_does(alone, tmp_path, processes):
    several = trained(tmp_path / "several", processes)
    for kind in KINDS:
        assert apart(alone, several, f"{kind} 1 grad") < 1e-12
        assert apart(alone, several, f"{kind} 50 weight") < 1e-6
        assert apart(alone, several, f"{kind} 50 losses") < 1e-6
    folder = tmp_path / "several/chat-50-run/checkpoints"
    assert {"cpu", *(f"cpu-{r}" for r in range(1, processes))} == set(checkpoint.latest(folder).tensors["random"])


@pytest.mark.parametrize(("processes", "in_parts"), [(1, 4), (2, 2)])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(alone, tmp_path, processes, in_parts):
    several = trained(tmp_path / "parts", processes, in_parts)
    for kind in KINDS:
        assert apart(alone, several, f"{kind} 1 grad") < 1e-12
        assert apart(alone, several, f"{kind} 1 losses") < 1e-12


@pytest.mark.parametrize(("processes", "in_parts"), [(2, 1), (4, 1), (2, 2)])
def test_weights_in_shards_learn_what_whole_ones_do(alone, tmp_path, processes, in_parts):
    several = trained(tmp_path / "shards", processes, in_parts, "shard")
    for kind in KINDS:
        assert apart(alone, several, f"{kind} 1 grad") < 1e-12
        assert {k for k in alone if k.startswith(f"{kind} 1 grad")} == {
            k for k in several if k.startswith(f"{kind} 1 grad")
        }
        if in_parts == 1:
            assert apart(alone, several, f"{kind} 50 weight") < 1e-6
            assert apart(alone, several, f"{kind} 50 losses") < 1e-6
    assert in_parts > 1 or several["resumed"] == 1


def test_parts_of_a_contrast_are_not_contrasts_of_parts():
    """The control: what GradCache is for. InfoNCE within each part is another objective."""
    recipe, data = small_recipe(dropout=0.0)
    with torch.no_grad():
        whole = recipe.loss(data.batch(torch.arange(16)))
        alone = [recipe.loss(data.batch(few)) for few in torch.arange(16).chunk(4)]
    assert float(whole) > 1.2 * float(torch.stack(alone).mean())


def test_dropout_in_parts_is_drawn_once():
    """A part's features are computed twice and must be the same features."""
    losses = []
    for count in (1, 4):
        recipe, data = small_recipe(dropout=0.5, steps=3)
        losses.append(train.fit(recipe, data, train.Plan(progress=False, parts=count)).losses)
    assert all(torch.isfinite(torch.tensor(of)).all() for of in losses)
    recipe, data = small_recipe(dropout=0.5, steps=3)
    again = train.fit(recipe, data, train.Plan(progress=False, parts=4)).losses
    assert again == losses[1]


def test_what_cannot_be_shared_out_is_one_sentence():
    recipe, data = small_recipe(batch=16)
    with pytest.raises(UserError, match="multiple of 3"):
        train.fit(recipe, data, train.Plan(progress=False, parts=3))

    class Whole(Recipe):
        name, compares = "whole", True

    with pytest.raises(UserError, match=r"no features\(\): set parts=1"):
        parts.check(Whole(), 16, 2)
    with pytest.raises(UserError, match="Did you mean 'bf16'"):
        train.fit(recipe, data, train.Plan(progress=False, precision="bf61"))


def test_what_cannot_be_sharded_is_one_sentence():
    recipe, _ = small_recipe()
    shards.check(recipe, "bf16")
    with pytest.raises(UserError, match="bf16"):
        shards.check(recipe, "fp16")

    class Idle(Recipe):
        name = "idle"

    class Averaged(Recipe):
        name, idle = "averaged", False

        def stepped(self):
            pass

    with pytest.raises(UserError, match="leave out --shard"):
        shards.check(Idle(), "no")
    with pytest.raises(UserError, match="after each step"):
        shards.check(Averaged(), "no")


@pytest.mark.parametrize("count", [1, 2, 8])
def test_the_launch_files_are_what_accelerate_reads(count):
    from accelerate.commands.config.config_args import load_config_from_file

    found = load_config_from_file(str(HERE.parent / f"assets/launch/gpu-{count}.yaml"))
    assert found.num_processes == count and found.mixed_precision == "bf16" and not found.use_cpu
    assert str(found.distributed_type).endswith("MULTI_GPU" if count > 1 else "NO")
