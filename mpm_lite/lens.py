"""A logit lens on soft tokens: which words does a frozen language model take what it sees for, layer by layer?

The state at a soft token is put through the model's last norm and its head, as if it were the last layer's (the logit
lens). Whether sight passes through English on its way to a German reply is then a matter of counting: how much of what
the lens reads belongs to words of which language.

Shapes: N pictures, Q soft tokens, L layers of the model, V its vocabulary, K languages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mpm_lite.data import grammar
from mpm_lite.data.scenes import Scene
from mpm_lite.runtime import UserError
from mpm_lite.towers.lm import LM

_NORMS = ("norm", "final_layer_norm", "ln_f")  # what families of models call the norm before the head


@torch.no_grad()
def probabilities(lm: LM, soft: Tensor, question: str = "") -> Tensor:
    """What the lens reads at each soft token (N, Q, D) in front of `question`: float32 (L + 1, N, Q, V), the soft tokens
    themselves first. UserError for a model that has no norm before its head, and for one of two halves."""
    norm = next((getattr(lm.model.base_model, n) for n in _NORMS if hasattr(lm.model.base_model, n)), None)
    if norm is None or lm.kind != "causal":
        raise UserError(
            f"{lm.name} has no norm between its layers and a head: a logit lens needs a causal model with one."
        )
    context = lm.read([f"\n{question}\n"] * len(soft), soft)
    layers = lm.all_layers(context)
    first = int(lm.rows([f"\n{question}\n"])[0])  # the soft tokens stand first, or behind a beginning-of-text token
    found = []
    for number, states in enumerate(layers):
        at = states[:, first : first + soft.shape[1]]
        last = number == len(layers) - 1  # transformers gives the last states behind the norm
        found.append(lm.head(at if last else norm(at)).float().softmax(dim=-1))
    return torch.stack(found)


def words(lm: LM, soft: Tensor, question: str = "", top: int = 3) -> pd.DataFrame:
    """The likeliest tokens at each soft token: picture, layer, query, rank, token, probability."""
    read = probabilities(lm, soft, question)
    best, which = read.topk(top, dim=-1)  # (L + 1, N, Q, top)
    rows = [
        (
            n,
            layer,
            q,
            rank,
            lm.tokenizer.convert_ids_to_tokens(int(which[layer, n, q, rank])),
            float(best[layer, n, q, rank]),
        )
        for n in range(read.shape[1])
        for layer in range(read.shape[0])
        for q in range(read.shape[2])
        for rank in range(top)
    ]
    return pd.DataFrame(rows, columns=["picture", "layer", "query", "rank", "token", "probability"])


def token_languages(lm: LM, scenes: Sequence[Scene], languages: Sequence[str] = grammar.LANGUAGES) -> np.ndarray:
    """Whose a token is: the share of its occurrences in captions of these scenes by language, float64 (V, K).

    Tokens of no caption, and those that every language uses, such as a full stop, have zeros: they are nobody's.
    """
    counts = np.zeros((lm.vocabulary, len(languages)))
    for k, language in enumerate(languages):
        ids = [i for row in lm.encode([grammar.in_order(s, language)[0] for s in scenes], special=False) for i in row]
        counts[:, k] = np.bincount(ids, minlength=lm.vocabulary)
    rates = counts / counts.sum(axis=0).clip(min=1)
    total = rates.sum(axis=1, keepdims=True)
    shares = np.divide(rates, total, out=np.zeros_like(rates), where=total > 0)
    shares[(counts > 0).sum(axis=1) > len(languages) / 2] = 0
    return shares


def languages_read(
    lm: LM, soft: Tensor, question: str, shares: np.ndarray, languages: Sequence[str] = grammar.LANGUAGES
) -> Any:
    """How much of what the lens reads belongs to each language, pandas: layer, language, share (of what is anybody's).

    `shares` is what `token_languages` gives. Even use of all languages is 1 / K each.
    """
    read = probabilities(lm, soft, question).mean(dim=(1, 2)).double().cpu().numpy()  # (L + 1, V)
    of = read @ shares  # (L + 1, K)
    of = of / of.sum(axis=1, keepdims=True)
    rows = [(layer, code, of[layer, k]) for layer in range(len(of)) for k, code in enumerate(languages)]
    return pd.DataFrame(rows, columns=["layer", "language", "share"])
