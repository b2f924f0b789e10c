"""Random projections, sign codes and the theory of their collisions: arrays in, arrays out.

Shapes: n embeddings of d dimensions, k bits a table (`hash_size`), L tables (`num_tables`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

MAX_HASH_SIZE = 64
BLOCK = 4096  # rows hashed at a time, so that n x L x k floats never stand in memory at once


def check_settings(hash_size: int, num_tables: int) -> None:
    """Raise a ValueError unless 1 <= hash_size <= 64 and num_tables >= 1, both whole numbers."""
    for name, value in (("hash_size", hash_size), ("num_tables", num_tables)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise ValueError(f"{name} must be a whole number, not {value!r}.")
    if not 1 <= hash_size <= MAX_HASH_SIZE:
        raise ValueError(f"hash_size is {hash_size}, but a code holds 1 to {MAX_HASH_SIZE} bits.")
    if num_tables < 1:
        raise ValueError(f"num_tables is {num_tables}, but at least 1 table is needed.")


def whole(name: str, value, least: int) -> int:
    """The value as an int; a ValueError unless it is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name} must be a whole number from {least} on, not {value!r}.")
    return int(value)


def code_dtype(hash_size: int) -> np.dtype:
    """The smallest unsigned integer type that holds `hash_size` bits."""
    return next(np.dtype(f"u{size}") for size in (1, 2, 4, 8) if hash_size <= 8 * size)


def draw_planes(dim: int, hash_size: int, num_tables: int, seed: int = 0) -> np.ndarray:
    """Draw the normals of random hyperplanes, independently for every table.

    Returns (L, d, k) float32, standard normal: directions uniform on the sphere (Charikar 2002).
    """
    check_settings(hash_size, num_tables)
    rng = np.random.default_rng(seed)
    return rng.standard_normal((num_tables, dim, hash_size), dtype=np.float32)


def signatures(bits: np.ndarray) -> np.ndarray:
    """Pack booleans (n, b) into rows (n, words) of uint64, b padded to whole words, for Hamming distances."""
    packed = np.packbits(bits, axis=1, bitorder="little")
    words = np.zeros((len(packed), -(-packed.shape[1] // 8)), "<u8")
    words.view(np.uint8)[:, : packed.shape[1]] = packed
    return words.astype(np.uint64, copy=False)


def codes_of(words: np.ndarray, hash_size: int, num_tables: int) -> np.ndarray:
    """The codes (n, L) in signatures (n, words) of all tables' bits, the first table's first."""
    codes = np.empty((num_tables, len(words)), code_dtype(hash_size))
    mask = np.uint64((1 << hash_size) - 1)
    for table in range(num_tables):
        word, shift = divmod(table * hash_size, 64)
        code = words[:, word] >> np.uint64(shift)
        if shift + hash_size > 64:
            code |= words[:, word + 1] << np.uint64(64 - shift)
        codes[table] = code & mask
    return codes.T


def bool2int(bits) -> int:
    """One code from k booleans, least significant bit first: [True, False, True] -> 5."""
    bits = np.asarray(bits, dtype=bool)
    check_settings(len(bits), 1)
    return int(signatures(bits[None])[0, 0])


def hash_func(embeddings, planes: np.ndarray) -> np.ndarray:
    """Project embeddings at random and keep the signs as codes.

    embeddings (n, d), or one of shape (d,); planes (d, k) give codes (n,), planes (L, d, k) give (n, L).
    """
    codes = Projection(planes[None] if planes.ndim == 2 else planes, np.zeros(planes.shape[-2], np.float32))(embeddings)
    return codes[:, 0] if planes.ndim == 2 else codes


def column_sums(embeddings: np.ndarray) -> np.ndarray:
    """The sum (d,) of embeddings (n, d) in double precision: of blocks whose own sums are short enough for single."""
    blocks = np.split(embeddings, range(128, len(embeddings), 128))
    return np.sum([rows.sum(axis=0) for rows in blocks], axis=0, dtype=np.float64)


@dataclass(frozen=True)
class Projection:
    """Random planes and the candidates' mean, which together turn embeddings into codes.

    planes (L, d, k) float32; mean (d,) float32 is subtracted first: real embeddings lie in a narrow cone,
    and planes through the origin would put most of them on the same side.
    """

    planes: np.ndarray
    mean: np.ndarray

    @classmethod
    def fit(cls, embeddings: np.ndarray, hash_size: int, num_tables: int, seed: int = 0) -> Projection:
        """Draw planes for these embeddings (n, d) and take their mean."""
        planes = draw_planes(embeddings.shape[1], hash_size, num_tables, seed)
        return cls(planes, (column_sums(embeddings) / len(embeddings)).astype(np.float32))

    @cached_property
    def _flat(self) -> tuple[np.ndarray, np.ndarray]:
        # (x - mean) . plane is x . plane - mean . plane: no centred copy of the embeddings is made.
        flat = np.ascontiguousarray(self.planes.transpose(1, 0, 2).reshape(len(self.mean), -1))
        return flat, self.mean @ flat

    def _rows(self, embeddings) -> np.ndarray:
        embeddings = np.atleast_2d(np.asarray(embeddings, dtype=np.float32))
        if embeddings.shape[1] != len(self.mean):
            raise ValueError(f"Embeddings have {embeddings.shape[1]} dimensions, the planes {len(self.mean)}.")
        return embeddings

    def margins(self, embeddings) -> np.ndarray:
        """How far embeddings (n, d) lie from each plane and on which side: (n, L, k) float32."""
        embeddings = self._rows(embeddings)
        flat, offset = self._flat
        return (embeddings @ flat - offset).reshape(len(embeddings), len(self.planes), self.planes.shape[2])

    def signatures(self, embeddings) -> np.ndarray:
        """The sides of all planes on which embeddings (n, d) lie, packed block by block: (n, words), see signatures."""
        embeddings = self._rows(embeddings)
        flat, offset = self._flat
        blocks = np.split(embeddings, range(BLOCK, len(embeddings), BLOCK))
        return np.concatenate([signatures(rows @ flat > offset) for rows in blocks])

    def __call__(self, embeddings) -> np.ndarray:
        """Hash embeddings (n, d), or one of shape (d,), into codes (n, L)."""
        return codes_of(self.signatures(embeddings), self.planes.shape[2], len(self.planes))


def collision_probability(angle, hash_size: int = 1, num_tables: int = 1):
    """How likely two vectors at this angle (radians) share a code in at least one of the tables.

    1 - (1 - p^k)^L with p = 1 - angle/pi, the chance that one plane does not part them
    (Charikar 2002; the S-curve of Indyk and Motwani 1998).
    """
    same_code = (1 - np.asarray(angle) / np.pi) ** hash_size
    return 1 - (1 - same_code) ** num_tables
