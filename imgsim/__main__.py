"""The command line: python -m imgsim run, assess, export."""

from __future__ import annotations

import argparse
import sys

from imgsim.images import add_options
from imgsim.runs import DEFAULTS, read_params, run
from imgsim.store import cache_folder, cache_megabytes

HELP = {
    "dataset": "'builtin', a data set on the Hub (owner/name or owner/name@revision), or a folder of images",
    "checkpoint": "'builtin', a checkpoint on the Hub (owner/name or owner/name@revision), a folder, or an ONNX file",
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


class Parser(argparse.ArgumentParser):
    """Says in one sentence what was wrong, and takes no abbreviated options."""

    def __init__(self, **settings):
        super().__init__(**settings, allow_abbrev=False)

    def error(self, message: str):
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m imgsim", description="Image similarity: embeddings, hashes, tables, ranked images.")
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run", help="execute notebooks 01 to 04 and keep pictures, numbers and index")
    assess = commands.add_parser(
        "assess", help="measure a checkpoint's embeddings beside its untrained self and pixels"
    )
    export = commands.add_parser("export", help="write a checkpoint as an ONNX file that --checkpoint takes")
    export.add_argument("checkpoint", metavar="CHECKPOINT", help=HELP["checkpoint"])
    export.add_argument("target", metavar="FILE.onnx", help="where to write it; settings go to FILE.onnx.json")
    for command, names in ((runs, DEFAULTS), (assess, ("dataset", "checkpoint")), (export, ())):
        for name in names:
            option, kind = "--" + name.replace("_", "-"), type(DEFAULTS[name])
            text = f"{HELP[name]} (default: {DEFAULTS[name]})"
            command.add_argument(option, type=kind, default=argparse.SUPPRESS, help=text)
        for option, (_, text) in COLUMNS.items():
            command.add_argument(option, metavar="NAME", help=text)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    runs.add_argument("--params", metavar="FILE", help="settings from a YAML file; options given here come first")
    runs.add_argument("--output", metavar="DIR", help="where to put it all (default: outputs/ and the settings)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; errors become one sentence and exit code 1."""
    options = parse(arguments)
    given = {name: value for name, value in vars(options).items() if name in DEFAULTS}
    columns = {key: getattr(options, option[2:].replace("-", "_")) for option, (key, _) in COLUMNS.items()}
    try:
        params = read_params(options.params) if getattr(options, "params", None) else {}
        settings = DEFAULTS | params | given
        if any(columns.values()):
            settings["dataset"] = add_options(settings["dataset"], **columns)
        if options.command == "assess":
            from imgsim.assess import assess  # loads torch

            print(assess(settings["dataset"], settings["checkpoint"]))
            return 0
        if options.command == "export":
            from imgsim.encoder import load_encoder  # loads torch
            from imgsim.engine import export

            print(export(load_encoder(options.checkpoint, device="cpu"), options.target))
            return 0
        folder = run(settings, options.output)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except Exception as error:
        if options.debug:
            raise
        said = getattr(error, "evalue", error) or f"a notebook stopped with {error.ename}"
        print(f"error: {said}", file=sys.stderr)
        return 1
    print(f"Pictures and story: {folder / 'report.html'}\nNumbers:            {folder / 'metrics.json'}")
    print(f"Cache:              {cache_folder()} ({cache_megabytes():.0f} MB; make clean empties it)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
