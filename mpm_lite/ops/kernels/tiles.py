"""Tile sizes of every kernel by card, precision and width: tables, no autotuning, so a run is the same run twice.

Chosen by arithmetic and by what compiles without a spilled register; no card has measured these yet. 128 x 256 reads less
from L2 for each product than 128 x 128, where its results and what is made of them fit into the registers. Where much is
made of them, as in the losses, two programs or more share a multiprocessor, so that one multiplies while another takes
exponentials. fp32 stays IEEE, without tensor cores: small tiles, because that product is unrolled along its depth. Every
row is compiled by tests/cross_compile.py. sm_100 and newer borrow these rows and are not compiled there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from mpm_lite.ops import kernels

PRODUCTS = ("lse", "clip_grad", "siglip_grad", "rank", "rank_groups")


@dataclass(frozen=True)
class Tile:
    """bm x bn results per step, bd deep; warps of 32 threads; stages of loads in flight; the registers that a thread may
    have, where the compiler would take more than leaves room for a second program."""

    bm: int
    bn: int
    bd: int
    warps: int
    stages: int
    registers: int | None = None

    @property
    def sides(self) -> dict[str, int]:
        """What every kernel on tiles takes by keyword: the sides, and warps and registers as launch options."""
        return {"BM": self.bm, "BN": self.bn, "num_warps": self.warps} | (
            {"maxnreg": self.registers} if self.registers else {}
        )


SMALL = Tile(32, 32, 32, 4, 1)  # for the interpreter: ragged edges already with small inputs
WIDE = 256  # up to this width there is too little product to pay for a large tile

_IEEE = Tile(64, 64, 16, 8, 2)
_SQUARE = Tile(128, 128, 64, 8, 3)
_LONG = Tile(128, 256, 64, 8, 3)
_FLAT = Tile(64, 128, 64, 4, 3)
# (card, kernel): tiles of half precision up to WIDE and beyond, where they are not square. On sm_90, registers and shared
# memory leave room for two programs of `lse`, three of the others that write gradients, and one of the long tile.
_HALF = {
    (90, "lse"): (replace(_SQUARE, registers=128),) * 2,
    (90, "clip_grad"): (replace(_FLAT, registers=168),) * 2,
    (90, "siglip_grad"): (_FLAT, _FLAT),
    (90, "rank"): (_SQUARE, _LONG),
}
# Bound by memory on every card, so one tile each: enough bytes in flight per thread, nothing kept but sums.
_ROW = Tile(1, 4096, 1, 8, 1)
ELEMENTWISE = {
    "clip_elementwise": Tile(4, 512, 1, 8, 1),
    "siglip_elementwise": Tile(4, 512, 1, 8, 1),
    "cross_entropy": _ROW,
    "row_lse": _ROW,
    "col_partials": Tile(16, 128, 1, 8, 1),
}


def card_column(capability: tuple[int, int]) -> int:
    """The column of the tables for a compute capability: 75, 80, 89 or 90."""
    major, minor = capability
    if major in (9, 10, 11):
        return 90  # 227 KB of shared memory per program
    if (major, minor) in ((8, 0), (8, 7)):
        return 80  # 163 KB
    return 89 if major >= 8 else 75  # 99 KB (sm_86, sm_89, sm_120), 64 KB


def pick(kernel: str, capability: tuple[int, int], dtype: torch.dtype, width: int = 0) -> Tile:
    """The tile of `kernel` on a card of this compute capability for inputs of `dtype` and rows of `width` numbers."""
    if kernel in ELEMENTWISE:
        return ELEMENTWISE[kernel]
    column = card_column(capability)
    if column == 75:
        raise ValueError(f"Triton has no tensor cores before sm_80: kernel {kernel!r} is not offered there")
    if dtype == torch.float32:
        return _IEEE
    narrow, wide = _HALF.get((column, kernel), (_SQUARE, _SQUARE))
    return wide if width > WIDE else narrow


# What a card should be asked to try in place of the rows above: `mpm-lite bench --card`.
CANDIDATES = (
    _SQUARE, replace(_SQUARE, registers=128), replace(_SQUARE, stages=4), _LONG, _FLAT, replace(_FLAT, registers=168),
    replace(_FLAT, stages=4),
)  # fmt: skip


@contextlib.contextmanager
def trying(kernel: str, capability: tuple[int, int], tile: Tile) -> Iterator[None]:
    """Within it, half precision takes this tile of a kernel on cards of this capability."""
    key = (card_column(capability), kernel)
    before = _HALF.get(key, (_SQUARE, _SQUARE))
    _HALF[key] = (tile, tile)
    try:
        yield
    finally:
        _HALF[key] = before


def pick_here(kernel: str, device: torch.device, dtype: torch.dtype, width: int = 0) -> Tile:
    """`pick` for a device of this machine; small tiles in the interpreter."""
    if kernels.interpreting() or device.type != "cuda":
        return replace(SMALL, bm=1) if kernel in ("cross_entropy", "row_lse") else SMALL
    return pick(kernel, torch.cuda.get_device_capability(device), dtype, width)


def shipped() -> Iterator[tuple[str, int, str, Tile]]:
    """Every (kernel, card, 'half' or 'float', tile) that `pick` can return, once."""
    for column in (75, 80, 89, 90):
        for name, tile in ELEMENTWISE.items():
            yield name, column, "half", tile
            yield name, column, "float", tile
        for name in PRODUCTS if column > 75 else ():
            for tile in dict.fromkeys(_HALF.get((column, name), (_SQUARE,))):
                yield name, column, "half", tile
            yield name, column, "float", _IEEE
