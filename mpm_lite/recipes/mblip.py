"""mBLIP: an English Q-Former is re-aligned to a multilingual language model, with machine-translated data (2307.06930).

*What comes before* is BLIP-2's first stage, in which a Q-Former learns from English pairs what a text asks of a picture
(2301.12597, section 3.2). The image tower is frozen. Three objectives on the same pairs are summed. *Contrast*: the queries
see the picture and the words see each other; the query nearest to the caption's first state stands for the picture (InfoNCE).
*Matching*: queries and words see each other; does the caption belong to the picture? Wrong captions differ in one attribute.
*Telling*: words see the queries and the words before them, and each word is predicted. Afterwards, a language model is shown
the states of the queries.

*mBLIP itself* (section 3). The Q-Former comes from BLIP-2, which learned from English pairs with an English language model.
Its soft tokens are now put before a multilingual one. *Warm-up*: the projection between the two learns alone, on translated
captions. *Re-alignment*: Q-Former, projection and LoRA on the language model learn, on a translated mix of eight types of
task. The objective is the cross-entropy of the reply's tokens and nothing else. BLIP-2's own second stage (2301.12597,
section 3.3) is the same without warm-up and LoRA, with an English language model: stage *generation*.

Shapes: N pictures or exchanges, P patches, Q queries or the soft tokens made of them, K wrong captions a picture, T tokens,
D_in the image tower's width, D the shared space's or the language model's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpm_lite import ops
from mpm_lite.core.runtime import in_full_precision, unknown
from mpm_lite.ops import distributed
from mpm_lite.recipes.base import Recipe, Stage, at_least
from mpm_lite.recipes.modules.connectors import QFormer, SoftQueries
from mpm_lite.recipes.mpm_chat import MpmChat, add_lora, copy_lm, lora_parts
from mpm_lite.towers.lm import LM

PADDING = 0


@dataclass(frozen=True)
class Blip2Options:
    """Every dial of the recipe. The defaults were chosen on English validation captions only."""

    queries: int = 16
    width: int = 128
    layers: int = 4
    heads: int = 4
    temperature: float = 0.07  # at the start
    steps: int = at_least(1, 600)
    batch: int = at_least(2, 32)
    lr: float = 1e-3
    weight_decay: float = 0.01
    bf16: bool = False


class Blip2(Recipe):
    """A Q-Former with a head for each of BLIP-2's losses: ITC, ITM and ITG, image-grounded text generation. Data:
    `recipes.dual.Captioned`."""

    name = "blip2"
    compares = True
    Options = Blip2Options

    def __init__(self, d_in: int, patches: int, vocabulary: int, options: Blip2Options = Blip2Options()) -> None:
        super().__init__()
        o = self.options = options
        self.qformer = QFormer(d_in, patches, vocabulary, o.queries, o.width, o.layers, o.heads)
        self.image_head, self.text_head = nn.Linear(o.width, o.width), nn.Linear(o.width, o.width)
        self.match = nn.Linear(o.width, 2)
        self.tell = nn.Sequential(nn.Linear(o.width, o.width), nn.GELU(), nn.LayerNorm(o.width))
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / o.temperature)))

    def stages(self) -> list[Stage]:
        learns = ("qformer", "image_head", "text_head", "match", "tell", "log_scale")
        objective, how = "ITC + ITM + ITG, summed", {"clip": 1.0, "beta2": 0.98}
        return [Stage.of(self.options, "representation", learns, ("image tower",), objective, **how)]

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """`seen` (N, P, D_in); `ids` (N (1 + K), T): the pictures' own captions, then K wrong ones for each."""
        seen, ids = batch["seen"], batch["ids"]
        with torch.autocast(seen.device.type, torch.bfloat16, enabled=self.options.bf16):
            return self.itc_loss(seen, ids) + self.itm_loss(seen, ids) + self.itg_loss(seen, ids[: len(seen)])

    def vectors(self, seen: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors of N pictures, one for each query (N, Q, D), and of M captions (M, D)."""
        image = F.normalize(in_full_precision(self.image_head(self.qformer.see(seen))), dim=-1)
        return image, F.normalize(in_full_precision(self.text_head(self.qformer.read(ids)[:, 0])), dim=-1)

    def itc_loss(self, seen: Tensor, ids: Tensor) -> Tensor:
        """InfoNCE of each picture among all captions, wrong ones too, and of each own caption among all pictures, of all
        processes."""
        image, text = self.vectors(seen, ids)  # (N, Q, D), (N (1 + K), D)
        text, wrong = (distributed.gather(of) for of in (text[: len(seen)], text[len(seen) :]))
        scale = self.log_scale.clamp(max=math.log(100)).exp()
        near = scale * nearest(distributed.gather(image), torch.cat([text, wrong]))  # (N, M) of all processes
        own = torch.arange(len(seen), device=seen.device) + distributed.first_row(len(seen))
        to_text, to_image = F.cross_entropy(near[own], own), F.cross_entropy(near[:, : len(text)].T[own], own)
        return (to_text + to_image) / 2

    def fit(self, seen: Tensor, ids: Tensor) -> Tensor:
        """Logits (N, 2) of whether a caption (N, T) does not belong to its picture, and of whether it does; mean over queries."""
        return self.match(self.qformer.both(seen, ids)[:, : self.options.queries]).mean(dim=1)

    def itm_loss(self, seen: Tensor, ids: Tensor) -> Tensor:
        """Cross-entropy of whether a caption belongs to its picture."""
        each = len(ids) // len(seen) - 1
        shown = torch.cat([seen, seen.repeat_interleave(each, dim=0)])
        belongs = torch.zeros(len(ids), dtype=torch.long, device=ids.device)
        belongs[: len(seen)] = 1
        return F.cross_entropy(self.fit(shown, ids).float(), belongs)

    def itg_loss(self, seen: Tensor, ids: Tensor) -> Tensor:
        """Cross-entropy of each token of the captions but the first, given the queries and the tokens before it."""
        states = self.tell(self.qformer.both(seen, ids, telling=True)[:, self.options.queries : -1])
        flat, told = states.flatten(0, 1), ids[:, 1:].flatten()
        with torch.autocast(flat.device.type, enabled=False):
            words = self.qformer.words.weight
            return ops.linear_cross_entropy(flat.float(), words, told, ignore_index=PADDING, check=False)

    def predict(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """{"seen": (N, P, D_in), "ids": (N, T)} -> {"match": log-odds (N,) that each caption belongs to its picture}."""
        logits = self.fit(inputs["seen"].float(), inputs["ids"])
        return {"match": logits[:, 1] - logits[:, 0]}


def nearest(image: Tensor, text: Tensor) -> Tensor:
    """Cosines (N, M) of N pictures (N, Q, D) and M captions (M, D), each of the query nearest to the caption."""
    return (image @ text.T).amax(dim=1)


# mBLIP itself.

LEARNS = ("qformer", "projection")


@dataclass(frozen=True)
class MblipOptions:
    """Every dial of the recipe. The defaults were chosen on English validation captions only."""

    warm_steps: int = 200  # 0: no warm-up
    steps: int = 500
    learns: str = "qformer"  # and the projection; or the "projection" alone
    rank: int = 8  # of LoRA; 0: the language model stays as it is
    batch: int = 32
    warm_lr: float = 2e-3
    lr: float = 5e-4  # of Q-Former and projection
    lora_lr: float = 1e-3
    weight_decay: float = 0.0
    bf16: bool = False
    connector: str = "q-former"


class Mblip(MpmChat):
    """A Q-Former before a language model: patches (N, P, D_in) -> soft tokens (N, Q, D). It learns from `Exchanges` and is asked
    questions, both as MPM chat is. Its loss, too, is MPM chat's in both stages: the cross-entropy of the reply's tokens behind
    soft tokens and prompt, and nothing else."""

    name = "mblip"
    Options = MblipOptions

    def __init__(self, lm: LM, qformer: QFormer, d_in: int, options: MblipOptions = MblipOptions()) -> None:
        """`qformer` is taken over as it is."""
        super(MpmChat, self).__init__()
        if options.learns not in LEARNS:
            raise unknown("part that is re-aligned", options.learns, LEARNS)
        self.options, self.d_in = options, d_in
        self.lm = copy_lm(lm) if options.rank else lm
        self.visual = SoftQueries(qformer, lm.model.get_input_embeddings().weight)
        if options.rank:
            add_lora(self.lm.model, options.rank)
        self.decoder = self.lm.model

    def stages(self) -> list[Stage]:
        o = self.options
        lora = tuple(lora_parts(self)) if o.rank else ()
        # Queries see; the words, which ITM and ITG needed, are not read any more.
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
