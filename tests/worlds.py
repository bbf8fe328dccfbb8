"""A tiny made-up world for tests: towers that are random maps of a hidden meaning, sets that live in memory."""

import hashlib

import numpy as np
import torch

from mpm_lite.core import store
from mpm_lite.recipes import Align


def own_home(patch, folder):
    """Makes `folder` the MPM_LITE_HOME: what is trained lies nowhere else. Features, whose names say all that decides them,
    are shared with other tests."""
    shared = store.folder()
    for one in (shared, folder):
        one.mkdir(parents=True, exist_ok=True)
    (folder / "features").symlink_to(shared)
    patch.setenv("MPM_LITE_HOME", str(folder))


class Meaning:
    """A tower whose features are a fixed random map of the number in a caption or the colour of a picture."""

    languages = frozenset({"en"})

    def __init__(self, width=24, seed=0, name="meaning"):
        self.width, self.name, self.seed = width, name, seed
        self.fingerprint = hashlib.sha256(f"{name}{width}{seed}".encode()).hexdigest()
        self.calls = []

    def encode(self, things, progress=False):
        self.calls.append(len(things))
        rng = np.random.default_rng(self.seed)
        table = rng.normal(size=(256, self.width)).astype(np.float32)
        return np.stack([table[self.number(x)] for x in things])

    def number(self, x):
        return int(x.split()[-1]) if isinstance(x, str) else int(x[0, 0, 0])


class Constant(Meaning):
    """The same features for every picture."""

    def encode(self, things, progress=False):
        return np.ones((len(things), self.width), dtype=np.float32)


class Pairs:
    """Training pairs with a common cause: 60 by default."""

    def __init__(self, n=60, seed=0):
        g = torch.Generator().manual_seed(seed)
        cause = torch.randn(n, 6, generator=g)
        self.images = cause @ torch.randn(6, 20, generator=g)
        self.texts = cause @ torch.randn(6, 12, generator=g)
        self.digest = f"pairs-{n}-{seed}"

    def __len__(self):
        return len(self.images)

    def batch(self, indices):
        return {"image": self.images[indices], "text": self.texts[indices]}


def small_recipe(**options):
    torch.manual_seed(0)
    data = Pairs()
    recipe = Align(20, 12, Align.Options(**({"width": 8, "steps": 40, "batch": 16} | options)))
    recipe.prepare(data.images, data.texts)
    return recipe, data
