"""What a frozen tower says of a caption set, kept in the store, and what tells one tower's weights from another's.

Pictures are encoded in blocks of a part (one whole split of one set), and a block whole, in fixed batches, or not at all:
encoding only the items that are missing would change the shape of a batch, and with it the last bits of every number in it.
A run that is killed loses the block at which it was. A tower's fingerprint covers the bytes of its files, and whatever was
done to its weights in memory since.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from mpm_lite.core import runtime, store
from mpm_lite.core.keys import Key, digest, file_digest
from mpm_lite.core.runtime import UserError


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


# Features, encoded and kept block by block.

CHUNK = 512  # a whole number of batches in every preset
KEEP = 2048  # pictures of a part, whole chunks, that are drawn for several towers at once (400 MB) and cached together


def image_features(captions: Any, tower: Any, progress: bool = False) -> np.ndarray:
    """Features of every picture of a CaptionSet: float32 (N, D). Towers joined by '+' are cached one by one."""
    towers = getattr(tower, "towers", [tower])
    rows = [np.zeros((0, tower.width), np.float32)]
    for part, indices in captions.parts:
        whole = np.empty((len(part.ids), tower.width), np.float32)  # filled where a block is asked for
        for block in np.unique(indices // KEEP).tolist():
            drawn, side_by_side = _Drawn(part, block, len(towers) > 1), []
            for one in towers:
                decides = {"weights": one.fingerprint, "pictures": part.image_digest(), "block": str(block)}
                key = Key("vectors of pictures", {"kind": "image", **decides})
                side_by_side.append(store.features(key, lambda one=one, drawn=drawn: drawn.through(one, progress)))
            whole[block * KEEP : (block + 1) * KEEP] = np.concatenate(side_by_side, axis=1)
        rows.append(whole[indices])
    return np.concatenate(rows)


class _Drawn:
    """The pictures of a block, CHUNK at a time; `keep` draws them at most once while several towers look at them."""

    def __init__(self, part: Any, block: int, keep: bool) -> None:
        self.part, self.start, self.keep, self._kept = part, block * KEEP, keep, {}
        self.end = min(self.start + KEEP, len(part.ids))

    def chunk(self, start: int) -> np.ndarray:
        if start in self._kept:
            return self._kept[start]
        pictures = self.part.pictures(range(start, min(start + CHUNK, self.end)))
        if self.keep:
            self._kept[start] = pictures
        return pictures

    def through(self, tower: Any, progress: bool) -> np.ndarray:
        starts = range(self.start, self.end, CHUNK)
        label = f"{tower.name}: {self.part.name}, from {self.start:,}"
        shown = tqdm(starts, desc=label, disable=not progress or runtime.quiet(), leave=False)
        return np.concatenate([tower.encode(self.chunk(start)) for start in shown])


def patch_features(captions: Any, tower: Any, progress: bool = False, grid: int | None = None) -> np.ndarray:
    """Patches of every picture of a CaptionSet: float16 (N, P, D), half the memory of what the tower computes.

    `grid` averages a square of patches down to grid x grid. Cached block by block, so that whoever needs a few pictures of
    a large part does not wait for all; where a block begins is fixed, and so are the batches in it.
    """
    rows: list[np.ndarray] = []
    for part, indices in captions.parts:
        found: dict[int, np.ndarray] = {}
        for block in np.unique(indices // KEEP).tolist():
            said = {"weights": tower.fingerprint, "pictures": part.image_digest(), "block": str(block)}
            key = Key("patches of pictures", {"kind": "patches", **said, **({"grid": str(grid)} if grid else {})})
            found[block] = store.features(
                key, lambda part=part, block=block: _patches(part, block, tower, progress, grid)
            )
        rows += [found[i // KEEP][i % KEEP][None] for i in indices]
    return np.concatenate(rows) if rows else np.zeros((0, 0, tower.width), np.float16)


def _patches(part: Any, block: int, tower: Any, progress: bool, grid: int | None) -> np.ndarray:
    end = min((block + 1) * KEEP, len(part.ids))
    starts = range(block * KEEP, end, CHUNK)
    label = f"{tower.name}: {part.name}, from {block * KEEP:,}"
    shown = tqdm(starts, desc=label, disable=not progress or runtime.quiet(), leave=False)
    few = (part.pictures(range(start, min(start + CHUNK, end))) for start in shown)
    return np.concatenate([pooled(tower.patches(pictures), grid).astype(np.float16) for pictures in few])


def pooled(patches: np.ndarray, grid: int | None) -> np.ndarray:
    """A square of patches float32 (N, P, D), averaged to (N, grid * grid, D); None leaves them. UserError for no square."""
    if grid is None:
        return patches
    side = round(patches.shape[1] ** 0.5)
    if side * side != patches.shape[1]:
        raise runtime.UserError(f"{patches.shape[1]} patches are no square: leave grid out.")
    square = torch.from_numpy(patches).unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (N, D, s, s)
    return torch.nn.functional.adaptive_avg_pool2d(square, grid).flatten(2).transpose(1, 2).numpy()


def text_features(captions: Any, language: str, tower: Any, progress: bool = False) -> np.ndarray:
    """Sentence vectors of the captions in one language: float32 (N, D); rows without a caption are NaN, so that a
    caller who forgets to leave them out cannot miss it."""
    rows = [np.zeros((0, tower.width), np.float32)]
    for part, indices in captions.parts:
        texts = part.captions.get(language) or [""] * len(part.ids)
        there = np.array([bool(text) for text in texts])
        whole = np.full((len(texts), tower.width), np.nan, dtype=np.float32)
        if there.any():
            decides = {"weights": tower.fingerprint, "language": language, "captions": part.text_digest(language)}
            key = Key("vectors of captions", {"kind": "text", **decides})
            said = [text for text in texts if text]
            whole[there] = store.features(key, lambda said=said: tower.encode(said, progress=progress))
        rows.append(whole[indices])
    return np.concatenate(rows)
