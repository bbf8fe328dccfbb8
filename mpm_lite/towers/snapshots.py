"""Where a checkpoint lies: a folder of one's own, or the snapshot of a hub repository at a revision.

Whatever comes from the hub is first a folder in its cache (HF_HOME says where), so that there is one way to load. Nothing
but weights, configuration and vocabularies is fetched, never code.
"""

from __future__ import annotations

import os
import socket
import threading
import urllib.request
from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlparse

from mpm_lite import runtime
from mpm_lite.towers import toys
from mpm_lite.towers.image import IMAGE_TOWERS
from mpm_lite.towers.text import TEXT_TOWERS

T = TypeVar("T")
PACKAGED = {"text": tuple(TEXT_TOWERS), "image": IMAGE_TOWERS, "lm": toys.NAMES, "paint": ("toy-painter",)}
_KINDS = {"text": "text towers", "image": "image towers", "lm": "language models", "paint": "painters"}
WANTED = ("*.json", "*.safetensors", "*.txt", "*.model")  # weights, configuration, vocabularies; never code
SKIPPED = ("onnx/*", "openvino/*", "*.fp16.*", "*.non_ema.*")  # the same weights again


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
