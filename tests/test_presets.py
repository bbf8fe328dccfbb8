"""Memory estimates against what the allocator hands out, and presets that fit their cards by them."""

import json

import pandas as pd
import pytest
import torch
from accelerate import Accelerator

from mpm_lite import UserError, ops
from mpm_lite.cli import main
from mpm_lite.core import runtime
from mpm_lite.recipes.align import Align, AlignOptions
from mpm_lite.recipes.mpm_chat import Exchanges, MpmChat, MpmChatOptions
from mpm_lite.towers.load import load_lm
from mpm_lite.training import cost, gradcache, loop, presets

ROUGH, WORDS = 0.20, 24


def most_allocated(step, tmp_path):
    """The most bytes that were handed out and not given back while `step()` ran, by the profiler's trace of the allocator."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as seen:
        step()
    seen.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    changes = sorted((e["ts"], n, e["args"]["Bytes"]) for n, e in enumerate(events) if e["name"] == "[memory]")
    now = most = 0
    for _, _, change in changes:
        now += change
        most = max(most, now)
    assert changes
    return most


def held(tensors):
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def measured(recipe, batch_of, n, k, tmp_path):
    """Peak of the second update as `fit` makes it: what is held all the time, and the most beside it."""
    learning = loop.freeze_all_but(recipe, recipe.stages()[0].learns)
    optimizer = torch.optim.AdamW(learning, fused=True)
    accelerator = Accelerator(cpu=True)
    model = gradcache.Objective(recipe)
    recipe.train()

    class Data:
        def batch(self, few):
            return batch_of(len(few))

    def step():
        optimizer.zero_grad(set_to_none=True)
        batches = gradcache.share_batch(Data(), torch.arange(n), k, torch.device("cpu"))
        gradcache.backward(accelerator, model, recipe, batches)
        optimizer.step()

    step()
    optimizer.zero_grad(set_to_none=True)
    moments = [v for of in optimizer.state.values() for v in of.values()]
    return held([*recipe.parameters(), *recipe.buffers(), *moments]) + most_allocated(step, tmp_path)


def near(estimate, truth, within=ROUGH):
    assert abs(estimate - truth) <= within * truth, (
        f"estimated {estimate:,}, measured {truth:,}: {estimate / truth:.3f}"
    )


def align(batch):
    return Align(768, 384, AlignOptions(batch=batch)), lambda n: {
        "image": torch.randn(n, 768),
        "text": torch.randn(n, 384),
    }


@pytest.fixture(scope="module")
def chat():
    torch.manual_seed(0)
    lm = load_lm("toy-multilingual", device="cpu")
    recipe = MpmChat(lm, 96, 36, MpmChatOptions(batch=32))
    said = "a red circle above a blue square and a green star"
    data = Exchanges(lm, torch.randn(64, 36, 96), range(64), [f"\n{said}\n"] * 64, [said] * 64)
    return recipe, lambda n: data.batch(torch.arange(n))


@pytest.mark.parametrize("batch, k", [(256, 1), (2048, 1), (2048, 4)])
def test_align_takes_what_is_estimated(batch, k, tmp_path):
    recipe, batch_of = align(batch)
    near(cost.of_recipe(recipe, batch_of, batch, k).total, measured(recipe, batch_of, batch, k, tmp_path))


@pytest.mark.parametrize("batch", [16, 64])
def test_mpm_chat_takes_what_is_estimated(chat, batch, tmp_path):
    recipe, batch_of = chat
    near(cost.of_recipe(recipe, batch_of, batch).total, measured(recipe, batch_of, batch, 1, tmp_path))


def test_parts_lower_the_peak_by_what_is_estimated(chat, tmp_path):
    recipe, batch_of = chat
    peaks = [measured(recipe, batch_of, 64, k, tmp_path) for k in (1, 4)]
    told = [cost.of_recipe(recipe, batch_of, 64, k).total for k in (1, 4)]
    near(told[0] - told[1], peaks[0] - peaks[1], 0.3)


def tiny(layers=6):
    from transformers import Qwen2Config

    return Qwen2Config(
        hidden_size=128, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2, intermediate_size=344,
        vocab_size=512, tie_word_embeddings=True, max_position_embeddings=256,
    )  # fmt: skip


@pytest.mark.parametrize("learns", cost.LEARNS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_six_layers_take_what_one_and_two_promise(learns, dtype, tmp_path):
    from transformers import AutoModelForCausalLM

    from mpm_lite.recipes.mpm_chat import add_lora

    rows, config = 16, tiny()
    estimate = cost.of_lm(config, rows * WORDS, dtype, learns, bits=32, machine="cpu")
    model = AutoModelForCausalLM.from_config(config).train()
    if learns == "lora":
        add_lora(model, 8)
    learning = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(learns == "all" or "lora_" in name)
        learning += [parameter] if parameter.requires_grad else []
    optimizer = torch.optim.AdamW(learning or [torch.zeros(1, requires_grad=True)], fused=True)
    labels = torch.randint(512, (rows * WORDS,))
    mask = torch.ones(rows, WORDS, dtype=torch.long)
    mask[0, 0] = 0

    def step():
        embeds = torch.randn(rows, WORDS, 128, requires_grad=True)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            states = model.base_model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).last_hidden_state
        head = model.get_output_embeddings().weight
        ops.linear_cross_entropy(states.flatten(0, 1).float(), head, labels, check=False).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    moments = [v for of in optimizer.state.values() for v in of.values()]
    near(estimate.total, held([*model.parameters(), *model.buffers(), *moments]) + most_allocated(step, tmp_path))


def test_a_language_model_is_counted_as_it_would_be_built():
    from transformers import AutoModelForCausalLM

    shape = cost.shape_of(tiny(), torch.bfloat16, "all", 32)
    model = AutoModelForCausalLM.from_config(tiny())
    assert shape.parameters == shape.learning == sum(p.numel() for p in model.parameters())
    near(shape.copies, 2 * shape.linear, 0.01)  # each layer's matrices once more, in two bytes
    kinds = {bits: cost.of_lm(tiny(), 64, torch.bfloat16, bits=bits, machine="t4") for bits in cost.BITS}
    assert [kinds[b].weights for b in cost.BITS] == sorted(kinds[b].weights for b in cost.BITS)
    with pytest.raises(UserError, match="lora"):
        cost.of_lm(tiny(), 64, torch.float32, "lara")
    with pytest.raises(UserError, match="32"):
        cost.of_lm(tiny(), 64, torch.float32, bits=3)


def test_more_examples_take_more(chat):
    for recipe, batch_of in (align(256), chat):
        told = [cost.of_recipe(recipe, batch_of, n).total for n in (8, 16, 64, 512)]
        assert told == sorted(set(told))
    for preset in presets.PRESETS.values():
        told = [presets.estimate_chat(preset, n, 1).total for n in (8, 16, 64, 512)]
        assert told == sorted(set(told))


def test_measuring_leaves_a_recipe_as_it_was(chat):
    recipe, batch_of = chat
    recipe.eval()
    before = [(p.requires_grad, p.grad) for p in recipe.parameters()]
    state = torch.get_rng_state()
    cost.of_recipe(recipe, batch_of, 16)
    assert before == [(p.requires_grad, p.grad) for p in recipe.parameters()] and not recipe.decoder.training
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(UserError, match="alignment"):
        cost.of_recipe(recipe, batch_of, 16, stage="aligment")


@pytest.mark.parametrize("name", presets.PRESETS)
def test_presets_fit_their_cards(name):
    preset = presets.find_preset(name)
    assert presets.fits(name) and preset.batch % preset.parts == 0
    room = 0.85 * preset.card_gib * 2**30
    found = presets.parts_for(round(room), preset.batch, lambda k: presets.estimate_chat(preset, parts=k))
    assert preset.parts == found, "the smallest number of parts that fits"


def test_what_does_not_fit_is_said():
    with pytest.raises(UserError, match="smaller model"):
        presets.parts_for(2**30, 8, lambda k: presets.estimate_chat(presets.PRESETS["h200"], 8, k))
    with pytest.raises(UserError, match="'h200'"):
        presets.find_preset("h20")


def test_the_committed_counts_are_what_is_counted():
    for name in ("cpu", "t4"):
        assert presets.counted(presets.PRESETS[name]) == presets.count(presets.PRESETS[name])
    for preset in presets.PRESETS.values():
        assert presets.counted(preset).lm.parameters > 0


@pytest.mark.parametrize(
    "gib, name", [(14.7, "t4"), (16, "t4"), (22, "l4"), (24, "l4"), (39.5, "a100"), (80, "a100"), (139.8, "h200")]
)
def test_a_preset_is_chosen_by_memory(gib, name, monkeypatch):
    class Card:
        total_memory = round(gib * 2**30)

    monkeypatch.delenv("MPM_LITE_PRESET", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda on: Card)
    assert runtime.preset(torch.device("cuda")).name == name
    assert presets.find_preset(name).card_gib <= gib + 1
    monkeypatch.setenv("MPM_LITE_PRESET", "big")
    assert runtime.preset() == runtime.PRESETS["a100"] and presets.find_preset("big").name == "a100"


def test_the_table_says_what_is_estimated_and_what_measured(monkeypatch, tmp_path):
    told = presets.build_preset_table()
    assert list(told["preset"]) == ["cpu", "t4", "l4", "a100", "h200"]
    assert all("estimated" in c for c in told.columns if c.startswith(("GiB, ", "minutes")))
    assert (told["GiB, estimated"] <= 0.85 * told["GiB of card"]).all()
    (tmp_path / "seen.csv").write_text("preset,gib,minutes\nt4,9.5,61\n")
    real = runtime.asset
    monkeypatch.setattr(
        runtime, "asset", lambda name="": tmp_path / "seen.csv" if name == presets.MEASURED else real(name)
    )
    assert presets.build_preset_table().set_index("preset")["measured"]["t4"] == "9.5 GiB, 61 min"
    monkeypatch.setattr(presets, "MEASURED", "bench/nothing.csv")
    monkeypatch.setattr(runtime, "asset", real)
    assert set(presets.build_preset_table()["measured"]) == {"not measured"}


def test_the_command_is_readable_and_the_doctor_names_the_preset(capsys):
    assert main(["presets"]) == 0
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines())) <= 100 and "Qwen/Qwen2.5-7B" in told and "est. GiB" in told
    assert main(["doctor"]) == 0
    assert "takes an estimated" in capsys.readouterr().out
    assert isinstance(presets.build_preset_table(), pd.DataFrame)
