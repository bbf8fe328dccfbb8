"""Claims C1 to C8 of MPM (2308.12038), image to text and, C6, text to image, on the toy world: arms, controls, rules.

Everything here was committed before the runs that judge it, and no dial was chosen by what any language but English
scores. `theirs` quotes figures read in the authors' release only. What a painted picture shows is read by a network that
learned from drawings; nothing is chosen among several tries.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd

from mpm_lite.claims import LEARNED, Condition, Found, load_claim
from mpm_lite.core import runtime
from mpm_lite.core.provenance import read_table
from mpm_lite.data.toyworld import grammar
from mpm_lite.evaluation.stats import DRAWS, SEEN, Drawn, Sample, average_figures, widen
from mpm_lite.experiments.correlations import spearman
from mpm_lite.experiments.mpm_chat import Chat
from mpm_lite.experiments.mpm_paint import Paint
from mpm_lite.towers import catalogue

OTHERS = tuple(code for code in grammar.LANGUAGES if code != "en")
STRONG = "toy-mixed"  # text alone gave it most of what English says, in every other language
MPM = Chat(lm=STRONG)  # English captions of all training pictures, frozen language model
ENGLISH_LM = "toy-english"
SHORT = {"steps": 800}  # arms that are compared with each other only
INSTRUCTIONS = 8_000
SHARES = (0.01, 0.05, 0.10)
TUNED = (200, 600, 1_800)  # steps of stage 2 in C2
BLOCK = {"first": 200, "count": 200}  # pictures of test that no earlier study asked about
AT_ZERO = 0.05  # a control that must show nothing: what it gains over chance at most

ANSWERS = {**BLOCK, "captions": False, "looks": ("real", "blind", "english")}
CAPTIONS = {**BLOCK, "closed": 0, "looks": ("real", "blind")}


def mean_rho(s: Sample, arm: str, metric: str, languages: tuple[str, ...] = OTHERS, look: str = "real") -> Drawn:
    """Retention, mean over languages."""
    return average_figures(s.rho(arm, language, metric, look=look) for language in languages)


def mean_score(s: Sample, arm: str, metric: str, look: str = "real", languages: tuple[str, ...] = OTHERS) -> Drawn:
    """A score, mean over languages."""
    return average_figures(s.score(arm, language, metric, look) for language in languages)


def mean_gain(s: Sample, arm: str, metric: str, languages: tuple[str, ...] = OTHERS, chance: str = "blind") -> Drawn:
    """A score less what chance gives, mean over languages."""
    return average_figures(s.gain(arm, language, metric, chance=chance) for language in languages)


def learned(s: Sample, arm: str, metric: str, least: float = LEARNED, said: str = "") -> Condition:
    """The condition that an arm learned English."""
    return Condition(f"{metric} in English, {said or arm}", s.score(arm, "en", metric), least)


def text_transfer(lm: str) -> np.ndarray:
    """Of each of a variant's language models, t on val in its weakest language, measured with text alone: (models,). UserError
    where a model was not measured."""
    found = []
    for seed in catalogue.seeds(lm):
        card = runtime.asset("results") / "lm" / f"{lm}-{seed}.json"
        known = json.loads(card.read_text(encoding="utf-8")) if card.exists() else {}
        if "text_transfer_on_val" not in known:
            made = f"`mpm-lite pretrain {lm}:{seed} --out assets`"
            raise runtime.UserError(f"The text transfer of {lm}:{seed} was not measured: {made} measures it.")
        found.append(min(known["text_transfer_on_val"].values()))
    return np.array(found)


def strong(lm: str = STRONG, least: float = 0.85) -> tuple[Condition, ...]:
    """The premise of the papers: text carries over from English to every language, so that a loss is not the text's."""
    found = text_transfer(lm)
    return (Condition(f"text transfer of {lm} on val, in the weakest language", draw_models(found), least),)


def draw_models(values: np.ndarray) -> Drawn:
    """The mean over language models, (models,), with draws of models."""
    picks = np.random.default_rng(5).integers(len(values), size=(DRAWS, len(values)))
    return widen(Drawn(float(values.mean()), values[picks].mean(axis=1)), len(values))


def instrument(s: Sample) -> Found:
    """Does it see at all: English captions of combinations never shown; and what else there is to say of MPM."""
    exact = Condition("English captions exactly right", s.score("mpm", "en", "exact"), 0.9)
    slots = Condition("attributes right in English", s.score("mpm", "en", "slots"), LEARNED)
    looks = [
        Condition(f"English captions exactly right, {said}", s.score("mpm", "en", "exact", look), high=0.05)
        for look, said in (("shuffled", "another's picture"), ("blind", "one mean picture for all"))
    ]
    others = mean_gain(s, "english LM", "slots")
    nothing = Condition("attributes above chance in nine languages, English-only model", others, high=AT_ZERO)
    details = {"English exact, others": mean_score(s, "mpm", "exact")} | _factors(s, "mpm", "slots")
    details |= {f"rho of slots in {code}": s.rho("mpm", code, "slots") for code in OTHERS}
    translated = mean_score(s, "mpm", "slots", "translated") - mean_score(s, "mpm", "slots")
    details["translate-test minus MPM, slots"] = translated
    for name, metric in (("CIDEr-D / 10", "cider_d"), ("chrF / 100", "chrf")):
        details |= {f"{name}, English": s.score("mpm", "en", metric), f"{name}, others": mean_score(s, "mpm", metric)}
    return Found([exact, slots], [*looks, nothing], [], details=details)


def _factors(s: Sample, arm: str, metric: str) -> dict[str, Drawn]:
    """Retention, text transfer and pivot efficiency of an arm."""
    of = s.identity(arm, OTHERS, metric)
    return {"retention": of.retention, "t": of.transfer, "e": of.efficiency}


def c1a(s: Sample) -> Found:
    """Closed questions in nine languages, by a connector that learned from English captions alone."""
    rho = Condition("retention of closed answers", mean_rho(s, "mpm", "answers"), 0.8)
    nothing = Condition(
        "closed answers above chance, English-only model", mean_gain(s, "english LM", "answers"), high=AT_ZERO
    )
    sees = Condition("closed answers above chance in English", s.gain("mpm", "en", "answers"), SEEN)
    details = _factors(s, "mpm", "answers") | {f"rho {code}": s.rho("mpm", code, "answers") for code in OTHERS}
    details |= {"English": s.score("mpm", "en", "answers"), "English, blind": s.score("mpm", "en", "answers", "blind")}
    details["English, English caption as text"] = s.score("mpm", "en", "answers", "english")
    return Found([rho], [nothing], [sees], strong(), details=details)


def c1b(s: Sample) -> Found:
    """The same after stage 2, a share of which is in the nine languages."""
    rho = Condition("retention of closed answers, 5 % of stage 2", mean_rho(s, "tuned 0.05", "answers"), 0.8)
    over = mean_score(s, "tuned 0.05", "answers") - mean_score(s, "english LM, tuned 0.05", "answers")
    control = Condition("closed answers minus those of an English-only model with the same stage 2", over, AT_ZERO)
    sees = Condition("closed answers above chance in English", s.gain("tuned 0.05", "en", "answers"), SEEN)
    details = _factors(s, "tuned 0.05", "answers") | {"English": s.score("tuned 0.05", "en", "answers")}
    for share in (0.05, 0.5):
        details[f"retention, {100 * share:g} %"] = mean_rho(s, f"tuned {share}", "answers")
        details[f"English, {100 * share:g} %"] = s.score(f"tuned {share}", "en", "answers")
    details["retention, English-only model, 5 %"] = mean_rho(s, "english LM, tuned 0.05", "answers")
    return Found([rho], [control], [sees], strong(), details=details)


def c2(s: Sample) -> Found:
    """Reply language and content after stage 2 in English only, along its length."""
    few, long = f"tuned {TUNED[-2]}", f"tuned {TUNED[-1]}"
    reply, before = mean_score(s, long, "reply_language"), mean_score(s, "mpm", "reply_language")
    parts = [
        Condition("replies in the language asked", reply, high=0.10),
        Condition("retention of content", mean_rho(s, long, "content"), 0.8),
    ]
    controls = [Condition("replies in the language asked before stage 2", before, 0.5)]
    moved = mean_score(s, few, "reply_language") - reply
    plateau = Condition(f"replies in the language asked, {TUNED[-2]} steps less {TUNED[-1]}", moved, -0.1, 0.1)
    details = {"reply in L before stage 2": before}
    for steps in TUNED:
        details[f"reply in L, {steps} steps"] = mean_score(s, f"tuned {steps}", "reply_language")
        details[f"content, retention, {steps} steps"] = mean_rho(s, f"tuned {steps}", "content")
    details |= {f"reply in {code}": s.score(long, code, "reply_language") for code in OTHERS}
    return Found(parts, controls, [learned(s, long, "content", 0.9)], strong(), [plateau], details)


def c3(s: Sample) -> Found:
    """Reply language and content against the share of target-language exchanges in stage 2."""
    reply = {x: mean_score(s, f"pictures {x}", "reply_language") for x in SHARES}
    content = {x: mean_score(s, f"pictures {x}", "content") for x in SHARES}
    none, kept = mean_score(s, "tuned", "reply_language"), mean_score(s, "tuned", "content")
    english = s.score("pictures 0.05", "en", "reply_language")
    # "|content| small" asks for content not lost: more of it is no fault.
    parts = [
        Condition("replies in the language asked at 5 %", reply[0.05], 0.9),
        Condition("content at 5 %, minus none", content[0.05] - kept, -0.05),
    ]
    controls = [
        Condition("replies in English to English questions", english, 0.95),
        Condition("replies in the language asked, 5 % minus none", reply[0.05] - none, 0.05),
    ]
    details = {f"reply in L at {100 * x:g} %": reply[x] for x in SHARES}
    details |= {f"content at {100 * x:g} %": content[x] for x in SHARES}
    for x in SHARES:
        details[f"reply in L at {100 * x:g} % of text alone"] = mean_score(s, f"text {x}", "reply_language")
        details[f"content at {100 * x:g} % of text alone"] = mean_score(s, f"text {x}", "content")
    details |= {"reply in L at none": none, "content at none": kept}
    return Found(parts, controls, [learned(s, "pictures 0.05", "content", 0.9)], strong(), details=details)


def c4(s: Sample) -> Found:
    """English pairs against pairs in Chinese that are fewer and noisier; against as many clean ones the advantage must go."""
    names = ("english", "few noisy", "few clean", "many noisy", "many clean")
    zh = {name: s.score(name, "zh", "slots") for name in names}
    gain = Condition(
        "attributes right in Chinese, English pairs minus few noisy Chinese ones", zh["english"] - zh["few noisy"], 0.0
    )
    matched = Condition(
        "the same, many clean Chinese pairs minus few noisy ones", zh["many clean"] - zh["few noisy"], 0.0
    )
    details = {f"English minus {name}": zh["english"] - of for name, of in zh.items() if name != "english"}
    details["many clean minus few clean"] = zh["many clean"] - zh["few clean"]
    details["few clean minus few noisy"] = zh["few clean"] - zh["few noisy"]
    details |= {f"Chinese, {name}": of for name, of in zh.items()}
    return Found([gain], [matched], [learned(s, "english", "slots")], strong(), details=details)


def c5(s: Sample) -> Found:
    """Pairs in nine languages on top of English ones, at as many English pairs and as many steps for them."""
    arms = ("english", "more english", "plus others")
    base, more, plus = ({"L": mean_score(s, a, "slots"), "en": s.score(a, "en", "slots")} for a in arms)
    parts = [
        Condition("attributes right in nine languages, their pairs on top", plus["L"] - base["L"], 0.0),
        Condition("English, pairs of others on top", plus["en"] - base["en"], -0.05, 0.05),
    ]
    control = Condition(
        "attributes right in nine languages, their pairs minus as many English ones", plus["L"] - more["L"], 0.0
    )
    details = {"others, more English": more["L"] - base["L"], "English, more English": more["en"] - base["en"]}
    details |= {f"others, {name}": mean_score(s, name, "slots") for name in arms}
    # Of the arm whose English may suffer, no more is asked than that it sees: what it lost is the claim's second part.
    sees = Condition(
        "attributes above chance in English, pairs of others on top", s.gain("plus others", "en", "slots"), SEEN
    )
    return Found(parts, [control], [learned(s, "english", "slots"), sees], strong(), details=details)


def alignments(lm: str) -> pd.DataFrame:
    """How well a language model's layers find a sentence among English ones, on val: columns lm_seed, layer, to, value."""
    folder = runtime.asset("results") / "lm"
    tables = [pd.read_csv(folder / f"{lm}-{seed}.csv").assign(lm_seed=seed) for seed in catalogue.seeds(lm)]
    if not tables:
        raise runtime.UserError(f"No alignment was measured for {lm}: `mpm-lite pretrain {lm}:0` measures it.")
    every = pd.concat(tables)
    return every.query("metric == 'alignment' and split == 'val' and to != 'en'")[["lm_seed", "layer", "to", "value"]]


def ladder_points() -> pd.DataFrame:
    """The language models of the ladder: lm, lm_seed, retention of attributes in nine languages, and alignment, the mean of
    the layers behind the embeddings. From the committed tables of `mpm-lite run ladder`."""
    table = read_table("ladder").query("metric == 'slots' and figure == 'retention'")
    every = pd.concat([alignments(lm).assign(lm=lm) for lm in table["lm"].unique()]).query("layer > 0")
    near = every.groupby(["lm", "lm_seed"])["value"].mean().rename("alignment")
    points = table[["lm", "lm_seed", "value"]].rename(columns={"value": "retention"})
    return points.join(near, on=["lm", "lm_seed"])


def c7(s: Sample | None = None) -> Found:
    """Retention against alignment, a point for each language model of the ladder. A model is one witness,
    however many pictures it is asked about."""
    points = ladder_points()

    def correlation(of: pd.DataFrame) -> Drawn:
        x, y = of["alignment"].to_numpy(), of["retention"].to_numpy()
        # Models of one kind are alike: kinds are drawn, and then models of them.
        rng, kinds = np.random.default_rng(3), list(of.reset_index().groupby("lm", sort=False).indices.values())
        drawn = []
        for _ in range(DRAWS):
            some = [kinds[k] for k in rng.integers(len(kinds), size=len(kinds))]
            picks = np.concatenate([rng.choice(kind, len(kind)) for kind in some])
            drawn.append(spearman(x[picks], y[picks]))
        wide = widen(Drawn(spearman(x, y), np.array(drawn)), len(kinds))
        return replace(wide, draws=wide.draws.clip(-1, 1))

    none = points["lm"].isin([ENGLISH_LM, "toy-noparallel"])
    every, few = correlation(points), correlation(points[~none])
    parts = [
        Condition("rank correlation of retention and alignment over language models", every, 0.3),
        Condition("the same among models that read translations", few, 0.0),
    ]
    nothing = draw_models(points.loc[none, "retention"].to_numpy())
    control = Condition("retention of models that read no translation", nothing, high=0.1)
    return Found(parts, [control], [], strong())


def c8(s: Sample) -> Found:
    """The language model frozen, with LoRA and free while it sees its first captions, which are English and short."""
    rho = {arm: mean_rho(s, arm, "slots") for arm in ("frozen", "lora", "free")}
    nats = {arm: mean_score(s, arm, "nats", "text") for arm in rho}
    gain = Condition("retention of attributes, frozen minus free", rho["frozen"] - rho["free"], 0.0)
    # Free, the model must have learned to see at least as well in English, or its loss elsewhere says little.
    control = Condition(
        "attributes in English, free minus frozen",
        s.score("free", "en", "slots") - s.score("frozen", "en", "slots"),
        -0.05,
    )
    details = {f"rho, {arm}": of for arm, of in rho.items()} | {"frozen minus LoRA": rho["frozen"] - rho["lora"]}
    details |= {f"nats a token of text in L, {arm}": of for arm, of in nats.items()}
    return Found([gain], [control], [learned(s, "frozen", "slots")], strong(), details=details)


def _tuned(share: float = 0.0, added: str = "pictures", steps: int = 600, lm: str = STRONG) -> Chat:
    options, targets = {"tuned": "all", "tune_steps": steps}, OTHERS if share else ()
    same = {"instructions": INSTRUCTIONS, "options": options, "targets": targets}
    return replace(MPM, lm=lm, share=share, added=added, **same)


def _chinese(pairs: int, noise: float) -> Chat:
    return replace(MPM, languages=("zh",), pairs=pairs, noise=noise, options=SHORT)


_TWO = {"mpm": MPM, "english LM": replace(MPM, lm=ENGLISH_LM)}
_HALF = {"pairs": 12_000, "options": SHORT}
_LONG = {"options": {"steps": 2 * SHORT["steps"]}}
CHAT_CLAIMS = {
    c.id: c
    for c in (
        load_claim(
            "instrument",
            _TWO,
            instrument,
            {**CAPTIONS, "looks": ("real", "blind", "shuffled", "translated", "english")},
        ),
        load_claim("C1a", _TWO, c1a, ANSWERS),
        load_claim(
            "C1b",
            {f"tuned {share}": _tuned(share, steps=600) for share in (0.05, 0.5)}
            | {"english LM, tuned 0.05": _tuned(0.05, steps=600, lm=ENGLISH_LM)},
            c1b,
            ANSWERS,
        ),
        load_claim("C2", {"mpm": MPM} | {f"tuned {steps}": _tuned(steps=steps) for steps in TUNED}, c2, CAPTIONS),
        load_claim(
            "C3",
            {"tuned": _tuned()} | {f"{added} {x}": _tuned(x, added) for x in SHARES for added in ("pictures", "text")},
            c3,
            {**CAPTIONS, "count": 100, "looks": ("real",)},
        ),
        load_claim(
            "C4",
            {
                "english": replace(MPM, options=SHORT),
                "few noisy": _chinese(1_000, 0.2),
                "few clean": _chinese(1_000, 0.0),
                "many noisy": _chinese(24_000, 0.2),
                "many clean": _chinese(24_000, 0.0),
            },
            c4,
            {**CAPTIONS, "languages": ("en", "zh")},
        ),
        # With twice the pairs, twice the steps: English pairs are seen as often as without the others.
        load_claim(
            "C5",
            {
                "english": replace(MPM, **_HALF),
                "more english": replace(MPM, **_LONG),
                "plus others": replace(MPM, **_HALF | _LONG, also=OTHERS, also_pairs=12_000),
            },
            c5,
            CAPTIONS,
        ),
        load_claim("C7", {}, c7, {}, study="ladder"),
        load_claim(
            "C8",
            {
                "frozen": replace(MPM, options=SHORT),
                "lora": replace(MPM, options={**SHORT, "thawed": "lora"}),
                "free": replace(MPM, options={**SHORT, "thawed": "all"}),
            },
            c8,
            {**CAPTIONS, "looks": ("real", "blind", "text"), "nats": True},
        ),
    )
}


# Text to image: a UNet that learned with an English encoder, re-aligned with English prompts to a multilingual model.
LAYERS = (1, 2, 3, 4)
# After 1,500 steps e5-small's English attributes were at 0.97, and those of a language model's first layer at 0.99 (paint.csv).
E5 = {"options": {"steps": 6_000}}


def chosen_layer(lm: str = STRONG) -> int:
    """The layer behind which languages lie nearest to English, by text alone: no picture and no prompt decides it."""
    by_layer = alignments(lm).query("layer > 0").groupby("layer")["value"].mean()
    return int(by_layer.idxmax())


def c6(s: Sample) -> Found:
    """Prompts in nine languages after English ones only, at every layer of the language model."""
    rho = {arm: average_figures(_rho(s, arm, code) for code in OTHERS) for arm in C6_ARMS if arm != "english LM"}
    best = chosen_layer()
    layer = f"layer {best}"
    effect = Condition(f"retention of attributes, {layer}", rho[layer], 0.85)
    wrong = s.score(layer, "en", "attributes", "wrong") - s.score(layer, "en", "attributes", "none")
    gained = mean_gain(s, "english LM", "attributes", chance="wrong")
    bound = s.score(layer, "en", "bound", "wrong")
    controls = [
        Condition("attributes above chance, English-only model", gained, high=AT_ZERO),
        Condition("attributes that belong together, another's prompt in English", bound, high=0.1),
    ]
    near = alignments(STRONG).query(f"layer == {best}").groupby("lm_seed")["value"].mean()
    close = Condition("sentences found among their translations at that layer", draw_models(near.to_numpy()), 0.9)
    details = {f"retention, {arm}": of for arm, of in rho.items()} | {"another's prompt minus none": wrong}
    details |= {f"rho of {code}, {layer}": _rho(s, layer, code) for code in OTHERS}
    for metric in ("attributes", "bound", "r_precision", "fid"):
        for arm in rho:
            details[f"{metric}, English, {arm}"] = s.score(arm, "en", metric)
            details[f"{metric}, others, {arm}"] = mean_score(s, arm, metric)
    return Found([effect], controls, [learned(s, layer, "attributes")], (*strong(), close), details=details)


def _rho(s: Sample, arm: str, language: str) -> Drawn:
    """Retention of attributes above another scene's prompt."""
    return s.rho(arm, language, "attributes", chance="wrong")


C6_ARMS = {f"layer {layer}": Paint(STRONG, layer=layer) for layer in LAYERS}
C6_ARMS |= {"english LM": Paint(ENGLISH_LM, layer=1), "e5-small": Paint("e5-small", **E5)}
PAINT_CLAIMS = {
    "C6": load_claim("C6", C6_ARMS, c6, {**BLOCK, "count": 100, "looks": ("real", "wrong", "none"), "as_sets": True})
}
