"""What tells one tower's weights from another's: the bytes of its files, and what was done to it in memory since."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mpm_lite.keys import digest, file_digest


def fingerprint(code: str, *paths: Path) -> str:
    """SHA-256 over a code version and the bytes of the files, as they are now."""
    total = hashlib.sha256(code.encode())
    for path in paths:
        total.update(file_digest(path))
    return total.hexdigest()


class Fingerprinted:
    """Something whose `model` was loaded: its fingerprint is that of the files, until somebody trains or changes the model in
    memory; then it is that of the weights as they are, so that nothing kept of the old ones is taken for the new ones'."""

    model: nn.Module

    def loaded_as(self, fingerprint: str) -> None:
        """From now on, and as long as nobody changes the weights, this is the fingerprint."""
        self._loaded, self._state = fingerprint, _versions(self.model)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the weights and of the code that reads them."""
        if _versions(self.model) == self._state:
            return self._loaded
        weights = self.model.state_dict()
        told = [_bytes(weights[name]) for name in sorted(weights)]
        return digest([self._loaded, *sorted(weights), *told])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": self.fingerprint}

    def __setstate__(self, state: dict[str, Any]) -> None:  # a copy counts its own changes
        self.__dict__.update(state)
        self._state = _versions(self.model)


def _versions(model: nn.Module) -> tuple[Any, ...]:
    """How often each parameter was changed in place, as torch counts it for autograd, and which there are."""
    return tuple((name, p._version, tuple(p.shape)) for name, p in model.named_parameters())


def _bytes(weight: Any) -> bytes:
    if not isinstance(weight, torch.Tensor):
        return repr(weight).encode()
    return weight.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes() if weight.numel() else b""
