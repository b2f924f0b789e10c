"""Keys: texts, such as paths, by which entries are known beside their ids; "" stands for none."""

from __future__ import annotations

import os

import numpy as np

ENCODING = "utf-8", "surrogateescape"  # paths of any bytes come back as os.fsdecode gave them


def no_keys(count: int) -> np.ndarray:
    """Return an array (n,) of empty keys, which takes no memory."""
    return np.broadcast_to(np.array("", object), count)


def check_keys(count: int, keys) -> np.ndarray:
    """Return keys as an array (n,) of texts: None becomes "", and a path its text.

    Raises:
        ValueError: there are not `count` of them, or one is no text that can be stored.
    """
    if keys is None:
        return no_keys(count)
    keys = [keys] if isinstance(keys, (str, os.PathLike)) else list(keys)
    if len(keys) != count:
        raise ValueError(f"{count} embeddings need as many keys, not {len(keys)}.")
    texts = np.empty(count, object)
    for i, key in enumerate(keys):
        text = "" if key is None else os.fsdecode(key) if isinstance(key, os.PathLike) else key
        if not isinstance(text, str) or "\0" in text or not can_be_stored(text):
            raise ValueError(f"Keys are texts, such as paths, or None for none, not {key!r}.")
        texts[i] = str(text)
    return texts


def can_be_stored(text: str) -> bool:
    """Tell whether a text can be written as bytes; halves of characters cannot."""
    try:
        return bool(text.encode(*ENCODING)) or not text
    except UnicodeEncodeError:
        return False


def pack_keys(keys: np.ndarray) -> np.ndarray:
    """Return keys (n,) as bytes (b,) uint8, a null after each; none at all if no entry has a key."""
    if keys.strides == (0,) or not any(keys):
        return np.empty(0, np.uint8)
    return np.frombuffer("".join(f"{key}\0" for key in keys).encode(*ENCODING), np.uint8)


def unpack_keys(content: np.ndarray, count: int) -> np.ndarray:
    """Return the keys (n,) in what `pack_keys` made; ValueError if these are not as many."""
    if content.dtype != np.uint8 or content.ndim != 1:
        raise ValueError("its keys are no bytes")
    if not len(content):
        return no_keys(count)
    *texts, rest = content.tobytes().decode(*ENCODING).split("\0")
    if rest or len(texts) != count:
        raise ValueError("it does not hold one key per entry")
    return np.array(texts, object)


def has_key(keys: np.ndarray, wanted) -> np.ndarray:
    """Tell which of the keys (n,) are among those wanted (w,): (n,) bool; ValueError if one of these is not there."""
    wanted = set(wanted)
    if missing := wanted - (set(keys) - {""}):
        raise ValueError(f"There is no key {missing.pop()!r} in the index.")
    return np.fromiter((key in wanted for key in keys), bool, len(keys))


def printable_keys(keys: np.ndarray) -> list[str | None]:
    """Return keys (n,) as valid text for other tools: None if there is none, and � for bytes that are no text."""
    return [key.encode(*ENCODING).decode("utf-8", "replace") if key else None for key in keys.ravel()]
