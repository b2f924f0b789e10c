"""Measure where planes should lie: the share of candidates seen for a recall of .9, by the number of directions.

Planes are rotated within the leading principal directions of the candidates, as many as a code has bits, or more; all
candidates seen are compared. Prints a row of a Markdown table per set.
"""

import argparse

import numpy as np

from imgsim import candidates_and_queries, exact_neighbours, load_encoder, load_images, normalise, participation_ratio
from imgsim.evaluation import recall_at_k
from imgsim.hashing import Projection
from imgsim.search.coder import Coder, draw_rotation
from imgsim.search.principal import rotate_planes
from imgsim.search.snapshot import Snapshot

BUCKETS = (1, 2, 3, 5, 9, 17, 25, 33, 49, 65, 97, 129, 193, 257)  # looked up per table
RECALL = 0.9


def share_seen(candidates, queries, true, projection: Projection) -> float:
    """Return the share of candidates seen for the recall, between the two numbers of buckets around it."""
    coder, shares = Coder(projection, draw_rotation(candidates.shape[1])), []
    tables = Snapshot.build(coder, candidates, np.arange(len(candidates)), np.full(len(candidates), -1))
    for buckets in BUCKETS:
        rows, _, seen, _ = tables.search(queries, 10, buckets - 1, None)
        shares.append((recall_at_k(rows, true), float(seen.mean()) / len(candidates)))
        if shares[-1][0] >= RECALL:
            return float(np.interp(RECALL, *zip(*shares[-2:], strict=True)))
    return np.nan


def measure(name: str, candidates, queries, hash_size: int, num_tables: int) -> str:
    """Return a row of the table."""
    candidates, queries = normalise(candidates), normalise(queries[:400])
    true, ratio, dim = (
        exact_neighbours(queries, candidates, 10)[0],
        participation_ratio(candidates),
        candidates.shape[1],
    )
    random = Projection.fit(candidates, hash_size, num_tables)
    axes = np.linalg.eigh(np.cov(candidates.T.astype(np.float64)))[1][:, ::-1].astype(np.float32)
    shares = [share_seen(candidates, queries, true, random)]
    for count in (hash_size, round(ratio / 2), round(ratio), dim):
        directions = axes[:, : min(max(count, hash_size), dim)]
        planes = rotate_planes(directions, hash_size, num_tables)
        shares.append(share_seen(candidates, queries, true, Projection(planes, random.mean, directions)))
    cells = " | ".join(f"{share:.1%}" for share in shares)
    return f"| {name}, {len(candidates):,} × {dim}, {num_tables} tables of {hash_size} bits | {ratio:.0f} | {cells} |"


def blobs(count: int, dim: int = 64):
    """Return candidates and queries around `count` centres, or, if it is 1, in a round cloud."""
    rng = np.random.default_rng(1)
    centres = rng.standard_normal((count, dim)) * (count > 1)
    points = centres[rng.integers(count, size=10_300)] + (0.5 if count > 1 else 1) * rng.standard_normal((10_300, dim))
    return points[:10_000].astype(np.float32), points[10_000:].astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--embeddings", metavar="FILE.npz", help="arrays candidates (n, d) and queries (m, d)")
    parser.add_argument("--dataset", default="builtin")
    parser.add_argument("--checkpoint", default="builtin")
    parser.add_argument("--hash-size", type=int, default=8)
    parser.add_argument("--num-tables", type=int, default=10)
    parser.add_argument("--made-up", action="store_true", help="measure blobs and a round cloud instead")
    options = parser.parse_args()
    sizes = options.hash_size, options.num_tables
    print("| set | ratio | random planes | r = k | r = ratio / 2 | r = ratio | r = d |\n| --- |" + " ---: |" * 6)
    if options.made_up:
        print(measure("200 blobs", *blobs(200), *sizes), measure("a round cloud", *blobs(1), *sizes), sep="\n")
    elif options.embeddings:
        with np.load(options.embeddings) as data:
            print(measure(options.embeddings, data["candidates"], data["queries"], *sizes))
    else:
        encoder, splits = load_encoder(options.checkpoint), candidates_and_queries(load_images(options.dataset))
        print(measure(options.checkpoint, *map(encoder.embed, splits), *sizes))


if __name__ == "__main__":
    main()
