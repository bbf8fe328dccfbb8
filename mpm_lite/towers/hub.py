"""Towers from the model hub and from local folders: transformers, timm and open_clip checkpoints.

Whatever comes from the hub is first a folder in its cache, so that there is one way to load. Only safetensors are read,
and no code that a repository brings is ever run.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import urllib.request
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from safetensors import SafetensorError

from mpm_lite import runtime
from mpm_lite.towers import lm, toys
from mpm_lite.towers.encoder_decoder import EncoderDecoder
from mpm_lite.towers.image import IMAGE_TOWERS, TorchImageTower, timm_tower
from mpm_lite.towers.packaged import fingerprint
from mpm_lite.towers.text import TEXT_TOWERS, TransformerTower
from mpm_lite.towers.tokens import tokenizer_file

CODE = "hub-1"
PACKAGED = {"text": tuple(TEXT_TOWERS), "image": IMAGE_TOWERS, "lm": toys.NAMES}
_KINDS = {"text": "text towers", "image": "image towers", "lm": "language models"}
# What the libraries raise on a checkpoint that is torn, pickled, or not what its config says.
BROKEN = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError)
WANTED = ["*.json", "*.safetensors", "*.txt", "*.model"]  # weights, configuration, vocabularies; never code


@lru_cache(maxsize=1)
def _answers(seconds: float = 2.0) -> bool:
    """Whether the hub's host, or the proxy in front of it, takes a connection. Asked once a process."""
    from huggingface_hub import constants

    endpoint = urlparse(constants.ENDPOINT)
    direct = urllib.request.proxy_bypass(endpoint.hostname or "")
    proxy = None if direct else urllib.request.getproxies().get(endpoint.scheme)
    at = urlparse(proxy if proxy and "//" in proxy else f"http://{proxy}") if proxy else endpoint
    port = at.port or (443 if at.scheme == "https" else 80)
    answered: list[bool] = []

    def knock() -> None:
        try:
            socket.create_connection((at.hostname or "", port), timeout=seconds).close()
            answered.append(True)
        except OSError:
            pass

    # In a thread: looking a name up has no timeout of its own.
    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(seconds + 0.5)
    return bool(answered)


def reachable() -> bool:
    """Whether the hub may be asked: not with HF_HUB_OFFLINE set, and only if it answers (checked once, briefly)."""
    from huggingface_hub import constants

    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    return not (offline or constants.HF_HUB_OFFLINE) and _answers()


def _no_hub(kind: str, name: str) -> runtime.UserError:
    return runtime.UserError(
        f"The model hub cannot be reached and {name!r} is not in its cache; these {_KINDS[kind]} run without it: "
        f"{', '.join(PACKAGED[kind])}."
    )


def _snapshot(kind: str, repo: str, patterns: list[str]) -> Path:
    """The folder of a hub repository, fetched or from the cache. Raises UserError where neither gives it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    ask = reachable()
    try:
        skip = ["onnx/*", "openvino/*"]
        return Path(snapshot_download(repo, allow_patterns=patterns, ignore_patterns=skip, local_files_only=not ask))
    except HFValidationError:
        raise runtime.UserError(f"{repo!r} is neither a folder here nor a hub id (owner/name).") from None
    except (LocalEntryNotFoundError, OSError) as error:
        if ask and isinstance(error, HfHubHTTPError):
            message = f"The model hub has no open repository {repo!r}: check its spelling, or log in."
            raise runtime.UserError(message) from error
        raise _no_hub(kind, repo) from error


def folder(kind: str, name: str) -> Path:
    """The folder behind a name: a local one, or the cached snapshot of a hub id. Raises UserError for neither."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise runtime.UserError(f"There is no folder {name!r}: give one that exists, or a hub id (owner/name).")
    return _snapshot(kind, name, WANTED)


def toy_folder(name: str) -> Path:
    """The folder of one of the toy world's own towers. Raises UserError that says how to make it where it is missing."""
    path = runtime.asset() / "towers" / name
    if not path.is_dir():
        raise runtime.UserError(f"{name} is not among the assets: `mpm-lite pretrain {name} --out assets` makes it.")
    return path


def _read(path: Path) -> dict[str, Any]:
    """A JSON file's object, {} where there is no such file. Raises UserError for a damaged one."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise runtime.UserError(f"{path} is damaged: fetch or save that checkpoint again.") from error


def _mark(root: Path) -> str:
    """The fingerprint of a folder: its weights, configuration and vocabularies, in a fixed order."""
    found = {p for pattern in WANTED for p in root.glob(pattern)} | {p for p in [tokenizer_file(root)] if p}
    found = sorted(found, key=lambda p: p.name)
    return fingerprint(" ".join([CODE, *(p.name for p in found)]), *found)


def _broken(root: Path, error: Exception) -> runtime.UserError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return runtime.UserError(f"{root} does not load ({reason}): it needs safetensors and a config.")


def _load(loader: Any, root: Path, **options: Any) -> tuple[Any, list[str]]:
    """A transformers model from a folder, and which of its weights the folder lacks (poolers only, or UserError)."""
    from transformers.utils import logging

    # A second's work: its bar only clutters, and what is missing is looked at below.
    bars, loudness = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with torch.random.fork_rng(devices=[]):  # what a checkpoint lacks is drawn: it must not move the caller's seed
            model, info = loader.from_pretrained(
                root, local_files_only=True, use_safetensors=True, output_loading_info=True,
                trust_remote_code=False, **options,
            )  # fmt: skip
    except BROKEN as error:
        raise _broken(root, error) from error
    finally:
        logging.set_verbosity(loudness)
        if bars:
            logging.enable_progress_bar()
    missing = sorted(info["missing_keys"])
    vital = [key for key in missing if "pooler" not in key]
    if vital:
        raise runtime.UserError(f"The checkpoint in {root} lacks weights of its own model ({vital[0]} and the like).")
    return model, missing


def _tokenizer(root: Path) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # A folder that names no tokenizer of its own means its tokenizer.json as it stands; left to choose by the model's
    # type, transformers would rebuild some of them with the rules of that type.
    own = _read(root / "tokenizer_config.json").get("tokenizer_class")
    loader = PreTrainedTokenizerFast if own == "PreTrainedTokenizerFast" else AutoTokenizer
    file = tokenizer_file(root)
    shared = {"tokenizer_file": str(file)} if file and file.parent != root else {}
    try:
        tokenizer = loader.from_pretrained(root, local_files_only=True, trust_remote_code=False, **shared)
    except BROKEN as error:
        raise _broken(root, error) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def lm_from_folder(root: Path, name: str, device: torch.device) -> lm.LM:
    """A transformers causal or encoder-decoder language model from a folder; a card.json there names its languages.

    Raises UserError for a folder without safetensors, tokenizer or a usable config, and where the two do not fit.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    sided = bool(_read(root / "config.json").get("is_encoder_decoder"))
    model, _ = _load(AutoModelForSeq2SeqLM if sided else AutoModelForCausalLM, root)
    kind = EncoderDecoder if sided else lm.LM
    languages = frozenset(_read(root / "card.json").get("languages", ()))
    return kind(name, model, _tokenizer(root), _mark(root), device, languages)


def text_from_folder(
    root: Path, name: str, device: torch.device, languages: frozenset[str] = frozenset()
) -> TransformerTower:
    """A transformers text encoder (of an encoder-decoder, its encoder) from a folder; mean pooling, unit norm.

    No prompt or prefix is put before the texts. Texts are cut where sentence-transformers' file says, else at the
    model's limit.
    Raises UserError for a folder without safetensors, tokenizer or a usable config.
    """
    from transformers import AutoModel

    model, _ = _load(AutoModel, root)
    tokenizer = _tokenizer(root)
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    tokenizer.padding_side = "right"
    positions = getattr(model.config, "max_position_embeddings", None) or 512
    if model.config.model_type in {"roberta", "xlm-roberta", "camembert"}:
        positions -= 2  # their positions start behind the padding index
    said = _read(root / "sentence_bert_config.json").get("max_seq_length")
    limit = min(int(said or positions), positions, tokenizer.model_max_length)
    languages = languages or frozenset(_read(root / "card.json").get("languages", ()))
    return TransformerTower(name, model, tokenizer, _mark(root), limit, device, languages)


def text_tower(name: str, device: torch.device) -> TransformerTower:
    """A text tower from a folder or a hub id."""
    return text_from_folder(folder("text", name), name, device)


def _open_clip(name: str, root: Path, device: torch.device) -> TorchImageTower:
    """The visual half of an open_clip checkpoint that lies in a folder as open_clip writes it for the hub."""
    import open_clip

    if not (root / "open_clip_model.safetensors").exists():
        raise runtime.UserError(f"{root} has no open_clip_model.safetensors: only safetensors are read.")
    try:
        with torch.random.fork_rng(devices=[]):
            model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{root}", device="cpu")
    except BROKEN as error:
        raise _broken(root, error) from error
    visual = model.visual
    has_tokens = hasattr(visual, "output_tokens")
    if has_tokens:
        visual.output_tokens = True

    def forward(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        return visual(x) if has_tokens else (visual(x), None)

    said = open_clip.get_model_preprocess_cfg(model)
    size = said["size"] if isinstance(said["size"], int) else said["size"][0]
    return TorchImageTower(name, visual, forward, size, said["mean"], said["std"], _mark(root), device)


def _open_clip_folder(name: str) -> Path:
    """The snapshot behind `open_clip:MODEL/TAG`. Raises UserError for a pair open_clip does not list."""
    import open_clip

    model, _, tag = name.removeprefix("open_clip:").partition("/")
    pairs = [f"open_clip:{a}/{b}" for a, b in open_clip.list_pretrained()]
    repo = open_clip.get_pretrained_cfg(model, tag).get("hf_hub", "").strip("/")
    if not repo:
        raise runtime.unknown("open_clip model on the hub", name, pairs)
    return _snapshot("image", repo, ["open_clip_config.json", "open_clip_model.safetensors"])


def _transformers_vision(name: str, root: Path, device: torch.device) -> TorchImageTower:
    """A transformers vision model (ViT, CLIP, SigLIP, DINOv2 ...), or the vision half of a two-sided one."""
    from transformers import AutoModel

    full, missing = _load(AutoModel, root)
    model = getattr(full, "vision_model", full) if hasattr(full, "text_model") else full
    said = _read(root / "preprocessor_config.json")
    mean, std = (tuple(said.get(key, [0.5] * 3)) for key in ("image_mean", "image_std"))
    grid = model.config.image_size // model.config.patch_size if hasattr(model.config, "patch_size") else 0

    def forward(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        out = model(pixel_values=x)
        states = out.last_hidden_state  # (B, prefix + P, D)
        pooled = getattr(out, "pooler_output", None)
        if pooled is None or missing:  # a pooler the checkpoint lacks would be noise: take the class token
            pooled = states[:, 0]
        return pooled.flatten(1), states[:, -grid * grid :] if grid and states.ndim == 3 else None

    size = model.config.image_size
    return TorchImageTower(name, model, forward, size, mean, std, _mark(root), device)


def image_tower(name: str, device: torch.device, shown: str | None = None) -> TorchImageTower:
    """An image tower from `open_clip:MODEL/TAG`, a folder, or a hub id; its own files say which library wrote it.

    `shown` is what the tower calls itself, where that is not `name`.
    """
    root = _open_clip_folder(name) if name.startswith("open_clip:") else folder("image", name)
    if (root / "open_clip_config.json").exists():
        return _open_clip(name, root, device)
    config = _read(root / "config.json")
    if "architecture" in config:
        import timm

        try:
            with torch.random.fork_rng(devices=[]):
                model = timm.create_model(f"local-dir:{root}", pretrained=True)
        except BROKEN as error:
            raise _broken(root, error) from error
        said = timm.data.resolve_model_data_config(model)
        return timm_tower(name, model, said["input_size"][-1], said["mean"], said["std"], _mark(root), device)
    if "model_type" in config:
        return _transformers_vision(shown or name, root, device)
    raise runtime.UserError(f"{root} has no config of transformers, timm or open_clip: use save_pretrained.")
