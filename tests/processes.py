"""Processes that tests start. They are forked from one that has imported torch and this library already, because a new
Python needs seconds for that; each has memory of its own, and is killed or joins others as any process would."""

import multiprocessing
import os
import traceback

_CONTEXT = multiprocessing.get_context("forkserver")
# What tests start, and what torch would import only when it first makes an optimizer, or shares out weights.
_CONTEXT.set_forkserver_preload(["across_run", "killed_run", "torch._dynamo", "torch.distributed.fsdp"])


def start(call, *given, said, **environment):
    """Begin call(*given) in a process of its own; what it writes to stdout and stderr goes to the file `said`."""
    process = _CONTEXT.Process(target=_run, args=(call, given, str(said), environment))
    process.start()
    return process


def ended(process, seconds=280):
    """Wait for a process; returns its exit code, or minus the signal that ended it."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode


def _run(call, given, said, environment):
    import torch

    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(environment)
    torch.set_num_threads(1)
    try:
        call(*given)
    except BaseException:
        traceback.print_exc()
        raise SystemExit(1) from None
