"""English. A linguist's page.

Noun phrase     article or numeral + size + colour + noun: "a small red circle", "three small red circles".
Article         "a" before all our words but none begins with a vowel sound ("an" is therefore in the rule, unused).
Number          the noun alone is marked: circle / circles. Adjectives never change.
Agreement       "there is" with one thing, "there are" with several.
Order           subject - verb - place. "There is" introduces; "the" speaks of what is known.
Relations       to the left of, to the right of, above, below.

Glossed examples
  There  is      a         small  red  circle.
  EXPL   be.3SG  INDEF.SG  small  red  circle.SG
  'There is a small red circle.'

  There  are     three  red  flower-s.
  EXPL   be.3PL  three  red  flower-PL
  'There are three red flowers.'

  The  red  book     is      to the left of  the  blue  star.
  DEF  red  book.SG  be.3SG  left.of         DEF  blue  star.SG
  'The red book is to the left of the blue star.'
"""

from mpm_lite.data.toyworld.grammar.engine import Grammar, Mention

NOUNS = {s: s for s in ("circle", "square", "triangle", "star", "heart", "flower", "book")}
COLOURS = {c: c for c in ("red", "blue", "green", "yellow", "black", "white", "purple", "brown")}
SIZES = {"small": "small", "large": "large"}
NUMERALS = {1: "one", 2: "two", 3: "three", 4: "four"}


def phrase(mention: Mention, form: str) -> str:
    """Forms: a (a circle), the (the circle), num (three circles), plural (circles), colour (red)."""
    if form == "colour":
        return COLOURS[mention.colour or ""]
    adjectives = [mention.size and SIZES[mention.size], mention.colour and COLOURS[mention.colour]]
    noun = NOUNS[mention.shape] + ("s" if form in ("num", "plural") else "")
    words = [*filter(None, adjectives), noun]
    if form == "a":
        words.insert(0, "an" if words[0][0] in "aeiou" else "a")
    elif form == "the":
        words.insert(0, "the")
    elif form == "num":
        words.insert(0, NUMERALS[mention.count])
    return " ".join(words)


_RELATIONS = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}

GRAMMAR = Grammar(
    code="en",
    phrase=phrase,
    patterns={
        "exists": ("{a:a}", "there is {a:a}", "the picture shows {a:a}"),
        "counted": ("{a:num}", "there are {a:num}", "the picture shows {a:num}"),
        "placed": ("{a:a} {place}", "there is {a:a} {place}", "{a:the} is {place}"),
        "relate": ("{a:a} {rel}", "there is {a:a} {rel}", "{a:the} is {rel.def}"),
        "row": ("{row}: {a:a}, {b:a} and {c:a}", "{row} there are {a:a}, {b:a} and {c:a}"),
    },
    phrases={
        "rel": {r: f"{words} {{b:a}}" for r, words in _RELATIONS.items()},
        "rel.def": {r: f"{words} {{b:the}}" for r, words in _RELATIONS.items()},
        "place": {
            "left": "on the left of the picture",
            "right": "on the right of the picture",
            "top": "at the top of the picture",
            "bottom": "at the bottom of the picture",
            "middle": "in the middle of the picture",
        },
        "row": {
            "left": "from left to right",
            "right": "from right to left",
            "above": "from top to bottom",
            "below": "from bottom to top",
        },
    },
    lexicon={
        "shape": {s: (n, n + "s") for s, n in NOUNS.items()},
        "colour": {c: (w,) for c, w in COLOURS.items()},
        "size": {"small": ("small",), "large": ("large",)},
        "count": {str(n): (NUMERALS[n],) for n in (2, 3, 4)},
        "relation": {"left": ("left",), "right": ("right",), "above": ("above",), "below": ("below",)},
    },
    function=(("a", "an", "one"), ("is", "are"), ("shows", "show")),
    extra={"little": ("size", "small"), "big": ("size", "large"), "under": ("relation", "below")},
    ask={
        "describe": "what does the picture show?",
        "exists": "is there {a:a}?",
        "holds": "is {a:the} {rel.def}?",
        "colour": "what colour is {a:the}?",
        "count": "how many {a:plural} are there?",
        "where": "where is {a:the}?",
    },
    answers={"yes": "yes", "no": "no", "colour": "{a:the} is {c:colour}"},
    numeral=lambda mention: NUMERALS[mention.count],
)
