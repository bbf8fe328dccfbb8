"""French. A linguist's page.

Gender          cercle, carré, triangle, cœur, livre m; étoile, fleur f.
Agreement       article and adjectives agree with the noun in gender and number.
Adjectives      colours follow the noun: "un cercle vert", "une étoile verte"; irregular blanc / blanche, violet / violette.
                "marron" (a chestnut, turned colour) never changes: "des étoiles marron".
                Size precedes: "un petit cercle vert", "une grande étoile".
Elision         le, la, de lose their vowel before one: l'étoile, d'un carré. It looks at the very next word:
                l'étoile, but la grande étoile.
Contraction     de + le = du; "de la" and "de l'" stay: à gauche du carré, de la fleur, de l'étoile.
Verbs           "il y a" for one or several; "est" for where a thing is.

Glossed examples
  Il  y      a         un-e        grand-e     étoile      vert-e.
  it  there  have.3SG  INDEF-SG.F  large-SG.F  star[F].SG  green-SG.F
  'There is a large green star.'

  Le        livre       rouge   est     à gauche  de  l'      étoile      bleu-e.
  DEF.SG.M  book[M].SG  red.SG  be.3SG  at.left   of  DEF.SG  star[F].SG  blue-SG.F
  'The red book is to the left of the blue star.'

  Il  y      a         trois  petit-s     carré-s       marron.
  it  there  have.3SG  three  small-PL.M  square[M]-PL  brown
  'There are three small brown squares.'
"""

from mpm_lite.data.toyworld.grammar.engine import Grammar, Mention

# gender, singular; all plurals are in -s
NOUNS = {
    "circle": ("m", "cercle"),
    "square": ("m", "carré"),
    "triangle": ("m", "triangle"),
    "star": ("f", "étoile"),
    "heart": ("m", "cœur"),
    "flower": ("f", "fleur"),
    "book": ("m", "livre"),
}
# masculine and feminine singular, masculine and feminine plural
ADJECTIVES = {
    "red": ("rouge", "rouge", "rouges", "rouges"),
    "blue": ("bleu", "bleue", "bleus", "bleues"),
    "green": ("vert", "verte", "verts", "vertes"),
    "yellow": ("jaune", "jaune", "jaunes", "jaunes"),
    "black": ("noir", "noire", "noirs", "noires"),
    "white": ("blanc", "blanche", "blancs", "blanches"),
    "purple": ("violet", "violette", "violets", "violettes"),
    "brown": ("marron", "marron", "marron", "marron"),
    "small": ("petit", "petite", "petits", "petites"),
    "large": ("grand", "grande", "grands", "grandes"),
}
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "purple", "brown")
NUMERALS = {1: "un", 2: "deux", 3: "trois", 4: "quatre"}
ARTICLES = {
    "un": {"m": "un ", "f": "une "},
    "d'un": {"m": "d'un ", "f": "d'une "},
    "le": {"m": "le ", "f": "la "},
    "du": {"m": "du ", "f": "de la "},
}
_ELIDED = {"le": "l'", "du": "de l'"}
_VOWELS = "aeiouéèêœ"


def phrase(mention: Mention, form: str) -> str:
    """Forms: un (a circle), d'un (of a circle), le (the), du (of the), num (three circles), de (d'étoiles), colour."""
    gender, noun = NOUNS[mention.shape]
    several = form in ("num", "de")
    which = 2 * several + (gender == "f")
    size = mention.size and ADJECTIVES[mention.size][which]
    colour = mention.colour and ADJECTIVES[mention.colour][which]
    if form == "colour":
        return str(colour)
    rest = " ".join(filter(None, [size, noun + "s" if several else noun, colour]))
    vowel = rest[0] in _VOWELS
    if form == "num":
        return f"{NUMERALS[mention.count]} {rest}"
    if form == "de":
        return ("d'" if vowel else "de ") + rest
    return (_ELIDED[form] if vowel and form in _ELIDED else ARTICLES[form][gender]) + rest


_RELATIONS = {"left": "à gauche", "right": "à droite", "above": "au-dessus", "below": "au-dessous"}

GRAMMAR = Grammar(
    code="fr",
    phrase=phrase,
    patterns={
        "exists": ("{a:un}", "il y a {a:un}", "sur l'image, on voit {a:un}"),
        "counted": ("{a:num}", "il y a {a:num}", "sur l'image, on voit {a:num}"),
        "placed": ("{a:un} {place}", "{place}, il y a {a:un}", "{a:le} est {place}"),
        "relate": ("{a:un} {rel}", "{rel}, il y a {a:un}", "{a:le} est {rel.def}"),
        "row": ("{row} : {a:un}, {b:un} et {c:un}", "{row}, on voit {a:un}, {b:un} et {c:un}"),
    },
    phrases={
        "rel": {r: f"{words} {{b:d'un}}" for r, words in _RELATIONS.items()},
        "rel.def": {r: f"{words} {{b:du}}" for r, words in _RELATIONS.items()},
        "place": {
            "left": "à gauche de l'image",
            "right": "à droite de l'image",
            "top": "en haut de l'image",
            "bottom": "en bas de l'image",
            "middle": "au milieu de l'image",
        },
        "row": {
            "left": "de gauche à droite",
            "right": "de droite à gauche",
            "above": "de haut en bas",
            "below": "de bas en haut",
        },
    },
    lexicon={
        "shape": {s: (n, n + "s") for s, (_, n) in NOUNS.items()},
        "colour": {c: set(ADJECTIVES[c]) | ({"marrons"} if c == "brown" else set()) for c in COLOURS},
        "size": {s: ADJECTIVES[s] for s in ("small", "large")},
        "count": {str(n): (NUMERALS[n],) for n in (2, 3, 4)},
        "relation": {
            "left": ("gauche",),
            "right": ("droite",),
            "above": ("au-dessus", "dessus"),
            "below": ("au-dessous", "dessous"),
        },
    },
    function=(
        ("un", "une"),
        ("d'un", "d'une", "de un", "de une"),
        ("le", "la", "l'", "les"),
        ("du", "de la", "de l'", "de le", "des"),
        ("est", "sont"),
    ),
    ask={
        "describe": "que voit-on sur l'image ?",
        "exists": "y a-t-il {a:un} ?",
        "holds": "est-ce que {a:le} est {rel.def} ?",
        "colour": "quelle est la couleur {a:du} ?",
        "count": "combien y a-t-il {a:de} ?",
        "where": "où est {a:le} ?",
    },
    answers={"yes": "oui", "no": "non", "colour": "{a:le} est {c:colour}"},
    numeral=lambda mention: "une" if mention.count == 1 and NOUNS[mention.shape][0] == "f" else NUMERALS[mention.count],
)
