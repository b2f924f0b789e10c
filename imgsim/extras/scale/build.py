"""Parquet shards of embeddings to hash tables in Parquet, by Ray Data."""

from __future__ import annotations

import math
import time
from hashlib import blake2b

import numpy as np
import pyarrow as pa

from imgsim.extras.scale.cluster import cluster, require_ray, work
from imgsim.extras.scale.shards import Shards, as_lists, short_digest, vectors
from imgsim.extras.scale.tasks import save_part, save_signatures, spread, stem_of, write_part
from imgsim.hashing import Projection, check_integer, check_settings, code_dtype, column_sums, draw_planes, normalise

SAMPLE, SAMPLED = 1 << 16, 32  # embeddings, and shards that they come from, whose mean is taken for the mean of all
BUCKET = 16  # candidates in a bucket, where nobody says how many bits there shall be
PART = 1 << 22  # rows of a table in a file
SHUFFLED, PARTITIONS = 1 << 21, 200  # rows of tables that a task sorts, where there are not too many of them


def build(
    folder, hash_size: int | None = None, num_tables: int = 10, seed: int = 0, *, projection: Projection | None = None
) -> dict:
    """Hash the embeddings in `folder` and store tables of them in `folder`/index, in Parquet; returns the manifest.

    First the projection is fixed: planes drawn from the seed and the mean of a sample, or the one that is given. Then
    come the signatures, in the order of the ids, and the tables, divided by the top bits of the hash and sorted by
    hash and id. hash_size: by default as many bits as leave some 16 candidates in a bucket. A job that was interrupted
    goes on where it stopped. Raises ValueError where there are no embeddings, or a shard of them is damaged.
    """
    require_ray()
    embeddings, target, begin = Shards.at(folder, "embeddings"), Shards.at(folder, "index"), time.perf_counter()
    source, given = embeddings.manifest(), []
    count = source["count"]
    if projection is not None:
        num_tables, _, hash_size = projection.planes.shape
        given = [blake2b(array.tobytes(), digest_size=8).hexdigest() for array in (projection.planes, projection.mean)]
    elif hash_size is None:
        hash_size = max(1, round(math.log2(count / BUCKET)))
    check_settings(hash_size, num_tables)
    check_integer(seed, "seed", 0)
    job = short_digest(version_of(source), hash_size, num_tables, seed, given)
    projection = fixed(target, job, embeddings, source, projection, (hash_size, num_tables, seed))
    top = min(hash_size, max(2, math.ceil(math.log2(count / PART))))  # bits that tell the parts of a table apart

    shards = {f"signatures/part-{number:05}": file for number, file in enumerate(source["files"])}
    places = {stem_of(place, top): place for place in range(num_tables << top)}
    finished = target.finished(job)
    unhashed = [{"stem": stem, "name": file["name"]} for stem, file in shards.items() if stem not in finished]
    missing = [place for stem, place in places.items() if stem not in finished]
    if unhashed or missing:
        with cluster() as data:
            if unhashed:
                hashed = data.from_items(unhashed, override_num_blocks=len(unhashed)).map_batches(
                    save_signatures, batch_size=1, batch_format="pyarrow", fn_args=(embeddings, target, job, projection)
                )
                total = sum(shards[row["stem"]]["rows"] for row in unhashed)
                list(work(hashed, total, "hashing", "image"))
            if missing:
                finished = target.finished(job)
                names = [{"name": finished[stem]} for stem in shards]
                settings = target, missing, hash_size, num_tables, top
                rows = data.from_items(names, override_num_blocks=len(names)).map_batches(
                    spread, batch_size=1, batch_format="pyarrow", fn_args=settings
                )
                total = count * len(missing) >> top
                partitions = min(max(2, total // SHUFFLED), len(missing), PARTITIONS)
                parts = rows.groupby("place", num_partitions=partitions).map_groups(
                    save_part, batch_format="pyarrow", fn_args=(target, job, top)
                )
                list(work(parts, total, "storing", "row"))
                nothing = pa.table({"hash": np.empty(0, code_dtype(hash_size)), "id": np.empty(0, np.int64)})
                for stem in set(places) - set(target.finished(job)):
                    write_part(target, job, places[stem], top, nothing)
    manifest = {"embeddings": version_of(source), "encoder": source["encoder"], "dim": source["dim"], "count": count}
    manifest |= {"hash_size": hash_size, "num_tables": num_tables, "seed": seed, "top": top}
    manifest |= {"build_seconds": time.perf_counter() - begin}
    target.publish(manifest | {"files": target.describe(job, ["projection", *shards, *places])})
    return target.manifest()


def version_of(embeddings: dict) -> str:
    """By which an index knows its embeddings again: a digest of their manifest's digests."""
    return short_digest([file["name"] for file in embeddings["files"]])


def fixed(
    target: Shards, job: str, embeddings: Shards, source: dict, projection: Projection | None, settings: tuple
) -> Projection:
    """The projection of a job: kept with it the first time, and read from there when it goes on."""
    finished, (hash_size, num_tables, seed) = target.finished(job), settings
    if "projection" not in finished:
        if projection is None:
            points = sample(embeddings, source["files"])
            mean = (column_sums(points) / len(points)).astype(np.float32)
            projection = Projection(draw_planes(source["dim"], hash_size, num_tables, seed), mean)
        rows = np.concatenate([projection.mean[None], projection.planes.transpose(0, 2, 1).reshape(-1, source["dim"])])
        finished["projection"] = target.write_table("projection", job, pa.table({"vector": as_lists(rows)}), len(rows))
    return read_projection(target, finished["projection"], hash_size, num_tables)


def read_projection(target: Shards, name: str, hash_size: int, num_tables: int) -> Projection:
    """A projection from its file: the mean, then the normals of all planes, table by table."""
    rows = vectors(target.read(name)["vector"], np.float32)
    planes = rows[1:].reshape(num_tables, hash_size, -1).transpose(0, 2, 1)
    return Projection(np.ascontiguousarray(planes), rows[0].copy())


def sample(embeddings: Shards, files: list[dict]) -> np.ndarray:
    """Some of the embeddings as unit rows (s, d), evenly from all over; all of them where these are few."""
    if sum(file["rows"] for file in files) > SAMPLE:
        files = files[:: -(-len(files) // SAMPLED)]
    step = -(-sum(file["rows"] for file in files) // SAMPLE)
    return np.concatenate(
        [normalise(vectors(embeddings.read(file["name"])["embedding"], np.float16)[::step]) for file in files]
    )
