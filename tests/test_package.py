"""The package as a stranger gets it: light import, the wheel with its assets, the house's floors, no machine's own paths."""

import ast
import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import mpm_lite as mpm
from mpm_lite.core import runtime

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "mpm_lite").rglob("*.py"))
TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split("\n")


def python(code, **env):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **env}, timeout=120
    )


def test_import_is_light_and_touches_no_network():
    done = python(
        "import socket, sys\n"
        "def no(*a, **k): raise SystemExit('network at import')\n"
        "socket.socket.connect = no; socket.getaddrinfo = no\n"
        "import mpm_lite, mpm_lite.ops, mpm_lite.towers.load, mpm_lite.data, mpm_lite.experiments.experiment\n"
        "bad = [m for m in ('triton', 'open_clip', 'diffusers', 'timm') if m in sys.modules]\n"
        "assert not bad, bad"
    )
    assert done.returncode == 0, done.stderr


def test_ops_import_with_torch_alone():
    done = python(
        "import sys\n"
        "blocked = 'transformers safetensors pandas accelerate timm open_clip diffusers datasets matplotlib PIL triton'\n"
        "sys.modules.update(dict.fromkeys([*blocked.split(), 'tokenizers', 'tqdm', 'torchvision'], None))\n"
        "import mpm_lite.ops as ops, torch\n"
        "print(float(ops.clip_loss(torch.eye(3), torch.eye(3), torch.tensor(1.0))))"
    )
    assert done.returncode == 0, done.stderr


def test_bfloat16_by_capability_never_by_emulation(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *a, **k: pytest.fail("is_bf16_supported was asked"))
    for capability, expected in (((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *a, c=capability: c)
        assert runtime.compute_dtype(torch.device("cuda")) == expected
    assert runtime.compute_dtype(torch.device("cpu")) == torch.float32
    assert not any("is_bf16_supported(" in p.read_text() for p in SOURCES)


def test_what_computes_and_where_a_module_is(monkeypatch):
    import torch

    assert runtime.device_of(torch.nn.Linear(2, 2, device="meta")) == torch.device("meta")
    assert runtime.device_of(torch.nn.ReLU()) == torch.device("cpu") and runtime.hardware()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *a: "Tesla T4")
    assert runtime.hardware() == "Tesla T4"


def test_presets(monkeypatch):
    assert set(runtime.PRESETS) == {"cpu", "t4", "l4", "a100", "h200", "big"}
    monkeypatch.setenv("MPM_LITE_PRESET", "t5")
    with pytest.raises(mpm.UserError, match="Did you mean 't4'"):
        runtime.preset()


def test_wheel_brings_assets_and_runs_elsewhere(tmp_path):
    built = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr[-2000:]
    home = tmp_path / "env"
    venv.create(home, system_site_packages=False)
    site = next(home.glob("lib/python*/site-packages"))
    wheel = next(tmp_path.glob("*.whl"))
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel],
        check=True,
    )
    # The third-party packages come from this environment; mpm_lite itself may only come from the wheel.
    ours = [p for p in sys.path if "site-packages" in p]
    code = (
        f"import sys; sys.path += {ours!r}\n"
        "import mpm_lite as mpm, pathlib\n"
        f"assert pathlib.Path(mpm.__file__).is_relative_to({str(site)!r}), mpm.__file__\n"
        "for name in ('splits/concepts.csv', 'ATTRIBUTION.md', 'results/retention.csv'):\n"
        "    path = mpm.asset(name); assert path.stat().st_size and 'site-packages' in str(path), path\n"
        "print(len(mpm.load_captions('emoji', 'train')))"
    )
    done = subprocess.run([home / "bin/python", "-E", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and int(done.stdout) > 100, done.stderr


def test_an_unknown_asset_and_name_say_so():
    with pytest.raises(mpm.UserError, match="concepts.csv"):
        mpm.asset("splits/concept.csv")
    with pytest.raises(AttributeError, match="Experiment"):
        mpm.Experimnt  # noqa: B018


def test_public_functions_are_typed():
    untyped = []
    for path in SOURCES:
        for node in ast.parse(path.read_text()).body:
            inner = node.body if isinstance(node, ast.ClassDef) else []
            for f in [node, *inner]:
                compiled = any("triton.jit" in ast.unparse(d) for d in getattr(f, "decorator_list", []))
                if isinstance(f, ast.FunctionDef) and not f.name.startswith("_") and not compiled:
                    bare = [a.arg for a in f.args.args if a.annotation is None and a.arg not in ("self", "cls")]
                    if bare or f.returns is None:
                        untyped.append(f"{path.name}:{f.name}")
    assert not untyped


def test_ruff_is_content():
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "."], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


def test_no_machine_of_its_own_and_no_pinned_ceiling():
    host = re.compile(r"p[y]pi\.org|python[h]osted|d[e]b\.debian|/w[o]rk/|/r[o]ot/")
    for name in TRACKED:
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".yml", ".ipynb", ".cfg", ".json", ".csv", ""} and path.is_file():
            assert not host.search(path.read_text(errors="replace")), name
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert extras.pop("site") == [
        "jupyter-book>=1.0.4,<2"
    ]  # the one ceiling: version 2 is another tool, and needs Node.js
    everything = project["dependencies"] + [d for extra in extras.values() for d in extra]
    assert not [d for d in everything if "<" in d.split(";")[0] or "==" in d.split(";")[0]]
    assert not [d for d in everything if d.startswith("triton")]


def test_the_tree_is_small_and_holds_no_stamps():
    files = [ROOT / name for name in TRACKED if (ROOT / name).is_file()]
    assert sum(p.stat().st_size for p in files) < 40 * 2**20
    assert not [p for p in files if p.suffix in {".svg", ".ogg", ".dat"} and "stamps" in str(p)]


def test_cards_name_commit_seeds_and_command():
    cards = sorted((ROOT / "assets/results").glob("*.json"))
    assert {c.stem for c in cards} >= {"retention", "english-pairs", "controls", "native-crossing"}
    for card in cards:
        told = json.loads(card.read_text())
        if card.stem in ("claims", "first-ledger"):  # a claim with fewer seeds is pending there
            assert all(isinstance(row["seeds"], int) and re.fullmatch(r"[0-9a-f]{7,40}", row["commit"]) for row in told)
            continue
        if card.stem in ("ladder", "connectors"):  # of one seed each, on many language models
            assert len(told["models"]) >= 3 and re.fullmatch(r"[0-9a-f]{7,40}", told["commit"])
            continue
        trains = ("paint", "head-to-head", "head-to-head-real")  # models of its own for every seed
        enough = 3 if card.stem in trains else 5
        assert len(told["seeds"]) >= enough and re.fullmatch(r"[0-9a-f]{7,40}", told["commit"])
        assert "mpm-lite run" in told["command"]


def test_pages_are_what_the_results_say():
    """README, handbook and pages of results are what their templates and the committed results give; README is one page."""
    from mpm_lite.report import readme

    for page in readme.PAGES:
        assert (ROOT / page).read_text(encoding="utf-8") == readme.render_page(page), (
            "run `python -m mpm_lite.report.readme`"
        )
    for figure in (readme.FIGURE, readme.BENCH_FIGURE, *readme.claim_figures()):
        assert mpm.asset(figure).stat().st_size > 10_000
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
    for page in set(readme.PAGES) - {"README.md", readme.HANDBOOK}:
        assert "**How to read this page.**" in (ROOT / page).read_text(encoding="utf-8"), page


def test_the_toy_worlds_page_is_what_its_grammars_and_measures_say():
    from mpm_lite.report import toyworld

    assert mpm.asset(toyworld.PAGE).read_text(encoding="utf-8") == toyworld.build_page(), (
        "run `python -m mpm_lite.report.toyworld`"
    )
    assert all(f"({code}): " in toyworld.glossed() for code in toyworld.grammar.LANGUAGES)
    assert mpm.asset(toyworld.FIGURE).stat().st_size > 5_000


def test_benchmark_rows_say_what_they_must():
    """Hardware, versions, date and error in every row; chunks exact; the bars of time and memory where they were set."""
    from mpm_lite.report import readme

    rows = readme.bench_rows()
    told = ["date", "hardware", "torch", "op", "provider", "ms", "p20", "p80", "rounds", "peak_mb", "loss_error"]
    assert rows[told].notna().all().all() and (rows["rounds"] >= 7).all()
    few = rows[rows["rounds"] < 9]
    assert set(few["hardware"]) == {"NVIDIA H100 80GB HBM3"} and "linear_cross_entropy" not in set(few["op"])
    ours = rows[rows["provider"].str.startswith("mpm_lite") & (rows["dtype"] == "float32")]
    assert (ours["loss_error"] <= 1e-5).all() and (ours["grad_error"].dropna() <= 1e-5).all()
    barred = {("clip_loss", 4096, 4096), ("siglip_loss", 4096, 4096), ("linear_cross_entropy", 2048, 50_000)}
    both = rows[(rows["direction"] == "forward+backward") & (rows["threads"] == 2)].set_index(
        ["op", "n", "m", "provider"]
    )
    for op, n, m in barred:
        mine, naive = both.loc[(op, n, m, "mpm_lite chunked")], both.loc[(op, n, m, "naive")]
        assert mine["ms"] <= naive["ms"] and mine["peak_mb"] <= naive["peak_mb"] / 5, op


def test_pages_name_what_exists():
    from mpm_lite.report import readme

    texts = {page: (ROOT / page).read_text(encoding="utf-8") for page in readme.PAGES}
    for page, told in texts.items():
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", told):
            assert ((ROOT / page).parent / target).exists(), (page, target)
    text = "\n".join(texts.values())
    for command in re.findall(r"mpm-lite (\w+)", text):
        assert command in {
            "tour",
            "run",
            "sweep",
            "data",
            "bench",
            "pretrain",
            "world",
            "claims",
            "presets",
            "doctor",
            "classroom",
        }, command
    for name in re.findall(r"`([a-z0-9]+-[a-z0-9-]+)`", text):
        assert any(name in p.read_text() for p in SOURCES) or name.startswith("-"), name


def test_instruments_of_the_ledger():
    """The bars that must be met whatever the claims turn out to be."""
    from mpm_lite.report import readme

    english = readme.read_table("retention").query("test == 'stamps' and text == 'use-m' and language == 'en'").iloc[0]
    assert english["score"] >= 0.40 and english["n"] >= 200
    of = readme.read_table("controls")
    for row in of[of["condition"] != "real"].itertuples():
        assert row.low <= 0.02 and abs(row.over_chance) < 0.03, (row.text, row.condition, row.group)
    for row in of[of["condition"] == "blind"].itertuples():
        assert abs(row.over_chance) < 0.005
    assert set(of["condition"]) == {"real", "shuffled", "blind", "random-image"} and (of["seeds"] >= 5).all()
