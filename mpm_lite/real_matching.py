"""M3P on real pictures: `e5-small`'s lower layers read regions of emoji, stamps and clip art beside English or switched names.

    bench = MatchingReal()
    bench.test(bench.train(Matching(**REAL_M3P), seed=0), seed=0, split="val")

A region is a cell of a grid over `efficientnet-lite0`'s patches; its class, as a detector's would be, is the ImageNet class
that the tower's own head gives it. Captions are switched by the names of training emoji. xMLM reads the captions of the
training pictures in all languages, sampled by their numbers to the power of alpha. Two things are not the paper's, for two
thousand pairs are not its three million: a name is told apart from others of its own collection, since the style of a name
gives emoji, stamps and clip art away and little else was learned; and regions start near their pictures' names.
Fine-tuning, where an arm asks for it (`fine=("en",)`, `fine_steps`), trains matching alone on the same switched names.
"""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mpm_lite import matching, real
from mpm_lite.acquiring import MULTILINGUAL
from mpm_lite.data.switching import Switching, switch
from mpm_lite.experiment import image_tower
from mpm_lite.matching import Matching, Reads, Streams
from mpm_lite.real import GRID, LANGUAGES, Pictures
from mpm_lite.recipes.m3p import FINE, M3p, M3pOptions
from mpm_lite.runtime import UserError
from mpm_lite.towers.tokens import padded

CLASSES = 1 + 1000
RIDGE = 0.3  # of the regression that regions start from, in shares of a feature's mean power
SWITCH = {"world": "emoji", "languages": LANGUAGES}
# Four of e5-small's twelve layers are what a CPU trains in minutes.
REAL_M3P: dict[str, Any] = {
    "world": "real", "layers": 4, "pairs": 10_000, "switch": SWITCH, "fine": ("en",),
    "options": {"text_steps": 0, "steps": 200, "fine_steps": 600, "batch": 12, "captions": 8, "lr": 2e-4, "fine_lr": 1e-3, "slower": 0.1},
}  # fmt: skip


@lru_cache(maxsize=1)
def region_classes() -> Tensor:
    """The ImageNet class of each region of the training pictures, from 1 on, int64 (M, R)."""
    head = image_tower("efficientnet-lite0", "cpu").model.get_classifier()
    with torch.no_grad():
        return torch.cat(
            [1 + head(part.float()).argmax(dim=-1) for part in MatchingReal(progress=False).seen("train").split(512)]
        )


class MatchingReal(Pictures, matching.Bench):
    """What differs from the toy world: pictures, the encoder, and captions."""

    @property
    def reads(self) -> Reads:
        """e5's pieces, those that captions use."""
        tokenizer = real.encoder(MULTILINGUAL).tokenizer
        special = set(tokenizer([""])["input_ids"][0]) | {0}
        return Reads(lambda texts: padded(tokenizer(texts)["input_ids"]), torch.tensor(sorted(special)))

    @property
    def mark(self) -> list[Any]:
        """Whatever there is to learn from."""
        return [real.mark(), GRID, RIDGE, "others of one collection", "no dropout"]

    def untrained(self, options: M3pOptions, layers: int = REAL_M3P["layers"]) -> M3p:
        """e5's embeddings and lower layers with M3P's heads, which torch's seed decides."""
        e5 = real.encoder(MULTILINGUAL).model
        config, weights = copy.deepcopy(e5.config), e5.state_dict()
        config.num_hidden_layers, config.vocab_size = layers, e5.get_input_embeddings().num_embeddings
        # With dropout the encoder has not fitted its training pairs when its updates end.
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
        model: nn.Module = type(e5)(config, add_pooling_layer=False)
        model.load_state_dict({name: weights[name] for name in model.state_dict()})
        return M3p(model, self.tower.width, GRID * GRID, CLASSES, options)

    def begin(self, recipe: M3p, arm: Matching) -> None:
        """Regions start where their pictures' English names are: a ridge regression of the mean embedding of a name's pieces on
        the mean patch. The paper's projection starts at random, and has millions of pairs to get there."""
        seen, reads = self.seen("train", arm.pairs).float(), self.reads
        ids = reads.encode(real.captions("train").captions["en"][: arm.pairs])  # (M, T)
        told = ~torch.isin(ids, reads.special)[..., None]
        with torch.no_grad():
            named = (recipe.words(ids) * told).sum(dim=1) / told.sum(dim=1).clamp(min=1)  # (M, W)
            still, usual = seen.mean(dim=(0, 1)), named.mean(dim=0)
            x, y = (seen.mean(dim=1) - still).double(), (named - usual).double()
            gram = x.T @ x  # (D_in, D_in)
            weight = torch.linalg.solve(gram + RIDGE * gram.trace() / len(gram) * torch.eye(len(gram)), x.T @ y)
            weight *= y.norm() / (x @ weight).norm()  # as long as names are, which ridge shortens
            recipe.region.weight.copy_(weight.T)
            recipe.region.bias.copy_(usual - still @ weight.float())
            for parameter in recipe.box.parameters():
                parameter.zero_()

    def data(self, arm: Matching, stage: str, seed: int) -> Streams:
        """What a stage learns from. UserError for fine-tuning in other languages than English, or on other pictures'
        captions, and for switched text without pictures, which are not here."""
        if not arm.pictures or arm.shuffled or set(arm.fine) - {"en"}:
            raise UserError(
                "On real pictures M3P learns from pictures with their own English captions: set fine=('en',) or ()."
            )
        many, o = real.captions("train"), arm.recipe_options
        english = many.captions["en"][: arm.pairs]
        # As its released code does, words are switched in fine-tuning too.
        switching = Switching(**arm.switch) if arm.switch is not None else None

        of = [part.name for part, indices in many.parts for _ in indices][: len(english)]
        near = {name: [text for text, part in zip(english, of, strict=True) if part == name] for name in set(of)}
        near = {name: texts if len(set(texts)) > 1 else english for name, texts in near.items()}

        def told(i: int, rng: np.random.Generator) -> list[str]:
            """The picture's own name, and those of others of its collection that are named otherwise."""
            others, names = [], near[of[i]]
            while len(others) < o.captions - 1:
                other = names[rng.integers(len(names))]
                others += [other] if other != english[i] else []
            said = [english[i], *others]
            return said if switching is None else [switch(one, switching, rng) for one in said]

        seen = self.seen("train", arm.pairs)
        text = [] if stage == FINE else sentences(matching.SENTENCES, arm.alpha, seed)
        return Streams(
            stage, o, text, seen, region_classes()[: len(seen)], told, self.reads, [str(switching), *english]
        )


def sentences(count: int, alpha: float, seed: int) -> list[str]:
    """Captions of training pictures, each in one language: one with n captions with chance ~ n^alpha."""
    rng, many = np.random.default_rng([seed, 18]), real.captions("train").captions
    there = {code: [text for text in of if text] for code, of in many.items()}
    weight = np.array([len(of) ** alpha for of in there.values()])
    codes = rng.choice(list(there), count, p=weight / weight.sum())
    return [there[code][rng.integers(len(there[code]))] for code in codes.tolist()]
