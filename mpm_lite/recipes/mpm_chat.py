"""MPM, image to text (VisCPM-Chat): a language model that has read many languages learns to see from English pairs.

Method (2308.12038, section 3.2). The image passes through a visual module, whose learned queries become soft tokens. The
language model reads them in front of the question and replies. *Stage 1, alignment pretraining*: on captions in the pivot
language the visual module learns, and the language model is frozen. *Stage 2, instruction tuning*: on questions and replies
the language model learns too. Both stages minimise the cross-entropy of the reply's tokens and nothing else. No token names a
language: which one to reply in follows from the question.

*Self-distillation* is ours, not the paper's; `distil` = 0 leaves it out. The frozen language model teaches the connector what
it would have said to the English caption. When a description is asked for, in any language that it has read, every next token
should be as probable after the soft tokens as after the caption as text. The two are compared on replies that the language
model wrote itself. No picture and no caption in another language is used.

Shapes: N exchanges, P patches, Q soft tokens, T tokens of the longest prompt, T' of the longest reply, D_in the image
tower's width, D the language model's width.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mpm_lite.core.runtime import UserError, unknown
from mpm_lite.recipes.base import Recipe, Stage, sample_bytes
from mpm_lite.recipes.modules.connectors import build_connector
from mpm_lite.towers.lm import IGNORE, LM

TUNED = ("none", "lora", "all")
VISION = ("frozen", "trained")


@dataclass(frozen=True)
class MpmChatOptions:
    """Every dial of the recipe. The defaults were chosen on English validation captions only."""

    connector: str = "resampler"  # or "mlp"; or "queries" inside the image tower, as in the paper
    vision: str = "frozen"  # or "trained" together with the connector, as in the paper; needs connector="queries"
    queries: int = 16
    width: int = 128  # of the resampler
    layers: int = 2
    heads: int = 4
    soft: str = "free"  # or "mixture": every soft token is a mixture of the language model's word embeddings
    distil: float = 0.0  # weight of self-distillation in stage 1
    steps: int = 1900  # of stage 1; 0 leaves it out
    batch: int = 32
    lr: float = 2e-3
    weight_decay: float = 0.0
    thawed: str = "none"  # what stage 1 trains of the language model: "lora" or "all"; the paper freezes it
    tuned: str = "none"  # what stage 2 trains of the language model: "lora" or "all"; "none" leaves stage 2 out
    rank: int = 8  # of LoRA
    tune_steps: int = 400
    tune_lr: float = 5e-4  # of stage 2, and of the language model wherever it learns
    bf16: bool = False  # matrix products in bfloat16: faster on a processor that has units for them, else slower


class Exchanges:
    """Exchanges as training data: what is seen (features by picture), what is asked and what is replied, as token ids.

    `seen` is (M, P, D_in) features, or (M, 3, S, S) prepared pixels if the image tower is inside the recipe. Exchange k is
    about picture `pictures[k]`, unless `blind[k]`: then no picture stands before its prompt. `echoes` are for
    self-distillation, one for each exchange.
    """

    def __init__(
        self, lm: LM, seen: Tensor, pictures: Sequence[int], prompts: Sequence[str], replies: Sequence[str],
        blind: Sequence[bool] | None = None, echoes: Sequence[Echo] = (),
    ) -> None:  # fmt: skip
        if not len(pictures) == len(prompts) == len(replies):
            raise UserError(f"{len(pictures)} pictures, {len(prompts)} prompts and {len(replies)} replies differ.")
        self.seen, self.pictures = seen, torch.as_tensor(list(pictures), dtype=torch.long)
        self.begins, rows = lm.rows(list(prompts))
        self.prompts = [torch.tensor(row, dtype=torch.long) for row in rows]
        end = lm.tokenizer.eos_token_id
        if end is None:
            raise UserError(
                f"{lm.name} has no end-of-text token to learn where a reply ends: give its tokenizer an eos_token."
            )
        self.replies = [torch.tensor([*row, end]) for row in lm.encode(list(replies), special=False)]
        self.shown = ~torch.tensor(blind if blind is not None else [False] * len(pictures), dtype=torch.bool)
        self.echoes: list[tuple[Tensor, Tensor, Tensor]] = []
        if echoes:
            asked, told = (lm.rows([getattr(e, name) for e in echoes])[1] for name in ("prompt", "told_prompt"))
            rows = lm.encode([e.reply for e in echoes], special=False)
            self.echoes = [
                tuple(torch.tensor(ids, dtype=torch.long) for ids in (a, t, [*row, end]))
                for a, t, row in zip(asked, told, rows, strict=True)
            ]
        said = "\0".join([*prompts, *replies, *(e.told_prompt + e.reply for e in echoes)]).encode()
        told = said + sample_bytes(seen) + self.pictures.numpy().tobytes() + bytes(self.shown)
        self.digest = hashlib.sha256(told).hexdigest()

    def __len__(self) -> int:
        return len(self.pictures)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """`seen` as above; `begins` bool (), whether a beginning-of-text token goes first; `shown` bool (N,); `prompt` int64
        (N, T), of which `there` bool (N, T) are real; `reply` int64 (N, T') with IGNORE behind its end. With echoes also
        `asked`, `told` and `echo`, with -1 behind their ends."""
        chosen = indices.tolist()
        prompt = pad_sequence([self.prompts[i] for i in chosen], batch_first=True, padding_value=-1)
        echoes = zip(*(self.echoes[i] for i in chosen), strict=True) if self.echoes else ()
        padded = [pad_sequence(list(ids), batch_first=True, padding_value=-1) for ids in echoes]
        return dict(zip(("asked", "told", "echo"), padded, strict=False)) | {
            "seen": self.seen[self.pictures[indices]].float(),
            "begins": torch.tensor(self.begins),
            "shown": self.shown[indices],
            "prompt": prompt.clamp(min=0),
            "there": prompt >= 0,
            "reply": pad_sequence([self.replies[i] for i in chosen], batch_first=True, padding_value=IGNORE),
        }


class MpmChat(Recipe):
    """A connector before a language model. It sees features of pictures (N, P, D_in) or pixels, as `Exchanges` gives them."""

    name = "mpm_chat"
    idle = False
    Options = MpmChatOptions

    def __init__(
        self, lm: LM, d_in: int, patches: int, options: MpmChatOptions = MpmChatOptions(),
        tower: nn.Module | None = None,
    ) -> None:  # fmt: skip
        """`tower` is the image tower's own model, which is copied; connector="queries" needs it."""
        super().__init__()
        for part in (options.thawed, options.tuned):
            if part not in TUNED:
                raise unknown("part of the language model to tune", part, TUNED)
        if options.vision not in VISION:
            raise unknown("way to treat the image tower", options.vision, VISION)
        if options.distil and options.thawed != "none":
            raise UserError(
                "The language model that teaches the connector must be frozen: set distil=0 or thawed='none'."
            )
        if options.soft == "mixture" and {options.thawed, options.tuned} != {"none"}:
            raise UserError(
                "soft='mixture' mixes the embeddings of a frozen language model: set thawed and tuned to 'none'."
            )
        if options.vision == "trained" and options.connector != "queries":
            raise UserError("vision='trained' needs the image tower inside the recipe: set connector='queries'.")
        if not options.steps and options.tuned == "none":
            raise UserError("steps=0 leaves stage 1 out and tuned='none' leaves stage 2 out: nothing would learn.")
        learns = {options.thawed, options.tuned} - {"none"}
        if len(learns) > 1:
            raise UserError("thawed='lora' and tuned='all' (or the other way round) do not go together: choose one.")
        self.options, self.d_in = options, d_in
        self.lm = copy_lm(lm) if learns else lm
        table = lm.model.get_input_embeddings().weight
        sizes = {"queries": options.queries}
        if options.connector == "resampler":
            sizes |= {"width": options.width, "layers": options.layers, "heads": options.heads}
        self.visual = build_connector(
            options.connector, d_in, patches, table, copy.deepcopy(tower), options.soft, **sizes
        )
        if "lora" in learns:
            add_lora(self.lm.model, options.rank)
        self.decoder = self.lm.model

    def stages(self) -> list[Stage]:
        o = self.options
        outside_tower = ("visual.asks", "visual.project", "visual.like")
        visual = outside_tower if o.connector == "queries" and o.vision == "frozen" else ("visual",)
        still = ("image tower",) if o.vision == "frozen" else ()
        aim, how, found = "cross-entropy of the reply's tokens", {"clip": 1.0, "beta2": 0.98}, []
        if o.steps:
            learns, frozen = self._of_lm(o.thawed)
            slower = tuple((part, o.tune_lr / o.lr) for part in learns)
            found.append(Stage.of(o, "alignment", (*visual, *learns), (*still, *frozen), aim, faster=slower, **how))
        if o.tuned != "none":
            learns, frozen = self._of_lm(o.tuned)
            how |= {"steps": o.tune_steps, "lr": o.tune_lr}
            found.append(Stage.of(o, "instruction tuning", (*visual, *learns), (*still, *frozen), aim, **how))
        return found

    def _of_lm(self, tuned: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The parts of the language model that learn, and those that stay as they came."""
        if tuned == "all":
            return ("decoder",), ()
        if tuned == "lora":
            return tuple(lora_parts(self)), ("language model but its LoRA",)
        return (), ("language model",)

    def see(self, seen: Tensor) -> Tensor:
        """Features (N, P, D_in) or pixels (N, 3, S, S) -> soft tokens (N, Q, D)."""
        return self.visual(seen)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        with torch.autocast(batch["seen"].device.type, torch.bfloat16, enabled=self.options.bf16):
            soft = self.see(batch["seen"])
            context = self.lm.place(bool(batch["begins"]), batch["prompt"], batch["there"], soft, batch["shown"])
            loss = self.lm.mean_loss(context, batch["reply"])
            return loss + self.options.distil * self.unlike(batch, soft) if "echo" in batch else loss

    def unlike(self, batch: dict[str, Tensor], soft: Tensor) -> Tensor:
        """Self-distillation: the KL divergence between the next tokens after the soft tokens (N, Q, D) and those after the caption
        as text, summed over the tokens of the echoes. In nats per token of the replies, by which parts of a batch are weighted."""
        begins, echo = bool(batch["begins"]), batch["echo"]
        there = echo >= 0  # (N, T')
        seeing, reading = (
            self.lm.place(begins, batch[name].clamp(min=0), batch[name] >= 0, before)
            for name, before in (("asked", soft), ("told", None))
        )
        with torch.no_grad():
            teacher = self.lm.next_tokens(reading, echo.clamp(min=0), there)[there]  # (tokens, V)
        student = self.lm.next_tokens(seeing, echo.clamp(min=0), there)[there]
        return F.kl_div(student, teacher, reduction="sum", log_target=True) / max(1.0, self.weight(batch))

    def weight(self, batch: dict[str, Tensor]) -> float:
        """The number of tokens in the replies."""
        return float((batch["reply"] != IGNORE).sum())

    def predict(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """{"seen": features or pixels} -> {"soft": (N, Q, D)}."""
        return {"soft": self.see(inputs["seen"].float())}


@dataclass(frozen=True)
class Echo:
    """For self-distillation: an English caption, a question in any language, and the language model's reply to both."""

    told: str
    question: str
    reply: str

    @property
    def prompt(self) -> str:
        """The text after the soft tokens."""
        return f"\n{self.question}\n"

    @property
    def told_prompt(self) -> str:
        """The text that the teacher reads, with the caption in place of the soft tokens."""
        return f"{self.told}\n{self.question}\n"


def copy_lm(lm: LM) -> LM:
    """A copy of a language model with weights of its own, so that tuning does not change anyone else's."""
    mine = copy.copy(lm)
    mine.model = copy.deepcopy(lm.model)
    mine.head = mine.model.get_output_embeddings()
    return mine


def add_lora(model: Any, rank: int) -> None:
    """Put LoRA on every linear layer of a language model but its head, in place (peft)."""
    from peft import LoraConfig, inject_adapter_in_model

    head = model.get_output_embeddings()
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head]
    names = sorted({name.rsplit(".", 1)[-1] for name in layers})
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names), model)


def lora_parts(recipe: nn.Module) -> list[str]:
    """The names of the LoRA matrices in a recipe."""
    return [name for name, _ in recipe.named_modules() if name.rsplit(".", 1)[-1] in ("lora_A", "lora_B")]
