"""What a frozen tower makes of a caption set, kept in the store, and the fingerprint that tells towers apart.

Pictures are encoded in blocks of a part (a part is one whole split of one set). A block is encoded as a whole and in
fixed batches: encoding only the missing items would change the shape of a batch, and with it the last bits of every
number in it. A run that is killed loses only the block it was working on. A tower's fingerprint covers the bytes of its
files, and whatever was done to its weights in memory since.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

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
    """Something whose `model` was loaded from files. Its fingerprint is that of the files until somebody trains or
    changes the model in memory; from then on it is that of the weights as they are, so that nothing which was kept for
    the old weights is mistaken for the new ones'."""

    model: nn.Module
    # Plain attributes that change what the tower computes, such as the prompt before each text.
    decisive: tuple[str, ...] = ()

    def loaded_as(self, fingerprint: str) -> None:
        """Take this as the fingerprint, for as long as nobody changes the weights or the decisive attributes."""
        self._loaded, self._settings = fingerprint, self._decisive()
        self._state, self._digest = _state(self.model), _content(self.model)
        self._sums = _sums(self.model)

    def check_unchanged(self) -> None:
        """UserError where weights were changed so that neither torch's count of changes nor the places looked at show it."""
        if _state(self.model) == self._state and _sums(self.model) != self._sums:
            raise UserError(
                "Some weights of a tower were changed through .data, which its fingerprint does not show: change them in place "
                "under torch.no_grad() instead, or load the tower again."
            )

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
                self._state, self._sums = state, _sums(self.model)
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


SAMPLED = 32  # how many places along each side of a weight are looked at


def _state(model: nn.Module) -> list[Any]:
    """Whatever shows that a model's weights have changed, without reading them all: the kind of each weight, and how
    often it was changed in place, which torch counts for autograd. Changes through `.data` are not counted, so some of
    the values are looked at as well. The device does not matter: a model may be moved to a GPU and back."""
    return [
        (name, str(of.dtype), tuple(of.shape), 0 if of.is_inference() else of._version, _sample(of))
        for name, of in model.state_dict(keep_vars=True).items()
        if isinstance(of, torch.Tensor)
    ]


def _sums(model: nn.Module) -> list[int]:
    """The sum of the bits of each weight, read as whole numbers: another one for nearly any change, and quick to add up."""
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return [int(of.detach().contiguous().view(whole[of.element_size()]).sum()) for of in model.parameters()]


def _content(model: nn.Module) -> str:
    """SHA-256 of the weights."""
    weights = model.state_dict()
    return digest(one for name in sorted(weights) for one in (name, _bytes(weights[name])))


def _sample(weight: torch.Tensor) -> bytes:
    few = tuple(slice(None, None, max(1, -(-side // SAMPLED))) for side in weight.shape)
    return _bytes(weight[few].clone(memory_format=torch.contiguous_format))  # a single number may keep a stride


def _bytes(weight: Any) -> bytes:
    if not isinstance(weight, torch.Tensor):
        return repr(weight).encode()
    return weight.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes() if weight.numel() else b""


# Features, encoded and kept block by block.


def _as_told(found: Any, count: int, tower: Any) -> np.ndarray:
    """What a tower made of `count` inputs, about to be kept. UserError where it is no vector for each, and where the tower's weights
    have changed in a way that its fingerprint does not show."""
    if np.shape(found) != (count, tower.width):
        raise UserError(
            f"{tower.name} gave an array {np.shape(found)} for {count} inputs; it should be {(count, tower.width)}."
        )
    if isinstance(tower, Fingerprinted):
        tower.check_unchanged()
    return found


CHUNK = 512  # a whole number of batches in every preset
KEEP = 2048  # pictures in a block, whole chunks: drawn for several towers at once (400 MB) and cached together


class _Block:
    """One block of a part's pictures. With `shared` each picture is drawn only once, however many towers look at it."""

    def __init__(self, part: Any, number: int, shared: bool = False) -> None:
        self.part, self.number, self.shared, self._drawn = part, number, shared, {}
        self.start, self.end = number * KEEP, min((number + 1) * KEEP, len(part.ids))

    def features(self, kind: str, tower: Any, compute: Any, progress: bool, **also: str) -> np.ndarray:
        """What `compute` makes of the block's pictures, CHUNK at a time, from the store or for it; `also` goes into the key."""
        decides = {"weights": tower.fingerprint, "pictures": self.part.image_digest(), "block": str(self.number)}
        what = {"image": "vectors of pictures", "patches": "patches of pictures"}[kind]
        if kind == "image":
            encode, compute = compute, lambda pictures: _as_told(encode(pictures), len(pictures), tower)
        starts, label = range(self.start, self.end, CHUNK), f"{tower.name}: {self.part.name}, from {self.start:,}"
        return store.keep_features(
            Key(what, {"kind": kind, **decides, **also}),
            lambda: np.concatenate([compute(self._pictures(start)) for start in runtime.bar(starts, label, progress)]),
        )

    def _pictures(self, start: int) -> np.ndarray:
        if start in self._drawn:
            return self._drawn[start]
        pictures = self.part.pictures(range(start, min(start + CHUNK, self.end)))
        if self.shared:
            self._drawn[start] = pictures
        return pictures


def image_features(captions: Any, tower: Any, progress: bool = False) -> np.ndarray:
    """Features of every picture of a CaptionSet: float32 (N, D). Towers joined by '+' are cached one by one."""
    towers = getattr(tower, "towers", [tower])
    rows = [np.zeros((0, tower.width), np.float32)]
    for part, indices in captions.parts:
        whole = np.empty((len(part.ids), tower.width), np.float32)  # filled where a block is asked for
        for number in np.unique(indices // KEEP).tolist():
            block = _Block(part, number, shared=len(towers) > 1)
            side_by_side = [block.features("image", one, one.encode, progress) for one in towers]
            whole[block.start : block.end] = np.concatenate(side_by_side, axis=1)
        rows.append(whole[indices])
    return np.concatenate(rows)


def patch_features(captions: Any, tower: Any, progress: bool = False, grid: int | None = None) -> np.ndarray:
    """Patches of every picture of a CaptionSet: float16 (N, P, D), half the memory of what the tower computes.

    `grid` averages a square of patches down to grid x grid. Patches are cached block by block, so that whoever needs a few
    pictures of a large part does not wait for all of them; where a block begins is fixed, and so are the batches in it.
    """

    def compute(pictures: np.ndarray) -> np.ndarray:
        return pooled(tower.patches(pictures), grid).astype(np.float16)

    rows, also = [], {"grid": str(grid)} if grid else {}
    for part, indices in captions.parts:
        numbers = np.unique(indices // KEEP).tolist()
        found = {n: _Block(part, n).features("patches", tower, compute, progress, **also) for n in numbers}
        rows += [found[i // KEEP][i % KEEP][None] for i in indices]
    return np.concatenate(rows) if rows else np.zeros((0, 0, tower.width), np.float16)


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
    """Sentence vectors of the captions in one language: float32 (N, D). A row without a caption is NaN, so that nobody
    who forgets to leave it out can overlook it."""
    rows = [np.zeros((0, tower.width), np.float32)]
    for part, indices in captions.parts:
        texts = part.captions.get(language) or [""] * len(part.ids)
        told = {"language": language, "captions": part.text_digest(language)} if any(texts) else {}
        rows.append(_vectors(texts, tower, progress, kind="text", **told)[indices])
    return np.concatenate(rows)


def vectors_of(texts: list[str], tower: Any, progress: bool = False) -> np.ndarray:
    """Sentence vectors of texts that belong to no part: float32 (N, D), NaN where a text is empty."""
    return _vectors(texts, tower, progress, kind="texts", captions=digest(text for text in texts if text))


def _vectors(texts: list[str], tower: Any, progress: bool, kind: str, **told: str) -> np.ndarray:
    """Sentence vectors from the store or for it, NaN where a text is empty; `kind` and what else is `told` go into the key."""
    whole, said = np.full((len(texts), tower.width), np.nan, dtype=np.float32), [text for text in texts if text]
    if said:
        key = Key("vectors of captions", {"kind": kind, "weights": tower.fingerprint, **told})
        compute = lambda: _as_told(tower.encode(said, progress=progress), len(said), tower)  # noqa: E731
        whole[list(map(bool, texts))] = store.keep_features(key, compute)
    return whole
