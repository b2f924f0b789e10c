"""Time imgsim's search and its peers: one run, the same data, the same threads, one table.

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
from matplotlib.text import Text
from matplotlib.transforms import Bbox

import imgsim
from imgsim.evaluation import participation_ratio, recall_at_k
from imgsim.hashing import Projection, normalise
from imgsim.index import BuildLSHTable
from imgsim.search.candidates import arrays_of

try:
    import faiss
except ModuleNotFoundError:
    sys.exit("The benchmarks compare with faiss, which is not installed: pip install faiss-cpu")

POOLS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMBA_NUM_THREADS")
TOP_K, RERANKED = 10, 100  # places of an answer; how many, best by Hamming distance, faiss's rows compare exactly
ROUNDS, SINGLES = 5, 40  # passes over all rows, so that a drifting clock hits all alike; single queries in each
BLOCK = 16384  # candidates worked on at a time
MULTI_HASH = 16, 16  # bits and tables in which imgsim and IndexBinaryMultiHash are compared
# hash_size, num_tables, then pairs of probes and rerank (None: all that the tables return are compared exactly)
SETTINGS = (
    (8, 10, ((0, None),)),
    (12, 48, ((0, None), (7, 200))),
    (12, 64, ((12, 400),)),
    (13, 64, ((8, 150),)),
    (*MULTI_HASH, ((0, None), (32, 200))),
)
COLOURS = {"imgsim": "C3", "faiss": "C0", "exact": "0.4", "published": "C1"}  # by a name's first word
# A row's search takes queries (m, d) and returns ids (m, 10), then how many candidates were seen and how many of them
# compared exactly, for all queries together or for each. bytes: what the index takes per image besides its embedding.
COLUMNS = ("name", "build s", "recall@10", "seen %", "exact %", "bytes", "µs batched", "µs single", "× LSH")
DECIMALS = (2, 3, 2, 2, 0, 1, 1, 2)


def cone_mixture(n: int, dim: int, m: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Candidates (n, d) and queries (m, d) shaped like real embeddings: 300 overlapping clusters in a narrow cone
    (random pairs have cosines about .6), with variances that decay as in a network's output."""
    rng = np.random.default_rng(seed)
    spectrum = (np.arange(dim) + 3.0) ** -1.35
    scale = np.sqrt(0.4 * spectrum / spectrum.sum()).astype(np.float32)
    axis = normalise(rng.standard_normal(dim)) * np.float32(0.6**0.5)
    centres = axis + np.float32(0.4**0.5) * scale * rng.standard_normal((300, dim), dtype=np.float32)

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
    def all_of(ids):
        return ids, len(ids) * len(candidates), len(ids) * len(candidates)

    yield row("exact numpy", 0, 0, lambda queries: all_of(exact_search(queries, candidates)))
    index = faiss.IndexFlatIP(candidates.shape[1])
    build = seconds_of(index.add, candidates)
    yield row("faiss Flat", build, 0, lambda queries: all_of(index.search(queries, TOP_K)[1]))


def lsh_rows(candidates):
    mean, index = candidates.mean(axis=0), faiss.IndexLSH(candidates.shape[1], 512)

    def search(queries):
        near = index.search(queries - mean, RERANKED)[1]
        return rerank(queries, candidates, near), len(near) * len(candidates), near >= 0

    parts = np.split(candidates, range(BLOCK, len(candidates), BLOCK))
    yield row("faiss LSH 512", seconds_of(lambda: [index.add(part - mean) for part in parts]), 64, search)


def signatures(projection: Projection, embeddings: np.ndarray) -> np.ndarray:
    """All bits of all tables in a row of bytes (n, k L / 8), as faiss wants them; k is 8, 16, 32 or 64."""
    codes = np.ascontiguousarray(projection(embeddings))
    return codes.astype(f"<u{projection.planes.shape[-1] // 8}").view(np.uint8)


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
    for name, index, owner, stats, knob, values in (
        ("HNSW32, ef", graph, graph.hnsw, faiss.cvar.hnsw_stats, "efSearch", (16, 32, 64)),
        (f"IVF{cells}, nprobe", lists, lists, faiss.cvar.indexIVF_stats, "nprobe", (8, 16, 32)),
    ):
        build = seconds_of(index.train, candidates) + seconds_of(index.add, candidates)
        links = 4 * graph.hnsw.neighbors.size() / n + 8
        for value in values:

            def search(queries, index=index, owner=owner, stats=stats, knob=knob, value=value):
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


def bytes_per_image(index: BuildLSHTable) -> float:
    """Return what an index takes per image besides its embedding."""
    arrays = arrays_of(index.snapshot).items()
    return sum(array.nbytes for name, array in arrays if name not in ("vectors", "planes", "mean")) / len(index)


def build_index(candidates, hash_size: int, num_tables: int) -> BuildLSHTable:
    return BuildLSHTable(hash_size=hash_size, num_tables=num_tables).build_from_embeddings(candidates)


def imgsim_rows(candidates):
    default = BuildLSHTable()
    first = default.hash_size, default.num_tables, ((default.probes, default.rerank),)
    for hash_size, num_tables, efforts in (first, *SETTINGS):
        index = build_index(candidates, hash_size, num_tables)
        size = bytes_per_image(index)
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
        line["seen %"], line["exact %"] = (100 * np.sum(total) / len(ids) / len(candidates) for total in totals)
        done.append(line)
        print(f"{line['name']}: built in {line['build s']:.2f} s, recall {line['recall@10']:.3f}", flush=True)
    for turn in range(ROUNDS):
        print(f"Timing, round {turn + 1} of {ROUNDS}", flush=True)
        for line in done:
            some = np.roll(line["asked"], -turn * SINGLES, axis=0)[:SINGLES]
            line.setdefault("batches", []).append(seconds_of(line["search"], line["asked"]) / len(line["asked"]))
            line.setdefault("singles", []).extend(singly(line["search"], some))
    for line in done:
        line["µs batched"], line["µs single"] = 1e6 * np.median(line["batches"]), 1e6 * np.median(line["singles"])
    base = next(line["µs batched"] for line in done if line["name"].startswith("faiss LSH"))
    return [line | {"× LSH": line["µs batched"] / base} for line in done]


def as_table(rows: list[dict]) -> str:
    """The rows in Markdown, in columns that a terminal shows well too."""
    digits = dict(zip(COLUMNS[1:], DECIMALS, strict=True))
    cells = [COLUMNS, *([line["name"], *(f"{line[key]:.{n}f}" for key, n in digits.items())] for line in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    lines = ([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def build_times(candidates) -> str:
    """What building takes with the settings of MULTI_HASH: medians of three, in one sentence."""
    hash_size, num_tables = MULTI_HASH
    projection = Projection.fit(candidates, hash_size, num_tables)
    codes, planes = signatures(projection, candidates), np.hstack(projection.planes)
    parts = np.split(candidates, range(BLOCK, len(candidates), BLOCK))
    works = (
        lambda: BuildLSHTable(hash_size=hash_size, num_tables=num_tables).build_from_embeddings(candidates),
        lambda: faiss.IndexBinaryMultiHash(hash_size * num_tables, num_tables, hash_size).add(codes),
        lambda: [part @ planes for part in parts],
    )
    ours, theirs, product = np.median([[seconds_of(work) for work in works] for _ in range(3)], axis=0)
    return (
        f"Building with {hash_size} bits × {num_tables} tables: imgsim {ours:.3f} s (projection, codes and tables); "
        f"IndexBinaryMultiHash {theirs:.3f} s to add codes already made; the projection's bare product {product:.3f} s."
    )


def colour(line: dict) -> str:
    return COLOURS[line["name"].split()[0]]


def write_names(axes, rows: list[dict]) -> None:
    """Write each row's name at the first place around its marker that covers no marker and no other name."""
    axes.figure.canvas.draw()
    points = [(line["µs batched"], line["recall@10"]) for line in rows]
    taken = [Bbox([middle - 7, middle + 7]) for middle in axes.transData.transform(points)]
    turns = np.exp(2j * np.pi * np.arange(24) / 24)
    for line, point in zip(rows, points, strict=True):
        look = {
            "color": colour(line),
            "arrowprops": {"arrowstyle": "-", "color": colour(line), "lw": 0.5, "shrinkB": 3},
        }
        label = axes.annotate(
            line["name"].removeprefix("faiss "), point, (0, 0), textcoords="offset points", va="center", **look
        )
        label.set_fontsize(8)
        for step in np.outer(np.arange(12, 300, 6), turns).ravel():
            label.set(position=(step.real, step.imag), ha="left" if step.real > 0 else "right")
            label.update_positions(axes.figure.canvas.get_renderer())
            box = Text.get_window_extent(label)  # without its line
            if all(map(axes.bbox.contains, *zip(box.min, box.max, strict=True))) and not box.count_overlaps(taken):
                break
        taken.append(box)


def plot_table(rows: list[dict], title: str, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(12, 8), layout="constrained", dpi=120)
    for line in rows:
        axes.scatter(line["µs batched"], line["recall@10"], color=colour(line))
    # Stretched towards 1, where most rows lie.
    axes.set_yscale("function", functions=(lambda r: -np.log(1.05 - np.minimum(r, 1.04)), lambda v: 1.05 - np.exp(-v)))
    axes.set(xscale="log", xlabel="µs per query, in a batch", ylabel="recall@10", title=title)
    axes.set(ylim=(-0.1, 1.015), yticks=[0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 1])
    axes.margins(x=0.15)
    axes.grid(alpha=0.3)
    write_names(axes, rows)
    figure.savefig(path)


def fastest(candidates, queries) -> dict:
    """The fastest of a few settings with a recall of .9 or more: the median seconds of a single query, and what the
    index takes to build (seconds) and to keep (see bytes_per_image)."""
    hash_size = int(np.log2(len(candidates))) - 2  # a handful of candidates a bucket, at any n
    index, truth, found = build_index(candidates, hash_size, 32), exact_search(queries, candidates), []
    size = bytes_per_image(index)
    for index.rerank in (100, 300, 1000):
        for index.probes in (4, 8, 16, 32, 64, 128):
            result = index.search(queries, TOP_K)
            if (recall := recall_at_k(result.ids, truth)) >= 0.9:
                name = f"{hash_size}×32, probes {index.probes}, rerank {index.rerank}"
                seen, seconds = result.candidates_seen.mean() / len(candidates), singly(index.search, queries[:100])
                found.append({"seconds": np.median(seconds), "recall": recall, "seen": seen, "name": name})
                break  # more probes would only take longer
    none = {"seconds": np.nan, "recall": np.nan, "seen": np.nan, "name": "none reached .9"}
    best = min(found, default=none, key=lambda one: one["seconds"])
    return best | {"build": index.build_seconds, "size": size}


def growth(candidates, queries, path: Path) -> str:
    """How the time of a single query grows with n: a table, and a picture at `path`."""
    names = (
        "candidates",
        "exact numpy µs",
        "imgsim µs",
        "× faster",
        "recall@10",
        "seen %",
        "build s",
        "bytes",
        "setting",
    )
    lines, times = [f"| {' | '.join(names)} |", f"| {' | '.join(['---:'] * 8 + ['---'])} |"], []
    print(*lines, sep="\n")
    sizes = [n for n in (10_000, 30_000, 100_000, 300_000, 1_000_000) if n <= len(candidates)]
    for n in sizes:
        part = candidates[:n]
        exact = np.median(singly(lambda query, part=part: exact_search(query, part), queries[:30]))
        ours = fastest(part, queries)
        times.append((1e6 * exact, 1e6 * ours["seconds"]))
        cells = f"{times[-1][0]:.0f} | {times[-1][1]:.0f} | {exact / ours['seconds']:.1f} | {ours['recall']:.3f}"
        cells += f" | {100 * ours['seen']:.2f} | {ours['build']:.2f} | {ours['size']:.0f} | {ours['name']}"
        lines.append(f"| {n} | {cells} |")
        print(lines[-1], flush=True)
    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained", dpi=120)
    for name, column in zip(("exact numpy", "imgsim at recall .9"), np.transpose(times), strict=True):
        axes.loglog(sizes, column, "o-", label=name, color=COLOURS[name.split()[0]])
    axes.set(xlabel="candidates", ylabel="µs per query, alone")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path)
    return "\n".join(lines)


def machine(threads: int) -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())
    versions = (
        f"imgsim {imgsim.__version__}, numpy {version('numpy')}, numba {version('numba')}, faiss {faiss.__version__}"
    )
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    return (
        f"{model}, {os.cpu_count()} cores (load before the run {load}), {platform.system()}; {threads} threads for "
        f"numpy's BLAS, faiss and numba (set in the environment). Python {platform.python_version()}, {versions}."
    )


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    data = parser.add_mutually_exclusive_group()
    data.add_argument("--embeddings", metavar="FILE.npz", help="arrays candidates (n, d) and queries (m, d)")
    data.add_argument("--generate", nargs=2, type=int, metavar=("N", "DIM"), default=(20_000, 256), help="or draw them")
    parser.add_argument("--queries", type=int, default=1000, help="how many are asked at most")
    parser.add_argument("--threads", type=int, default=2, help="for numpy, faiss and numba alike")
    parser.add_argument("--growth", action="store_true", help="time a single query against n instead")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks"), metavar="DIR")
    return parser.parse_args()


def main() -> int:
    options = read_options()
    pools = dict.fromkeys(POOLS, str(options.threads))
    if not pools.items() <= os.environ.items():  # read when the libraries are loaded: start again with them
        return subprocess.call([sys.executable, *sys.argv], env=os.environ | pools)
    if options.embeddings:
        with np.load(options.embeddings) as data:
            candidates, queries = normalise(data["candidates"]), normalise(data["queries"][: options.queries])
    else:
        candidates, queries = cone_mixture(*options.generate, options.queries)
    size = f"{len(candidates)} candidates of {candidates.shape[1]} dimensions, {len(queries)} queries"
    cosine, ratio = queries.mean(0) @ candidates.mean(0), participation_ratio(candidates[:20_000])
    about = f"{size} ({options.embeddings or 'generated'}; cosine of random pairs {cosine:.2f}, participation ratio "
    about += f"{ratio:.0f}). {machine(options.threads)}"
    print(about, flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    page = options.output / ("growth.md" if options.growth else "search.md")
    if options.growth:
        text = growth(candidates, queries, page.with_suffix(".png"))
    else:
        makers = exact_rows, lsh_rows, multi_hash_rows, raw_rows, published_rows, imgsim_rows
        rows = measure((line for maker in makers for line in maker(candidates)), candidates, queries)
        text = f"{as_table(rows)}\n\n{build_times(candidates)}"
        print(text)
        plot_table(rows, f"{size}, {options.threads} threads", page.with_suffix(".png"))
    page.write_text(f"{text}\n\n{about}\n\nCommand: `python {shlex.join(sys.argv)}`\n", encoding="utf-8")
    print(f"Written: {page} and {page.with_suffix('.png')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
