"""Spanish. A linguist's page.

Gender          círculo, cuadrado, triángulo, corazón, libro m; estrella, flor f.
Agreement       article and adjectives agree with the noun in gender and number.
Adjectives      colours follow the noun: "un círculo rojo". In -o: -o / -a / -os / -as. "verde", "azul", "marrón" have
                one form for both genders; plurals verdes, azules, marrones (without the accent).
                Size precedes: "un pequeño círculo rojo"; "grande" is cut to "gran" before any singular noun:
                "una gran estrella", but "tres grandes estrellas".
Plural          -s after a vowel, -es after a consonant: flores; the accent of corazón goes: corazones.
Contraction     de + el = del; "de la", "de un", "de una" stay.
Verbs           "hay" there is / are, for one or several; "está" for where a thing is.

Glossed examples
  Hay    un-a        gran      estrella    roj-a.
  exist  INDEF-SG.F  large.SG  star[F].SG  red-SG.F
  'There is a large red star.'

  El        libro       roj-o     está        a la izquierda  del          círculo       azul.
  DEF.SG.M  book[M].SG  red-SG.M  be.LOC.3SG  at.the.left     of.DEF.SG.M  circle[M].SG  blue.SG
  'The red book is to the left of the blue circle.'

  Hay    tres   pequeñ-as   flor-es       blanc-as.
  exist  three  small-PL.F  flower[F]-PL  white-PL.F
  'There are three small white flowers.'
"""

from mpm_lite.data.toyworld.grammar.engine import Grammar, Mention

# gender, singular, plural
NOUNS = {
    "circle": ("m", "círculo", "círculos"),
    "square": ("m", "cuadrado", "cuadrados"),
    "triangle": ("m", "triángulo", "triángulos"),
    "star": ("f", "estrella", "estrellas"),
    "heart": ("m", "corazón", "corazones"),
    "flower": ("f", "flor", "flores"),
    "book": ("m", "libro", "libros"),
}
# masculine and feminine singular, masculine and feminine plural
ADJECTIVES = {
    "red": ("rojo", "roja", "rojos", "rojas"),
    "blue": ("azul", "azul", "azules", "azules"),
    "green": ("verde", "verde", "verdes", "verdes"),
    "yellow": ("amarillo", "amarilla", "amarillos", "amarillas"),
    "black": ("negro", "negra", "negros", "negras"),
    "white": ("blanco", "blanca", "blancos", "blancas"),
    "purple": ("morado", "morada", "morados", "moradas"),
    "brown": ("marrón", "marrón", "marrones", "marrones"),
    "small": ("pequeño", "pequeña", "pequeños", "pequeñas"),
    "large": ("gran", "gran", "grandes", "grandes"),  # as it stands before the noun
}
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "purple", "brown")
NUMERALS = {1: "uno", 2: "dos", 3: "tres", 4: "cuatro"}
ARTICLES = {
    "un": {"m": "un", "f": "una"},
    "el": {"m": "el", "f": "la"},
    "del": {"m": "del", "f": "de la"},
    "cuántos": {"m": "cuántos", "f": "cuántas"},
}


def phrase(mention: Mention, form: str) -> str:
    """Forms: un (a circle), el (the circle), del (of the circle), num (three circles), cuántos (how many), colour."""
    gender, singular, plural = NOUNS[mention.shape]
    several = form in ("num", "cuántos")
    which = 2 * several + (gender == "f")
    first = NUMERALS[mention.count] if form == "num" else ARTICLES.get(form, {}).get(gender)
    size = mention.size and ADJECTIVES[mention.size][which]
    colour = mention.colour and ADJECTIVES[mention.colour][which]
    if form == "colour":
        return str(colour)
    return " ".join(filter(None, [first, size, plural if several else singular, colour]))


_RELATIONS = {"left": "a la izquierda", "right": "a la derecha", "above": "encima", "below": "debajo"}

GRAMMAR = Grammar(
    code="es",
    phrase=phrase,
    patterns={
        "exists": ("{a:un}", "hay {a:un}", "en la imagen se ve {a:un}"),
        "counted": ("{a:num}", "hay {a:num}", "en la imagen se ven {a:num}"),
        "placed": ("{a:un} {place}", "{place} hay {a:un}", "{a:el} está {place}"),
        "relate": ("{a:un} {rel}", "{rel} hay {a:un}", "{a:el} está {rel.def}"),
        "row": ("{row}: {a:un}, {b:un} y {c:un}", "{row} hay {a:un}, {b:un} y {c:un}"),
    },
    phrases={
        "rel": {r: f"{words} de {{b:un}}" for r, words in _RELATIONS.items()},
        "rel.def": {r: f"{words} {{b:del}}" for r, words in _RELATIONS.items()},
        "place": {
            "left": "a la izquierda de la imagen",
            "right": "a la derecha de la imagen",
            "top": "en la parte superior de la imagen",
            "bottom": "en la parte inferior de la imagen",
            "middle": "en el centro de la imagen",
        },
        "row": {
            "left": "de izquierda a derecha",
            "right": "de derecha a izquierda",
            "above": "de arriba abajo",
            "below": "de abajo arriba",
        },
    },
    lexicon={
        "shape": {s: forms[1:] for s, forms in NOUNS.items()},
        "colour": {c: set(ADJECTIVES[c]) | ({"marróns", "marrona"} if c == "brown" else set()) for c in COLOURS},
        "size": {"small": ADJECTIVES["small"], "large": ("gran", "grande", "grandes")},
        "count": {str(n): (NUMERALS[n],) for n in (2, 3, 4)},
        "relation": {
            "left": ("izquierda",),
            "right": ("derecha",),
            "above": ("encima", "arriba"),
            "below": ("debajo", "abajo"),
        },
    },
    function=(
        ("un", "una", "uno"),
        ("el", "la", "los", "las"),
        ("del", "de la", "de el", "de los", "de las"),
        ("está", "están"),
        ("ve", "ven"),
    ),
    ask={
        "describe": "¿qué se ve en la imagen?",
        "exists": "¿hay {a:un}?",
        "holds": "¿{a:el} está {rel.def}?",
        "colour": "¿cuál es el color {a:del}?",
        "count": "¿{a:cuántos} hay?",
        "where": "¿dónde está {a:el}?",
    },
    answers={"yes": "sí", "no": "no", "colour": "{a:el} es {c:colour}"},
    numeral=lambda mention: "una" if mention.count == 1 and NOUNS[mention.shape][0] == "f" else NUMERALS[mention.count],
    capital=lambda text: text[:1] + text[1:2].upper() + text[2:] if text[:1] == "¿" else text[:1].upper() + text[1:],
)
