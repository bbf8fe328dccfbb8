"""The Triton kernels on a machine with no GPU: run in the interpreter, compiled for every card they are shipped for."""

import dataclasses
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mpm_lite.ops import kernels
from mpm_lite.ops.kernels import tiles

HERE = Path(__file__).parent
# Shared memory one program may ask for, in KB, by card; 1 KB of it is the driver's.
SHARED = {75: 64, 80: 163, 89: 99, 90: 227}


@pytest.fixture(autouse=True)
def triton():
    """Triton comes with torch on Linux, and nowhere else: there a missing one is an error."""
    if sys.platform.startswith("linux") and os.environ.get("CI"):
        return importlib.import_module("triton")
    return pytest.importorskip("triton")


def run(*args, **environment):
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env |= {"PYTHONPATH": os.pathsep.join((str(HERE.parent), env.get("PYTHONPATH", ""))), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-W", "ignore", *map(str, args)],
        capture_output=True, text=True, cwd=HERE.parent, env=env | environment, timeout=900,
    )  # fmt: skip


@pytest.fixture(scope="module")
def compiled():
    """One row for each shipped configuration."""
    done = run(HERE / "cross_compile.py")
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def named(rows):
    return "\n".join(str({k: v for k, v in row.items() if k not in ("args", "module")}) for row in rows)


def test_in_the_interpreter():
    """The kernels one by one, and the public ops that run on them; both in one process, as importing takes seconds."""
    scripts = HERE / "kernels_interpreted.py", HERE / "ops_interpreted.py"
    done = run("-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *scripts, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 150 and "skipped" not in done.stdout


def test_every_configuration_compiles(compiled):
    assert not (failed := [row for row in compiled if "error" in row]), named(failed)
    have = {(row["kernel"], row["card"], row["dtype"] == "fp32", tuple(row["tile"])) for row in compiled}
    want = {(kernel, card, kind == "float", dataclasses.astuple(tile)) for kernel, card, kind, tile in tiles.shipped()}
    assert have == want
    assert {row["card"] for row in compiled if row["kernel"] in tiles.ELEMENTWISE} == {75, 80, 89, 90}
    assert {row["card"] for row in compiled if row["kernel"] in tiles.PRODUCTS} == {80, 89, 90}
    for kernel in (*tiles.PRODUCTS, *tiles.ELEMENTWISE):
        assert {row["dtype"] for row in compiled if row["kernel"] == kernel} == {"fp16", "bf16", "fp32"}


def test_nothing_spills_and_everything_fits(compiled):
    spilled = [row for row in compiled if row["stack"]]
    assert not spilled, named(spilled)
    large = [row for row in compiled if row["shared"] > (SHARED[row["card"]] - 1) * 1024]
    assert not large, named(large)


def test_programs_share_a_multiprocessor(compiled):
    """On a Hopper card the losses leave room for two programs, so that one multiplies while another takes exponentials."""
    for row in compiled:
        if row["card"] == 90 and row["dtype"] != "fp32" and row["kernel"] in ("lse", "clip_grad", "siglip_grad"):
            threads = 32 * row["tile"][3]
            registers = -(-row["registers"] // 8) * 8 * threads  # given out by eights
            assert min(65536 // registers, (227 * 1024) // (row["shared"] + 1024)) >= 2, named([row])


def test_tensor_cores_where_they_are_expected(compiled):
    products = [row for row in compiled if row["kernel"] in tiles.PRODUCTS and row["dtype"] != "fp32"]
    without = [row for row in products if not row["wgmma" if row["card"] == 90 else "mma"]]
    assert not without, named(without)
    # fp32 is IEEE, and an elementwise kernel multiplies no matrices
    others = [row for row in compiled if row["kernel"] in tiles.ELEMENTWISE or row["dtype"] == "fp32"]
    assert not any(row["mma"] or row["wgmma"] for row in others)


@pytest.mark.parametrize("width", [16, 256, 512, 1024])
@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)])
def test_a_tile_for_every_card_is_a_shipped_one(capability, width):
    shipped = {(kernel, card, kind): [] for kernel, card, kind, _ in tiles.shipped()}
    for kernel, card, kind, tile in tiles.shipped():
        shipped[kernel, card, kind].append(tile)
    for kernel in (*tiles.PRODUCTS, *tiles.ELEMENTWISE):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            kind = "float" if dtype == torch.float32 else "half"
            assert tiles.pick(kernel, capability, dtype, width) in shipped[kernel, tiles.card_column(capability), kind]


def test_a_t4_gets_the_elementwise_kernels_only():
    assert tiles.pick("cross_entropy", (7, 5), torch.float16)
    with pytest.raises(ValueError, match="no tensor cores before sm_80"):
        tiles.pick("lse", (7, 5), torch.float16, 512)


def test_ready_says_why_not(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "not cpu" in kernels.ready(torch.device("cpu"))
    if not torch.cuda.is_available():
        assert "torch sees none" in kernels.ready(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert kernels.ready(torch.device("cuda")) == ""
    assert "need sm_80 or newer; Tesla T4 is sm_75" in kernels.ready(torch.device("cuda"), dot=True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert kernels.ready(torch.device("cpu"), dot=True) == ""
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: None)
    assert "not installed" in kernels.ready(torch.device("cpu"))


def test_imports_with_triton_and_numpy_blocked():
    code = """
import sys
sys.modules["triton"] = None
from mpm_lite.ops import kernels
from mpm_lite.ops.kernels import tiles
import torch
assert "mpm_lite.ops.kernels.elementwise" not in sys.modules
print(kernels.ready(torch.device("cpu")), len(list(tiles.shipped())))
"""
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
    assert "not installed" in done.stdout
