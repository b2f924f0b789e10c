"""What Ray's workers do: images to pixels, pixels to embeddings, embeddings to codes, codes to sorted tables.

Each step takes a batch and gives one; what it writes has a name of its own, so that doing it twice does no harm.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.compute as pc

from imgsim.extras.scale.shards import Shards, as_bytes, as_lists, note, vectors
from imgsim.extras.scale.sources import read
from imgsim.hashing import Projection, normalise, unpack_codes
from imgsim.sources.decode import open_or_error

GROUP = 1 << 15  # bytes of embeddings in a row group: what a search reads to see one of them
BLANK = PIL.Image.new("RGB", (64, 64))  # takes the place of an image that cannot be read
SIGNATURES, HASHES = 1 << 13, 1 << 12  # rows in their row groups


def decode(batch: pa.Table, place: Shards, column: str | None, processor, batch_size: int) -> Iterator[dict]:
    """Open the images of a piece and prepare them: ids, sources, why one cannot be read, pixels (b, 3, h, w)."""
    (piece,) = batch.to_pylist()
    named = read(place, column, piece)
    for start in range(0, len(named), batch_size):
        names, sources = zip(*named[start : start + batch_size], strict=True)
        opened = list(map(open_or_error, sources))
        reasons = [image if isinstance(image, str) else "" for image in opened]
        images = [BLANK if isinstance(image, str) else image for image in opened]
        ids = np.arange(piece["id"] + start, piece["id"] + start + len(names))
        pixels = processor(images, return_tensors="np")["pixel_values"]
        yield {"id": ids, "source": np.array(names), "reason": np.array(reasons), "pixels": pixels}


class Embed:
    """An actor that holds the encoder: pixels to embeddings of length 1, in float16."""

    def __init__(self, origin: tuple, digest: str):
        from imgsim.encoder import load_encoder

        self.encoder = load_encoder(*origin)
        if self.encoder.digest != digest:
            raise ValueError(f"The checkpoint {origin[0]!r} is another one on a worker than where the job was started.")

    def __call__(self, batch: dict) -> pa.Table:
        import torch

        whole = np.flatnonzero(batch["reason"] == "")
        points, step = np.zeros((len(batch["id"]), self.encoder.dim), np.float32), self.encoder.micro_batch(len(whole))
        for rows in np.split(whole, range(step, len(whole), step)) if len(whole) else ():
            points[rows] = normalise(self.encoder.forward(torch.from_numpy(batch["pixels"][rows])))
        reasons = np.where(np.isfinite(points).all(axis=1), batch["reason"], "its embedding holds no finite numbers")
        return pa.table(
            {
                "id": batch["id"],
                "embedding": as_lists(points.astype(np.float16)),
                "source": batch["source"],
                "reason": reasons,
                "ended": np.full(len(points), time.time()),
            }
        )


class OpenAndEmbed(Embed):
    """An actor that opens the images of pieces itself: on CPUs, moving pixels costs more than it gains."""

    def __init__(self, origin: tuple, digest: str, *settings):
        super().__init__(origin, digest)
        self.settings = settings

    def __call__(self, batch: pa.Table) -> pa.Table:
        return pa.concat_tables([Embed.__call__(self, part) for part in decode(batch, *self.settings)])


def save_embeddings(batch: pa.Table, target: Shards, job: str, rows: int) -> pa.Table:
    """Write the block of rows that makes a shard; how many there were, how many could not be read, when each came."""
    numbers = np.unique(batch["id"].to_numpy() // rows)
    if len(numbers) != 1:
        raise RuntimeError(f"{len(numbers)} shards came in one block.")
    whole = pc.equal(batch["reason"], "")
    bad = batch.filter(pc.invert(whole)).select(["id", "source", "reason"]).to_pylist()
    write_embeddings(target, job, int(numbers[0]), batch.filter(whole).select(["id", "embedding", "source"]), bad)
    ended = np.stack(np.unique(batch["ended"].to_numpy(), return_counts=True), axis=1).tolist()
    return pa.table({"count": [batch.num_rows], "bad": [len(bad)], "example": [json.dumps(bad[:1])], "ended": [ended]})


def write_embeddings(target: Shards, job: str, number: int, table: pa.Table, bad: list[dict]) -> None:
    """Write a shard of embeddings: a table of id, embedding and source, in order of the ids."""
    rows = max(1, GROUP // (2 * table["embedding"].type.list_size))
    target.write_table(f"part-{number:05}", job, note(table, **span(table), skipped=bad), rows)


def span(table: pa.Table) -> dict[str, int]:
    """The first and the last id in a table that is sorted by them."""
    return {"first": table["id"][0].as_py(), "last": table["id"][-1].as_py()} if len(table) else {}


def save_signatures(batch: pa.Table, embeddings: Shards, target: Shards, job: str, projection: Projection) -> pa.Table:
    """Hash the shard of embeddings that a row names: its ids and signatures, see hashing.signatures."""
    ((name, stem),) = zip(batch["name"].to_pylist(), batch["stem"].to_pylist(), strict=True)
    table = embeddings.read(name)
    words = projection.signatures(normalise(vectors(table["embedding"], np.float16)))
    hashed = pa.table({"id": table["id"], "signature": as_bytes(words.astype("<u8"))})
    target.write_table(stem, job, note(hashed, **span(hashed)), SIGNATURES)
    return pa.table({"count": [len(hashed)]})


def spread(batch: pa.Table, target: Shards, missing: list[int], hash_size: int, num_tables: int, top: int) -> dict:
    """The rows of the missing parts of tables in a shard of signatures: place (of table and part), hash, id.

    A part of a table holds the hashes that begin with the same `top` bits; its place is table * 2^top + these bits.
    """
    (name,) = batch["name"].to_pylist()
    table = target.read(name)
    codes = unpack_codes(vectors(table["signature"], "<u8"), hash_size, num_tables).T
    place = (np.arange(num_tables)[:, None] << top) + (codes >> codes.dtype.type(hash_size - top)).astype(np.int64)
    wanted = np.isin(place, missing)
    ids = np.broadcast_to(table["id"].to_numpy(), place.shape)
    return {"place": place[wanted].astype(np.int32), "hash": codes[wanted], "id": ids[wanted]}


def save_part(table: pa.Table, target: Shards, job: str, top: int) -> pa.Table:
    """Write the part of a table that these rows make, in order of hash and id."""
    write_part(target, job, table["place"][0].as_py(), top, table.select(["hash", "id"]))
    return pa.table({"count": [len(table)]})


def stem_of(place: int, top: int) -> str:
    """What the file of a table's part is called; `table=` is understood as a column by most that read Parquet."""
    return f"table={place >> top:03}/part-{place & ((1 << top) - 1):05}"


def write_part(target: Shards, job: str, place: int, top: int, table: pa.Table) -> None:
    table = table.sort_by([("hash", "ascending"), ("id", "ascending")])
    target.write_table(stem_of(place, top), job, note(table, place=place), HASHES)
