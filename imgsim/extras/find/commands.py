"""The commands find and index: their options, and what they print."""

from __future__ import annotations

import argparse
import os
import re
import sys
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from imgsim.extras.runs.checkpoint import GENERAL, LEAVES_ONLY, ask_for_checkpoint

DUAL = "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
CHECKPOINT = f"a checkpoint as for run (default: the one last used for this folder, else {GENERAL} if it is here)"
SHOWN = 3  # skipped files named by find


def find(command: argparse.ArgumentParser):
    """Find the images in a folder that are most like a photo.

    Prints cosine and path of each, best first. The first call embeds the folder's images and keeps the index in the
    cache; later calls embed only what is new. Nothing is written into the folder.

    examples:
      imgsim find photo.jpg photos --checkpoint facebook/dinov2-small
      imgsim find *.jpg photos --json
      imgsim find photo.jpg photos --paths -0 | xargs -0 cp -t found
    """
    command.usage = f"{command.prog} [options] [PHOTO ...] FOLDER"
    command.add_argument("paths", metavar="PHOTO ... FOLDER", nargs="+", help="images, and last the folder to search")
    command.add_argument("--top-k", type=int, default=8, help="matches per photo (default: 8)")
    command.add_argument("--checkpoint", help=CHECKPOINT)
    command.add_argument("--text", metavar="WORDS", help="search with words, if the checkpoint is a dual encoder")
    command.add_argument("--crop", metavar="X,Y,W,H", type=four_numbers, help="search with this part of the photo only")
    form = command.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--csv", action="store_true", help="print CSV with the columns query, rank, path, cosine")
    form.add_argument("--paths", action="store_true", dest="only_paths", help="print the paths only, one per line")
    command.add_argument("-0", action="store_true", dest="null", help="with --paths: end each with a null byte")
    command.add_argument("--open", action="store_true", help="also show the answer as a page")
    command.add_argument("--quiet", action="store_true", help="no progress and no remarks")

    def work(options):
        if len(options.paths) < 2 and options.text is None:
            command.error("a PHOTO or --text is needed besides the FOLDER")
        if options.text is not None and not options.text.strip():
            command.error("argument --text: there are no words to search with")
        if options.null and not options.only_paths:
            command.error("argument -0: only --paths has an end to choose")
        with only_the_answer(options.quiet):
            answer = find_answer(options)
        sys.stdout.reconfigure(encoding=sys.getfilesystemencoding(), errors="surrogateescape", newline="")
        print(answer, end="", flush=True)

    return work


def index(command: argparse.ArgumentParser):
    """Embed a folder's images in advance, for find, duplicates and demo, and list the files that cannot be read.

    Prints the folder of the index, which BuildLSHTable.load reads.
    """
    command.add_argument("folder", metavar="FOLDER", help="a folder of images, with those in its subfolders")
    command.add_argument("--checkpoint", help=CHECKPOINT)
    command.add_argument("--quiet", action="store_true", help="no progress and no remarks")

    def work(options):
        from imgsim.sources.cache import outlives_process

        with only_the_answer(options.quiet):
            kept = open_folder(options.folder, options.checkpoint, shown=None)
        if not (kept.saved and outlives_process(kept.place)):
            raise ValueError("There is no place to keep the index in: let IMGSIM_CACHE name another one.")
        print(kept.place / "index")

    return work


def four_numbers(text: str) -> tuple[int, ...]:
    """Read x,y,width,height."""
    if not re.fullmatch(r"\d+(,\d+){3}", text):
        raise argparse.ArgumentTypeError(f"x,y,width,height are needed, four whole numbers, not {text!r}")
    return tuple(map(int, text.split(",")))


@contextmanager
def only_the_answer(quiet: bool):
    """Send what libraries print to stderr, and with `quiet` nowhere."""
    with open(os.devnull, "w") as nowhere:
        place = nowhere if quiet else sys.stderr
        with redirect_stdout(place), redirect_stderr(place):
            yield


def is_image_folder(source: str) -> bool:
    """Tell whether a source is a folder of image files, not of a run, nor of a dataset's Parquet files."""
    from imgsim.sources.parquet import is_parquet_folder

    return os.path.isdir(source) and not os.path.exists(f"{source}/run.json") and not is_parquet_folder(Path(source))


def open_folder(folder: str, checkpoint: str | None, words: bool = False, shown: int | None = SHOWN):
    """Open the index of a folder, and say on stderr what it holds.

    Args:
        folder, checkpoint: as for `FolderIndex`.
        words: whether to search with words, too, which the built-in dual encoder can.
        shown: files named that cannot be read, of all that there are.
    """
    from imgsim.extras.find.answers import plain_path
    from imgsim.extras.find.folder_index import FolderIndex
    from imgsim.extras.runs.environment import PACKAGE
    from imgsim.sources.folder import printable

    captions = str(PACKAGE / "assets" / "leaf-captions")
    kept = FolderIndex(plain_path(folder), checkpoint, (lambda: captions) if words else ask_for_checkpoint, words)
    said = [f"{len(kept.index):,} images ({kept.embedded:,} newly embedded), checkpoint {kept.checkpoint}"]
    problems = [f"left out: {printable(path)} ({why})" for path, why in kept.skipped.items()]
    said += problems[:shown]
    if more := len(problems[len(said) - 1 :]):
        said.append(f"and {more:,} more files that cannot be read; imgsim index FOLDER lists them")
    if kept.checkpoint in ("builtin", captions):
        said.append(f"{LEAVES_ONLY}; for photos take --checkpoint {DUAL if words else GENERAL}")
    print("\n".join(said), file=sys.stderr)
    return kept


def find_answer(options: argparse.Namespace) -> str:
    """Search as the options say, and return what is to be printed."""
    from imgsim.extras.find import answers as form
    from imgsim.extras.find.folder_index import crop_image
    from imgsim.hashing import check_integer
    from imgsim.sources.decode import open_image

    check_integer(options.top_k, "top_k", 1)
    *photos, folder = options.paths
    if not os.path.isdir(folder):
        raise ValueError(f"{folder!r} is no folder; the folder to find images in comes last.")
    for photo in photos:
        if "://" in photo and not os.path.exists(photo):
            raise ValueError(f"{photo!r} is an address; download the photo first, such as with: curl -O {photo}")
        image = open_image(photo)  # before a folder is embedded, which may take long
        _ = options.crop and crop_image(image, options.crop)
    kept = open_folder(folder, options.checkpoint, bool(options.text))
    queries, embeddings = [form.plain_path(photo) for photo in photos], []
    if queries:
        embeddings = [kept.embed(queries, options.crop)]
    if options.text:
        queries.append(f"text: {options.text}")
        embeddings.append(kept.texts.embed([options.text]))
    found = [kept.search(rows, options.top_k) for rows in embeddings]
    answers = [form.Answer(*pair) for pair in zip(queries, [hits for part in found for hits in part], strict=True)]
    if options.open:
        import webbrowser

        from imgsim.sources.cache import best_effort

        page = kept.place / "answer.html"
        with best_effort():
            form.write_page(answers, folder, page)
            print(f"Page: {page}", file=sys.stderr)
            webbrowser.open(page.as_uri())
    if options.only_paths:
        return form.as_paths(answers, "\0" if options.null else "\n")
    return (form.as_json if options.json else form.as_csv if options.csv else form.as_text)(answers)
