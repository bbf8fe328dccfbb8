"""The loop learns, freezes what it should, and a run that was killed ends where an uninterrupted one ends, bit for bit."""

import json
import os
import resource
import signal
import threading
from dataclasses import replace

import killed_run
import pytest
import torch
from processes import ended, start
from safetensors.torch import load_file, save_file
from worlds import Pairs, small_recipe

from mpm_lite.core.runtime import UserError
from mpm_lite.recipes import Align, Recipe, Stage
from mpm_lite.training import checkpoint, loop


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_it_learns_and_only_what_the_stage_names():
    recipe, data = small_recipe(lr=0.02, dropout=0.0)
    recipe.frozen_part = torch.nn.Linear(2, 2)
    before = recipe.frozen_part.weight.clone()
    history = loop.fit(recipe, data, loop.Plan(progress=False))
    assert sum(history.losses[-5:]) < 0.7 * sum(history.losses[:5])
    assert torch.equal(before, recipe.frozen_part.weight) and not recipe.frozen_part.weight.requires_grad


def test_same_seed_same_weights_other_seed_other_weights():
    states = []
    for seed in (0, 0, 1):
        recipe, data = small_recipe()
        loop.fit(recipe, data, loop.Plan(seed=seed, progress=False))
        states.append(recipe.state_dict())
    assert same(states[0], states[1]) and not same(states[0], states[2])


def test_the_best_scored_weights_are_kept():
    recipe, data = small_recipe()
    scores = iter([0.1, 0.9, 0.3, 0.2])
    seen = {}

    def score(model):
        value = next(scores)
        seen[value] = {k: v.clone() for k, v in model.state_dict().items()}
        return value

    history = loop.fit(recipe, data, loop.Plan(score_every=10, progress=False), score)
    assert history.kept_step == 20 and same(recipe.state_dict(), seen[0.9])


def test_each_stage_reads_its_own_data_at_its_own_rate():
    class Twice(Align):
        def stages(self):
            one = replace(super().stages()[0], steps=6, warmup=0.2)
            return [replace(one, name="first", final=1.0), replace(one, final=0.1)]

    class Seen(Pairs):
        def __init__(self, seen):
            super().__init__()
            self.seen = seen

        def batch(self, indices):
            order.append(self.seen)
            return super().batch(indices)

    order, recipe = [], Twice(20, 12)
    loop.fit(recipe, [Seen(1), Seen(2)], loop.Plan(progress=False))
    assert order == [1] * 6 + [2] * 6
    first, second = recipe.stages()
    assert [loop.learning_rate(first, k) for k in range(6)] == [first.lr] * 6
    rates = [loop.learning_rate(second, k) / second.lr for k in range(7)]
    assert rates == sorted(rates, reverse=True) and rates[-1] == pytest.approx(0.1)
    with pytest.raises(UserError, match="has 2 stages, but there are 1 sets of data"):
        loop.fit(recipe, [Pairs()], loop.Plan(progress=False))


def run_to_the_end(out, die=None):
    """Train with checkpoints in `out`; this process is killed when it asks for batch number `die`."""
    recipe, data = small_recipe(dropout=0.3)
    plain, asked = data.batch, []

    def batch(indices):
        asked.append(1)
        if len(asked) == die:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(indices)

    data.batch = batch
    plan = loop.Plan(out=out, save_every=7, score_every=8, progress=False)
    loop.fit(recipe, data, plan, lambda m: float(m.log_scale))
    save_file(recipe.state_dict(), out / "final.safetensors")


def child(out, die=None):
    out.mkdir(exist_ok=True)
    return ended(start(run_to_the_end, out, die, said=out / "said"), 120)


def test_killed_and_resumed_is_uninterrupted_bit_for_bit(tmp_path):
    assert child(tmp_path / "whole") == 0
    for die in (3, 16, 29):  # before the first checkpoint, between two, late
        assert child(tmp_path / f"cut{die}", die) == -signal.SIGKILL
    for die in (3, 16, 29):
        assert child(tmp_path / f"cut{die}") == 0
        assert same(
            load_file(tmp_path / "whole/final.safetensors"), load_file(tmp_path / f"cut{die}/final.safetensors")
        )


def test_a_damaged_checkpoint_is_passed_over_and_a_half_one_never_read(tmp_path):
    recipe, data = small_recipe()
    loop.fit(recipe, data, loop.Plan(out=tmp_path, save_every=10, progress=False))
    folder = tmp_path / "checkpoints"
    newest, older = sorted(folder.glob("step-*"), key=lambda p: -int(p.name[5:]))
    raw = bytearray((newest / "weights.safetensors").read_bytes())
    raw[-1] ^= 1
    (newest / "weights.safetensors").write_bytes(raw)
    (folder / "step-99.tmp").mkdir()
    assert checkpoint.read_latest(folder).step == int(older.name[5:])
    again, _ = small_recipe()
    loop.fit(again, data, loop.Plan(out=tmp_path, save_every=10, progress=False))
    assert same(recipe.state_dict(), again.state_dict())
    assert not list(folder.glob("*.tmp"))


def test_two_runs_in_one_folder_take_turns(tmp_path):
    (recipe, data), (again, _) = small_recipe(), small_recipe()
    second = threading.Thread(target=loop.fit, args=(again, data, loop.Plan(out=tmp_path, progress=False)))
    with checkpoint.lock_folder(tmp_path / "checkpoints"):
        second.start()
        second.join(0.5)
        assert second.is_alive() and not list(tmp_path.rglob("step-*"))
    second.join()
    loop.fit(recipe, data, loop.Plan(out=tmp_path, progress=False))
    assert same(recipe.state_dict(), again.state_dict())


def test_seconds_add_up_over_the_parts_of_a_run(tmp_path):
    recipe, data = small_recipe()
    first = loop.fit(recipe, data, loop.Plan(out=tmp_path, progress=False))
    again = loop.fit(small_recipe()[0], data, loop.Plan(out=tmp_path, progress=False))
    assert 0 < first.seconds == again.seconds  # nothing was left to do


def test_a_run_is_never_continued_as_another(tmp_path):
    recipe, data = small_recipe()
    loop.fit(recipe, data, loop.Plan(out=tmp_path, progress=False))
    other, _ = small_recipe(lr=0.01)
    with pytest.raises(UserError, match="another configuration"):
        loop.fit(other, data, loop.Plan(out=tmp_path, progress=False))


def test_manifest_names_every_file(tmp_path):
    recipe, data = small_recipe()
    loop.fit(recipe, data, loop.Plan(out=tmp_path, progress=False))
    step = next((tmp_path / "checkpoints").glob("step-*"))
    assert set(json.loads((step / "manifest.json").read_text())) == {p.name for p in step.iterdir()} - {"manifest.json"}


def test_nan_too_few_and_a_missing_part_are_one_sentence():
    recipe, data = small_recipe()
    data.texts[:] = float("nan")
    with pytest.raises(UserError, match="loss became nan"):
        loop.fit(recipe, data, loop.Plan(progress=False))
    with pytest.raises(UserError, match="too few"):
        loop.fit(small_recipe()[0], Pairs(1), loop.Plan(progress=False))

    class Odd(Align):
        def stages(self):
            return [Stage("s", ("nose",), (), "none", 1, 4, 1e-3)]

    with pytest.raises(UserError, match="'nose'"):
        loop.fit(Odd(20, 12), Pairs(), loop.Plan(progress=False))

    class Hasty(Align):
        def stages(self):
            return [replace(super().stages()[0], faster=(("nose", 5.0),))]

    with pytest.raises(UserError, match="'nose' a rate of its own, but no such part"):
        loop.fit(Hasty(20, 12), Pairs(), loop.Plan(progress=False))


def test_a_recipe_without_parts_says_what_to_define():
    for call in (Recipe().stages, lambda: Recipe().loss({}), lambda: Recipe().predict({})):
        with pytest.raises(UserError, match="define"):
            call()


def test_killed_at_twenty_random_points_every_run_reaches_the_same_end(tmp_path):
    said = tmp_path / "said"
    assert ended(start(killed_run.main, 20, tmp_path, said=said)) == 0, said.read_text()
    lines = said.read_text().splitlines()
    assert len(lines) == 20 and all(line.endswith("the same end") for line in lines), lines
    at = {line.partition(":")[0] for line in lines}
    assert "a batch" in at and {"fsync", "replace", "rmtree", "write_bytes"} & at  # in training, and while saving


def test_a_gpu_that_runs_out_of_memory_is_one_sentence_and_what_was_saved_stays(tmp_path):
    recipe, data = small_recipe()
    calls, loss = [], recipe.loss

    def full(batch):
        calls.append(1)
        if len(calls) == 25:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return loss(batch)

    recipe.loss = full
    with pytest.raises(UserError, match=r"ran out at step 25 of 40.* parts=2 .*smaller batch \(now 16\)"):
        loop.fit(recipe, data, loop.Plan(out=tmp_path, save_every=10, progress=False))
    assert checkpoint.read_latest(tmp_path / "checkpoints").step == 20
    whole, _ = small_recipe()
    loop.fit(whole, data, loop.Plan(progress=False))
    again, _ = small_recipe()
    loop.fit(again, data, loop.Plan(out=tmp_path, save_every=10, progress=False))
    assert same(whole.state_dict(), again.state_dict())


def test_precision(tmp_path):
    ends = {}
    for precision in ("", "no", "bf16", ""):
        recipe, data = small_recipe(dropout=0.0)
        losses = loop.fit(recipe, data, loop.Plan(progress=False, precision=precision)).losses
        ends.setdefault(precision, losses)
    assert ends[""] == ends["no"] == losses  # an earlier run's precision does not stay
    assert ends["bf16"] != ends["no"] and abs(ends["bf16"][-1] - ends["no"][-1]) < 0.1
    with pytest.raises(UserError, match="float16 needs a GPU"):
        loop.fit(recipe, data, loop.Plan(progress=False, precision="fp16"), device="cpu")


def run_on_a_disk_that_fills(out):
    """Train; from batch 15 on no file may grow beyond two kilobytes, as on a disk that is full."""
    recipe, data = small_recipe()
    plain, asked = data.batch, []

    def batch(indices):
        asked.append(1)
        if len(asked) == 15:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (2048, resource.RLIM_INFINITY))
        return plain(indices)

    data.batch = batch
    try:
        loop.fit(recipe, data, loop.Plan(out=out, save_every=10, progress=False))
    except ValueError as error:
        print(type(error).__name__, error)
        print(checkpoint.read_latest(out / "checkpoints").step, list(out.rglob("*.tmp")))


def test_a_disk_that_is_full_is_one_sentence_and_what_was_saved_stays(tmp_path):
    said = tmp_path / "said"
    ended(start(run_on_a_disk_that_fills, tmp_path / "run", said=said), 120)
    first, second = said.read_text().splitlines()
    assert first.startswith("UserError Could not write a checkpoint to") and "Free some room" in first, first
    assert second == "10 []"
