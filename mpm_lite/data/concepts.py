"""What a caption is about, and the rule that keeps concepts apart: each concept is in one split, the same in all sets.

`python -m mpm_lite.data.concepts` rebuilds assets/splits/concepts.csv. It needs all three sets on the machine.
"""

from __future__ import annotations

import csv
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import simplemma

from mpm_lite.core import runtime
from mpm_lite.data.captionset import Item, place_of, split_of_place

TABLE = "splits/concepts.csv"
SALT = "mpm-lite concepts v1:"
STAMP_TEST, STAMP_VAL = 0.40, 0.15
EMOJI_TEST, EMOJI_VAL = 0.20, 0.10
FREQUENT = 20  # a concept that is the head noun of, or mentioned in, more items than this is always in train

# The file also says what each of these lists is for.
_WORDS = tomllib.loads(runtime.asset("data/concepts.toml").read_text(encoding="utf-8"))
_DETERMINERS, _CUT, _AFTERWARDS, _COLOURS, _PARTITIVE, _ACTORS = (
    frozenset(_WORDS[name].split()) for name in ("determiners", "cut", "afterwards", "colours", "partitive", "actors")
)
_STOP = _DETERMINERS | frozenset(_WORDS["function_words"].split())
_COMPOUNDS, _SPELLINGS = _WORDS["compounds"], _WORDS["spellings"]
_LEMMAS = _WORDS["lemmas"] | {word: word for word in _WORDS["uninflected"].split()}


@cache
def _lemma(word: str) -> str:
    """The singular of a word in lower case, with one spelling for each thing."""
    word = word.replace("'", "")
    plain = _LEMMAS.get(word, word)
    if word not in _LEMMAS and word.endswith("s"):  # only plurals are undone: an eraser does not become "erase"
        plain = simplemma.lemmatize(word, lang="en").lower()
        may_be_plural = plain == word and len(word) > 3 and not word.endswith(("ss", "us", "is", "es"))
        if may_be_plural and simplemma.is_known(word[:-1], lang="en"):
            plain = word[:-1]
    return _SPELLINGS.get(plain, plain)


def _clean(caption: str) -> str:
    """The caption in lower case, with plain apostrophes and without quotes, possessive 's and 'emoji style' at its end."""
    text = caption.casefold().replace("’", "'").replace("`", "'").replace("_", " ")
    text = re.sub(r"[\"“”„«»]", " ", text)
    text = re.sub(r"'s\b|(?<=s)'(?=\s|$)", "", text)
    return re.sub(r"\W*\bemoji style\W*$", "", text)


def _clauses(text: str) -> list[list[str]]:
    """The words of each clause. Clauses end at a comma, colon, bracket, dash, or a full stop that is not of an abbreviation."""
    text = re.sub(rf"\b({'|'.join(sorted(_WORDS['abbreviations'].split()))})\.", r"\1", text)
    pieces = re.split(r"[,;:()\[\]—–!?|•…/]|\.(?=\s|$)|\s-+\s", text)
    return [words for piece in pieces if (words := re.findall(r"[^\W\d_]+(?:['-][^\W\d_]+)*", piece))]


def head_noun(caption: str) -> str:
    """The head noun of a short English caption, singular and in lower case ('' for a caption without words).

    "A pair of blue jeans with patches." -> "jeans"; "A hat worn by a university student." -> "hat".
    This is a rule of thumb for captions of a few words, checked by hand, and not a parser.
    """
    clauses = _clauses(_clean(caption))
    if heads := [head for words in clauses if (head := _head_of(words))]:
        return heads[0]
    return _lemma(clauses[-1][-1]) if clauses else ""


def _head_of(words: list[str]) -> str:
    while words and (words[0] in _DETERMINERS or words[0] in _CUT):
        words = words[1:]
    kept: list[str] = []
    for place, word in enumerate(words):
        if word == "of" and kept:
            if _lemma(kept[-1]) in _PARTITIVE and place + 1 < len(words):
                return _head_of(words[place + 1 :]) or _lemma(kept[-1])
            break
        if kept and (word in _CUT or (kept[-1] in _ACTORS and word.endswith(("ing", "ed")))):
            break
        kept.append(word)
    kept = [word for word in kept if word not in _STOP and (len(word) > 1 or len(kept) == 1)]
    while len(kept) > 1 and kept[-1] in _AFTERWARDS and kept[-2] not in _COLOURS:
        kept.pop()
    if not kept:
        return ""
    last = kept[-1]
    return _joined(words, last) or _lemma(last.replace("-", "") if _hyphen_word(last) else last.split("-")[-1])


def _hyphen_word(word: str) -> bool:
    """Whether a word with a hyphen is one thing (t-shirt, yo-yo, x-ray, e-mail), whose last piece is no word of its own."""
    pieces = word.split("-")
    return len(pieces) > 1 and (min(map(len, pieces)) <= 2 or word.startswith("jack-"))


def _joined(words: list[str], last: str) -> str:
    place = max(i for i, word in enumerate(words) if word == last)
    pair = f"{words[place - 1]} {_lemma(last)}" if place else ""
    found = _COMPOUNDS.get(pair) or _COMPOUNDS.get(f"{words[place - 1]} {last}" if place else "")
    return _SPELLINGS.get(found, found) if found else ""


@cache
def find_concepts(caption: str) -> frozenset[str]:
    """The content words of a caption as written, without a plural s, and in the singular; also neighbours joined
    ("sail boat" -> "sailboat").

    This is generous on purpose, since it decides which items are dropped from training for mentioning a held-out concept.
    """
    found: set[str] = set()
    for words in _clauses(_clean(caption)):
        flat = [piece for word in words for piece in word.split("-")]
        single = [word for word in [*flat, *(word.replace("-", "") for word in words)] if word not in _STOP]
        pairs = [a + b for a, b in pairwise(flat)]
        for word in single + pairs:
            word = word.replace("'", "")
            found |= {word, _lemma(word), word.removesuffix("s"), word.removesuffix("es")}
    return frozenset(found - {""})


def hashed_split(concept: str, stamp: bool) -> str:
    """The split that a hash of the concept alone gives, with the shares of stamps or those of emoji."""
    shares = (STAMP_TEST, STAMP_VAL) if stamp else (EMOJI_TEST, EMOJI_VAL)
    return split_of_place(place_of(f"{SALT}{concept}".encode()), *shares)


def assign(sets: Mapping[str, Sequence[Item]]) -> dict[str, str]:
    """THE SPLIT RULE: concept -> split, fixed before any model ran.

    Concepts (`head_noun` of the English caption) are pooled over all sets together. A concept's split follows from
    SHA-256 of "mpm-lite concepts v1:" + concept:
    * heading a stamp: test 40 %, val 15 %, else train;
    * heading an emoji but no stamp: test 20 %, val 10 %, else train;
    * clip art only: train;
    * heading or mentioned in more than 20 items over all sets: train, since holding it out would empty training and
      fill the gallery with one thing.
    STRICT LEAK RULE (`split_of`): an item whose own concept is train but whose English caption mentions (`mentions`)
    a held-out stamp's or emoji's head noun is in no split. A val item may mention a test concept.
    The outcome is committed as assets/splits/concepts.csv and read from there, so the sets that happen to be on a
    machine never move a split; a concept that the table lacks (another package version) goes by the emoji-only rule.
    """
    heads, mentioned = _heads(sets), Counter()
    for caption in [item.captions["en"] for items in sets.values() for item in items]:
        mentioned.update(find_concepts(caption) | {head_noun(caption)})
    splits = {}
    for concept in sorted(set().union(*heads.values())):
        stamp, emoji = (concept in heads.get(name, ()) for name in ("stamps", "emoji"))
        always_train = mentioned[concept] > FREQUENT or not (stamp or emoji)
        splits[concept] = "train" if always_train else hashed_split(concept, stamp)
    return splits


def _heads(sets: Mapping[str, Sequence[Item]]) -> dict[str, Counter[str]]:
    """For each set, how many of its items have each concept as their head noun."""
    return {name: Counter(head_noun(item.captions["en"]) for item in items) for name, items in sets.items()}


@cache
def read_splits() -> dict[str, str]:
    """The committed table: concept -> split."""
    with open(runtime.asset(TABLE), encoding="utf-8", newline="") as file:
        return {row["concept"]: row["split"] for row in csv.DictReader(file)}


def concept_split(concept: str) -> str:
    """The split of a concept by the table; for one that it lacks, by the hash with the shares of emoji."""
    return read_splits().get(concept) or hashed_split(concept, stamp=False)


@cache
def held_out(*splits: str) -> frozenset[str]:
    """The concepts that the committed table gives to these splits."""
    return frozenset(concept for concept, split in read_splits().items() if split in splits)


def split_of(caption: str, also_held_out: frozenset[str] = frozenset()) -> str | None:
    """The split of an item by its English caption; None if the strict leak rule drops it from training."""
    split = concept_split(head_noun(caption))
    if split == "train" and not find_concepts(caption).isdisjoint(held_out("val", "test") | also_held_out):
        return None
    return split


def untabled(items: Iterable[Item]) -> frozenset[str]:
    """The held-out head nouns of items that the committed table lacks, as with another version of a package."""
    heads = {head_noun(item.captions["en"]) for item in items} - read_splits().keys()
    return frozenset(concept for concept in heads if concept_split(concept) != "train")


def write_splits(sets: Mapping[str, Sequence[Item]]) -> str:
    """The text of the committed table: concept, split, n_emoji, n_stamps, n_clipart."""
    heads, lines = _heads(sets), ["concept,split,n_emoji,n_stamps,n_clipart"]
    for concept, split in assign(sets).items():
        lines.append(
            ",".join([concept, split, *(str(heads[name][concept]) for name in ("emoji", "stamps", "clipart"))])
        )
    return "".join(f"{line}\n" for line in lines)


def main() -> None:
    """Rebuild the committed table. Needs emoji, stamps and clip art on this machine."""
    from mpm_lite.data import clipart, emoji, stamps

    text = write_splits({"emoji": emoji.items(), "stamps": stamps.items(), "clipart": clipart.items()})
    path = Path(runtime.asset()) / TABLE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(f"{path.name}: {Counter(line.split(',')[1] for line in text.splitlines()[1:])}")


if __name__ == "__main__":
    main()
