"""Japanese. A linguist's page.

Noun phrase     size + colour + noun: 小さい赤い円. No gender, number or article.
Colours         are i-adjectives (赤い 青い 黄色い 黒い 白い 茶色い) or nouns that need の before another noun (緑の 紫の).
                Before です the former stay as they are, the latter lose their の: ハートは赤いです, 緑です.
Counters        円 正方形 三角形 星 ハート take つ (二つ 三つ 四つ); 花 take 輪 (三輪); 本 take 冊 (三冊).
                Noun + が + number + counter floats before the verb (赤い円が三つあります); before the noun it takes の
                (三つの赤い円). 個 would do for figures too; this grammar always says つ.
Particles       が marks what is introduced, は what is known and spoken of, に where it is, の joins noun to noun.
Verb            あります, the being of things that do not live; last. Before a noun in its plain form: 左にある円.

Glossed examples
  絵       の   中      に   小さい  赤い  円      が   あります。
  picture  GEN  inside  LOC  small   red   circle  NOM  exist.POL
  'There is a small red circle.'

  赤い  本    が   三     冊  あります。
  red   book  NOM  three  CL  exist.POL
  'There are three red books.'

  赤い  円      は   青い  正方形  の   左    に   あります。
  red   circle  TOP  blue  square  GEN  left  LOC  exist.POL
  'The red circle is to the left of the blue square.'
"""

from mpm_lite.data.toyworld.grammar.engine import Grammar, Mention

# noun, counter
NOUNS = {
    "circle": ("円", "つ"),
    "square": ("正方形", "つ"),
    "triangle": ("三角形", "つ"),
    "star": ("星", "つ"),
    "heart": ("ハート", "つ"),
    "flower": ("花", "輪"),
    "book": ("本", "冊"),
}
# before a noun
COLOURS = {
    "red": "赤い",
    "blue": "青い",
    "green": "緑の",
    "yellow": "黄色い",
    "black": "黒い",
    "white": "白い",
    "purple": "紫の",
    "brown": "茶色い",
}
SIZES = {"small": "小さい", "large": "大きい"}
NUMERALS = {1: "一", 2: "二", 3: "三", 4: "四"}


def phrase(mention: Mention, form: str) -> str:
    """Forms: bare (赤い円), num.no (三つの赤い円), ga.num (赤い円が三つ), how (赤い円はいくつ), colour (before です)."""
    if form == "colour":
        return COLOURS[mention.colour or ""].removesuffix("の")
    noun, counter = NOUNS[mention.shape]
    size = SIZES[mention.size] if mention.size else ""
    bare = size + (COLOURS[mention.colour] if mention.colour else "") + noun
    if form == "how":
        return bare + "は" + ("いくつ" if counter == "つ" else "何" + counter)
    return {
        "bare": bare,
        "num.no": f"{NUMERALS[mention.count]}{counter}の{bare}",
        "ga.num": f"{bare}が{NUMERALS[mention.count]}{counter}",
    }[form]


_SIDES = {"left": "左", "right": "右", "above": "上", "below": "下"}
_WAYS = {"left": "左から右へ", "right": "右から左へ", "above": "上から下へ", "below": "下から上へ"}

GRAMMAR = Grammar(
    code="ja",
    phrase=phrase,
    patterns={
        "exists": ("{a:bare}", "{a:bare}があります", "絵の中に{a:bare}があります"),
        "counted": ("{a:num.no}", "{a:ga.num}あります", "絵の中に{a:ga.num}あります"),
        "placed": ("{place}にある{a:bare}", "{place}に{a:bare}があります", "{a:bare}は{place}にあります"),
        "relate": ("{rel}にある{a:bare}", "{rel}に{a:bare}があります", "{a:bare}は{rel.def}にあります"),
        "row": ("{row}：{a:bare}、{b:bare}、{c:bare}", "{row}、{a:bare}、{b:bare}、{c:bare}が並んでいます"),
    },
    phrases={
        "rel": {r: f"{{b:bare}}の{side}" for r, side in _SIDES.items()},
        "rel.def": {r: f"{{b:bare}}の{side}" for r, side in _SIDES.items()},
        "place": {
            "left": "絵の左側",
            "right": "絵の右側",
            "top": "絵の上の方",
            "bottom": "絵の下の方",
            "middle": "絵の真ん中",
        },
        "row": _WAYS,
    },
    lexicon={
        "shape": {s: (n,) for s, (n, _) in NOUNS.items()},
        # the bare name too, and what a learner may say: 緑い, 赤な
        "colour": {c: {form, *(form[:-1] + end for end in ("", "い", "な"))} for c, form in COLOURS.items()},
        "size": {"small": ("小さい", "小さいの", "小さ"), "large": ("大きい", "大きいの", "大き")},
        "count": {str(n): (NUMERALS[n],) for n in (2, 3, 4)},
        "relation": {r: (side,) for r, side in _SIDES.items()},
    },
    function=(("つ", "輪", "冊"),),
    extra={
        "赤の": ("colour", "red"),
        "小さな": ("size", "small"),
        "大きな": ("size", "large"),
        "丸": ("shape", "circle"),
    },
    ask={
        "describe": "絵の中に何がありますか。",
        "exists": "{a:bare}はありますか。",
        "holds": "{a:bare}は{rel.def}にありますか。",
        "colour": "{a:bare}は何色ですか。",
        "count": "{a:how}ありますか。",
        "where": "{a:bare}はどこにありますか。",
    },
    answers={"yes": "はい", "no": "いいえ", "colour": "{a:bare}は{c:colour}です"},
    numeral=lambda mention: NUMERALS[mention.count] + NOUNS[mention.shape][1],
    stop="。",
    spaced=False,
)
