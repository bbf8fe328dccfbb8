"""Language model: the text-only backbone that the other systems teach to see. Next-token prediction and nothing else.

Method. A decoder of standard parts (RMSNorm, rotary positions, SwiGLU: LLaMA, 2302.13971, section 2.2) reads documents one
by one. Each token is predicted from those before it, by cross-entropy over the whole vocabulary. In most documents, only
tokens that can be foreseen count (as in Rho-1, 2404.07965, section 2.2). Which scene a caption describes and which question
comes next is chance, and that noise would cost a small model most of what it can learn from the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mpm_lite import ops
from mpm_lite.core.runtime import UserError
from mpm_lite.recipes.base import Recipe, Stage

PAD = 0


@dataclass(frozen=True)
class LanguageModelOptions:
    """Every dial of the recipe, chosen on monolingual validation text only."""

    width: int = 128  # D
    layers: int = 4
    heads: int = 8
    hidden: int = 256  # of SwiGLU
    context: int = 256  # tokens
    # At the start: the spread of the weights, the spread of the embeddings, and a factor for what a layer adds to the stream.
    # With the usual 0.02 everywhere, or with layers that drown the embeddings, the model repeats what it read as a bag of
    # words for thousands of steps, before it finds out which word followed which.
    spread: float = 0.08
    embedding_spread: float = 1.0
    branch_scale: float = 0.35
    back: tuple[int, ...] = (1, 2, 3, 4)  # how many tokens back the first heads of the first layer look at the start
    back_later: tuple[int, ...] = (3, 4, 5, 6)  # the same for the last heads of every layer but the first two
    alike: int = 4  # heads, in each layer but the first and last, that look for tokens like their own at the start
    theta: float = 1000.0  # of the rotary positions; small, because a context is short
    compiled: bool = True  # a quarter faster, but needs a C++ compiler
    bf16: bool = True  # matrix products in bfloat16: a third faster on a processor that has units for them, else slower
    lookups: int = 8_000  # steps of looking up, at a constant rate
    steps: int = 18_000  # on the text as it is meant to be read
    lr: float = 2e-3
    embedding_lr: float = 5.0  # times lr: a word occurs in few steps, a weight of a layer in every step
    weight_decay: float = 0.01


class Buckets:
    """Documents as training data. An example is a bucket of `size` documents of similar length, so that there is little padding.

    Documents are sorted by length within `mixed` buckets' worth of them at a time, in which every kind of document occurs. If
    all documents were sorted together, each bucket would hold one kind only, and a model would take ten times as long to learn
    to read several things at once.
    """

    def __init__(
        self, rows: Sequence[Sequence[int]], size: int, counts: Sequence[Sequence[bool]] | None = None, mixed: int = 8,
        digest: str = "",
    ) -> None:  # fmt: skip
        """`counts` says of each token whether the loss counts it; None counts all of them."""
        self.rows, self.counts, self.digest, self.buckets = rows, counts, digest, []
        lengths = np.array([len(row) for row in rows])
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


# How heads begin. _SHARED: the part that all embeddings share, for a spread of 1. _SHARP: how far a look back stands out from
# its neighbours, as a weight. _PLANES: how many of the fastest rotary planes it uses. _MATCH: how strongly like finds like.
# _PASSED: how much is passed on. The word before must be louder than the word itself: to tell the colour of the star, the
# model looks for what stood before "star".
_SHARED, _SHARP, _PLANES, _MATCH, _PASSED = 0.5, 4.6, 6, 1.5, 2.5


def look_back(decoder: Any, first: Sequence[int], later: Sequence[int] = ()) -> None:
    """Set the weights, in place, so that head h of the first layer begins by looking first[h] tokens back.

    Query and key come from a direction that all embeddings share, turned against each other by as much as the rotary positions
    turn in so many tokens. What a head of the first layer reads, it passes on in the directions in which it read it, and no
    two heads use the same ones. A token thus carries its own word and those before it, apart from each other. The last heads
    of every layer but the first two look `later` tokens back: from the end of a question to what it asks about. Raises
    UserError if there are too few heads.
    """
    heads = _subspaces(decoder)
    for offsets in (first, later):
        if len(offsets) > len(heads):
            raise UserError(f"{len(offsets)} offsets to look back by need as many heads; there are {len(heads)}.")
    if not (first or later):
        return
    width = decoder.config.hidden_size
    shared = torch.randn(width, generator=torch.Generator().manual_seed(0)).sign() / width**0.5  # (D,), length 1
    embeddings, layers = decoder.model.embed_tokens.weight, decoder.model.layers
    embeddings.add_(_SHARED * float(embeddings.std()) * width**0.5 * shared)
    for head, offset in enumerate(first):
        _look(decoder, layers[0].self_attn, head, offset, shared)
    for layer in layers[2:]:
        for head, offset in enumerate(later, len(heads) - len(later)):
            _look(decoder, layer.self_attn, head, offset, shared)
    if first:
        layers[0].self_attn.v_proj.weight.copy_(heads.flatten(0, 1))
        layers[0].self_attn.o_proj.weight.copy_(_PASSED * heads.flatten(0, 1).T)


def _look(decoder: Any, attention: Any, head: int, offset: int, shared: Tensor) -> None:
    """Set the query and key of one head so that it looks `offset` tokens back."""
    size, width = decoder.config.hidden_size // decoder.config.num_attention_heads, decoder.config.hidden_size  # S, D
    length = (width / (1 + 1 / _SHARED**2)) ** 0.5  # of the shared part after the norm
    planes = min(_PLANES, size // 2)
    turn = decoder.config.rope_parameters["rope_theta"] ** (-torch.arange(planes) / (size // 2))  # radians per token
    query, key = torch.zeros(size), torch.zeros(size)
    query[:planes] = _SHARP
    key[:planes], key[size // 2 :][:planes] = _SHARP * torch.cos(offset * turn), _SHARP * torch.sin(offset * turn)
    own = slice(head * size, (head + 1) * size)
    attention.q_proj.weight[own] = torch.outer(query, shared) / length
    attention.k_proj.weight[own] = torch.outer(key, shared) / length


def look_for_like(decoder: Any, count: int) -> None:
    """Set the weights, in place, so that `count` heads of each layer but the first and last look for tokens like their own.

    Query and key are the same projection, onto the directions in which the head of that number in the first layer reads and
    writes. Tokens are thus alike if they are the same word and, more so, if the same word stands before them.
    """
    heads = _subspaces(decoder)[:count].flatten(0, 1)  # (count * S, D)
    for layer in decoder.model.layers[1:-1]:
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            projection.weight[: len(heads)] = _MATCH * heads


def _subspaces(decoder: Any) -> Tensor:
    """Orthogonal directions, as many for each head as it is wide, (H, S, D). They are the same in every call."""
    c = decoder.config
    drawn = torch.randn(c.hidden_size, c.hidden_size, generator=torch.Generator().manual_seed(0))
    return torch.linalg.qr(drawn)[0].view(c.num_attention_heads, -1, c.hidden_size)


class LanguageModel(Recipe):
    """A decoder that learns to predict those of the token ids (N, T), 0 for padding, that count."""

    name = "language-model"
    Options = LanguageModelOptions
    idle = False

    def __init__(self, vocabulary: int, options: LanguageModelOptions = LanguageModelOptions(), **special: int) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        super().__init__()
        o = self.options = options
        # In bfloat16 on a CPU, the gradient of the fused attention kernel costs more than everything else together.
        attention = "eager" if o.bf16 else "sdpa"
        config = LlamaConfig(
            vocab_size=vocabulary, hidden_size=o.width, num_hidden_layers=o.layers, num_attention_heads=o.heads,
            intermediate_size=o.hidden, max_position_embeddings=o.context, attn_implementation=attention,
            rope_parameters={"rope_type": "default", "rope_theta": o.theta}, tie_word_embeddings=False,
            initializer_range=o.spread, pad_token_id=PAD, **special,
        )  # fmt: skip
        self.decoder: Any = LlamaForCausalLM(config)
        with torch.no_grad():
            self.decoder.model.embed_tokens.weight.normal_(0, o.embedding_spread)
            for layer in self.decoder.model.layers:
                layer.self_attn.o_proj.weight.mul_(o.branch_scale)
                layer.mlp.down_proj.weight.mul_(o.branch_scale)
            look_back(self.decoder, o.back, o.back_later)
            look_for_like(self.decoder, o.alike)
        # A function is compiled, not a module, which would hold every parameter a second time. The embeddings are left out:
        # once compiled, several threads would add up their gradient in any order.
        read = self.decoder.model.forward
        self._read = torch.compile(read, dynamic=True) if o.compiled else read

    def stages(self) -> list[Stage]:
        o = self.options
        faster = (("decoder.model.embed_tokens", o.embedding_lr),)
        how = {"batch": 1, "warmup": 0.05, "beta2": 0.95, "clip": 1.0, "faster": faster}  # a batch is one bucket
        objective = "cross-entropy of the next token"
        pretraining = Stage.of(o, "pretraining", ("decoder",), (), objective, **how)
        # A model that meets all questions at once answers them by guessing for ten times as long.
        return [replace(pretraining, name="looking up", steps=o.lookups, final=1.0), pretraining]

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        ids, counts = batch["ids"], batch["counts"][:, 1:]  # (N, T), (N, T - 1)
        # Padding comes after every document, and attention looks back only, so that no mask is needed.
        words = self.decoder.model.embed_tokens(ids[:, :-1])  # (N, T - 1, D)
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self.options.bf16):
            states = self._read(inputs_embeds=words, use_cache=False).last_hidden_state  # (N, T - 1, D)
        states = states[counts].float()  # (counted, D)
        return ops.linear_cross_entropy(states, self.decoder.lm_head.weight, ids[:, 1:][counts], check=False)

    def weight(self, batch: dict[str, Tensor]) -> float:
        """The number of tokens that count."""
        return float(batch["counts"][:, 1:].sum())

    def predict(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """{"ids": (N, T)} -> {"logits": (N, T, V)}"""
        return {"logits": self.decoder(input_ids=inputs["ids"], use_cache=False).logits}
