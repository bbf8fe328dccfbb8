"""A text's vector is the text's own: no pad token, no neighbour in the batch and no length changes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_towers_tiny as tiny
import torch
import transformers as t

import mpm_lite as mpm
from mpm_lite import UserError
from mpm_lite.towers import folders
from mpm_lite.towers.inference import batches, padding_id

SIZE = {"vocab_size": len(tiny.WORDS), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32}  # fmt: skip
SHORT = SIZE | {"max_position_embeddings": 34}
SPECIAL = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}


def small_gpt2() -> Any:
    return t.GPT2LMHeadModel(
        t.GPT2Config(vocab_size=len(tiny.WORDS), n_embd=16, n_layer=2, n_head=2, n_positions=34, **SPECIAL)
    )


MODELS: dict[str, Callable[[], Any]] = {
    "bert": lambda: t.BertModel(t.BertConfig(**SHORT)),
    "xlm-roberta": lambda: t.XLMRobertaModel(t.XLMRobertaConfig(**SHORT, **SPECIAL)),
    "gpt2": small_gpt2,
    "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**SHORT)),
    "bloom": lambda: t.BloomModel(t.BloomConfig(vocab_size=len(tiny.WORDS), hidden_size=16, n_layer=2, n_head=2)),
    "t5": lambda: t.T5Model(t.T5Config(vocab_size=len(tiny.WORDS), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)),
}  # fmt: skip


def bare_tokenizer(**special: Any) -> Any:
    """The words of the tiny models, nothing around a text, and no special token but those named."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(tiny.WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return t.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", **special)


def saved(root: Path, model: Any, tokenizer: Any = None) -> Path:
    """A model, its weights spread so that texts differ, and a tokenizer in one folder."""
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)
    model.save_pretrained(root)
    (tokenizer or tiny.tokenizer()).save_pretrained(root)
    return root


def alone(tower: Any, texts: list[str]) -> np.ndarray:
    return np.concatenate([tower.encode([text]) for text in texts])


@pytest.mark.parametrize("kind", MODELS)
def test_vectors_do_not_depend_on_the_pad_token_or_on_there_being_one(tmp_path: Path, kind: str) -> None:
    """GPT-2 and Llama have none, and some BERT folders lack theirs."""
    torch.manual_seed(0)
    tower = mpm.load_text_tower(str(saved(tmp_path / kind, MODELS[kind](), bare_tokenizer())), "cpu")
    assert tower.tokenizer.pad_token_id is None and padding_id(tower.tokenizer) == 0
    right, states = alone(tower, tiny.TEXTS), tower.tokens(tiny.TEXTS)[0]
    assert np.linalg.norm(right[0] - right[1]) > 1e-2
    for pad in (None, *tiny.WORDS[:6], tiny.WORDS[-1]):
        tower.tokenizer.pad_token = pad
        assert np.allclose(tower.encode(tiny.TEXTS), right, atol=1e-5), pad
        assert np.allclose(tower.tokens(tiny.TEXTS)[0], states, atol=1e-4), pad


@pytest.mark.parametrize("kind", ["fnet", "convbert"])
def test_a_model_that_reads_padding_is_given_none(tmp_path: Path, kind: str) -> None:
    """FNet mixes all tokens and ConvBERT neighbouring ones, whatever the mask says: their neighbours in a batch of several
    lengths would change a text's vector."""
    torch.manual_seed(0)
    of_fnet = {key: value for key, value in SHORT.items() if key != "num_attention_heads"}
    model = (
        t.FNetModel(t.FNetConfig(**of_fnet))
        if kind == "fnet"
        else t.ConvBertModel(t.ConvBertConfig(**SHORT, embedding_size=16))
    )
    tower = mpm.load_text_tower(str(saved(tmp_path, model)), "cpu")
    assert not tower.mixed and tower.fingerprint != folders.fingerprint_folder(tmp_path)
    assert np.allclose(tower.encode(tiny.TEXTS), alone(tower, tiny.TEXTS), atol=1e-5)
    tower.mixed = True
    assert not np.allclose(tower.encode(tiny.TEXTS), alone(tower, tiny.TEXTS), atol=1e-4)


def test_batches_hold_every_row_once_and_the_shorter_first() -> None:
    lengths = [3, 1, 3, 2, 1, 3, 3]
    assert batches(lengths, 3, True) == [[1, 4, 3], [0, 2, 5], [6]]
    assert batches(lengths, 3, False) == [[1, 4], [3], [0, 2, 5], [6]]
    assert batches([], 3, True) == batches([], 3, False) == []


@pytest.mark.parametrize(
    "model, longest",
    [
        (lambda: t.MPNetModel(t.MPNetConfig(**SHORT)), 32),
        (lambda: t.LongformerModel(t.LongformerConfig(**SHORT, attention_window=8, pad_token_id=1)), 32),
        (lambda: t.XLMRobertaXLModel(t.XLMRobertaXLConfig(**SHORT, pad_token_id=1)), 32),
        (lambda: t.RobertaModel(t.RobertaConfig(**SHORT, pad_token_id=3)), 30),
        (lambda: t.BertModel(t.BertConfig(**SHORT)), 34),
        (lambda: t.XLNetModel(t.XLNetConfig(vocab_size=len(tiny.WORDS), d_model=16, n_layer=1, n_head=2, d_inner=32)), 512),
    ],
    ids=["mpnet", "longformer", "xlm-roberta-xl", "roberta with another pad id", "bert", "xlnet"],
)  # fmt: skip
def test_a_long_text_is_cut_at_the_last_position_that_the_model_has(
    tmp_path: Path, model: Callable[[], Any], longest: int
) -> None:
    """Families that came from RoBERTa count positions from behind the padding's on; some name no limit, or -1."""
    torch.manual_seed(0)
    tower = mpm.load_text_tower(str(saved(tmp_path, model())), "cpu")
    assert tower.max_tokens == longest
    states, mask = tower.tokens(["cat " * 600, "dog"])
    assert mask.sum(1).tolist() == [longest, 3] and np.isfinite(states).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_weights_saved_in_half_precision_are_computed_with_in_float32(
    tmp_path: Path, kind: str, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    model = MODELS[kind]().to(dtype)
    tower = mpm.load_text_tower(str(saved(tmp_path / "half", model)), "cpu")
    model.float().save_pretrained(tmp_path / "wide")
    tiny.tokenizer().save_pretrained(tmp_path / "wide")
    wide = mpm.load_text_tower(str(tmp_path / "wide"), "cpu")
    assert {value.dtype for value in tower.model.state_dict().values() if value.is_floating_point()} == {torch.float32}
    assert np.array_equal(tower.encode(tiny.TEXTS), wide.encode(tiny.TEXTS))


def test_a_text_without_a_token_says_so(tmp_path: Path) -> None:
    """Its vector would be zero, and as near to every picture as to any other."""
    torch.manual_seed(0)
    tokenizer = bare_tokenizer()
    from tokenizers import normalizers

    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("!", " ")
    tower = mpm.load_text_tower(str(saved(tmp_path, MODELS["gpt2"](), tokenizer)), "cpu")
    for work in (tower.encode, tower.tokens):
        with pytest.raises(UserError, match=r"makes no token of text 1 \('!!'\): leave that text out\."):
            work(["a cat", "!!"])
