"""Language models in 4 or 8 bits, through transformers and bitsandbytes, where there is a GPU for it."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from mpm_lite import runtime

BITS = (4, 8)


def options(bits: int | None, device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` is told: nothing without `bits`. What is not quantised (embeddings, norms, head) is float32,
    so that states go in and come out as of any other model.

    Raises UserError, in this order, for other bits, without a CUDA GPU, and without bitsandbytes.
    """
    if bits is None:
        return {}
    if bits not in BITS:
        raise runtime.UserError(
            f"bits={bits!r}: a language model is quantised to 4 or 8 bits; leave bits out for float32."
        )
    if device.type != "cuda":
        raise runtime.UserError(
            f"bits={bits} takes a CUDA GPU and the device is {device.type!r}: leave bits out, or load a smaller model."
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise runtime.UserError(f"bits={bits} takes bitsandbytes: pip install 'mpm_lite[quant]', or leave bits out.")
    from transformers import BitsAndBytesConfig

    if bits == 8:
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=runtime.compute_dtype(device)
        )
    return {"quantization_config": config, "device_map": {"": device}, "torch_dtype": torch.float32}
