"""A run is killed (-9) at random points of training and of checkpointing, and started again. `main` prints a line a round: what
the run was killed at, and whether it ended where the run that nobody killed ended."""

import hashlib
import os
import random
import shutil
import signal
import sys
from pathlib import Path

from worlds import small_recipe

from mpm_lite.training import loop

STEPS, SAVE = 30, 3


def run(out, die=None):
    """Train; before event number `die` this process is killed. Returns how many events there were."""
    recipe, data = small_recipe(dropout=0.3, steps=STEPS)
    count = 0

    def event(name, plain):
        def call(*args, **named):
            nonlocal count
            count += 1
            if count == die:
                (out / "at").write_text(name)
                os.kill(os.getpid(), signal.SIGKILL)
            return plain(*args, **named)

        return call

    data.batch = event("a batch", data.batch)
    plain = {(os, "fsync"): os.fsync, (os, "replace"): os.replace, (shutil, "rmtree"): shutil.rmtree,
             (Path, "mkdir"): Path.mkdir, (Path, "write_bytes"): Path.write_bytes}  # fmt: skip
    for (where, name), one in plain.items():
        setattr(where, name, event(name, one))
    try:
        loop.fit(recipe, data, loop.Plan(out=out, save_every=SAVE, score_every=10, progress=False), lambda m: 1.0)
    finally:
        for (where, name), one in plain.items():
            setattr(where, name, one)
    state = recipe.state_dict()
    (out / "end").write_text(hashlib.sha256(b"".join(state[k].numpy().tobytes() for k in sorted(state))).hexdigest())
    (out / "events").write_text(str(count))


def apart(out, die=None):
    """The same in a process of its own; returns the signal that ended it, 0 for none."""
    out.mkdir(exist_ok=True)
    child = os.fork()
    if not child:
        try:
            run(out, die)
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)


def main(rounds, out):
    rng = random.Random(0)
    assert apart(out / "whole") == 0
    events, end = int((out / "whole/events").read_text()), (out / "whole/end").read_text()
    for k, die in enumerate(rng.sample(range(1, events + 1), rounds)):
        own = out / f"round-{k}"
        killed = apart(own, die) == signal.SIGKILL and not (own / "end").exists()
        again = apart(own) == 0
        same = again and (own / "end").read_text() == end and not list(own.glob("checkpoints/*.tmp"))
        print(f"{(own / 'at').read_text()}: {'the same end' if killed and same else 'ANOTHER END'}", flush=True)
