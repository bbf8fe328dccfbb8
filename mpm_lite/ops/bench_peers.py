"""The peers, each imported only here and only where it is installed; a peer that cannot run on a device is left out."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[..., Tensor]


def has(module: str) -> bool:
    """Whether a package is installed, without importing it."""
    return importlib.util.find_spec(module) is not None


def installed(op: str, device: torch.device, bias: Tensor) -> dict[str, Loss]:
    """Peers of an op: provider name (the package first) -> function of `bench.tensors`."""
    build = {"clip_loss": _clip, "siglip_loss": _siglip, "linear_cross_entropy": _tokens, "retrieval_ranks": _ranks}
    return build[op](device, bias)


def naive_clip(a: Tensor, b: Tensor, s: Tensor) -> Tensor:
    """InfoNCE by one product in the input dtype, as a training loop without this library has it."""
    logits = s.to(a.dtype) * a @ b.T
    target = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def naive_tokens(x: Tensor, w: Tensor, t: Tensor) -> Tensor:
    """The loss over a vocabulary with all logits at once."""
    return F.cross_entropy(F.linear(x, w), t)


def _lazily(make: Callable[[], Loss]) -> Loss:
    """A provider that is built at its first call, so that one that fails to import fails alone."""
    made: list[Loss] = []

    def call(*given: Any) -> Tensor:
        if not made:
            made.append(make())
        return made[0](*given)

    return call


def _clip(device: torch.device, bias: Tensor) -> dict[str, Loss]:
    def open_clip() -> Loss:
        return importlib.import_module("open_clip.loss").ClipLoss()

    def inf_cl() -> Loss:
        each = importlib.import_module("inf_cl").cal_flash_loss  # a loss a row
        one_way = lambda a, b, s: each(a, b, scale=s, head_dim=256).mean()  # noqa: E731
        return lambda a, b, s: (one_way(a, b, s) + one_way(b, a, s)) / 2

    peers = {"torch compile": _lazily(lambda: torch.compile(naive_clip))}
    if has("open_clip"):
        peers["open_clip_torch"] = _lazily(open_clip)
    if has("inf_cl") and device.type == "cuda":
        peers["inf-cl"] = _lazily(inf_cl)
    return peers


def _siglip(device: torch.device, bias: Tensor) -> dict[str, Loss]:
    def naive(a: Tensor, b: Tensor, s: Tensor) -> Tensor:
        z = s.to(a.dtype) * a @ b.T + bias.to(a.dtype)
        sign = 2 * torch.eye(len(a), device=a.device, dtype=a.dtype) - 1
        return -F.logsigmoid(sign * z).sum() / len(a)

    def open_clip(**options: Any) -> Loss:
        loss = importlib.import_module("open_clip.loss").SigLipLoss(**options)
        return lambda a, b, s: loss(a, b, s, bias)

    def kernel(**options: Any) -> Loss:
        loss = importlib.import_module("siglip_kernel").siglip_loss
        return lambda a, b, s: loss(a, b, s.log(), bias, **options)

    peers = {"torch compile": _lazily(lambda: torch.compile(naive))}
    if has("open_clip"):
        peers["open_clip_torch"] = _lazily(open_clip)
    if has("siglip_kernel") and device.type == "cuda":
        peers["siglip-kernel auto"] = _lazily(kernel)
        peers["siglip-kernel chunk=1024"] = _lazily(lambda: kernel(chunk_size=1024))
    return peers


def _tokens(device: torch.device, bias: Tensor) -> dict[str, Loss]:
    def torch_own(**options: Any) -> Loss:
        chosen = torch.nn.LinearCrossEntropyOptions(**options) if options else None
        return lambda x, w, t: F.linear_cross_entropy(x, w, t, **({"options": chosen} if chosen else {}))

    def liger(**options: Any) -> Loss:
        function = importlib.import_module(
            "liger_kernel.ops.fused_linear_cross_entropy"
        ).LigerFusedLinearCrossEntropyFunction
        # autograd.Function.apply takes no keywords: put the options where this version's signature has them.
        order = list(inspect.signature(function.forward).parameters.values())[5:]  # after ctx, x, weight, target, bias
        given = [options.get(p.name, None if p.default is p.empty else p.default) for p in order]
        unknown = set(options) - {p.name for p in order}
        if unknown:
            raise ValueError(f"this Liger-Kernel has no {', '.join(sorted(unknown))}")
        return lambda x, w, t: function.apply(x, w, t, None, *given)[0]

    def cce(**options: Any) -> Loss:
        loss = importlib.import_module("cut_cross_entropy").linear_cross_entropy
        return lambda x, w, t: loss(x, w, t, **options)

    def quack() -> Loss:
        loss = importlib.import_module("quack.linear_cross_entropy").chunked_linear_cross_entropy
        return lambda x, w, t: loss(x, w, t, chunk_size=4096)

    peers = {"torch compile": _lazily(lambda: torch.compile(naive_tokens))}
    if hasattr(F, "linear_cross_entropy"):
        peers["torch linear_cross_entropy auto"] = _lazily(torch_own)
        fixed = {"batch_chunk_size": 256, "chunking_method": None}
        peers["torch linear_cross_entropy 256"] = _lazily(lambda: torch_own(**fixed))
    if device.type == "cuda":
        if has("liger_kernel"):
            peers["liger-kernel"] = _lazily(liger)
            peers["liger-kernel C=16"] = _lazily(lambda: liger(chunk_mem_const=16))
            peers["liger-kernel C=16 fp32"] = _lazily(lambda: liger(chunk_mem_const=16, accum_dtype=torch.float32))
        if has("cut_cross_entropy"):
            peers["cut-cross-entropy"] = _lazily(cce)
            peers["cut-cross-entropy exact"] = _lazily(lambda: cce(filter_eps=None))
        if has("quack"):
            peers["quack-kernels"] = _lazily(quack)
    return peers


def _ranks(device: torch.device, bias: Tensor) -> dict[str, Loss]:
    def by_sorting(query: Tensor, cand: Tensor, target: Tensor) -> Tensor:
        order = (query @ cand.T).argsort(dim=1, descending=True)
        return (order == target[:, None]).int().argmax(dim=1)

    return {"torch matmul + argsort": by_sorting}
