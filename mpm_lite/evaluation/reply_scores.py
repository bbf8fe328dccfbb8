"""How good a reply about a picture is: exact by the parser, attribute by attribute, by n-grams, and in which language.

Content and language are scored apart. A system that understands German and replies in English says the right thing in
the wrong language; a score that saw only German words would call that blindness.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from mpm_lite.data.toyworld import grammar
from mpm_lite.data.toyworld.scenes import Scene

SLOTS = ("shape", "colour", "size", "count", "place")
UNSPACED = ("zh", "ja", "th", "lo", "km", "my", "yue")


def is_exact(said: str, scene: Scene, language: str) -> bool:
    """Whether a text states, in the grammar of that language, exactly what a picture of the scene shows.

    What the parser cannot read is wrong. In which order things are named does not matter.
    """
    return grammar.parse(said, language) == grammar.shown(scene)


def slots_right(said: str, gold: str, language: str) -> float:
    """The share of the gold caption's attributes that a text names too, whatever else it gets wrong."""
    return _shared(count_named(said, language), count_named(gold, language))


def content(said: str, scene: Scene, languages: Sequence[str] = grammar.LANGUAGES) -> float:
    """The share of the picture's attributes that a text names, in the language in which it names most of them."""
    gold = _gold(scene)
    return max(_shared(count_named(said, language), gold) for language in languages)


def agree(said: str, scene: Scene, language: str) -> float:
    """F1 of the attributes that a text names in a language and of those that the picture shows, 0 to 1. Which attribute belongs to
    which thing does not count."""
    found, wanted = count_named(said, language), _gold(scene)
    return 2 * (found & wanted).total() / max(1, found.total() + wanted.total())


def _shared(found: Counter, wanted: Counter) -> float:
    return (wanted & found).total() / max(1, wanted.total())


def count_named(said: str, language: str) -> Counter:
    """How often a text names each attribute: (slot, value) -> times."""
    spotted = grammar.spot(said, language)
    return Counter((slot, value) for slot in SLOTS for value in getattr(spotted, slot))


@lru_cache(maxsize=4096)
def _gold(scene: Scene) -> Counter:
    """The attributes that a full caption of the picture names (each thing once)."""
    shown = grammar.shown(scene)
    found = Counter()
    for thing in shown.things:
        found.update({("shape", thing.shape): 1, ("colour", thing.colour): 1, ("size", thing.size): 1})
        if thing.count > 1:
            found["count", str(thing.count)] += 1
    found.update(("place", place) for _, place in shown.places)
    return found


def score_caption(said: str, scene: Scene, language: str, apart: frozenset[str] = frozenset()) -> dict[str, float]:
    """exact, slots (in the language asked), content (in any), agreement (NaN where it cannot be judged), reply_language.

    All between 0 and 1; reply_language is 1 where the reply is in the language asked. `withheld` and `paired` are the
    share right of the shapes and colours in `apart` and of the others, NaN where the picture shows none of them.
    """
    agreement = grammar.agreement(said, language) if said else None
    found, gold = count_named(said, language), _gold(scene)
    sorts: dict[bool, Counter] = {True: Counter(), False: Counter()}
    for (slot, value), times in gold.items():
        if slot in ("shape", "colour"):
            sorts[value in apart][slot, value] = times
    return {
        "withheld": _shared(found, sorts[True]) if sorts[True] else float("nan"),
        "paired": _shared(found, sorts[False]) if sorts[False] else float("nan"),
        "exact": float(is_exact(said, scene, language)),
        "slots": _shared(found, gold),
        "content": content(said, scene),
        "agreement": float("nan") if agreement is None else agreement,
        "reply_language": float(reply_language(said) == language),
    }


@lru_cache(maxsize=4)
def _identifier(languages: tuple[str, ...]) -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    found = LanguageIdentifier.from_model_file(MODEL_FILE)
    found.set_languages(list(languages))
    return found


def reply_language(said: str, languages: Sequence[str] = grammar.LANGUAGES) -> str:
    """The language of a sentence among `languages` (py3langid); "" for an empty one.

    Single words are beyond any identifier ("no" is English and Spanish): ask this of sentences.
    """
    return _identifier(tuple(languages)).classify(said)[0] if said.strip() else ""


def tokens(said: str, language: str) -> list[str]:
    """Words for n-gram scores: segmented by the grammar in toyworld's languages, elsewhere by sacrebleu's rules, and
    into characters where a script writes no spaces."""
    if language in grammar.LANGUAGES:
        return grammar.grammar(language).tokens(said)
    if language.split("-")[0] in UNSPACED:
        return [letter for letter in said.lower() if not letter.isspace()]
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return Tokenizer13a()(said.lower()).split()


def _spaced(text: str, language: str) -> str:
    """The tokens of a text with spaces between them, as the libraries of scores want it."""
    return " ".join(tokens(text, language))


def cider_d(said: Sequence[str], references: Sequence[Sequence[str]], language: str) -> np.ndarray:
    """CIDEr-D (1411.5726; pycocoevalcap) of each text against its references, float64 (N,); 10 is the most.

    Document frequencies are those of these references, so scores of different sets do not compare.
    """
    from pycocoevalcap.cider.cider import Cider

    gold = {i: [_spaced(one, language) for one in few] for i, few in enumerate(references)}
    found = {i: [_spaced(one, language)] for i, one in enumerate(said)}
    return np.asarray(Cider().compute_score(gold, found)[1], dtype=np.float64)


def score_corpus(said: Sequence[str], references: Sequence[Sequence[str]], language: str) -> Mapping[str, float]:
    """chrf and bleu (0 to 100; sacrebleu) of texts against several references each."""
    from sacrebleu.metrics import BLEU, CHRF

    most = max(len(few) for few in references)
    columns = [[few[min(k, len(few) - 1)] for few in references] for k in range(most)]
    in_tokens, *gold = ([_spaced(one, language) for one in column] for column in (said, *columns))
    bleu = BLEU(tokenize="none", effective_order=True, force=True)  # force: these texts are in tokens already
    chrf = CHRF().corpus_score(list(said), columns).score
    return {"chrf": chrf, "bleu": bleu.corpus_score(in_tokens, gold).score}
