"""Random projections, sign codes and the theory of their collisions: embeddings in, codes out.

Shapes: n embeddings of d dimensions, k bits per code (`hash_size`), L tables (`num_tables`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

MAX_HASH_SIZE = 64
BLOCK = 4096  # rows hashed at a time: n x L x k floats would not fit into memory


def check_integer(value, name: str, minimum: int) -> int:
    """Return the value as an int.

    Raises:
        ValueError: it is no whole number of at least `minimum`; the sentence names it.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < minimum:
        raise ValueError(f"{name} must be a whole number of at least {minimum}, not {value!r}.")
    return int(value)


def check_settings(hash_size: int, num_tables: int) -> None:
    """Check the sizes of hash tables.

    Raises:
        ValueError: hash_size is no whole number from 1 to 64, or num_tables none of at least 1.
    """
    if check_integer(hash_size, "hash_size", 1) > MAX_HASH_SIZE:
        raise ValueError(f"hash_size is {hash_size}, but a code holds 1 to {MAX_HASH_SIZE} bits.")
    check_integer(num_tables, "num_tables", 1)


def normalise(embeddings) -> np.ndarray:
    """Scale embeddings (n, d) to length 1, so that a dot product is a cosine; a row of zeros stays as it is.

    Returns:
        The vectors (n, d) float32.
    """
    embeddings = np.asarray(embeddings, dtype=np.float32)
    lengths = np.sqrt(np.vecdot(embeddings, embeddings))[..., None]
    if ((lengths > 1e-15) & (lengths < 1e15)).all():
        return embeddings / lengths
    largest = np.abs(embeddings).max(axis=-1, keepdims=True, initial=0)  # squares may have left the range of float32
    embeddings = embeddings / np.where(largest > 0, largest, 1)
    lengths = np.sqrt(np.vecdot(embeddings, embeddings))[..., None]
    return embeddings / np.where(lengths > 0, lengths, 1)


def code_dtype(hash_size: int) -> np.dtype:
    """Return the smallest unsigned integer type that holds `hash_size` bits."""
    return next(np.dtype(f"u{size}") for size in (1, 2, 4, 8) if hash_size <= 8 * size)


def draw_planes(dim: int, hash_size: int, num_tables: int, seed: int = 0) -> np.ndarray:
    """Sample the normals of random hyperplanes, independently for every table.

    Returns:
        Planes (L, d, k) float32, standard normal: their directions are uniform on the sphere (Charikar 2002).
    """
    check_settings(hash_size, num_tables)
    rng = np.random.default_rng(seed)
    return rng.standard_normal((num_tables, dim, hash_size), dtype=np.float32)


def bool2int(bits) -> int:
    """Turn k booleans into one code, least significant bit first: [True, False, True] -> 5."""
    bits = np.asarray(bits, dtype=bool)
    check_settings(len(bits), 1)
    return sum(1 << int(place) for place in np.flatnonzero(bits))


def hash_func(embeddings, planes: np.ndarray) -> np.ndarray:
    """Project embeddings at random and keep the signs as codes, as in the article.

    Args:
        embeddings: (n, d), or one of shape (d,).
        planes: (d, k) for one table, or (L, d, k).

    Returns:
        Codes (n,) for one table, else (n, L).
    """
    one_table = planes.ndim == 2
    codes = Projection(planes[None] if one_table else planes, np.zeros(planes.shape[-2], np.float32))(embeddings)
    return codes[:, 0] if one_table else codes


def column_sums(vectors: np.ndarray) -> np.ndarray:
    """Sum vectors (n, d) by column into (d,) float64; blocks of 128 rows are short enough to be summed in float32."""
    blocks = np.split(vectors, range(128, len(vectors), 128))
    return np.stack([block.sum(axis=0) for block in blocks]).sum(axis=0, dtype=np.float64)


@dataclass(frozen=True)
class Projection:
    """Planes and the candidates' mean, which together turn embeddings into codes.

    Attributes:
        planes: normals (L, d, k) float32, independent from table to table.
        mean: (d,) float32, subtracted first: real embeddings lie in a narrow cone, and planes through the origin
            would put most of them on the same side.
        directions: (d, r) float32, orthonormal, that span the planes; None for random planes.
    """

    planes: np.ndarray
    mean: np.ndarray
    directions: np.ndarray | None = None

    @classmethod
    def fit(cls, vectors: np.ndarray, hash_size: int, num_tables: int, seed: int = 0) -> Projection:
        """Sample random planes for vectors (n, d) and take their mean."""
        planes = draw_planes(vectors.shape[1], hash_size, num_tables, seed)
        return cls(planes, (column_sums(vectors) / len(vectors)).astype(np.float32))

    @cached_property
    def factors(self) -> tuple[np.ndarray, np.ndarray]:
        """Two matrices (d, r) and (r, L k) whose product are all planes; without directions the second is empty."""
        num_tables, dim, hash_size = self.planes.shape
        if self.directions is None:
            flat = self.planes.transpose(1, 0, 2).reshape(dim, num_tables * hash_size)
            return np.ascontiguousarray(flat), np.empty((0, num_tables * hash_size), np.float32)
        within = self.directions.T @ self.planes
        return self.directions, within.transpose(1, 0, 2).reshape(-1, num_tables * hash_size)

    def margins(self, embeddings) -> np.ndarray:
        """Return how far embeddings (n, d) lie from each plane and, by the sign, on which side: (n, L, k) float32."""
        embeddings = np.atleast_2d(np.asarray(embeddings, dtype=np.float32))
        num_tables, dim, hash_size = self.planes.shape
        if embeddings.shape[1] != dim:
            raise ValueError(f"Embeddings have {embeddings.shape[1]} dimensions, the planes {dim}.")
        outer, inner = self.factors
        # (x - mean) . plane is x . plane - mean . plane: no centred copy of the embeddings is made.
        margins = embeddings @ outer - self.mean @ outer
        return (margins @ inner if len(inner) else margins).reshape(-1, num_tables, hash_size)

    def __call__(self, embeddings) -> np.ndarray:
        """Hash embeddings (n, d), or one of shape (d,), into codes (n, L)."""
        embeddings = np.atleast_2d(np.asarray(embeddings, dtype=np.float32))
        dtype = code_dtype(self.planes.shape[2])
        codes = np.zeros((len(embeddings), len(self.planes), dtype.itemsize), np.uint8)
        for first in range(0, len(embeddings), BLOCK):
            bits = np.packbits(self.margins(embeddings[first : first + BLOCK]) > 0, axis=2, bitorder="little")
            codes[first : first + BLOCK, :, : bits.shape[2]] = bits
        return codes.view(dtype.newbyteorder("<"))[:, :, 0].astype(dtype, copy=False)


def compute_hash(encoder, projection: Projection) -> Callable[[dict], dict]:
    """Make a function for `Dataset.map(..., batched=True)` that adds a column `hashes`: L codes per image.

    It returns the new column only: images that pass through `map` would be encoded again, with loss.
    """

    def pp(example_batch: dict) -> dict:
        # Decode a copy: map would encode and write back every column decoded in the batch itself.
        embeddings = normalise(encoder.embed(example_batch.copy()["image"]))
        return {"hashes": projection(embeddings).astype(np.uint64)}

    return pp


def collision_probability(angle, hash_size: int = 1, num_tables: int = 1):
    """Return how likely two vectors at this angle (radians) share a code in at least one of the tables.

    1 - (1 - p^k)^L with p = 1 - angle / pi, the chance that one plane does not part them (Charikar 2002; the S-curve
    of Indyk and Motwani 1998).
    """
    same_code = (1 - np.asarray(angle) / np.pi) ** hash_size
    return 1 - (1 - same_code) ** num_tables
