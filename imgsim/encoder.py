"""A checkpoint as a function from images to embeddings: loading, batching, precision, caching."""

from __future__ import annotations

import json
import os
import time
import zipfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import blake2b
from itertools import islice
from pathlib import Path

import numpy as np
import PIL.Image
import torch
import transformers
from datasets import Dataset, Image
from safetensors import SafetensorError
from tqdm import tqdm
from transformers import AutoModel

from imgsim.images import fingerprint
from imgsim.models.loading import read_processor
from imgsim.models.onnx import OnnxModel, is_onnx, onnx_processor, read_settings
from imgsim.models.pooling import Pooled
from imgsim.sources.cache import UNTRAINED, cache_folder, first_line, locate, write_whole
from imgsim.sources.decode import open_image

PROCESS = os.getpid()
DTYPES = ("float32", "bfloat16", "float16")
CPU_STEP = 8  # images in a pass on a CPU: what their layers put out still fits into its caches
AHEAD = min(4, os.cpu_count() or 1)  # threads that prepare batches for a GPU
BUILTIN = Path(__file__).parent / "assets" / "leaf-vit"


def pick_device(checkpoint="builtin") -> torch.device:
    """CUDA or MPS where there is one, else the CPU, which also runs ONNX files."""
    if is_onnx(checkpoint):
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def check_encoder(checkpoint: str, dtype: str) -> str:
    """The checkpoint, an ONNX file's with its whole path; ValueError for a precision or a file that does not serve."""
    pick_dtype(dtype, pick_device(checkpoint), checkpoint)
    return str(read_settings(checkpoint)["file"].resolve()) if is_onnx(checkpoint) else checkpoint


@contextmanager
def quiet() -> Iterator[None]:
    """Hide transformers' load report, harmless here: an encoder has no use for the classifier's weights."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        transformers.logging.enable_progress_bar()


def pick_dtype(dtype, device: torch.device, checkpoint="builtin") -> torch.dtype:
    """A precision by its name or as torch has it; ValueError for one that does not serve here."""
    name = "float32" if dtype is None else str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(f"dtype is {name!r}, but must be one of {', '.join(DTYPES)}.")
    if name == "float16" and device.type == "cpu":
        raise ValueError("float16 is for GPUs, and this is a CPU: take bfloat16 or float32.")
    if is_onnx(checkpoint) and name != "float32":
        raise ValueError(f"An ONNX file runs in float32, not in {name}; take the checkpoint that it was made of.")
    return getattr(torch, name)


class Encoder:
    """Images in, embeddings out; made by `load_encoder`.

    dim: the embeddings' length d, taken from a real pass. pooling: how they are made of the model's outputs, one
    of `pooling.POOLINGS`, or "rows" for a model that gives them as they are. digest: of weights, configuration,
    pooling, precision and image processor, by which the cache and an index know their encoder again.
    images_per_second: of the pass that made the last embeddings, decoding included; it is kept with them in the
    cache.
    """

    def __init__(
        self, model: torch.nn.Module, processor, device=None, dtype=None, pooling: str | None = None, origin: tuple = ()
    ):
        self.device = torch.device(device or pick_device())
        self.dtype = pick_dtype(dtype, self.device)
        self.network = Pooled(model, pooling).to(self.device, self.dtype).eval()
        self.model = self.network.model
        if any(isinstance(part, torch.nn.Conv2d) and part.kernel_size > part.stride for part in self.model.modules()):
            # Convolutions that overlap run faster on pixels whose colours lie side by side.
            self.layout = torch.channels_last
            self.network.to(memory_format=self.layout)
        else:
            self.layout = torch.contiguous_format
        self.processor = processor
        self.origin = origin  # load_encoder's arguments, where it was loaded from a checkpoint
        self.precision = str(self.dtype).removeprefix("torch.")
        self.name = origin[0] if origin else type(self.model).__name__
        self.images_per_second: float | None = None
        with torch.inference_mode():
            self.dim = self.network.settle(self.place(self.example()))
        self.pooling = self.network.pooling
        self.digest = self._digest()

    def _digest(self) -> str:
        digest = blake2b(digest_size=16)
        config = self.model.config.to_dict() if hasattr(self.model, "config") else {}
        processor = self.processor.to_dict() if hasattr(self.processor, "to_dict") else {}
        unstable = ("_name_or_path", "transformers_version", "architectures", "dtype")
        settings = {key: value for key, value in config.items() if key not in unstable}
        content = getattr(self.model, "content", None)  # of an ONNX file
        backend = getattr(self.processor, "backend", None)  # pillow's pixels are not torchvision's
        parts = [settings, processor, backend, self.pooling, self.precision, content]
        digest.update(json.dumps(parts, sort_keys=True, default=str).encode())
        for name, weights in sorted(self.model.state_dict().items()):
            # Where it is not used, a pooler may be drawn anew at every load.
            if self.pooling == "pooler" or not name.startswith("pooler."):
                digest.update(name.encode())
                digest.update(weights.float().cpu().contiguous().numpy())
        return digest.hexdigest()

    def about(self) -> dict[str, str]:
        """What an index remembers of its encoder."""
        return {"name": self.name, "digest": self.digest, "pooling": self.pooling, "dtype": self.precision}

    def __reduce__(self):
        # Workers of Dataset.map load the checkpoint again, and its fingerprint need not pickle the weights.
        if self.origin:
            return load_in_worker, self.origin, {"digest": self.digest}
        return super().__reduce__()

    def example(self) -> torch.Tensor:
        """Pixels (2, 3, h, w) of two copies of an image."""
        return self.prepare([PIL.Image.new("RGB", (64, 64))] * 2)

    def prepare(self, sources: Sequence) -> torch.Tensor:
        """Pixels (b, 3, h, w) of images as the network wants them."""
        images = [open_image(source) for source in sources]
        return self.processor(images, return_tensors="pt")["pixel_values"]

    def place(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels (b, 3, h, w) where and how the network takes them: device, precision, layout in memory."""
        return pixels.to(self.device, self.dtype, memory_format=self.layout)

    def step(self, batch_size: int) -> int:
        """How many images go through the network at a time."""
        return min(batch_size, CPU_STEP) if self.device.type == "cpu" else batch_size

    @torch.inference_mode()
    def forward(self, pixels: torch.Tensor) -> np.ndarray:
        """Embeddings (b, d) of pixels (b, 3, h, w)."""
        return self.network(self.place(pixels)).float().cpu().numpy()

    def _embed_batch(self, sources: Sequence) -> np.ndarray:
        return self.forward(self.prepare(sources))

    def embed(self, images, batch_size: int = 48) -> np.ndarray:
        """Embed images into rows (n, d), float32, as the model gives them (not normalised).

        images: a data set with a column `image`, whose embeddings are cached, or a sequence of anything that
        `open_image` takes.
        """
        if not isinstance(images, Dataset) or not len(images):
            return self._embed(images, batch_size)
        sources = images.cast_column("image", Image(decode=False))["image"]
        key = f"{fingerprint(images)}-{self.digest}"
        file = cache_folder("embeddings") / f"{blake2b(key.encode(), digest_size=16).hexdigest()}.npz"
        try:
            with np.load(file) as kept:
                self.images_per_second = float(kept["images_per_second"])
                return kept["embeddings"]
        except (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile):
            # Not there, or damaged: made again.
            embeddings = self._embed(sources, batch_size)
        with write_whole(file) as beside, open(beside, "wb") as stream:
            np.savez(stream, embeddings=embeddings, images_per_second=self.images_per_second)
        return embeddings

    def _embed(self, sources: Sequence, batch_size: int) -> np.ndarray:
        if not len(sources):
            return np.empty((0, self.dim), np.float32)
        start, rows, step, threads = time.perf_counter(), [], self.step(batch_size), torch.get_num_threads()
        batches = (sources[i : i + step] for i in range(0, len(sources), step))
        # On a CPU each thread takes batches all the way, alone: threads that share one would wait for one another.
        alone = self.device.type == "cpu" and len(sources) > step
        work, workers = (self._embed_batch, threads) if alone else (self.prepare, AHEAD)
        try:
            with (
                tqdm(total=len(sources), desc="embedding", unit="image", delay=1) as bar,
                ThreadPoolExecutor(
                    workers, initializer=torch.set_num_threads if alone else None, initargs=(1,)
                ) as pool,
            ):
                waiting = deque(pool.submit(work, batch) for batch in islice(batches, workers + 1))
                while waiting:
                    done = waiting.popleft().result()
                    waiting.extend(pool.submit(work, batch) for batch in islice(batches, 1))
                    rows.append(done if alone else self.forward(done))
                    bar.update(len(rows[-1]))
        finally:
            torch.set_num_threads(threads)  # what threads set for themselves, new ones would inherit
        self.images_per_second = len(sources) / (time.perf_counter() - start)
        return np.concatenate(rows)


def load_encoder(checkpoint="builtin", device=None, dtype=None, processor=None, pooling=None) -> Encoder:
    """Load an encoder.

    checkpoint: "builtin" (a small ViT trained on drawn leaves), a folder in transformers format, a Hub id
    (`owner/name` or `owner/name@revision`), any of them after "untrained:" for the same network with random weights
    (always the same ones), an ONNX file that `python -m imgsim export` wrote, or a torch.nn.Module with its image
    processor in `processor` (which may be left out where the module was itself loaded from a checkpoint). device:
    "cuda", "mps", "cpu"; by default the first that is there. dtype: "float32" (the default), "bfloat16" or, on a
    GPU, "float16". pooling: one of `pooling.POOLINGS`; by default the one that suits the model. Only safetensors
    are read. Raises ValueError where there is no such checkpoint or it cannot embed images, ConnectionError where
    the Hub cannot be reached.
    """
    if isinstance(checkpoint, torch.nn.Module):
        name = getattr(checkpoint, "name_or_path", "")
        if processor is None and not name:
            raise ValueError("A model given as a module needs its image processor: processor=...")
        processor = processor or read_processor(locate(name, "checkpoint"), checkpoint)
        return Encoder(checkpoint, processor, device, dtype, pooling)
    origin, name = (str(checkpoint), device, dtype, processor, pooling), str(checkpoint).removeprefix(UNTRAINED)
    if is_onnx(name):
        if name != str(checkpoint):
            raise ValueError(f"{name!r} has no untrained self: take that of the checkpoint it was made of.")
        settings, place = read_settings(checkpoint, processor), torch.device(device or "cpu")
        precision = pick_dtype(dtype, place, checkpoint)
        if place.type != "cpu":
            raise ValueError(f"An ONNX file runs on the CPU, not on {place.type}; take the checkpoint it was made of.")
        return Encoder(OnnxModel(settings), processor or onnx_processor(settings), place, precision, pooling, origin)
    folder = BUILTIN if name == "builtin" else locate(name, "checkpoint")
    try:
        with quiet():
            model, report = AutoModel.from_pretrained(
                folder, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
            if name != str(checkpoint):
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(0)
                    model, report = AutoModel.from_config(model.config), {"missing_keys": []}
            missing = sorted(
                name for name in report["missing_keys"] if pooling == "pooler" or not name.startswith("pooler.")
            )
            if missing:
                raise ValueError(f"its weights lack {len(missing)} of the model's, such as {missing[0]}")
            processor = processor or read_processor(folder, model)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise ValueError(
            f"checkpoint {str(checkpoint)!r} cannot be loaded as a vision model: {first_line(error)}"
        ) from error
    return Encoder(model, processor, device, dtype, pooling, origin)


def load_in_worker(*arguments) -> Encoder:
    """Load an encoder that was pickled by its name."""
    if os.getpid() != PROCESS:
        torch.set_num_threads(1)  # a forked process that starts OpenMP's threads again hangs for ever
    return load_encoder(*arguments)
