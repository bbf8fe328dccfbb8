"""What tells one tower's weights from another's: the bytes of its files, and what was done to it in memory since."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mpm_lite.keys import digest, file_digest
from mpm_lite.runtime import UserError


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
    # Plain attributes that change what comes out, such as the prompt before each text.
    decisive: tuple[str, ...] = ()

    def loaded_as(self, fingerprint: str) -> None:
        """From now on, and as long as nobody changes the weights or the decisive attributes, this is the fingerprint."""
        self._loaded, self._settings = fingerprint, self._decisive()
        self._state, self._digest = _state(self.model), _content(self.model)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the weights and of the code that reads them.

        Raises UserError while the model is in training mode, in which dropout makes its vectors random.
        """
        if self.model.training:
            raise UserError(
                "The model of a tower is in training mode, in which dropout makes what it computes random: call "
                "tower.model.eval() before its vectors are used."
            )
        return self._now()

    def _now(self) -> str:
        told, state = [self._loaded], _state(self.model)
        if state != self._state:  # perhaps only written again as they were, as when weights are loaded into the model
            if (content := _content(self.model)) == self._digest:
                self._state = state
            else:
                told.append(content)
        if self._decisive() != self._settings:
            told.append(repr(self._decisive()))
        return told[0] if len(told) == 1 else digest(told)

    def _decisive(self) -> list[tuple[str, Any]]:
        return [(name, getattr(self, name)) for name in self.decisive]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": self._now()}

    def __setstate__(self, state: dict[str, Any]) -> None:  # a copy counts its own changes
        self.__dict__.update(state)
        self.loaded_as(self._loaded)


SAMPLED = 32  # places along each side of a weight at which its values are looked at


def _state(model: nn.Module) -> list[Any]:
    """What tells a model's weights from what they were before, without reading them all: the kind of each, and how often it was
    changed in place, as torch counts it for autograd. Changes through `.data` are not counted, so that some of the values
    are looked at too. Where a weight lies says nothing: a model may be moved to a GPU and back."""
    return [
        (name, str(of.dtype), tuple(of.shape), 0 if of.is_inference() else of._version, _sample(of))
        for name, of in model.state_dict(keep_vars=True).items()
        if isinstance(of, torch.Tensor)
    ]


def _content(model: nn.Module) -> str:
    """SHA-256 of the weights."""
    weights = model.state_dict()
    return digest(one for name in sorted(weights) for one in (name, _bytes(weights[name])))


def _sample(weight: torch.Tensor) -> bytes:
    few = tuple(slice(None, None, max(1, -(-side // SAMPLED))) for side in weight.shape)
    return _bytes(weight[few].clone())


def _bytes(weight: Any) -> bytes:
    if not isinstance(weight, torch.Tensor):
        return repr(weight).encode()
    return weight.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes() if weight.numel() else b""
