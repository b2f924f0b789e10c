"""Turn Parquet shards of embeddings into hash tables in Parquet, with Ray Data.

What tasks write has a unique name, so that repeating one is harmless.
"""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from operator import methodcaller

import numpy as np
import pyarrow as pa

from imgsim.extras.runs.settings import short_digest
from imgsim.extras.scale.cluster import cluster, require_ray, run_job
from imgsim.extras.scale.shards import Shards, as_array, as_bytes, as_lists, id_range, vectors_in, with_metadata
from imgsim.hashing import Projection, check_integer, check_settings, code_dtype
from imgsim.search.coder import SKETCH_BITS, Coder, draw_rotation
from imgsim.search.principal import check_planes, fit_projection

MEAN_ROWS, MEAN_SHARDS = 1 << 16, 32  # embeddings, and shards they come from, whose mean stands for the mean of all
BUCKET_SIZE = 16  # candidates per bucket, if hash_size is not given
PART_ROWS = 1 << 22  # rows of a table per file
SKETCH_GROUP, TABLE_GROUP = 1 << 13, 1 << 12  # rows per row group


def build_index(
    folder,
    hash_size: int | None = None,
    num_tables: int = 10,
    seed: int = 0,
    *,
    planes: str = "principal",
    coder: Coder | None = None,
) -> dict:
    """Hash the embeddings in `folder`/embeddings, and store tables of them in `folder`/index; return the manifest.

    The projection is fixed first. Then come codes and sketches, in the order of the ids, and the tables, divided by
    the first bits of the hash and sorted by hash and id. A job that was interrupted continues where it stopped.

    Args:
        folder: a path, or an address that fsspec knows.
        hash_size: bits per code; by default enough to leave about 16 candidates per bucket.
        num_tables: independent tables.
        seed: of planes and sketches.
        planes: "principal" or "random", see BuildLSHTable.
        coder: that of an index, to use instead of one from the seed and a sample of the embeddings.

    Raises:
        ValueError: a setting is impossible, there are no embeddings, or a shard of them is damaged.
    """
    require_ray()
    embeddings, target, start = Shards.at(folder, "embeddings"), Shards.at(folder, "index"), time.perf_counter()
    source, given = embeddings.manifest(), []
    count = source["count"]
    if coder is not None:
        num_tables, _, hash_size = coder.projection.planes.shape
        given = [blake2b(coder_rows(coder).tobytes(), digest_size=8).hexdigest()]
    elif hash_size is None:
        hash_size = max(1, round(math.log2(count / BUCKET_SIZE)))
    check_settings(hash_size, num_tables)
    check_planes(planes)
    check_integer(seed, "seed", 0)
    job_id = short_digest([embeddings_version(source), hash_size, num_tables, planes, seed, given])
    prefix_bits = min(hash_size, max(2, math.ceil(math.log2(count / PART_ROWS))))  # tell the parts of a table apart
    shards = {f"sketches/part-{number:05}": file for number, file in enumerate(source["files"])}
    parts = {part_name(part, prefix_bits): part for part in range(num_tables << prefix_bits)}

    finished = target.finished(job_id)
    if "projection" not in finished:
        rows = coder_rows(coder or draw_coder(embeddings, source, hash_size, num_tables, seed, planes))
        finished["projection"] = target.write_table(
            "projection", job_id, pa.table({"vector": as_lists(rows)}), len(rows)
        )
    coder = read_coder(target, finished["projection"], hash_size, num_tables)
    missing = [part for name, part in parts.items() if name not in finished]
    if missing or shards.keys() - finished.keys():
        items = [{"name": name, "file": file["name"], "hashed": finished.get(name)} for name, file in shards.items()]
        total, settings = count * len(missing) >> prefix_bits, (embeddings, target, job_id, coder, missing, prefix_bits)
        with cluster() as data:
            hashed = data.from_items(items, override_num_blocks=len(items)).map_batches(
                rows_by_part, batch_size=1, batch_format="pyarrow", fn_args=settings
            )
            bundles = run_job(hashed.iter_internal_ref_bundles, total, "hashing", "row", methodcaller("num_rows"))
            rows = data.from_arrow_refs([block for bundle in bundles for block in bundle.block_refs])
            settings = target, job_id, prefix_bits
            saved = rows.groupby("part").map_groups(save_part, batch_format="pyarrow", fn_args=settings)
            list(run_job(saved.iter_rows, total, "storing", "row"))
        empty = pa.table({"hash": np.empty(0, code_dtype(hash_size)), "id": np.empty(0, np.int64)})
        for name in parts.keys() - target.finished(job_id):
            write_part(target, job_id, parts[name], prefix_bits, empty)
    manifest = {"embeddings": embeddings_version(source), "encoder": source["encoder"], "dim": source["dim"]}
    manifest |= {"count": count, "hash_size": hash_size, "num_tables": num_tables, "planes": planes, "seed": seed}
    manifest |= {"top": prefix_bits, "build_seconds": time.perf_counter() - start}
    target.publish(manifest | {"files": target.describe(job_id, ["projection", *shards, *parts])})
    return target.manifest()


def embeddings_version(manifest: dict) -> str:
    """Return a digest of the manifest of embeddings, by which an index recognises them."""
    return short_digest([file["name"] for file in manifest["files"]])


def draw_coder(embeddings: Shards, source: dict, hash_size: int, num_tables: int, seed: int, planes: str) -> Coder:
    """Sample a coder: planes and mean from embeddings taken evenly over all shards, and a rotation."""
    files = source["files"]
    if source["count"] > MEAN_ROWS:
        files = files[:: -(-len(files) // MEAN_SHARDS)]
    step = -(-sum(file["rows"] for file in files) // MEAN_ROWS)

    def sample(file: dict) -> np.ndarray:
        column = embeddings.read(file["name"])["embedding"]
        return vectors_in(column.take(np.arange(0, len(column), step)))

    with ThreadPoolExecutor() as pool:
        vectors = np.concatenate(list(pool.map(sample, files)))
    projection = fit_projection(vectors, hash_size, num_tables, seed, planes)
    return Coder(projection, draw_rotation(vectors.shape[1], seed))


def coder_rows(coder: Coder) -> np.ndarray:
    """Return all vectors of a coder: the mean, the normals table by table, the rotation, and the directions if any."""
    projection = coder.projection
    rows = [projection.mean[None], *projection.planes.transpose(0, 2, 1), coder.rotation.T]
    return np.vstack(rows if projection.directions is None else [*rows, projection.directions.T])


def read_coder(target: Shards, file: str, hash_size: int, num_tables: int) -> Coder:
    """Read a coder from its file, see `coder_rows`."""
    rows = as_array(target.read(file)["vector"], np.float32)
    ends = np.cumsum([1, num_tables * hash_size, -(-rows.shape[1] // SKETCH_BITS) * SKETCH_BITS])
    mean, normals, rotation, directions = (np.ascontiguousarray(part) for part in np.split(rows, ends))
    planes = np.ascontiguousarray(normals.reshape(num_tables, hash_size, -1).transpose(0, 2, 1))
    within = np.ascontiguousarray(directions.T) if len(directions) else None
    return Coder(Projection(planes, mean[0], within), np.ascontiguousarray(rotation.T))


def rows_by_part(
    batch: pa.Table, embeddings: Shards, target: Shards, job_id: str, coder: Coder, missing: list[int], prefix_bits: int
):
    """Hash the shard of embeddings that a batch names, unless that was done, and write its ids, codes and sketches.

    A part holds the hashes of a table that begin with the same bits; its number is table * 2^prefix_bits + these bits.

    Returns:
        The rows (part, hash, id) that the shard has in the missing parts of the tables.
    """
    (item,), (num_tables, _, hash_size) = batch.to_pylist(), coder.projection.planes.shape
    if item["hashed"]:
        table = target.read(item["hashed"])
        codes = as_array(table["codes"], code_dtype(hash_size))
    else:
        table = embeddings.read(item["file"])
        codes, sketches = coder.encode(vectors_in(table["embedding"]))
        hashed = pa.table({"id": table["id"], "codes": as_bytes(codes), "sketch": as_bytes(sketches)})
        target.write_table(item["name"], job_id, with_metadata(hashed, **id_range(hashed)), SKETCH_GROUP)
    prefixes = (codes.T >> codes.dtype.type(hash_size - prefix_bits)).astype(np.int64)
    parts = (np.arange(num_tables)[:, None] << prefix_bits) + prefixes
    wanted = np.isin(parts, missing)
    ids = np.broadcast_to(table["id"].to_numpy(), parts.shape)
    return {"part": parts[wanted].astype(np.int32), "hash": codes.T[wanted], "id": ids[wanted]}


def save_part(table: pa.Table, target: Shards, job_id: str, prefix_bits: int) -> pa.Table:
    """Write the part of a table that these rows make."""
    write_part(target, job_id, table["part"][0].as_py(), prefix_bits, table.select(["hash", "id"]))
    return pa.table({"count": [len(table)]})


def part_name(part: int, prefix_bits: int) -> str:
    """Name the shard of a table's part; most programs that read Parquet take `table=` for a column."""
    return f"table={part >> prefix_bits:03}/part-{part & ((1 << prefix_bits) - 1):05}"


def write_part(target: Shards, job_id: str, part: int, prefix_bits: int, table: pa.Table) -> None:
    """Write the rows of a table's part in the order of hash and id."""
    table = with_metadata(table.sort_by([("hash", "ascending"), ("id", "ascending")]), place=part)
    target.write_table(part_name(part, prefix_bits), job_id, table, TABLE_GROUP)
