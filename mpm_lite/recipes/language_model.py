"""Language model: the text-only backbone that the other systems teach to see. Next-token prediction and nothing else.

Method. A decoder of standard parts (RMSNorm, rotary positions, SwiGLU: LLaMA, 2302.13971, section 2.2) reads documents
one by one; tokens are predicted from those before them, by cross-entropy over the whole vocabulary. In most documents
only what can be foreseen counts (as in Rho-1, 2404.07965, section 2.2): which scene a caption tells of and which question
comes next are coins, and their noise costs a small model most of what it could learn from the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mpm_lite import ops
from mpm_lite.recipes.base import Recipe, Stage

PAD = 0


@dataclass(frozen=True)
class LanguageModelOptions:
    """Every dial of the recipe, chosen on monolingual validation text only."""

    width: int = 128  # D
    layers: int = 4
    heads: int = 4
    hidden: int = 256  # of SwiGLU
    context: int = 256  # tokens
    # At the start: spread of the weights, of the embeddings, and how much smaller what a layer adds to the stream is.
    # With the usual 0.02 everywhere, or with layers that drown the embeddings, the model copies what it read as a bag of
    # words for thousands of steps before it finds out which word followed which.
    spread: float = 0.08
    embedding_spread: float = 1.0
    branch_scale: float = 0.35
    # Of the rotary positions: small, because a context is short, and which token stood two places ago must be told apart.
    theta: float = 100.0
    steps: int = 20_000
    lr: float = 2e-3
    embedding_lr: float = 5.0  # times lr: a word occurs in few steps, a weight of a layer in all
    weight_decay: float = 0.01


class Buckets:
    """Documents as training data: an example is a bucket of `size` documents of like length, so little is padding.

    Buckets are cut from `mixed` buckets' worth of documents at a time, in which each kind of document occurs. Sorted over
    all documents, a bucket is of one kind, and what a model must do to read several things at once comes ten times later.
    """

    def __init__(
        self,
        rows: Sequence[Sequence[int]],
        size: int,
        counts: Sequence[Sequence[bool]] | None = None,
        mixed: int = 8,
        digest: str = "",
    ) -> None:
        """`counts` says of each token whether the loss counts it; None counts all."""
        lengths, self.rows, self.digest = np.array([len(row) for row in rows]), rows, digest
        self.counts = counts
        self.buckets = []
        for start in range(0, len(rows) - size + 1, size * mixed):
            few = np.arange(start, min(start + size * mixed, len(rows)))
            few = few[np.argsort(lengths[few], kind="stable")]
            self.buckets += [few[i : i + size] for i in range(0, len(few) - size + 1, size)]

    def __len__(self) -> int:
        return len(self.buckets)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """The documents of some buckets: {"ids": int64 (N, T), "counts": bool (N, T)}, padded on the right with 0."""
        chosen = [i for k in indices.tolist() for i in self.buckets[k]]
        ids = pad_sequence([torch.tensor(self.rows[i]) for i in chosen], batch_first=True, padding_value=PAD)
        if self.counts is None:
            return {"ids": ids, "counts": ids != PAD}
        return {"ids": ids, "counts": pad_sequence([torch.tensor(self.counts[i]) for i in chosen], batch_first=True)}


class LanguageModel(Recipe):
    """A decoder that learns from token ids (N, T), 0 for padding, those that count."""

    name = "language-model"
    Options = LanguageModelOptions

    def __init__(self, vocabulary: int, options: LanguageModelOptions = LanguageModelOptions(), **special: int) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        super().__init__()
        self.options = options
        o = options
        self.decoder: Any = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary,
                hidden_size=o.width,
                num_hidden_layers=o.layers,
                num_attention_heads=o.heads,
                intermediate_size=o.hidden,
                max_position_embeddings=o.context,
                rope_parameters={"rope_type": "default", "rope_theta": o.theta},
                tie_word_embeddings=False,
                initializer_range=o.spread,
                pad_token_id=PAD,
                **special,
            )
        )

        with torch.no_grad():
            self.decoder.model.embed_tokens.weight.normal_(0, o.embedding_spread)
            for layer in self.decoder.model.layers:
                layer.self_attn.o_proj.weight.mul_(o.branch_scale)
                layer.mlp.down_proj.weight.mul_(o.branch_scale)

    def stages(self) -> list[Stage]:
        o = self.options
        return [
            Stage(
                name="pretraining",
                learns=("decoder",),
                frozen=(),
                objective="cross-entropy of the next token",
                steps=o.steps,
                batch=1,  # one bucket
                lr=o.lr,
                weight_decay=o.weight_decay,
                warmup=0.05,
                beta2=0.95,
                clip=1.0,
                faster=(("decoder.model.embed_tokens", o.embedding_lr),),
            )
        ]

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        ids, counts = batch["ids"], batch["counts"][:, 1:]  # (N, T), (N, T - 1)
        # Padding stands behind every document and attention looks back only, so no mask is needed.
        states = self.decoder.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state  # (N, T - 1, D)
        return ops.linear_cross_entropy(states[counts], self.decoder.lm_head.weight, ids[:, 1:][counts], check=False)

    def predict(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """{"ids": (N, T)} -> {"logits": (N, T, V)}"""
        return {"logits": self.decoder(input_ids=inputs["ids"], use_cache=False).logits}
