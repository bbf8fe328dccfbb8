"""Connectors and the recipe of MPM chat: shapes, scale, what learns, kill and resume, clear errors."""

import copy

import numpy as np
import pytest
import torch

from mpm_lite import UserError
from mpm_lite.data import toyworld
from mpm_lite.data.toyworld import grammar
from mpm_lite.recipes.modules.connectors import CONNECTORS, LikeEmbeddings, build_connector
from mpm_lite.recipes.mpm_chat import Echo, Exchanges, MpmChat, MpmChatOptions
from mpm_lite.towers.lm import IGNORE
from mpm_lite.towers.load import load_image_tower, load_lm
from mpm_lite.training import loop

SMALL = {"steps": 6, "batch": 8, "queries": 4, "width": 32, "heads": 2, "layers": 1}


@pytest.fixture(scope="module")
def lm():
    return load_lm("toy-english")


@pytest.fixture(scope="module")
def tower():
    return load_image_tower("toy")


@pytest.fixture(scope="module")
def pictures():
    return np.stack([toyworld.render(scene) for scene in toyworld.split_scenes("val")[:24]])


@pytest.fixture(scope="module")
def seen(tower, pictures):
    return torch.from_numpy(tower.patches(pictures))


def exchanges(lm, seen, blind=None):
    scenes = toyworld.split_scenes("val")[: len(seen)]
    prompts = [f"\n{grammar.describe('en')}\n"] * len(seen)
    return Exchanges(lm, seen, range(len(seen)), prompts, [grammar.in_order(s, "en")[0] for s in scenes], blind)


def recipe(lm, tower, **options):
    torch.manual_seed(0)
    return MpmChat(lm, tower.width, 36, MpmChatOptions(**(SMALL | options)), tower.model)


@pytest.mark.parametrize("kind", CONNECTORS)
def test_soft_tokens_are_as_long_as_words(kind, lm, tower, seen, pictures):
    table = lm.model.get_input_embeddings().weight
    made = build_connector(kind, tower.width, 36, table, copy.deepcopy(tower.model))
    soft = made(tower.prepare(pictures) if kind == "queries" else seen)
    assert soft.shape == (24, made.queries, lm.width)
    lengths, words = soft.detach().norm(dim=-1), table.norm(dim=-1)
    assert 0.7 * words.mean() < lengths.mean() < 1.3 * words.mean()
    # Scaling what it sees must not make its words louder.
    if kind == "mlp":
        assert torch.allclose(made(3 * seen), soft, atol=1e-3)


def test_the_scale_is_kept_whatever_comes_in(lm):
    like = LikeEmbeddings(lm.model.get_input_embeddings().weight)
    x = torch.randn(5, 7, lm.width)
    assert torch.allclose(like(x), like(100 * x), atol=1e-4)


def test_the_resampler_tells_where_it_looks(lm, tower, seen):
    made = build_connector("resampler", tower.width, 36, lm.model.get_input_embeddings().weight, queries=5)
    looked = made.attention(seen)
    assert looked.shape == (24, 5, 36) and torch.allclose(looked.sum(-1), torch.ones(24, 5), atol=1e-5)
    # What its layer computes is what these weights say: attention by hand gives the same sum.
    layer, (x, patches) = made.layers[0], made._begin(seen)
    q, k, v = layer._asked_and_told(x, patches)
    by_hand = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v
    fused = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert torch.allclose(by_hand, fused, atol=1e-5)


def test_the_order_of_patches_matters_to_the_resampler(lm, tower, seen):
    made = build_connector("resampler", tower.width, 36, lm.model.get_input_embeddings().weight)
    assert not torch.allclose(made(seen), made(seen.flip(1)), atol=1e-2)


def test_errors_say_what_to_do(lm, tower, seen):
    table = lm.model.get_input_embeddings().weight
    with pytest.raises(UserError, match="Unknown connector 'resampled'. Did you mean 'resampler'"):
        build_connector("resampled", 128, 36, table)
    with pytest.raises(UserError, match="give that tower's model"):
        build_connector("queries", 128, 36, table)
    with pytest.raises(UserError, match="take connector='resampler'"):
        build_connector("queries", 128, 36, table, torch.nn.Linear(2, 2))
    with pytest.raises(UserError, match="width=30 is no multiple of heads=4"):
        build_connector("resampler", 128, 36, table, width=30)
    with pytest.raises(UserError, match="made for 36 patches and got 35"):
        build_connector("resampler", 128, 36, table)(seen[:, :35])
    for wrong, says in (
        ({"tuned": "some"}, "Unknown part of the language model"),
        ({"vision": "melted"}, "Unknown way to treat the image tower"),
        ({"vision": "trained"}, "set connector='queries'"),
        ({"steps": 0}, "nothing would learn"),
        ({"thawed": "all", "tuned": "lora"}, "choose one"),
    ):
        with pytest.raises(UserError, match=says):
            recipe(lm, tower, **wrong)
    with pytest.raises(UserError, match="2 pictures, 1 prompts and 1 replies differ"):
        Exchanges(lm, seen, [0, 1], ["a"], ["b"])
    with pytest.raises(UserError, match="gives one vector a picture and no patches"):
        flat = copy.copy(tower)
        flat.has_patches = False
        flat.patches(np.zeros((1, 8, 8, 3), np.uint8))


def test_only_the_replys_tokens_count_and_padding_changes_nothing(lm, tower, seen):
    made, data = recipe(lm, tower).eval(), exchanges(lm, seen)
    batch = data.batch(torch.arange(6))
    assert (batch["reply"] != IGNORE).sum(1).tolist() == [len(data.replies[i]) for i in range(6)]
    one_by_one = [data.batch(torch.tensor([i])) for i in range(6)]
    lengths = torch.tensor([float((b["reply"] != IGNORE).sum()) for b in one_by_one])
    losses = torch.stack([made.loss(b) for b in one_by_one])
    assert torch.allclose(made.loss(batch), (losses * lengths).sum() / lengths.sum(), atol=1e-4)
    # And it is the loss that the language model itself states for the same soft tokens, prompts and replies.
    soft = made.predict({"seen": seen[:6]})["soft"]
    said = [grammar.in_order(s, "en")[0] for s in toyworld.split_scenes("val")[:6]]
    lost, there = lm.losses(lm.read([f"\n{grammar.describe('en')}\n"] * 6, soft), said)
    assert torch.allclose(lost.sum() / there.sum(), made.loss(batch), atol=1e-4)


def test_soft_tokens_that_are_the_caption_have_nothing_to_learn_from_it(lm, tower, seen):
    """Self-distillation is 0 where soft tokens are the caption's own embeddings, and above 0 where they are another's."""
    scenes = toyworld.split_scenes("val")[:2]
    captions = [grammar.in_order(scene, "en")[0] for scene in scenes]
    question = grammar.describe("en")
    echoes = [Echo(caption, question, caption) for caption in captions]
    data = Exchanges(lm, seen, [0, 1], [f"\n{question}\n"] * 2, captions, echoes=echoes)
    recipe = MpmChat(lm, tower.width, seen.shape[1], MpmChatOptions(**SMALL, distil=1.0))
    own, other = (lm.embed(torch.tensor(lm.rows([c])[1])) for c in captions)  # (1, T, D)
    batch = data.batch(torch.tensor([0]))
    assert abs(float(recipe.unlike(batch, own))) < 1e-6 < 0.1 < float(recipe.unlike(batch, other))
    plain = Exchanges(lm, seen, [0, 1], [f"\n{question}\n"] * 2, captions)
    assert "echo" not in plain.batch(torch.tensor([0])) and plain.digest != data.digest
    both = data.batch(torch.tensor([0, 1]))
    with torch.no_grad():
        loss, without = recipe.loss(both), recipe.loss(plain.batch(torch.tensor([0, 1])))
        assert torch.allclose(loss - without, recipe.unlike(both, recipe.see(both["seen"])), atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{"distil": 1.0, "thawed": "all"}, {"soft": "mixture", "thawed": "lora"}, {"soft": "mixture", "tuned": "all"}],
)
def test_a_language_model_that_learns_is_no_teacher_and_its_words_are_not_mixed(lm, tower, seen, options):
    with pytest.raises(UserError, match="frozen"):
        recipe(lm, tower, **options)


def test_a_mixture_lies_between_the_words_it_mixes(lm, tower, seen):
    """Every soft token is a convex combination of embeddings: no coordinate lies outside of what the table spans."""
    table = lm.model.get_input_embeddings().weight
    mixed = build_connector("resampler", tower.width, seen.shape[1], table, soft="mixture", queries=4)
    with torch.no_grad():
        soft = mixed(seen[:6])
    assert soft.shape == (6, 4, lm.width)
    assert (soft <= table.max(dim=0).values + 1e-5).all() and (soft >= table.min(dim=0).values - 1e-5).all()
    assert "table" not in " ".join(mixed.state_dict()), "the table is the language model's, and is not saved again"
    with pytest.raises(UserError, match="kind of soft tokens"):
        build_connector("resampler", tower.width, seen.shape[1], table, soft="mixtures")


def test_an_exchange_without_a_picture_does_not_see_it(lm, tower, seen):
    made, data = recipe(lm, tower).eval(), exchanges(lm, seen, blind=[True] * len(seen))
    batch = data.batch(torch.arange(4))
    other = batch | {"seen": torch.randn_like(batch["seen"])}
    assert torch.allclose(made.loss(batch), made.loss(other), atol=1e-5)
    lost, there = lm.losses(lm.read([f"\n{grammar.describe('en')}\n"] * 4), data_said(4))
    assert torch.allclose(lost.sum() / there.sum(), made.loss(batch), atol=1e-4)


def data_said(n):
    return [grammar.in_order(s, "en")[0] for s in toyworld.split_scenes("val")[:n]]


@pytest.mark.parametrize(
    ("options", "moves", "stays"),
    [
        ({}, ("visual.",), ("decoder.",)),
        ({"connector": "queries"}, ("visual.asks", "visual.project"), ("visual.tower.", "decoder.")),
        ({"connector": "queries", "vision": "trained"}, ("visual.asks", "visual.tower."), ("decoder.",)),
        ({"thawed": "all"}, ("visual.", "decoder."), ()),
        ({"tuned": "lora", "tune_steps": 4}, ("visual.", "lora_"), ("base_layer", "embed_tokens", "lm_head")),
        ({"tuned": "all", "tune_steps": 4, "steps": 0}, ("visual.", "decoder."), ()),
    ],
)
def test_what_a_stage_says_learns_is_what_moves(options, moves, stays, lm, tower, seen, pictures):
    before_lm = {k: v.clone() for k, v in lm.model.state_dict().items()}
    made = recipe(lm, tower, **options)
    inside = options.get("connector") == "queries"
    data = exchanges(lm, tower.prepare(pictures) if inside else seen)
    before = {k: v.clone() for k, v in made.state_dict().items()}
    history = loop.fit(made, data, loop.Plan(progress=False))
    moved = {k for k, v in made.state_dict().items() if not torch.equal(v, before[k])}
    assert len(history.losses) == sum(stage.steps for stage in made.stages())
    for name in moves:
        assert any(name in k for k in moved), name
    for name in stays:
        assert not any(name in k for k in moved), name
    # Nobody else's language model is touched by tuning this one.
    assert all(torch.equal(v, before_lm[k]) for k, v in lm.model.state_dict().items())


def test_a_run_that_was_killed_goes_on_to_the_same_weights(lm, tower, seen, tmp_path, monkeypatch):
    options = {"steps": 8, "tuned": "lora", "tune_steps": 6}
    data = exchanges(lm, seen)
    whole = recipe(lm, tower, **options)
    loop.fit(whole, data, loop.Plan(progress=False))
    for stop in (3, 8, 11):
        torn = recipe(lm, tower, **options)
        plan, calls, loss = loop.Plan(out=tmp_path / str(stop), save_every=2, progress=False), [], torn.loss

        def killed(batch, calls=calls, loss=loss, stop=stop):
            calls.append(1)
            if len(calls) > stop:
                raise KeyboardInterrupt
            return loss(batch)

        torn.loss = killed
        with pytest.raises(KeyboardInterrupt):
            loop.fit(torn, data, plan)
        again = recipe(lm, tower, **options)
        loop.fit(again, data, plan)
        for (name, a), b in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
            assert torch.equal(a, b), (stop, name)


def test_it_learns_from_few_pictures_and_replies_by_what_it_sees(lm, tower, seen):
    made = recipe(lm, tower, steps=150, batch=24, queries=8, width=64)
    history = loop.fit(made, exchanges(lm, seen), loop.Plan(progress=False))
    assert history.losses[-1] < 0.5 * history.losses[0]
    soft = made.predict({"seen": seen})["soft"]
    prompts = [f"\n{grammar.describe('en')}\n"] * 24
    right = [a == b for a, b in zip(lm.generate(prompts, soft, stop="\n"), data_said(24), strict=True)]
    wrong = [a == b for a, b in zip(lm.generate(prompts, soft.roll(1, 0), stop="\n"), data_said(24), strict=True)]
    assert sum(right) > 12 and sum(wrong) < 4
