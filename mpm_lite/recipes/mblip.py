"""mBLIP: an English Q-Former is re-aligned to a multilingual language model, with machine-translated data (2307.06930).

Method (section 3). The Q-Former comes from BLIP-2, which learned from English pairs with an English language model. Its
soft tokens are put before another, multilingual one. *Warm-up*: on translated captions the projection between the two
learns alone. *Re-alignment*: on a mix of eight types of task, translated, Q-Former and projection learn, and LoRA on the
language model. The objective is the cross-entropy of the reply's tokens, nothing else. BLIP-2's own second stage
(2301.12597, section 3.3) is the same without warm-up and LoRA: stage *generation*, with an English language model.

Shapes: N exchanges, P patches, Q soft tokens, D_in the image tower's width, D the language model's width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mpm_lite.qformer import QFormer, SoftQueries
from mpm_lite.recipes.base import Stage
from mpm_lite.recipes.mpm_chat import MpmChat, add_lora, lora_parts, own
from mpm_lite.runtime import unknown
from mpm_lite.towers.lm import LM

LEARNS = ("qformer", "projection")


@dataclass(frozen=True)
class MblipOptions:
    """Every dial of the recipe; the defaults were chosen on English validation captions only."""

    warm_steps: int = 200  # 0: no warm-up
    steps: int = 500
    learns: str = "qformer"  # with the projection; or the "projection" alone
    rank: int = 8  # of LoRA; 0: the language model stays as it is
    batch: int = 32
    warm_lr: float = 2e-3
    lr: float = 5e-4  # of Q-Former and projection
    lora_lr: float = 1e-3
    weight_decay: float = 0.0
    bf16: bool = False
    connector: str = "q-former"


class Mblip(MpmChat):
    """A Q-Former before a language model. Reads what MPM chat reads (`Exchanges`), and is asked as it is."""

    name = "mblip"
    Options = MblipOptions

    def __init__(self, lm: LM, qformer: QFormer, d_in: int, options: MblipOptions = MblipOptions()) -> None:
        """`qformer` is taken over as it is."""
        super(MpmChat, self).__init__()
        if options.learns not in LEARNS:
            raise unknown("part that is re-aligned", options.learns, LEARNS)
        self.options, self.d_in = options, d_in
        self.lm = own(lm) if options.rank else lm
        self.visual = SoftQueries(qformer, lm.model.get_input_embeddings().weight)
        if options.rank:
            add_lora(self.lm.model, options.rank)
        self.decoder = self.lm.model

    def stages(self) -> list[Stage]:
        o = self.options
        lora = tuple(lora_parts(self)) if o.rank else ()
        # Queries see; the words, which telling and matching needed, are not read any more.
        sees = tuple(f"visual.qformer.{part}" for part in ("enter", "places", "queries", "former"))
        still = ("image tower", "language model" + (" but its LoRA" if o.rank else ""))
        same = {"objective": "cross-entropy of the reply's tokens", "batch": o.batch, "weight_decay": o.weight_decay,
                "clip": 1.0, "beta2": 0.98}  # fmt: skip
        found = []
        if o.warm_steps:
            still_warm = ("image tower", "Q-Former", "language model")
            found.append(Stage("warm-up", ("visual.to_lm",), still_warm, steps=o.warm_steps, lr=o.warm_lr, **same))
        learns = ("visual.to_lm", *(sees if o.learns == "qformer" else ()), *lora)
        frozen = still if o.learns == "qformer" else (*still, "Q-Former")
        faster = tuple((part, o.lora_lr / o.lr) for part in lora)
        name = "re-alignment" if o.rank else "generation"
        found.append(Stage(name, learns, frozen, steps=o.steps, lr=o.lr, faster=faster, **same))
        return found

    def see(self, seen: Tensor) -> Tensor:
        """Patches (N, P, D_in) -> soft tokens (N, Q, D)."""
        return self.visual(seen)
