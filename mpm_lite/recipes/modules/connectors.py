"""Connectors: image features in, soft tokens out, at the scale of the language model's own embeddings.

There are three, from the plainest to the paper's. `Projector` turns every patch into a soft token (LLaVA, 2304.08485,
section 4.1). `Resampler` lets a few learned queries look at all patches (Flamingo, 2204.14198, section 3.1).
`QueriesInTower` is the arrangement of MPM (2308.12038, section 3.2): the queries stand behind the patches *inside* the
image tower and pass through its layers together with them. The Q-Former, which mBLIP re-aligns, stands at the end.

Shapes: N pictures, P patches, Q queries (soft tokens), D_in the tower's width, D the language model's width.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mpm_lite.core.runtime import UserError, unknown

CONNECTORS = ("mlp", "resampler", "queries")


class LikeEmbeddings(nn.Module):
    """(..., D) -> (..., D): soft tokens as long as the embeddings of a language model are, in its embeddings' middle.

    They begin where the language model expects its words. It is a precaution: a model whose layers normalise what they read,
    as those here do, learns nearly as fast from soft tokens of another scale (notebook 04, section 6).
    """

    def __init__(self, embeddings: Tensor) -> None:
        """`embeddings` is the model's table, (V, D)."""
        super().__init__()
        table = embeddings.detach().float()
        self.register_buffer("middle", table.mean(dim=0))  # (D,)
        self.register_buffer("spread", table.std(dim=0, correction=0).square().mean().sqrt())
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """Length of each vector by the root mean square of its entries, direction kept."""
        return self.middle + self.gain * self.spread * F.rms_norm(x, x.shape[-1:])


class Mixture(LikeEmbeddings):
    """(..., D) -> (..., D): soft tokens as mixtures of the rows of a language model's embedding table.

    A mixture always lies between words, so that no soft token can lie where no text leads. The weights begin nearly uniform.
    """

    def __init__(self, embeddings: Tensor) -> None:
        super().__init__(embeddings)
        self.register_buffer("table", embeddings.detach().float(), persistent=False)  # (V, D)

    def forward(self, x: Tensor) -> Tensor:
        """The weights are a softmax over the likeness of the vector to each embedding; `gain` sharpens it."""
        scores = self.gain * F.rms_norm(x, x.shape[-1:]) @ (self.table / self.spread).T / x.shape[-1] ** 0.5  # (..., V)
        return scores.softmax(dim=-1) @ self.table


SOFT = {"free": LikeEmbeddings, "mixture": Mixture}


class Projector(nn.Module):
    """Linear, GELU, linear on every patch: (N, P, D_in) -> (N, P, D)."""

    def __init__(self, d_in: int, patches: int, embeddings: Tensor) -> None:
        super().__init__()
        d = embeddings.shape[1]
        self.queries = patches
        self.project = nn.Sequential(nn.LayerNorm(d_in), nn.Linear(d_in, d), nn.GELU(), nn.Linear(d, d))
        self.like = LikeEmbeddings(embeddings)

    def forward(self, patches: Tensor) -> Tensor:
        """One soft token for each patch."""
        return self.like(self.project(patches))


def quick_attention(q: Tensor) -> Any:
    """A context for scaled_dot_product_attention. In bfloat16 on a CPU it chooses the plain implementation: there, the gradient
    of the fused kernel costs more than everything else in the resampler."""
    slow = q.device.type == "cpu" and q.dtype == torch.bfloat16 and torch.is_grad_enabled()
    return sdpa_kernel(SDPBackend.MATH) if slow else nullcontext()


class Look(nn.Module):
    """One layer of the resampler: queries look at the patches and at each other, then think. (N, Q, W) -> (N, Q, W)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))  # for queries, for patches, before thinking
        self.ask, self.tell = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.merge = nn.Linear(width, width)
        self.think = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, patches: Tensor) -> Tensor:
        """x (N, Q, W), patches (N, P, W)."""
        q, k, v = self._asked_and_told(x, patches)
        with quick_attention(q):
            seen = F.scaled_dot_product_attention(q, k, v)  # (N, H, Q, W / H)
        x = x + self.merge(seen.transpose(1, 2).flatten(2))
        return x + self.think(self.norms[2](x))

    def weights(self, x: Tensor, patches: Tensor) -> Tensor:
        """How much each query looks at each patch and each query, averaged over heads: (N, Q, P + Q)."""
        q, k, _ = self._asked_and_told(x, patches)
        return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(dim=-1).mean(dim=1)

    def _asked_and_told(self, x: Tensor, patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        own = self.norms[0](x)
        seen = torch.cat([self.norms[1](patches), own], dim=1)  # (N, P + Q, W)
        k, v = self.tell(seen).chunk(2, dim=-1)
        return tuple(t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (self.ask(own), k, v))


class Resampler(nn.Module):
    """Learned queries look at the patches, layer by layer: (N, P, D_in) -> (N, Q, D)."""

    def __init__(
        self, d_in: int, patches: int, embeddings: Tensor, queries: int = 16, width: int = 128, layers: int = 2,
        heads: int = 4,
    ) -> None:  # fmt: skip
        super().__init__()
        if width % heads:
            raise UserError(f"width={width} is no multiple of heads={heads}: choose another width.")
        self.queries = queries
        self.enter = nn.Sequential(nn.LayerNorm(d_in), nn.Linear(d_in, width))
        # The place of a patch must be as loud as its content, since both make the scene.
        self.places = nn.Parameter(torch.randn(patches, width))
        self.asks = nn.Parameter(torch.randn(queries, width))
        self.layers = nn.ModuleList(Look(width, heads) for _ in range(layers))
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, embeddings.shape[1]))
        self.like = LikeEmbeddings(embeddings)

    def forward(self, patches: Tensor) -> Tensor:
        """One soft token a query."""
        x, seen = self._begin(patches)
        for layer in self.layers:
            x = layer(x, seen)
        return self.like(self.leave(x))

    def _begin(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        if patches.shape[1] != len(self.places):
            raise UserError(f"This connector was made for {len(self.places)} patches and got {patches.shape[1]}.")
        return self.asks.expand(len(patches), -1, -1), self.enter(patches) + self.places

    @torch.no_grad()
    def attention(self, patches: Tensor) -> Tensor:
        """How each query shares out its attention among the patches in the last layer: (N, Q, P), summing to 1 over P."""
        x, seen = self._begin(patches)
        for layer in self.layers[:-1]:
            x = layer(x, seen)
        on_patches = self.layers[-1].weights(x, seen)[..., : seen.shape[1]]
        return on_patches / on_patches.sum(dim=-1, keepdim=True)


class QueriesInTower(nn.Module):
    """Queries behind the patches inside a vision transformer, then linear, GELU, linear: pixels -> (N, Q, D).

    `tower` is a copy of the image tower's transformers model; the recipe says which parts of it learn. In MPM the queries
    pass through expert layers of their own; here they share the layers of the patches.
    """

    def __init__(self, tower: nn.Module, embeddings: Tensor, queries: int = 16) -> None:
        super().__init__()
        if not (hasattr(tower, "embeddings") and hasattr(tower, "layernorm")):
            raise UserError(
                f"Queries inside the tower need a vision transformer of transformers, not {type(tower).__name__}: "
                "take connector='resampler', which works on the patches of any tower."
            )
        self.queries, self.tower = queries, tower
        d_in, d = tower.config.hidden_size, embeddings.shape[1]
        with torch.no_grad():
            size = tower.config.image_size
            spread = tower.embeddings(torch.zeros(1, tower.config.num_channels, size, size)).std()  # as loud as patches
        self.asks = nn.Parameter(spread * torch.randn(queries, d_in))
        self.project = nn.Sequential(nn.Linear(d_in, d), nn.GELU(), nn.Linear(d, d))
        self.like = LikeEmbeddings(embeddings)

    def forward(self, pixels: Tensor) -> Tensor:
        """Prepared pixels (N, 3, S, S) -> one soft token a query."""
        x = self.tower.embeddings(pixels)  # (N, 1 + P, D_in)
        x = torch.cat([x, self.asks.expand(len(x), -1, -1)], dim=1)
        for layer in blocks(self.tower):
            out = layer(x)
            x = out[0] if isinstance(out, tuple) else out
        return self.like(self.project(self.tower.layernorm(x)[:, -self.queries :]))


def build_connector(
    kind: str, d_in: int, patches: int, embeddings: Tensor, tower: nn.Module | None = None, soft: str = "free",
    **sizes: int,
) -> nn.Module:  # fmt: skip
    """The connector of that name: "mlp", "resampler" or "queries" (which needs `tower`). Its soft tokens are "free" or a
    "mixture" of word embeddings. Raises UserError for another name."""
    if soft not in SOFT:
        raise unknown("kind of soft tokens", soft, SOFT)
    if kind == "mlp":
        made: nn.Module = Projector(d_in, patches, embeddings)
    elif kind == "resampler":
        made = Resampler(d_in, patches, embeddings, **sizes)
    elif kind == "queries":
        if tower is None:
            raise UserError("connector='queries' puts the queries inside the image tower: give that tower's model too.")
        made = QueriesInTower(tower, embeddings, sizes.get("queries", 16))
    else:
        raise unknown("connector", kind, CONNECTORS)
    if soft != "free":
        made.like = SOFT[soft](embeddings)
    return made


# The Q-Former of BLIP-2 (2301.12597, section 3.1): queries that look at patches, and words that share their self-attention.
# The transformer itself comes from the library transformers; queries, words and positions are added in front of it. A mask
# says who sees whom: queries alone, words alone, both (matching), or words that see the queries and the words before
# (telling).
#
# Shapes: N pictures, P patches, Q queries, T tokens, D_in the image tower's width, W the Q-Former's, D the language model's.


class QFormer(nn.Module):
    """Queries (1, Q, W), words, and a BERT-style transformer whose layers let the queries look at patches."""

    def __init__(
        self, d_in: int, patches: int, vocabulary: int, queries: int = 16, width: int = 128, layers: int = 4,
        heads: int = 4, longest: int = 128,
    ) -> None:  # fmt: skip
        super().__init__()
        from transformers import Blip2QFormerConfig, Blip2QFormerModel

        if width % heads:
            raise UserError(f"width={width} is no multiple of heads={heads}: choose another width.")
        config = Blip2QFormerConfig(
            vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
            intermediate_size=2 * width, encoder_hidden_size=width, cross_attention_frequency=2,
            use_qformer_text_input=True, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            attn_implementation="eager",  # takes any mask
        )  # fmt: skip
        self.enter = nn.Sequential(nn.LayerNorm(d_in), nn.Linear(d_in, width))
        self.places = nn.Parameter(torch.randn(patches, width))  # as loud as what a patch shows
        self.queries = nn.Parameter(torch.randn(1, queries, width))
        self.words = nn.Embedding(vocabulary, width)
        self.order = nn.Embedding(longest, width)
        self.former = Blip2QFormerModel(config)

    @property
    def width(self) -> int:
        """W."""
        return self.queries.shape[-1]

    def patches(self, seen: Tensor) -> Tensor:
        """Patches (N, P, D_in) in the form that the queries look at, (N, P, W)."""
        return self.enter(seen) + self.places

    def see(self, seen: Tensor) -> Tensor:
        """Patches (N, P, D_in) -> the queries' states (N, Q, W)."""
        asked = self.queries.expand(len(seen), -1, -1)
        return self.former(asked, encoder_hidden_states=self.patches(seen)).last_hidden_state

    def read(self, ids: Tensor) -> Tensor:
        """Token ids (N, T), 0 for padding -> their states (N, T, W), without a picture."""
        return self.former(self._told(ids), query_length=0, attention_mask=(ids != 0).long()).last_hidden_state

    def both(self, seen: Tensor, ids: Tensor, telling: bool = False) -> Tensor:
        """Patches and token ids (N, T), 0 for padding -> states of queries and tokens, (N, Q + T, W).

        Queries and words see each other. When `telling`, words see the queries and the words before, and no query sees a word.
        """
        asked = self.queries.expand(len(seen), -1, -1)
        x = torch.cat([asked, self._told(ids)], dim=1)
        mask = self._mask(asked.shape[1], ids, telling)
        return self.former(
            x, query_length=asked.shape[1], attention_mask=mask, encoder_hidden_states=self.patches(seen)
        ).last_hidden_state

    def _told(self, ids: Tensor) -> Tensor:
        return self.words(ids) + self.order.weight[: ids.shape[1]]

    @staticmethod
    def _mask(queries: int, ids: Tensor, telling: bool) -> Tensor:
        """What is added to the attention scores, float32 (N, 1, Q + T, Q + T): 0 where looking is allowed, else minus infinity
        as nearly as float32 has it."""
        there = torch.cat([ids.new_ones(len(ids), queries), ids != 0], dim=1).bool()
        long = there.shape[1]
        may = there[:, None, :].expand(-1, long, -1)
        if telling:
            row, column = torch.arange(long, device=ids.device)[:, None], torch.arange(long, device=ids.device)[None]
            may = may & ((column < queries) | (column <= row) & (row >= queries))
        return torch.zeros(may.shape, device=ids.device).masked_fill(~may, torch.finfo(torch.float32).min)[:, None]


class SoftQueries(nn.Module):
    """A Q-Former as a connector: patches (N, P, D_in) -> soft tokens (N, Q, D).

    The states of the queries pass through a linear map, and then have the scale of the language model's embeddings.
    """

    def __init__(self, qformer: QFormer, embeddings: Tensor) -> None:
        """`embeddings` is the language model's table, (V, D)."""
        super().__init__()
        turn, like = nn.Linear(qformer.width, embeddings.shape[1]), LikeEmbeddings(embeddings)
        self.qformer, self.to_lm = qformer, nn.Sequential(OrderedDict(turn=turn, like=like))

    def forward(self, seen: Tensor) -> Tensor:
        """One soft token for each query."""
        return self.to_lm(self.qformer.see(seen))


def blocks(encoder: Any) -> nn.ModuleList:
    """The layers of a transformers encoder. Raises UserError if they are under none of the usual names."""
    for path in ("encoder.layer", "encoder.layers", "layers", "transformer.layer"):
        found = encoder
        for name in path.split("."):
            found = getattr(found, name, None)
        if isinstance(found, nn.ModuleList):
            return found
    raise UserError(f"{type(encoder).__name__} shows no layers to put acquirers behind: take a BERT-style encoder.")
