"""Hindi. A linguist's page.

Gender          वृत्त वर्ग त्रिभुज तारा दिल फूल are masculine, किताब feminine.
Case            direct for the subject, oblique before a postposition. Of our nouns only तारा (masculine in -ā) shows it in
                the singular: तारे के ऊपर. Its adjectives show it with every masculine noun: नीले वर्ग के ऊपर.
Plural          direct plural: तारे, किताबें; the masculines in a consonant are unchanged (तीन वर्ग).
Adjectives      before the noun. In -ā they agree: -ā masculine singular direct, -e masculine oblique or plural, -ī feminine
                (नीला नीले नीली). लाल सफ़ेद बैंगनी never change.
Order           एक / numeral + size + colour + noun; the verb is last. है with one, हैं with several.
Relations       compound postpositions with के: के बाईं ओर, के दाईं ओर, के ऊपर, के नीचे. ओर 'side' is feminine, hence बाईं;
                with बाईं or दाईं before it the postposition is के by usage.
Known things    are named bare, new ones with एक.

Glossed examples
  चित्र     में   एक   छोटा            नीला           वर्ग           है।
  picture  in  one  small.M.SG.DIR  blue.M.SG.DIR  square[M].SG  be.PRS.3SG
  'There is a small blue square.'

  हरी      किताब       नीले            तारे             के    ऊपर    है।
  green.F  book[F].SG  blue.M.SG.OBL  star[M].SG.OBL  GEN  above  be.PRS.3SG
  'The green book is above the blue star.'

  चित्र     में   तीन    हरी      किताबें       हैं।
  picture  in  three  green.F  book[F].PL  be.PRS.3PL
  'There are three green books.'
"""

from mpm_lite.data.toyworld.grammar.engine import Grammar, Mention

# gender, direct singular, oblique singular, direct plural
NOUNS = {
    "circle": ("m", "वृत्त", "वृत्त", "वृत्त"),
    "square": ("m", "वर्ग", "वर्ग", "वर्ग"),
    "triangle": ("m", "त्रिभुज", "त्रिभुज", "त्रिभुज"),
    "star": ("m", "तारा", "तारे", "तारे"),
    "heart": ("m", "दिल", "दिल", "दिल"),
    "flower": ("m", "फूल", "फूल", "फूल"),
    "book": ("f", "किताब", "किताब", "किताबें"),
}
# masculine singular direct, masculine oblique or plural, feminine
ADJECTIVES = {
    "red": ("लाल", "लाल", "लाल"),
    "blue": ("नीला", "नीले", "नीली"),
    "green": ("हरा", "हरे", "हरी"),
    "yellow": ("पीला", "पीले", "पीली"),
    "black": ("काला", "काले", "काली"),
    "white": ("सफ़ेद", "सफ़ेद", "सफ़ेद"),
    "purple": ("बैंगनी", "बैंगनी", "बैंगनी"),
    "brown": ("भूरा", "भूरे", "भूरी"),
    "small": ("छोटा", "छोटे", "छोटी"),
    "large": ("बड़ा", "बड़े", "बड़ी"),
}
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "purple", "brown")
NUMERALS = {1: "एक", 2: "दो", 3: "तीन", 4: "चार"}


def phrase(mention: Mention, form: str) -> str:
    """Forms: ek (एक तारा), ek.obl (एक तारे), bare (तारा), obl (तारे), num (तीन तारे), kitne (कितने तारे), colour (नीला)."""
    gender, direct, oblique, plural = NOUNS[mention.shape]
    several = form in ("num", "kitne")
    which = 2 if gender == "f" else int(several or form.endswith("obl"))
    noun = plural if several else oblique if form.endswith("obl") else direct
    if form == "colour":
        return ADJECTIVES[mention.colour or ""][which]
    first = {"num": NUMERALS[mention.count], "kitne": "कितनी" if gender == "f" else "कितने"}.get(form, "")
    if form.startswith("ek"):
        first = NUMERALS[1]
    adjectives = [ADJECTIVES[name][which] for name in (mention.size, mention.colour) if name]
    return " ".join(filter(None, [first, *adjectives, noun]))


_RELATIONS = {"left": "के बाईं ओर", "right": "के दाईं ओर", "above": "के ऊपर", "below": "के नीचे"}

GRAMMAR = Grammar(
    code="hi",
    phrase=phrase,
    patterns={
        "exists": ("{a:ek}", "यहाँ {a:ek} है", "चित्र में {a:ek} है"),
        "counted": ("{a:num}", "यहाँ {a:num} हैं", "चित्र में {a:num} हैं"),
        "placed": ("{place} {a:ek}", "{place} {a:ek} है", "{a:bare} {place} है"),
        "relate": ("{rel} {a:ek}", "{rel} {a:ek} है", "{a:bare} {rel.def} है"),
        "row": ("{row}: {a:ek}, {b:ek} और {c:ek}", "{row} {a:ek}, {b:ek} और {c:ek} हैं"),
    },
    phrases={
        "rel": {r: f"{{b:ek.obl}} {words}" for r, words in _RELATIONS.items()},
        "rel.def": {r: f"{{b:obl}} {words}" for r, words in _RELATIONS.items()},
        "place": {
            "left": "चित्र में बाईं ओर",
            "right": "चित्र में दाईं ओर",
            "top": "चित्र में ऊपर",
            "bottom": "चित्र में नीचे",
            "middle": "चित्र के बीच में",
        },
        "row": {
            "left": "बाएँ से दाएँ",
            "right": "दाएँ से बाएँ",
            "above": "ऊपर से नीचे",
            "below": "नीचे से ऊपर",
        },
    },
    lexicon={
        # with the oblique plurals, which the grammar itself does not need
        "shape": {s: {*forms, forms[0].removesuffix("ा") + "ों"} for s, (_, *forms) in NOUNS.items()},
        "colour": {c: {*ADJECTIVES[c]} | ({"लाला", "लाले", "लाली"} if c == "red" else set()) for c in COLOURS},
        "size": {s: ADJECTIVES[s] for s in ("small", "large")},
        "count": {str(n): (NUMERALS[n],) for n in (2, 3, 4)},
        "relation": {
            "left": ("बाईं", "बाएँ", "बायीं"),
            "right": ("दाईं", "दाएँ", "दायीं"),
            "above": ("ऊपर",),
            "below": ("नीचे",),
        },
    },
    function=(("है", "हैं"), ("के", "का", "की")),
    ask={
        "describe": "चित्र में क्या है?",
        "exists": "क्या चित्र में {a:ek} है?",
        "holds": "क्या {a:bare} {rel.def} है?",
        "colour": "{a:obl} का रंग क्या है?",
        "count": "चित्र में {a:kitne} हैं?",
        "where": "{a:bare} कहाँ है?",
    },
    answers={"yes": "हाँ", "no": "नहीं", "colour": "{a:bare} {c:colour} है"},
    numeral=lambda mention: NUMERALS[mention.count],
    stop="।",
)
