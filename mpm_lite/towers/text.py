"""Frozen text towers behind one face: sentence vectors, token states, and what the tokenizer makes of a text.

Shapes: N texts, T tokens of the longest one, D the tower's width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from mpm_lite import runtime
from mpm_lite.towers.fingerprints import Fingerprinted
from mpm_lite.towers.halves import frozen, in_halves, too_large
from mpm_lite.towers.padding import batches, hides_padding, padding_id

# What a model said of texts, and the mask bool (N, T) of their tokens -> their vectors (N, D).
Pool = Callable[[Any, torch.Tensor], torch.Tensor]

# Packaged name -> the function of packaged.py that builds it, named so that listing towers loads nothing.
TEXT_TOWERS = {"use-m": "use_m", "e5-small": "e5_small", "minilm-en": "minilm_en"}
# The toy world's own, and the folder of each among the assets.
TOY_TOWERS = {"toy": "toy-text", "toy-en": "toy-text-en"}
# What a model is tried on as it is loaded.
PROBE = "The cat sat on the mat."
TOKEN_TOWERS = ("e5-small", "minilm-en")


class TextTower(Protocol):
    """What a recipe may ask of a text tower. Anything with these members will do."""

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
        """What the tokenizer cuts each text into, without special tokens or the tower's own prefix."""

    def unknown_rate(self, texts: list[str]) -> float:
        """The share of those pieces, over all the texts together, that the vocabulary lacks."""


def load_text_tower(
    name: str,
    device: str | torch.device | None = None,
    *,
    revision: str | None = None,
    prompt: str | None = None,
) -> TextTower:
    """The text tower of that name, frozen, in float32.

    `name` is a packaged tower (`use-m`, `e5-small`, `minilm-en`: the weights that pip brought, network or not), one of the toy world
    (`toy`, `toy-en`), a folder written by transformers, sentence-transformers or open_clip, a hub id such as
    `intfloat/multilingual-e5-base`, or `open_clip:MODEL/TAG` for the text half. `use-m` ignores `device`: it is numpy.
    `NAME@REVISION`, or `revision`, takes a hub repository at a branch, a tag or a commit.
    `prompt` goes before every text of a folder or hub id: the name of one of its own prompts (`query`), or the text itself
    (`"query: "`, as E5 was trained). Without it only a prompt that the folder names as its default does.
    Raises UserError for a name nobody knows, a package that is missing, or a hub that cannot be reached.
    """
    name = str(name)
    if name in TEXT_TOWERS or name in TOY_TOWERS:
        from mpm_lite.towers import packaged, snapshots

        snapshots.unpinned("text", name, revision)
        if prompt is not None:
            raise runtime.UserError(f"{name} puts what it was trained with before a text: leave prompt out.")
        if name in TEXT_TOWERS:
            return getattr(packaged, TEXT_TOWERS[name])(runtime.device(device))
        from mpm_lite.towers import hub

        return hub.text_from_folder(hub.toy_folder(TOY_TOWERS[name]), name, runtime.device(device))
    if name.startswith("open_clip:") or "/" in name or Path(name).expanduser().is_dir():
        from mpm_lite.towers import hub

        return hub.text_tower(name, runtime.device(device), revision, prompt)
    raise runtime.unknown("text tower", name, [*TEXT_TOWERS, *TOY_TOWERS, "open_clip:MODEL/TAG"])


def check_texts(texts: Sequence[str], who: str = "A tower", empty: bool = False) -> list[str]:
    """The texts as a list; raises UserError naming the first that is not a string, not valid Unicode, or empty, unless
    `empty` ones may be there. `who` takes them."""
    if isinstance(texts, str):
        raise runtime.UserError(f"{who} takes a list of texts: put the one text in a list.")
    texts = list(texts)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise runtime.UserError(f"Text {i} is a {type(text).__name__}, not a string: pass text only.")
        if not empty and not text.strip():
            raise runtime.UserError(f"Text {i} is empty: drop it or give it words.")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise runtime.UserError(f"Text {i} holds half a surrogate pair: read its file as UTF-8.") from None
    return texts


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to length one, float32 (N, D)."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / np.maximum(length, 1e-12)).astype(np.float32)


def sentences_only(name: str) -> runtime.UserError:
    """The error for token states asked of a tower without any, naming those that have some."""
    return runtime.UserError(f"{name} gives sentence vectors only; for token states take {' or '.join(TOKEN_TOWERS)}.")


def bar(steps: Sequence[Any], what: str, progress: bool) -> Any:
    """The steps behind a tqdm bar, where one was asked for and would not clutter a log."""
    from tqdm.auto import tqdm

    return tqdm(steps, desc=what, disable=not progress or runtime.quiet(), leave=False)


def check_vocabulary(name: str, model: torch.nn.Module, tokenizer: Any) -> None:
    """Raises UserError where the tokenizer gives ids for which the model has no embedding.

    Models that do not look their ids up in a table, such as those that hash characters, take any id.
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
        raise runtime.UserError(
            f"{name}: its tokenizer knows {known} tokens and its embedding {rows}: "
            "the two belong to different models; fetch or save that checkpoint again."
        )


def mean(out: Any, mask: torch.Tensor) -> torch.Tensor:
    """The mean of a model's last states (N, T, W) under the mask (N, T): (N, W)."""
    states = out.last_hidden_state
    weight = mask[..., None].to(states.dtype)  # (N, T, 1)
    return (states * weight).sum(1) / weight.sum(1).clamp(min=1)


class TransformerTower(Fingerprinted):
    """A transformers encoder; unless `pool` says otherwise, the mean over every real token, special tokens and prefix
    included.

    Texts longer than `max_tokens` are cut there. Equal texts are computed once. Texts run in batches of a fixed size,
    sorted by token count (ties keep their order), so little is padding and the same list gives the same bytes; for a model
    that takes notice of padding, each batch holds texts of one length. Where a GPU's memory runs out, a batch is computed
    in halves. `token_width` is the states', where a sentence's differs.
    """

    has_tokens = True
    decisive = ("prefix", "max_tokens")

    def __init__(
        self,
        name: str,
        model: torch.nn.Module,
        tokenizer: Any,
        fingerprint: str,
        max_tokens: int,
        device: torch.device,
        languages: frozenset[str] = frozenset(),
        prefix: str = "",
        pool: Pool | None = None,
        clean: Callable[[str], str] | None = None,
    ) -> None:
        self.name, self.languages, self.prefix = name, languages, prefix
        check_vocabulary(name, model, tokenizer)
        self.model = frozen(model, device, name)
        self.tokenizer, self.max_tokens, self.device = tokenizer, max_tokens, device
        self._pool, self._clean = pool or mean, clean or str
        if isinstance(pool, torch.nn.Module):
            frozen(pool, device, name)
        self.width = self.token_width = int(model.config.hidden_size)
        self.batch = runtime.preset(device).text_batch
        self.mixed = self._hides_padding()  # whether texts of several lengths go into one batch
        if not self.mixed:  # vectors that were kept under the other fingerprint may have seen padding
            fingerprint = hashlib.sha256(f"rows of one length {fingerprint}".encode()).hexdigest()
        self.loaded_as(fingerprint)
        if pool is not None:  # what comes behind the states may change their width: one text says to what
            _, _, vectors, _ = next(self._said(self._ids(["a"]), False))
            self.width = int(vectors.shape[-1])

    def _hides_padding(self) -> bool:
        """See `hides_padding`. Raises UserError for a model that does not read token ids, which this finds out as well."""
        try:
            return hides_padding(self.model, self._ids([PROBE])[0], padding_id(self.tokenizer), self.device)
        except torch.cuda.OutOfMemoryError as error:
            raise too_large(self.name) from error
        except (TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
            raise runtime.UserError(
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
            raise runtime.UserError(
                f"{self.name} makes no token of text {rows.index([])} ({texts[rows.index([])]!r}): leave that text out."
            )
        return rows

    def whole(self, texts: Sequence[str]) -> list[str]:
        """The texts as the tokenizer reads them: cleaned, and behind the prefix."""
        return [self._clean(self.prefix + text) for text in texts]

    def _said(
        self, ids: list[list[int]], progress: bool
    ) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor, torch.Tensor]]:
        """For each batch: which texts it holds, their states (B, T, W), vectors (B, D), and mask (B, T)."""
        parts = batches([len(row) for row in ids], self.batch, self.mixed)
        for rows in bar(parts, f"{self.name}: texts / {self.batch}", progress):
            longest = len(ids[rows[-1]])
            padded = np.full((len(rows), longest), padding_id(self.tokenizer), dtype=np.int64)  # (B, T)
            real = np.zeros((len(rows), longest), dtype=bool)  # (B, T)
            for row, i in enumerate(rows):
                padded[row, : len(ids[i])], real[row, : len(ids[i])] = ids[i], True

            def compute(
                a: int, b: int, padded: np.ndarray = padded, real: np.ndarray = real
            ) -> tuple[torch.Tensor, ...]:
                mask = torch.from_numpy(real[a:b]).to(self.device)
                with torch.inference_mode():
                    read = torch.from_numpy(padded[a:b]).to(self.device)
                    out = self.model(input_ids=read, attention_mask=mask.long())
                    return out.last_hidden_state, self._pool(out, mask), mask

            parts = in_halves(compute, 0, len(rows), self.name)
            states, vectors, mask = parts[0] if len(parts) == 1 else map(torch.cat, zip(*parts, strict=True))
            yield rows, states, vectors, mask

    def encode(self, texts: list[str], progress: bool = False) -> np.ndarray:
        """Sentence vectors, float32 (N, D), unit norm. Raises UserError for an empty text."""
        texts = check_texts(texts)
        first = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        vectors = np.zeros((len(first), self.width), dtype=np.float32)
        for rows, _, pooled, _ in self._said(self._ids(list(first)), progress):
            vectors[rows] = pooled.cpu().numpy()
        return unit(vectors)[[first[text] for text in texts]]

    def tokens(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token states float32 (N, T, W), zero where there is no token, and their mask bool (N, T).

        Every token that `encode` pools is there; where it takes the mean, that under the mask, scaled to unit norm, is
        `encode`. Raises UserError for a tower that has none.
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

    def unknown_rate(self, texts: list[str]) -> float:
        """The share of pieces, over all texts, that are the unknown piece; 0 where the vocabulary has none."""
        ids = [i for text in self._content(texts) for i in text]
        return sum(i == self.tokenizer.unk_token_id for i in ids) / max(1, len(ids))


class UseTower:
    """Universal Sentence Encoder multilingual v3: sentence vectors only, in numpy, on any platform.

    `embed` maps texts to vectors (N, D); `tokenizer` is the package's SentencePiece port, whose piece 0 is the unknown.
    The tower counts each unknown character as a piece of its own, where SentencePiece itself joins neighbours into one.
    """

    has_tokens = False
    width = 512
    batch = 512

    def __init__(
        self,
        name: str,
        embed: Callable[[list[str]], np.ndarray],
        tokenizer: Any,
        fingerprint: str,
        languages: frozenset[str],
    ) -> None:
        self.name, self.fingerprint, self.languages = name, fingerprint, languages
        self._embed, self.tokenizer = embed, tokenizer

    def encode(self, texts: list[str], progress: bool = False) -> np.ndarray:
        """Sentence vectors, float32 (N, D), unit norm. Raises UserError for an empty text."""
        texts = check_texts(texts)
        first = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        once = list(first)
        vectors = np.zeros((len(once), self.width), dtype=np.float32)
        for start in bar(range(0, len(once), self.batch), f"{self.name}: texts / {self.batch}", progress):
            vectors[start : start + self.batch] = self._embed(once[start : start + self.batch])
        return unit(vectors)[[first[text] for text in texts]]

    def tokens(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Always raises UserError: this tower has no token states."""
        raise sentences_only(self.name)

    def _content(self, texts: list[str], kind: type) -> list[list[Any]]:
        return self.tokenizer.encode(check_texts(texts), out_type=kind, add_bos=False, add_eos=False)

    def pieces(self, texts: list[str]) -> list[list[str]]:
        """The SentencePiece pieces of each text; the unknown one reads <unk>."""
        return self._content(texts, str)

    def unknown_rate(self, texts: list[str]) -> float:
        """The share of pieces, over all texts, that are the unknown piece."""
        ids = [i for text in self._content(texts, int) for i in text]
        return sum(i == 0 for i in ids) / max(1, len(ids))
