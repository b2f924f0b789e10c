"""Planes that lie where the candidates differ: rotated within their principal directions."""

from __future__ import annotations

import numpy as np

from imgsim.hashing import Projection, check_settings, column_sums

PLANES = ("principal", "random")
SAMPLE = 16384  # rows that tell the principal directions
ROUND = 0.9  # of a round cloud's participation ratio: from here on a cloud counts as round


def check_planes(planes: str) -> None:
    """Raise a ValueError if a setting names no kind of planes."""
    if planes not in PLANES:
        raise ValueError(f"planes must be 'principal' or 'random', not {planes!r}.")


def fit_projection(
    vectors: np.ndarray, hash_size: int, num_tables: int, seed: int = 0, planes: str = "principal"
) -> Projection:
    """Sample the projection of an index.

    Args:
        vectors: (n, d) float32 of length 1.
        hash_size, num_tables, seed: see `Projection.fit`.
        planes: "principal", or "random" for the article's planes, which take no notice of the vectors.
    """
    check_settings(hash_size, num_tables)
    check_planes(planes)
    directions = principal_directions(vectors, hash_size) if planes == "principal" else np.empty((0, 0))
    if not directions.size:
        return Projection.fit(vectors, hash_size, num_tables, seed)
    mean = (column_sums(vectors) / len(vectors)).astype(np.float32)
    return Projection(rotate_planes(directions, hash_size, num_tables, seed), mean, directions)


def principal_directions(vectors: np.ndarray, hash_size: int) -> np.ndarray:
    """Find the directions (d, r) in which vectors (n, d) differ most, strongest first.

    There are as many as a code has bits: fewer candidates are then looked up than with any larger number, on all real
    embeddings tried (benchmarks/README.md). A round cloud has no such directions, so that the axes are returned, and
    none if all vectors are equal.
    """
    sample = vectors[:: -(-len(vectors) // SAMPLE)]
    centred = sample - sample.mean(axis=0)
    variances, directions = np.linalg.eigh((centred.T @ centred).astype(np.float64))
    variances, directions, dim = np.maximum(variances[::-1], 0), directions[:, ::-1], len(variances)
    least = max(1e-6 * variances[0], 1e-12 * len(sample))  # what is below comes from rounding
    used = min(hash_size, int((variances > least).sum()))
    # The participation ratio counts the directions that a cloud uses; a round one of n vectors has about d n / (d + n).
    round_ratio = dim * len(sample) / (dim + len(sample))
    if used and variances.sum() ** 2 / np.square(variances).sum() > ROUND * round_ratio:
        return np.eye(dim, dtype=np.float32)
    directions = directions[:, :used]
    signs = np.sign(directions[np.abs(directions).argmax(axis=0), np.arange(used)])  # eigh leaves them open
    return np.ascontiguousarray(directions * signs, dtype=np.float32)


def rotate_planes(directions: np.ndarray, hash_size: int, num_tables: int, seed: int = 0) -> np.ndarray:
    """Sample planes (L, d, k) whose normals lie within directions (d, r): a random rotation of these per table.

    Rotated principal directions: Jegou et al. 2010, Gong and Lazebnik 2011. If r < k, a table takes several rotations.
    """
    used = directions.shape[1]
    rng = np.random.default_rng(seed)
    rotations, _ = np.linalg.qr(rng.standard_normal((num_tables, -(-hash_size // used), used, used)))
    rotations = rotations.transpose(0, 2, 1, 3).reshape(num_tables, used, -1)[:, :, :hash_size]
    return directions @ rotations.astype(np.float32)
