"""A checkpoint as a function from images to embeddings: loading, pooling, batching, caching."""

from __future__ import annotations

import json
import os
import time
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

import numpy as np
import PIL.Image
import torch
import transformers
from datasets import Dataset, Image
from safetensors import SafetensorError
from tqdm import tqdm
from transformers import AutoImageProcessor, AutoModel

from imgsim.images import fingerprint, open_image
from imgsim.store import UNTRAINED, cache_folder, locate, write_whole

PROCESS = os.getpid()
BUILTIN = Path(__file__).parent / "assets" / "leaf-vit"


def pick_device() -> torch.device:
    """CUDA or MPS where there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


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


def pool(model: torch.nn.Module, outputs) -> torch.Tensor:
    """One row an image, (b, d), from a model's outputs.

    The class token where the model has one (ViT, DeiT, DINO: their `pooler_output` may have weights drawn at
    random on loading); else the flattened `pooler_output`, an average over the image (ConvNeXT, RegNet,
    ResNet, MobileNet, Swin). A module of one's own may return its rows as they are.
    """
    if isinstance(outputs, torch.Tensor) and outputs.ndim == 2:
        return outputs
    if any(name.endswith("cls_token") for name, _ in model.named_parameters()):
        return outputs.last_hidden_state[:, 0]
    if getattr(outputs, "pooler_output", None) is not None:
        return outputs.pooler_output.flatten(1)
    kind = getattr(getattr(model, "config", model), "model_type", type(model).__name__)
    raise ValueError(f"A model of type {kind!r} gives neither a class token nor a pooled output to embed images by.")


class Encoder:
    """Images in, embeddings out; made by `load_encoder`.

    dim: the embeddings' length d, taken from a real pass. digest: of weights, configuration and image
    processor, by which an index knows its encoder again. images_per_second: of the pass that made the last
    embeddings, decoding included; it is kept with them in the cache.
    """

    def __init__(self, model: torch.nn.Module, processor, device=None, dtype=None, origin: tuple = ()):
        self.device = torch.device(device or pick_device())
        self.dtype = dtype or torch.float32
        self.model = getattr(model, "base_model", model).to(self.device, self.dtype).eval()
        self.processor = processor
        self.origin = origin  # load_encoder's arguments, where it was loaded from a checkpoint
        self.name = origin[0] if origin else type(self.model).__name__
        self.digest = self._digest()
        self.images_per_second: float | None = None
        self.dim = self._forward(self._prepare([PIL.Image.new("RGB", (64, 64))])).shape[1]

    def _digest(self) -> str:
        digest = blake2b(digest_size=16)
        config = self.model.config.to_dict() if hasattr(self.model, "config") else {}
        processor = self.processor.to_dict() if hasattr(self.processor, "to_dict") else {}
        unstable = ("_name_or_path", "transformers_version", "architectures", "dtype")
        settings = {key: value for key, value in config.items() if key not in unstable}
        digest.update(json.dumps([settings, processor], sort_keys=True, default=str).encode())
        for name, weights in sorted(self.model.state_dict().items()):
            if not name.startswith("pooler."):  # drawn anew at every load where the checkpoint has none
                digest.update(name.encode())
                digest.update(weights.float().cpu().contiguous().numpy())
        return digest.hexdigest()

    def __reduce__(self):
        # Workers of Dataset.map load the checkpoint again, and its fingerprint need not pickle the weights.
        if self.origin:
            return load_in_worker, self.origin, {"digest": self.digest}
        return super().__reduce__()

    def _prepare(self, sources: Sequence) -> torch.Tensor:
        images = [open_image(source) for source in sources]
        return self.processor(images, return_tensors="pt")["pixel_values"]

    @torch.inference_mode()
    def _forward(self, pixels: torch.Tensor) -> np.ndarray:
        pixels = pixels.to(self.device, self.dtype)
        return pool(self.model, self.model(pixels)).float().cpu().numpy()

    def embed(self, images, batch_size: int = 48) -> np.ndarray:
        """Embed images into rows (n, d), float32, as the model gives them (not normalised).

        images: a data set with a column `image`, whose embeddings are cached, or a sequence of anything that
        `open_image` takes.
        """
        if not isinstance(images, Dataset) or not len(images):
            return self._embed(images, batch_size)
        sources = images.cast_column("image", Image(decode=False))["image"]
        key = f"{fingerprint(images)}-{self.digest}-{str(self.dtype).rpartition('.')[2]}"
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
        start = time.perf_counter()
        batches = (sources[i : i + batch_size] for i in range(0, len(sources), batch_size))
        rows = []
        with tqdm(total=len(sources), desc="embedding", unit="image", delay=1) as bar, ThreadPoolExecutor(1) as ahead:
            # The next batch is decoded and resized while the model works on this one.
            waiting = ahead.submit(self._prepare, next(batches))
            while waiting is not None:
                pixels = waiting.result()
                following = next(batches, None)
                waiting = None if following is None else ahead.submit(self._prepare, following)
                rows.append(self._forward(pixels))
                bar.update(len(pixels))
        self.images_per_second = len(sources) / (time.perf_counter() - start)
        return np.concatenate(rows)


def load_encoder(checkpoint="builtin", device=None, dtype=None, processor=None) -> Encoder:
    """Load an encoder.

    checkpoint: "builtin" (a small ViT trained on drawn leaves), a folder in transformers format, a Hub id
    (`owner/name` or `owner/name@revision`), any of them after "untrained:" for the same network with random
    weights (always the same ones), or a torch.nn.Module with its image processor in `processor` (which may be
    left out where the module was itself loaded from a checkpoint). device: "cuda", "mps", "cpu";
    by default the first that is there. dtype: torch.float32 by default. Only safetensors are read. Raises
    ValueError where there is no such checkpoint, ConnectionError where the Hub cannot be reached.
    """
    if isinstance(checkpoint, torch.nn.Module):
        if processor is None:
            name = getattr(checkpoint, "name_or_path", "")
            if not name:
                raise ValueError("A model given as a module needs its image processor: processor=...")
            try:
                processor = AutoImageProcessor.from_pretrained(locate(name, "checkpoint"), backend="pil")
            except OSError as error:
                reason = str(error).strip().partition("\n")[0]
                raise ValueError(f"{name!r} has no image processor: {reason}") from error
        return Encoder(checkpoint, processor, device, dtype)
    name = str(checkpoint).removeprefix(UNTRAINED)
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
            missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
            if missing:
                raise ValueError(f"its weights lack {len(missing)} of the model's, such as {missing[0]}")
            origin = (str(checkpoint), device, dtype, processor)
            processor = processor or AutoImageProcessor.from_pretrained(folder, backend="pil")
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"checkpoint {str(checkpoint)!r} cannot be loaded as a vision model: {reason}") from error
    return Encoder(model, processor, device, dtype, origin=origin)


def load_in_worker(checkpoint: str, device, dtype, processor) -> Encoder:
    """Load an encoder that was pickled by its name."""
    if os.getpid() != PROCESS:
        torch.set_num_threads(1)  # a forked process that starts OpenMP's threads again hangs for ever
    return load_encoder(checkpoint, device, dtype, processor)
