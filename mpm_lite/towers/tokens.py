"""The subword tokenizer that the toy world's models share: byte-pair encoding over text of all ten languages."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mpm_lite import runtime

PAD, BEGIN, END, UNKNOWN, BREAK = "<pad>", "<s>", "</s>", "<unk>", "\n"
TOKENIZER = "tokenizer.json"
SPECIAL = (PAD, BEGIN, END, UNKNOWN)  # ids 0 to 3
# Arabic writes "and" and "the" together with the word behind them. Apart, as its segmenters put them, القلب and قلب are
# the same word. The tatweel is the mark of a beginning, in print too.
_CLITICS, _APART = ("و", "ال"), "ـ "


def train_tokenizer(texts: Iterable[str], vocabulary: int, words: Iterable[str] = ()) -> Any:
    """A `tokenizers` BPE of at most `vocabulary` tokens, as a transformers tokenizer.

    Every line of a text begins a word, and a line break is a token of its own. A text is read behind <s>. No token
    reaches over punctuation, a Han character or a run of katakana: a noun is the same token with a full stop behind it
    or without, which is what a model must see to say it again. `words` are those that a script without spaces keeps
    together, as a segmenter would; Arabic's "and" and "the" are read apart from their word and written together with it.
    """
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )
    from transformers import PreTrainedTokenizerFast

    apart = [*sorted(words, key=lambda word: (-len(word), word)), r"\p{Han}", r"[\p{Katakana}ー]+"]
    bpe = Tokenizer(models.BPE(unk_token=UNKNOWN))
    apart_from_word = [normalizers.Replace(Regex(rf"(?<!\S){c}(?=\p{{Arabic}})"), c + _APART) for c in _CLITICS]
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), *apart_from_word])
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(),
            pre_tokenizers.Split(Regex("|".join(apart)), "isolated"),
            pre_tokenizers.Punctuation("isolated"),
        ]
    )
    bpe.decoder = decoders.Sequence([decoders.Metaspace(), decoders.Fuse(), decoders.Replace(_APART, "")])
    trainer = trainers.BpeTrainer(vocab_size=vocabulary - 1, special_tokens=list(SPECIAL), show_progress=False)
    bpe.train_from_iterator((line for text in texts for line in text.split(BREAK)), trainer)
    bpe.add_tokens([AddedToken(BREAK, normalized=False)])
    bpe.post_processor = processors.TemplateProcessing(f"{BEGIN} $A", None, [(BEGIN, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=PAD, bos_token=BEGIN, eos_token=END, unk_token=UNKNOWN, padding_side="left"
    )


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Token ids as int64 (N, T), 0 for padding, which stands behind."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


def tokenizer_file(folder: Path) -> Path | None:
    """The tokenizer.json of a model's folder: its own; that of all models, for one among the assets that has none."""
    own = folder / TOKENIZER
    return own if own.exists() else _shared(folder)


def _shared(folder: Path) -> Path | None:
    """The tokenizer.json that the models among the assets share, if `folder` is such a model's."""
    path = runtime.asset() / TOKENIZER
    ours = folder.resolve().parent.parent == path.parent.resolve() and (folder / "tokenizer_config.json").exists()
    return path if ours and path.exists() else None


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write the tokenizer so that every transformers version reads it: later ones write a class that earlier lack.

    Among the assets a folder gets no copy of the one that all models there share.
    """
    tokenizer.save_pretrained(folder)
    own, shared = folder / TOKENIZER, _shared(folder)
    if shared and shared.read_bytes() == own.read_bytes():
        own.unlink()
    path = folder / "tokenizer_config.json"
    said = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    said.pop("model_max_length", None)
    path.write_text(json.dumps(said, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
