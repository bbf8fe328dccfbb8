"""MPM chat on real pictures: held-out emoji and stamps named in fourteen languages after English names only.

    mpm-lite run mpm_names --seeds 3      language models, connectors, scores; a quarter of an hour a seed on two cores

The language model is small and ours: it read names as text (`data/names.py`), those of held-out pictures too, and never
a picture. So it may recite. Beside every look at a picture stand the same model blind, and the name of the nearest
training picture, which needs no language model. A held-out picture's concept is in no training picture at all.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mpm_lite import pretrain, runtime, train
from mpm_lite.asking import seed_of
from mpm_lite.cache import digest, write_atomic
from mpm_lite.data import CaptionSet, available, load_captions, names
from mpm_lite.judging import Sample
from mpm_lite.recipes.base import build_options
from mpm_lite.recipes.language_model import Buckets, LanguageModel, LanguageModelOptions
from mpm_lite.recipes.mpm_chat import Exchanges, MpmChat, MpmChatOptions
from mpm_lite.runtime import UserError, unknown
from mpm_lite.studies import commit
from mpm_lite.towers.features import patch_features
from mpm_lite.towers.image import load_image_tower
from mpm_lite.towers.lm import LM, load_lm
from mpm_lite.towers.tokens import BREAK, save_tokenizer, train_tokenizer

TESTED = ("emoji", "stamps")
LOOKS = ("real", "shuffled", "blind")
NEAREST = "nearest"  # not a look of the model: the name of the training picture that looks most alike
METRICS = ("exact", "chrf", "choice")
GRID = 4  # patches along a side
SIZES = VOCABULARY, DOCUMENTS, BUCKET = 8_000, 200_000, 64
CANDIDATES = 10
FEWEST = 100  # held-out names in a language, or it is left out


@dataclass(frozen=True)
class Naming:
    """One arm: what the language model read, and the dials of both trainings. UserError for a dial nobody knows."""

    image: str = "efficientnet-lite1"
    sets: tuple[str, ...] = names.SETS
    parallel: float = 0.5  # share of documents that name a thing in two languages
    kinds: float = 0.1  # and that say what kind of thing it is
    pretraining: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def lm_options(self) -> LanguageModelOptions:
        """Of the language model: wider than those of the toy world, for there are more words, and soon read."""
        own = {"width": 192, "hidden": 384, "context": 64, "lookups": 1_000, "steps": 6_000}
        here = {"compiled": bool(pretrain.compiler()), "bf16": runtime.fast_bf16()}
        return build_options(LanguageModelOptions, own | here | self.pretraining)

    @property
    def recipe_options(self) -> MpmChatOptions:
        """Of MPM chat."""
        return build_options(MpmChatOptions, {"steps": 1_000, "bf16": runtime.fast_bf16()} | self.options)


def language_model(arm: Naming, seed: int = 0, progress: bool = True) -> LM:
    """The language model of an arm: trained now, or read back from MPM_LITE_HOME/names."""
    dials = {k: v for k, v in asdict(arm.lm_options).items() if k not in ("compiled", "bf16")}
    few = [d.text for d in islice(names.documents(arm.parallel, arm.kinds, seed, arm.sets), 500)]
    folder = runtime.home() / "names" / digest([str(sorted(dials.items())), str(SIZES), str(seed), *few])[:24]
    if not (folder / "model.safetensors").exists():
        _pretrain(arm, seed, folder, progress)
    lm = load_lm(str(folder))
    lm.name = f"names:{seed}"
    return lm


def _pretrain(arm: Naming, seed: int, folder: Path, progress: bool) -> None:
    """Train on names, with checkpoints, and save. First every document says a name again, then as the dials say."""
    many = list(islice(names.documents(arm.parallel, arm.kinds, seed, arm.sets), DOCUMENTS))
    # Every name once, so that no letter is unknown, and the questions as often as they are read.
    every = [name for thing in names.named(arm.sets) for name in (*thing.names.values(), thing.kind)]
    tokenizer = train_tokenizer([*every, *(d.segments[1] for d in many[: len(every)])], VOCABULARY)
    again = list(islice(names.documents(0.0, 0.0, seed, arm.sets), DOCUMENTS // 5))
    torch.manual_seed(seed)
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    recipe = LanguageModel(len(tokenizer), arm.lm_options, **special)
    data = [_buckets(tokenizer, again), _buckets(tokenizer, many)]
    work = folder.with_name(folder.name + ".run")
    train.fit(recipe, data, train.Plan(seed, work, save_every=500, progress=progress, label=f"names, seed {seed}"))
    pretrain.save(recipe.decoder, folder, lambda beside: save_tokenizer(tokenizer, beside))
    shutil.rmtree(work, ignore_errors=True)


def _buckets(tokenizer: Any, many: Sequence[names.NameDocument]) -> Buckets:
    """Documents as training data. What counts is the reply: which thing is named first, and what is asked, are coins. In
    every fifth all counts, or no name would ever be begun without one before it."""
    end, line = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(BREAK)
    rows = [row + [end] for row in tokenizer([d.text for d in many])["input_ids"]]
    counts = []
    for i, row in enumerate(rows):
        begins = 0 if i % 5 == 0 else [k for k, token in enumerate(row) if token == line][1] + 1
        counts.append([k >= begins for k in range(len(row))])
    return Buckets(rows, BUCKET, counts, digest=digest(d.text for d in many))


class Bench:
    """Pictures of the sets through one image tower, cached; trains arms on their English names and asks for others."""

    def __init__(self, image: str = "efficientnet-lite1", progress: bool = True) -> None:
        self.tower, self.progress = load_image_tower(image), progress
        self._seen: dict[tuple[str, str], tuple[CaptionSet, Tensor]] = {}

    def seen(self, sets: str, split: str) -> tuple[CaptionSet, Tensor]:
        """The captions of a split of some sets ("emoji+stamps") in all languages, and float16 patches (N, P, D_in)."""
        if (sets, split) not in self._seen:
            captions = load_captions(sets, split, "all")
            patches = patch_features(captions, self.tower, self.progress, GRID)
            self._seen[sets, split] = captions, torch.from_numpy(patches)
        return self._seen[sets, split]

    def train(self, arm: Naming, seed: int) -> MpmChat:
        """MPM chat of an arm: stage 1 on the English names of all training pictures."""
        lm = language_model(arm, seed, self.progress)
        captions, seen = self.seen("+".join(one for one in arm.sets if available(one)), "train")
        torch.manual_seed(seed)
        recipe = MpmChat(lm, seen.shape[2], seen.shape[1], arm.recipe_options)
        said = captions.captions["en"]
        data = Exchanges(lm, seen, range(len(said)), [asked("en")] * len(said), said)
        train.fit(recipe, data, train.Plan(seed, progress=self.progress, label=f"English names, seed {seed}"))
        return recipe.eval()

    def test(
        self, recipe: MpmChat, seed: int, split: str = "test", tested: Sequence[str] = TESTED,
        languages: Sequence[str] = names.LANGUAGES, looks: Sequence[str] = LOOKS, fewest: int = FEWEST,
    ) -> pd.DataFrame:  # fmt: skip
        """One row a set, look, language and picture with a name in that language: exact, chrf (0 to 1), choice (of ten
        names in that language, is the right one the likeliest?), and what was said. UserError for an unknown look."""
        frames = []
        for look in looks:
            if look not in LOOKS:
                raise unknown("way to look", look, LOOKS)
        for one in [one for one in tested if available(one)]:
            captions, seen = self.seen(one, split)
            for language in [code for code in languages if code in captions.languages]:
                chosen = captions.with_caption(language)
                if len(chosen) < fewest:
                    continue
                gold = [captions.captions[language][i] for i in chosen]
                few = [[gold[k] for k in each] for each in candidates(gold, seed)]
                found = {look: self._reply(recipe, seen, chosen, language, look, few) for look in looks}
                found[NEAREST] = self._nearest(seen[chosen], language, few)
                for look, (said, picked) in found.items():
                    scores = pd.DataFrame({"gold": gold, "said": said, "picked": picked})
                    scores["exact"] = [float(same(s) == same(g)) for s, g in zip(said, gold, strict=True)]
                    scores["chrf"] = [chrf(s, g) for s, g in zip(said, gold, strict=True)]
                    scores["choice"] = [float(same(s) == same(g)) for s, g in zip(picked, gold, strict=True)]
                    items, concepts = ([of[i] for i in chosen] for of in (captions.ids, captions.concepts))
                    known = {"set": one, "language": language, "look": look, "item": items, "concept": concepts}
                    frames.append(scores.assign(**known))
        if not frames:
            raise UserError(f"None of {', '.join(tested)} has {fewest} names to ask for in {', '.join(languages)}.")
        return pd.concat(frames, ignore_index=True).assign(seed=seed, lm_seed=seed_of(recipe.lm))

    @torch.no_grad()
    def _reply(
        self, recipe: MpmChat, seen: Tensor, chosen: np.ndarray, language: str, look: str, few: list[list[str]]
    ) -> tuple[list[str], list[str]]:
        """What the model says of each picture, and which of its candidates it finds likeliest."""
        if look == "blind":
            seen = seen.float().mean(dim=0, keepdim=True).expand_as(seen)
        shown = (seen.roll(1, dims=0) if look == "shuffled" else seen)[chosen]
        soft = torch.cat([recipe.predict({"seen": part.float()})["soft"] for part in shown.split(256)])
        prompts = [asked(language)] * len(chosen)
        said = recipe.lm.generate(prompts, soft, stop=BREAK, new_tokens=32)
        return said, [each[i] for each, i in zip(few, recipe.lm.choose(prompts, few, soft), strict=True)]

    def _nearest(self, shown: Tensor, language: str, few: list[list[str]]) -> tuple[list[str], list[str]]:
        """The name in that language of the training picture that looks most alike, and the candidate closest to it."""
        captions, seen = self.seen("+".join(one for one in TESTED if available(one)), "train")
        there = captions.with_caption(language)
        own, other = (torch.nn.functional.normalize(x.float().mean(1), dim=-1) for x in (shown, seen[there]))
        said = [captions.captions[language][there[i]] for i in (own @ other.T).argmax(dim=1).tolist()]
        return said, [max(each, key=lambda name, one=one: chrf(one, name)) for one, each in zip(said, few, strict=True)]


def asked(language: str) -> str:
    """The prompt: soft tokens stand where a name would, then the question."""
    return f"\n{names.question(language)}\n"


def candidates(gold: Sequence[str], seed: int, count: int = CANDIDATES) -> list[list[int]]:
    """For each name its own number and those of others that read differently, in a drawn order; the same for a seed."""
    rng, found = np.random.default_rng([seed, 31]), []
    for i, own in enumerate(gold):
        others = [int(k) for k in rng.permutation(len(gold)) if same(gold[k]) != same(own)]
        found.append([int(k) for k in rng.permutation([i, *others[: count - 1]])])
    return found


def same(name: str) -> str:
    """A name without case and marks: what counts as equal."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def chrf(said: str, gold: str) -> float:
    """chrF of one name against another (sacrebleu), 0 to 1."""
    from sacrebleu.metrics import CHRF

    return CHRF().sentence_score(said, [gold]).score / 100


def table(items: pd.DataFrame, draws: int = 1000) -> pd.DataFrame:
    """One row a set, language and metric: the score of every look, the retention rho with its interval, and n.

    Chance is the blind score in that language; English is scored on exactly the pictures that have a name in it.
    """
    found = []
    for (one, language), of in items[items["look"] == "real"].groupby(["set", "language"], sort=False):
        there = items[(items["set"] == one) & items["language"].isin(["en", language]) & items["item"].isin(of["item"])]
        sample = Sample(there.assign(arm="mpm"), draws)
        for metric in METRICS:
            looks = {look: sample.score("mpm", language, metric, look).interval for look in there["look"].unique()}
            row = {look: figure.value for look, figure in looks.items()}
            row |= {"real_low": looks["real"].low, "real_high": looks["real"].high}
            rho = sample.rho("mpm", language, metric).interval
            row |= {"rho": rho.value, "rho_low": rho.low, "rho_high": rho.high, "n": sample.n}
            found.append({"set": one, "language": language, "metric": metric, **row})
    return pd.DataFrame(found)


def run(out: Path, seeds: Sequence[int], split: str = "test", arm: Naming = Naming()) -> list[Path]:
    """Train and test an arm with every seed (a language model and a connector each) and write OUT/names.csv, and what was
    said of emoji with the first seed as OUT/names-said.csv, with a card. A seed that was tested is not run again."""
    bench, version, frames = Bench(arm.image), commit(), []
    key = digest([json.dumps(asdict(arm), sort_keys=True), split])[:12]
    for seed in seeds:
        path = runtime.home() / "names" / f"items-{key}-{seed}.parquet"
        if not path.exists():
            write_atomic(path, bench.test(bench.train(arm, seed), seed, split).to_parquet())
        frames.append(pd.read_parquet(path))
    items = pd.concat(frames, ignore_index=True)
    said = frames[0].query("set == 'emoji' and look in ('real', 'nearest')")  # stamps' names are not ours to pass on
    said = said.pivot(index=["item", "language", "gold"], columns="look", values="said").reset_index()
    card = {
        "study": "mpm_names",
        "commit": version,
        "seeds": list(seeds),
        "split": split,
        "arm": asdict(arm),
        "lm_options": asdict(arm.lm_options),
        "options": asdict(arm.recipe_options),
        "pairs": len(bench.seen("+".join(arm.sets), "train")[0]),
        "command": f"mpm-lite run mpm_names --seeds {len(seeds)} --out assets/results",
    }
    files = {"names.csv": table(items), "names-said.csv": said}
    for name, rows in files.items():
        write_atomic(out / name, rows.to_csv(index=False, float_format="%.4f", lineterminator="\n").encode())
    write_atomic(out / "names.json", json.dumps(card, indent=1).encode() + b"\n")
    return [*(out / name for name in files), out / "names.json"]
