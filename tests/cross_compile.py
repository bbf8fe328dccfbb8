"""Compiles every shipped kernel configuration for every card, with no GPU and no driver: one JSON line per result.

python tests/cross_compile.py [--only lse,rank] [--cards 80,90] [--jobs 2] [--fresh]. Run in a process of its own;
`test_kernels.py` asserts what it prints. `--fresh` ignores Triton's cache.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# kernel -> functions: (module, function, arguments before the constants, settings of the flags that are shipped).
# x: pointer to the inputs, o: to the output, f: to fp32, l: to int64, c: to int32; i: an integer, r: a real number.
FUNCTIONS = {
    "lse": [("contrastive", "_lse", "x x f f f i i i i", [{"COLUMNS": True}, {"COLUMNS": False}])],
    "clip_grad": [("contrastive", "_clip_grad", "x x f f f o f i i i i", [{"COLUMNS": True}, {"COLUMNS": False}])],
    "siglip_grad": [("contrastive", "_siglip_grad", "x x f f o f i i i i", [{"LABEL": True}, {"LABEL": False}])],
    "rank": [
        ("rank", "_best_own", "x x l f i i", [{}]),
        ("rank", "_count", "x x l c c f c i i i i", [{"GROUPS": False}]),
    ],
    "rank_groups": [
        ("rank", "_best_group", "x x l c c f i i i i", [{}]),
        ("rank", "_count", "x x l c c f c i i i i", [{"GROUPS": True}]),
    ],
    "clip_elementwise": [
        ("elementwise", "_clip_elementwise", "x f f f o f i i i", [{"COLUMNS": True}, {"COLUMNS": False}])
    ],
    "siglip_elementwise": [
        ("elementwise", "_siglip_elementwise", "x f f o f i i i", [{"LABEL": True}, {"LABEL": False}])
    ],
    "cross_entropy": [
        (
            "elementwise",
            "_cross_entropy",
            "x l f f o i r",
            [
                {"GRADIENT": True, "UPSTREAM": True, "SOFTCAP": True},
                {"GRADIENT": True, "UPSTREAM": False, "SOFTCAP": False},
                {"GRADIENT": False, "UPSTREAM": False, "SOFTCAP": True},
                {"GRADIENT": False, "UPSTREAM": False, "SOFTCAP": False},
            ],
        )
    ],
    "row_lse": [("elementwise", "_row_lse", "x f f i", [{}])],
    "col_partials": [("elementwise", "_col_partials", "x f f f i i i", [{}])],
}
DTYPES = {"half": ["fp16", "bf16"], "float": ["fp32"]}
TYPES = {"f": "*fp32", "l": "*i64", "c": "*i32", "i": "i32", "r": "fp32"}


def variants(kernel: str, card: int, dtype: str, flags: list[dict], everything: bool) -> list[tuple[dict, bool]]:
    """(flags, whether sizes are multiples of 16) to compile: all of them with `everything`, else what a test has time for.

    That is, in fp16 on the newest card that runs the kernel (an elementwise kernel: the oldest), the first flags, which
    are the heaviest, for both kinds of size, and the other flags for one. Elsewhere it is the first flags for one kind of
    size. sm_80 and sm_89 have the same tiles, so products are compiled for the one in bf16 and for the other in fp16.
    """
    from mpm_lite.ops.kernels import tiles

    if everything:
        return [(flag, even) for flag in flags for even in (True, False)]
    if dtype == "fp16" and card == (75 if kernel in tiles.ELEMENTWISE else 90):
        return [(flag, even) for flag in flags for even in (True, False) if even or flag is flags[0]]
    if kernel in tiles.PRODUCTS and (card, dtype) in ((80, "fp16"), (89, "bf16")):
        return []
    return [(flags[0], (dtype == "bf16") == (card == 80))]


def jobs(everything: bool = False) -> list[dict]:
    """Every (function, card, input dtype, output dtype, flags, tile) that can run, heavy ones first."""
    from mpm_lite.ops.kernels import tiles

    rows = []
    for kernel, card, kind, tile in tiles.shipped():
        for module, function, args, flags in FUNCTIONS[kernel]:
            for dtype in DTYPES[kind]:
                outs = [dtype]
                if "o" in args.split() and kernel in tiles.ELEMENTWISE and dtype == "fp32":
                    outs += ["fp16", "bf16"]  # logits kept in fp32, their gradient rounded
                for out in outs:
                    for flag, even in variants(kernel, card, dtype, flags, everything):
                        row = {"kernel": kernel, "module": module, "function": function, "card": card}
                        row |= {"dtype": dtype, "out": out, "flags": flag, "even": even, "args": args}
                        rows.append(row | {"tile": list(dataclasses.astuple(tile))})
    return sorted(rows, key=lambda row: (row["kernel"] in tiles.ELEMENTWISE, row["dtype"] == "fp32"))


def compiled(job: dict) -> dict:
    """The job with registers, stack and shared memory in bytes, and how many tensor-core instructions its PTX has."""
    import importlib

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    began = time.perf_counter()
    fn = getattr(importlib.import_module(f"mpm_lite.ops.kernels.{job['module']}"), job["function"])
    bm, bn, bd, warps, stages, registers = job["tile"]
    constants = {"BM": bm, "BN": bn, "BD": bd, "UPCAST": False, "GROW": 1024 if job["out"] == "fp16" else 1}
    constants |= job["flags"]
    kinds = job["args"].split()
    types = TYPES | {"x": f"*{job['dtype']}", "o": f"*{job['out']}"}
    names = fn.arg_names
    signature, values, hints = {}, {}, {}
    for i, name in enumerate(names):
        if i < len(kinds):
            signature[name] = types[kinds[i]]
            if kinds[i] not in "ir" or name == "D" or job["even"] and kinds[i] == "i" and name != "label_offset":
                hints[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "constexpr"
            values[(i,)] = constants[name]
    result = dict(job)
    try:
        kernel = triton.compile(
            ASTSource(fn, signature, constexprs=values, attrs=hints),
            target=GPUTarget("cuda", job["card"], 32),
            options={"num_warps": warps, "num_stages": stages} | ({"maxnreg": registers} if registers else {}),
        )
        ptx = kernel.asm["ptx"]
        result |= {"mma": len(re.findall(r"\bmma\.sync", ptx)), "wgmma": len(re.findall(r"\bwgmma\.mma_async", ptx))}
        result |= {"shared": kernel.metadata.shared} | usage(kernel.asm["cubin"])
    except Exception as error:
        result["error"] = f"{type(error).__name__}: {error}"[:500]
    return result | {"seconds": round(time.perf_counter() - began, 2)}


def usage(cubin: bytes) -> dict:
    """Registers per thread, and bytes of stack per thread: what did not fit into registers."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if not found:
        raise RuntimeError(f"cuobjdump says something else: {text[:200]}")
    return {"registers": int(found[1]), "stack": int(found[2])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="kernels, comma-separated")
    parser.add_argument("--cards", default="", help="cards, comma-separated, e.g. 80,90")
    parser.add_argument(
        "--tile",
        default="",
        help="try another tile, e.g. 128,256,64,8,3,0: sides, depth, warps, stages, registers (0: as many as it takes)",
    )
    parser.add_argument("--dtypes", default="", help="input dtypes, comma-separated: fp16, bf16, fp32")
    parser.add_argument(
        "--everything", action="store_true", help="all flags and both kinds of size for every card and dtype"
    )
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--fresh", action="store_true", help="ignore Triton's cache")
    args = parser.parse_args()
    os.environ.pop("TRITON_INTERPRET", None)
    if args.fresh:
        os.environ["TRITON_ALWAYS_COMPILE"] = "1"
    chosen = [j for j in jobs(args.everything) if not args.only or j["kernel"] in args.only.split(",")]
    chosen = [j for j in chosen if not args.cards or str(j["card"]) in args.cards.split(",")]
    chosen = [j for j in chosen if not args.dtypes or j["dtype"] in args.dtypes.split(",")]
    if args.tile:
        chosen = [j | {"tile": [int(n) for n in args.tile.split(",")]} for j in chosen]
    with multiprocessing.get_context("fork").Pool(args.jobs) as pool:
        for row in pool.imap_unordered(compiled, chosen):
            print(json.dumps(row))
            sys.stdout.flush()


if __name__ == "__main__":
    main()
