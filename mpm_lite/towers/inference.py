"""How a pretrained model computes: padding, attention, batches that are too large, 4 and 8 bits, settings for writing.

Rows of tokens of different lengths share a batch; the shorter ones are filled up, and some models take notice of that.
The usual attention kernel is slow or wrong in some places. What does not fit into a GPU's memory is computed in halves,
or refused in one sentence. (Accelerate's find_executable_batch_size would begin the whole work again in smaller pieces.)

Shapes: T tokens of a row.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mpm_lite.core import runtime
from mpm_lite.core.runtime import UserError

# How far states may move when padding is put behind them, as a share of the largest: rounding moves them by less.
ROUNDING = 1e-4


def padding_id(tokenizer: Any) -> int:
    """The token id that fills shorter rows; 0 for a tokenizer without a pad token, since the mask hides it anyway."""
    pad = tokenizer.pad_token_id
    return 0 if pad is None else int(pad)


@torch.inference_mode()
def hides_padding(model: Any, ids: Sequence[int], pad: int, device: torch.device) -> bool:
    """Whether the states of a row of token ids (T) are the same with padding behind it.

    Models that mix neighbouring tokens by convolution, or all of them by a Fourier transform, do not look at the mask.
    """
    row = torch.tensor([list(ids)], device=device)
    padded = torch.nn.functional.pad(row, (0, 3), value=pad)
    mask = torch.nn.functional.pad(torch.ones_like(row), (0, 3))
    alone = model(input_ids=row, attention_mask=torch.ones_like(row)).last_hidden_state
    behind = model(input_ids=padded, attention_mask=mask).last_hidden_state[:, : row.shape[1]]
    return bool((alone - behind).abs().max() <= ROUNDING * alone.abs().max())


def batches(lengths: Sequence[int], size: int, mixed: bool) -> list[list[int]]:
    """The rows of each batch, at most `size`, shorter rows first; rows of equal length keep their order.

    Without `mixed` every batch holds rows of one length, so that none is padded.
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])  # stable, so deterministic
    groups = [order] if mixed else [list(rows) for _, rows in groupby(order, key=lambda i: lengths[i])]
    return [rows[start : start + size] for rows in groups for start in range(0, len(rows), size)]


# All but cuDNN's.
SOUND = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@contextmanager
def chosen(config: Any, device: torch.device) -> Iterator[None]:
    """Makes a transformers model of this configuration use, for the time being, an attention kernel that suits the device.

    On a CPU where a recipe trains in bfloat16 that is not the fused kernel, whose gradient costs more than everything
    else there. On CUDA it is not cuDNN's: prompts are padded to the left, so that under a causal mask the first places
    of a row see nothing, and the gradient of cuDNN's kernel is NaN at times for such rows (H100, torch 2.11; the other
    kernels are right).
    """
    usual = config._attn_implementation
    slow = device.type == "cpu" and torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()
    config._attn_implementation = "eager" if slow and usual == "sdpa" else usual
    try:
        with sdpa_kernel(SOUND) if device.type == "cuda" else nullcontext():
            yield
    finally:
        config._attn_implementation = usual


def in_halves(compute: Callable[[int, int], Any], start: int, stop: int, name: str) -> list[Any]:
    """What `compute(start, stop)` returns: in one piece or, where memory runs out, in as many pieces as it takes, in order.

    Raises UserError where not even one item fits.
    """
    try:
        return [compute(start, stop)]
    except torch.cuda.OutOfMemoryError as error:
        if stop - start < 2:
            raise UserError(
                f"{name}: the GPU's memory holds not even one item: free some (other models, other processes), lower the "
                "batch with MPM_LITE_PRESET=t4 or cpu, or use device='cpu'."
            ) from error
    # This is not inside `except`, where the tensors of the failed attempt would still be alive.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = (start + stop) // 2
    return in_halves(compute, start, middle, name) + in_halves(compute, middle, stop, name)


def in_batches(
    compute: Callable[[slice], Any], total: int, size: int, what: str, name: str, progress: bool
) -> Iterator[Any]:
    """What `compute` returns for each batch of at most `size` items, in order, behind a progress bar; where a GPU's memory runs
    out, for the halves of a batch. `what` the items are and the `name` of what computes are for the bar and the errors."""
    for start in runtime.bar(range(0, total, size), f"{name}: {what} / {size}", progress):
        yield from in_halves(lambda a, b: compute(slice(a, b)), start, min(start + size, total), name)


def frozen(model: torch.nn.Module, device: torch.device, name: str) -> torch.nn.Module:
    """The model on the device, in float32, without gradients and dropout. Raises UserError where it does not fit there, and for
    weights that are no numbers."""
    try:
        found = model.to(device).float().eval().requires_grad_(False)
    except torch.cuda.OutOfMemoryError as error:
        raise too_large(name) from error
    for part, weight in found.named_parameters():
        if not torch.isfinite(weight).all():
            raise UserError(
                f"{name}: its weights {part} hold values that are no numbers; fetch or save that checkpoint again."
            )
    return found


def too_large(name: str) -> UserError:
    """The error for a model that the GPU's memory does not hold."""
    return UserError(f"{name} does not fit in the GPU's memory: load a smaller model, or device='cpu'.")


def options(bits: int | None, device: torch.device) -> dict[str, Any]:
    """The options for `from_pretrained`: none without `bits`. What is not quantised (embeddings, norms, head) is
    float32, so that states go in and come out as they do for any other model.

    Raises UserError, in this order: for other bits, without a CUDA GPU, and without bitsandbytes.
    """
    if bits is None:
        return {}
    if bits not in (4, 8):
        raise UserError(f"bits={bits!r}: a language model is quantised to 4 or 8 bits; leave bits out for float32.")
    if device.type != "cuda":
        advice = "leave bits out, or load a smaller model."
        raise UserError(f"bits={bits} takes a CUDA GPU and the device is {device.type!r}: {advice}")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f"bits={bits} takes bitsandbytes: pip install 'mpm_lite[quant]', or leave bits out.")
    from transformers import BitsAndBytesConfig

    four = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": runtime.compute_dtype(device)}
    config = BitsAndBytesConfig(load_in_8bit=True) if bits == 8 else BitsAndBytesConfig(load_in_4bit=True, **four)
    return {"quantization_config": config, "device_map": {"": device}, "torch_dtype": torch.float32}


class Begin:
    """A logits processor of transformers: the first token that is written, at place `at`, must be one of `ids`; then
    anything goes. transformers' own (SuppressTokensAtBegin) searches the whole vocabulary again for every later token.
    """

    def __init__(self, ids: Sequence[int], at: int) -> None:
        self.ids, self.at = torch.tensor(sorted(set(ids))), at

    def __call__(self, written: Tensor, scores: Tensor) -> Tensor:
        """`written` int64 (N, T) so far; `scores` (N, V) of the next token, where others than `ids` get minus infinity."""
        if written.shape[1] > self.at:
            return scores
        ids = self.ids.to(scores.device)
        return torch.full_like(scores, -torch.inf).index_copy(1, ids, scores[:, ids])


def settings(
    lm: Any, new_tokens: int, cache: bool, ends: Sequence[int], how: str, beams: int, temperature: float, top_p: float
) -> Any:
    """transformers' settings for one way to write: `greedy`, `beam` or `sample`. Raises UserError for impossible numbers."""
    from transformers import GenerationConfig

    if new_tokens < 1:
        raise UserError(f"new_tokens={new_tokens}: ask for one new token or more.")
    if how == "beam" and beams < 1:
        raise UserError(f"beams={beams}: take one beam or more.")
    if how == "sample" and not temperature > 0:
        raise UserError(f"temperature={temperature}: take one above 0, or how='greedy'.")
    if how == "sample" and not 0 < top_p <= 1:
        raise UserError(f"top_p={top_p}: it is a share of the probability, above 0 and up to 1.")
    pad, start = padding_id(lm.tokenizer), getattr(lm.model.config, "decoder_start_token_id", None)
    tokens = {"eos_token_id": list(ends) or None, "pad_token_id": pad, "decoder_start_token_id": start}
    # With top_k left alone, transformers would draw from the 50 likeliest tokens only.
    way = {"num_beams": beams if how == "beam" else 1, "do_sample": how == "sample"}
    way |= {"temperature": temperature, "top_p": top_p, "top_k": 0} if how == "sample" else {}
    return GenerationConfig(max_new_tokens=new_tokens, use_cache=cache, **tokens, **way)


@contextmanager
def unsettled(model: Any) -> Iterator[None]:
    """Around `generate`: leaves out the settings that a checkpoint brings for its own writing.

    transformers uses them wherever `settings` says nothing: a penalty on repetition, or an end-of-text token that the
    tokenizer does not know, would change the text without anybody noticing. (Some versions have `use_model_defaults`
    for this, others do not.)
    """
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def context_of(config: Any) -> int:
    """The most tokens a model was made for; models without a table of positions name no limit and get 2,048."""
    for name in ("max_position_embeddings", "n_positions", "seq_length", "n_ctx"):
        if getattr(config, name, None):
            return int(getattr(config, name))
    return 2048
