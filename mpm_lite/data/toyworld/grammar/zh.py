"""Mandarin Chinese (simplified). A linguist's page.

Noun phrase     numeral + classifier + colour + 的 + size + noun: 一个红色的小圆形. No gender, case, number or article.
Classifiers     a numeral never meets its noun bare. 个 for the figures (圆形 正方形 三角形 心形), 颗 for stars (星星),
                朵 for flowers (花), 本 for books (书). The general 个 is heard for stars and flowers in speech;
                this grammar takes it for a wrong classifier there.
Two             两 before a classifier, never 二: 两本书.
的              joins an attribute to its noun. Colour takes it (红色的); the one-syllable size does not (小圆形).
                A place before a noun takes it too: 蓝色的书左边的红色的花 'the red flower left of the blue book'.
Known things    are named bare: 红色的花在书的左边 'the red flower is left of the book'.
Question        是不是 before the predicate asks yes or no, answered 是 or 不是.
Order           place - 有 - thing introduces; known thing - 在 - place locates.

Glossed examples
  图       里      有     三     朵  红色  的    小     花。
  picture  inside  exist  three  CL  red   ATTR  small  flower
  'There are three small red flowers.'

  蓝色  的    书    左边  有     一   颗  黄色    的    星星。
  blue  ATTR  book  left  exist  one  CL  yellow  ATTR  star
  'There is a yellow star to the left of a blue book.'

  红色  的    圆形    在     绿色   的    正方形  的    上面。
  red   ATTR  circle  be.at  green  ATTR  square  ATTR  top
  'The red circle is above the green square.'
"""

from mpm_lite.data.toyworld.grammar.engine import Grammar, Mention

# noun, classifier
NOUNS = {
    "circle": ("圆形", "个"),
    "square": ("正方形", "个"),
    "triangle": ("三角形", "个"),
    "star": ("星星", "颗"),
    "heart": ("心形", "个"),
    "flower": ("花", "朵"),
    "book": ("书", "本"),
}
COLOURS = {
    "red": "红色",
    "blue": "蓝色",
    "green": "绿色",
    "yellow": "黄色",
    "black": "黑色",
    "white": "白色",
    "purple": "紫色",
    "brown": "棕色",
}
SIZES = {"small": "小", "large": "大"}
NUMERALS = {1: "一", 2: "两", 3: "三", 4: "四"}


def phrase(mention: Mention, form: str) -> str:
    """Forms: num (一个红色的圆形), bare (红色的圆形), how (多少个... : classifier and noun after a question word), colour."""
    if form == "colour":
        return COLOURS[mention.colour or ""]
    noun, classifier = NOUNS[mention.shape]
    colour = COLOURS[mention.colour] + "的" if mention.colour else ""
    kind = colour + (SIZES[mention.size] if mention.size else "") + noun
    if form == "num":
        return NUMERALS[mention.count] + classifier + kind
    return classifier + kind if form == "how" else kind


_SIDES = {"left": "左边", "right": "右边", "above": "上面", "below": "下面"}

GRAMMAR = Grammar(
    code="zh",
    phrase=phrase,
    patterns={
        "exists": ("{a:num}", "图里有{a:num}", "这是{a:num}"),
        "counted": ("{a:num}", "图里有{a:num}", "这是{a:num}"),
        "placed": ("{place}有{a:num}", "{place}是{a:num}", "{a:bare}在{place}"),
        "relate": ("{rel}的{a:bare}", "{rel}有{a:num}", "{a:bare}在{rel.def}"),
        "row": ("{row}：{a:num}、{b:num}和{c:num}", "{row}有{a:num}、{b:num}和{c:num}"),
    },
    phrases={
        "rel": {r: f"{{b:bare}}{side}" for r, side in _SIDES.items()},
        "rel.def": {r: f"{{b:bare}}的{side}" for r, side in _SIDES.items()},
        "place": {
            "left": "图的左边",
            "right": "图的右边",
            "top": "图的上方",
            "bottom": "图的下方",
            "middle": "图的中间",
        },
        "row": {"left": "从左到右", "right": "从右到左", "above": "从上到下", "below": "从下到上"},
    },
    lexicon={
        "shape": {s: (n,) for s, (n, _) in NOUNS.items()},
        "colour": {c: (w,) for c, w in COLOURS.items()},
        "size": {s: (w,) for s, w in SIZES.items()},
        "count": {"2": ("两", "二"), "3": ("三",), "4": ("四",)},
        "relation": {r: (side,) for r, side in _SIDES.items()},
    },
    function=(("个", "颗", "朵", "本", "只", "张", "条", "把"),),
    extra={"红": ("colour", "red"), "蓝": ("colour", "blue"), "圆": ("shape", "circle"), "方形": ("shape", "square")},
    ask={
        "describe": "图里有什么？",
        "exists": "图里是不是有{a:bare}？",
        "holds": "{a:bare}是不是在{rel.def}？",
        "colour": "{a:bare}是什么颜色的？",
        "count": "图里有几{a:how}？",
        "where": "{a:bare}在哪里？",
    },
    answers={"yes": "是", "no": "不是", "colour": "{a:bare}是{c:colour}的"},
    numeral=lambda mention: NUMERALS[mention.count] + NOUNS[mention.shape][1],
    stop="。",
    spaced=False,
)
