"""An index over all images of a folder, kept in the cache and brought up to date whenever it is opened."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
from datasets import Dataset
from filelock import FileLock, Timeout

from imgsim.extras.find.files import File, content_id, examine_files
from imgsim.extras.runs.environment import PACKAGE
from imgsim.extras.runs.inputs import find_inputs
from imgsim.extras.runs.settings import complete_settings
from imgsim.index import BuildLSHTable
from imgsim.sources.cache import atomic_write, cache_folder, write_json
from imgsim.sources.decode import DECODER_VERSION, open_image
from imgsim.sources.folder import ImageFile, as_dataset, file_signature, printable
from imgsim.sources.hub import locate
from imgsim.sources.names import is_onnx, split_checkpoint

FORMAT = 1  # of the manifest
MANIFEST = "manifest.json"
# Up to this many images are all compared with a query: that takes less time than loading a checkpoint.
SETTINGS = {"rerank": 20_000}
BATCH = 1024  # images whose embeddings are written together: when work is killed, no more are lost


class Match(NamedTuple):
    """A file that was found, and the cosine of its embedding and the query's."""

    path: str
    cosine: float


class FolderIndex:
    """All readable images of a folder, each embedded once.

    An image's id stands for its bytes: a file that was only renamed changes nothing in the index, and identical files
    share an entry.

    Attributes:
        index: over the images; its encoder is None until something has to be embedded.
        files: path relative to the folder -> what is known of the file.
        paths: id -> the paths, with the folder, of the files that hold this image.
        embedded: how many images had to be embedded just now.

    Args:
        folder: of images; nothing is written into it.
        checkpoint: see `load_encoder`; by default the one that was last used for this folder.
        default: returns the one to take if there is none yet; by default the built-in one.

    Raises:
        ValueError: there is no such folder or checkpoint, or no image can be read.
        ConnectionError: the checkpoint is on the Hub, which cannot be reached.
    """

    def __init__(
        self, folder: str | os.PathLike, checkpoint: str | None = None, default: Callable[[], str] | None = None
    ):
        if not os.path.isdir(folder):
            raise ValueError(f"{os.fspath(folder)!r} is no folder of images.")
        self.folder, self.embedded = Path(folder), 0
        known_as = cache_folder(f"folders/{text_digest(os.path.realpath(folder))}")
        checkpoint = checkpoint or last_checkpoint(known_as) or (default() if default else "builtin")
        self.checkpoint = find_inputs(complete_settings({"checkpoint": checkpoint}))[0]["checkpoint"]
        self.place = known_as / text_digest(f"{FORMAT} {DECODER_VERSION} {SETTINGS} {self.checkpoint}")
        self.place.mkdir(exist_ok=True)
        with locked(self.place / "lock"):
            self._update()
        self.paths: dict[int, list[str]] = defaultdict(list)
        for name, file in self.files.items():
            if not file.problem:
                self.paths[file.id].append(os.path.join(folder, name))

    @cached_property
    def encoder(self):
        """The checkpoint as an Encoder, loaded when it is needed first."""
        from imgsim.encoder import load_encoder  # torch

        return load_encoder(self.checkpoint)

    @property
    def skipped(self) -> dict[str, str]:
        """Path relative to the folder -> why the file is not in the index."""
        return {name: file.problem for name, file in self.files.items() if file.problem}

    def _update(self) -> None:
        """Bring index and manifest up to date with the folder."""
        manifest, self.index = read_index(self.place)
        before = {name: File(*file) for name, file in manifest.get("files", {}).items()}
        made_with, digest = checkpoint_signature(self.checkpoint), manifest.get("encoder")
        if manifest.get("made_with") != made_with and digest != self.encoder.digest:
            self.index, digest = None, self.encoder.digest
        self.files = examine_files(self.folder, before, set() if self.index is None else set(self.index.ids.tolist()))
        wanted = {file.id: self.folder / name for name, file in self.files.items() if not file.problem}
        if not wanted:
            raise ValueError(f"{os.fspath(self.folder)!r} holds no image that can be read.")
        ids = np.sort(np.fromiter(wanted, np.int64))
        if self.index is None or not np.array_equal(ids, self.index.ids):
            known = read_embeddings(self.place, digest)
            known |= self._embed({number: path for number, path in wanted.items() if number not in known})
            embeddings = np.stack([known[number] for number in ids.tolist()])
            self.index = BuildLSHTable(self.encoder, **SETTINGS).build_from_embeddings(embeddings, ids=ids)
            self.index.save(self.place / "index")
            whole = keep_embeddings(self.place, digest, ids, embeddings)
            for file in set(self.place.glob("*.npz")) - {whole}:
                file.unlink()
        if self.files != before or manifest.get("made_with") != made_with:
            names = {"folder": str(self.folder.resolve()), "checkpoint": self.checkpoint}
            write_json(self.place / MANIFEST, names | {"made_with": made_with, "encoder": digest, "files": self.files})
        # The newest one names the checkpoint that was used last; a file system's own clock ticks too slowly for this.
        os.utime(self.place / MANIFEST, ns=(time.time_ns(),) * 2)

    def _embed(self, new: dict[int, Path]) -> dict[int, np.ndarray]:
        """Embed files by id; now and then what is done is written, for the next call if this one is killed."""
        if not new:
            return {}
        from imgsim.models.batches import embed_batches

        done: dict[int, np.ndarray] = {}
        encoder, lock = self.encoder, Lock()

        def prepare(batch: list[tuple[int, Path]]):
            return [number for number, _ in batch], encoder.prepare([path for _, path in batch])

        def forward(prepared) -> np.ndarray:
            numbers, pixels = prepared
            rows = encoder.forward(pixels)
            with lock:
                done.update(zip(numbers, rows, strict=True))
                if len(done) >= BATCH:
                    keep_embeddings(self.place, encoder.digest, np.array(list(done)), np.stack(list(done.values())))
                    done.clear()
            return rows

        size, on_cpu = encoder.micro_batch(48), encoder.device.type == "cpu"
        rows = embed_batches(list(new.items()), size, prepare, forward, on_cpu)
        self.embedded = len(new)
        return dict(zip(new, rows, strict=True))

    def embed(self, photos: Sequence[str | os.PathLike], crop: tuple[int, ...] | None = None) -> np.ndarray:
        """Embed photos into rows (m, d); those whose bytes are in the folder are not embedded again.

        Args:
            photos: m image files.
            crop: x, y, width and height of the part that counts, in pixels.

        Raises:
            ValueError: a photo cannot be read, or there is nothing in the crop.
        """
        images = [open_image(photo) for photo in photos]
        if crop:
            return self.encoder.embed([crop_image(image, crop) for image in images])
        rows = {number: row for row, number in enumerate(self.index.ids.tolist())}
        found = [rows.get(content_id(Path(photo).read_bytes())) for photo in photos]
        unknown = [image for image, row in zip(images, found, strict=True) if row is None]
        embedded = iter(self.encoder.embed(unknown) if unknown else ())
        return np.stack([next(embedded) if row is None else self.index.vectors[row] for row in found])

    @property
    def title(self) -> str:
        """Folder and checkpoint in a few words."""
        return f"{self.folder.resolve().name} · {Path(self.checkpoint).name}"

    def picture(self, number: int) -> tuple[bytes, str, str] | None:
        """Return the bytes of the image with this id, a caption, and its path; None if no file holds it any more."""
        for path in self.paths[number]:
            with suppress(OSError):
                content = Path(path).read_bytes()
                if content_id(content) == number:
                    return content, printable(Path(path).name), printable(os.path.abspath(path))
        return None

    def load_all(self) -> tuple[Dataset, list[str], Any, np.ndarray]:
        """Return the images of all files, their paths, the encoder, and the vectors (n, d), for a report on them."""
        rows = {number: row for row, number in enumerate(self.index.ids.tolist())}
        files = sorted((path, rows[number]) for number, paths in self.paths.items() for path in paths)
        images = as_dataset([ImageFile(Path(path).absolute(), ()) for path, _ in files], [])
        return images, [path for path, _ in files], self.encoder, self.index.vectors[[row for _, row in files]]

    def search(self, embeddings: np.ndarray, top_k: int) -> list[list[Match]]:
        """Find the files most like each of the embeddings (m, d), best first."""
        found, answers = self.index.search(embeddings, top_k), []
        for ids, cosines in zip(found.ids.tolist(), found.cosines.tolist(), strict=True):
            pairs = zip(ids, cosines, strict=True)
            matches = [Match(path, cosine) for number, cosine in pairs if number >= 0 for path in self.paths[number]]
            answers.append(matches[:top_k])
        return answers


def crop_image(image, crop: tuple[int, ...]):
    """Cut x, y, width and height out of a pillow image; ValueError if they do not lie in it."""
    x, y, width, height = crop
    if min(x, y) < 0 or min(width, height) < 1 or x + width > image.width or y + height > image.height:
        raise ValueError(f"The crop {x},{y},{width},{height} does not lie in {image.width} x {image.height} pixels.")
    return image.crop((x, y, x + width, y + height))


def text_digest(text: str) -> str:
    """Return a text, such as a path in any encoding, as 16 hexadecimal digits."""
    return blake2b(os.fsencode(text), digest_size=8).hexdigest()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock, and say so if another process has to finish first."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print("Another process is at work on this folder's index: waiting for it.", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def last_checkpoint(known_as: Path) -> str | None:
    """Return the checkpoint that was used last for a folder, or None."""
    with suppress(OSError, ValueError):
        manifests = sorted(known_as.glob(f"*/{MANIFEST}"), key=lambda path: path.stat().st_mtime)
        return json.loads(manifests[-1].read_text(encoding="utf-8"))["checkpoint"] if manifests else None
    return None


def checkpoint_signature(checkpoint: str) -> list[str | None]:
    """Return texts that change when the files of a checkpoint, or the library that loads them, do."""
    _, name = split_checkpoint(checkpoint)
    if is_onnx(name):
        files = sorted(Path(name).parent.glob(f"{Path(name).name}*"))
    else:
        folder = PACKAGE / "assets" / "leaf-vit" if name == "builtin" else locate(name, "checkpoint")
        files = sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")])
    return [f"transformers {version('transformers')}", *(file_signature(file, file.parent) for file in files)]


def read_index(place: Path) -> tuple[dict, BuildLSHTable | None]:
    """Read the manifest and the index that were kept; a damaged one is removed, to be built again."""
    try:
        manifest = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
        return manifest, BuildLSHTable.load(place / "index")
    except FileNotFoundError:
        return {}, None
    except ValueError as error:
        print(f"The kept index cannot be used and is built again: {error}", file=sys.stderr)
        shutil.rmtree(place / "index", ignore_errors=True)
        return {}, None


def keep_embeddings(place: Path, digest: str, ids: np.ndarray, embeddings: np.ndarray) -> Path:
    """Write ids (n,) and embeddings (n, d) of the encoder with this digest; return the file."""
    file = place / f"{digest}-{ids[0]}.npz"
    with atomic_write(file) as beside, open(beside, "wb") as stream:
        np.savez(stream, ids=ids, embeddings=embeddings)
    return file


def read_embeddings(place: Path, digest: str) -> dict[int, np.ndarray]:
    """Read what was written with `keep_embeddings`, all of it or what killed work has left, by id."""
    kept: dict[int, np.ndarray] = {}
    for file in place.glob(f"{digest}-*.npz"):
        with suppress(OSError, ValueError, KeyError, EOFError, BadZipFile), np.load(file) as arrays:
            kept |= dict(zip(arrays["ids"].tolist(), arrays["embeddings"], strict=True))
    return kept
