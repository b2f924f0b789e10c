"""Where images come from that are too many for one machine: a tree of files or Parquet shards, at any address.

Workers import this to read; what only listing needs is imported there.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from imgsim.extras.scale.shards import Shards
from imgsim.sources.cache import atomic_write, cache_folder
from imgsim.sources.errors import first_line

VERSION = ("size", "mtime", "ETag", "etag", "LastModified", "last_modified")  # by which file systems tell a change


@dataclass(frozen=True)
class Images:
    """Images in order, each with its number as id: `files` with as many images each as `parts` adds up to.

    A file of images has one part with one image; a Parquet file has its row groups. column: of the images in a
    Parquet file. skipped: whole files that were left out.
    """

    place: Shards
    files: list[str]
    parts: list[list[int]]
    column: str | None = None
    skipped: list[dict] = field(default_factory=list)
    version: list = field(default_factory=list)

    def __len__(self) -> int:
        return sum(map(sum, self.parts))

    def pieces(self, first: int, last: int, size: int) -> Iterator[dict]:
        """The images with the ids from first to before last as work for tasks, which `read` takes."""
        last = min(last, len(self))
        if self.column is None:
            for start in range(first, last, size):
                stop = min(start + size, last)
                yield {"id": start, "count": stop - start, "files": self.files[start:stop]}
            return
        begin = 0
        for file, parts in zip(self.files, self.parts, strict=True):
            row = 0
            for part, size in enumerate(parts):
                start, stop = max(first, begin), min(last, begin + size)
                if start < stop:
                    where = {"part": part, "skip": start - begin, "row": row + start - begin}
                    yield {"id": start, "count": stop - start, "files": [file], **where}
                begin, row = begin + size, row + size


def find(address, column: str | None = None) -> Images:
    """List the images at an address: those in Parquet files where there are any, else files by their suffix.

    Raises ValueError where there are none, or no such column.
    """
    from imgsim.sources.folder import SUFFIXES

    address = str(address)
    place = Shards.at(builtin() if address == "builtin" else address)
    try:
        if place.fs.isfile(place.path):
            folder, _, name = place.path.rpartition("/")
            place, known = Shards(place.fs, folder), {name: version_of(place.fs.info(place.path))}
        else:
            known = listing(place)
    except OSError as error:
        raise ValueError(f"There are no images to embed at {address!r}: {first_line(error)}") from error
    tables = {name: version for name, version in known.items() if name.endswith(".parquet")}
    if tables:
        return find_in_tables(place, address, tables, column)
    files = [name for name in known if PurePosixPath(name).suffix.lower() in SUFFIXES]
    if not files:
        raise ValueError(f"There are no images to embed at {address!r}: no Parquet file, and none of images.")
    return Images(place, files, [[1]] * len(files), version=[known[name] for name in files])


def listing(place: Shards) -> dict[str, list]:
    """The files below a folder in order, by their names from there on, with what changes when a file does."""
    if place.local and Path(place.path).is_dir():  # follows links, as for any other folder of images
        from imgsim.sources.folder import find_images, printable_path

        paths = [path for path in find_images(Path(place.path)) if printable_path(path) == str(path)]
        paths += Path(place.path).rglob("*.parquet")
        infos = {str(path): place.fs.info(str(path)) for path in paths}
    else:
        infos = place.fs.find(place.path, detail=True)
    names = {path: path.removeprefix(place.path).lstrip("/") for path in sorted(infos)}
    return {name: version_of(infos[path]) for path, name in names.items() if not f"/{name}".count("/.")}


def version_of(info: dict) -> list[str]:
    """What changes when a file does, of what a file system says of it."""
    return [str(info.get(key)) for key in VERSION]


def find_in_tables(place: Shards, address: str, known: dict[str, list], column: str | None) -> Images:
    """The images in Parquet files; a file that is none is left out and listed."""
    from datasets import Features

    from imgsim.sources.parquet import image_column

    def footer(name: str):
        try:
            with place.fs.open(f"{place.path}/{name}") as stream:
                file = pq.ParquetFile(stream)
                return file.schema_arrow, [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        except (OSError, pa.ArrowException) as error:
            return first_line(error)

    with ThreadPoolExecutor() as pool:
        footers = dict(zip(known, pool.map(footer, known), strict=True))
    whole = {name: footer for name, footer in footers.items() if not isinstance(footer, str)}
    broken = {name: why for name, why in footers.items() if name not in whole}
    skipped = [{"source": name, "reason": f"no Parquet file: {why}"} for name, why in broken.items()]
    if not whole:
        raise ValueError(f"There are no images to embed at {address!r}: {skipped[0]['source']}: {skipped[0]['reason']}")
    schema = next(iter(whole.values()))[0]
    column = column or image_column(Features.from_arrow_schema(schema))
    if column not in schema.names:
        raise ValueError(f"{address!r} has no column {column or 'of images'}, only {', '.join(schema.names)}.")
    parts = [sizes for _, sizes in whole.values()]
    return Images(place, list(whole), parts, column, skipped, [known[name] for name in whole])


def builtin() -> Path:
    """The built-in candidates as Parquet shards with the images in them, such as the Hub keeps; in the cache."""
    from datasets import disable_progress_bars, enable_progress_bars
    from datasets.table import embed_table_storage

    from imgsim.images import candidates_and_queries, load_images

    folder = cache_folder("builtin-shards")
    if not (folder / "3.parquet").exists():
        candidates, _ = candidates_and_queries(load_images("builtin"))
        disable_progress_bars()
        candidates = candidates.with_format("arrow").map(embed_table_storage, batched=True, keep_in_memory=True)
        for number in range(4):
            with atomic_write(folder / f"{number}.parquet") as beside:
                candidates.shard(4, number, contiguous=True).to_parquet(beside, batch_size=100)
        enable_progress_bars()
    return folder


def read(place: Shards, column: str | None, piece: dict) -> list[tuple[str, object]]:
    """The images of a piece: what each is called, and what `open_or_say` takes or the reason why it cannot be read."""
    names = [f"{place.path}/{name}" for name in piece["files"]]
    if column is None:
        contents = {} if place.local else place.fs.cat(names, on_error="return")
        return [(file, contents.get(name, Path(name))) for file, name in zip(piece["files"], names, strict=True)]
    called = [f"{piece['files'][0]}#{row}" for row in range(piece["row"], piece["row"] + piece["count"])]
    try:
        with place.fs.open(names[0]) as stream:
            rows = pq.ParquetFile(stream).read_row_group(piece["part"], [column], use_threads=False)[column]
            return list(zip(called, rows.slice(piece["skip"], piece["count"]).to_pylist(), strict=True))
    except (OSError, pa.ArrowException) as error:
        return [(name, error) for name in called]
