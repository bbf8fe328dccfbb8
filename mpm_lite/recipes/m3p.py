"""M3P: one encoder over picture and text, pretrained on code-switched captions (2006.02635).

Method (section 3). The regions of a picture, each with its box, stand before the tokens of a caption in one multilingual
encoder; nothing is frozen but the detector. Four tasks are learned together, and their losses summed. *xMLM*: text in many
languages without a picture, some of its tokens hidden. On code-switched captions: *MC-MLM*, some tokens are hidden; *MC-MRM*,
some regions are hidden, and their features are to be regressed and their classes named; *MC-VLM*, which of several captions
matches the picture. Half of the samples hide tokens, half hide regions. *Fine-tuning* trains matching alone, on captions in
whatever languages there are.

In the paper a detector finds the regions. Here they are the patches of a frozen tower on a grid, and the class of a region is
the number of what stands in its cell.

Shapes: N samples, R regions, T tokens, K captions a picture, D_in the image tower's width, W the encoder's, V the
vocabulary, C classes of regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpm_lite import ops
from mpm_lite.core.runtime import UserError, unknown
from mpm_lite.recipes.base import Recipe, Stage, at_least

TEXT, PRETRAIN, FINE = "text", "pretraining", "fine-tuning"
MATCHING = ("multi-class", "binary")
LENGTHS = 4  # parts that captions to be matched are read in, by length


@dataclass(frozen=True)
class M3pOptions:
    """Every dial of the recipe. The defaults were chosen on English validation captions only."""

    text_steps: int = 1200  # of xMLM alone, first: what the paper takes over with XLM-R; 0 leaves it out
    steps: int = 3000  # of the four tasks together
    fine_steps: int = 0  # of fine-tuning on matching
    batch: int = 24
    captions: int = at_least(2, 6)  # for each picture in matching, one of them its own
    # Among the captions; or "binary", each by itself, which learns nothing in few steps from a random start.
    matching: str = "multi-class"
    hidden: float = 0.15  # share of tokens or regions that are asked about
    lr: float = 1e-3
    fine_lr: float = 3e-4
    # The encoder's rate in fine-tuning, in units of fine_lr: at the rate of new heads, an encoder that has read much forgets.
    slower: float = field(default=1.0, metadata={"added": True})
    weight_decay: float = 0.01
    bf16: bool = False


class M3p(Recipe):
    """A single-stream encoder (a transformers encoder, taken over as it is) with the heads of the four tasks."""

    name = "m3p"
    Options = M3pOptions

    def __init__(self, encoder: Any, d_in: int, regions: int, classes: int, options: M3pOptions = M3pOptions()) -> None:
        super().__init__()
        if options.captions < 2:
            raise UserError(f"captions={options.captions}: matching needs a right caption and a wrong one.")
        if options.matching not in MATCHING:
            raise unknown("way to match", options.matching, MATCHING)
        self.options, self.encoder = options, encoder
        width = encoder.config.hidden_size
        self.first = nn.Parameter(0.02 * torch.randn(width))  # stands before everything; matching is read off its state
        self.gone = nn.Parameter(0.02 * torch.randn(width))  # stands in the place of a hidden token
        self.region, self.box, self.norm = nn.Linear(d_in, width), nn.Linear(5, width), nn.LayerNorm(width)
        self.register_buffer("boxes", grid_boxes(regions))  # (R, 5)
        self.tell = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))  # before the tied vocabulary
        self.bias = nn.Parameter(torch.zeros(encoder.config.vocab_size))
        self.regress, self.classify = nn.Linear(width, d_in), nn.Linear(width, classes)
        self.match = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))

    def stages(self) -> list[Stage]:
        o = self.options
        every = ("encoder", "first", "gone", "region", "box", "norm", "tell", "bias", "regress", "classify", "match")
        alone = ("encoder", "gone", "tell", "bias")
        still, how, slower = ("image tower",), {"clip": 1.0, "beta2": 0.98}, (("encoder", o.slower),)
        found = [
            Stage.of(o, TEXT, alone, still, "xMLM", steps=o.text_steps, **how),
            Stage.of(o, PRETRAIN, every, still, "xMLM + MC-MLM + MC-MRM + MC-VLM, summed", **how),
            Stage.of(o, FINE, every, still, "matching alone", steps=o.fine_steps, lr=o.fine_lr, faster=slower, **how),
        ]
        return [stage for stage in found if stage.steps]

    # the stream

    def words(self, ids: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Token ids (N, T) -> vectors (N, T, W), the `hidden` ones (bool) replaced."""
        x = self.encoder.get_input_embeddings()(ids)
        return x if hidden is None else torch.where(hidden[..., None], self.gone.to(x), x)

    def regions(self, seen: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Regions (N, R, D_in) -> vectors (N, R, W); of a hidden one (bool) the box alone is left."""
        x = seen if hidden is None else seen * ~hidden[..., None]
        return self.norm(self.region(x) + self.box(self.boxes))

    def stream(self, words: Tensor, there: Tensor, regions: Tensor | None = None) -> Tensor:
        """States (N, 1 + R + T, W) of the first vector, the regions (if any) and the words, of which `there` are real."""
        parts = [self.first.expand(len(words), 1, -1), *([] if regions is None else [regions]), words]
        x, before = torch.cat([p.to(words) for p in parts], dim=1), sum(p.shape[1] for p in parts[:-1])
        mask = torch.cat([there.new_ones(len(there), before), there], dim=1)
        kind = torch.zeros(x.shape[:2], dtype=torch.long, device=x.device)
        kind[:, 1:before] = 1
        # Words count their places from one on, with and without a picture; regions have boxes, and no place in a row.
        place = torch.cat([kind.new_zeros(before), torch.arange(1, words.shape[1] + 1, device=x.device)])
        return self.encoder(
            inputs_embeds=x, attention_mask=mask.long(), token_type_ids=kind, position_ids=place.expand(len(x), -1)
        ).last_hidden_state

    def matching(self, seen: Tensor, ids: Tensor) -> Tensor:
        """How well pictures (N, R, D_in) and captions, token ids (N, T) with 0 for padding, match: logits (N,)."""
        there, found = ids != 0, []
        lengths = there.sum(dim=1)
        order = lengths.argsort(stable=True)
        # Captions of like length are read together: padding costs as much as words, and in one batch it would be 30 %.
        for few in order.tensor_split(min(LENGTHS, len(ids))):
            most = int(lengths[few].max())
            words = self.words(ids[few, :most])
            found.append(self.stream(words, there[few, :most], self.regions(seen[few]))[:, 0])
        return self.match(torch.cat(found)[order.argsort()])[:, 0]

    # the tasks

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """The summed losses of those tasks that the batch has data for."""
        lost = []
        with torch.autocast(self.first.device.type, torch.bfloat16, enabled=self.options.bf16):
            if "text" in batch:
                lost.append(self.masked_text(batch["text"], batch["text_asked"]))
            if "ids" in batch:
                lost.append(self.masked_pairs(batch))
            if "match_ids" in batch:
                lost.append(self.told_apart(batch["match_seen"], batch["match_ids"]))
        return torch.stack(lost).sum()

    def masked_text(self, ids: Tensor, asked: Tensor) -> Tensor:
        """xMLM: token ids int64 (N, T), of which those `asked` about (bool) are hidden."""
        states = self.stream(self.words(ids, asked), ids != 0)[:, 1:]
        return self._told(states[asked], ids[asked])

    def masked_pairs(self, batch: dict[str, Tensor]) -> Tensor:
        """MC-MLM and MC-MRM: `seen` (N, R, D_in), `ids` (N, T), `words_asked` bool (N, T), `regions_asked` bool (N, R) and
        `classes` int64 (N, R). A sample is asked about words or about regions, never both."""
        ids, seen, asked, hidden = (batch[k] for k in ("ids", "seen", "words_asked", "regions_asked"))
        states = self.stream(self.words(ids, asked), ids != 0, self.regions(seen, hidden))
        of_regions = states[:, 1 : 1 + seen.shape[1]][hidden]
        lost = self._told(states[:, 1 + seen.shape[1] :][asked], ids[asked])
        if len(of_regions):
            lost = lost + F.mse_loss(self.regress(of_regions).float(), seen[hidden].float())
            lost = lost + F.cross_entropy(self.classify(of_regions).float(), batch["classes"][hidden])
        return lost

    def _told(self, states: Tensor, ids: Tensor) -> Tensor:
        """Cross-entropy of the hidden tokens; 0 if none is hidden."""
        if not len(ids):
            return states.sum() * 0.0
        table = self.encoder.get_input_embeddings().weight
        with torch.autocast(states.device.type, enabled=False):
            return ops.linear_cross_entropy(self.tell(states.float()), table, ids, self.bias, check=False)

    def told_apart(self, seen: Tensor, ids: Tensor) -> Tensor:
        """MC-VLM: pictures (N, R, D_in), captions (N, K, T), the first its own: cross-entropy among them, or of each."""
        logits = self.matching(seen.repeat_interleave(ids.shape[1], 0), ids.flatten(0, 1)).view(ids.shape[:2]).float()
        if self.options.matching == "multi-class":
            return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
        own = torch.zeros_like(logits)
        own[:, 0] = 1
        return F.binary_cross_entropy_with_logits(logits, own)

    def predict(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """{"seen": (N, R, D_in), "ids": (N, T)} -> {"match": logits (N,)}."""
        return {"match": self.matching(inputs["seen"].float(), inputs["ids"])}


def grid_boxes(regions: int) -> Tensor:
    """Left, top, right, bottom and area of the cells of a square grid, as shares of the picture: (R, 5). Raises UserError if R
    is not a square number."""
    side = round(regions**0.5)
    if side * side != regions:
        raise UserError(f"{regions} regions lie on no square grid: take a square number.")
    at = torch.arange(regions)
    left, top = (at % side) / side, (at // side) / side
    return torch.stack([left, top, left + 1 / side, top + 1 / side, torch.full((regions,), 1 / regions)], dim=1)


def draw_hidden(shape: Sequence[int], share: float, may: Tensor, rng: torch.Generator) -> Tensor:
    """Which tokens or regions are hidden, bool: about a `share` of those that `may` be, and in each row at least one of them."""
    drawn = torch.rand(tuple(shape), generator=rng).masked_fill(~may, 2.0)
    return (drawn < share) | ((drawn == drawn.min(dim=1, keepdim=True).values) & may)
