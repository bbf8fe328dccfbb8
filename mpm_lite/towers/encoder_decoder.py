"""Language models of two halves, such as mT0: what an encoder reads, a decoder answers. The same face as `towers/lm.py`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mpm_lite import runtime
from mpm_lite.towers.lm import LM, Context


class EncoderDecoder(LM):
    """A model whose encoder reads and whose decoder writes, such as mT0: soft tokens go before the encoder's input."""

    kind = "encoder-decoder"
    given = 1  # the decoder's start token, which in some models is the end-of-text token

    def __init__(self, name: str, model: Any, *args: Any, **options: Any) -> None:
        """Raises UserError for a model whose configuration does not say with which token its decoder starts."""
        if getattr(model.config, "decoder_start_token_id", None) is None:
            raise runtime.UserError(
                f"{name} does not load: its config.json names no decoder_start_token_id; set it to the one of its kind "
                "(T5 and mT5 start with the pad token)."
            )
        super().__init__(name, model, *args, **options)

    def _head_is_plain(self) -> bool:
        """Never taken for plain: some of these scale their states before the head."""
        return False

    def _fits(self, read: int, write: int) -> None:
        if max(read, write) > self.context:
            raise runtime.UserError(
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
