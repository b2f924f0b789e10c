"""Time imgsim's search and its peers: one run, the same data, the same threads.

All rows are normalised, so a dot product is a cosine, and every recall is of the 10 nearest by exact cosine. A method
is a curve: its recall against its time, from little effort to much. Shapes: n candidates, m queries, d dimensions.
"""

import argparse
import os
import platform
import shlex
import subprocess
import sys
import time
import warnings
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import imgsim
from imgsim.evaluation import exact_neighbours, grow_vectors, participation_ratio, recall_at_k
from imgsim.extras.tuning import tune
from imgsim.figures import panels
from imgsim.hashing import normalise
from imgsim.index import BuildLSHTable
from imgsim.search.candidates import arrays_of

try:
    import faiss
except ModuleNotFoundError:
    sys.exit("The benchmarks compare with faiss, which is not installed: pip install faiss-cpu")

POOLS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMBA_NUM_THREADS")
TOP_K, ROUNDS, SINGLES = 10, 5, 60  # places of an answer; passes over all methods; single queries in each
RECALLS = (0.8, 0.9, 0.91, 0.95, 0.97, 0.99)  # that `tune` chooses settings for, by queries that are not asked
LOWEST = 0.6  # recall shown
SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000)
PEERS = ("#000000", "#8a94a0", "#c9a227", "#2a7d4f", "#7a5195", "#5b8fb9", "#1f4e79")  # colours, in order of the table
COLUMNS = {"recall@10": 3, "seen %": 2, "compared %": 2, "build s": 3, "bytes": 0, "µs batched": 1, "µs single": 1}


def seconds_of(work, *arguments) -> float:
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start


class Curve:
    """A method: its name, how long it took to build, its bytes per image beside the embedding, and its points.

    A point is a name and a search, which takes queries (m, d) and returns ids (m, 10), and how many candidates were
    seen and compared exactly per query, or NaN.
    """

    def __init__(self, name: str, build: float, size: float, points: list):
        self.name, self.build, self.size, self.points = name, build, size, points


def exact_curves(candidates):
    def search(queries):
        blocks = np.split(queries, range(100, len(queries), 100))  # for all at once the products would not fit
        best = [(block @ candidates.T).argpartition(-TOP_K, axis=1)[:, -TOP_K:] for block in blocks]
        return np.concatenate(best), len(candidates), len(candidates)

    yield Curve("exact numpy", 0, 0, [("", search)])
    index = faiss.IndexFlatIP(candidates.shape[1])
    build = seconds_of(index.add, candidates)
    yield Curve(
        "faiss Flat", build, 0, [("", lambda queries: (index.search(queries, TOP_K)[1], *[len(candidates)] * 2))]
    )


def faiss_curves(candidates, only=""):
    """Inverted lists, the same with RaBitQ's sketches, sign bits of random projections, and a graph; or one of them."""
    n, dim = candidates.shape
    cells = 1 << round(np.log2(n) / 2 + 1)
    kinds = {
        "faiss IVF": (f"IVF{cells},Flat", "nprobe", (1, 2, 4, 8, 16, 32, 64), 8 + 4 * dim * cells / n),
        "faiss IVF RaBitQ": (f"IVF{cells},RaBitQ,RFlat", "nprobe", (2, 4, 8, 16, 32, 64), dim / 8 + 16),
        "faiss LSH 512": ("", "k_factor_rf", (2, 5, 10, 20, 40), 64),
        "faiss HNSW32": ("HNSW32,Flat", "efSearch", (8, 12, 16, 20, 24, 32, 48, 64, 96, 128), 0),
    }
    parameters, mean = faiss.ParameterSpace(), candidates.mean(axis=0)
    for name, (factory, knob, values, size) in kinds.items():
        if only not in name:
            continue
        centred = mean if "LSH" in name else 0  # sign bits need planes through the cloud
        base = (
            faiss.IndexLSH(dim, 512) if "LSH" in name else None
        )  # the factory knows none of more bits than dimensions
        index = faiss.IndexRefineFlat(base) if base else faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
        build = seconds_of(lambda rows, index=index: (index.train(rows), index.add(rows)), candidates - centred)
        if "RaBitQ" in name:
            parameters.set_index_parameter(index, "k_factor_rf", 10)
        if "HNSW" in name:
            size = 4 * faiss.downcast_index(index).hnsw.neighbors.size() / n + 8

        def search(queries, index=index, knob=knob, value=None, centred=centred):
            parameters.set_index_parameter(index, knob, value)
            return index.search(queries - centred, TOP_K)[1], np.nan, np.nan

        points = [(f"{knob} {value}", lambda queries, s=search, v=value: s(queries, value=v)) for value in values]
        yield Curve(name, build, size, points)


def published_curves(candidates, hash_size=8, num_tables=10):
    """As in the article: one uncentred projection, its codes copied to every table, ranked by counts."""
    if len(candidates) > 100_000:
        return  # minutes and gigabytes
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
            best = [name for name, _ in counts.most_common(TOP_K)]
            place[: len(best)] = [int(name.split("_")[0]) for name in best]
            seen += len(counts) / len(queries)
        return ids, seen, 0

    seconds, entry = seconds_of(build), {"id_label": f"{len(candidates)}_0"}
    size = 8 * num_tables + sys.getsizeof(entry) + sys.getsizeof(entry["id_label"])  # all tables share an entry
    yield Curve("published", seconds, size, [("8×10", search)])


def imgsim_curves(candidates, tuning_queries, recalls=RECALLS):
    default = BuildLSHTable().build_from_embeddings(candidates)
    yield Curve("imgsim, defaults", default.build_seconds, bytes_per_image(default), [("", searching(default))])
    chosen, points, builds, sizes = [], [], [], []
    for recall in recalls:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the best is taken if no settings reach the recall
            best = tune(default, tuning_queries, recall).best
        if best.settings not in chosen:
            index = BuildLSHTable(**best.settings).build_from_embeddings(candidates)
            s = best.settings
            name = f"{s['hash_size']}×{s['num_tables']}, probes {s['probes']}, rerank {s['rerank']}, {s['planes']}"
            points.append((name, searching(index)))
            chosen, builds, sizes = [*chosen, s], [*builds, index.build_seconds], [*sizes, bytes_per_image(index)]
    yield Curve("imgsim, tuned", max(builds), max(sizes), points)


def searching(index: BuildLSHTable):
    def search(queries):
        result = index.search(queries, TOP_K)
        return result.ids, result.candidates_seen.mean(), result.compared_exactly.mean()

    return search


def bytes_per_image(index: BuildLSHTable) -> float:
    """Return what an index takes per image beside its embedding: ids, labels, tables and sketches."""
    arrays = arrays_of(index.snapshot)
    return sum(arrays[name].nbytes for name in ("ids", "labels", "sketches", "codes", "rows", "starts")) / len(index)


def measure(curves: list[Curve], candidates, queries, limit: float = 30) -> list[dict]:
    """Measure every point's recall and shares, then its times, one round of all points after another."""
    truth, rows = exact_neighbours(queries, candidates, TOP_K)[0], []
    for curve in curves:
        for name, search in curve.points:
            ids, seen, compared = search(queries)  # this warms up, too
            row = {"method": curve.name, "setting": name, "recall@10": recall_at_k(ids, truth), "search": search}
            row |= {"seen %": 100 * seen / len(candidates), "compared %": 100 * compared / len(candidates)}
            rows.append(row | {"build s": curve.build, "bytes": curve.size, "batches": [], "singles": []})
    for turn in range(ROUNDS):
        some = np.roll(queries, -turn * SINGLES, axis=0)[:SINGLES]
        for row in rows:
            row["batches"].append(seconds_of(row["search"], queries) / len(queries))
            row["singles"] += [seconds_of(row["search"], some[i : i + 1]) for i in range(len(some))]
    for row in rows:
        row |= {"µs batched": 1e6 * np.median(row["batches"]), "µs single": 1e6 * np.median(row["singles"])}
    return rows


def as_table(rows: list[dict]) -> str:
    """Return rows in Markdown."""
    lines = [f"| method | setting | {' | '.join(COLUMNS)} |", f"| --- | --- | {' | '.join(['---:'] * len(COLUMNS))} |"]
    for row in rows:
        cells = " | ".join("" if np.isnan(row[name]) else f"{row[name]:,.{n}f}" for name, n in COLUMNS.items())
        lines.append(f"| {row['method']} | {row['setting']} | {cells} |")
    return "\n".join(lines)


def plot_curves(rows: list[dict], path: Path) -> None:
    """Plot recall against time, a curve per method: queries in batches and one by one."""
    figure, axes = panels(2, width=5, height=4)
    for axis, column in zip(axes, ("µs batched", "µs single"), strict=True):
        for number, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
            points = sorted((row[column], row["recall@10"]) for row in rows if row["method"] == method)
            style, colour = ("o-", "#b5442e") if method.startswith("imgsim") else ("s--", PEERS[number])
            size = 12 if len(points) == 1 else 4
            name = method if points[-1][1] > LOWEST else f"{method} (recall {points[-1][1]:.2f})"
            axis.plot(*zip(*points, strict=True), "*" if size > 4 else style, color=colour, label=name, markersize=size)
        axis.set(xscale="log", xlabel=f"{column.split()[0]} per query, {column.split()[1]}", ylim=(LOWEST, 1.005))
    axes[0].set(ylabel="recall at 10", title="A batch of queries")
    axes[1].set(title="One query at a time")
    axes[1].legend(fontsize=8, loc="lower right")
    figure.savefig(path)


def at_recall(rows: list[dict], method: str, recall: float = 0.9) -> dict:
    """Return the fastest point of a method that reaches a recall, else the one of the highest recall."""
    mine = [row for row in rows if row["method"] == method]
    good = [row for row in mine if row["recall@10"] >= recall]
    return min(good, key=lambda row: row["µs single"]) if good else max(mine, key=lambda row: row["recall@10"])


def growth(candidates, queries, tuning_queries, path: Path) -> str:
    """Time single queries at recall .9 while candidates grow: a table, and a picture at `path`."""
    lines = [f"{'n':>9}  method         recall  seen %  build s   bytes  µs single"]
    methods = ("exact numpy", "imgsim, tuned", "faiss HNSW32")
    times: dict[str, list] = {method: [] for method in methods}
    print(lines[0])
    for n in [size for size in SIZES if size <= len(candidates)]:
        part = candidates[:n]
        curves = [*exact_curves(part), *imgsim_curves(part, tuning_queries, (0.9, 0.91)), *faiss_curves(part, "HNSW")]
        rows = measure([curve for curve in curves if curve.name in methods], part, queries[:100])
        for method in dict.fromkeys(row["method"] for row in rows):
            row = at_recall(rows, method)
            times[method].append((n, row["µs single"] / 1000))
            lines.append(
                f"{n:9,}  {method:14} {row['recall@10']:.3f} {row['seen %']:7.2f} {row['build s']:8.2f} "
                f"{row['bytes']:7.0f} {row['µs single']:10.0f}  {row['setting']}"
            )
            print(lines[-1], flush=True)
    figure, (axis,) = panels(1, width=6)
    for method, colour in zip(methods, ("#000000", "#b5442e", "#1f4e79"), strict=True):
        axis.loglog(*zip(*times[method], strict=True), "o-", color=colour, label=method)
    axis.set(xlabel="images", ylabel="ms per query, alone", title="Time of one query at a recall of .9")
    axis.legend()
    figure.savefig(path)
    return "```\n" + "\n".join(lines) + "\n```"


def machine(threads: int) -> str:
    """Describe processor, load, threads and versions in a sentence."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    wide = "with" if any("avx512" in line for line in lines) else "without"
    versions = (
        f"imgsim {imgsim.__version__}, numpy {version('numpy')}, numba {version('numba')}, faiss {faiss.__version__}"
    )
    return (
        f"{model} {wide} AVX-512, {os.cpu_count()} cores (load before the run {load}), {threads} threads; {versions}."
    )


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--embeddings", metavar="FILE.npz", help="arrays candidates (n, d) and queries (m, d)")
    parser.add_argument("--grow", type=int, metavar="N", help="grow the candidates to N, points between near ones")
    parser.add_argument("--queries", type=int, default=500, help="how many are asked, and as many for tuning")
    parser.add_argument("--threads", type=int, default=2, help="for numpy, faiss and imgsim alike")
    parser.add_argument("--growth", action="store_true", help="time single queries at growing sizes up to N instead")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks"), metavar="DIR")
    return parser.parse_args()


def read_data(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Return candidates and queries: those of the file, or the built-in images by the built-in checkpoint."""
    if options.embeddings:
        with np.load(options.embeddings) as data:
            candidates, queries = normalise(data["candidates"]), normalise(data["queries"])
    else:
        encoder, splits = imgsim.load_encoder("builtin"), imgsim.candidates_and_queries(imgsim.load_images())
        candidates, queries = (normalise(encoder.embed(split)) for split in splits)
    if options.grow:
        candidates = grow_vectors(candidates, options.grow)
    return candidates, queries


def main() -> int:
    options = read_options()
    pools = dict.fromkeys(POOLS, str(options.threads))
    if not pools.items() <= os.environ.items():  # read when the libraries are loaded: start again with them
        return subprocess.call([sys.executable, *sys.argv], env=os.environ | pools)
    about = machine(options.threads)
    candidates, queries = read_data(options)
    tuning_queries, queries = queries[1::2][: options.queries], queries[::2][: options.queries]
    size = f"{len(candidates):,} candidates of {candidates.shape[1]} dimensions, {len(queries)} queries"
    ratio = participation_ratio(candidates[:20_000])
    about = f"{size} ({options.embeddings or 'built-in images'}; participation ratio {ratio:.0f}). {about}"
    print(about, flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    page = options.output / ("growth.md" if options.growth else "search.md")
    if options.growth:
        text = growth(candidates, queries, tuning_queries, page.with_suffix(".png"))
    else:
        curves = [*exact_curves(candidates), *published_curves(candidates), *faiss_curves(candidates)]
        rows = measure([*curves, *imgsim_curves(candidates, tuning_queries)], candidates, queries)
        text = as_table(rows)
        print(text)
        plot_curves(rows, page.with_suffix(".png"))
    page.write_text(f"{text}\n\n{about}\n\nCommand: `python {shlex.join(sys.argv)}`\n", encoding="utf-8")
    plt.close("all")
    print(f"Written: {page} and {page.with_suffix('.png')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
