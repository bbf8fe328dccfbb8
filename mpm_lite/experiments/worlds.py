"""The systems on real pictures, emoji, stamps and clip art, with encoders that pip brings: MLA and its rivals, and M3P.

Training pictures are those of `load_captions`, which share no concept with held-out stamps; patches are
`efficientnet-lite0`'s, averaged to a grid of nine.

*MLA and its rivals.*

    bench = AcquiringReal()
    bench.test(bench.train(Acquiring(**REAL), seed=0), seed=0, split="val")

The English text encoder is `minilm-en`, the multilingual one `e5-small`, both frozen unless an arm says otherwise. Captions
are people's: a "translation" is the caption of the same picture in that language.

*M3P*: `e5-small`'s lower layers read regions of the pictures beside English or switched names.

    bench = MatchingReal()
    bench.test(bench.train(Matching(**REAL_M3P), seed=0), seed=0, split="val")

A region is a cell of the grid; its class, as a detector's would be, is the ImageNet class that the tower's own head gives it.
Captions are switched by the names of training emoji. xMLM reads the captions of the training pictures in all languages,
sampled by their numbers to the power of alpha. Two things are not the paper's, because two thousand pairs are not its three
million: a name is told apart from others of its own collection, since the style of a name gives emoji, stamps and clip art
away and little else was learned; and regions start near their pictures' names. Fine-tuning, where an arm asks for it
(`fine=("en",)`, `fine_steps`), trains matching alone on the same switched names.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from mpm_lite.core.keys import digest
from mpm_lite.core.runtime import UserError, unknown
from mpm_lite.data import emoji, load_captions
from mpm_lite.data.picture import RENDER
from mpm_lite.data.toyworld import exchanges
from mpm_lite.data.toyworld.switching import Switching, switch
from mpm_lite.evaluation import retrieval
from mpm_lite.evaluation.choice import Pictured
from mpm_lite.experiments import m3p, mla, rivals
from mpm_lite.experiments.experiment import image_tower, text_tower
from mpm_lite.experiments.m3p import Matching, Reads, Streams
from mpm_lite.experiments.mla import ENGLISH, MULTILINGUAL, Sentences
from mpm_lite.experiments.rivals import Pairing
from mpm_lite.recipes.dual import Captioned, Dual
from mpm_lite.recipes.m3p import FINE, M3p, M3pOptions
from mpm_lite.towers.features import patch_features
from mpm_lite.towers.folders import loaded_once
from mpm_lite.towers.text import padded

SETS = {"train": "emoji+stamps+clipart", "val": "stamps", "test": "stamps"}
LANGUAGES = tuple(code for code in emoji.LANGUAGES if code != "en")
ENOUGH = 100  # held-out captions that a language must have to be asked in
CANDIDATES, GRID = 10, 3
MOST = 10_000  # more than there are: all
# What arms on real pictures share.
DUAL = {"text": "frozen", "width": 256, "steps": 600, "batch": 128}
REAL = {
    "world": "real", "languages": LANGUAGES, "english": MOST, "parallel": MOST, "pairs": MOST, "english_options": DUAL,
    "options": {"bottleneck": 96, "transfer_steps": 1000, "exposure_steps": 200},
}  # fmt: skip


class Compact(nn.Module):
    """A tokenizer whose ids run without gaps over the pieces that some texts use: 1 for each, 0 for padding."""

    def __init__(self, tokenizer: Any, prefix: str, texts: Sequence[str]) -> None:
        super().__init__()
        self.tokenizer, self.prefix = tokenizer, prefix
        self.used = sorted({i for row in self._whole(texts) for i in row})
        self.place = {i: k for k, i in enumerate(self.used, start=1)}
        self.unknown = self.place.get(tokenizer.unk_token_id, 0)

    def _whole(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer([self.prefix + text for text in texts])["input_ids"]

    def __call__(self, texts: Sequence[str]) -> dict[str, list[list[int]]]:
        """As a transformers tokenizer: {"input_ids": rows}."""
        return {"input_ids": [[self.place.get(i, self.unknown) for i in row] for row in self._whole(texts)]}


@loaded_once(2)
def encoder(name: str) -> Any:
    """A packaged encoder with `model` and `tokenizer`, whose ids are those of the pieces that any of the captions uses."""
    tower = text_tower("minilm-en" if name == ENGLISH else "e5-small", "cpu")
    texts = [text for split in SETS for many in captions(split).captions.values() for text in many if text]
    tokenizer = Compact(tower.tokenizer, tower.prefix, texts)
    model = copy.deepcopy(tower.model)
    old = model.get_input_embeddings()
    with torch.no_grad():
        rows = old(torch.tensor(tokenizer.used))  # (V, D)
    table = nn.Embedding(len(rows) + 1, rows.shape[1], padding_idx=0)
    table.weight.data = torch.cat([torch.zeros(1, rows.shape[1]), rows])
    model.set_input_embeddings(table)
    return SimpleNamespace(model=model, tokenizer=tokenizer, fingerprint=tower.fingerprint)


@lru_cache(maxsize=3)
def captions(split: str) -> Any:
    """The pictures of a split, with captions in all of LANGUAGES."""
    if split not in SETS:
        raise unknown("split", split, SETS)
    return load_captions(SETS[split], split, ("en", *LANGUAGES))


@lru_cache(maxsize=1)
def mark() -> str:
    """A digest of what there is to learn from, and of who reads it."""
    many = captions("train")
    texts = [text for code in many.captions for text in many.captions[code]]
    return digest([*many.ids, *texts, encoder(ENGLISH).fingerprint, encoder(MULTILINGUAL).fingerprint])


def data_key(split: str) -> dict[str, str]:
    """What decides the rows of an arm on real pictures beside the arm: which pictures, how they are drawn, their captions, and
    the towers that read them."""
    asked = captions(split)
    said = [text for code in asked.languages for text in asked.captions[code]]
    data = {"training captions and text towers": mark(), f"captions of {split}": digest([*asked.ids, *said])}
    return data | {"pictures": RENDER, "image tower": image_tower("efficientnet-lite0", "cpu").fingerprint}


class Pictures(Pictured):
    """Real pictures for a bench, and how a test is made of them."""

    world = "real"

    def __init__(self, image: str = "efficientnet-lite0", progress: bool = True) -> None:
        self.tower, self.progress = image_tower(image, "cpu"), progress
        self._seen: dict[tuple[str, int], Tensor] = {}

    def seen(self, split: str, count: int | None = None) -> Tensor:
        """Patches of the first `count` pictures of a split, float16 (M, P, D_in)."""
        if (split, 0) not in self._seen:
            self._seen[split, 0] = torch.from_numpy(patch_features(captions(split), self.tower, self.progress, GRID))
        return self._seen[split, 0][:count]

    def languages(self, recipe: Any) -> list[str]:
        """English, and what else the recipe reads of which there are ENOUGH held-out captions."""
        many, known = captions("test").captions, getattr(recipe, "names", LANGUAGES)
        return ["en", *(code for code in LANGUAGES if code in known and sum(map(bool, many[code])) >= ENOUGH)]

    def choose(
        self, recipe: Any, seed: int, split: str = "test", languages: Sequence[str] = (),
        looks: Sequence[str] = ("real", "blind"), count: int | None = None,
    ) -> pd.DataFrame:  # fmt: skip
        """One row a look, language and picture. choice: its own caption comes first of ten, the others of other pictures;
        recall: among all pictures it is one of the ten nearest to its caption. NaN where it has no caption."""
        many, frames = captions(split), []
        for look in looks:
            seen = self.looked(split, count, look)
            for language in languages or self.languages(recipe):
                choice, recall = self._scored(recipe, seen, self.asked(recipe, split, language)[: len(seen)], language)
                items = {"item": many.ids[: len(seen)], "concept": many.concepts[: len(seen)]}
                known = {"look": look, "language": language, "seed": seed, **self.known(recipe, seed)}
                frames.append(pd.DataFrame({"choice": choice, "recall": recall}).assign(**known, **items))
        return pd.concat(frames, ignore_index=True)

    def asked(self, recipe: Any, split: str, language: str) -> list[str]:
        """The captions that a system is asked with, '' where a picture has none."""
        return captions(split).captions[language]

    def looked(self, split: str, count: int | None, look: str) -> Tensor:
        """Pictures as one of LOOKS shows them."""
        return super().looked(split, len(self.seen(split, count)), look)

    def _scored(self, recipe: Any, seen: Tensor, said: Sequence[str], language: str) -> tuple[np.ndarray, np.ndarray]:
        """For each picture: its own caption among ten; recall by that caption among all pictures, NaN where nothing but pairs
        can be scored."""
        there = np.flatnonzero([bool(text) for text in said])
        asked = candidates(said, there)
        choice = np.full(len(said), np.nan)
        fits = self.fits(recipe, seen[torch.from_numpy(there)], [[said[k] for k in few] for few in asked], language)
        choice[there] = exchanges.right(fits)
        return choice, self.recalled(recipe, seen, said, there, language)

    def recalled(self, recipe: Any, seen: Tensor, said: Sequence[str], there: np.ndarray, language: str) -> np.ndarray:
        """By its caption, is a picture among the ten nearest of all? NaN throughout for a system without vectors, (N,)."""
        return np.full(len(said), np.nan)


def candidates(said: Sequence[str], there: np.ndarray) -> list[list[int]]:
    """For each of the pictures that are `there`: its number, and those of others whose captions differ from its own."""
    rng, groups = np.random.default_rng(31), retrieval.equal_groups(list(said))
    return [[i, *rng.permutation(there[groups[there] != groups[i]])[: CANDIDATES - 1]] for i in there.tolist()]


class Real(Pictures, mla.MlaBench):
    """What else differs from the toy world for dual encoders: encoders, and whose captions are learned from."""

    _read: dict[str, dict[str, Tensor]] | None = None  # by language and caption, while a recipe is asked

    def text(self, name: str = MULTILINGUAL) -> Any:
        """`minilm-en` for English, `e5-small` for all languages."""
        return encoder(name)

    def captioned(self, count: int, seed: int) -> Captioned:
        """English captions of the first pictures, each beside the batch's others alone."""
        said = captions("train").captions["en"][:count]
        return Captioned(self.seen("train", count), self.ids(said, ENGLISH), [[]] * len(said))

    def translated(
        self, english: Dual, languages: Sequence[str], count: int, noise: float, seed: int
    ) -> tuple[Sentences, Tensor]:
        """Captions of the same pictures in other languages, and where the English ones lie."""
        said = self.exposed(languages, count, noise, seed)
        return said, self.vectors(english, captions("train").captions["en"][:count])

    def exposed(self, languages: Sequence[str], count: int, noise: float, seed: int) -> Sentences:
        """Captions of the first pictures in each language, where there are any. UserError for noise: people wrote them."""
        if noise:
            raise UserError("Captions of real pictures are people's: set noise=0.")
        many = captions("train").captions
        each = [(text, code, i) for code in languages for i, text in enumerate(many[code][:count]) if text]
        return Sentences(*(list(column) for column in zip(*each, strict=True)))

    def _fitted(self, recipe: Any, data: Callable[[], Any], seed: int, what: str, told: Any) -> Any:
        frozen = isinstance(recipe, Dual) and recipe.options.text == "frozen"
        once = (lambda: data().read_by(recipe)) if frozen else data  # an encoder that stays frozen reads a caption once
        return super()._fitted(recipe, once, seed, what, [told, mark()])

    def choose(self, *asked: Any, **more: Any) -> pd.DataFrame:
        """See `Pictures.choose`; both looks and both scores ask with the same captions, which are read once."""
        self._read = {}
        try:
            return super().choose(*asked, **more)
        finally:
            self._read = None

    def texts(self, recipe: Any, captions: Sequence[str], language: str) -> Tensor:
        """Where captions lie, (M, D) unit norm."""
        if self._read is None:
            return super().texts(recipe, captions, language)
        known = self._read.setdefault(language, {})
        if new := [caption for caption in dict.fromkeys(captions) if caption not in known]:
            known.update(zip(new, super().texts(recipe, new, language), strict=True))
        return torch.stack([known[caption] for caption in captions])

    @torch.no_grad()
    def recalled(self, recipe: Any, seen: Tensor, said: Sequence[str], there: np.ndarray, language: str) -> np.ndarray:
        """R@10 of each picture by its caption among all."""
        image = torch.cat([recipe.predict({"seen": part})["image"] for part in seen.split(256)])
        text, found = torch.zeros_like(image), np.full(len(said), np.nan)
        text[torch.from_numpy(there)] = self.texts(recipe, [said[i] for i in there], language)
        found[there] = retrieval.retrieval_hits(image, text, there, retrieval.equal_groups(list(said)))["t2i_r@10"]
        return found


class AcquiringReal(Real):
    """MLA on real pictures."""


class PairingReal(Real, rivals.RivalBench):
    """Its rivals on real pictures. Translate-test stands behind a perfect translator: it reads the English captions."""

    def _captions(self, arm: Pairing, seed: int) -> Captioned:
        """Pictures with a caption in a language of the arm's; where a picture has none in the one drawn, in another."""
        many = captions("train")
        codes = {"pivot": ("en",), "translate-train": ("en", *arm.languages)}.get(arm.kind, arm.languages)
        rng, which, said = np.random.default_rng([seed, 22]), [], []
        for i in range(min(arm.pairs, len(many))):
            there = [many.captions[code][i] for code in codes if many.captions[code][i]]
            if there:
                which.append(i)
                said.append(there[rng.integers(len(there))])
        return Captioned(self.seen("train")[which], self.ids(said), [[]] * len(said))

    def asked(self, recipe: Any, split: str, language: str) -> list[str]:
        """The captions asked with; behind a perfect translator, the English ones of the same pictures."""
        there = super().asked(recipe, split, language)
        if recipe.arm.kind != "translate-test":
            return there
        return [ours if theirs else "" for ours, theirs in zip(captions(split).captions["en"], there, strict=True)]


# M3P.

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


class MatchingReal(Pictures, m3p.M3pBench):
    """What differs from the toy world: pictures, the encoder, and captions."""

    @property
    def reads(self) -> Reads:
        """e5's pieces, those that captions use."""
        tokenizer = encoder(MULTILINGUAL).tokenizer
        special = set(tokenizer([""])["input_ids"][0]) | {0}
        return Reads(lambda texts: padded(tokenizer(texts)["input_ids"]), torch.tensor(sorted(special)))

    @property
    def mark(self) -> list[Any]:
        """Whatever there is to learn from."""
        return [mark(), GRID, RIDGE, "others of one collection", "no dropout"]

    def untrained(self, options: M3pOptions, layers: int = REAL_M3P["layers"]) -> M3p:
        """e5's embeddings and lower layers with M3P's heads, which torch's seed decides."""
        e5 = encoder(MULTILINGUAL).model
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
        ids = reads.encode(captions("train").captions["en"][: arm.pairs])  # (M, T)
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
        many, o = captions("train"), arm.recipe_options
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
        text = [] if stage == FINE else sentences(m3p.SENTENCES, arm.alpha, seed)
        return Streams(
            stage, o, text, seen, region_classes()[: len(seen)], told, self.reads, [str(switching), *english]
        )


def sentences(count: int, alpha: float, seed: int) -> list[str]:
    """Captions of training pictures, each in one language: one with n captions with chance ~ n^alpha."""
    rng, many = np.random.default_rng([seed, 18]), captions("train").captions
    there = {code: [text for text in of if text] for code, of in many.items()}
    weight = np.array([len(of) ** alpha for of in there.values()])
    codes = rng.choice(list(there), count, p=weight / weight.sum())
    return [there[code][rng.integers(len(there[code]))] for code in codes.tolist()]
