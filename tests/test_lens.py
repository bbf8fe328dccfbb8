"""The logit lens: its last layer is the model's own prediction, and tokens belong to the languages that use them."""

import numpy as np
import pytest
import torch

from mpm_lite import UserError
from mpm_lite.data import toyworld
from mpm_lite.data.toyworld import grammar
from mpm_lite.evaluation import chat
from mpm_lite.towers.load import load_lm


@pytest.fixture(scope="module")
def lm():
    return load_lm("toy-multilingual")


def test_the_last_layer_is_what_the_model_predicts(lm):
    soft = torch.randn(3, 4, lm.width)
    question = grammar.describe("de")
    read = chat.read_probabilities(lm, soft, question)
    assert read.shape == (5, 3, 4, lm.vocabulary) and torch.allclose(read.sum(-1), torch.ones(5, 3, 4), atol=1e-4)
    ids = torch.tensor(lm.encode([f"\n{question}\n"] * 3))
    with torch.no_grad():
        first, rest = lm.embed(ids[:, :1]), lm.embed(ids[:, 1:])  # soft tokens stand behind the beginning of the text
        own = lm.model(inputs_embeds=torch.cat([first, soft, rest], 1)).logits.softmax(-1)[:, 1:5]
    assert torch.allclose(read[-1], own, atol=1e-4)


def test_words_are_found_where_they_were_put(lm):
    """Soft tokens that are a word's own embeddings must read as that word in front of the layers or behind some."""
    ids = lm.encode(["red circle red circle"], special=False)[0]
    table = chat.read_words(lm, lm.embed(torch.tensor(ids))[None], grammar.describe("en"), top=2)
    assert list(table.columns) == ["picture", "layer", "query", "rank", "token", "probability"]
    assert (
        len(table) == 5 * len(ids) * 2
        and (table.query("rank == 0")["probability"] >= table.query("rank == 1")["probability"].to_numpy()).all()
    )


def test_tokens_belong_to_those_who_use_them(lm):
    shares = chat.token_languages(lm, toyworld.split_scenes("val")[:80])
    assert shares.shape == (lm.vocabulary, 10)
    sums = shares.sum(1)
    assert np.all((np.abs(sums - 1) < 1e-9) | (sums == 0))
    for word, language in ((" red", "en"), (" Kreis", "de"), ("心形是", "zh"), ("दिल", "hi")):
        of = shares[lm.encode([word], special=False)[0]].sum(0)
        assert of.argmax() == grammar.LANGUAGES.index(language), word
    stop = shares[lm.encode(["."], special=False)[0][-1]]
    assert stop.sum() == 0, "a full stop is everybody's"


def test_shares_of_languages_add_up(lm):
    shares = chat.token_languages(lm, toyworld.split_scenes("val")[:40])
    table = chat.languages_read(lm, torch.randn(4, 3, lm.width), grammar.describe("en"), shares)
    assert np.allclose(table.groupby("layer")["share"].sum(), 1) and table["layer"].nunique() == 5


def test_models_without_a_norm_or_of_two_halves_are_refused(lm):
    import copy

    other = copy.copy(lm)
    other.kind = "encoder-decoder"
    with pytest.raises(UserError, match="needs a causal model"):
        chat.read_probabilities(other, torch.randn(1, 2, lm.width), "x")
