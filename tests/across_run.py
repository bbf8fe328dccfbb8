"""One process of several that train together; test_distributed.py starts it. `out` gets what each kind of recipe learns in one
update, and in STEPS."""

import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertModel
from worlds import Pairs

from mpm_lite.ops import distributed
from mpm_lite.recipes import Align
from mpm_lite.recipes.dual import Captioned, Dual, DualOptions
from mpm_lite.recipes.mblip import Blip2, Blip2Options
from mpm_lite.recipes.mpm_chat import Exchanges, MpmChat, MpmChatOptions
from mpm_lite.towers.load import load_lm
from mpm_lite.training import loop, sharding

BATCH, STEPS = 8, 20


class Exact:
    """The same data in float64."""

    def __init__(self, data):
        self.data, self.digest = data, data.digest

    def __len__(self):
        return len(self.data)

    def batch(self, indices):
        return {k: v.double() if v.is_floating_point() else v for k, v in self.data.batch(indices).items()}


def align(steps):
    data = Pairs()
    recipe = Align(20, 12, Align.Options(width=8, dropout=0.0, steps=steps, batch=BATCH))
    recipe.prepare(data.images, data.texts)
    return recipe, data


def dual(steps):
    small = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "intermediate_size": 32}
    encoder = BertModel(BertConfig(**small, **off), add_pooling_layer=False)
    options = DualOptions(width=16, layers=2, heads=2, steps=steps, batch=BATCH, bf16=False)
    rng = torch.Generator().manual_seed(0)
    rows = [
        torch.randint(1, 30, (int(n),), generator=rng).tolist() for n in torch.randint(3, 9, (3 * 40,), generator=rng)
    ]
    data = Captioned(
        torch.randn(40, 6, 12, generator=rng), rows[:40], [rows[40 + 2 * k : 42 + 2 * k] for k in range(40)]
    )
    return Dual(12, 6, encoder, options), data


def chat(steps):
    lm, rng = load_lm("toy-multilingual", device="cpu"), torch.Generator().manual_seed(0)
    said = ["a red circle", "two small blue squares stand left of a green star", "ein Kreis", "a star"] * 10
    asked = ["what is there? ", "tell of the picture at length: ", "? "] * 14
    data = Exchanges(lm, torch.randn(40, 6, 12, generator=rng), range(40), asked[:40], said)
    options = MpmChatOptions(queries=3, width=16, layers=1, heads=2, steps=steps, batch=BATCH, bf16=False)
    return MpmChat(lm, 12, 6, options), data


class Contrast(Blip2):
    """ITC alone: ITM and ITG are means over each process's own captions and tokens."""

    def loss(self, batch):
        return self.itc_loss(batch["seen"], batch["ids"])


class Wrong:
    """Pictures with their captions, and two wrong ones for each."""

    digest = "wrong captions"

    def __init__(self):
        rng = torch.Generator().manual_seed(0)
        self.seen, self.ids = torch.randn(40, 6, 12, generator=rng), torch.randint(1, 30, (40, 3, 7), generator=rng)

    def __len__(self):
        return len(self.seen)

    def batch(self, indices):
        return {"seen": self.seen[indices], "ids": self.ids[indices].transpose(0, 1).flatten(0, 1)}


def blip2(steps):
    options = Blip2Options(queries=3, width=16, layers=2, heads=2, steps=steps, batch=BATCH, bf16=False)
    return Contrast(12, 6, 30, options), Wrong()


def learned(kind, steps, parts, shard, out):
    torch.manual_seed(0)
    recipe, data = globals()[kind](steps)
    recipe.double()
    plan = loop.Plan(progress=False, parts=parts, shard=shard, out=out / f"{kind}-{steps}-run", save_every=8)
    grads, collect = {}, sharding.gather_weights

    def collected(objective, home):
        # A sharded recipe learns in a copy: its gradients are looked at when its weights come home.
        grads.update(
            {k: sharding.gather_tensor(p.grad) for k, p in objective.recipe.named_parameters() if p.grad is not None}
        )
        collect(objective, home)

    sharding.gather_weights = collected
    history = loop.fit(recipe, Exact(data), plan, device="cpu")
    found = {f"weight {k}": v for k, v in recipe.state_dict().items() if recipe.trains(k)}
    sharding.gather_weights = collect
    grads.update({k: p.grad for k, p in recipe.named_parameters() if p.grad is not None})
    found |= {f"grad {k}": v for k, v in grads.items()}
    found["losses"] = torch.tensor(history.losses, dtype=torch.float64)
    return {f"{kind} {steps} {k}": v.detach().contiguous().clone() for k, v in found.items()}


def resumed(out):
    """`align` in shards, stopped in step 9 of 12 and gone on: 1 where it ends bit for bit as it does unstopped."""
    ends = []
    for stop, where in ((None, out / "at-once"), (8, out / "stopped"), (None, out / "stopped")):
        torch.manual_seed(0)
        recipe, data = align(12)
        recipe.double()
        data, asked = Exact(data), []

        def batch(indices, plain=data.batch, asked=asked, stop=stop):
            asked.append(1)
            if stop and len(asked) > stop:
                raise InterruptedError
            return plain(indices)

        data.batch = batch
        try:
            loop.fit(recipe, data, loop.Plan(progress=False, shard=True, out=where, save_every=5), device="cpu")
        except InterruptedError:
            continue
        ends.append(recipe.state_dict())
    assert len(ends) == 2
    return torch.tensor(float(all(torch.equal(ends[0][k], ends[1][k]) for k in ends[0])))


def main(in_parts, shard, out, kinds):
    found = {}
    for kind in kinds:
        for steps in (1, STEPS) if in_parts == 1 else (1,):
            found |= learned(kind, steps, in_parts, shard, out)
    if shard and in_parts == 1:
        found["resumed"] = resumed(out)
    if distributed.rank() == 0:
        save_file(found, out / "found.safetensors")
