"""What holds encoders on workers: images, texts or sounds in, embeddings out as they are stored."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import numpy as np
import PIL.Image
import pyarrow as pa

from imgsim.extras.scale.shards import Shards, as_bytes, as_lists
from imgsim.extras.scale.sources import read_images
from imgsim.hashing import normalise
from imgsim.sources.decode import open_or_error
from imgsim.sources.errors import first_line

STORED_AS = ("float16", "int8")
MODALITIES = ("image", "text", "sound")
BLANK = PIL.Image.new("RGB", (64, 64))  # takes the place of an image that cannot be read


def check_choice(value, name: str, choices: tuple[str, ...]) -> None:
    """Raise a ValueError if a setting is none of its choices."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, but there are only {', '.join(choices)}.")


def as_stored(embeddings: np.ndarray, stored_as: str) -> dict[str, pa.Array]:
    """Return finite embeddings (n, d) as columns: lists of float16, or bytes, which are int8, and a scale per row."""
    if stored_as == "float16":
        return {"embedding": as_lists(embeddings.astype(np.float16))}
    scale = np.abs(embeddings.astype(np.float32)).max(axis=1, keepdims=True) / 127
    scale[scale == 0] = 1
    return {"embedding": as_bytes(np.rint(embeddings / scale).astype(np.int8)), "scale": pa.array(scale.ravel())}


def loader(modality: str, checkpoint: str, dtype: str) -> partial:
    """Return a function that loads the encoder of a modality, on workers too."""
    check_choice(modality, "modality", MODALITIES)
    if modality == "image":
        from imgsim.encoder import load_encoder  # loads torch

        return partial(load_encoder, checkpoint, dtype=dtype)
    if dtype != "float32":
        raise ValueError(f"dtype is {dtype}, but a {modality} is embedded in float32.")
    from imgsim.extras.modalities.encoders import load_audio_encoder

    return partial(load_audio_encoder if modality == "sound" else load_text_encoder, checkpoint)


def load_text_encoder(checkpoint: str):
    """Load the side of a dual encoder that takes texts."""
    from imgsim.extras.modalities.encoders import load_dual_encoder

    return load_dual_encoder(checkpoint)[1]


def open_images(batch: pa.Table, folder: Shards, column: str | None, processor, batch_size: int) -> Iterator[dict]:
    """Open the images of a piece and prepare them: id, source, why it cannot be read, pixels (b, 3, h, w)."""
    (piece,) = batch.to_pylist()
    named = read_images(folder, column, piece)
    for start in range(0, len(named), batch_size):
        names, contents = zip(*named[start : start + batch_size], strict=True)
        opened = list(map(open_or_error, contents))
        reasons = [image if isinstance(image, str) else "" for image in opened]
        images = [BLANK if isinstance(image, str) else image for image in opened]
        ids = np.arange(piece["id"] + start, piece["id"] + start + len(names))
        pixels = processor(images, return_tensors="np")["pixel_values"]
        yield {"id": ids, "source": np.array(names), "reason": np.array(reasons), "pixels": pixels}


class Embed:
    """An actor that holds the encoder: pixels in, embeddings of length 1 out, as they are stored."""

    def __init__(self, load, digest: str, stored_as: str):
        self.encoder, self.stored_as = load(), stored_as
        if self.encoder.digest != digest:
            raise ValueError(f"{self.encoder.name!r} is another checkpoint on a worker than where the job was started.")

    def __call__(self, batch: dict) -> pa.Table:
        import torch

        readable = np.flatnonzero(batch["reason"] == "")
        vectors = np.zeros((len(batch["id"]), self.encoder.dim), np.float32)
        size = max(1, self.encoder.micro_batch(len(readable)))
        for start in range(0, len(readable), size):
            rows = readable[start : start + size]
            vectors[rows] = normalise(self.encoder.forward(torch.from_numpy(batch["pixels"][rows])))
        return self.table(batch["id"], batch["source"], batch["reason"], vectors)

    def table(self, ids: np.ndarray, sources, reasons, vectors: np.ndarray) -> pa.Table:
        """Return what becomes rows of a shard, and why some do not."""
        finite = np.isfinite(vectors).all(axis=1)
        reasons = np.where(finite, reasons, "its embedding holds no finite numbers")
        embeddings = as_stored(np.where(finite[:, None], vectors, 0), self.stored_as)
        columns = {"id": ids, **embeddings, "source": sources, "reason": reasons}
        return pa.table(columns | {"ended": np.full(len(vectors), time.time())})


class OpenAndEmbed(Embed):
    """An actor that opens the images of pieces itself: on CPUs, moving pixels costs more than it gains."""

    def __init__(self, load, digest: str, stored_as: str, *opening):
        super().__init__(load, digest, stored_as)
        self.opening = opening

    def __call__(self, batch: pa.Table) -> pa.Table:
        return pa.concat_tables([Embed.__call__(self, part) for part in open_images(batch, *self.opening)])


class EmbedRows(Embed):
    """An actor that reads the texts or sounds of pieces and embeds them."""

    def __init__(self, load, digest: str, stored_as: str, folder: Shards, column: str, batch_size: int):
        super().__init__(load, digest, stored_as)
        self.folder, self.column, self.batch_size = folder, column, batch_size

    def __call__(self, batch: pa.Table) -> pa.Table:
        (piece,) = batch.to_pylist()
        sources, contents = zip(*read_images(self.folder, self.column, piece), strict=True)
        vectors, reasons = np.zeros((len(sources), self.encoder.dim), np.float32), [""] * len(sources)
        for start in range(0, len(sources), self.batch_size):
            rows = range(start, min(start + self.batch_size, len(sources)))
            try:
                vectors[rows] = normalise(self.encoder.embed([contents[row] for row in rows]))
            except (ValueError, TypeError):  # one of them cannot be embedded: which?
                for row in rows:
                    try:
                        vectors[row] = normalise(self.encoder.embed([contents[row]]))[0]
                    except (ValueError, TypeError) as error:
                        reasons[row] = first_line(error)
        return self.table(np.arange(piece["id"], piece["id"] + len(sources)), sources, reasons, vectors)
