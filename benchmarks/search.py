"""Time imgsim's search beside its peers: one run, the same data, the same threads, one table.

Shapes: n candidates, m queries, d dimensions. All rows are normalised, so a dot product is a cosine, and every
recall is of the 10 nearest by exact cosine of the embeddings as they are (not centred).
"""

import argparse
import os
import platform
import shlex
import subprocess
import sys
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from imgsim.evaluation import normalise, participation_ratio, recall_at_k
from imgsim.hashing import Projection
from imgsim.index import BuildLSHTable

try:
    import faiss
except ImportError:
    sys.exit("The benchmarks compare with faiss, which is not installed: pip install 'imgsim[benchmarks]'.")

POOLS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMBA_NUM_THREADS")
TOP_K, RERANKED = 10, 100  # places of an answer; how many, best by Hamming distance, faiss's rows compare exactly
ROUNDS, SINGLES = 5, 40  # passes over all rows, so that a drifting clock hits all alike; single queries in each
BLOCK = 16384  # candidates worked on at a time
MULTI_HASH = 16, 16  # bits and tables in which imgsim and IndexBinaryMultiHash are compared
# hash_size, num_tables, then pairs of probes and rerank (None: all that the tables return are compared exactly)
SETTINGS = (
    (8, 10, ((0, None), (8, None))),
    (12, 32, ((8, 100), (16, None), (16, 200), (32, 200))),
    (*MULTI_HASH, ((0, None), (16, 100), (64, 200))),
)
COLOURS = {"imgsim": "C3", "faiss": "C0", "exact": "0.4", "published": "C1"}  # by a name's first word
# A row's search takes queries (m, d) and returns ids (m, 10), then how many candidates were seen and how many were
# compared exactly: totals or numbers for every query. bytes are what the index takes for an image, the embeddings left out.
FORMATS = {
    "name": "{}",
    "build s": "{:.2f}",
    "recall@10": "{:.3f}",
    "seen %": "{:.2f}",
    "exact %": "{:.2f}",
    "bytes": "{:.0f}",
    "µs batched": "{:.1f}",
    "µs single": "{:.1f}",
    "× LSH": "{:.2f}",
}


def cone_mixture(n: int, dim: int, m: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Candidates (n, d) and queries (m, d) shaped like real embeddings: 1000 overlapping clusters in a narrow cone
    (random pairs have cosines about .6), with variances that decay as in a network's output."""
    rng = np.random.default_rng(seed)
    spectrum = (np.arange(dim) + 3.0) ** -1.35
    scale = np.sqrt(0.4 * spectrum / spectrum.sum()).astype(np.float32)
    axis = normalise(rng.standard_normal(dim)) * np.float32(0.6**0.5)
    centres = axis + np.float32(0.4**0.5) * scale * rng.standard_normal((1000, dim), dtype=np.float32)

    def draw(count: int) -> np.ndarray:
        rows = np.empty((count, dim), np.float32)
        for part in np.split(rows, range(BLOCK, count, BLOCK)):
            rng.standard_normal(out=part, dtype=np.float32)
            part *= np.float32(0.6**0.5) * scale
            part += centres[rng.integers(len(centres), size=len(part))]
            part /= np.linalg.norm(part, axis=1, keepdims=True)
        return rows

    queries = draw(m)  # first: they do not depend on n
    return draw(n), queries


def seconds_of(work, *arguments) -> float:
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start


def exact_search(queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """The ids (m, 10) of the nearest, by one product with each block of the candidates."""
    ids, cosines = np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32)
    for start in range(0, len(candidates), BLOCK):
        block = queries @ candidates[start : start + BLOCK].T
        best = np.argpartition(block, -min(TOP_K, block.shape[1]), axis=1)[:, -TOP_K:]
        ids, cosines = np.hstack([ids, best + start]), np.hstack([cosines, np.take_along_axis(block, best, 1)])
        best = np.argsort(-cosines, axis=1)[:, :TOP_K]
        ids, cosines = np.take_along_axis(ids, best, 1), np.take_along_axis(cosines, best, 1)
    return ids


def rerank(queries: np.ndarray, candidates: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The ids (m, 10) of the nearest among ids (m, any) by exact cosine, compared by faiss on its threads."""
    found, cosines = np.empty((len(queries), TOP_K), np.int64), np.empty((len(queries), TOP_K), np.float32)
    sizes = candidates.shape[1], len(queries), len(candidates), ids.shape[1], TOP_K
    arrays = [faiss.swig_ptr(array) for array in (queries, candidates, ids, cosines, found)]
    # The last argument is a row's length in ids: left out it is n, not what faiss's documentation says.
    faiss.knn_inner_products_by_idx(*arrays[:3], *sizes, *arrays[3:], ids.shape[1])
    return found


def row(name: str, build: float, size: float, search, limit: int | None = None) -> dict:
    return {"name": name, "build s": build, "bytes": size, "search": search, "limit": limit}


def exact_rows(candidates):
    every = len(candidates)
    yield row("exact numpy", 0, 0, lambda queries: (exact_search(queries, candidates), every, every))
    index = faiss.IndexFlatIP(candidates.shape[1])
    build = seconds_of(index.add, candidates)
    yield row("faiss Flat", build, 0, lambda queries: (index.search(queries, TOP_K)[1], every, every))


def lsh_rows(candidates):
    mean, index = candidates.mean(axis=0), faiss.IndexLSH(candidates.shape[1], 512)

    def search(queries):
        near = index.search(queries - mean, RERANKED)[1]
        return rerank(queries, candidates, near), len(candidates), RERANKED

    parts = np.split(candidates, range(BLOCK, len(candidates), BLOCK))
    yield row("faiss LSH 512", seconds_of(lambda: [index.add(part - mean) for part in parts]), 64, search)


def signatures(projection: Projection, embeddings: np.ndarray) -> np.ndarray:
    """All bits of all tables in a row, packed to bytes (n, k L / 8), as faiss's binary indexes want them."""
    codes = projection(embeddings)
    bits = np.unpackbits(codes.view(np.uint8).reshape(*codes.shape, -1), axis=-1, bitorder="little")
    return np.packbits(bits[..., : projection.planes.shape[-1]].reshape(len(codes), -1), axis=1, bitorder="little")


def multi_hash_rows(candidates):
    hash_size, num_tables = MULTI_HASH
    projection = Projection.fit(candidates, hash_size, num_tables)
    index = faiss.IndexBinaryMultiHash(hash_size * num_tables, num_tables, hash_size)
    build = seconds_of(lambda: index.add(signatures(projection, candidates)))
    # The signature, an id of 8 bytes in each table, and a node (link, key, vector) for each bucket.
    size = hash_size * num_tables / 8 + 8 * num_tables + 40 * index.hashtable_size() / len(candidates)
    stats = faiss.cvar.indexBinaryHash_stats
    for nflip in (0, 1, 2):

        def search(queries, nflip=nflip):
            index.nflip = nflip
            stats.reset()
            near = index.search(signatures(projection, queries), RERANKED)[1]
            return rerank(queries, candidates, near), stats.ndis, near >= 0

        yield row(f"faiss MultiHash {hash_size}×{num_tables}, nflip {nflip}", build, size, search)


def raw_rows(candidates):
    """faiss's indexes of the embeddings themselves, each at several values of its effort."""
    (n, dim), cells = candidates.shape, int(2 * len(candidates) ** 0.5)
    graph, lists = faiss.IndexHNSWFlat(dim, 32), faiss.IndexIVFFlat(faiss.IndexFlatL2(dim), dim, cells)
    statistics = faiss.cvar.hnsw_stats, faiss.cvar.indexIVF_stats
    for index, stats, name, knob, values in (
        (graph, statistics[0], "HNSW32, ef", "efSearch", (16, 32, 64)),
        (lists, statistics[1], f"IVF{cells}, nprobe", "nprobe", (4, 8, 16)),
    ):
        build = seconds_of(index.train, candidates) + seconds_of(index.add, candidates)
        owner = graph.hnsw if index is graph else lists
        links = 4 * graph.hnsw.neighbors.size() / n + 8
        for value in values:

            def search(queries, index=index, stats=stats, owner=owner, knob=knob, value=value):
                setattr(owner, knob, value)
                stats.reset()
                return index.search(queries, TOP_K)[1], stats.ndis, stats.ndis

            yield row(f"faiss {name} {value}", build, links if index is graph else 8 + 4 * dim * cells / n, search)


def published_rows(candidates, hash_size=8, num_tables=10):
    """As in the article: one uncentred projection, its codes copied to every table, ranked by counts."""
    if len(candidates) > 100_000:
        print("The published tables are left out above 100,000 candidates: they would take minutes and gigabytes.")
        return
    planes = np.random.default_rng(0).standard_normal((candidates.shape[1], hash_size), dtype=np.float32)
    tables = [{} for _ in range(num_tables)]

    def codes(embeddings):
        return ((embeddings @ planes > 0) @ (1 << np.arange(hash_size))).tolist()

    def build():
        for i, code in enumerate(codes(candidates)):
            entry = {"id_label": f"{i}_0"}
            for table in tables:
                table.setdefault(code, []).append(entry)

    def search(queries):
        ids, seen = np.full((len(queries), TOP_K), -1), 0
        for place, code in zip(ids, codes(queries), strict=True):
            counts = Counter(entry["id_label"] for table in tables for entry in table.get(code, ()))
            overlaps = {name: count / candidates.shape[1] for name, count in counts.items()}
            best = sorted(overlaps, key=overlaps.get, reverse=True)[:TOP_K]
            place[: len(best)] = [int(name.split("_")[0]) for name in best]
            seen += len(counts)
        return ids, seen, 0

    build_seconds, entry = seconds_of(build), {"id_label": f"{len(candidates)}_0"}
    size = 8 * num_tables + sys.getsizeof(entry) + sys.getsizeof(entry["id_label"])  # all tables share an entry
    yield row(f"published {hash_size}×{num_tables}", build_seconds, size, search, limit=100)


def array_bytes(thing, known: set[int]) -> int:
    """The bytes of all arrays that an object leads to, each counted once; ids in `known` are left out."""
    if id(thing) in known:
        return 0
    known.add(id(thing))
    if isinstance(thing, np.ndarray):
        return thing.nbytes
    parts = thing.values() if isinstance(thing, dict) else thing if isinstance(thing, list | tuple) else ()
    return sum(array_bytes(part, known) for part in (*parts, *getattr(thing, "__dict__", {}).values()))


def build_index(candidates, hash_size: int, num_tables: int) -> BuildLSHTable:
    index = BuildLSHTable(hash_size=hash_size, num_tables=num_tables).build_from_embeddings(candidates)
    index.embeddings = candidates  # the same numbers: one copy in memory for all indexes
    return index


def imgsim_rows(candidates):
    default = BuildLSHTable()
    first = default.hash_size, default.num_tables, ((default.probes, default.rerank),)
    for hash_size, num_tables, efforts in (first, *SETTINGS):
        index = build_index(candidates, hash_size, num_tables)
        size = array_bytes(index, {id(candidates), id(index.projection)}) / len(candidates)
        for probes, depth in efforts:

            def search(queries, index=index, probes=probes, depth=depth):
                index.probes, index.rerank = probes, depth
                result = index.search(queries, TOP_K)
                return result.ids, result.candidates_seen, result.compared_exactly

            name = f"imgsim {hash_size}×{num_tables}, probes {probes}, rerank {depth or 'all'}"
            yield row(name + " (default)" * (efforts is first[2]), index.build_seconds, size, search)


def singly(search, queries) -> list[float]:
    """The seconds that every query (m, d) takes, searched alone."""
    return [seconds_of(search, queries[i : i + 1]) for i in range(len(queries))]


def measure(rows, candidates, queries) -> list[dict]:
    """Fill in recall and shares as the rows are built, then their times, one round of all rows after another."""
    truth, done = exact_search(queries, candidates), []
    for line in rows:
        line["asked"] = queries[: line["limit"]]
        ids, *totals = line["search"](line["asked"])  # this and the next line also warm up
        line["search"](queries[:1])
        line["recall@10"] = recall_at_k(ids, truth[: len(ids)])
        compared = len(ids) * len(candidates)
        scale = [1 if np.ndim(total) or total > len(candidates) or not total else len(ids) for total in totals]
        line["seen %"], line["exact %"] = (
            100 * np.sum(total) * by / compared for total, by in zip(totals, scale, strict=True)
        )
        done.append(line)
        print(f"{line['name']}: built in {line['build s']:.2f} s, recall {line['recall@10']:.3f}", flush=True)
    return done
