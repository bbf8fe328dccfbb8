"""Language models behind one face: read a prompt (and soft tokens), score a continuation, write one, choose one.

The small models of the toy world are checkpoints like any other: they load as any causal transformers model does, or
any encoder-decoder such as mT0, from a folder or the hub. An encoder-decoder has the same face: its encoder reads the
prompt, its decoder writes the answer.

Shapes: N prompts, T tokens of the longest one, P soft tokens, D the model's width, V its vocabulary, L its layers.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpm_lite import ops
from mpm_lite.core import runtime
from mpm_lite.core.runtime import UserError
from mpm_lite.towers import inference
from mpm_lite.towers.feature_cache import Fingerprinted
from mpm_lite.towers.inference import Begin, context_of, frozen, in_batches, settings, unsettled
from mpm_lite.towers.text import check_texts, check_vocabulary, mask_of, padded

IGNORE = -100
WAYS = ("greedy", "beam", "sample")


@dataclass
class Context:
    """What a model reads before it writes: embeddings (N, T, D), soft tokens among them, and their mask (N, T)."""

    embeds: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.mask)


class LM(Fingerprinted):
    """A causal language model. `EncoderDecoder` is the other kind; a recipe need not know which one it has.

    Members beside the methods: name, width (D), vocabulary (V), context (the most tokens it reads and writes together),
    languages (BCP 47 codes it was trained on, empty where nobody says), fingerprint (SHA-256 of weights and code),
    model (the transformers module), tokenizer.
    """

    kind = "causal"
    given = 0  # how many tokens stand at the beginning of a written row that the model did not write

    def __init__(
        self, name: str, model: Any, tokenizer: Any, fingerprint: str, device: torch.device,
        languages: frozenset[str] = frozenset(),
    ) -> None:  # fmt: skip
        self.name, self.languages = name, languages
        # A quantised model is on its device already, and its weights are no floats that could be widened.
        self.quantised = bool(getattr(model, "is_quantized", False))
        self.model = model.eval().requires_grad_(False) if self.quantised else frozen(model, device, name)
        self.loaded_as(fingerprint)
        self.tokenizer = tokenizer
        self.vocabulary, self.width = model.get_input_embeddings().weight.shape
        check_vocabulary(name, model, tokenizer)
        self.context = context_of(model.config)
        self.batch = runtime.preset(device).text_batch
        self.head = model.get_output_embeddings()  # its weight (V, D)
        self._knows_places = "position_ids" in inspect.signature(model.base_model.forward).parameters
        self._plain = self._head_is_plain()

    @property
    def device(self) -> torch.device:
        """Where the model is now: a recipe that learns takes it along."""
        return self.model.get_input_embeddings().weight.device

    # text and tokens

    def encode(self, texts: Sequence[str], special: bool = True) -> list[list[int]]:
        """Token ids of each text; with `special`, between the special tokens that the tokenizer puts around a text."""
        texts = check_texts(texts, "A language model", empty=True)
        if not texts:
            return []
        return self.tokenizer(texts, add_special_tokens=special, return_token_type_ids=False)["input_ids"]

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """The text of each row of ids, without special tokens."""
        said = self.tokenizer.batch_decode([list(row) for row in ids], skip_special_tokens=True)
        return [text.replace("\n ", "\n").strip() for text in said]

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids int64 (..., T) -> embeddings (..., T, D)."""
        return self.model.get_input_embeddings()(ids.to(self.device))

    def rows(self, prompts: Sequence[str]) -> tuple[bool, list[list[int]]]:
        """Whether a beginning-of-text token goes before the prompts, and the prompts as token ids, without that token."""
        rows = self.encode(prompts)
        begin = self.tokenizer.bos_token_id
        if begin is not None and all(row[:1] == [begin] for row in rows):
            return True, [row[1:] for row in rows]
        # An empty prompt still needs something to read.
        something = [one for one in (begin, self.tokenizer.eos_token_id) if one is not None][:1]
        if not something and not all(rows):
            raise UserError(
                f"{self.name} cannot read an empty prompt, because its tokenizer has no token that begins or ends a text: "
                "give every prompt some words."
            )
        return False, [row or something for row in rows]

    def read(self, prompts: Sequence[str], soft: Tensor | None = None) -> Context:
        """The prompts as a context. Soft tokens (N, P, D), if there are any, stand before each prompt, after the
        beginning-of-text token.

        Raises UserError for soft tokens of another shape, and for more tokens than the model can take.
        """
        begins, rows = self.rows(prompts)
        if soft is not None and (soft.ndim != 3 or len(soft) != len(rows) or soft.shape[-1] != self.width):
            raise UserError(f"{self.name} takes soft tokens ({len(rows)}, P, {self.width}); got {tuple(soft.shape)}.")
        context = self.place(begins, padded(rows), mask_of(rows), soft)
        self._fits(context.embeds.shape[1], 0)
        return context

    def place(
        self, begins: bool, ids: Tensor, there: Tensor, soft: Tensor | None = None, shown: Tensor | None = None
    ) -> Context:
        """Everything in its place: the beginning-of-text token, soft tokens (N, P, D), and the tokens of a prompt.

        `ids` are int64 (N, T), of which `there` (N, T) are real. `shown` bool (N,) says which rows' soft tokens are
        read; None means all.
        """
        embeds, mask = self.embed(ids), there.to(self.device)
        if soft is not None:
            seen = mask.new_ones(len(ids)) if shown is None else shown.to(self.device)
            embeds = torch.cat([soft.to(embeds), embeds], dim=1)
            mask = torch.cat([seen[:, None].expand(-1, soft.shape[1]), mask], dim=1)
        if begins:
            first = self.embed(ids.new_full((len(ids), 1), self.tokenizer.bos_token_id))
            embeds, mask = torch.cat([first, embeds], dim=1), torch.cat([mask.new_ones(len(ids), 1), mask], dim=1)
        # Padding goes to the very left: some models count the distance of two tokens over everything between them.
        order = mask.long().argsort(dim=1, stable=True)
        return Context(embeds.gather(1, order[..., None].expand_as(embeds)), mask.gather(1, order))

    def _fits(self, read: int, write: int) -> None:
        if read + write > self.context:
            raise UserError(
                f"{self.name} holds {self.context} tokens, and {read} to read with {write} to write are more: "
                "shorten the prompt or ask for fewer new tokens."
            )

    def _targets(self, continuations: Sequence[str], end: bool) -> list[list[int]]:
        rows = self.encode(continuations, special=False)
        if not end:
            return rows
        last = self.tokenizer.eos_token_id
        if last is None:
            raise UserError(
                f"{self.name} cannot score the end of a text, because its tokenizer has no end-of-text token: pass end=False."
            )
        return [row + [last] for row in rows]

    # scoring

    def losses(self, context: Context, continuations: Sequence[str], end: bool = True) -> tuple[Tensor, Tensor]:
        """Cross-entropy of every token of the continuations, (N, T') in nats, 0 after the end of a row; and their mask.
        With `end` the end-of-text token counts too; raises UserError where the tokenizer has none. Gradients reach the
        soft tokens of the context, and the model where it may learn."""
        # There is one column at least, even where all continuations are empty.
        rows = [row or [IGNORE] for row in self._targets(continuations, end)]
        labels = padded(rows, IGNORE).to(self.device)
        return self._losses(context, labels, "none").view_as(labels), labels != IGNORE

    def mean_loss(self, context: Context, labels: Tensor) -> Tensor:
        """The mean cross-entropy, (), of the tokens of continuations: ids int64 (N, T'), IGNORE after the end of a row."""
        return self._losses(context, labels, "mean")

    def _losses(self, context: Context, labels: Tensor, reduction: str) -> Tensor:
        there = labels != IGNORE
        states = self._states_before(context, labels.clamp(min=0), there)  # (N, T', D), or (N, T', V) logits
        flat = labels.flatten()
        # The loss is taken in float32 even where a recipe computes states in bfloat16.
        with torch.autocast(self.device.type, enabled=False):
            x = runtime.in_full_precision(states.flatten(0, 1))
            if self._plain:
                weight, bias = self.head.weight, getattr(self.head, "bias", None)
                return ops.linear_cross_entropy(x, weight, flat, bias, reduction=reduction, check=False)
            return torch.nn.functional.cross_entropy(x, flat, reduction=reduction)

    def next_tokens(self, context: Context, ids: Tensor, there: Tensor) -> Tensor:
        """The distribution from which each token of continuations is drawn, as log-probabilities (N, T', V), float32.
        `ids` are int64 (N, T'), of which `there` bool (N, T') are real."""
        out = self._states_before(context, ids, there)
        return runtime.in_full_precision(self.head(out) if self._plain else out).log_softmax(dim=-1)

    def _states_before(self, context: Context, ids: Tensor, there: Tensor) -> Tensor:
        """For every token of the continuations, the state that predicts it, (N, T', D), or its logits (N, T', V)."""
        self._fits(context.embeds.shape[1], ids.shape[1])
        embeds = torch.cat([context.embeds, self.embed(ids)], dim=1)
        mask = torch.cat([context.mask, there], dim=1)
        inputs = self._inputs(embeds, mask)
        with inference.chosen(self.model.config, self.device):
            out = self.model.base_model(**inputs).last_hidden_state if self._plain else self.model(**inputs).logits
        first = context.embeds.shape[1] - 1
        return out[:, first : first + ids.shape[1]]

    def _inputs(self, embeds: Tensor, mask: Tensor) -> dict[str, Any]:
        """The arguments of the model for (N, T, D) and (N, T). Positions are counted over real tokens only."""
        places = {"position_ids": (mask.long().cumsum(1) - 1).clamp(min=0)} if self._knows_places else {}
        return {"inputs_embeds": embeds, "attention_mask": mask.long(), "use_cache": False, **places}

    @torch.no_grad()
    def _head_is_plain(self) -> bool:
        """Whether the logits are nothing but the head's product with the last states, so that they need not be built."""
        ids = torch.arange(3, 6, device=self.device)[None] % self.vocabulary
        states = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        return torch.allclose(self.head(states), self.model(input_ids=ids, use_cache=False).logits, atol=1e-4)

    def log_likelihood(
        self, prompts: Sequence[str], continuations: Sequence[str], soft: Tensor | None = None, end: bool = True
    ) -> np.ndarray:
        """log p(continuation | prompt) in nats, float64 (N,). `soft` as in `read`, `end` as in `losses`."""
        if len(prompts) != len(continuations):
            raise UserError(f"{len(prompts)} prompts and {len(continuations)} continuations do not pair up.")

        def told(place: slice) -> np.ndarray:
            context = self.read(prompts[place], None if soft is None else soft[place])
            return -self.losses(context, continuations[place], end)[0].sum(1).double().cpu().numpy()

        with torch.inference_mode():
            return np.concatenate([np.zeros(0), *self._parts(told, len(prompts))])

    def choose(
        self, prompts: Sequence[str], options: Sequence[Sequence[str]], soft: Tensor | None = None, end: bool = True
    ) -> list[int]:
        """Constrained choice: for each prompt the number of the likeliest of its options, each of which ends there.

        Without `end` an option may go on, so that an option with which another one begins is never less likely than that.
        """
        if len(prompts) != len(options):
            raise UserError(f"{len(prompts)} prompts and options for {len(options)} do not pair up.")
        if any(not few for few in options):
            raise UserError("A choice needs at least one option for every prompt.")
        of = [i for i, few in enumerate(options) for _ in few]
        flat = [one for few in options for one in few]
        scores = self.log_likelihood([prompts[i] for i in of], flat, None if soft is None else soft[of], end)
        if np.isnan(scores).any():
            raise UserError("The likelihoods of some options are no numbers (NaN): look at the soft tokens.")
        starts = np.cumsum([0, *(len(few) for few in options)])
        return [int(scores[start : start + len(few)].argmax()) for start, few in zip(starts, options, strict=False)]

    # writing

    def generate(
        self, prompts: Sequence[str], soft: Tensor | None = None, new_tokens: int = 48, how: str = "greedy",
        beams: int = 4, temperature: float = 1.0, top_p: float = 1.0, seed: int = 0, stop: str | None = None,
        begin: Sequence[str] = (), cache: bool = True, progress: bool = False,
    ) -> list[str]:  # fmt: skip
        """A continuation of each prompt: `greedy`, `beam` (beams) or `sample` (temperature, top_p, seed).

        It ends at the tokenizer's end-of-text token, if it has one, before `stop` (one token, such as a line break), or
        after `new_tokens`, and starts with the first token of one of `begin`, if any. Without `cache` the same text
        comes more slowly. Settings that a checkpoint brings for its own writing, such as a penalty on repetition, are
        not followed. Raises UserError for another way, and where prompt and continuation exceed the model's context.
        """
        if how not in WAYS:
            raise runtime.unknown("way to generate", how, WAYS)
        ends = self._ends(stop)
        config = settings(self, new_tokens, cache, ends, how, beams, temperature, top_p)
        first = [row[0] for row in self.encode(list(begin), special=False) if row]
        processors = [Begin(first, at=self.given)] if first else None

        def written(place: slice) -> list[str]:
            context = self.read(prompts[place], None if soft is None else soft[place])
            self._fits(context.embeds.shape[1] if self.kind == "causal" else 0, new_tokens)
            with warnings.catch_warnings(), inference.chosen(self.model.config, self.device), unsettled(self.model):
                warnings.simplefilter("ignore")
                read = {"inputs_embeds": context.embeds, "attention_mask": context.mask.long()}
                ids = self.model.generate(**read, generation_config=config, logits_processor=processors)
            rows = ids[:, self.given :].tolist()
            return self.decode([list(takewhile(lambda one: one not in ends, row)) for row in rows])

        # This is not inference_mode, since some models keep buffers that later calls must be able to change.
        with torch.no_grad(), torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            return [text for part in self._parts(written, len(prompts), progress) for text in part]

    def _ends(self, stop: str | None) -> list[int]:
        """The token ids at which writing ends: the tokenizer's end-of-text token, if it has one, and `stop`, if it is given.

        Raises UserError for a stop of more than one token.
        """
        last = self.tokenizer.eos_token_id
        ids = [] if stop is None else self.encode([stop], special=False)[0]
        if stop is not None and len(ids) != 1:
            raise UserError(f"{self.name} writes {stop!r} as {len(ids)} tokens: stop takes a text of one.")
        return ids if last is None else [last, *ids]

    def _parts(self, compute: Callable[[slice], Any], n: int, progress: bool = False) -> Iterator[Any]:
        return in_batches(compute, n, self.batch, "prompts", self.name, progress)

    # looking inside

    def layer_states(self, texts: Sequence[str]) -> np.ndarray:
        """Sentence vectors after every layer, the embeddings first: means over a text's tokens, float32 (L + 1, N, D)."""

        def layers(place: slice) -> np.ndarray:
            context = self.read(texts[place])
            weight = context.mask[..., None] / context.mask.sum(1)[:, None, None]  # (N, T, 1)
            return torch.stack([(states * weight).sum(1) for states in self.all_layers(context)]).cpu().numpy()

        none = np.zeros((self.model.config.num_hidden_layers + 1, 0, self.width), dtype=np.float32)
        with torch.inference_mode():
            return np.concatenate([none, *self._parts(layers, len(texts))], axis=1).astype(np.float32)

    def all_layers(self, context: Context) -> tuple[Tensor, ...]:
        """The states after every layer, the embeddings first, each (N, T, D)."""
        inputs = self._inputs(context.embeds, context.mask)
        return self.model.base_model(**inputs, output_hidden_states=True).hidden_states


class EncoderDecoder(LM):
    """A model whose encoder reads and whose decoder writes, such as mT0: soft tokens go before the encoder's input."""

    kind = "encoder-decoder"
    given = 1  # the decoder's start token, which in some models is the end-of-text token

    def __init__(self, name: str, model: Any, *args: Any, **options: Any) -> None:
        """Raises UserError for a model whose configuration does not say with which token its decoder starts."""
        if getattr(model.config, "decoder_start_token_id", None) is None:
            raise UserError(
                f"{name} does not load: its config.json names no decoder_start_token_id; set it to the one of its kind "
                "(T5 and mT5 start with the pad token)."
            )
        super().__init__(name, model, *args, **options)

    def _head_is_plain(self) -> bool:
        """Encoder-decoders never count as plain: some of them scale their states before the head."""
        return False

    def _fits(self, read: int, write: int) -> None:
        if max(read, write) > self.context:
            raise UserError(
                f"{self.name} holds {self.context} tokens a side: {read} to read or {write} to write are more."
            )

    def _states_before(self, context: Context, ids: Tensor, there: Tensor) -> Tensor:
        start = ids.new_full((len(ids), 1), self.model.config.decoder_start_token_id)
        read = torch.cat([start, ids[:, :-1]], dim=1)
        self._fits(context.embeds.shape[1], ids.shape[1])
        return self.model(
            inputs_embeds=context.embeds, attention_mask=context.mask.long(), decoder_input_ids=read, use_cache=False
        ).logits

    def all_layers(self, context: Context) -> tuple[Tensor, ...]:
        """The encoder's states after every layer, the embeddings first, each (N, T, D)."""
        encoder = self.model.get_encoder()
        mask = context.mask.long()
        return encoder(inputs_embeds=context.embeds, attention_mask=mask, output_hidden_states=True).hidden_states
