"""Checkpoints of open_clip, as it writes them for the hub: the seeing half and the reading half as towers.

open_clip itself builds the model from its folder; what is written here is the face of a tower. A text half that is a
transformers encoder (XLM-R, mT5) needs the config.json of that encoder, which open_clip leaves where it came from: it
is looked for in the folder that `hf_model_name` names, beside the weights, and in the hub's cache.

Shapes: B items, T tokens, C the context length, W the states' width, D the tower's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from mpm_lite.core import runtime
from mpm_lite.core.runtime import UserError
from mpm_lite.towers import folders
from mpm_lite.towers.image import Preprocessing, TorchImageTower
from mpm_lite.towers.text import TransformerTower, check_vocabulary

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
PREFIX = "open_clip:"


def snapshot(kind: str, name: str, revision: str | None = None) -> Path:
    """The snapshot behind `open_clip:MODEL/TAG`. Raises UserError for a pair open_clip does not list."""
    import open_clip

    model, _, tag = name.removeprefix(PREFIX).partition("/")
    pairs = [f"{PREFIX}{a}/{b}" for a, b in open_clip.list_pretrained()]
    repo = open_clip.get_pretrained_cfg(model, tag).get("hf_hub", "").strip("/")
    if not repo:
        raise runtime.unknown("open_clip model on the hub", name, pairs)
    patterns = [CONFIG, WEIGHTS] if kind == "image" else ["*.json", "*.txt", "*.model", WEIGHTS]
    return folders.snapshot(kind, repo, patterns, revision)


def _model(kind: str, root: Path) -> tuple[Any, dict[str, Any]]:
    """The whole model of a folder in float32, and what its configuration says about texts."""
    import open_clip

    folders.check_whole(root)  # says what to do with pickled weights
    if not (root / WEIGHTS).exists():
        raise UserError(f"{root} has no {WEIGHTS}: only safetensors are read.")
    said = dict((folders.read_json(root / CONFIG).get("model_cfg") or {}).get("text_cfg") or {})
    of_text = said | {"hf_model_name": str(_encoder(kind, root, said)), "hf_model_pretrained": False}
    options = {"text_cfg": of_text} if said.get("hf_model_name") else {}
    with folders.reading(root):
        return open_clip.create_model(f"local-dir:{root}", device="cpu", **options).eval(), said


def _encoder(kind: str, root: Path, said: dict[str, Any]) -> Path | None:
    """The folder with the config.json of a text half that is a transformers encoder; None where it is open_clip's own."""
    named = said.get("hf_model_name")
    if not named:
        return None
    for place in (root / named, Path(named).expanduser(), root):
        if folders.read_json(place / "config.json").get("model_type"):
            return place
    return folders.snapshot(kind, named, ["config.json"])


def image_half(name: str, root: Path, device: torch.device) -> TorchImageTower:
    """The seeing half of an open_clip checkpoint in a folder. Its vectors are projected, its patches are not.

    The interpolation that its file names is followed, its crop (`resize_mode: shortest`) is not: see TorchImageTower.
    """
    import open_clip

    model, _ = _model("image", root)
    visual = model.visual
    has_tokens = hasattr(visual, "output_tokens")
    trunk = getattr(visual, "trunk", None)  # a timm model with open_clip's head on it
    if has_tokens:
        visual.output_tokens = True

    def forward(x: Tensor) -> tuple[Tensor, Tensor | None]:
        if trunk is not None:
            found = trunk.forward_features(x)  # (B, prefix + P, W), or (B, W, h, w)
            pooled = visual.head(trunk.forward_head(found))
            return pooled, found[:, getattr(trunk, "num_prefix_tokens", 0) :] if found.ndim == 3 else None
        return visual(x) if has_tokens else (visual(x), None)

    said = open_clip.get_model_preprocess_cfg(model)
    size = said["size"] if isinstance(said["size"], int) else tuple(said["size"])
    look = Preprocessing(size, said["mean"], said["std"], bilinear=said.get("interpolation") == "bilinear")
    mark = folders.fingerprint_folder(
        root, *look.marks, *([] if isinstance(size, int) or size[0] == size[-1] else [f"{size}"])
    )
    return TorchImageTower(name, visual, forward, look, mark, device)


class ClipTokenizer:
    """open_clip's own tokenizer behind as much of the face of a transformers tokenizer as a tower needs."""

    pad_token_id, unk_token_id = 0, None

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return int(self.inner.vocab_size)

    def __call__(
        self, texts: Sequence[str], add_special_tokens: bool = True, truncation: bool = False, max_length: int = 0,
        **_: Any,
    ) -> dict[str, list[list[int]]]:  # fmt: skip
        """`input_ids` of each text, between a first and a last token; a row that is cut keeps its last one."""
        first, last = ([self.inner.sot_token_id], [self.inner.eot_token_id]) if add_special_tokens else ([], [])
        rows = [[*first, *self.inner.encode(text), *last] for text in texts]
        if truncation:
            rows = [row if len(row) <= max_length else [*row[: max_length - len(last)], *last] for row in rows]
        return {"input_ids": rows}

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """The pieces of ids; one that ends a word ends in </w>."""
        return [self.inner.decoder[i] for i in ids]


class Reading(nn.Module):
    """open_clip's own text half behind the face of a transformers encoder: ids (B, T) -> states (B, T, W), vectors (B, D).

    This half reads rows of the full context length, so padding is added here and cut off again.
    """

    def __init__(self, model: Any, context: int, width: int, pad: int) -> None:
        super().__init__()
        model.visual = nn.Identity()  # no picture is seen here, and its weights would only take room
        self.model, self.context, self.pad = model, context, pad
        self.config = SimpleNamespace(hidden_size=width)
        self._seen: list[Tensor] = []
        getattr(model, "text", model).ln_final.register_forward_hook(lambda module, x, out: self._seen.append(out))

    def get_input_embeddings(self) -> nn.Module:
        """The table of token embeddings (V, W), named as in transformers."""
        return getattr(self.model, "text", self.model).token_embedding

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        ids = nn.functional.pad(input_ids, (0, self.context - input_ids.shape[1]), value=self.pad)
        # Shorter rows were filled with the tokenizer's padding, which need not be the padding that this half expects.
        real = nn.functional.pad(attention_mask.bool(), (0, self.context - input_ids.shape[1]))
        ids = ids.masked_fill(~real, self.pad)
        self._seen.clear()
        pooled = self.model.encode_text(ids)
        states = self._seen.pop()  # (B, C, W); (B, W) where the last norm comes after pooling
        by_token = states.ndim == 3
        whole = states if by_token else states[:, None].expand(-1, self.context, -1)
        return SimpleNamespace(last_hidden_state=whole[:, : input_ids.shape[1]], pooled=pooled, by_token=by_token)


class _Projected(nn.Module):
    """A transformers text half's own pooling and projection: (B, T, W) -> (B, D)."""

    def __init__(self, text: Any) -> None:
        super().__init__()
        self.pooler, self.proj = text.pooler, text.proj
        of_first = getattr(text.pooler, "use_pooler_output", False)
        self.first = getattr(text.transformer, "pooler", None) if of_first else None

    def forward(self, out: Any, mask: Tensor) -> Tensor:
        pooled = self.pooler(out, mask.long()) if self.first is None else self.first(out.last_hidden_state)
        return self.proj(pooled)


def _tokenizer(root: Path, said: dict[str, Any]) -> tuple[Any, Callable[[str], str]]:
    """The transformers tokenizer of a text half, and how texts are cleaned first. Raises UserError for a way of reading
    that is not supported."""
    from open_clip.tokenizer import get_clean_fn

    kwargs, tokenizer = said.get("tokenizer_kwargs") or {}, folders.tokenizer(root)
    odd = [key for key in kwargs if key not in ("clean", "context_length")]
    if odd or said.get("tokenizer_mode"):
        raise UserError(f"{root} reads texts in a way that is not followed here ({[*odd, 'tokenizer_mode'][0]}).")
    tokenizer.padding_side = "right"
    return tokenizer, get_clean_fn(kwargs.get("clean") or "whitespace")


def text_half(name: str, root: Path, device: torch.device) -> TransformerTower:
    """The reading half of an open_clip checkpoint in a folder: its projected vectors lie in the same space as the pictures'.

    Token states are those before the projection. Only halves that normalise the state of every token have them.
    Raises UserError for a folder without safetensors, tokenizer or a usable config.
    """
    import open_clip

    model, said = _model("text", root)
    context = int(said.get("context_length") or 77)
    given = folders.fingerprint_folder(root, "text half"), context, device, folders.languages(root)
    if said.get("hf_model_name"):
        (tokenizer, clean), text = _tokenizer(root, said), model.text
        return TransformerTower(name, text.transformer, tokenizer, *given, pool=_Projected(text), clean=clean)
    if said.get("hf_tokenizer_name"):
        tokenizer, clean = _tokenizer(root, said)
        if tokenizer.pad_token_id is None:  # this half has no mask that would hide its padding
            raise UserError(
                f"{root} does not load: its reading half reads padding too and its tokenizer has no pad token: "
                "save it with the pad token that it was trained with."
            )
    else:
        options = said.get("tokenizer_kwargs") or {}
        tokenizer, clean = ClipTokenizer(open_clip.SimpleTokenizer(context_length=context, **options)), None
    inner = Reading(model, context, int(said.get("width") or 512), int(tokenizer.pad_token_id))
    check_vocabulary(name, inner, tokenizer)
    with torch.inference_mode():
        one = torch.tensor([tokenizer(["a"])["input_ids"][0][:context]])
        by_token = inner(one, torch.ones_like(one)).by_token
    tower = TransformerTower(name, inner, tokenizer, *given, pool=lambda out, mask: out.pooled, clean=clean)
    tower.has_tokens = by_token
    return tower
