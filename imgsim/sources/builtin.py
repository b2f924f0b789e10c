"""The built-in dataset: rendered leaves in the classes and splits of Beans, for when the Hub cannot be reached."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path

import numpy as np
from datasets import Dataset
from filelock import FileLock
from tqdm import tqdm

from imgsim.sources.cache import cache_folder
from imgsim.sources.leaves import CLASSES, Traits, render_leaf, sample_traits
from imgsim.sources.splits import stored_images

SPLITS = {"train": 1034, "validation": 133, "test": 128}  # the sizes of Beans


def sample_image(split: str, number: int, seed: int = 0) -> tuple[Traits, np.random.Generator]:
    """Sample the traits of one image of a split; the generator returned renders it."""
    rng = np.random.default_rng([seed, list(SPLITS).index(split), number])
    return sample_traits(CLASSES[number % len(CLASSES)], rng), rng


def render_folder(folder: str | os.PathLike, seed: int = 0, sizes: Mapping[str, int] = SPLITS, size: int = 256) -> Path:
    """Render a folder of `sizes` images per split of `size` pixels per side, as JPEGs of quality 92.

    The files are <split>/<class>/<class>_<split>.<number>.jpg. A folder that another process finished first is kept.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)

    def render(work: Path, split: str, number: int) -> None:
        traits, rng = sample_image(split, number, seed)
        path = work / split / traits.label / f"{traits.label}_{split}.{number // len(CLASSES)}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        render_leaf(traits, rng, size).save(path, quality=92)

    jobs = [(split, number) for split, count in sizes.items() for number in range(count)]
    # Rendered beside its place and moved there whole: an interrupted rendering is never taken for a dataset.
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as beside:
        work = Path(beside, folder.name)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            rendered = pool.map(lambda job: render(work, *job), jobs)
            list(tqdm(rendered, total=len(jobs), desc="rendering leaves"))
        try:
            work.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    return folder


def traits_of(images: Dataset, seed: int = 0) -> list[Traits]:
    """Sample the traits of rendered images again, from the seed and the names that `render_folder` gives to files."""
    traits = []
    for image in stored_images(images):
        name, number = Path(image["path"]).stem.split(".")  # bean_rust_train.12.jpg
        label, split = name.rsplit("_", 1)
        traits.append(sample_image(split, int(number) * len(CLASSES) + CLASSES.index(label), seed)[0])
    return traits


def builtin_folder() -> Path:
    """Return the folder of the built-in images in the cache, rendered if it is not there yet."""
    code = b"".join(Path(__file__).with_name(name).read_bytes() for name in ("builtin.py", "leaves.py"))
    folder = cache_folder() / f"leaves-{blake2b(code, digest_size=4).hexdigest()}"  # other code, other images
    with FileLock(f"{folder}.lock"):  # of several processes that want them one renders, and the others wait
        for remains in folder.parent.glob(f".{folder.name}-*"):  # of a rendering that was killed
            shutil.rmtree(remains, ignore_errors=True)
        if len(list(folder.rglob("*.jpg"))) != sum(SPLITS.values()):  # not there, or not all of it any more
            shutil.rmtree(folder, ignore_errors=True)
            render_folder(folder)
        return folder
