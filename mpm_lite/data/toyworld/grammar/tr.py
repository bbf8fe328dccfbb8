"""Turkish. A linguist's page.

Noun phrase     size + colour + "bir" + noun for a new thing (küçük kırmızı bir daire), without "bir" for a known one;
                numeral + size + colour + noun, and *no plural* after a numeral: üç kırmızı daire.
Harmony         the vowel of a suffix follows the last vowel of its word: genitive -(n)ın / -(n)in / -(n)un / -(n)ün,
                yıldızın, üçgenin. "kalp" has an a but takes front suffixes: kalbin.
Softening       p, k at the end turn to b, ğ before a vowel: kitap kitabın, kalp kalbin, çiçek çiçeğin.
Buffer n        between a final vowel and the genitive: dairenin, karenin.
Relations       "at its left": the owner in the genitive, the side with possessive -(s)I, buffer n and locative -dA:
                kare-nin sol-u-n-da. solunda, sağında, üstünde, altında.
Verb            "var" there is / are, invariable, last. A statement on a known thing has no verb: Daire karenin solunda.
Question        mı / mi follows what is asked, in harmony: solunda mı, üstünde mi.
Letters         i and ı are two letters; their capitals are İ and I.

Glossed examples
  Resim-de     küçük  kırmızı  bir    daire   var.
  picture-LOC  small  red      INDEF  circle  exist
  'There is a small red circle.'

  Kırmızı  kitap  mavi  çiçeğ-in    sol-u-n-da.
  red      book   blue  flower-GEN  left-POSS.3SG-n-LOC
  'The red book is to the left of the blue flower.'

  Üç     yeşil  yıldız   var.
  three  green  star.SG  exist
  'There are three green stars.'
"""

from mpm_lite.data.toyworld.grammar.engine import Grammar, Mention

# noun, its stem before a vowel, the vowel that harmony follows
NOUNS = {
    "circle": ("daire", "daire", "e"),
    "square": ("kare", "kare", "e"),
    "triangle": ("üçgen", "üçgen", "e"),
    "star": ("yıldız", "yıldız", "ı"),
    "heart": ("kalp", "kalb", "e"),  # a palatal l: front suffixes after a back vowel
    "flower": ("çiçek", "çiçeğ", "e"),
    "book": ("kitap", "kitab", "a"),
}
COLOURS = {
    "red": "kırmızı",
    "blue": "mavi",
    "green": "yeşil",
    "yellow": "sarı",
    "black": "siyah",
    "white": "beyaz",
    "purple": "mor",
    "brown": "kahverengi",
}
SIZES = {"small": "küçük", "large": "büyük"}
NUMERALS = {1: "bir", 2: "iki", 3: "üç", 4: "dört"}
HIGH = {"a": "ı", "ı": "ı", "e": "i", "i": "i", "o": "u", "u": "u", "ö": "ü", "ü": "ü"}


def genitive(shape: str) -> str:
    """The noun with its genitive suffix."""
    noun, stem, vowel = NOUNS[shape]
    return stem + ("n" if noun[-1] in HIGH else "") + HIGH[vowel] + "n"


def phrase(mention: Mention, form: str) -> str:
    """Forms: bare (kare), gen (karenin), bir (bir kare), bir.gen (bir karenin), num (üç kare), colour (kırmızı)."""
    if form == "colour":
        return COLOURS[mention.colour or ""]
    noun = genitive(mention.shape) if form.endswith("gen") else NOUNS[mention.shape][0]
    words = [mention.size and SIZES[mention.size], mention.colour and COLOURS[mention.colour]]
    words = [NUMERALS[mention.count] if form == "num" else None, *words]
    return " ".join(filter(None, [*words, "bir" if form.startswith("bir") else None, noun]))


def _written(shape: str) -> set[str]:
    """The noun's right forms, and those of a learner who misses harmony, softening, the buffer or the numeral's rule."""
    noun, stem, _ = NOUNS[shape]
    endings = ("ın", "in", "un", "ün", "nın", "nin", "nun", "nün", "lar", "ler", "ların", "lerin")
    return {noun, *(s + ending for s in (noun, stem) for ending in endings)}


def _lower(text: str) -> str:
    return text.replace("İ", "i").replace("I", "ı").lower()


def _capital(text: str) -> str:
    return {"i": "İ", "ı": "I"}.get(text[:1], text[:1].upper()) + text[1:]


_SIDES = {"left": "solunda", "right": "sağında", "above": "üstünde", "below": "altında"}

GRAMMAR = Grammar(
    code="tr",
    phrase=phrase,
    patterns={
        "exists": ("{a:bir}", "{a:bir} var", "resimde {a:bir} var"),
        "counted": ("{a:num}", "{a:num} var", "resimde {a:num} var"),
        "placed": ("{place} {a:bir}", "{place} {a:bir} var", "{a:bare} {place}"),
        "relate": ("{rel} {a:bir}", "{rel} {a:bir} var", "{a:bare} {rel.def}"),
        "row": ("{row}: {a:bir}, {b:bir} ve {c:bir}", "{row} {a:bir}, {b:bir} ve {c:bir} var"),
    },
    phrases={
        "rel": {r: f"{{b:bir.gen}} {side}" for r, side in _SIDES.items()},
        "rel.def": {r: f"{{b:gen}} {side}" for r, side in _SIDES.items()},
        "rel.ask": {r: f"{{b:gen}} {side} {'mi' if r == 'above' else 'mı'}" for r, side in _SIDES.items()},
        "place": {
            "left": "resmin sol tarafında",
            "right": "resmin sağ tarafında",
            "top": "resmin üst kısmında",
            "bottom": "resmin alt kısmında",
            "middle": "resmin ortasında",
        },
        "row": {
            "left": "soldan sağa",
            "right": "sağdan sola",
            "above": "yukarıdan aşağıya",
            "below": "aşağıdan yukarıya",
        },
    },
    lexicon={
        "shape": {s: _written(s) for s in NOUNS},
        "colour": {c: (w,) for c, w in COLOURS.items()},
        "size": {s: (w,) for s, w in SIZES.items()},
        "count": {str(n): (NUMERALS[n],) for n in (2, 3, 4)},
        "relation": {r: (side,) for r, side in _SIDES.items()},
    },
    function=tuple(
        {side[: -len(end)] + e for e in ("da", "de", "ta", "te")}
        for side, end in ((s, s[-2:]) for s in _SIDES.values())
    ),
    extra={"üzerinde": ("relation", "above"), "solundaki": ("relation", "left"), "sağındaki": ("relation", "right")},
    ask={
        "describe": "resimde ne var?",
        "exists": "resimde {a:bir} var mı?",
        "holds": "{a:bare} {rel.ask}?",
        "colour": "resimdeki {a:bare} ne renk?",
        "count": "resimde kaç {a:bare} var?",
        "where": "{a:bare} nerede?",
    },
    answers={"yes": "evet", "no": "hayır", "colour": "resimdeki {a:bare} {c:colour}"},
    numeral=lambda mention: NUMERALS[mention.count],
    lower=_lower,
    capital=_capital,
)
