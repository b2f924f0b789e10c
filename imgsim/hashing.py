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


def pack_bits(bits: np.ndarray) -> np.ndarray:
    """Pack booleans (n, b) into whole words (n, ceil(b / 64)) uint64, the first bit lowest."""
    packed = np.packbits(bits, axis=1, bitorder="little")
    words = np.zeros((len(packed), -(-packed.shape[1] // 8)), "<u8")
    words.view(np.uint8)[:, : packed.shape[1]] = packed
    return words.astype(np.uint64, copy=False)


def unpack_codes(signatures: np.ndarray, hash_size: int, num_tables: int) -> np.ndarray:
    """Read the codes (n, L) out of signatures (n, words), which hold the bits of one table after another."""
    codes = np.empty((num_tables, len(signatures)), code_dtype(hash_size))
    mask = np.uint64((1 << hash_size) - 1)
    for table in range(num_tables):
        word, shift = divmod(table * hash_size, 64)
        code = signatures[:, word] >> np.uint64(shift)
        if shift + hash_size > 64:  # the code continues in the next word
            code |= signatures[:, word + 1] << np.uint64(64 - shift)
        codes[table] = code & mask
    return codes.T


def bool2int(bits) -> int:
    """Turn k booleans into one code, least significant bit first: [True, False, True] -> 5."""
    bits = np.asarray(bits, dtype=bool)
    check_settings(len(bits), 1)
    return int(pack_bits(bits[None])[0, 0])


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
    """Random planes and the candidates' mean, which together turn embeddings into codes.

    Attributes:
        planes: normals (L, d, k) float32, independent from table to table.
        mean: (d,) float32, subtracted first: real embeddings lie in a narrow cone, and planes through the origin
            would put most of them on the same side.
    """

    planes: np.ndarray
    mean: np.ndarray

    @classmethod
    def fit(cls, vectors: np.ndarray, hash_size: int, num_tables: int, seed: int = 0) -> Projection:
        """Sample planes for vectors (n, d) and take their mean."""
        planes = draw_planes(vectors.shape[1], hash_size, num_tables, seed)
        return cls(planes, (column_sums(vectors) / len(vectors)).astype(np.float32))

    @cached_property
    def _flat(self) -> tuple[np.ndarray, np.ndarray]:
        # (x - mean) . plane is x . plane - mean . plane: no centred copy of the embeddings is made.
        flat = np.ascontiguousarray(self.planes.transpose(1, 0, 2).reshape(len(self.mean), -1))
        return flat, self.mean @ flat

    def _as_rows(self, embeddings) -> np.ndarray:
        embeddings = np.atleast_2d(np.asarray(embeddings, dtype=np.float32))
        if embeddings.shape[1] != len(self.mean):
            raise ValueError(f"Embeddings have {embeddings.shape[1]} dimensions, the planes {len(self.mean)}.")
        return embeddings

    def margins(self, embeddings) -> np.ndarray:
        """Return how far embeddings (n, d) lie from each plane and, by the sign, on which side: (n, L, k) float32."""
        embeddings = self._as_rows(embeddings)
        flat, offset = self._flat
        return (embeddings @ flat - offset).reshape(len(embeddings), len(self.planes), self.planes.shape[2])

    def signatures(self, embeddings) -> np.ndarray:
        """Pack the sides of all planes on which embeddings (n, d) lie into (n, words) uint64, see `pack_bits`."""
        embeddings = self._as_rows(embeddings)
        flat, offset = self._flat
        blocks = np.split(embeddings, range(BLOCK, len(embeddings), BLOCK))
        return np.concatenate([pack_bits(block @ flat > offset) for block in blocks])

    def __call__(self, embeddings) -> np.ndarray:
        """Hash embeddings (n, d), or one of shape (d,), into codes (n, L)."""
        return unpack_codes(self.signatures(embeddings), self.planes.shape[2], len(self.planes))


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
