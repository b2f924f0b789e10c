"""Sources of more images than one machine can handle: a tree of files or Parquet files, at any address.

Workers import this to read; what only listing needs is imported there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from imgsim.extras.scale.parts import read_footers, read_groups
from imgsim.extras.scale.shards import Shards
from imgsim.sources.errors import first_line

VERSION_KEYS = ("size", "mtime", "ETag", "etag", "LastModified", "last_modified")  # by which a change is recognised
PIECE = 64  # image files that a task opens


@dataclass(frozen=True)
class Images:
    """Images in order, which are their ids: one per image file, or all rows of each Parquet file.

    Attributes:
        files: their names in the folder; version: of each, what changes when it does.
        row_groups: of each Parquet file, how many images each of its row groups has; column: where they are.
        skipped: files that cannot be read, as {"source", "reason"}.
    """

    folder: Shards
    files: list[str]
    row_groups: list[list[int]]
    column: str | None = None
    skipped: list[dict] = field(default_factory=list)
    version: list = field(default_factory=list)

    def __len__(self) -> int:
        return sum(map(sum, self.row_groups))

    def pieces(self, first: int, last: int) -> Iterator[dict]:
        """Divide the images with the ids from first to before last into pieces of work for `read_images`."""
        last = min(last, len(self))
        if self.column is None:
            for start in range(first, last, PIECE):
                stop = min(start + PIECE, last)
                yield {"id": start, "count": stop - start, "files": self.files[start:stop]}
            return
        begin = 0  # the id of a row group's first image
        for file, groups, version in zip(self.files, self.row_groups, self.version, strict=True):
            first_of_file = begin
            for group, size in enumerate(groups):
                start, stop = max(first, begin), min(last, begin + size)
                if start < stop:
                    where = {"group": group, "skip": start - begin, "row": start - first_of_file}
                    where["bytes"] = int(version[0])
                    yield {"id": start, "count": stop - start, "files": [file], **where}
                begin += size


def list_images(address, column: str | None = None) -> Images:
    """List the images at an address: those in Parquet files if there are any, else image files.

    Args:
        address: "builtin", a path, or what fsspec knows; of a file or a folder.
        column: of the images in Parquet files; by default the one that holds images.

    Raises:
        ValueError: there are none, or there is no such column.
    """
    from imgsim.sources.builtin import builtin_folder
    from imgsim.sources.parquet import is_parquet_folder

    address = str(address)
    folder = Shards.at(builtin_folder() / "train" if address == "builtin" else address)
    folder.fs.invalidate_cache()  # others may have written since it was last listed
    try:
        if folder.ask("isfile", folder.path):
            parent, _, name = folder.path.rpartition("/")
            versions = {name: file_version(folder.ask("info", folder.path))} if by_suffix(name) else {}
            folder = Shards(folder.fs, parent)
        else:
            versions = list_files(folder)
    except OSError as error:
        raise ValueError(f"There are no images to embed at {address!r}: {first_line(error)}") from error
    parquet = {name: version for name, version in versions.items() if name.endswith(".parquet")}
    files = [name for name in versions if name not in parquet]
    if parquet and not (files and folder.local and not is_parquet_folder(Path(folder.path))):  # a table beside photos
        return list_parquet(folder, address, parquet, column)
    if not files:
        raise ValueError(f"There are no images to embed at {address!r}: no Parquet file, and none of images.")
    return Images(folder, files, [[1]] * len(files), version=[versions[name] for name in files])


def by_suffix(name: str) -> bool:
    """Tell whether a file is named like one of images."""
    from imgsim.sources.folder import SUFFIXES

    return PurePosixPath(name).suffix.lower() in {*SUFFIXES, ".parquet"}


def list_files(folder: Shards) -> dict[str, list]:
    """List the files below a folder in order, by their names from there on, with what changes when a file does."""
    if folder.local and Path(folder.path).is_dir():  # follows links, as for any other folder of images
        from imgsim.sources.folder import find_images, printable_path

        paths = [path for path in find_images(Path(folder.path)) if printable_path(path) == str(path)]
        paths += Path(folder.path).rglob("*.parquet")
        infos = {str(path): folder.fs.info(str(path)) for path in paths}
    else:
        # To look into files, as on this machine, would take a request for each.
        infos = {path: info for path, info in folder.ask("find", folder.path, detail=True).items() if by_suffix(path)}
    names = {path: path.removeprefix(folder.path).lstrip("/") for path in sorted(infos)}
    return {name: file_version(infos[path]) for path, name in names.items() if "/." not in f"/{name}"}


def file_version(info: dict) -> list[str]:
    """Return what changes when a file does, from what a file system says about it."""
    return [str(info.get(key)) for key in VERSION_KEYS]


def list_parquet(folder: Shards, address: str, versions: dict[str, list], column: str | None) -> Images:
    """List the images in Parquet files; a file that is no Parquet file is skipped."""
    from datasets import Features

    from imgsim.sources.parquet import image_column

    sizes = {name: int(version[0]) for name, version in versions.items()}
    footers = read_footers(folder, sizes)
    good = {name: footer for name, footer in footers.items() if not isinstance(footer, Exception)}
    bad = {name: first_line(error) for name, error in footers.items() if name not in good}
    skipped = [{"source": name, "reason": f"no Parquet file: {reason}"} for name, reason in bad.items()]
    if not good:
        raise ValueError(f"There are no images to embed at {address!r}: {skipped[0]['source']}: {skipped[0]['reason']}")
    schema = next(iter(good.values())).schema.to_arrow_schema()
    column = column or image_column(Features.from_arrow_schema(schema))
    if column not in schema.names:
        raise ValueError(f"{address!r} has no column {column or 'of images'}, only {', '.join(schema.names)}.")
    row_groups = [[footer.row_group(i).num_rows for i in range(footer.num_row_groups)] for footer in good.values()]
    return Images(folder, list(good), row_groups, column, skipped, [versions[name] for name in good])


def read_images(folder: Shards, column: str | None, piece: dict) -> list[tuple[str, object]]:
    """Read the images of a piece, see `Images.pieces`: the source of each, and its content or why it cannot be read.

    Raises:
        OSError: the store cannot be reached; what is no fault of an image does not count as one.
    """
    if column is None:
        paths = [f"{folder.path}/{name}" for name in piece["files"]]
        contents = (
            list(map(Path, paths)) if folder.local else folder.fetch([(name, None, None) for name in piece["files"]])
        )
        return list(zip(piece["files"], contents, strict=True))
    (file,) = piece["files"]
    sources = [f"{file}#{row}" for row in range(piece["row"], piece["row"] + piece["count"])]
    rows = read_footers(folder, {file: piece["bytes"]})[file]
    if not isinstance(rows, Exception):
        (rows,) = read_groups(folder, [(file, rows, [piece["group"]])], [column])
    if isinstance(rows, Exception):
        return [(source, rows) for source in sources]
    return list(zip(sources, rows[column].slice(piece["skip"], piece["count"]).to_pylist(), strict=True))
