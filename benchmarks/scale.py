"""Measure scaling out: building and searching tables of generated embeddings, and embedding compared with one process.

    python benchmarks/scale.py                                       1,000,000 x 256 generated, 10 tables
    python benchmarks/scale.py --images FOLDER --checkpoint NAME     images per second, in one run with a single process
    python benchmarks/scale.py --images FOLDER --bytes               recall against bytes per embedding

A build is compared with what Ray needs to sort the same rows, and do nothing else, in the same run.

Memory is that of this process and all that Ray starts (proportional set sizes). A query through Parquet or mapped files
is cold: in a process of its own, from opening the index to the answer, with the files out of the page cache if the
system lets them go; importing is not counted.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil

from imgsim.encoder import load_encoder
from imgsim.evaluation import exact_neighbours, recall_at_k
from imgsim.extras.scale.actors import STORED_AS
from imgsim.extras.scale.build import build_index, read_coder, rows_by_part
from imgsim.extras.scale.cluster import cluster
from imgsim.extras.scale.embed import embed_images, store_embeddings
from imgsim.extras.scale.index import ShardedIndex
from imgsim.extras.scale.shards import Shards, vectors_in
from imgsim.hashing import normalise
from imgsim.images import candidates_and_queries, load_images
from imgsim.index import BuildLSHTable
from imgsim.sources.folder import find_images

ONE_QUERY = """
import json, os, sys, time
from pathlib import Path
import numpy as np
from imgsim.index import BuildLSHTable
from imgsim.extras.scale.index import ShardedIndex
from imgsim.extras.scale.shards import Shards
rounds, fetch = [], Shards.fetch
def counting(self, ranges):
    contents = fetch(self, ranges)
    rounds.append((len(contents), sum(map(len, contents))))
    return contents
Shards.fetch = counting
how, folder, queries, rerank = sys.argv[1:]
queries, rerank = np.load(queries), int(rerank)
tiny = BuildLSHTable(hash_size=4).build_from_embeddings(queries)  # what has to be compiled, is
if how == "parquet":
    from imgsim.extras.scale.buckets import nearest_codes
    nearest_codes(tiny.snapshot.coder.margins(queries[:1]), 2)
for root, _, names in os.walk(folder) if sys.argv[1] != "warm" else ():
    for name in names:
        with open(os.path.join(root, name), "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
start = time.perf_counter()
index = ShardedIndex(folder) if how == "parquet" else BuildLSHTable.load(folder, mapped=True)
opened = time.perf_counter()
times = []
for query in queries:
    begin = time.perf_counter()
    index.search(query)
    times.append(time.perf_counter() - begin)
    if len(times) == 1:
        cold = [len(rounds), *np.sum(rounds, axis=0).tolist()] if rounds else [0, 0, 0]
reads = [(np.array([len(rounds), *np.sum(rounds or [(0, 0)], axis=0)]) - cold) / (len(times) - 1), cold]
then, cold = ([round(float(value)) for value in numbers] for numbers in reads)
times = {"open": opened - start, "first": times[0], "then": float(np.median(times[1:]))}
print(json.dumps({"ms": {name: 1000 * value for name, value in times.items()}, "cold": cold, "then": then}))
"""


def cone_mixture(count: int, dim: int, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors (n, d) and queries shaped like real embeddings: 300 overlapping clusters in a narrow cone.

    The cosine of a random pair is about .6, and variances decay as in a network's output.
    """
    rng = np.random.default_rng(0)
    spectrum = (np.arange(dim) + 3.0) ** -1.35
    scale = np.sqrt(0.4 * spectrum / spectrum.sum()).astype(np.float32)
    axis = normalise(rng.standard_normal(dim)) * np.float32(0.6**0.5)
    centres = axis + np.float32(0.4**0.5) * scale * rng.standard_normal((300, dim), dtype=np.float32)
    rows = rng.standard_normal((count + queries, dim), dtype=np.float32)
    rows *= np.float32(0.6**0.5) * scale
    for start in range(0, len(rows), 1 << 16):
        part = rows[start : start + (1 << 16)]
        part[:] = normalise(part + centres[rng.integers(300, size=len(part))])
    return rows[queries:], rows[:queries]


def watch(peak: list[float], ended: threading.Event) -> None:
    """Note the most memory that this process and its children had together."""
    me = psutil.Process()
    while not ended.wait(0.25):
        total = 0
        for process in [me, *me.children(recursive=True)]:
            try:
                total += process.memory_full_info().pss
            except psutil.Error:
                continue
        peak[0] = max(peak[0], total)


def time_tables(count: int, dim: int, num_tables: int, folder: Path) -> None:
    """Build an index of generated embeddings, export it, and search in its files, in mapped arrays and in memory."""
    embeddings, queries = cone_mixture(count, dim, 200)
    embeddings = embeddings.astype(np.float16)
    start = time.perf_counter()
    stored = store_embeddings(folder, embeddings)
    print(f"{count:,} x {dim} stored in {time.perf_counter() - start:.1f} s")
    peak, ended, before = [0.0], threading.Event(), psutil.Process().memory_full_info().pss
    threading.Thread(target=watch, args=(peak, ended), daemon=True).start()
    with cluster() as data:
        start = time.perf_counter()
        manifest = build_index(folder, num_tables=num_tables)
        seconds = time.perf_counter() - start
        ended.set()
        print(f"build: {seconds:.1f} s without Ray's start; {(peak[0] - before) / 1e9:.2f} GB at most, with Ray")
        time_sort(data, folder, manifest, seconds)
    sizes = {"embeddings": stored["files"], "sketches": [], "tables": []}
    for file in manifest["files"]:
        sizes["tables" if "place" in file else "sketches"].append(file)
    for name, files in sizes.items():
        print(f"{name}: {sum(file['bytes'] for file in files) / count:.1f} bytes per image in {len(files)} files")
    start = time.perf_counter()
    index = ShardedIndex(folder)
    exported = index.export(folder / "mapped")
    size = sum(path.stat().st_size for path in Path(exported).iterdir()) / count
    print(f"export: {time.perf_counter() - start:.1f} s, {size:.0f} bytes per image")
    memory = BuildLSHTable(hash_size=manifest["hash_size"], num_tables=num_tables).build_from_embeddings(embeddings)
    print(f"in memory, for comparison: built in {memory.build_seconds:.1f} s")
    truth, _ = exact_neighbours(queries, embeddings, 10)
    found = BuildLSHTable.load(exported, mapped=True).search(queries)
    print(
        f"{manifest['hash_size']} bits: recall {recall_at_k(found.ids, truth):.3f}, "
        f"{found.candidates_seen.mean() / count:.2%} seen"
    )
    asked = folder / "queries.npy"
    np.save(asked, queries)
    for how, where in (("parquet", folder), ("mapped", exported), ("warm", exported)):
        command = [sys.executable, "-c", ONE_QUERY, how, str(where), str(asked), "200"]
        took = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"{how}: " + ", ".join(f"{name} {value:.1f} ms" for name, value in took["ms"].items()))
        if how == "parquet":
            for name in ("cold", "then"):
                rounds, requests, size = took[name]
                print(f"  {name}: {requests} requests in {rounds} rounds, {size / 1e6:.1f} MB")
    start = time.perf_counter()
    for query in queries:
        memory.search(query)
    print(f"in memory: {1000 * (time.perf_counter() - start) / len(queries):.1f} ms per query")


def time_sort(data, folder: Path, manifest: dict, seconds: float) -> None:
    """Let Ray sort the rows of all tables, and the build do its part of that, by workers that run already."""
    shards = [{"hashed": file["name"]} for file in manifest["files"] if "first" in file]
    target, num_tables = Shards.at(folder, "index"), manifest["num_tables"]
    coder = read_coder(target, manifest["files"][0]["name"], manifest["hash_size"], num_tables)
    settings = None, target, "", coder, list(range(num_tables << manifest["top"])), manifest["top"]
    items = data.from_items(shards, override_num_blocks=len(shards))
    rows = items.map_batches(rows_by_part, batch_size=1, batch_format="pyarrow", fn_args=settings).materialize()
    for strategy in ("sort_shuffle_pull_based", "sort_shuffle_push_based"):  # the build takes the latter: it scales
        rows.context.shuffle_strategy = strategy
        start = time.perf_counter()
        rows.sort(["part", "hash", "id"]).materialize()
        alone = time.perf_counter() - start
        print(f"{strategy} of {rows.count():,} rows: {alone:.1f} s; the build took {seconds / alone:.2f} times that")
    for path in (folder / "index").glob("table=*/*.parquet"):
        path.unlink()
    start = time.perf_counter()
    build_index(folder, num_tables=num_tables)
    again = time.perf_counter() - start
    print(f"tables read from sketches, sorted and stored again: {again:.1f} s, {again / alone:.2f} times that")


def compare_bytes(images: str, checkpoint: str, folder: Path) -> None:
    """Compare recall of the ten nearest among embeddings as they are stored, and through the tables, with bytes."""
    candidates, held_out = candidates_and_queries(load_images(images))
    encoder = load_encoder(checkpoint)
    embeddings, queries = encoder.embed(candidates), encoder.embed(held_out)
    truth, _ = exact_neighbours(queries, embeddings, 10)
    print(f"{len(embeddings):,} x {encoder.dim}, {len(queries)} queries")
    with cluster():
        for stored_as in STORED_AS:
            files = store_embeddings(folder, embeddings, stored_as=stored_as)["files"]
            build_index(folder)
            index, shards = ShardedIndex(folder, probes=64), Shards.at(folder, "embeddings")
            stored = np.concatenate([vectors_in(shards.read(file["name"])["embedding"]) for file in files])
            exact = recall_at_k(exact_neighbours(queries, stored, 10)[0], truth)
            found = recall_at_k(index.search(queries, 10).ids, truth)
            size = sum(file["bytes"] for file in files) / len(embeddings)
            print(f"{stored_as}: {size:.0f} bytes per embedding in Parquet, recall {exact:.4f}, in tables {found:.4f}")


def watch_actors(cores: list[float], ended: threading.Event) -> None:
    """Note how many cores the actors that hold encoders use, all together, while they are at work."""
    known = {}
    while not ended.wait(0.5):
        for process in psutil.Process().children(recursive=True):
            try:
                if process.pid not in known and "OpenAndEmbed" in " ".join(process.cmdline()):
                    known[process.pid] = process
            except psutil.Error:
                continue
        with suppress(psutil.Error):
            cores.append(sum(process.cpu_percent() for process in known.values()) / 100)


def time_embedding(images: str, checkpoint: str, concurrency: int, rounds: int, folder: Path) -> None:
    """Embed the images of a folder by one process and by several actors, in turn, and compare rates per core."""
    encoder, paths = load_encoder(checkpoint), list(find_images(Path(images)))
    encoder.embed(paths)  # what is slow the first time
    for _ in range(rounds):
        start = time.process_time()
        encoder.embed(paths)
        one = encoder.images_per_second
        of_one = (time.process_time() - start) / (len(paths) / one)
        shutil.rmtree(folder / "embeddings", ignore_errors=True)
        cores, ended = [], threading.Event()
        threading.Thread(target=watch_actors, args=(cores, ended), daemon=True).start()
        manifest = embed_images(images, folder, checkpoint, concurrency=concurrency, shard_rows=256)
        ended.set()
        many = manifest["images_per_second"]
        of_many = float(np.median([used for used in cores if used > 0.5 * concurrency]))
        print(
            f"one process {one:.1f} images/s on {of_one:.2f} cores; {concurrency} actors, once started, {many:.1f} on "
            f"{of_many:.2f}: {many / one:.2f} times as many, {many / of_many / (one / of_one):.2f} times per core"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--num-tables", type=int, default=10)
    parser.add_argument("--images", help="a folder of image files to embed")
    parser.add_argument("--checkpoint", default="builtin")
    parser.add_argument("--concurrency", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--bytes", action="store_true", help="compare the types in which embeddings are stored")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.bytes:
            compare_bytes(options.images or "builtin", options.checkpoint, Path(folder))
        elif options.images:
            time_embedding(options.images, options.checkpoint, options.concurrency, options.rounds, Path(folder))
        else:
            time_tables(options.count, options.dim, options.num_tables, Path(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
