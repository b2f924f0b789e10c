"""A checkpoint as a function from images to embeddings."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Sequence

import numpy as np
import torch

from imgsim.models.batches import cached_embeddings, count_images, embed_batches
from imgsim.models.loading import (
    BUILTIN,
    LOADING_ERRORS,
    as_device,
    example_pixels,
    load_model,
    memory_layout,
    model_digest,
    pick_dtype,
    read_processor,
    weights_state,
)
from imgsim.models.onnx import OnnxModel
from imgsim.models.pooling import Pooled
from imgsim.sources.decode import open_image
from imgsim.sources.errors import first_line
from imgsim.sources.hub import locate
from imgsim.sources.names import is_onnx, split_checkpoint, whole_name
from imgsim.sources.splits import fingerprint, is_split, stored_images

PROCESS = os.getpid()
MICRO_BATCH = 8  # images per pass on a CPU: the outputs of its layers still fit into the CPU's caches


class Encoder:
    """Images in, embeddings out; made by `load_encoder`.

    Attributes:
        dim: length d of the embeddings, taken from a real pass.
        pooling: how the model's outputs become one row, one of `pooling.POOLINGS`, or "rows" if they are rows already.
        digest: of weights, configuration, pooling, precision and image processor; the cache and an index recognise
            their encoder by it.
        images_per_second: of the pass that made the last embeddings, decoding included; kept with them in the cache.
    """

    def __init__(
        self, model: torch.nn.Module, processor, device=None, dtype=None, pooling: str | None = None, origin: tuple = ()
    ):
        self.given: torch.nn.Module | None = None if origin else model  # it lives on: see embed
        self.state = weights_state(model)
        self.device = as_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        self.precision = str(self.dtype).removeprefix("torch.")
        self.network = Pooled(model if origin else copy.deepcopy(model), pooling).to(self.device, self.dtype).eval()
        self.model = self.network.model
        self.layout = memory_layout(self.model)
        self.network.to(memory_format=self.layout)  # type: ignore[call-overload]  # not in torch's types
        self.processor = processor
        self.origin = origin  # the arguments of load_encoder, if a checkpoint was loaded
        self.name = origin[0] if origin else type(self.model).__name__
        self.images_per_second: float | None = None
        with torch.inference_mode():
            self.dim = self.network.resolve_pooling(self.to_device(self.example()))
        self.pooling = str(self.network.pooling)
        self.digest = model_digest(self.model, self.processor, self.pooling, self.precision)

    def describe(self) -> dict[str, str]:
        """Return what an index remembers of its encoder."""
        return {"name": whole_name(self.name), "digest": self.digest, "pooling": self.pooling, "dtype": self.precision}

    def __reduce__(self):
        # Workers of Dataset.map load the checkpoint again, and its fingerprint need not pickle the weights.
        if self.origin:
            return load_in_worker, self.origin, {"digest": self.digest}
        return super().__reduce__()

    def example(self) -> torch.Tensor:
        """Return pixels (2, 3, h, w) of two copies of an image."""
        return example_pixels(self.prepare)

    def prepare(self, sources: Sequence) -> torch.Tensor:
        """Turn images into pixels (b, 3, h, w) as the network wants them."""
        images = [open_image(source) for source in sources]
        return self.processor(images, return_tensors="pt")["pixel_values"]

    def to_device(self, inputs: torch.Tensor) -> torch.Tensor:
        """Move inputs (b, ...) to the network's device, precision and layout in memory."""
        return inputs.to(self.device, self.dtype, memory_format=self.layout)

    def micro_batch(self, batch_size: int) -> int:
        """Return how many images go through the network at a time."""
        return min(batch_size, MICRO_BATCH) if self.device.type == "cpu" else batch_size

    @torch.inference_mode()
    def forward(self, inputs: torch.Tensor) -> np.ndarray:
        """Turn inputs (b, ...) into embeddings (b, d) float32."""
        return self.network(self.to_device(inputs)).float().cpu().numpy()

    def embed(self, images, batch_size: int = 48) -> np.ndarray:
        """Embed images into rows (n, d) float32, as the model gives them: not normalised.

        Args:
            images: a split with a column `image`, whose embeddings are cached, or a sequence of anything that
                `open_image` takes.
            batch_size: images per batch.
        """
        if self.given is not None and self.state != weights_state(self.given):
            vars(self).update(vars(Encoder(self.given, self.processor, self.device, self.dtype, self.pooling)))
        if not count_images(images):
            return np.empty((0, self.dim), np.float32)
        if is_split(images):
            sources = stored_images(images)
            made = cached_embeddings(f"{fingerprint(images)}-{self.digest}", lambda: self._embed(sources, batch_size))
        else:
            made = self._embed(images, batch_size)
        embeddings, self.images_per_second = made
        return embeddings

    def _embed(self, sources: Sequence, batch_size: int) -> tuple[np.ndarray, float]:
        start, size = time.perf_counter(), self.micro_batch(batch_size)
        embeddings = embed_batches(sources, size, self.prepare, self.forward, self.device.type == "cpu")
        return embeddings, len(sources) / (time.perf_counter() - start)


def load_encoder(checkpoint="builtin", device=None, dtype=None, processor=None, pooling=None) -> Encoder:
    """Load an encoder; only safetensors are read.

    Args:
        checkpoint: "builtin" (a small ViT trained on rendered leaves), a folder in transformers format, a Hub id
            (`owner/name` or `owner/name@revision`), any of them after "untrained:" for the same network with random
            weights, an ONNX file that `imgsim export` wrote, or a torch.nn.Module.
        device: "cuda", "mps" or "cpu"; by default the first that is there.
        dtype: "float32" (the default), "bfloat16" or, on a GPU, "float16".
        processor: the image processor of a module; not needed if the module was itself loaded from a checkpoint.
        pooling: one of `pooling.POOLINGS`; by default the one that suits the model.

    Raises:
        ValueError: there is no such checkpoint, or it cannot embed images.
        ConnectionError: the Hub cannot be reached.
    """
    if isinstance(checkpoint, torch.nn.Module):
        name = getattr(checkpoint, "name_or_path", "")
        if processor is None and not name:
            raise ValueError("A model given as a module needs its image processor: processor=...")
        processor = processor or read_processor(locate(name, "checkpoint"), checkpoint)
        return Encoder(checkpoint, processor, device, dtype, pooling)
    prefix, name = split_checkpoint(str(checkpoint))
    origin = (str(checkpoint), device, dtype, processor, pooling)
    if is_onnx(name):
        if prefix:
            raise ValueError(f"{name!r} has no untrained self: take that of the checkpoint it was made of.")
        onnx, on = OnnxModel(name, processor), as_device(device or "cpu")
        if on.type != "cpu":
            raise ValueError(f"An ONNX file runs on the CPU, not on {on.type}; take the checkpoint it was made of.")
        return Encoder(onnx, onnx.processor, on, pick_dtype(dtype, on, name), pooling, origin)
    folder = BUILTIN if name == "builtin" else locate(name, "checkpoint")
    try:
        model = load_model(folder, bool(prefix), pooling)
        processor = processor or read_processor(folder, model)
    except LOADING_ERRORS as error:
        reason = first_line(error)
        raise ValueError(f"checkpoint {str(checkpoint)!r} cannot be loaded as a vision model: {reason}") from error
    return Encoder(model, processor, device, dtype, pooling, origin)


def load_in_worker(*arguments) -> Encoder:
    """Load an encoder that was pickled by its name."""
    if os.getpid() != PROCESS:
        torch.set_num_threads(1)  # a forked process that starts OpenMP's threads again hangs for ever
    return load_encoder(*arguments)
