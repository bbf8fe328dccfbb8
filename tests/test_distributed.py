"""Several processes, or a batch in parts, learn what one process learns of the whole batch: to rounding, in float64."""

import socket
from pathlib import Path

import across_run
import pytest
import torch
from across_run import STEPS
from processes import ended, start
from safetensors.torch import load_file
from worlds import small_recipe

from mpm_lite.core.runtime import UserError
from mpm_lite.recipes import Recipe
from mpm_lite.training import checkpoint, gradcache, loop, sharding

HERE = Path(__file__).parent
KINDS = ("align", "dual", "chat")
FEW = ("align",)  # what four processes learn: they share two cores, and two processes learn all kinds


def trained(out, processes=1, in_parts=1, shard=False, kinds=KINDS):
    """What across_run.py writes, started so many times as a launcher would."""
    out.mkdir()
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(processes):
        env = {"MPM_LITE_QUIET": "1"}
        if processes > 1:
            env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "MASTER_PORT": str(port),
                    "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "localhost", "ACCELERATE_USE_CPU": "true"}  # fmt: skip
        started.append(start(across_run.main, in_parts, shard, out, kinds, said=out / f"said-{rank}", **env))
    ends = [ended(one) for one in started]
    assert not any(ends), [(out / f"said-{rank}").read_text() for rank in range(processes)]
    return load_file(out / "found.safetensors")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("across") / "alone", kinds=(*KINDS, "blip2"))


def apart(a, b, what):
    """The largest difference of two runs' tensors whose names begin so, over the largest of their values."""
    names = [k for k in a if k.startswith(what)]
    assert names and all(k in b for k in names)
    return max(float((a[k] - b[k]).abs().max()) for k in names) / max(float(a[k].abs().max()) for k in names)


@pytest.mark.parametrize(("processes", "kinds"), [(2, ("blip2", *KINDS)), (4, FEW)])
def test_several_processes_learn_what_one_does(alone, tmp_path, processes, kinds):
    several = trained(tmp_path / "several", processes, kinds=kinds)
    for kind in kinds:
        assert apart(alone, several, f"{kind} 1 grad") < 1e-12
        assert apart(alone, several, f"{kind} {STEPS} weight") < 1e-6
        assert apart(alone, several, f"{kind} {STEPS} losses") < 1e-6
    folder = tmp_path / f"several/{kinds[-1]}-{STEPS}-run/checkpoints"
    assert {"cpu", *(f"cpu-{r}" for r in range(1, processes))} == set(checkpoint.read_latest(folder).tensors["random"])


@pytest.mark.parametrize(("processes", "in_parts"), [(1, 4), (2, 2)])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(alone, tmp_path, processes, in_parts):
    several = trained(tmp_path / "parts", processes, in_parts)
    for kind in KINDS:
        assert apart(alone, several, f"{kind} 1 grad") < 1e-12
        assert apart(alone, several, f"{kind} 1 losses") < 1e-12


@pytest.mark.parametrize(("processes", "in_parts", "kinds"), [(2, 1, KINDS), (4, 1, FEW), (2, 2, KINDS)])
def test_weights_in_shards_learn_what_whole_ones_do(alone, tmp_path, processes, in_parts, kinds):
    several = trained(tmp_path / "shards", processes, in_parts, shard=True, kinds=kinds)
    for kind in kinds:
        assert apart(alone, several, f"{kind} 1 grad") < 1e-12
        assert {k for k in alone if k.startswith(f"{kind} 1 grad")} == {
            k for k in several if k.startswith(f"{kind} 1 grad")
        }
        if in_parts == 1:
            assert apart(alone, several, f"{kind} {STEPS} weight") < 1e-6
            assert apart(alone, several, f"{kind} {STEPS} losses") < 1e-6
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
        losses.append(loop.fit(recipe, data, loop.Plan(progress=False, parts=count)).losses)
    assert all(torch.isfinite(torch.tensor(of)).all() for of in losses)
    recipe, data = small_recipe(dropout=0.5, steps=3)
    again = loop.fit(recipe, data, loop.Plan(progress=False, parts=4)).losses
    assert again == losses[1]


def test_what_cannot_be_shared_out_is_one_sentence():
    recipe, data = small_recipe(batch=16)
    with pytest.raises(UserError, match="multiple of 3"):
        loop.fit(recipe, data, loop.Plan(progress=False, parts=3))

    class Whole(Recipe):
        name, compares = "whole", True

    with pytest.raises(UserError, match=r"no features\(\): set parts=1"):
        gradcache.check_batch(Whole(), 16, 2)
    with pytest.raises(UserError, match="Did you mean 'bf16'"):
        loop.fit(recipe, data, loop.Plan(progress=False, precision="bf61"))


def test_what_cannot_be_sharded_is_one_sentence():
    recipe, _ = small_recipe()
    sharding.check_shardable(recipe, "bf16")
    with pytest.raises(UserError, match="bf16"):
        sharding.check_shardable(recipe, "fp16")

    class Idle(Recipe):
        name = "idle"

    class Averaged(Recipe):
        name, idle = "averaged", False

        def stepped(self):
            pass

    with pytest.raises(UserError, match="leave out --shard"):
        sharding.check_shardable(Idle(), "no")
    with pytest.raises(UserError, match="after each step"):
        sharding.check_shardable(Averaged(), "no")


@pytest.mark.parametrize("count", [1, 2, 8])
def test_the_launch_files_are_what_accelerate_reads(count):
    from accelerate.commands.config.config_args import load_config_from_file

    found = load_config_from_file(str(HERE.parent / f"assets/launch/gpu-{count}.yaml"))
    assert found.num_processes == count and found.mixed_precision == "bf16" and not found.use_cpu
    assert str(found.distributed_type).endswith("MULTI_GPU" if count > 1 else "NO")


def test_a_simulation_of_several_cards_is_arithmetic():
    """Eight cards share eight times as many rows out and compute each direction apart: a quarter of the time of one."""
    from mpm_lite.ops import distributed

    one = distributed.simulate(32_768, 1, 512, 1e-8, float("inf"))
    eight = distributed.simulate(32_768, 8, 512, 1e-8, 450)
    assert one["send_ms"] == 0 and one["compute_ms"] == pytest.approx(1e-8 * 32_768**2)
    assert eight["compute_ms"] == pytest.approx(one["compute_ms"] / 4)
    assert eight["sent_gb"] == pytest.approx(4 * 32_768 * 512 * 2e-9 * 7 / 8)  # two sides, there and back
    assert eight["send_ms"] == pytest.approx(1e3 * eight["sent_gb"] / 450)
    assert eight["together_ms"] < eight["apart_ms"] == eight["compute_ms"] + eight["send_ms"]
