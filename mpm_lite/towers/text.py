"""Frozen text towers behind one face: sentence vectors, token states, and what the tokenizer makes of a text.

The subword tokenizer that the toy world's models share is here too: byte-pair encoding of text in all ten languages.

Shapes: N texts, T tokens of the longest one, D the tower's width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mpm_lite.core import runtime
from mpm_lite.core.keys import digest
from mpm_lite.core.runtime import UserError
from mpm_lite.towers.catalogue import TOKEN_TOWERS
from mpm_lite.towers.feature_cache import Fingerprinted
from mpm_lite.towers.inference import batches, frozen, hides_padding, in_batches, in_halves, padding_id, too_large

PAD, BEGIN, END, UNKNOWN, BREAK = "<pad>", "<s>", "</s>", "<unk>", "\n"
TOKENIZER = "tokenizer.json"
SPECIAL = (PAD, BEGIN, END, UNKNOWN)  # ids 0 to 3
# Arabic writes "and" and "the" together with the word that follows. Put apart, as its segmenters do, القلب and قلب are
# the same word. The tatweel marks such a beginning, as it does in print.
_CLITICS, _APART = ("و", "ال"), "ـ "


def train_tokenizer(texts: Iterable[str], vocabulary: int, words: Iterable[str] = ()) -> Any:
    """A `tokenizers` BPE of at most `vocabulary` tokens, as a transformers tokenizer.

    Every line of a text begins a word, and a line break is a token of its own. A text begins with <s>. No token reaches
    across punctuation, a Han character or a run of katakana: a noun is the same token with a full stop after it or
    without, so that a model which has seen it can say it again. `words` are those that a script without spaces keeps
    together, as a segmenter would; Arabic's "and" and "the" are read apart from their word and written together with it.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast

    apart = [*sorted(words, key=lambda word: (-len(word), word)), r"\p{Han}", r"[\p{Katakana}ー]+"]
    bpe = Tokenizer(models.BPE(unk_token=UNKNOWN))
    apart_from_word = [normalizers.Replace(Regex(rf"(?<!\S){c}(?=\p{{Arabic}})"), c + _APART) for c in _CLITICS]
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), *apart_from_word])
    alone = [pre_tokenizers.Split(Regex("|".join(apart)), "isolated"), pre_tokenizers.Punctuation("isolated")]
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), *alone])
    bpe.decoder = decoders.Sequence([decoders.Metaspace(), decoders.Fuse(), decoders.Replace(_APART, "")])
    trainer = BpeTrainer(vocab_size=vocabulary - 1, special_tokens=list(SPECIAL), show_progress=False)
    bpe.train_from_iterator((line for text in texts for line in text.split(BREAK)), trainer)
    bpe.add_tokens([AddedToken(BREAK, normalized=False)])
    bpe.post_processor = processors.TemplateProcessing(f"{BEGIN} $A", None, [(BEGIN, 1)])
    special = {"pad_token": PAD, "bos_token": BEGIN, "eos_token": END, "unk_token": UNKNOWN}
    return PreTrainedTokenizerFast(tokenizer_object=bpe, padding_side="left", **special)


def padded(rows: Sequence[Sequence[int]], value: int = 0) -> Tensor:
    """Token ids as int64 (N, T), the shorter rows filled up with `value` at the end."""
    if not len(rows):
        return torch.zeros(0, 0, dtype=torch.long)
    return pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], batch_first=True, padding_value=value)


def mask_of(rows: Sequence[Any]) -> Tensor:
    """Where padded rows have a token of their own: bool (N, T)."""
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)
    return torch.arange(max(map(len, rows), default=0)) < lengths[:, None]


def tokenizer_file(folder: Path) -> Path | None:
    """The tokenizer.json of a model's folder: its own, or, for a model among the assets without one, that of all of them."""
    own = folder / TOKENIZER
    return own if own.exists() else _shared(folder)


def _shared(folder: Path) -> Path | None:
    """The tokenizer.json that the models among the assets share, if `folder` is such a model's."""
    path = runtime.asset() / TOKENIZER
    ours = folder.resolve().parent.parent == path.parent.resolve() and (folder / "tokenizer_config.json").exists()
    return path if ours and path.exists() else None


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write the tokenizer so that every transformers version reads it: later ones name a class that earlier ones lack.

    Among the assets a folder gets no copy of the tokenizer that all models there share.
    """
    tokenizer.save_pretrained(folder)
    own, shared = folder / TOKENIZER, _shared(folder)
    if shared and shared.read_bytes() == own.read_bytes():
        own.unlink()
    path = folder / "tokenizer_config.json"
    said = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    said.pop("model_max_length", None)
    path.write_text(json.dumps(said, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


# Takes a model's output for texts and the mask bool (N, T) of their tokens; returns the texts' vectors (N, D).
Pool = Callable[[Any, Tensor], Tensor]

# A sentence on which a model is tried as it is loaded.
PROBE = "The cat sat on the mat."


class TextTower(Protocol):
    """What a recipe may ask of a text tower; anything with these members will do."""

    name: str
    width: int  # D
    languages: frozenset[str]  # BCP 47 codes it was trained on; empty where nobody says
    fingerprint: str  # SHA-256 of the weights and of the code that reads them
    has_tokens: bool

    def encode(self, texts: list[str], progress: bool = False) -> np.ndarray:
        """Sentence vectors, float32 (N, D), unit norm."""

    def tokens(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token states float32 (N, T, D) and the mask bool (N, T) of real tokens."""

    def pieces(self, texts: list[str]) -> list[list[str]]:
        """The pieces into which the tokenizer cuts each text, without special tokens and the tower's own prefix."""

    def unknown_rate(self, texts: list[str]) -> float:
        """The share of these pieces, over all texts together, that the vocabulary lacks."""


def check_texts(texts: Sequence[str], who: str = "A tower", empty: bool = False) -> list[str]:
    """The texts as a list. Raises UserError naming the first that is not a string, not valid Unicode, or empty, unless
    `empty` texts are allowed. The message says that `who` takes them."""
    if isinstance(texts, str):
        raise UserError(f"{who} takes a list of texts: put the one text in a list.")
    texts = list(texts)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"Text {i} is a {type(text).__name__}, not a string: pass text only.")
        if not empty and not text.strip():
            raise UserError(f"Text {i} is empty: drop it or give it words.")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UserError(f"Text {i} holds half a surrogate pair: read its file as UTF-8.") from None
    return texts


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to length one, float32 (N, D)."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / np.maximum(length, 1e-12)).astype(np.float32)


def sentences_only(name: str) -> UserError:
    """The error for token states asked of a tower without any, naming those that have some."""
    return UserError(f"{name} gives sentence vectors only; for token states take {' or '.join(TOKEN_TOWERS)}.")


def check_vocabulary(name: str, model: nn.Module, tokenizer: Any) -> None:
    """Raises UserError where the tokenizer gives ids for which the model has no embedding.

    Models that do not look ids up in a table, such as those that hash characters, take any id.
    """
    try:
        table = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return
    rows = getattr(getattr(table, "weight", None), "shape", [0])[0]
    known = len(tokenizer)
    if rows and hasattr(tokenizer, "get_vocab"):  # ids may have gaps, so that the highest says more than the count
        known = max([known, *(i + 1 for i in tokenizer.get_vocab().values())])
    if rows and known > rows:
        raise UserError(
            f"{name}: its tokenizer knows {known} tokens and its embedding {rows}: "
            "the two belong to different models; fetch or save that checkpoint again."
        )


def mean(out: Any, mask: Tensor) -> Tensor:
    """The mean of a model's last states (N, T, W) under the mask (N, T): (N, W)."""
    states = out.last_hidden_state
    weight = mask[..., None].to(states.dtype)  # (N, T, 1)
    return (states * weight).sum(1) / weight.sum(1).clamp(min=1)


class _Sentences:
    """What every text tower does alike: equal texts are computed once, and sentence vectors have unit norm."""

    width: int

    def encode(self, texts: list[str], progress: bool = False) -> np.ndarray:
        """Sentence vectors, float32 (N, D), unit norm. Raises UserError for an empty text."""
        texts = check_texts(texts)
        first = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        vectors = np.zeros((len(first), self.width), dtype=np.float32)
        for rows, found in self._vectors(list(first), progress):
            vectors[rows] = found
        return unit(vectors)[[first[text] for text in texts]]

    def unknown_rate(self, texts: list[str]) -> float:
        """The share of pieces, over all texts, that are the unknown piece; 0 where the vocabulary has none."""
        ids = [i for text in self._content(texts) for i in text]
        return sum(i == self._unknown for i in ids) / max(1, len(ids))


class TransformerTower(_Sentences, Fingerprinted):
    """A transformers encoder. Its sentence vectors are what `pool` makes of the states; by default, their mean over
    every real token, special tokens and prefix included.

    Texts longer than `max_tokens` are cut there. Texts run in batches of a fixed size, sorted by token count (ties keep
    their order), so that little is padding and the same list gives the same bytes; for a model that takes notice of
    padding, each batch holds texts of one length. Where a GPU's memory runs out, a batch is computed in halves. `clean`
    is applied to every text first. `token_width` is the width of a state, which may differ from that of a sentence.
    """

    has_tokens = True
    decisive = ("prefix", "max_tokens")

    def __init__(
        self, name: str, model: nn.Module, tokenizer: Any, fingerprint: str, max_tokens: int, device: torch.device,
        languages: frozenset[str] = frozenset(), prefix: str = "", pool: Pool | None = None,
        clean: Callable[[str], str] | None = None,
    ) -> None:  # fmt: skip
        self.name, self.languages, self.prefix = name, languages, prefix
        check_vocabulary(name, model, tokenizer)
        self.model = frozen(model, device, name)
        self.tokenizer = self._own_tokenizer = tokenizer
        self.max_tokens, self.device = max_tokens, device
        self._pool, self._clean = pool or mean, clean or str
        if isinstance(pool, nn.Module):
            frozen(pool, device, name)
        self.width = self.token_width = int(model.config.hidden_size)
        self.batch = runtime.preset(device).text_batch
        self.mixed = self._hides_padding()  # whether texts of several lengths go into one batch
        if not self.mixed:  # vectors that were kept under the other fingerprint may have seen padding
            fingerprint = hashlib.sha256(f"rows of one length {fingerprint}".encode()).hexdigest()
        self.loaded_as(fingerprint)
        if pool is not None:  # pooling may change the width; one text shows to what
            _, _, vectors, _ = next(self._said(self._ids(["a"]), False))
            self.width = int(vectors.shape[-1])

    def _decisive(self) -> list[tuple[str, Any]]:
        """A tokenizer that somebody put in the place of the tower's own decides, too."""
        other = self.tokenizer is not self._own_tokenizer
        pieces = sorted(self.tokenizer.get_vocab().items()) if other else ()
        return [*super()._decisive(), ("tokenizer", digest(map(str, pieces)))]

    def _hides_padding(self) -> bool:
        """See `hides_padding`. Raises UserError for a model that does not read token ids: it shows here."""
        try:
            return hides_padding(self.model, self._ids([PROBE])[0], padding_id(self.tokenizer), self.device)
        except torch.cuda.OutOfMemoryError as error:
            raise too_large(self.name) from error
        except (TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
            raise UserError(
                f"{self.name} does not read texts ({type(error).__name__} for a short sentence): a text tower is a "
                "model that gives a state of each token, such as BERT."
            ) from error

    def _ids(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text as the model reads them: prefix, content, special tokens.

        Raises UserError for a text of which the tokenizer makes no token at all.
        """
        if not texts:
            return []
        rows = self.tokenizer(self.whole(texts), truncation=True, max_length=self.max_tokens)["input_ids"]
        if not all(rows):
            raise UserError(
                f"{self.name} makes no token of text {rows.index([])} ({texts[rows.index([])]!r}): leave that text out."
            )
        return rows

    def whole(self, texts: Sequence[str]) -> list[str]:
        """The texts as the tokenizer reads them: cleaned, and with the prefix before them."""
        return [self._clean(self.prefix + text) for text in texts]

    def _said(self, ids: list[list[int]], progress: bool) -> Iterator[tuple[list[int], Tensor, Tensor, Tensor]]:
        """For each batch: which texts it holds, their states (B, T, W), vectors (B, D), and mask (B, T)."""
        parts = batches([len(row) for row in ids], self.batch, self.mixed)
        for rows in runtime.bar(parts, f"{self.name}: texts / {self.batch}", progress):
            few = [ids[i] for i in rows]
            read, real = padded(few, padding_id(self.tokenizer)), mask_of(few)  # (B, T)

            def compute(a: int, b: int, read: Tensor = read, real: Tensor = real) -> tuple[Tensor, ...]:
                mask = real[a:b].to(self.device)
                with torch.inference_mode():
                    out = self.model(input_ids=read[a:b].to(self.device), attention_mask=mask.long())
                    return out.last_hidden_state, self._pool(out, mask), mask

            parts = in_halves(compute, 0, len(rows), self.name)
            states, vectors, mask = parts[0] if len(parts) == 1 else map(torch.cat, zip(*parts, strict=True))
            yield rows, states, vectors, mask

    def _vectors(self, texts: list[str], progress: bool) -> Iterator[tuple[list[int], np.ndarray]]:
        for rows, _, pooled, _ in self._said(self._ids(texts), progress):
            yield rows, pooled.cpu().numpy()

    def tokens(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token states float32 (N, T, W), zero where there is no token, and their mask bool (N, T).

        These are the tokens that `encode` pools: where it takes the mean, their mean under the mask, scaled to unit
        norm, is what `encode` returns. Raises UserError for a tower that has none.
        """
        if not self.has_tokens:
            raise sentences_only(self.name)
        ids = self._ids(check_texts(texts))
        longest = max(map(len, ids), default=0)
        states = np.zeros((len(ids), longest, self.token_width), dtype=np.float32)
        mask = np.zeros((len(ids), longest), dtype=bool)
        for rows, part, _, real in self._said(ids, False):
            wide = part.shape[1]
            states[rows, :wide] = (part * real[..., None].to(part.dtype)).cpu().numpy()
            mask[rows, :wide] = real.cpu().numpy()
        return states, mask

    def _content(self, texts: list[str]) -> list[list[int]]:
        texts = [self._clean(text) for text in check_texts(texts)]
        return self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []

    def pieces(self, texts: list[str]) -> list[list[str]]:
        """The tokenizer's pieces of each text, uncut, without special tokens and prefix."""
        return [self.tokenizer.convert_ids_to_tokens(ids) for ids in self._content(texts)]

    @property
    def _unknown(self) -> int | None:
        return self.tokenizer.unk_token_id


class UseTower(_Sentences):
    """Universal Sentence Encoder multilingual v3: sentence vectors only, in numpy, on any platform.

    `embed` maps texts to vectors (N, D); `tokenizer` is the package's SentencePiece port, whose piece 0 is the unknown one.
    The tower counts each unknown character as a piece of its own, whereas SentencePiece itself joins neighbours into one.
    """

    has_tokens = False
    width = 512
    batch = 512
    _unknown = 0

    def __init__(
        self, name: str, embed: Callable[[list[str]], np.ndarray], tokenizer: Any, fingerprint: str,
        languages: frozenset[str],
    ) -> None:  # fmt: skip
        self.name, self.fingerprint, self.languages = name, fingerprint, languages
        self._embed, self.tokenizer = embed, tokenizer

    def _vectors(self, texts: list[str], progress: bool) -> Iterator[tuple[slice, np.ndarray]]:
        def compute(few: slice) -> tuple[slice, np.ndarray]:
            return few, self._embed(texts[few])

        return in_batches(compute, len(texts), self.batch, "texts", self.name, progress)

    def tokens(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Always raises UserError: this tower has no token states."""
        raise sentences_only(self.name)

    def _content(self, texts: list[str], kind: type = int) -> list[list[Any]]:
        return self.tokenizer.encode(check_texts(texts), out_type=kind, add_bos=False, add_eos=False)

    def pieces(self, texts: list[str]) -> list[list[str]]:
        """The SentencePiece pieces of each text; the unknown one reads <unk>."""
        return self._content(texts, str)
