"""Toy-IGLUE with systems that know everything, nothing, or the opposite; and once with a real bench."""

import numpy as np
import pytest
import torch
from worlds import own_home

from mpm_lite.data import toyworld
from mpm_lite.data.toyworld import exchanges, grammar
from mpm_lite.evaluation import choice
from mpm_lite.evaluation.choice import Choosing


class Oracle(Choosing):
    """Pictures are numbers of scenes; how well a caption fits is how many facts it gets right, plus what it weighs."""

    name, lm = "oracle", None

    def __init__(self, knows=1.0, weighs=0.0):
        self.knows, self.weighs = knows, weighs

    def seen(self, split, count=None):
        return torch.arange(count, dtype=torch.float32)[:, None, None].expand(count, 1, 2).clone()

    def looked(self, split, count, look):
        self.many = toyworld.split_scenes(split)[:count]
        seen = self.seen(split, count)
        return torch.full_like(seen, -1) if look == "blind" else seen

    def fits(self, recipe, seen, captions, language):
        found = np.zeros((len(captions), len(captions[0])))
        for i, few in enumerate(captions):
            which = int(seen[i, 0, 0])
            own = exchanges.caption(self.many[which], language) if which >= 0 else ""
            for k, said in enumerate(few):
                words = set(said.split() if " " in said else said), set(own.split() if " " in own else own)
                found[i, k] = self.knows * (said == own) + 0.01 * len(words[0] & words[1]) + self.weighs * len(said)
        return found


@pytest.mark.parametrize("language", ["en", "zh", "hi"])
def test_who_knows_all_is_right_in_every_task_and_language(language):
    rows = choice.score_iglue(Oracle(), Oracle(), 0, "val", (language,), ("real",), 40)
    for task in ("retrieval", "true"):
        assert rows[rows["language"] == language][task].mean() > 0.97, task
    assert rows["english"].isna().all() and len(rows) == 40


def test_who_sees_nothing_is_at_chance():
    rows = choice.score_iglue(Oracle(), Oracle(), 0, "val", ("en",), ("blind",), 60)
    assert rows["retrieval"].mean() < 0.15 and 0.3 < rows["true"].mean() < 0.7


def test_ranks_count_equal_captions_once_and_ties_in_random_order():
    fits = np.array([[3.0, 2, 1], [2, 2, 1], [0, 5, 4]])
    same = np.eye(3, dtype=bool)
    found = choice.recall_of_ranks(fits, same)
    assert found.tolist() == pytest.approx([1, (0.5 + 1 + 1) / 3, 2 / 3])
    blind = choice.recall_of_ranks(np.zeros((40, 40)), np.eye(40, dtype=bool))
    assert blind == pytest.approx(np.mean([1, 5, 10]) / 40), "who gives all the same score is at chance"
    same[2, 1] = True
    assert choice.recall_of_ranks(fits, same)[2] == 1


def test_the_line_tells_most_apart_and_half_the_statements_are_true():
    assert choice.draw_line(np.array([0.0, 1, 2, 3]), np.array([False, False, True, True])) == 1.5
    assert choice.draw_line(np.array([1.0, 1]), np.array([True, True])) < 1
    many = toyworld.split_scenes("val")[:200]
    said, true = choice.draw_statements(many)
    assert 0.4 < true.mean() < 0.6
    for scene, one, right in zip(many, said, true, strict=True):
        assert (grammar.shown(one) == grammar.shown(scene)) == right
    first, again = choice.draw_statements(many[:50])[0], said[:50]
    assert first == again


def test_a_real_bench_does_all_it_can(monkeypatch, tmp_path):
    from mpm_lite.experiments.mpm_chat import Chat, ChatBench

    own_home(monkeypatch, tmp_path)
    bench = ChatBench(progress=False)
    recipe = bench.train(Chat(pairs=40, options={"steps": 1, "batch": 4}), 0)
    rows = choice.score_iglue(bench, recipe, 0, "val", ("de",), ("real",), 12)
    for task in ("retrieval", "true", "english"):
        assert rows[task].between(0, 1).all(), task
    assert set(rows["lm"]) == {"toy-multilingual"}
