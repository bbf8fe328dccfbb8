"""Language acquirers: small modules that let a frozen English text encoder read another language (MLA, 2206.11091, section 3.2).

Each language gets a bottleneck behind every layer of the encoder. All new languages share one embedding in front of the
layers: a multilingual table and a linear map into the encoder's width. English passes through none of this.

Shapes: N texts, T tokens, W the encoder's width, W' the multilingual table's, R the bottleneck's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mpm_lite.core.runtime import UserError, unknown

SHARED = "all"  # the name of an acquirer that serves every language


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


def blocks(encoder: Any) -> nn.ModuleList:
    """The layers of a transformers encoder. Raises UserError if they are under none of the usual names."""
    for path in ("encoder.layer", "encoder.layers", "layers", "transformer.layer"):
        found = encoder
        for name in path.split("."):
            found = getattr(found, name, None)
        if isinstance(found, nn.ModuleList):
            return found
    raise UserError(f"{type(encoder).__name__} shows no layers to put acquirers behind: take a BERT-style encoder.")
