"""Where a checkpoint lies (in a folder of one's own, or in the snapshot of a hub repository) and how its files are read.

Whatever comes from the hub is first a folder in its cache (HF_HOME says where), so that there is only one way to load.
Nothing but weights, configuration and vocabularies is fetched. Only safetensors are read, and no code that a repository
brings is ever run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from mpm_lite.core import runtime
from mpm_lite.core.packages import SMOLLM2
from mpm_lite.core.runtime import UserError, reachable
from mpm_lite.towers import catalogue
from mpm_lite.towers.catalogue import IMAGE_TOWERS, TEXT_TOWERS
from mpm_lite.towers.feature_cache import fingerprint
from mpm_lite.towers.inference import too_large
from mpm_lite.towers.text import tokenizer_file

T = TypeVar("T")
LMS = (*catalogue.NAMES, SMOLLM2.set)
PACKAGED = {"text": tuple(TEXT_TOWERS), "image": IMAGE_TOWERS, "lm": LMS, "paint": ("toy-painter",)}
_KINDS = {"text": "text towers", "image": "image towers", "lm": "language models", "paint": "painters"}
WANTED = ("*.json", "*.safetensors", "*.txt", "*.model")  # weights, configuration, vocabularies; never code
SKIPPED = ("onnx/*", "openvino/*", "*.fp16.*", "*.non_ema.*")  # the same weights again


def named(name: str, revision: str | None = None) -> tuple[str, str | None]:
    """The name without its `@REVISION`, and the revision, from the name or from the keyword.

    A folder keeps its '@'. Raises UserError where the two name different revisions, and for an empty revision.
    """
    bare, at, said = name.partition("@")
    if not at or Path(name).expanduser().is_dir():
        return name, revision
    if not said or (revision and revision != said):
        also = f" and revision={revision!r}" if revision else ""
        raise UserError(f"{name!r}{also} name no one revision: give a branch, a tag or a commit behind one '@'.")
    return bare, said


def shown(name: str, revision: str | None) -> str:
    """What a checkpoint is called: its name, and the revision where one was asked for."""
    return f"{name}@{revision}" if revision else name


def unpinned(kind: str, name: str, revision: str | None) -> None:
    """Raises UserError where a revision is asked of something that has none: a packaged tower, a toy or a folder."""
    if revision:
        raise UserError(f"{name!r} has no revision {revision!r}: only hub ids (owner/name) of {_KINDS[kind]} have.")


def snapshot(kind: str, repo: str, patterns: Sequence[str] = WANTED, revision: str | None = None) -> Path:
    """The folder of a hub repository at a revision (by default its main branch), fetched or from the cache.

    Raises a UserError of its own for each of these: an invalid id, a repository or revision that does not exist or is
    not open to everybody, and a hub that cannot be reached.
    """
    from huggingface_hub import errors, snapshot_download

    # A connection that breaks midway comes as the HTTP library's own error, which need not be an OSError.
    lost = (OSError, *(base for base in errors.HfHubHTTPError.__bases__ if base is not OSError))
    ask = reachable()
    options = {"allow_patterns": list(patterns), "ignore_patterns": list(SKIPPED), "local_files_only": not ask}
    try:
        return Path(snapshot_download(repo, revision=revision, **options))
    except errors.HFValidationError:
        raise UserError(f"{repo!r} is neither a folder here nor a hub id (owner/name).") from None
    except (errors.LocalEntryNotFoundError, *lost) as error:
        raise UserError(_refusal(error, kind, repo, revision, ask)) from error


def _refusal(error: Exception, kind: str, repo: str, revision: str | None, asked: bool) -> str:
    """Why a repository did not come, and what to do about it."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return f"The hub repository {repo!r} is gated: accept its terms on its page and log in with a token."
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"The model hub has no open repository {repo!r}: check its spelling, or log in if it is private."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"The hub repository {repo!r} has no revision {revision!r}: give one of its branches, tags or commits."
    name = repr(shown(repo, revision))
    why = f"did not give {name} and it is not in the" if asked else f"cannot be reached and there is no {name} in its"
    return f"The model hub {why} cache; these {_KINDS[kind]} run without it: {', '.join(PACKAGED[kind])}."


def folder(kind: str, name: str, revision: str | None = None, patterns: Sequence[str] = WANTED) -> Path:
    """The folder behind a name: a local one, or the cached snapshot of a hub id. Raises UserError for neither."""
    path = Path(name).expanduser()
    if path.is_dir():
        unpinned(kind, name, revision)
        return path
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(f"There is no folder {name!r}: give one that exists, or a hub id (owner/name).")
    return snapshot(kind, name, patterns, revision)


def find(kind: str, name: str, revision: str | None, patterns: Sequence[str] = WANTED) -> tuple[Path, str]:
    """The folder behind `NAME` or `NAME@REVISION`, and what its checkpoint is called."""
    bare, revision = named(name, revision)
    return folder(kind, bare, revision, patterns), shown(bare, revision)


def toy_folder(name: str) -> Path:
    """The folder of one of the toy world's own towers. Raises UserError that says how to make it where it is missing."""
    path = runtime.asset() / "towers" / name
    if not path.is_dir():
        raise UserError(f"{name} is not among the assets: `mpm-lite pretrain {name} --out assets` makes it.")
    return path


def state(name: str) -> tuple[Any, ...]:
    """The names, sizes and times of the files behind a tower's name, so that a change of them shows.

    For a folder, for each of several towers joined by '+', and for the toy world's models, which `mpm-lite pretrain`
    can make again; () for any other name.
    """
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
    """Makes a loader, whose first argument is a name, keep the last `most` things it loaded. Something whose files have
    changed since (`state`) is loaded again."""

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
# The files that hold a tokenizer's pieces; tokenizers of bytes or characters need none.
PIECES = ("vocab*", "*.model", "*.vocab", "*bpe*")
OF_BYTES = ("ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer")
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object, {} where there is no such file. Raises UserError for a damaged one."""
    try:
        told = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise UserError(f"{path} is damaged: fetch or save that checkpoint again.") from error
    if not isinstance(told, dict) and path.name != "modules.json":
        raise UserError(f"{path} holds no object: fetch or save that checkpoint again.")
    return told


def fingerprint_folder(root: Path, *also: str | Path) -> str:
    """The fingerprint of a folder: of its weights, configuration and vocabularies, in a fixed order, and of whatever
    else counts: further files, or words for a way of reading that is not the usual one."""
    found = {p for pattern in WANTED for p in root.glob(pattern)} | {p for p in [tokenizer_file(root)] if p}
    ordered = sorted(found, key=lambda p: p.name)
    words = [one for one in also if isinstance(one, str)]
    files = [one for one in also if isinstance(one, Path)]
    return fingerprint(" ".join([CODE, *(p.name for p in ordered), *words]), *ordered, *files)


@contextmanager
def reading(root: Path) -> Iterator[None]:
    """Around a library's reading of a folder: whatever it raises becomes a UserError with the first line of its message, and
    what it draws at random, such as weights that the folder is about to overwrite, leaves the caller's seed alone."""
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    except torch.cuda.OutOfMemoryError as error:
        raise too_large(str(root)) from error
    except BROKEN as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{root} does not load ({reason}): it needs safetensors and a config.") from error


def languages(root: Path) -> frozenset[str]:
    """The languages that a folder's card.json names; none where there is no card."""
    return frozenset(read_json(root / "card.json").get("languages", ()))


def check_whole(root: Path) -> None:
    """Raises UserError for a folder whose weights are pickled, or of which a shard is missing or cut short."""
    for index in sorted(root.glob("*.safetensors.index.json")):
        shards = sorted(set(read_json(index).get("weight_map", {}).values()))
        if gone := [name for name in shards if not (root / name).exists()]:
            raise UserError(
                f"{root} does not load: {gone[0]} is missing, one of the {len(shards)} shards that {index.name} lists: "
                "fetch or save that checkpoint again."
            )
    files = sorted(root.glob("*.safetensors"))
    if not files and (pickled := sorted(p.name for pattern in PICKLED for p in root.glob(pattern))):
        raise UserError(
            f"{root} has pickled weights only ({pickled[0]}), and loading those can run any code: convert them to "
            "safetensors where you trust them, or take a revision that has some."
        )
    for path in files:
        try:
            with safe_open(path, framework="pt"):  # looks at the header, and whether the file is as long as that says
                pass
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{root} does not load: {path.name} is cut short or damaged ({error}): delete it, and fetch or save it again."
            ) from error


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, float32. Raises UserError where it is missing or torn."""
    if not path.exists():
        raise UserError(f"{path.parent} has no {path.name}: only safetensors are read; convert its weights to them.")
    with reading(path.parent):
        return {key: value.float() for key, value in load_file(path).items()}


@contextmanager
def quiet() -> Iterator[None]:
    """Around transformers' reading of a model: loading takes a second, so that a bar would only clutter, and missing weights are
    looked at by whoever loads."""
    from transformers.utils import logging

    bars, loudness = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(loudness)
        if bars:
            logging.enable_progress_bar()


def load_model(loader: Any, root: Path, **options: Any) -> tuple[Any, list[str]]:
    """A transformers model from a folder, and which of its weights the folder lacks. Only poolers may be lacking:
    anything else is a UserError."""
    if not read_json(root / "config.json").get("model_type"):
        raise UserError(f"{root} does not load: no config.json there names its model_type; use save_pretrained.")
    check_whole(root)
    options |= {"use_safetensors": True, "output_loading_info": True}
    with quiet(), reading(root):
        model, info = loader.from_pretrained(root, local_files_only=True, trust_remote_code=False, **options)
    missing = sorted(info["missing_keys"])
    vital = [key for key in missing if "pooler" not in key]
    if vital:
        raise UserError(f"The checkpoint in {root} lacks weights of its own model ({vital[0]} and the like).")
    layer = lambda key: re.sub(r"\d+", "#", key)  # noqa: E731
    known = set(map(layer, model.state_dict()))
    if more := sorted(key for key in info["unexpected_keys"] if layer(key) in known):
        raise UserError(f"The checkpoint in {root} has more layers than its config.json says ({more[0]} is not used).")
    return model, missing


def tokenizer(root: Path) -> Any:
    """The transformers tokenizer of a folder. Raises UserError where there is none."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # A folder that names PreTrainedTokenizerFast means its tokenizer.json as it stands; left to choose by the model's
    # type, transformers would rebuild some of them with the rules of that type.
    own = read_json(root / "tokenizer_config.json").get("tokenizer_class")
    loader = PreTrainedTokenizerFast if own == "PreTrainedTokenizerFast" else AutoTokenizer
    file = tokenizer_file(root)
    # Without these files transformers would make up an empty tokenizer, to which everything is unknown.
    if not file and own not in OF_BYTES and not any(any(root.glob(pattern)) for pattern in PIECES):
        advice = "fetch or save that checkpoint again."
        raise UserError(f"{root} does not load: its tokenizer's files are missing; {advice}")
    shared = {"tokenizer_file": str(file)} if file and file.parent != root else {}
    with reading(root):
        found = loader.from_pretrained(root, local_files_only=True, trust_remote_code=False, **shared)
    if found.pad_token_id is None:
        found.pad_token = found.eos_token
    return found
