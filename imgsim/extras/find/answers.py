"""Answers as text, JSON, CSV, paths or a page, whatever characters are in the files' names."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import NamedTuple

from imgsim.extras.find.folder_index import Match
from imgsim.extras.runs.gallery import Picture, write_gallery
from imgsim.sources.folder import printable


class Answer(NamedTuple):
    """The files most like one photo, or most like what words say."""

    query: str  # the photo's path, or "text: " and the words
    matches: list[Match]


def plain_path(path: str | os.PathLike) -> str:
    """Return a path that no program takes for an option, nor a spreadsheet for a formula."""
    path = os.fspath(path)
    return f"./{path}" if path[:1] in tuple("=+-@\t\r") else path


def as_text(answers: Sequence[Answer]) -> str:
    """Return answers to read: cosine and path; above them, if there are several, what was asked for."""
    blocks = []
    for query, matches in answers:
        heading = [f"{printable(query)}:"] if len(answers) > 1 else []
        blocks.append("\n".join([*heading, *(f"{cosine:6.3f}  {printable(path)}" for path, cosine in matches)]))
    return "\n\n".join(blocks) + "\n"


def as_json(answers: Sequence[Answer]) -> str:
    """Return [{"query", "matches": [{"path", "cosine"}]}]; bytes that are no UTF-8 are escaped as by os.fsdecode."""
    content = [
        {"query": query, "matches": [{"path": path, "cosine": round(cosine, 6)} for path, cosine in matches]}
        for query, matches in answers
    ]
    return json.dumps(content, indent=2) + "\n"


def as_csv(answers: Sequence[Answer]) -> str:
    """Return the columns query, rank, path and cosine."""
    stream = StringIO(newline="")
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(("query", "rank", "path", "cosine"))
    for query, matches in answers:
        table.writerows((query, rank, path, f"{cosine:.6f}") for rank, (path, cosine) in enumerate(matches, 1))
    return stream.getvalue()


def as_paths(answers: Sequence[Answer], end: str) -> str:
    """Return the paths of all matches, each once, with an end after each."""
    paths = dict.fromkeys(match.path for answer in answers for match in answer.matches)
    return "".join(path + end for path in paths)


def write_page(answers: Sequence[Answer], folder: str, target: Path) -> None:
    """Write what was found in a folder as a page of thumbnails that link to the files."""
    groups = []
    for query, matches in answers:
        asked = (
            [Picture(query, os.path.basename(query), ["the query"], query, marked=True)]
            if os.path.isfile(query)
            else []
        )
        found = [
            Picture(path, os.path.relpath(path, folder), [f"cosine {cosine:.3f}"], path) for path, cosine in matches
        ]
        groups.append(("" if asked else query, [*asked, *found]))
    write_gallery(target, f"Found in {printable(folder)}", (), groups)
