"""Modern Standard Arabic, without vowel signs. A linguist's page.

Gender          دائرة نجمة زهرة are feminine (in ة), مربع مثلث قلب كتاب masculine.
Order           noun + colour + size: دائرة حمراء صغيرة. Written from right to left; text is stored in reading order.
Agreement       adjectives follow the noun in gender, number and definiteness: كتاب أحمر, الكتاب الأحمر.
                Colours of the pattern أفعل have the feminine فعلاء: أحمر / حمراء. Others add ة: بني / بنية.
Counting        one: the bare singular. Two: the dual in ان, of noun and adjectives (دائرتان حمراوان), without a
                numeral. Three and four: a numeral of the *opposite* gender form (ثلاث with feminine nouns, ثلاثة with
                masculine), then the plural, most of them broken (دوائر نجوم قلوب زهور كتب; مربعات مثلثات in ات).
                Plurals of things take adjectives in the feminine singular: ثلاثة كتب حمراء.
How many        كم takes the singular accusative, seen in the masculine as ا: كم كتابا. أحمر has no such ا (diptote).
Verb            يوجد / توجد 'there is' agrees in gender with the thing after it; هناك 'there' does not change.
                A statement on a known thing has no verb: الكتاب على يسار النجمة.
And             و is written together with the next word.

Glossed examples (each line in reading order)
  توجد         دائرة            حمراء  صغيرة.
  exist.3SG.F  circle[F].INDEF  red.F  small.F
  'There is a small red circle.'

  هناك   ثلاثة        كتب         حمراء.
  there  three.CNT.M  book[M].PL  red.SG.F
  'There are three red books.'

  المربع         الأزرق      على  يسار  النجمة       الخضراء.
  DEF.square[M]  DEF.blue.M  on   left  DEF.star[F]  DEF.green.F
  'The blue square is to the left of the green star.'
"""

from mpm_lite.data.toyworld.grammar.engine import Grammar, Mention

# gender, singular, dual (nominative), plural
NOUNS = {
    "circle": ("f", "دائرة", "دائرتان", "دوائر"),
    "square": ("m", "مربع", "مربعان", "مربعات"),
    "triangle": ("m", "مثلث", "مثلثان", "مثلثات"),
    "star": ("f", "نجمة", "نجمتان", "نجوم"),
    "heart": ("m", "قلب", "قلبان", "قلوب"),
    "flower": ("f", "زهرة", "زهرتان", "زهور"),
    "book": ("m", "كتاب", "كتابان", "كتب"),
}
# masculine, feminine, dual of each (nominative)
ADJECTIVES = {
    "red": ("أحمر", "حمراء", "أحمران", "حمراوان"),
    "blue": ("أزرق", "زرقاء", "أزرقان", "زرقاوان"),
    "green": ("أخضر", "خضراء", "أخضران", "خضراوان"),
    "yellow": ("أصفر", "صفراء", "أصفران", "صفراوان"),
    "black": ("أسود", "سوداء", "أسودان", "سوداوان"),
    "white": ("أبيض", "بيضاء", "أبيضان", "بيضاوان"),
    "purple": ("بنفسجي", "بنفسجية", "بنفسجيان", "بنفسجيتان"),
    "brown": ("بني", "بنية", "بنيان", "بنيتان"),
    "small": ("صغير", "صغيرة", "صغيران", "صغيرتان"),
    "large": ("كبير", "كبيرة", "كبيران", "كبيرتان"),
}
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "purple", "brown")
# with masculine nouns, with feminine nouns
NUMERALS = {1: ("واحد", "واحدة"), 2: ("اثنان", "اثنتان"), 3: ("ثلاثة", "ثلاث"), 4: ("أربعة", "أربع")}


def phrase(mention: Mention, form: str) -> str:
    """Forms: indef (دائرة), def (الدائرة), exist (توجد دائرة), wa (ودائرة), num (ثلاث دوائر), acc (مربعا), colour."""
    gender, singular, dual, plural = NOUNS[mention.shape]
    feminine = gender == "f"
    if form == "colour":
        return ADJECTIVES[mention.colour or ""][feminine]
    names = [name for name in (mention.colour, mention.size) if name]
    if form == "num" and mention.count == 2:
        return " ".join([dual, *(ADJECTIVES[name][2 + feminine] for name in names)])
    if form == "num":
        return " ".join([NUMERALS[mention.count][feminine], plural, *(ADJECTIVES[name][1] for name in names)])
    words = [singular, *(ADJECTIVES[name][feminine] for name in names)]
    if form == "def":
        return " ".join("ال" + word for word in words)
    if form == "acc" and not feminine:
        return " ".join(word if word.startswith("أ") else word + "ا" for word in words)
    first = {"exist": "توجد " if feminine else "يوجد ", "wa": "و"}.get(form, "")
    return first + " ".join(words)


def _written(forms: tuple[str, ...]) -> set[str]:
    """The forms with what is written together with them, and their oblique duals."""
    oblique = {form[:-2] + "ين" for form in forms if form.endswith("ان")}
    bare = {*forms, *oblique, forms[0] + "ا"}
    return bare | {"ال" + form for form in bare} | {"و" + form for form in bare}


_RELATIONS = {"left": "على يسار", "right": "على يمين", "above": "فوق", "below": "تحت"}

GRAMMAR = Grammar(
    code="ar",
    phrase=phrase,
    patterns={
        "exists": ("{a:indef}", "{a:exist}", "في الصورة {a:indef}"),
        "counted": ("{a:num}", "هناك {a:num}", "في الصورة {a:num}"),
        "placed": ("{a:indef} {place}", "{a:exist} {place}", "{a:def} {place}"),
        "relate": ("{a:indef} {rel}", "{a:exist} {rel}", "{a:def} {rel.def}"),
        "row": ("{row}: {a:indef} {b:wa} {c:wa}", "{row} {a:exist} {b:wa} {c:wa}"),
    },
    phrases={
        "rel": {r: f"{words} {{b:indef}}" for r, words in _RELATIONS.items()},
        "rel.def": {r: f"{words} {{b:def}}" for r, words in _RELATIONS.items()},
        "place": {
            "left": "في الجانب الأيسر من الصورة",
            "right": "في الجانب الأيمن من الصورة",
            "top": "في أعلى الصورة",
            "bottom": "في أسفل الصورة",
            "middle": "في وسط الصورة",
        },
        "row": {
            "left": "من اليسار إلى اليمين",
            "right": "من اليمين إلى اليسار",
            "above": "من الأعلى إلى الأسفل",
            "below": "من الأسفل إلى الأعلى",
        },
    },
    lexicon={
        "shape": {s: _written(forms[1:]) for s, forms in NOUNS.items()},
        "colour": {c: _written(ADJECTIVES[c]) for c in COLOURS},
        "size": {s: _written(ADJECTIVES[s]) for s in ("small", "large")},
        "count": {
            "2": ("اثنان", "اثنتان", "اثنين", "اثنتين"),
            "3": NUMERALS[3],
            "4": NUMERALS[4],
        },
        "relation": {
            "left": ("يسار", "اليسار"),
            "right": ("يمين", "اليمين"),
            "above": ("فوق",),
            "below": ("تحت",),
        },
    },
    function=(("يوجد", "توجد"),),
    # A dual says its shape and the number two in one word.
    extra={form: ("count", "2") for _, _, dual, _ in NOUNS.values() for form in (dual, dual[:-2] + "ين")},
    ask={
        "describe": "ماذا في الصورة؟",
        "exists": "هل {a:exist}؟",
        "holds": "هل {a:def} {rel.def}؟",
        "colour": "ما لون {a:def}؟",
        "count": "كم {a:acc} في الصورة؟",
        "where": "أين {a:def}؟",
    },
    answers={"yes": "نعم", "no": "لا", "colour": "{a:def} {c:colour}"},
    numeral=lambda mention: NUMERALS[mention.count][NOUNS[mention.shape][0] == "f"],
)
