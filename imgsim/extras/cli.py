"""The command line: one function per command, which adds its options and returns what the command does."""

from __future__ import annotations

import argparse
import gc
import inspect
import os
import sys
from collections.abc import Callable
from contextlib import suppress

import imgsim
from imgsim.extras.explore.commands import explore
from imgsim.extras.find.commands import CHECKPOINT, find, index, is_image_folder, open_folder
from imgsim.extras.runs.settings import DEFAULTS, HELP, WEIGHTS, read_params
from imgsim.extras.scale.options import add_steps
from imgsim.sources.errors import say
from imgsim.sources.names import add_options

Parser = argparse.ArgumentParser
Work = Callable[[argparse.Namespace], int | None]


def add_settings(command: Parser, *names: str) -> None:
    """Add options for settings of a run, and those that become part of the dataset's name."""
    for name in names:
        text = f"{HELP[name]} (default: {DEFAULTS[name]})"
        kind = type(DEFAULTS[name])
        command.add_argument(f"--{name.replace('_', '-')}", type=kind, default=argparse.SUPPRESS, help=text)
    command.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a dataset on the Hub")
    command.add_argument("--split", metavar="NAME", help="take this split only, and hold out a tenth of it as queries")
    command.add_argument("--image-column", metavar="NAME", help="column of the images, if a dataset has several")
    command.add_argument("--label-column", metavar="NAME", help="column of the labels, if not found automatically")


def chosen_settings(options: argparse.Namespace) -> dict:
    """Return the settings that options name, over those of a parameters file if there is one."""
    settings = read_params(options.params) if getattr(options, "params", None) else {}
    settings |= {name: value for name, value in vars(options).items() if name in DEFAULTS}
    columns = {"split": options.split, "image": options.image_column, "label": options.label_column}
    if options.revision or any(columns.values()):
        settings["dataset"] = add_options(settings.get("dataset", DEFAULTS["dataset"]), options.revision, **columns)
    return settings


def run(command: Parser) -> Work:
    """Run notebooks 01 to 04 with your images and your checkpoint.

    The run leaves a folder with report.html, the executed notebooks, figures/, index/, metrics.json and run.json.

    examples:
      imgsim run --hash-size 6 --num-tables 20
      imgsim run --params params/beans.yaml --seed 1
    """
    add_settings(command, *DEFAULTS)
    command.add_argument("--params", metavar="FILE", help="read settings from a YAML file; options override them")
    command.add_argument("--output", metavar="DIR", help="write to this folder (default: outputs/ and the settings)")

    def work(options):
        from imgsim.extras.runs.run import run
        from imgsim.sources.cache import cache_folder, cache_megabytes

        folder = run(chosen_settings(options), options.output)
        print(f"Pictures and story: {folder / 'report.html'}\nNumbers:            {folder / 'metrics.json'}")
        print(f"Cache:              {cache_folder()} ({cache_megabytes():.0f} MB, safe to delete)")

    return work


def sweep(command: Parser) -> Work:
    """Run many settings side by side and recommend one of them.

    The file holds settings as for run, each with one value or a list of them:

      dataset: builtin
      checkpoint: [builtin, "untrained:builtin"]
      hash_size: [6, 8, 10]
      seed: [0, 1]

    Every combination is a point. Named points may be added under "points: {small: {hash_size: 6}, ...}". The sweep
    leaves a folder with report.html (the answer, and a link to every point's own page), results.csv and
    results.parquet. An interrupted sweep continues where it stopped when it is started again.
    """
    command.add_argument("file", metavar="FILE", help="a YAML file of settings and lists of settings")
    command.add_argument("--output", metavar="DIR", help="write to this folder (default: outputs/ and the file's name)")
    command.add_argument("--jobs", type=int, help="points at a time (default: as cores and memory allow)")

    def work(options):
        from imgsim.extras.sweeps.sweep import sweep

        folder, table = sweep(options.file, options.output, options.jobs)
        if (folder / "report.html").exists():
            print(f"Answer: {folder / 'report.html'}")
        print(f"Table:  {folder / 'results.csv'}")
        if failed := int(table["error"].notna().sum()):
            retry = f"{failed} of {len(table)} points failed; start the sweep again to retry them."
            print(f"error: {retry}", file=sys.stderr)
            return 1

    return work


def query(command: Parser) -> Work:
    """Search a finished run's index with a photo.

    example:
      imgsim query outputs/builtin-builtin-k8-L10-p8-seed0 photo.jpg --top-k 8
    """
    command.add_argument("run", metavar="RUN", help="the folder of a run")
    command.add_argument("photo", metavar="PHOTO", help="an image file")
    command.add_argument("--top-k", type=int, default=8, help="matches to show (default: 8)")
    command.add_argument("--output", metavar="PNG", help="write the picture here (default: among the run's figures)")

    def work(options):
        from imgsim.extras.runs.saved import query

        print(f"Picture: {query(options.run, options.photo, options.top_k, options.output)}")

    return work


def repeat(command: Parser) -> Work:
    """Repeat a finished run and compare the numbers.

    The run is repeated from the folder's run.json, from an empty cache and in a temporary folder. Exit code 0 means
    that the numbers are the same, or the same within rounding, as on another machine; times are not compared.
    """
    command.add_argument("run", metavar="RUN", help="the folder of a run")

    def work(options):
        from imgsim.extras.runs.saved import repeat

        return int(not repeat(options.run))

    return work


def assess(command: Parser) -> Work:
    """Measure how good a checkpoint is on a dataset.

    Prints exact label precision and the number of directions that the embeddings use, compared with the same network
    untrained and with plain pixels.
    """
    add_settings(command, "dataset")
    command.add_argument("--checkpoint", default="builtin", help=f"{WEIGHTS} (default: builtin)")

    def work(options):
        from imgsim.extras.runs.assess import assess

        print(assess(**chosen_settings(options)))

    return work


def export(command: Parser) -> Work:
    """Write a checkpoint as an ONNX file that --checkpoint takes.

    example:
      imgsim export facebook/dinov2-small dinov2.onnx
    """
    command.add_argument("checkpoint", metavar="CHECKPOINT", help=WEIGHTS)
    command.add_argument("target", metavar="FILE.onnx", help="the file to write")

    def work(options):
        from imgsim.encoder import load_encoder
        from imgsim.models.onnx import export_onnx

        print(export_onnx(load_encoder(options.checkpoint, device="cpu"), options.target))

    return work


def duplicates(command: Parser) -> Work:
    """Find near-duplicates in a folder and show them side by side; nothing is deleted.

    Leaves report.html, the groups side by side, duplicates.csv and duplicates.json: group, path, which one to keep,
    and the others' cosine with it and whether they are identical to it, byte by byte. The threshold is calibrated on
    the folder itself, with altered copies of a sample. A folder of images uses the same kept index as find.

    examples:
      imgsim duplicates photos --checkpoint facebook/dinov2-small
      imgsim duplicates photos --checkpoint facebook/dinov2-small --threshold 0.95
    """
    command.add_argument("folder", metavar="FOLDER", help="a folder of images, or another dataset")
    command.add_argument("--checkpoint", help=CHECKPOINT)
    command.add_argument("--threshold", type=float, help="lowest cosine of a pair (default: calibrated)")
    command.add_argument("--output", metavar="DIR", help="write to this folder (default: outputs/duplicates-FOLDER)")

    def work(options):
        from imgsim.extras.duplicates.report import embed_dataset, report_duplicates

        source, checkpoint = options.folder, options.checkpoint
        load = lambda: embed_dataset(source, checkpoint or "builtin")  # noqa: E731
        if is_image_folder(source):
            source = os.path.realpath(source)
            load = lambda: open_folder(source, checkpoint).load_all()  # noqa: E731
        folder = report_duplicates(source, load, options.threshold, options.output)
        print(f"Report: {folder / 'report.html'}\nTable:  {folder / 'duplicates.csv'}\nNothing was deleted.")

    return work


def demo(command: Parser) -> Work:
    """Serve a local page for searching the images of a folder or a run.

    examples:
      imgsim demo photos --checkpoint facebook/dinov2-small
      imgsim demo outputs/builtin-builtin-k8-L10-p8-seed0
    """
    command.add_argument("folder", metavar="FOLDER", help="a folder of images, or of a run")
    command.add_argument("--checkpoint", help=f"for a folder of images: {CHECKPOINT}")
    command.add_argument("--port", type=int, default=7860, help="the page's port on this machine (default: 7860)")

    def work(options):
        from imgsim.extras.demo import check_page, serve

        check_page(options.port)  # before a folder is embedded, which may take long
        folder = options.folder
        serve(open_folder(folder, options.checkpoint) if is_image_folder(folder) else folder, options.port)

    return work


def scale(command: Parser) -> Work:
    """Embed, index and search more images than fit on one machine, with Ray.

    examples:
      imgsim scale embed s3://bucket/photos work --checkpoint facebook/dinov2-small --num-gpus 1 --concurrency 8
      imgsim scale build work --num-tables 16
      imgsim scale query work photo.jpg
      imgsim scale export work index

    Starts Ray on this machine, or uses the cluster that RAY_ADDRESS names. The folder (here work) may be any address
    that fsspec knows, too. An interrupted step continues where it stopped when it is started again.
    """
    add_steps(command)

    def work(options):
        from imgsim.extras.scale import commands

        settings = {name: value for name, value in vars(options).items() if name not in ("work", "step", "debug")}
        print(getattr(commands, options.step)(**settings))

    return work


class OneSentenceParser(Parser):
    """Says in one sentence what was wrong, and takes no abbreviated options."""

    def __init__(self, **settings):
        super().__init__(**settings, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str):
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line; `options.work` is what the command does."""
    parser = OneSentenceParser(
        prog="imgsim",
        description="Find similar images: embeddings, hashes, tables, ranked images.",
        epilog="imgsim COMMAND --help tells more about each. Without installing: python -m imgsim COMMAND",
    )
    parser.add_argument("--version", action="version", version=f"imgsim {imgsim.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    for add_command in (find, index, run, sweep, query, repeat, assess, export, duplicates, demo, explore, scale):
        text = inspect.getdoc(add_command) or ""
        first = text.partition("\n")[0].rstrip(".")
        command = commands.add_parser(add_command.__name__, help=first[0].lower() + first[1:], description=text)
        command.set_defaults(work=add_command(command), debug=False)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    with suppress(ImportError):  # Tab in bash, zsh and fish, where argcomplete is installed
        import argcomplete

        argcomplete.autocomplete(parser)
    options, rest = parser.parse_known_args(arguments)
    if rest and (any(word.startswith("-") for word in rest) or "paths" not in options):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # argparse ends a list of paths where an option comes between them
        options.paths += rest
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run one command; an error becomes one sentence and exit code 1."""
    gc.set_threshold(100_000)  # torch and transformers make a million objects and no garbage: a second saved
    options = parse(arguments)
    try:
        if sys.stdout is None:
            raise ValueError("The standard output is closed: there is no place to print the answer.")
        return options.work(options) or 0
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except Exception as error:
        if options.debug:
            raise
        print(f"error: {say(error)}", file=sys.stderr)
        return 1
