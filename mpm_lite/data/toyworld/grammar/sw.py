"""Swahili. A linguist's page.

Noun classes    3/4 mraba, miraba; moyo, mioyo. 5/6 duara, maduara; ua, maua. 7/8 kitabu, vitabu. 9/10 pembetatu, nyota
                (the same in the plural). Everything that depends on a noun shows its class.
Adjectives      follow the noun. -dogo 'small', -kubwa 'large', -ekundu 'red', -eusi 'black', -eupe 'white' take the
                class prefix: mdogo, dogo, madogo, kidogo, vidogo, ndogo. Before e: mw-, my-, j-, m-, ch-, vy-, ny-.
                Class 5 has no prefix before a consonant; classes 9 and 10 have n- before d, none before k.
Other colours   are nouns joined by -a, which also agrees: wa bluu, la bluu, cha bluu, ya bluu, za bluu.
Numerals        -wili, -tatu, -nne agree: miwili, mawili, viwili; in class 10 mbili, tatu, nne. They stand after the
                adjectives and before the -a phrase: miraba midogo mitatu ya bluu.
Verb            "kuna" there is / are (class 17, invariable). A known thing is "at" a place by its subject prefix and
                -ko: uko, liko, kiko, iko.
Relations       kushoto kwa, kulia kwa (left, right of), juu ya, chini ya (above, below). No articles.

Glossed examples
  Ku-na    duara     dogo     j-ekundu.
  17-have  5.circle  5.small  5-red
  'There is a small red circle.'

  Ki-tabu  ch-eusi  ki-ko    kushoto  kwa  m-raba    w-a      bluu.
  7-book   7-black  7-be.at  left     of   3-square  3-ASSOC  blue
  'The black book is to the left of the blue square.'

  Ku-na    ma-ua     m-eupe   ma-tatu.
  17-have  6-flower  6-white  6-three
  'There are three white flowers.'
"""

from mpm_lite.data.toyworld.grammar.engine import Grammar, Mention

# class of the singular, singular, plural; the plural's class is the next
NOUNS = {
    "circle": (5, "duara", "maduara"),
    "square": (3, "mraba", "miraba"),
    "triangle": (9, "pembetatu", "pembetatu"),
    "star": (9, "nyota", "nyota"),
    "heart": (3, "moyo", "mioyo"),
    "flower": (5, "ua", "maua"),
    "book": (7, "kitabu", "vitabu"),
}
# by class: prefix before a consonant (adjectives, numerals), before e (adjectives), "-a", subject prefix of verbs
CLASSES = {
    3: ("m", "mw", "wa", "u"),
    4: ("mi", "my", "ya", "i"),
    5: ("", "j", "la", "li"),
    6: ("ma", "m", "ya", "ya"),
    7: ("ki", "ch", "cha", "ki"),
    8: ("vi", "vy", "vya", "vi"),
    9: ("n", "ny", "ya", "i"),
    10: ("n", "ny", "za", "zi"),
}
STEMS = {"small": "dogo", "large": "kubwa", "red": "ekundu", "black": "eusi", "white": "eupe"}
JOINED = {"blue": "bluu", "green": "kijani", "yellow": "manjano", "purple": "zambarau", "brown": "kahawia"}
NUMERALS = {1: "moja", 2: "wili", 3: "tatu", 4: "nne"}
_TEN = {1: "moja", 2: "mbili", 3: "tatu", 4: "nne"}


def adjective(name: str, noun_class: int) -> str:
    """A true adjective in the class of its noun."""
    consonant, vowel, _, _ = CLASSES[noun_class]
    stem = STEMS[name]
    if stem[0] == "e":
        return vowel + stem
    # the nasal of 9 and 10 is lost before k
    return ("" if consonant == "n" and stem[0] == "k" else consonant) + stem


def number(count: int, noun_class: int) -> str:
    """A numeral in the class of its noun."""
    return _TEN[count] if noun_class in (9, 10) else CLASSES[noun_class][0] + NUMERALS[count]


def phrase(mention: Mention, form: str) -> str:
    """Forms: bare (duara jekundu), ko (duara jekundu liko), na (duara lina), num (maduara matatu), ngapi, rangi."""
    if form == "rangi":  # the name of a colour agrees with rangi 'colour', class 9
        return adjective(str(mention.colour), 9) if mention.colour in STEMS else f"ya {JOINED[mention.colour or '']}"
    noun_class, singular, plural = NOUNS[mention.shape]
    several = form in ("num", "ngapi")
    noun_class += several
    _, _, joined, subject = CLASSES[noun_class]
    words = [plural if several else singular]
    words += [adjective(name, noun_class) for name in (mention.size, mention.colour) if name in STEMS]
    if form == "num":
        words.append(number(mention.count, noun_class))
    if form == "ngapi":
        words.append(("" if noun_class == 10 else CLASSES[noun_class][0]) + "ngapi")
    if mention.colour in JOINED:
        words += [joined, JOINED[mention.colour]]
    return " ".join(words) + (f" {subject}{form}" if form in ("ko", "na") else "")


_RELATIONS = {"left": "kushoto kwa", "right": "kulia kwa", "above": "juu ya", "below": "chini ya"}
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "purple", "brown")


def _all(name: str) -> set[str]:
    """An adjective in every class, and the learner's bare stem."""
    return {adjective(name, noun_class) for noun_class in CLASSES} | {STEMS[name]}


GRAMMAR = Grammar(
    code="sw",
    phrase=phrase,
    patterns={
        "exists": ("{a:bare}", "kuna {a:bare}", "kwenye picha kuna {a:bare}"),
        "counted": ("{a:num}", "kuna {a:num}", "kwenye picha kuna {a:num}"),
        "placed": ("{a:bare} {place}", "{place} kuna {a:bare}", "{a:ko} {place}"),
        "relate": ("{a:bare} {rel}", "{rel} kuna {a:bare}", "{a:ko} {rel.def}"),
        "row": ("{row}: {a:bare}, {b:bare} na {c:bare}", "{row} kuna {a:bare}, {b:bare} na {c:bare}"),
    },
    phrases={
        "rel": {r: f"{words} {{b:bare}}" for r, words in _RELATIONS.items()},
        "rel.def": {r: f"{words} {{b:bare}}" for r, words in _RELATIONS.items()},
        "place": {
            "left": "upande wa kushoto wa picha",
            "right": "upande wa kulia wa picha",
            "top": "katika sehemu ya juu ya picha",
            "bottom": "katika sehemu ya chini ya picha",
            "middle": "katikati ya picha",
        },
        "row": {
            "left": "kutoka kushoto kwenda kulia",
            "right": "kutoka kulia kwenda kushoto",
            "above": "kutoka juu kwenda chini",
            "below": "kutoka chini kwenda juu",
        },
    },
    lexicon={
        "shape": {s: {singular, plural} for s, (_, singular, plural) in NOUNS.items()},
        "colour": {c: _all(c) if c in STEMS else (JOINED[c],) for c in COLOURS},
        "size": {s: _all(s) for s in ("small", "large")},
        "count": {str(n): {number(n, c) for c in (4, 6, 8, 10)} | {NUMERALS[n]} for n in (2, 3, 4)},
        "relation": {"left": ("kushoto",), "right": ("kulia",), "above": ("juu",), "below": ("chini",)},
    },
    function=(
        {joined for _, _, joined, _ in CLASSES.values()},
        {subject + "ko" for _, _, _, subject in CLASSES.values()} | {"yuko", "wako"},
    ),
    ask={
        "describe": "kwenye picha kuna nini?",
        "exists": "je, kuna {a:bare}?",
        "holds": "je, {a:ko} {rel.def}?",
        "colour": "{a:na} rangi gani?",
        "count": "kuna {a:ngapi}?",
        "where": "{a:ko} wapi?",
    },
    answers={"yes": "ndiyo", "no": "hapana", "colour": "{a:na} rangi {c:rangi}"},
    numeral=lambda mention: number(mention.count, NOUNS[mention.shape][0] + (mention.count > 1)),
)
