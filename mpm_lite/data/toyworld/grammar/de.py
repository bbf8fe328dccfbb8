"""German. A linguist's page.

Gender          Kreis m, Stern m; Quadrat n, Dreieck n, Herz n, Buch n; Blume f.
Case            nominative for the subject; accusative after "es gibt" (existential: there is); dative after the
                prepositions of place: "links von", "rechts von", "über", "unter" (place, not movement).
Articles        ein / eine / ein (NOM), einen / eine / ein (ACC), einem / einer / einem (DAT);
                der / die / das (NOM), dem / der / dem (DAT). "von dem" contracts to "vom"; "über dem" does not here.
Adjectives      stand before the noun and each takes the same ending:
                mixed after "ein": NOM -er / -e / -es, ACC -en / -e / -es, DAT -en throughout;
                weak after "der": NOM -e, DAT -en; strong in the plural after a numeral: NOM and ACC -e.
Nouns           plural Kreise, Sterne, Quadrate, Dreiecke, Herzen, Bücher, Blumen. "Herz" has the dative "Herzen"; the
                other nouns have no dative ending in the singular. Nouns have capitals.
Order           verb second: "Links von einem Quadrat ist ein Kreis."

Glossed examples
  Der           rot-e          Kreis         ist     links  vom              blau-en         Herz-en.
  DEF.NOM.SG.M  red-NOM.SG.WK  circle[M].SG  be.3SG  left   of.DEF.DAT.SG.N  blue-DAT.SG.WK  heart[N]-DAT.SG
  'The red circle is to the left of the blue heart.'

  Es    gibt      ein-en          klein-en            gelb-en              Stern.
  EXPL  give.3SG  INDEF-ACC.SG.M  small-ACC.SG.M.MIX  yellow-ACC.SG.M.MIX  star[M].SG
  'There is a small yellow star.'

  Über   ein-em          schwarz-en        Buch        ist     ein-e           gelb-e               Blume.
  above  INDEF-DAT.SG.N  black-DAT.SG.MIX  book[N].SG  be.3SG  INDEF-NOM.SG.F  yellow-NOM.SG.F.MIX  flower[F].SG
  'There is a yellow flower above a black book.'
"""

from mpm_lite.data.toyworld.grammar.engine import Grammar, Mention

# gender, nominative singular, dative singular, plural
NOUNS = {
    "circle": ("m", "Kreis", "Kreis", "Kreise"),
    "square": ("n", "Quadrat", "Quadrat", "Quadrate"),
    "triangle": ("n", "Dreieck", "Dreieck", "Dreiecke"),
    "star": ("m", "Stern", "Stern", "Sterne"),
    "heart": ("n", "Herz", "Herzen", "Herzen"),
    "flower": ("f", "Blume", "Blume", "Blumen"),
    "book": ("n", "Buch", "Buch", "Bücher"),
}
COLOURS = {
    "red": "rot",
    "blue": "blau",
    "green": "grün",
    "yellow": "gelb",
    "black": "schwarz",
    "white": "weiß",
    "purple": "violett",
    "brown": "braun",
}
SIZES = {"small": "klein", "large": "groß"}
NUMERALS = {1: "ein", 2: "zwei", 3: "drei", 4: "vier"}

# (article, adjective ending) by gender
MIXED = {
    "nom": {"m": ("ein", "er"), "f": ("eine", "e"), "n": ("ein", "es")},
    "acc": {"m": ("einen", "en"), "f": ("eine", "e"), "n": ("ein", "es")},
    "dat": {"m": ("einem", "en"), "f": ("einer", "en"), "n": ("einem", "en")},
}
WEAK = {
    "nom": {"m": ("der", "e"), "f": ("die", "e"), "n": ("das", "e")},
    "dat": {"m": ("dem", "en"), "f": ("der", "en"), "n": ("dem", "en")},
    "von": {"m": ("vom", "en"), "f": ("von der", "en"), "n": ("vom", "en")},  # "von" and the dative in one
}


def phrase(mention: Mention, form: str) -> str:
    """Forms: ein.CASE (a circle), der.CASE (the circle), von.der (of the circle), num (three circles), plural, colour."""
    if form == "colour":
        return COLOURS[mention.colour or ""]
    gender, noun, dative, plural = NOUNS[mention.shape]
    if form in ("num", "plural"):
        article, ending, noun = (NUMERALS[mention.count] if form == "num" else ""), "e", plural
    else:
        kind, case = ("der", "von") if form == "von.der" else form.split(".")
        article, ending = (MIXED if kind == "ein" else WEAK)[case][gender]
        noun = dative if case in ("dat", "von") else noun
    adjectives = [mention.size and SIZES[mention.size], mention.colour and COLOURS[mention.colour]]
    return " ".join(filter(None, [article, *(a + ending for a in adjectives if a), noun]))


_ENDINGS = ("", "e", "er", "es", "en", "em")

GRAMMAR = Grammar(
    code="de",
    phrase=phrase,
    patterns={
        "exists": ("{a:ein.nom}", "es gibt {a:ein.acc}", "auf dem Bild ist {a:ein.nom}"),
        "counted": ("{a:num}", "es gibt {a:num}", "auf dem Bild sind {a:num}"),
        "placed": ("{a:ein.nom} {place}", "{place} ist {a:ein.nom}", "{a:der.nom} ist {place}"),
        "relate": ("{a:ein.nom} {rel}", "{rel} ist {a:ein.nom}", "{a:der.nom} ist {rel.def}"),
        "row": (
            "{row}: {a:ein.nom}, {b:ein.nom} und {c:ein.nom}",
            "{row} gibt es {a:ein.acc}, {b:ein.acc} und {c:ein.acc}",
        ),
    },
    phrases={
        "rel": {
            "left": "links von {b:ein.dat}",
            "right": "rechts von {b:ein.dat}",
            "above": "über {b:ein.dat}",
            "below": "unter {b:ein.dat}",
        },
        "rel.def": {
            "left": "links {b:von.der}",
            "right": "rechts {b:von.der}",
            "above": "über {b:der.dat}",
            "below": "unter {b:der.dat}",
        },
        "place": {
            "left": "links im Bild",
            "right": "rechts im Bild",
            "top": "oben im Bild",
            "bottom": "unten im Bild",
            "middle": "in der Bildmitte",
        },
        "row": {
            "left": "von links nach rechts",
            "right": "von rechts nach links",
            "above": "von oben nach unten",
            "below": "von unten nach oben",
        },
    },
    lexicon={
        "shape": {s: {n, d, p} for s, (_, n, d, p) in NOUNS.items()},
        "colour": {c: {w + e for e in _ENDINGS} for c, w in COLOURS.items()},
        "size": {s: {w + e for e in _ENDINGS} for s, w in SIZES.items()},
        "count": {str(n): (NUMERALS[n],) for n in (2, 3, 4)},
        "relation": {"left": ("links",), "right": ("rechts",), "above": ("über",), "below": ("unter",)},
    },
    function=(
        ("ein", "eine", "einen", "einem", "einer", "eines"),
        ("der", "die", "das", "den", "dem", "des"),
        ("vom", "von der", "von dem", "von die", "von das", "von den"),
        ("ist", "sind"),
    ),
    extra={"kreisen": ("shape", "circle"), "büchern": ("shape", "book"), "unterhalb": ("relation", "below")},
    ask={
        "describe": "was ist auf dem Bild?",
        "exists": "gibt es {a:ein.acc}?",
        "holds": "ist {a:der.nom} {rel.def}?",
        "colour": "welche Farbe hat {a:der.nom}?",
        "count": "wie viele {a:plural} gibt es?",
        "where": "wo ist {a:der.nom}?",
    },
    answers={"yes": "ja", "no": "nein", "colour": "{a:der.nom} ist {c:colour}"},
    numeral=lambda mention: NUMERALS[mention.count],
)
