"""An index over all images of a folder, kept in the cache and brought up to date whenever it is opened."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import cached_property
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout

from imgsim.extras.find.embedding import embed_files
from imgsim.extras.find.files import File, content_id, entry_id, examine_files
from imgsim.extras.runs.environment import PACKAGE
from imgsim.extras.runs.inputs import find_inputs
from imgsim.extras.runs.settings import complete_settings
from imgsim.index import DRIFT, BuildLSHTable
from imgsim.search.layout import default_hash_size
from imgsim.sources.cache import best_effort, cache_folder, write_json
from imgsim.sources.decode import DECODER_VERSION, open_image
from imgsim.sources.folder import ImageFile, as_dataset, file_signature, printable
from imgsim.sources.hub import locate
from imgsim.sources.names import is_onnx, split_checkpoint

if TYPE_CHECKING:
    from datasets import Dataset

FORMAT = 2  # of the manifest and the ids
MANIFEST = "manifest.json"
# Up to this many images are all compared with a query: that takes less time than loading a checkpoint.
SETTINGS = {"rerank": 20_000}


class Match(NamedTuple):
    """A file that was found, and the cosine of its embedding and the query's."""

    path: str
    cosine: float


class FolderIndex:
    """All readable images of a folder; each is embedded once, whatever its file is called.

    An entry's key is the path relative to the folder, and its id stands for that path and the file's bytes.

    Attributes:
        index: over the images; its encoder is not loaded until something has to be embedded.
        files: path relative to the folder -> what is known of the file.
        embedded: how many images had to be embedded just now; saved: whether the index is in the cache as it is now.

    Args:
        folder: of images; nothing is written into it.
        checkpoint: see `load_encoder`; by default the one that was last used for this folder.
        default: returns the one to take if there is none yet; by default the built-in one.
        words: whether words will be searched for, too.

    Raises:
        ValueError: there is no such folder or checkpoint, no image can be read, or the checkpoint knows no words.
        ConnectionError: the checkpoint is on the Hub, which cannot be reached.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        checkpoint: str | None = None,
        default: Callable[[], str] | None = None,
        words: bool = False,
    ):
        if not os.path.isdir(folder):
            raise ValueError(f"{os.fspath(folder)!r} is no folder of images.")
        self.folder, self.embedded, self.saved = Path(folder), 0, True
        known_as = cache_folder(f"folders/{text_digest(os.path.realpath(folder))}")
        checkpoint = checkpoint or last_checkpoint(known_as) or (default() if default else "builtin")
        self.checkpoint = find_inputs(complete_settings({"checkpoint": checkpoint}))[0]["checkpoint"]
        self.place = known_as / text_digest(f"{FORMAT} {DECODER_VERSION} {SETTINGS} {self.checkpoint}")
        self.place.mkdir(exist_ok=True)
        _ = words and self.texts  # refused before the images are embedded, which may take long
        with locked(self.place / "lock"):
            self._update()

    @cached_property
    def encoder(self):
        """The checkpoint as an Encoder, loaded when it is needed first."""
        from imgsim.encoder import load_encoder  # torch

        return load_encoder(self.checkpoint)

    @cached_property
    def texts(self):
        """The checkpoint as a TextEncoder; ValueError if it has no text side."""
        from imgsim.extras.modalities.encoders import TextEncoder

        return TextEncoder(self.encoder)

    @property
    def skipped(self) -> dict[str, str]:
        """Path relative to the folder -> why the file is not in the index."""
        return {name: file.problem for name, file in self.files.items() if file.problem}

    def path(self, key: str) -> str:
        """Return the path, with the folder, of the file with this key."""
        return os.path.join(self.folder, key)

    def _update(self) -> None:
        """Bring index and manifest up to date with the folder."""
        manifest, made_with = read_manifest(self.place), checkpoint_signature(self.checkpoint)
        before = {name: File(*file) for name, file in manifest.get("files", {}).items()}
        # Files of a checkpoint that are not those of last time may hold the same weights all the same.
        index = read_index(self.place, None if manifest.get("made_with") == made_with else lambda: self.encoder)
        self.files = examine_files(self.folder, before, {file.content for file in before.values() if not file.problem})
        wanted = {entry_id(name, file.content): name for name, file in self.files.items() if not file.problem}
        if not wanted:
            raise ValueError(f"{os.fspath(self.folder)!r} holds no image that can be read.")
        self.index = index if index and set(index.ids.tolist()) == wanted.keys() else self._renew(index, before, wanted)
        with best_effort():
            if self.files != before or manifest.get("made_with") != made_with:
                names = {"folder": str(self.folder.resolve()), "checkpoint": self.checkpoint}
                write_json(self.place / MANIFEST, names | {"made_with": made_with, "files": self.files})
            # The newest one names the checkpoint that was used last; file systems' own clocks tick too slowly for this.
            os.utime(self.place / MANIFEST, ns=(time.time_ns(),) * 2)

    def _renew(self, index: BuildLSHTable | None, before: dict[str, File], wanted: dict[int, str]) -> BuildLSHTable:
        """Make an index of the entries wanted, id -> key, from one of the files before, and save it.

        What is gone is removed, and what is new is added, under the projection as it is. All is hashed anew if the
        bits per code, which follow the number of images, change, or if the mean has moved.
        """
        known: dict[int | None, np.ndarray] = {}
        there = dict(zip(index.ids.tolist(), index.keys, strict=True)) if index else {}
        if index:
            for number, key, vector in zip(there, there.values(), index.vectors, strict=True):
                if key in before and entry_id(key, before[key].content) == number:
                    known[before[key].content] = vector
        new = {number: name for number, name in wanted.items() if number not in there}
        contents = {name: self.files[name].content for name in new.values()}
        if missing := {content: self.path(name) for name, content in contents.items() if content not in known}:
            embeddings, self.embedded = embed_files(self.encoder, missing, self.place)
            known |= embeddings
        added = {"ids": list(new), "keys": list(new.values())}
        vectors = [known[content] for content in contents.values()]
        if index:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that the mean has moved: see below
                index.remove([number for number in there if number not in wanted])
                index.add(np.stack(vectors), **added) if new else None
            if default_hash_size(len(index)) != index.hash_size or index.drift() > DRIFT:
                vectors, added = index.vectors, {"ids": index.ids, "keys": index.keys}
                index = None
        if index is None:
            index = BuildLSHTable(self.encoder, **SETTINGS).build_from_embeddings(np.stack(vectors), **added)
        self.saved = False
        with best_effort():
            index.save(self.place / "index")
            self.saved = True
            for file in self.place.glob("*.npz"):
                file.unlink()
        return index

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
        rows = {self.files[key].content: row for row, key in enumerate(self.index.keys)}
        found = [rows.get(content_id(Path(photo).read_bytes())) for photo in photos]
        unknown = [image for image, row in zip(images, found, strict=True) if row is None]
        embedded = iter(self.encoder.embed(unknown) if unknown else ())
        return np.stack([next(embedded) if row is None else self.index.vectors[row] for row in found])

    @property
    def title(self) -> str:
        """Folder and checkpoint in a few words."""
        return f"{self.folder.resolve().name} · {Path(self.checkpoint).name}"

    def picture(self, number: int) -> tuple[bytes, str, str] | None:
        """Return the bytes of the image with this id, a caption, and its path; None if it is not there any more."""
        (row,) = np.flatnonzero(self.index.ids == number)
        key = self.index.keys[row]
        with suppress(OSError):
            content = Path(self.path(key)).read_bytes()
            if entry_id(key, content_id(content)) == number:
                return content, printable(Path(key).name), printable(os.path.abspath(self.path(key)))
        return None

    def load_all(self) -> tuple[Dataset, list[str], Any, np.ndarray]:
        """Return the images of all files, their paths, the encoder, and the vectors (n, d), for a report on them."""
        order = np.argsort(self.index.keys)
        paths = [self.path(key) for key in self.index.keys[order]]
        images = as_dataset([ImageFile(Path(path).absolute(), ()) for path in paths], [])
        return images, paths, self.encoder, self.index.vectors[order]

    def search(self, embeddings: np.ndarray, top_k: int) -> list[list[Match]]:
        """Find the files most like each of the embeddings (m, d), best first."""
        found = self.index.search(embeddings, top_k)
        pairs = (zip(*answer, strict=True) for answer in zip(found.keys, found.cosines.tolist(), strict=True))
        return [[Match(self.path(key), cosine) for key, cosine in answer if key] for answer in pairs]


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
    """Hold a lock, and say so if another process has to finish first; where nothing can be written, none is needed."""
    lock, held = FileLock(path), nullcontext()
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        print("Another process is at work on this folder's index: waiting for it.", file=sys.stderr)
        held = lock.acquire()
    except OSError:
        pass
    with held:
        yield


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


def read_manifest(place: Path) -> dict:
    """Read the manifest that was kept, {} if there is none or it is damaged."""
    try:
        return json.loads((place / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def read_index(place: Path, encoder: Callable[[], Any] | None) -> BuildLSHTable | None:
    """Read the index that was kept, and check that this encoder made it; one that cannot be used is removed."""
    if not (place / "index").is_dir():
        return None
    try:
        return BuildLSHTable.load(place / "index", encoder and encoder())
    except ValueError as error:
        print(f"The kept index cannot be used and is built again: {error}", file=sys.stderr)
        shutil.rmtree(place / "index", ignore_errors=True)
        return None
