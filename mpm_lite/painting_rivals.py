"""What else could paint from prompts in L, beside the arms of claim C6, each with the same steps unless it says otherwise.

    mpm-lite run mpm_paint_rivals --seeds 3 --out assets/results

A rival that was tested with a seed is not run again. Scores are of test pictures, in all ten languages.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from mpm_lite import paint, runtime, train
from mpm_lite.cache import learned, write_table
from mpm_lite.claims import FIRST_SEED
from mpm_lite.claims_chat import OTHERS
from mpm_lite.data import grammar
from mpm_lite.judging import Sample
from mpm_lite.keys import Key
from mpm_lite.painting import Bench, Paint, encoder_of, kept_file
from mpm_lite.recipes.glue import Glue, Glued, GlueOptions, Translated
from mpm_lite.recipes.mpm_paint import MpmPaint
from mpm_lite.studies import commit, written

COUNT = 100  # pictures of test
METRICS = ("attributes", "bound", "one", "pair", "r_precision", "fid", "kid")
TENTH, HALF = 2_400, 12_000  # of the 24,000 training pictures


@dataclass(frozen=True)
class Rival:
    """An arm, how many pictures it paints to keep one, and whether it is re-mapped by text alone instead of re-aligned."""

    arm: Paint
    best_of: int = 1
    glued: bool = False


RIVALS = {
    "MPM": Rival(Paint()),
    "MPM, best of four": Rival(Paint(), best_of=4),
    "MPM, a tenth of the pairs": Rival(Paint(pairs=TENTH)),
    "Chinese pairs": Rival(Paint(languages=("zh",))),
    "Chinese pairs, a tenth": Rival(Paint(languages=("zh",), pairs=TENTH)),
    "MPM, half the pairs": Rival(Paint(pairs=HALF)),
    "nine languages' pairs on top of that": Rival(Paint(pairs=HALF, also=OTHERS, also_pairs=HALF)),
    "MPM, states behind layer 1": Rival(Paint(layer=1)),
    "from scratch": Rival(Paint(start="", options={"learns": "all"})),
    "e5-small": Rival(Paint("e5-small")),
    "minilm-en, the floor": Rival(Paint("minilm-en")),
    "re-mapped by text": Rival(Paint(), glued=True),
}


def glued(bench: Bench, arm: Paint, seed: int, options: GlueOptions = GlueOptions()) -> MpmPaint:
    """The painter as it was pretrained, reading an arm's text model through states re-mapped into its own encoder's; the
    re-mapping learned from the arm's prompts alone, computed or read back from MPM_LITE_HOME/painted."""
    pipe, new = (
        paint.load_painter(runtime.asset() / paint.TOY),
        encoder_of(arm.encoder, arm.encoder_seed, seed, arm.layer),
    )
    prompts, old = bench.pairs(arm, seed), pipe.prompt_encoder
    wanted = old.cached(prompts, bench.progress)
    torch.manual_seed(seed)
    glue = Glue(new.width, wanted, options)
    key = glue_key(new, old, options, seed, prompts)

    def learn(work: Path) -> dict[str, torch.Tensor]:
        plan = train.Plan(seed, work, 250, progress=bench.progress, label=f"re-mapping, seed {seed}")
        train.fit(glue, Translated(new.cached(prompts, bench.progress), wanted), plan)
        return glue.state_dict()

    glue.load_state_dict(learned(kept_file(key), learn, key))
    recipe = MpmPaint(pipe.unet.float(), old.width)
    recipe.painter.load_state_dict({f"unet.{k}": v for k, v in pipe.unet.state_dict().items()}
                                   | {f"bridge.{k}": v for k, v in pipe.bridge.float().state_dict().items()})  # fmt: skip
    recipe.encoder = Glued(new, glue.eval())
    return recipe.eval()


def glue_key(new: Any, old: Any, options: GlueOptions, seed: int, prompts: Sequence[str]) -> Key:
    """Everything that a re-mapping of a prompt encoder's states into another's depends on."""
    decides = {
        "prompt encoder": new.fingerprint,
        "painter's prompt encoder": old.fingerprint,
        "options": json.dumps(asdict(options), sort_keys=True),
        "seed": str(seed),
        "prompts": list(prompts),
    }
    return Key("weights of a re-mapping", decides)


def items(rival: Rival, bench: Bench, seed: int, split: str, count: int) -> pd.DataFrame:
    """The rows of a rival and a seed: computed, or read back."""
    told = {"rival": json.dumps(asdict(rival), sort_keys=True), "split": split, "count": str(count), "seed": str(seed)}
    key = Key("rows of painted pictures", told | {"weights": bench.key(rival.arm, seed).digest})
    path = runtime.home() / "painted" / f"items-{key.digest[:16]}.parquet"
    if not path.exists():
        recipe = (glued if rival.glued else Bench.train)(bench, rival.arm, seed)
        rows = bench.test(
            recipe, seed, split, looks=("real", "wrong"), count=count, best_of=rival.best_of, as_sets=True
        )
        write_table(path, rows, key, index=False)
    return pd.read_parquet(path)


def table(rows: pd.DataFrame, draws: int = 2_000) -> pd.DataFrame:
    """A line a rival, language and metric: value with its interval; chance, which is what another scene's prompt scores."""
    sample, found = Sample(rows, draws), []
    for arm in dict.fromkeys(rows["arm"]):
        for language in grammar.LANGUAGES:
            for metric in METRICS:
                of, chance = (sample.score(arm, language, metric, look).interval for look in ("real", "wrong"))
                line = {"arm": arm, "language": language, "metric": metric, "value": of.value, "low": of.low}
                found.append(line | {"high": of.high, "chance": chance.value, "n": sample.n})
    return pd.DataFrame(found)


def run(
    out: Path, seeds: int = 3, split: str = "test", count: int = COUNT, say: Callable[[str], None] = lambda line: None,
    rivals: Sequence[str] = tuple(RIVALS),
) -> list[Path]:  # fmt: skip
    """Train and test what is missing and write OUT/paint.csv and its card. Seeds come first: after one round of all rivals
    there is one seed of everything."""
    bench, version, frames = Bench(), commit(), []
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        for name in rivals:
            say(f"{name}, seed {seed}")
            frames.append(items(RIVALS[name], bench, seed, split, count).assign(arm=name))
    card = {"split": split, "options": asdict(Paint().recipe_options)}
    rows, many = table(pd.concat(frames, ignore_index=True)), range(FIRST_SEED, FIRST_SEED + seeds)
    return written(out, "mpm_paint_rivals", {"paint": rows}, card, "paint", version, many)
