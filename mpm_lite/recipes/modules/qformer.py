"""The Q-Former of BLIP-2 (2301.12597, section 3.1): queries that look at patches, and words that share their self-attention.

The transformer itself comes from the library transformers; queries, words and positions are added in front of it. A mask
says who sees whom: queries alone, words alone, both (matching), or words that see the queries and the words before (telling).

Shapes: N pictures, P patches, Q queries, T tokens, D_in the image tower's width, W the Q-Former's, D the language model's.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from mpm_lite.core.runtime import UserError
from mpm_lite.recipes.modules.connectors import LikeEmbeddings


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
