"""Turn images, texts or sounds into Parquet shards of embeddings, with Ray Data.

What tasks and actors write has a unique name, so that repeating one is harmless. They import this module: what only
the driver needs is imported there.
"""

from __future__ import annotations

import json
import math
import os
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from imgsim.extras.runs.settings import short_digest
from imgsim.extras.scale.actors import (
    STORED_AS,
    Embed,
    EmbedRows,
    OpenAndEmbed,
    as_stored,
    check_choice,
    loader,
    open_images,
)
from imgsim.extras.scale.cluster import cluster, require_ray, run_job
from imgsim.extras.scale.shards import Shards, id_range, with_metadata
from imgsim.extras.scale.sources import list_images
from imgsim.hashing import check_integer

SHARD_BYTES = 32 << 20  # of embeddings in a shard
GROUP_BYTES = 1 << 15  # of embeddings in a row group: what a search reads to see one of them


def embed_images(
    images,
    folder,
    checkpoint: str = "builtin",
    *,
    dtype: str = "float32",
    batch_size: int = 48,
    column: str | None = None,
    modality: str = "image",
    stored_as: str = "float16",
    num_gpus: float = 0,
    concurrency: int | None = None,
    shard_rows: int | None = None,
    max_bad: int = 1000,
) -> dict:
    """Embed images into Parquet shards in `folder`/embeddings: id, embedding (d,) of length 1, source.

    Ids are positions among the images, or texts or sounds. Images that cannot be read are skipped and listed in the
    manifest. A job that was interrupted continues where it stopped.

    Args:
        images: "builtin", or an address (a path, or what fsspec knows, such as s3:// and hf://) of image files, or of
            Parquet files as the Hub stores them.
        folder: a path or an address.
        checkpoint, dtype: see `load_encoder`.
        batch_size: images embedded at a time.
        column: of the images in Parquet files; by default the one that holds images.
        modality: "image", "text" for a column of texts and a checkpoint that embeds both, or "sound" for a column of
            lists of samples, as many per second as the checkpoint wants.
        stored_as: "float16", or "int8" for half the bytes: each embedding as bytes, and a column `scale` by which they
            are multiplied.
        num_gpus: GPUs per actor; if it has any, tasks on CPUs open the images.
        concurrency: actors that hold the encoder; by default one per core, or one with GPUs.
        shard_rows: images per shard.
        max_bad: images that may be skipped.

    Returns:
        The manifest, and images_per_second, counted from the end of the first batch on.

    Raises:
        ValueError: a setting is impossible, there is nothing to embed, or too many images cannot be read.
    """
    require_ray()
    check_integer(batch_size, "batch_size", 1)
    check_integer(max_bad, "max_bad", 0)
    default_actors = 1 if num_gpus else os.cpu_count() or 1
    actors = default_actors if concurrency is None else check_integer(concurrency, "concurrency", 1)
    if num_gpus < 0:
        raise ValueError(f"num_gpus is {num_gpus}, but an actor has 0 GPUs, a part of one, or several.")
    check_choice(stored_as, "stored_as", STORED_AS)
    load = loader(modality, checkpoint, dtype)
    encoder, source = load(), list_images(images, column)
    if modality != "image" and (column is None or source.column is None):
        raise ValueError(f"{str(images)!r}: a {modality} stands in a column of Parquet files, which must be named.")
    target, bad = Shards.at(folder, "embeddings"), len(source.skipped)
    check_bad(images, bad, max_bad, *source.skipped)
    rows, names = plan_shards(shard_rows, len(source), encoder.dim)
    job_id = short_digest([encoder.digest, modality, column, source.files, source.version, rows, stored_as])
    finished = target.finished(job_id)
    missing = [number for number, name in enumerate(names) if name not in finished]
    pieces = [piece for number in missing for piece in source.pieces(number * rows, (number + 1) * rows)]
    ended = []  # (time, images) of all batches
    if pieces:
        with cluster(None if num_gpus else actors + 1) as data:
            import ray

            gpus = ray.cluster_resources().get("GPU", 0)
            if gpus < num_gpus and not os.environ.get("RAY_ADDRESS"):  # Ray would wait; a cluster may still grow some
                raise ValueError(f"num_gpus is {num_gpus:g}, but this machine has {gpus:g} GPUs that Ray can use.")
            items = data.from_items(pieces, override_num_blocks=len(pieces))
            reading, pool = (source.folder, source.column), data.ActorPoolStrategy(size=actors)
            actor = load, encoder.digest, stored_as
            by_piece = {"batch_size": 1, "batch_format": "pyarrow"}
            if modality != "image":
                actor = {"compute": pool, "fn_constructor_args": (*actor, *reading, batch_size)}
                embedded = items.map_batches(EmbedRows, **by_piece, **actor, num_gpus=num_gpus)
            elif num_gpus:
                opening = *reading, encoder.processor, batch_size
                pixels = items.map_batches(open_images, **by_piece, fn_args=opening)
                on_gpu = {"num_gpus": num_gpus, "compute": pool, "batch_size": batch_size}
                embedded = pixels.map_batches(Embed, **on_gpu, fn_constructor_args=actor)
            else:
                opening = *reading, encoder.processor, batch_size
                actor = {"compute": pool, "fn_constructor_args": (*actor, *opening)}
                embedded = items.map_batches(OpenAndEmbed, **by_piece, **actor)
            shards = embedded.repartition(target_num_rows_per_block=rows, strict=True)
            saved = shards.map_batches(save_embeddings, batch_format="pyarrow", fn_args=(target, job_id, rows))
            for row in run_job(saved.iter_rows, sum(piece["count"] for piece in pieces), "embedding", "image"):
                ended += row["ended"]
                bad += row["bad"]
                check_bad(images, bad, max_bad, *json.loads(row["example"]))
    manifest = manifest_of(target, job_id, names, source.skipped)
    check_bad(images, len(manifest["skipped"]), max_bad, *manifest["skipped"])
    if not manifest["count"]:
        first = manifest["skipped"][0]
        raise ValueError(f"{str(images)!r} holds no readable image: {first['source']}: {first['reason']}.")
    manifest |= {"images": str(images), "encoder": encoder.describe(), "dim": encoder.dim}
    target.publish(manifest)
    times, counts = np.array(sorted(ended)).reshape(-1, 2).T
    speed = counts[1:].sum() / (times[-1] - times[0]) if len(times) > 1 else math.nan
    return manifest | {"images_per_second": float(speed)}


def store_embeddings(
    folder, embeddings: np.ndarray, ids=None, shard_rows: int | None = None, *, stored_as: str = "float16"
) -> dict:
    """Store embeddings from elsewhere where `embed_images` puts its own; return the manifest.

    Args:
        folder: a path or an address.
        embeddings: (n, d), finite and at most 65,504, as they are stored in float16.
        ids: (n,) whole numbers that ascend; by default 0 to n - 1.
        shard_rows: embeddings per shard.
        stored_as: see `embed_images`.

    Raises:
        ValueError: the ids or the embeddings do not fit.
    """
    from imgsim.index import NO_ENCODER

    ids = np.arange(len(embeddings)) if ids is None else np.asarray(ids, np.int64)
    if ids.shape != embeddings.shape[:1] or not len(ids) or ids[0] < 0 or (np.diff(ids) <= 0).any():
        raise ValueError(f"{len(embeddings)} embeddings need as many ids, whole numbers from 0 on that ascend.")
    check_choice(stored_as, "stored_as", STORED_AS)
    with np.errstate(over="ignore"):
        halves = np.asarray(embeddings).astype(np.float16)
    if not np.isfinite(halves).all():
        raise ValueError("The embeddings hold values that are not finite, or above 65,504, in float16: scale them.")
    target, (rows, names) = Shards.at(folder, "embeddings"), plan_shards(shard_rows, *embeddings.shape)
    digests = [blake2b(np.ascontiguousarray(array), digest_size=8).hexdigest() for array in (embeddings, ids)]
    job_id = short_digest([digests, rows, stored_as])
    for number, name in enumerate(names):
        part = slice(number * rows, (number + 1) * rows)
        columns = {"id": ids[part], **as_stored(halves[part], stored_as), "source": [""] * len(ids[part])}
        write_embeddings(target, job_id, name, pa.table(columns), [])
    manifest = manifest_of(target, job_id, names, [])
    manifest |= {"images": "", "encoder": NO_ENCODER, "dim": embeddings.shape[1]}
    target.publish(manifest)
    return manifest


def check_bad(images, bad: int, max_bad: int, *skipped: dict) -> None:
    """Raise a ValueError, with an example of those skipped, if too many images cannot be read."""
    if bad > max_bad:
        such = f", such as {skipped[0]['source']}: {skipped[0]['reason']}" if skipped else ""
        raise ValueError(f"{str(images)!r} holds more than {max_bad} images that cannot be read{such}.")


def plan_shards(wanted: int | None, count: int, dim: int) -> tuple[int, list[str]]:
    """Return the rows per shard, as many as are wanted or make files of a good size, but several; and their names."""
    rows = check_integer(min(SHARD_BYTES // (2 * dim), -(-count // 16)) if wanted is None else wanted, "shard_rows", 1)
    return rows, [f"part-{number:05}" for number in range(-(-count // rows))]


def manifest_of(target: Shards, job_id: str, names: list[str], skipped: list[dict]) -> dict:
    """Describe what a finished job has made: how many rows, in which files, and which images were skipped."""
    files = target.describe(job_id, names)
    skipped = skipped + [row for file in files for row in file.pop("skipped")]
    files = [file for file in files if file["rows"]]
    return {"count": sum(file["rows"] for file in files), "skipped": skipped, "files": files}


def save_embeddings(batch: pa.Table, target: Shards, job_id: str, rows: int) -> pa.Table:
    """Write the block of rows that makes a shard; count its images, bad ones among them, and by batch with its end."""
    numbers = np.unique(batch["id"].to_numpy() // rows)
    if len(numbers) != 1:
        raise RuntimeError(f"{len(numbers)} shards came in one block.")
    readable = pc.equal(batch["reason"], "")
    bad = batch.filter(pc.invert(readable)).select(["id", "source", "reason"]).to_pylist()
    table = batch.filter(readable).drop_columns(["reason", "ended"])
    write_embeddings(target, job_id, f"part-{numbers[0]:05}", table, bad)
    ended = np.stack(np.unique(batch["ended"].to_numpy(), return_counts=True), axis=1).tolist()
    return pa.table({"count": [batch.num_rows], "bad": [len(bad)], "example": [json.dumps(bad[:1])], "ended": [ended]})


def write_embeddings(target: Shards, job_id: str, name: str, table: pa.Table, bad: list[dict]) -> None:
    """Write a shard: a table of id, embedding and source, in the order of the ids."""
    kind = table["embedding"].type
    rows = max(1, GROUP_BYTES // (kind.byte_width if pa.types.is_fixed_size_binary(kind) else 2 * kind.list_size))
    target.write_table(name, job_id, with_metadata(table, **id_range(table), skipped=bad), rows)
