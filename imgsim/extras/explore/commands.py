"""The command `explore` of the command line."""

import argparse
import sys

from imgsim.extras.runs.checkpoint import GENERAL, LEAVES_ONLY, ask_for_checkpoint
from imgsim.extras.runs.settings import HELP


def explore(command: argparse.ArgumentParser):
    """Write an interactive page that shows hashing at work on your images.

    The page is one file that needs no network: a map of the images, a query to drag, planes to draw anew, and what is
    found.

    examples:
      imgsim explore builtin
      imgsim explore photos --checkpoint facebook/dinov2-small --output photos.html
    """
    command.add_argument("dataset", metavar="DATASET", help=HELP["dataset"])
    command.add_argument("--checkpoint", help=f"{HELP['checkpoint']} (default: for photos {GENERAL} if it is here)")
    command.add_argument("--output", metavar="HTML", default="explore.html", help="the file (default: explore.html)")

    def work(options):
        from imgsim.extras.explore.page import check_target, read_data, write_page

        check_target(options.output)  # before the images are embedded, which may take long
        checkpoint = options.checkpoint or ("builtin" if options.dataset == "builtin" else ask_for_checkpoint())
        if checkpoint == "builtin" != options.dataset:
            print(f"{LEAVES_ONLY}; for photos take --checkpoint {GENERAL}", file=sys.stderr)
        print(f"Page: {write_page(read_data(options.dataset, checkpoint), options.output)}")

    return work
