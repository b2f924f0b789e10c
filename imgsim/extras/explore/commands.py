"""The command `explore` of the command line."""

import argparse

from imgsim.extras.runs.settings import HELP


def explore(command: argparse.ArgumentParser):
    """Write a page that shows hashing at work on your images, to be moved by hand.

    The page is one file that needs no network: a map of the images, planes and cells to change, and what is found.

    examples:
      imgsim explore builtin
      imgsim explore photos --checkpoint facebook/dinov2-small --output photos.html
    """
    command.add_argument("dataset", metavar="DATASET", help=HELP["dataset"])
    command.add_argument("--checkpoint", default="builtin", help=f"{HELP['checkpoint']} (default: builtin)")
    command.add_argument("--output", metavar="HTML", default="explore.html", help="the file (default: explore.html)")

    def work(options):
        from imgsim.extras.explore.page import check_target, read_data, write_page

        check_target(options.output)  # before the images are embedded, which may take long
        print(f"Page: {write_page(read_data(options.dataset, options.checkpoint), options.output)}")

    return work
