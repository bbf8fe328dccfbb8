"""Where a checkpoint lies, a folder of one's own or the snapshot of a hub repository at a revision, and how it is read.

Whatever comes from the hub is first a folder in its cache (HF_HOME says where), so that there is one way to load. Nothing
but weights, configuration and vocabularies is fetched. Only safetensors are read, and no code that a repository brings is
ever run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from mpm_lite.core import runtime
from mpm_lite.core.runtime import reachable
from mpm_lite.towers import catalogue
from mpm_lite.towers.catalogue import IMAGE_TOWERS, TEXT_TOWERS
from mpm_lite.towers.features import fingerprint
from mpm_lite.towers.inference import too_large
from mpm_lite.towers.text import tokenizer_file

T = TypeVar("T")
PACKAGED = {"text": tuple(TEXT_TOWERS), "image": IMAGE_TOWERS, "lm": catalogue.NAMES, "paint": ("toy-painter",)}
_KINDS = {"text": "text towers", "image": "image towers", "lm": "language models", "paint": "painters"}
WANTED = ("*.json", "*.safetensors", "*.txt", "*.model")  # weights, configuration, vocabularies; never code
SKIPPED = ("onnx/*", "openvino/*", "*.fp16.*", "*.non_ema.*")  # the same weights again


def named(name: str, revision: str | None = None) -> tuple[str, str | None]:
    """The name without its `@REVISION`, and the revision, from there or from the keyword.

    A folder keeps its '@'. Raises UserError where the two name different revisions, and for one that is empty.
    """
    bare, at, said = name.partition("@")
    if not at or Path(name).expanduser().is_dir():
        return name, revision
    if not said or (revision and revision != said):
        also = f" and revision={revision!r}" if revision else ""
        raise runtime.UserError(
            f"{name!r}{also} name no one revision: give a branch, a tag or a commit behind one '@'."
        )
    return bare, said


def shown(name: str, revision: str | None) -> str:
    """What a checkpoint is called: its name, and the revision where one was asked for."""
    return f"{name}@{revision}" if revision else name


def unpinned(kind: str, name: str, revision: str | None) -> None:
    """Raises UserError where a revision is asked of what has none: a packaged tower, a toy or a folder."""
    if revision:
        raise runtime.UserError(
            f"{name!r} has no revision {revision!r}: only hub ids (owner/name) of {_KINDS[kind]} have."
        )


def snapshot(kind: str, repo: str, patterns: Sequence[str] = WANTED, revision: str | None = None) -> Path:
    """The folder of a hub repository at a revision (its default branch, where none is named), fetched or from the cache.

    Raises UserError, one for each: an id that is none, a repository or revision that is not there or not open, no hub.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # A connection that breaks midway comes as the HTTP library's own error, which need not be an OSError.
    lost = (LocalEntryNotFoundError, OSError, *(base for base in HfHubHTTPError.__bases__ if base is not OSError))
    ask = reachable()
    try:
        return Path(
            snapshot_download(
                repo, revision=revision, allow_patterns=list(patterns), ignore_patterns=list(SKIPPED),
                local_files_only=not ask,
            )
        )  # fmt: skip
    except HFValidationError:
        raise runtime.UserError(f"{repo!r} is neither a folder here nor a hub id (owner/name).") from None
    except GatedRepoError as error:
        message = f"The hub repository {repo!r} is gated: accept its terms on its page and log in with a token."
        raise runtime.UserError(message) from error
    except RepositoryNotFoundError as error:
        message = f"The model hub has no open repository {repo!r}: check its spelling, or log in if it is private."
        raise runtime.UserError(message) from error
    except RevisionNotFoundError as error:
        message = (
            f"The hub repository {repo!r} has no revision {revision!r}: give one of its branches, tags or commits."
        )
        raise runtime.UserError(message) from error
    except lost as error:
        raise _no_hub(kind, shown(repo, revision), ask) from error


def _no_hub(kind: str, name: str, asked: bool) -> runtime.UserError:
    why = "did not give" if asked else "cannot be reached and there is no"
    rest = f"{name!r} and it is not in the cache" if asked else f"{name!r} in its cache"
    return runtime.UserError(
        f"The model hub {why} {rest}; these {_KINDS[kind]} run without it: {', '.join(PACKAGED[kind])}."
    )


def folder(kind: str, name: str, revision: str | None = None, patterns: Sequence[str] = WANTED) -> Path:
    """The folder behind a name: a local one, or the cached snapshot of a hub id. Raises UserError for neither."""
    path = Path(name).expanduser()
    if path.is_dir():
        unpinned(kind, name, revision)
        return path
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise runtime.UserError(f"There is no folder {name!r}: give one that exists, or a hub id (owner/name).")
    return snapshot(kind, name, patterns, revision)


def toy_folder(name: str) -> Path:
    """The folder of one of the toy world's own towers. Raises UserError that says how to make it where it is missing."""
    path = runtime.asset() / "towers" / name
    if not path.is_dir():
        raise runtime.UserError(f"{name} is not among the assets: `mpm-lite pretrain {name} --out assets` makes it.")
    return path


def state(name: str) -> tuple[Any, ...]:
    """What tells the files behind a tower's name from what they were before: their names, sizes and times. Of a folder, and of
    each of several towers joined by '+'; of the toy world's models, which `mpm-lite pretrain` makes again; () for any other."""
    name = str(name)
    here = Path(name).expanduser()
    if not here.is_dir() and "+" in name:
        return tuple(state(one.strip()) for one in name.split("+"))
    folders = [here] if here.is_dir() else []
    if name.startswith("toy"):
        folders = [runtime.asset("towers"), runtime.asset("lm"), runtime.home() / "lm"]
    files = [file for folder in folders for file in sorted(folder.rglob("*")) if file.is_file()]
    told = [(str(file), file.stat()) for file in files]
    return tuple((file, of.st_size, of.st_mtime_ns, of.st_ctime_ns, of.st_ino) for file, of in told)


def loaded_once(most: int) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """A loader, whose first argument is a name, that keeps the last `most` things it loaded; one whose files have changed since
    (`state`) is loaded again."""

    def wrap(load: Callable[..., T]) -> Callable[..., T]:
        kept = lru_cache(most)(lambda state, *given, **more: load(*given, **more))

        @wraps(load)
        def once(name: str, *given: Any, **more: Any) -> T:
            return kept(state(name), name, *given, **more)

        once.cache_clear = kept.cache_clear  # type: ignore[attr-defined]
        return once

    return wrap


# How a checkpoint is read.

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
