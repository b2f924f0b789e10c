"""Compare images per second from files to embeddings: imgsim, the model's bare forward pass, and the published path.

All three embed the same images with the same weights; rounds are interleaved, and medians are shown.
"""

import argparse
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, Image, disable_progress_bars
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

from imgsim.encoder import load_encoder
from imgsim.images import load_images
from imgsim.index import BuildLSHTable

BATCH = 48  # the article's, and imgsim's default
RANDOM = "vit-base-random"  # the size of ViT-B with weights drawn from a seed: speed needs no training


def read(dataset: str, count: int | None) -> Dataset:
    """Return the images of all splits of a dataset, or the first of them, as encoded bytes in memory."""
    paths = [path for split in load_images(dataset).values() for path in split["image_file_path"]]
    rows = [{"bytes": Path(path).read_bytes(), "path": None} for path in paths[:count]]
    return Dataset.from_dict({"image": rows, "label": [0] * len(rows)}).cast_column("image", Image())


def load(checkpoint: str, dtype: str):
    """Two encoders of the same weights: imgsim's, and one whose model stays as transformers gives it."""
    if checkpoint != RANDOM:
        return load_encoder(checkpoint, dtype=dtype), load_encoder(checkpoint, dtype=dtype)
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(ViTModel(ViTConfig(), add_pooling_layer=False))
    return [load_encoder(model, dtype=dtype, processor=ViTImageProcessorPil()) for model in models]


@torch.inference_mode()
def bare(network, batches: list[torch.Tensor]) -> np.ndarray:
    """The forward pass alone, on pixels that lie ready."""
    return np.concatenate([network(pixels).float().cpu().numpy() for pixels in batches])


def published(images: Dataset, plain) -> np.ndarray:
    """The article's way: `map` over stacked tensors that gives back the images too, then a loop over the rows."""

    def embed(batch: dict) -> dict:
        pixels = torch.stack([plain.prepare([image])[0] for image in batch["image"]])
        with torch.no_grad():
            batch["embedding"] = plain.network(pixels.to(plain.device, plain.dtype)).float().cpu().numpy()
        return batch

    # The function's name stands for the model: hashing all weights would be counted otherwise.
    embedded = images.map(embed, batched=True, batch_size=BATCH, new_fingerprint=f"published{time.time_ns()}")
    return np.array([row["embedding"] for row in embedded], dtype=np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="builtin", help="'builtin' or a folder of images")
    parser.add_argument("--checkpoint", default="builtin", help=f"any checkpoint, or {RANDOM}")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16, or on a GPU float16")
    parser.add_argument("--images", type=int, help="how many of them (default: all)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each path runs (default: 3)")
    options = parser.parse_args()
    disable_progress_bars()
    images = read(options.dataset, options.images)
    encoder, plain = load(options.checkpoint, options.dtype)
    plain.network.to(memory_format=torch.contiguous_format)
    sources = images.cast_column("image", Image(decode=False))["image"][:]

    ready = [plain.prepare(sources[i : i + BATCH]) for i in range(0, len(sources), BATCH)]
    ready = [pixels.to(plain.device, plain.dtype) for pixels in ready]
    slices = [encoder.to_device(part) for pixels in ready for part in pixels.split(encoder.micro_batch(BATCH))]
    paths = {
        "imgsim, from files": lambda: encoder.embed(sources, BATCH),
        "imgsim's forward pass alone": lambda: bare(encoder.network, slices),
        f"bare forward pass, batches of {BATCH}": lambda: bare(plain.network, ready),
        "published path": lambda: published(images, plain),
    }
    seconds, rows = {name: [] for name in paths}, {}
    for _ in range(options.rounds):
        for name, work in paths.items():
            start = time.perf_counter()
            rows[name] = work()
            seconds[name].append(time.perf_counter() - start)
    rates = {name: len(sources) / float(np.median(times)) for name, times in seconds.items()}

    threads = f"{torch.get_num_threads()} threads of {os.cpu_count()}"
    where = f"{encoder.device} ({platform.machine()}, {threads}, torch {version('torch')})"
    print(f"{len(sources)} images, {options.checkpoint}, {options.dtype}, {where}, {options.rounds} rounds\n")
    print(f"{'':36}{'images/s':>10}{'of bare':>9}{'× published':>13}{'differs by':>12}")
    exact = rows[f"bare forward pass, batches of {BATCH}"]
    best = max(rate for name, rate in rates.items() if "forward" in name)
    for name, rate in rates.items():
        difference = np.abs(rows[name] - exact).max()
        print(f"{name:36}{rate:10.1f}{rate / best:9.0%}{rate / rates['published path']:13.1f}{difference:12.0e}")
    builds = [BuildLSHTable().build_from_embeddings(exact).build_seconds for _ in range(options.rounds)]
    print(f"\nCodes and tables of {len(exact)} images: {1000 * np.median(builds):.0f} ms (hash_size 8, 10 tables)")


if __name__ == "__main__":
    main()
