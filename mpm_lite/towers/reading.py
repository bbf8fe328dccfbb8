"""How a checkpoint's folder is read: its JSON, its tokenizer, its safetensors, and a fingerprint of all that.

Only safetensors are read, and no code that a repository brings is ever run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from mpm_lite import runtime
from mpm_lite.towers.fingerprints import fingerprint
from mpm_lite.towers.halves import too_large
from mpm_lite.towers.snapshots import WANTED
from mpm_lite.towers.tokens import tokenizer_file

CODE = "hub-1"
# What the libraries raise on a checkpoint that is torn, pickled, or not what its config says.
BROKEN = (OSError, ValueError, KeyError, RuntimeError, ImportError, TypeError, AttributeError, SafetensorError)
# Where a tokenizer's pieces stand; those that read bytes or characters need none.
PIECES = ("vocab*", "*.model", "*.vocab", "*bpe*")
OF_BYTES = ("ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer")
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")


def read(path: Path) -> dict[str, Any]:
    """A JSON file's object, {} where there is no such file. Raises UserError for a damaged one."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise runtime.UserError(f"{path} is damaged: fetch or save that checkpoint again.") from error


def mark(root: Path, *also: str | Path) -> str:
    """The fingerprint of a folder: its weights, configuration and vocabularies, in a fixed order; and what else counts,
    as files or as words for a way of reading that is not the usual one."""
    found = {p for pattern in WANTED for p in root.glob(pattern)} | {p for p in [tokenizer_file(root)] if p}
    ordered = sorted(found, key=lambda p: p.name)
    words = [one for one in also if isinstance(one, str)]
    files = [one for one in also if isinstance(one, Path)]
    return fingerprint(" ".join([CODE, *(p.name for p in ordered), *words]), *ordered, *files)


def broken(root: Path, error: Exception) -> runtime.UserError:
    """The error for a checkpoint that a library could not read, with the first line of what the library said."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return runtime.UserError(f"{root} does not load ({reason}): it needs safetensors and a config.")


def whole(root: Path) -> None:
    """Raises UserError for a folder whose weights are pickled, or of which a shard is missing or cut short."""
    for index in sorted(root.glob("*.safetensors.index.json")):
        shards = sorted(set(read(index).get("weight_map", {}).values()))
        if gone := [name for name in shards if not (root / name).exists()]:
            raise runtime.UserError(
                f"{root} does not load: {gone[0]} is missing, one of the {len(shards)} shards that {index.name} lists: "
                "fetch or save that checkpoint again."
            )
    files = sorted(root.glob("*.safetensors"))
    if not files and (pickled := sorted(p.name for pattern in PICKLED for p in root.glob(pattern))):
        raise runtime.UserError(
            f"{root} has pickled weights only ({pickled[0]}), and loading those can run any code: convert them to "
            "safetensors where you trust them, or take a revision that has some."
        )
    for path in files:
        try:
            with safe_open(path, framework="pt"):  # looks at the header, and whether the file is as long as that says
                pass
        except (SafetensorError, OSError) as error:
            raise runtime.UserError(
                f"{root} does not load: {path.name} is cut short or damaged ({error}): delete it, and fetch or save it again."
            ) from error


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, float32. Raises UserError where it is missing or torn."""
    if not path.exists():
        raise runtime.UserError(
            f"{path.parent} has no {path.name}: only safetensors are read; convert its weights to them."
        )
    try:
        return {key: value.float() for key, value in load_file(path).items()}
    except (SafetensorError, OSError) as error:
        raise broken(path.parent, error) from error


def load(loader: Any, root: Path, **options: Any) -> tuple[Any, list[str]]:
    """A transformers model from a folder, and which of its weights the folder lacks (poolers only, or UserError)."""
    from transformers.utils import logging

    if not read(root / "config.json").get("model_type"):
        raise runtime.UserError(
            f"{root} does not load: no config.json there names its model_type; use save_pretrained."
        )
    whole(root)
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
    except torch.cuda.OutOfMemoryError as error:
        raise too_large(str(root)) from error
    except BROKEN as error:
        raise broken(root, error) from error
    finally:
        logging.set_verbosity(loudness)
        if bars:
            logging.enable_progress_bar()
    missing = sorted(info["missing_keys"])
    vital = [key for key in missing if "pooler" not in key]
    if vital:
        raise runtime.UserError(f"The checkpoint in {root} lacks weights of its own model ({vital[0]} and the like).")
    return model, missing


def tokenizer(root: Path) -> Any:
    """The transformers tokenizer of a folder. Raises UserError where there is none."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # A folder that names no tokenizer of its own means its tokenizer.json as it stands; left to choose by the model's
    # type, transformers would rebuild some of them with the rules of that type.
    own = read(root / "tokenizer_config.json").get("tokenizer_class")
    loader = PreTrainedTokenizerFast if own == "PreTrainedTokenizerFast" else AutoTokenizer
    file = tokenizer_file(root)
    # transformers makes an empty one up, which reads everything as unknown.
    if not file and own not in OF_BYTES and not any(any(root.glob(pattern)) for pattern in PIECES):
        raise runtime.UserError(
            f"{root} does not load: its tokenizer's files are missing; fetch or save that checkpoint again."
        )
    shared = {"tokenizer_file": str(file)} if file and file.parent != root else {}
    try:
        found = loader.from_pretrained(root, local_files_only=True, trust_remote_code=False, **shared)
    except BROKEN as error:
        raise broken(root, error) from error
    if found.pad_token_id is None:
        found.pad_token = found.eos_token
    return found
