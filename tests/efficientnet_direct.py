"""EfficientNet-Lite straight from its original state dict, in plain torch: a second opinion on the image towers.

Written from the paper's table and TensorFlow's SAME padding; shares no code with timm or with mpm_lite.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

REPEATS, STRIDES = (1, 2, 2, 3, 3, 4, 1), (1, 2, 2, 2, 1, 2, 1)
DEPTH = {"efficientnet-lite0": 1.0, "efficientnet-lite1": 1.1, "efficientnet-lite2": 1.2}


def _same(x: torch.Tensor, weight: torch.Tensor, stride: int, groups: int = 1) -> torch.Tensor:
    """Convolution with TensorFlow's SAME padding: the odd pixel goes right and below."""
    pads = []
    for length in (x.shape[-1], x.shape[-2]):
        total = max((math.ceil(length / stride) - 1) * stride + weight.shape[-1] - length, 0)
        pads += [total // 2, total - total // 2]
    return F.conv2d(F.pad(x, pads), weight, stride=stride, groups=groups)


def forward(state: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pooled features (N, 1280) and logits (N, 1000) of normalised pictures (N, 3, S, S)."""

    def norm(x: torch.Tensor, key: str) -> torch.Tensor:
        mean, var = state[f"{key}.running_mean"], state[f"{key}.running_var"]
        return F.batch_norm(x, mean, var, state[f"{key}.weight"], state[f"{key}.bias"], eps=1e-3)

    repeats = [r if stage in (0, 6) else math.ceil(r * DEPTH[name]) for stage, r in enumerate(REPEATS)]
    strides = [s if i == 0 else 1 for r, s in zip(repeats, STRIDES, strict=True) for i in range(r)]
    x = F.relu6(norm(_same(x, state["_conv_stem.weight"], 2), "_bn0"))
    for number, stride in enumerate(strides):
        key, start = f"_blocks.{number}", x
        if f"{key}._expand_conv.weight" in state:
            x = F.relu6(norm(F.conv2d(x, state[f"{key}._expand_conv.weight"]), f"{key}._bn0"))
        x = F.relu6(norm(_same(x, state[f"{key}._depthwise_conv.weight"], stride, x.shape[1]), f"{key}._bn1"))
        x = norm(F.conv2d(x, state[f"{key}._project_conv.weight"]), f"{key}._bn2")
        x = x + start if stride == 1 and x.shape == start.shape else x
    assert f"_blocks.{len(strides)}._bn1.weight" not in state  # every block was used
    pooled = F.relu6(norm(F.conv2d(x, state["_conv_head.weight"]), "_bn1")).mean((2, 3))
    return pooled, F.linear(pooled, state["_fc.weight"], state["_fc.bias"])
