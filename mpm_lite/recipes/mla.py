"""MLA: a frozen English dual encoder acquires other languages, with one small module for each (2206.11091).

Method. English is read by the dual encoder as it is, so English stays what it was, bit by bit. Another language enters
through an embedding of its own, and passes through an acquirer behind each layer of the English text encoder (section 3.2).
*Native Language Transfer*: its sentences learn to end where their English translations do, by squared error; no picture is
seen. *Language Exposure*: its captions meet pictures, by symmetric InfoNCE at a fixed scale (section 3.3). Each batch is in
one language. Everything but the embedding and the acquirers is frozen.

Shapes: N texts or pictures, T tokens, P patches, D_in the image tower's width, D the shared space's, W the text encoder's, W'
the multilingual table's, R an acquirer's bottleneck.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mpm_lite import ops
from mpm_lite.core.runtime import UserError, unknown
from mpm_lite.recipes.base import Recipe, Stage, at_least, sample_bytes
from mpm_lite.recipes.dual import Dual, pool_states
from mpm_lite.recipes.modules.connectors import blocks

TRANSFER, EXPOSURE = "transfer", "exposure"
TRANSFERS = ("mse", "cosine", "nce")
LEARNS = ("acquirers", "embedding", "text encoder")
SHARED = "all"  # the name of an acquirer that serves every language


# Acquirers. All new languages share one embedding in front of the layers; English passes through none of this.


class Acquirer(nn.Module):
    """x + up(relu(down(x))): (..., W) -> the same. It begins as the identity."""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """The state, and what the language adds to it."""
        return x + self.up(torch.relu(self.down(x)))


class NonNative(nn.Module):
    """Turns token ids of a multilingual vocabulary into vectors that the encoder reads as words: (N, T) -> (N, T, W)."""

    def __init__(self, table: Tensor, width: int) -> None:
        """`table` (V', W') is what the embedding begins with."""
        super().__init__()
        self.words = nn.Embedding.from_pretrained(table.detach().float().clone(), freeze=False)
        self.turn = nn.Linear(table.shape[1], width)
        if table.shape[1] == width:
            nn.init.eye_(self.turn.weight)
            nn.init.zeros_(self.turn.bias)

    def forward(self, ids: Tensor) -> Tensor:
        """The vectors for the first layer."""
        return self.turn(self.words(ids))


class Acquirers(nn.Module):
    """The non-native embedding, and for each language an acquirer behind every layer.

    With `bottleneck` 0 there are no acquirers, and only the embedding learns. With `shared`, all languages have the same ones.
    Raises UserError for an encoder whose layers cannot be found.
    """

    def __init__(
        self, encoder: Any, languages: Sequence[str], table: Tensor, bottleneck: int, shared: bool = False
    ) -> None:
        super().__init__()
        width, depth = encoder.config.hidden_size, len(blocks(encoder))
        self.enter, self.shared = NonNative(table, width), shared
        names = ([SHARED] if shared else list(languages)) if bottleneck else []
        stacks = {name: nn.ModuleList(Acquirer(width, bottleneck) for _ in range(depth)) for name in names}
        self.of = nn.ModuleDict(stacks)
        self.languages = tuple(languages)

    def forward(self, encoder: Any, ids: Tensor, there: Tensor, language: str) -> Tensor:
        """The encoder's last states (N, T, W) of texts in one language: ids int64 (N, T), of which `there` are real.

        Raises UserError for a language that was not acquired.
        """
        if language not in self.languages:
            raise unknown("acquired language", language, self.languages)
        with self._behind(encoder, SHARED if self.shared else language):
            return encoder(inputs_embeds=self.enter(ids), attention_mask=there.long()).last_hidden_state

    @contextmanager
    def _behind(self, encoder: Any, name: str) -> Iterator[None]:
        """During the block, every layer of the encoder hands its states to this language's acquirer."""

        def passed(acquirer: Acquirer) -> Any:
            def hook(module: nn.Module, inputs: Any, out: Any) -> Any:
                return (acquirer(out[0]), *out[1:]) if isinstance(out, tuple) else acquirer(out)

            return hook

        pairs = zip(blocks(encoder), self.of[name], strict=True) if name in self.of else ()
        with ExitStack() as hooks:
            for layer, acquirer in pairs:
                hooks.enter_context(layer.register_forward_hook(passed(acquirer)))
            yield


# The recipe.


@dataclass(frozen=True)
class MlaOptions:
    """Every dial of the recipe. The defaults were chosen on val, with seed 0 alone."""

    bottleneck: int = 32  # of an acquirer
    shared: bool = False  # one set of acquirers for all languages
    learns: str = "acquirers"  # and the embedding; or the "embedding" alone, or it and the whole "text encoder"
    order: str = "transfer exposure"  # the stages, in their order
    # What Native Language Transfer minimises; or "cosine", or "nce" against the other English sentences of the batch.
    transfer: str = "mse"
    transfer_steps: int = 1500
    exposure_steps: int = 300
    batch: int = at_least(2, 64)
    lr: float = 2e-3
    exposure_lr: float = 2e-4
    scale: float = 20.0  # of Language Exposure's cosines
    weight_decay: float = 0.01


class Spoken:
    """Texts in other languages as training data. An example is a batch in one language, drawn by its number. Each text has a
    partner that it should come near: a row of the vectors (M, D) of English translations, or of pictures' patches
    (M, P, D_in)."""

    many = 100_000  # how many batches there are to draw

    def __init__(
        self, rows: Sequence[Sequence[int]], languages: Sequence[str], near: Tensor, of: Sequence[int], batch: int,
        names: Sequence[str],
    ) -> None:  # fmt: skip
        """Text k has the partner `near[of[k]]`. `names` are the recipe's languages; a batch gives its own by its number there."""
        if not len(rows) == len(languages) == len(of):
            raise UserError(f"{len(rows)} texts, {len(languages)} languages and {len(of)} partners differ.")
        self.rows, self.near, self.of = [torch.tensor(r) for r in rows], near, torch.as_tensor(list(of))
        self.size, here = batch, sorted(set(languages))
        self.numbers = {list(names).index(name): np.flatnonzero([code == name for code in languages]) for name in here}
        if min(map(len, self.numbers.values())) < batch:
            raise UserError(f"A language with fewer than {batch} texts fills no batch: take more, or smaller batches.")
        said = b"".join(r.numpy().tobytes() for r in self.rows) + sample_bytes(near) + self.of.numpy().tobytes()
        self.digest = hashlib.sha256(said + " ".join([str(batch), *languages]).encode()).hexdigest()

    def __len__(self) -> int:
        return self.many

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """`ids` int64 (N, T), 0 for padding; `near` (N, D) or (N, P, D_in); `language` int64 (), the language's number."""
        rng = np.random.default_rng([int(i) for i in indices])
        language = list(self.numbers)[rng.integers(len(self.numbers))]
        which = rng.choice(self.numbers[language], self.size, replace=False)
        rows = pad_sequence([self.rows[i] for i in which], batch_first=True)
        return {"ids": rows, "near": self.near[self.of[which]].float(), "language": torch.tensor(language)}


class Mla(Recipe):
    """Acquirers beside an English dual encoder, which is taken over as it is."""

    name = "mla"
    compares = True
    Options = MlaOptions

    def __init__(
        self, english: Dual, languages: Sequence[str], table: Tensor, options: MlaOptions = MlaOptions()
    ) -> None:
        """`table` (V', W') is the embedding of a multilingual model, with which the non-native embedding begins."""
        super().__init__()
        o = self.options = options
        if o.learns not in LEARNS:
            raise unknown("part that learns a language", o.learns, LEARNS)
        if o.transfer not in TRANSFERS:
            raise unknown("objective of Native Language Transfer", o.transfer, TRANSFERS)
        self.order = o.order.split()
        if not self.order or not set(self.order) <= {TRANSFER, EXPOSURE}:
            raise UserError(f"order={o.order!r}: name stages among {TRANSFER!r} and {EXPOSURE!r}, in their order.")
        self.english, self.names = english, sorted(languages)
        bottleneck = o.bottleneck if o.learns == "acquirers" else 0
        self.acquirers = Acquirers(english.encoder, self.names, table, bottleneck, o.shared)
        self.adding = ""  # a language that is added later: then only its acquirers learn

    def stages(self) -> list[Stage]:
        o = self.options
        text_encoder = ["english.encoder", "english.text_head"]
        more = {"acquirers": ["acquirers.of"], "embedding": [], "text encoder": text_encoder}
        learns = ("acquirers.enter", *more[o.learns])
        still = ("image tower", "pooler", *([] if o.learns == "text encoder" else ["English text encoder"]))
        if self.adding:
            learns = (f"acquirers.of.{SHARED if o.shared else self.adding}",)
            still = (*still, "embedding", *([] if o.shared else ["acquirers of other languages"]))
        aims = {"mse": "squared error to", "cosine": "cosine with", "nce": "InfoNCE with"}
        each = {
            TRANSFER: (f"{aims[o.transfer]} the English translation's vector", o.transfer_steps, o.lr),
            EXPOSURE: ("symmetric InfoNCE on image-caption pairs", o.exposure_steps, o.exposure_lr),
        }
        return [
            Stage.of(o, name, learns, still, objective, steps=steps, batch=1, lr=lr, clip=1.0, beta2=0.98)
            for name, (objective, steps, lr) in ((name, each[name]) for name in self.order)
        ]

    def text(self, ids: Tensor, language: str) -> Tensor:
        """Token ids int64 (N, T), 0 for padding, in a language -> (N, D), of no particular length."""
        if language == "en":
            return self.english.text(ids)
        there = ids != 0
        states = self.acquirers(self.english.encoder, ids, there, language)
        return self.english.text_head(pool_states(states, there))

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        said = self.text(batch["ids"], self.names[int(batch["language"])])  # (N, D)
        return self._transferred(said, batch["near"]) if batch["near"].ndim == 2 else self._exposed(said, batch["near"])

    def _transferred(self, said: Tensor, english: Tensor) -> Tensor:
        if self.options.transfer == "mse":
            return F.mse_loss(said, english)
        ours, theirs = F.normalize(said, dim=-1), F.normalize(english, dim=-1)
        if self.options.transfer == "cosine":
            return 1 - (ours * theirs).sum(dim=-1).mean()
        return ops.clip_loss(ours, theirs, ours.new_tensor(self.options.scale), check=False)

    def _exposed(self, said: Tensor, seen: Tensor) -> Tensor:
        with torch.no_grad():
            image = self.english.image(seen)
        return ops.clip_loss(image, F.normalize(said, dim=-1), said.new_tensor(self.options.scale), check=False)

    def predict(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """{"seen": (N, P, D_in)} -> {"image": (N, D)} unit norm. For texts there is `text`, which asks for their language."""
        return self.english.predict({"seen": inputs["seen"]})

    @property
    def weights(self) -> dict[str, int]:
        """How many parameters learn: of the embedding, and of each language's acquirers."""
        count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
        return {"embedding": count(self.acquirers.enter)} | {name: count(of) for name, of in self.acquirers.of.items()}
