"""An index for other tools: Parquet, datasets, faiss, and the Hub."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from importlib.metadata import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from imgsim.index import BuildLSHTable
from imgsim.search.keys import printable_keys
from imgsim.search.storage import write_manifest
from imgsim.sources.cache import atomic_write
from imgsim.sources.errors import require

if TYPE_CHECKING:
    import faiss
    import pyarrow
    from datasets import Dataset

FILES = ["manifest.json", "*.npy"]  # an index on the Hub, without anything that could be executed
CARD = """---
library_name: imgsim
pipeline_tag: image-feature-extraction
tags: [image-similarity, locality-sensitive-hashing]
---

# {name}

An index of {count:,} images for [imgsim]({home}), made with the checkpoint
`{checkpoint}` ({pooling}, {dtype}).

```python
from imgsim.extras.export import load_from_hub

index = load_from_hub("{name}")
matches = index.query("photo.jpg")
```
{picture}
| setting or number | value |
| --- | --- |
{rows}
"""


def to_table(index: BuildLSHTable) -> pyarrow.Table:
    """Return the columns id, key, label and embedding (d float32 of length 1); a missing key or label is null."""
    import pyarrow

    labels, vectors = index.labels, np.ascontiguousarray(index.vectors)
    columns = {
        "id": pyarrow.array(index.ids),
        "key": pyarrow.array(printable_keys(index.keys), pyarrow.string()),
        "label": pyarrow.array(labels, mask=labels < 0),
        "embedding": pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.ravel()), vectors.shape[1]),
    }
    return pyarrow.table(columns)


def to_parquet(index: BuildLSHTable, path: str | os.PathLike) -> None:
    """Write the table of `to_table` to a Parquet file, whole or not at all."""
    import pyarrow.parquet

    with atomic_write(path) as beside:
        pyarrow.parquet.write_table(to_table(index), beside)


def to_dataset(index: BuildLSHTable) -> Dataset:
    """Return the table of `to_table` as a dataset, ready for `add_faiss_index("embedding")`."""
    from datasets import Dataset

    return Dataset(to_table(index)).with_format("numpy", columns=["embedding"], output_all_columns=True)


def to_faiss(index: BuildLSHTable, neighbours: int = 0) -> faiss.Index:
    """Return a faiss index of the vectors, which gives the same ids and, as inner products, cosines.

    Args:
        index: what to copy.
        neighbours: of each vector in an HNSW graph; 0: exact search.

    Raises:
        ValueError: faiss is not installed.
    """
    require(("faiss",), "test")
    import faiss

    dim, product = index.vectors.shape[1], faiss.METRIC_INNER_PRODUCT
    bare = faiss.IndexHNSWFlat(dim, neighbours, product) if neighbours else faiss.IndexFlatIP(dim)
    copy = faiss.IndexIDMap2(bare)
    copy.add_with_ids(np.ascontiguousarray(index.vectors), index.ids)
    return copy


def push_to_hub(
    index: BuildLSHTable,
    name: str,
    metrics: Mapping[str, Any] | None = None,
    picture: str | os.PathLike | None = None,
    private: bool = False,
) -> str:
    """Upload an index to the Hub as a model repository of plain arrays with a card, in place of an earlier one.

    Args:
        index: what to upload.
        name: owner/name of the repository, which is created if it is not there.
        metrics: numbers for the card, such as a run's metrics.json.
        picture: a PNG for the card, such as one of a run's figures.
        private: whether a new repository is seen by its owner only.

    Returns:
        The repository's address.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(name, private=private, exist_ok=True)
    with TemporaryDirectory() as scratch:
        folder = index.save(Path(scratch) / "index")
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        made_with = manifest["encoder"]
        if os.path.exists(made_with["name"] or ""):  # others have no use for a path on this machine
            made_with["name"] = os.path.basename(made_with["name"])
            write_manifest(folder, manifest)
        numbers = {key: value for key, value in manifest.items() if isinstance(value, (int, float))} | dict(
            metrics or {}
        )
        if picture:
            shutil.copy(picture, folder / "gallery.png")
        card = CARD.format(
            name=name,
            home=metadata("imgsim-lsh").get_all("Project-URL")[0].partition(", ")[2],
            count=len(index),
            checkpoint=made_with["name"],
            pooling=made_with["pooling"],
            dtype=made_with["dtype"],
            picture="\n![Queries and their matches](gallery.png)\n" if picture else "",
            rows="\n".join(f"| {key} | {value} |" for key, value in numbers.items()),
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        files = [*FILES, "README.md", "gallery.png"]
        api.upload_folder(repo_id=name, folder_path=folder, allow_patterns=files, delete_patterns=FILES)
    return f"https://huggingface.co/{name}"


def load_from_hub(name: str, model=None, revision: str | None = None) -> BuildLSHTable:
    """Download an index that `push_to_hub` uploaded, and load it; see `BuildLSHTable.load` for the model.

    By default that is the checkpoint that the index names: it is loaded, and downloaded if need be, when an image has
    to be embedded. For a repository that you do not trust, name it yourself.
    """
    from huggingface_hub import snapshot_download

    return BuildLSHTable.load(snapshot_download(name, revision=revision, allow_patterns=FILES), model)
