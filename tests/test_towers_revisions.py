"""A hub repository at a revision: a cache laid out as huggingface_hub lays it, with two of them, read without a network."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import test_towers_tiny as tiny
import torch

import mpm_lite as mpm
from mpm_lite import UserError
from mpm_lite.core import runtime
from mpm_lite.towers import folders
from mpm_lite.towers.stable_diffusion import load_diffusion

OLD, NEW = "a" * 40, "b" * 40
LOADERS = {"text": mpm.load_text_tower, "image": mpm.load_image_tower, "lm": mpm.load_lm, "paint": load_diffusion}


def two(root: Path, kind: str) -> None:
    """Two revisions of one repository in a hub cache: tag v1 at the old one, branch main at the new."""
    place = root / "models--someone--tiny"
    save = {
        "text": tiny.encoder,
        "image": lambda at: tiny.vision(at, "vit"),
        "lm": lambda at: tiny.language_model(at, "llama"),
        "paint": tiny.diffusion,
    }[kind]
    for commit in (OLD, NEW):
        save(place / "snapshots" / commit)
    name = "unet/diffusion_pytorch_model.safetensors" if kind == "paint" else "model.safetensors"
    path = place / "snapshots" / NEW / name
    from safetensors.torch import load_file, save_file

    save_file({k: v * 1.5 for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
    (place / "refs" / "refs" / "pr").mkdir(parents=True)
    for ref, commit in (("main", NEW), ("v1", OLD), ("refs/pr/3", OLD)):
        (place / "refs" / ref).write_text(commit)


@pytest.mark.parametrize("kind", LOADERS)
def test_a_revision_is_a_branch_a_tag_or_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    two(tmp_path, kind)
    load = LOADERS[kind]
    newest, old = load("someone/tiny", device="cpu"), load("someone/tiny@v1", device="cpu")
    assert newest.fingerprint == load("someone/tiny@main", device="cpu").fingerprint != old.fingerprint
    assert (newest.name, old.name) == ("someone/tiny", "someone/tiny@v1")
    for name, revision in ((f"someone/tiny@{OLD}", None), ("someone/tiny", "v1"), ("someone/tiny@v1", "v1")):
        assert load(name, device="cpu", revision=revision).fingerprint == old.fingerprint
    assert load("someone/tiny@refs/pr/3", device="cpu").fingerprint == old.fingerprint
    with pytest.raises(UserError, match="there is no 'someone/tiny@v2' in its cache"):
        load("someone/tiny@v2", device="cpu")
    with pytest.raises(UserError, match="name no one revision"):
        load("someone/tiny@v1", device="cpu", revision="main")
    with pytest.raises(UserError, match="name no one revision"):
        load("someone/tiny@", device="cpu")
    here = tmp_path / "models--someone--tiny" / "snapshots" / OLD
    with pytest.raises(UserError, match="has no revision 'v1': only hub ids"):
        load(str(here), device="cpu", revision="v1")
    with_at = here.rename(tmp_path / "mine@home")  # a folder may be called so
    assert load(str(with_at), device="cpu").fingerprint == old.fingerprint


def test_packaged_and_toy_names_have_no_revisions() -> None:
    for load, name in (
        (mpm.load_text_tower, "e5-small"), (mpm.load_text_tower, "toy"), (mpm.load_image_tower, "toy"),
        (mpm.load_image_tower, "efficientnet-lite0"), (mpm.load_lm, "toy-english"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"'{name}' has no revision 'v1'"):
            load(name, revision="v1")
    with pytest.raises(UserError, match="give each its own NAME@REVISION"):
        mpm.load_image_tower("a/b+c/d", revision="v1")


def test_the_revision_reaches_the_hubs_own_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    asked: list[dict] = []

    def download(repo: str, **given: object) -> str:
        asked.append({"repo": repo, **given})
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    for there in (True, False):
        monkeypatch.setattr(folders, "reachable", lambda there=there: there)
        assert folders.folder("lm", "someone/tiny", "v1") == tmp_path
    assert [(one["revision"], one["local_files_only"]) for one in asked] == [("v1", False), ("v1", True)]
    patterns = asked[0]["allow_patterns"]
    assert not any(
        one.endswith((".py", ".bin", "*")) for one in patterns
    )  # weights and words; neither code nor pickles


def test_hf_home_says_where_the_cache_is_and_being_offline_is_noticed_at_once(tmp_path: Path) -> None:
    place = tmp_path / "hub" / "models--someone--tiny"
    (place / "snapshots" / OLD).mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(OLD)
    code = (
        "import time\n"
        "from mpm_lite import UserError\n"
        "from mpm_lite.towers import folders\n"
        "import huggingface_hub\n"
        "print(folders.folder('text', 'someone/tiny').name)\n"
        "start = time.perf_counter()\n"
        "try: folders.folder('text', 'someone/other')\n"
        "except UserError as error: print(error)\n"
        "print(time.perf_counter() - start < 1)\n"
    )
    gone = {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"}
    env = {k: v for k, v in os.environ.items() if k not in gone} | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    root = Path(mpm.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=env, capture_output=True, text=True)
    name, said, quick = done.stdout.splitlines()
    assert name == OLD and "cannot be reached and there is no 'someone/other' in its cache" in said and quick == "True"


def test_a_hub_that_refuses_is_asked_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for name, value in (("HF_HUB_OFFLINE", False), ("ENDPOINT", "http://127.0.0.1:9"), ("HF_HUB_CACHE", str(tmp_path))):
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(runtime.urllib.request, "getproxies", dict)
    runtime._answers.cache_clear()
    start = time.perf_counter()
    for load in LOADERS.values():
        with pytest.raises(UserError, match="cannot be reached"):
            load("someone/never", device="cpu")
    assert time.perf_counter() - start < 3 and not list(tmp_path.iterdir())
    runtime._answers.cache_clear()


def test_what_is_loaded_leaves_the_callers_seed(tmp_path: Path) -> None:
    tiny.vision(tmp_path / "image", "siglip")
    tiny.encoder(tmp_path / "text")
    tiny.diffusion(tmp_path / "paint")
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    for kind in ("image", "text", "paint"):
        LOADERS[kind](str(tmp_path / kind), device="cpu")
    assert torch.equal(torch.rand(2), expected) and np.isfinite(float(expected.sum()))
