"""Scenes, their splits, their pictures, and `load_captions("toyworld")`."""

import hashlib
from collections import Counter
from dataclasses import replace
from itertools import combinations as pairs_of
from itertools import islice

import numpy as np
import pytest

from mpm_lite import data
from mpm_lite.core import runtime
from mpm_lite.data import toyworld
from mpm_lite.data.toyworld import grammar
from mpm_lite.data.toyworld.scenes import (
    COLOURS,
    CONVERSE,
    PLACES,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    combinations,
    draw_scene,
    meeting_name,
    pair_name,
    relation,
    scenes,
    split_of,
    split_of_combination,
    text_scenes,
)


def drawn(count, seed=0):
    rng = np.random.default_rng(seed)
    return [draw_scene(rng) for _ in range(count)]


def test_scenes_are_well_formed():
    kinds, places, hows = Counter(), set(), set()
    for scene in drawn(3000):
        kinds[scene.kind] += 1
        places.add(scene.place)
        cells = {(thing.column, thing.row) for thing in scene.things}
        assert len(cells) == len(scene.things) and all(0 <= c <= 2 and 0 <= r <= 2 for c, r in cells)
        if scene.kind == "group":
            assert 2 <= len(scene.things) <= 4 and len({(t.pair, t.size) for t in scene.things}) == 1
        else:
            assert len({thing.pair for thing in scene.things}) == len(scene.things) <= 3
            for a, b in pairs_of(scene.things, 2):
                hows.add(relation(a, b))
                assert relation(b, a) == CONVERSE[relation(a, b)]
    assert set(kinds) == {"one", "group", "pair", "three"} and min(kinds.values()) > 400
    assert places == {None, *PLACES} and hows == set(CONVERSE)


def test_splits_are_disjoint_and_a_matter_of_hashes():
    seen = {split: list(islice(scenes(split), 800)) for split in data.SPLITS}
    held = {split: {name for scene in seen[split] for name in combinations(scene)} for split in seen}
    assert all(split_of_combination(name) == "train" for name in held["train"])
    for split, other in (("val", "test"), ("test", "val")):
        assert not any(split_of_combination(name) == other for name in held[split])
        assert all(split in map(split_of_combination, combinations(scene)) for scene in seen[split])
    ids = [scene.id for split in seen for scene in seen[split]]
    assert len(ids) == len(set(ids)) == 2400
    for scene in drawn(500, 3):
        split, turned = split_of(scene), Scene(scene.things[::-1])
        assert split_of(turned) == split  # neither order nor size nor place decides
        assert split_of(Scene(tuple(replace(thing, size="small") for thing in scene.things))) == split


def test_splits_never_change():
    """A trained language model has read `train`: these sums may change with no later version."""
    names = [pair_name((c, s)) for c in COLOURS for s in SHAPES]
    assert [n for n in names if split_of_combination(n) == "test"] == TEST_PAIRS
    assert [n for n in names if split_of_combination(n) == "val"] == VAL_PAIRS
    told = "".join(scene.id for split in data.SPLITS for scene in islice(scenes(split), 50))
    assert hashlib.sha256(told.encode()).hexdigest()[:16] == FIRST_SCENES
    assert meeting_name(("red", "circle"), "right", ("blue", "star")) == "blue star left red circle"


TEST_PAIRS = ["blue circle", "blue square", "green star", "green book", "yellow heart", "black flower", "brown book"]
VAL_PAIRS = ["red star", "green triangle", "yellow book", "brown triangle"]
FIRST_SCENES = "66c4364d259918b7"


def test_every_colour_and_shape_is_seen_in_training():
    train = [(c, s) for c in COLOURS for s in SHAPES if split_of_combination(pair_name((c, s))) == "train"]
    assert min(Counter(c for c, _ in train).values()) >= 4 and {c for c, _ in train} == set(COLOURS)
    assert min(Counter(s for _, s in train).values()) >= 4 and {s for _, s in train} == set(SHAPES)


def test_texts_describe_scenes_of_train_and_of_text_alone():
    for seed in (0, 5):
        splits = [split_of(scene) for scene in islice(text_scenes(seed), 500)]
        assert set(splits) == {"train", "text"} and splits.count("text") < splits.count("train") / 2
    assert [s.id for s in islice(text_scenes(1), 9)] == [s.id for s in islice(text_scenes(1), 9)]
    assert [s.id for s in islice(text_scenes(1), 9)] != [s.id for s in islice(text_scenes(2), 9)]


@pytest.mark.parametrize("size", [16, 33, 64])
def test_pictures_are_deterministic(size):
    for scene in drawn(20):
        picture = toyworld.render(scene, size)
        assert picture.shape == (size, size, 3) and picture.dtype == np.uint8
        assert np.array_equal(picture, toyworld.render(scene, size))
        assert not np.array_equal(picture, toyworld.render(scene, size, seed=1))
        plain = toyworld.render(scene, size, jitter=0)
        assert np.array_equal(plain, toyworld.render(scene, size, seed=1, jitter=0))


@pytest.mark.parametrize("size", [16, 32, 64])
def test_every_attribute_changes_pixels(size):
    """Without jitter, so that nothing else moves: each of the 112 things differs from each other, and so does each cell."""
    looks = {}
    for colour in COLOURS:
        for shape in SHAPES:
            for big in SIZES:
                looks[colour, shape, big] = toyworld.render(Scene((Thing(shape, colour, big, 1, 1),)), size, jitter=0)
    for (one, a), (two, b) in pairs_of(looks.items(), 2):
        assert np.abs(a.astype(int) - b).max() >= 12, (one, two)
    cells = [Scene((Thing("star", "red", "small", c, r),)) for c in range(3) for r in range(3)]
    assert len({toyworld.render(scene, size, jitter=0).tobytes() for scene in cells}) == 9
    group = [Scene(tuple(Thing("star", "red", "small", c, 0) for c in range(n))) for n in (1, 2, 3)]
    assert len({toyworld.render(scene, size, jitter=0).tobytes() for scene in group}) == 3


def test_jitter_never_belies_a_caption():
    """Over many seeds a small thing stays smaller than a large one, colours stay apart, things stay in their cells."""
    ground = toyworld.render(Scene((Thing("circle", "red", "small", 0, 0),)), jitter=0)[-1, -1].astype(int)
    areas = {"small": [], "large": []}
    means = {colour: [] for colour in COLOURS}
    for seed in range(40):
        for big in SIZES:
            picture = toyworld.render(Scene((Thing("square", "purple", big, 1, 1),)), 63, seed).astype(int)
            mask = np.abs(picture - ground).sum(-1) > 90
            rows, columns = np.nonzero(mask)
            areas[big].append(mask.sum())
            assert rows.min() >= 20 and columns.min() >= 20 and rows.max() <= 42 and columns.max() <= 42
        for colour in COLOURS:
            picture = toyworld.render(Scene((Thing("circle", colour, "large", 1, 1),)), 63, seed)
            means[colour].append(picture[29:34, 29:34].reshape(-1, 3).mean(0))
    assert max(areas["small"]) < 0.6 * min(areas["large"])
    middle = {colour: np.mean(seen, 0) for colour, seen in means.items()}
    for colour, seen in means.items():
        for one in seen:
            assert min(middle, key=lambda c: np.abs(middle[c] - one).sum()) == colour


def test_edges_are_soft():
    picture = toyworld.render(Scene((Thing("circle", "black", "large", 1, 1),)), 64, jitter=0)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 8


def test_the_set_loads_like_the_others():
    test = data.load_captions("toyworld", "test", ["en", "de", "zh"], limit=40)
    assert len(test) == 40 and test.images.shape == (40, 64, 64, 3) and test.images[:3].shape == (3, 64, 64, 3)
    assert all(test.captions[code][i] for code in ("en", "de", "zh") for i in range(40))
    scene_of = {f"toyworld/{scene.id}": scene for scene in toyworld.split_scenes("test")}
    for i, name in enumerate(test.ids):
        assert np.array_equal(test.images[i], toyworld.render(scene_of[name]))
        for code in test.languages:
            assert test.captions[code][i] in grammar.captions(scene_of[name], code)
    every = data.load_captions("toyworld", "val", "all", limit=5)
    assert set(every.languages) == set(grammar.languages()) and every.languages[0] == "en"
    assert "data:image/webp" in every._repr_html_() and set(every.concepts[0].split()) & set(COLOURS)
    with pytest.raises(runtime.UserError, match="toyworld has no captions in 'it'"):
        data.load_captions("toyworld", "test", ["it"])


def test_the_set_is_counted_split_and_digested():
    assert data.count_items("toyworld") == {**toyworld.COUNTS, "dropped": 0} and data.is_available("toyworld")
    ids = [name for split in data.SPLITS for name in data.load_captions("toyworld", split).ids]
    assert len(ids) == len(set(ids)) == sum(toyworld.COUNTS.values())
    both = data.load_captions("toyworld", "train+val")
    assert len(both) == toyworld.COUNTS["train"] + toyworld.COUNTS["val"]
    parts = toyworld.parts()
    assert parts["val"].image_digest() != parts["test"].image_digest() == toyworld._part("test").image_digest()
    assert parts["val"].text_digest("en") != parts["val"].text_digest("tr")


def test_pictures_of_two_sizes_are_no_one_array():
    joined = data.load_captions("emoji", "val", limit=2) + data.load_captions("toyworld", "val", limit=2)
    assert len(joined.captions["en"]) == 4
    with pytest.raises(runtime.UserError, match="different sizes.*toyworld/val 64"):
        len(joined.images)
