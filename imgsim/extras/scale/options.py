"""The steps of `imgsim scale` and their options."""

from __future__ import annotations

import argparse

from imgsim.extras.runs.settings import HELP


def add_steps(command: argparse.ArgumentParser) -> None:
    """Add the steps, which are the functions of scale/commands.py, and their options."""
    steps = command.add_subparsers(dest="step", required=True, metavar="STEP", title="steps")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        step = steps.add_parser(name, help=text, description=text)
        step.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        return step

    embed = add("embed", "embed images into Parquet shards")
    embed.add_argument("images", help="'builtin', or a path or address of Parquet files or of a tree of image files")
    embed.add_argument("folder", metavar="FOLDER", help="the folder for embeddings/ and index/")
    embed.add_argument("--checkpoint", default="builtin", help=f"{HELP['checkpoint']} (default: builtin)")
    embed.add_argument("--dtype", default="float32", help=f"{HELP['dtype']} (default: float32)")
    embed.add_argument("--batch-size", type=int, default=48, help=f"{HELP['batch_size']} (default: 48)")
    embed.add_argument(
        "--column",
        "--image-column",
        metavar="NAME",
        help="column of Parquet files; of images it need not be named if there is only one",
    )
    embed.add_argument("--modality", default="image", help="image, text or sound (default: image)")
    embed.add_argument(
        "--stored-as", default="float16", help="float16, or int8 for half the bytes per image (default: float16)"
    )
    embed.add_argument("--num-gpus", type=float, default=0, help="GPUs per actor that holds the encoder (default: 0)")
    embed.add_argument("--concurrency", type=int, help="such actors (default: one per core; with GPUs, 1)")
    embed.add_argument(
        "--max-bad", type=int, default=1000, help="unreadable images to skip before giving up (default: 1000)"
    )
    build = add("build", "sort the embeddings' hashes into tables in Parquet")
    build.add_argument("folder", metavar="FOLDER", help="the folder with embeddings/")
    build.add_argument("--hash-size", type=int, help=f"{HELP['hash_size']} (default: about 16 candidates per bucket)")
    build.add_argument("--num-tables", type=int, default=10, help=f"{HELP['num_tables']} (default: 10)")
    build.add_argument("--planes", default="principal", help=f"{HELP['planes']} (default: principal)")
    build.add_argument("--seed", type=int, default=0, help="seed of planes and sketches (default: 0)")
    query = add("query", "search the tables with a photo")
    query.add_argument("folder", metavar="FOLDER", help="the folder with embeddings/ and index/")
    query.add_argument("photo", metavar="PHOTO", help="an image file")
    query.add_argument("--top-k", type=int, default=8, help="matches to list (default: 8)")
    query.add_argument("--probes", type=int, default=8, help=f"{HELP['probes']} (default: 8)")
    export = add("export", "write the index so that BuildLSHTable.load(folder, mapped=True) opens it at once")
    export.add_argument("folder", metavar="FOLDER", help="the folder with embeddings/ and index/")
    export.add_argument("target", metavar="TARGET", help="the folder to write")
