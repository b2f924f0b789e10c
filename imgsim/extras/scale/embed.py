"""Images to Parquet shards of embeddings, by Ray Data."""

from __future__ import annotations

import json
import math
import os
from hashlib import blake2b

import numpy as np
import pyarrow as pa

from imgsim.extras.scale.cluster import cluster, require_ray, work
from imgsim.extras.scale.shards import Shards, as_lists, short_digest
from imgsim.extras.scale.sources import find
from imgsim.extras.scale.tasks import Embed, OpenAndEmbed, decode, save_embeddings, write_embeddings
from imgsim.hashing import check_integer
from imgsim.index import NO_ENCODER

SHARD = 32 << 20  # bytes of embeddings in a shard
PIECE = 64  # image files that a task opens


def embed(
    images,
    folder,
    checkpoint: str = "builtin",
    *,
    dtype: str = "float32",
    batch_size: int = 48,
    column: str | None = None,
    num_gpus: float = 0,
    concurrency: int | None = None,
    shard_rows: int | None = None,
    max_bad: int = 1000,
) -> dict:
    """Embed images into Parquet shards in `folder`/embeddings: id, embedding (d,) of length 1 in float16, source.

    images: "builtin", or an address (a path, or what fsspec knows, such as s3:// and hf://) of Parquet files, as the
    Hub keeps them, or of image files; an id is a place among them. `concurrency` actors hold the encoder: by default
    one for each core, or with GPUs, of which each takes `num_gpus`, one, for which tasks on CPUs open the images. What
    cannot be read is passed over and listed in the manifest; more than `max_bad` of it end the job. shard_rows: images
    in a shard. A job that was interrupted goes on where it stopped. Returns the manifest, and with it
    images_per_second, counted from the end of the first batch on. Raises ValueError where there is nothing to embed.
    """
    require_ray()
    check_integer(batch_size, "batch_size", 1)
    check_integer(max_bad, "max_bad", 0)
    cores = os.cpu_count() or 1
    actors = (1 if num_gpus else cores) if concurrency is None else check_integer(concurrency, "concurrency", 1)
    if num_gpus < 0:
        raise ValueError(f"num_gpus is {num_gpus}, but an actor has 0 GPUs, a part of one, or several.")
    from imgsim.encoder import load_encoder  # loads torch

    encoder, source = load_encoder(checkpoint, dtype=dtype), find(images, column)
    target = Shards.at(folder, "embeddings")
    bad = len(source.skipped)
    check_bad(images, bad, max_bad, *source.skipped)
    rows = rows_of_shards(shard_rows, len(source), encoder.dim)
    job = short_digest(encoder.digest, source.files, source.version, rows)
    stems, finished = stems_for(len(source), rows), target.finished(job)
    starts = [number * rows for number, stem in enumerate(stems) if stem not in finished]
    pieces = [piece for start in starts for piece in source.pieces(start, start + rows, PIECE)]
    ended = []
    if pieces:
        with cluster(None if num_gpus else actors + 1) as data:
            need_gpus(num_gpus)
            settings = source.place, source.column, encoder.processor, batch_size
            items, actor = data.from_items(pieces, override_num_blocks=len(pieces)), (encoder.origin, encoder.digest)
            pool, piecewise = data.ActorPoolStrategy(size=actors), {"batch_size": 1, "batch_format": "pyarrow"}
            if num_gpus:
                pixels = items.map_batches(decode, **piecewise, fn_args=settings)
                gpus = {"num_gpus": num_gpus, "compute": pool, "batch_size": batch_size}
                embedded = pixels.map_batches(Embed, **gpus, fn_constructor_args=actor)
            else:
                embedded = items.map_batches(
                    OpenAndEmbed, **piecewise, compute=pool, fn_constructor_args=(*actor, *settings)
                )
            shards = embedded.repartition(target_num_rows_per_block=rows, strict=True)
            saved = shards.map_batches(save_embeddings, batch_format="pyarrow", fn_args=(target, job, rows))
            for row in work(saved, sum(piece["count"] for piece in pieces), "embedding", "image"):
                ended += row["ended"]
                bad += row["bad"]
                check_bad(images, bad, max_bad, *json.loads(row["example"]))
    manifest = manifest_of(target, job, stems, source.skipped)
    check_bad(images, len(manifest["skipped"]), max_bad, *manifest["skipped"])
    if not manifest["count"]:
        first = manifest["skipped"][0]
        raise ValueError(f"{str(images)!r} holds no readable image: {first['source']}: {first['reason']}.")
    manifest |= {"images": str(images), "encoder": encoder.describe(), "dim": encoder.dim}
    target.publish(manifest)
    times, counts = np.array(sorted(ended)).reshape(-1, 2).T
    speed = counts[1:].sum() / (times[-1] - times[0]) if len(times) > 1 else math.nan
    return manifest | {"images_per_second": float(speed)}


def need_gpus(wanted: float) -> None:
    """Raise a ValueError where Ray would wait for GPUs that never come; a cluster may still grow some."""
    import ray

    found = ray.cluster_resources().get("GPU", 0)
    if found < wanted and not os.environ.get("RAY_ADDRESS"):
        raise ValueError(f"num_gpus is {wanted:g}, but this machine has {found:g} GPUs that Ray can use.")


def check_bad(images, bad: int, max_bad: int, *skipped: dict) -> None:
    if bad > max_bad:
        such = f", such as {skipped[0]['source']}: {skipped[0]['reason']}" if skipped else ""
        raise ValueError(f"{str(images)!r} holds more than {max_bad} images that cannot be read{such}.")


def rows_of_shards(wanted: int | None, count: int, dim: int) -> int:
    """How many rows a shard gets: as many as are wanted, or as make files of a good size, but several."""
    return check_integer(min(SHARD // (2 * dim), -(-count // 16)) if wanted is None else wanted, "shard_rows", 1)


def stems_for(count: int, rows: int) -> list[str]:
    """What shards of so many rows are called."""
    return [f"part-{number:05}" for number in range(-(-count // rows))]


def manifest_of(target: Shards, job: str, stems: list[str], skipped: list[dict]) -> dict:
    """What a finished job has made: how many rows, in which files, and what was passed over."""
    files = target.describe(job, stems)
    skipped = skipped + [row for file in files for row in file.pop("skipped")]
    files = [file for file in files if file["rows"]]
    return {"count": sum(file["rows"] for file in files), "skipped": skipped, "files": files}


def store_embeddings(folder, embeddings: np.ndarray, ids=None, shard_rows: int | None = None) -> dict:
    """Put embeddings (n, d) from elsewhere where `embed` puts its own; returns the manifest.

    ids (n,) ascend, by default from 0 to n - 1. Raises ValueError for other ids, and for what float16 cannot hold.
    """
    ids = np.arange(len(embeddings)) if ids is None else np.asarray(ids, np.int64)
    if ids.shape != embeddings.shape[:1] or not len(ids) or ids[0] < 0 or (np.diff(ids) <= 0).any():
        raise ValueError(f"{len(embeddings)} embeddings need as many ids, whole numbers from 0 on that ascend.")
    with np.errstate(over="ignore"):
        halves = np.asarray(embeddings).astype(np.float16)
    if not np.isfinite(halves).all():
        raise ValueError("The embeddings hold values that are not finite, or above 65,504, in float16: scale them.")
    target, rows = Shards.at(folder, "embeddings"), rows_of_shards(shard_rows, *embeddings.shape)
    digests = [blake2b(np.ascontiguousarray(array), digest_size=8).hexdigest() for array in (embeddings, ids)]
    job, stems = short_digest(digests, rows), stems_for(len(ids), rows)
    for number in range(len(stems)):
        part = slice(number * rows, (number + 1) * rows)
        table = {
            "id": ids[part],
            "embedding": as_lists(halves[part]),
            "source": [""] * len(ids[part]),
        }
        write_embeddings(target, job, number, pa.table(table), [])
    manifest = manifest_of(target, job, stems, []) | {"images": "", "encoder": NO_ENCODER, "dim": embeddings.shape[1]}
    target.publish(manifest)
    return manifest
