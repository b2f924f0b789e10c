"""The command line: python -m imgsim run, sweep, query, repeat, assess, export, duplicates, demo, scale."""

from __future__ import annotations

import argparse
import sys

from imgsim.extras.runs.runner import DEFAULTS, read_params, run
from imgsim.sources.cache import cache_folder, cache_megabytes
from imgsim.sources.names import add_options

HELP = {
    "dataset": "'builtin', a data set on the Hub (owner/name or owner/name@revision), or a folder of images",
    "checkpoint": "'builtin', a checkpoint on the Hub (owner/name or owner/name@revision), or a folder; "
    "any of them after 'untrained:' for the same network with random weights; or an ONNX file",
    "hash_size": "bits in a code, 1 to 64: more bits, smaller buckets",
    "num_tables": "hash tables: more tables, more neighbours found",
    "probes": "further buckets looked up for every table: more probes, more neighbours found",
    "seed": "of the random planes, and of the held-out tenth where a data set has no test split",
    "top_k": "matches shown beside a query",
    "batch_size": "images embedded at a time",
    "dtype": "precision of the model's numbers: float32, bfloat16 or, on a GPU, float16",
}


COLUMNS = {  # options that become part of the data set's name
    "--revision": ("revision", "of a data set on the Hub: a branch, a tag or a commit"),
    "--split": ("split", "the only split to take: a tenth of it is held out to search with"),
    "--image-column": ("image", "the column of the images, where a data set has several"),
    "--label-column": ("label", "the column of the labels, where it is not found by itself"),
}
DESCRIPTION = "Image similarity: embeddings, hashes, tables, ranked images."
ABOUT = {
    "run": "once through the notebooks, with your images and your checkpoint",
    "sweep": "many settings side by side, and which of them to choose",
    "query": "ask the index of a run with a photo",
    "repeat": "does a run still come out the same?",
    "assess": "what is a checkpoint worth on these images?",
    "export": "write a checkpoint as an ONNX file that --checkpoint takes",
    "duplicates": "near-duplicates in a folder, side by side; nothing is deleted",
    "demo": "a page on this machine to try a run's index on",
    "scale": "embed, index and search more images than one machine takes, on Ray",
}
SCALE = {
    "embed": "images to Parquet shards of embeddings",
    "build": "shards of embeddings to hash tables in Parquet",
    "query": "ask the tables with a photo",
    "export": "write the index as BuildLSHTable.load(folder, mapped=True) opens it at once",
}
MORE = {
    "": """\
examples:
  python -m imgsim run                                   built-in images and checkpoint, no network
  python -m imgsim run --dataset photos --checkpoint facebook/dinov2-small
  python -m imgsim query outputs/photos-dinov2-small-k8-L10-p8-seed0 new.jpg
  python -m imgsim sweep params/sweep.yaml

python -m imgsim COMMAND --help tells more about each.""",
    "run": """\
Leaves a folder with report.html, the executed notebooks, figures/, index/, metrics.json and run.json.

examples:
  python -m imgsim run --hash-size 6 --num-tables 20
  python -m imgsim run --params params/beans.yaml --seed 1""",
    "sweep": """\
The file holds settings as for run, each with one value or a list of them:

  dataset: builtin
  checkpoint: [builtin, "untrained:builtin"]
  hash_size: [6, 8, 10]
  seed: [0, 1]

Every combination is a point. Named points may stand beside them, under "points: {small: {hash_size: 6}, ...}".
Leaves a folder with report.html (the answer, and a link to every point's own page), results.csv and
results.parquet. A sweep that was interrupted goes on where it stopped when it is started again.""",
    "query": """\
example:
  python -m imgsim query outputs/builtin-builtin-k8-L10-p8-seed0 photo.jpg --top-k 8""",
    "repeat": """\
Runs again from the folder's run.json, from an empty cache and into a place of its own. Exit code 0 means identical;
times are not compared.""",
    "assess": "Prints exact label precision and the number of directions the embeddings use.",
    "export": """\
example:
  python -m imgsim export facebook/dinov2-small dinov2.onnx""",
    "duplicates": """\
Leaves report.html, the groups side by side, and duplicates.csv with the columns group, path, keep (yes or no) and
cosine, with the one to keep. The threshold is calibrated on the folder itself, with altered copies of a sample.

examples:
  python -m imgsim duplicates photos --checkpoint facebook/dinov2-small
  python -m imgsim duplicates photos --checkpoint facebook/dinov2-small --threshold 0.95""",
    "scale": """\
examples:
  python -m imgsim scale embed s3://bucket/photos work --checkpoint facebook/dinov2-small --num-gpus 1 --concurrency 8
  python -m imgsim scale build work --num-tables 16
  python -m imgsim scale query work photo.jpg
  python -m imgsim scale export work index

Starts Ray on this machine, or uses the cluster that RAY_ADDRESS names. The folder (here work) may be any address that
fsspec knows, too. Interrupted, a step goes on where it stopped when it is started again.""",
    "demo": """\
example:
  python -m imgsim demo outputs/builtin-builtin-k8-L10-p8-seed0""",
}


class Parser(argparse.ArgumentParser):
    """Says in one sentence what was wrong, and takes no abbreviated options."""

    def __init__(self, **settings):
        super().__init__(**settings, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str):
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m imgsim", description=DESCRIPTION, epilog=MORE[""])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")

    def add(name: str, settings=()) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=ABOUT[name], description=ABOUT[name], epilog=MORE[name])
        for setting in settings:
            option, kind = "--" + setting.replace("_", "-"), type(DEFAULTS[setting])
            text = f"{HELP[setting]} (default: {DEFAULTS[setting]})"
            command.add_argument(option, type=kind, default=argparse.SUPPRESS, help=text)
        for option, (_, text) in COLUMNS.items() if settings else ():
            command.add_argument(option, metavar="NAME", help=text)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        return command

    runs = add("run", DEFAULTS)
    runs.add_argument("--params", metavar="FILE", help="settings from a YAML file; options given here come first")
    runs.add_argument("--output", metavar="DIR", help="where to put it all (default: outputs/ and the settings)")
    sweep = add("sweep")
    sweep.add_argument("file", metavar="FILE", help="a YAML file of settings and lists of settings")
    sweep.add_argument("--output", metavar="DIR", help="where to put it all (default: outputs/ and the file's name)")
    sweep.add_argument("--jobs", type=int, help="points at a time (default: as cores and memory allow)")
    query = add("query")
    query.add_argument("run", metavar="RUN", help="the folder of a run")
    query.add_argument("photo", metavar="PHOTO", help="an image file")
    query.add_argument("--top-k", type=int, default=8, help="matches to show (default: 8)")
    query.add_argument("--output", metavar="PNG", help="the picture of the matches (default: among the run's figures)")
    add("repeat").add_argument("run", metavar="RUN", help="the folder of a run")
    add("assess", ("dataset", "checkpoint"))
    export = add("export")
    export.add_argument("checkpoint", metavar="CHECKPOINT", help=HELP["checkpoint"])
    export.add_argument("target", metavar="FILE.onnx", help="where to write it")
    duplicates = add("duplicates")
    duplicates.add_argument("folder", metavar="FOLDER", help="a folder of images, or another data set")
    duplicates.add_argument("--checkpoint", default="builtin", help=f"{HELP['checkpoint']} (default: builtin)")
    duplicates.add_argument("--threshold", type=float, help="the least cosine of a pair (default: calibrated)")
    duplicates.add_argument("--output", metavar="DIR", help="where to put it (default: outputs/duplicates-FOLDER)")
    demo = add("demo")
    demo.add_argument("run", metavar="RUN", help="the folder of a run")
    demo.add_argument("--port", type=int, default=7860, help="where on this machine the page is (default: 7860)")
    add_scale(add("scale"))
    return parser.parse_args(arguments)


def add_scale(scale: argparse.ArgumentParser) -> None:
    steps = scale.add_subparsers(dest="step", required=True, metavar="STEP", title="steps")
    embed, build, query, export = (steps.add_parser(name, help=text, description=text) for name, text in SCALE.items())
    embed.add_argument("images", help="'builtin', or a path or address of Parquet files or of a tree of image files")
    for step in (embed, build, query, export):
        step.add_argument("folder", metavar="FOLDER", help="where embeddings/ and index/ are")
        step.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    embed.add_argument("--checkpoint", default="builtin", help=f"{HELP['checkpoint']} (default: builtin)")
    embed.add_argument("--dtype", default="float32", help=f"{HELP['dtype']} (default: float32)")
    embed.add_argument("--batch-size", type=int, default=48, help=f"{HELP['batch_size']} (default: 48)")
    embed.add_argument("--image-column", dest="column", metavar="NAME", help=COLUMNS["--image-column"][1])
    embed.add_argument(
        "--num-gpus", type=float, default=0, help="GPUs of each actor that holds the encoder (default: 0)"
    )
    embed.add_argument("--concurrency", type=int, help="such actors (default: one for each core; with GPUs, 1)")
    embed.add_argument("--max-bad", type=int, default=1000, help="unreadable images to pass over (default: 1000)")
    build.add_argument("--hash-size", type=int, help=f"{HELP['hash_size']} (default: some 16 candidates in a bucket)")
    build.add_argument("--num-tables", type=int, default=10, help=f"{HELP['num_tables']} (default: 10)")
    build.add_argument("--seed", type=int, default=0, help="of the random planes (default: 0)")
    query.add_argument("photo", metavar="PHOTO", help="an image file")
    query.add_argument("--top-k", type=int, default=8, help="matches to list (default: 8)")
    query.add_argument("--probes", type=int, default=8, help=f"{HELP['probes']} (default: 8)")
    export.add_argument("target", metavar="TARGET", help="the folder of the index to write")


def settings_of(options: argparse.Namespace) -> dict:
    """The settings that options name, over those of a parameters file where one is given."""
    settings = read_params(options.params) if getattr(options, "params", None) else {}
    settings |= {name: value for name, value in vars(options).items() if name in DEFAULTS}
    columns = {key: getattr(options, option[2:].replace("-", "_")) for option, (key, _) in COLUMNS.items()}
    if any(columns.values()):
        settings["dataset"] = add_options(settings.get("dataset", DEFAULTS["dataset"]), **columns)
    return settings


def execute(options: argparse.Namespace) -> int:
    """Run the command that was asked for; what only one of them needs is imported there."""
    if options.command == "run":
        folder = run(settings_of(options), options.output)
        print(f"Pictures and story: {folder / 'report.html'}\nNumbers:            {folder / 'metrics.json'}")
        print(f"Cache:              {cache_folder()} ({cache_megabytes():.0f} MB; make clean empties it)")
    elif options.command == "sweep":
        from imgsim.extras.sweeps.sweep import sweep

        folder, table = sweep(options.file, options.output, options.jobs)
        if (folder / "report.html").exists():
            print(f"Answer: {folder / 'report.html'}")
        print(f"Table:  {folder / 'results.csv'}")
        failed = int(table["error"].notna().sum())
        if failed:
            print(
                f"error: {failed} of {len(table)} points failed; start the sweep again to retry them.", file=sys.stderr
            )
        return int(failed > 0)
    elif options.command == "query":
        from imgsim.extras.runs.saved import query

        print(f"Picture: {query(options.run, options.photo, options.top_k, options.output)}")
    elif options.command == "repeat":
        from imgsim.extras.runs.saved import repeat

        return int(not repeat(options.run))
    elif options.command == "export":
        from imgsim.encoder import load_encoder  # loads torch
        from imgsim.models.onnx import export_onnx

        print(export_onnx(load_encoder(options.checkpoint, device="cpu"), options.target))
    elif options.command == "duplicates":
        from imgsim.extras.duplicates.report import report_duplicates

        folder = report_duplicates(options.folder, options.checkpoint, options.threshold, options.output)
        print(f"Report: {folder / 'report.html'}\nTable:  {folder / 'duplicates.csv'}\nNothing was deleted.")
    elif options.command == "demo":
        from imgsim.extras.demo import serve

        serve(options.run, options.port)
    elif options.command == "scale":
        from imgsim.extras.scale import commands

        settings = {name: value for name, value in vars(options).items() if name not in ("command", "step", "debug")}
        print(getattr(commands, options.step)(**settings))
    else:
        from imgsim.extras.runs.assess import assess  # loads torch

        print(assess(**settings_of(options)))
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run one command; errors become one sentence and exit code 1."""
    options = parse(arguments)
    try:
        return execute(options)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except Exception as error:
        if options.debug:
            raise
        said = (
            str(getattr(error, "evalue", error)).strip()
            or f"stopped by {getattr(error, 'ename', type(error).__name__)}"
        )
        print(f"error: {said.partition(chr(10))[0]}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
