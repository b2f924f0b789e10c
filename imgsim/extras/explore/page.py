"""What the explorable page shows: points, thumbnails, names; and the page itself, one file without a network."""

from __future__ import annotations

import json
import os
from base64 import b64encode
from io import BytesIO
from pathlib import Path
from string import Template

import numpy as np
import PIL.Image
import PIL.ImageOps

from imgsim.encoder import load_encoder
from imgsim.extras.runs.environment import PACKAGE
from imgsim.extras.runs.inputs import all_images
from imgsim.figures import label_name
from imgsim.hashing import normalise
from imgsim.images import load_images
from imgsim.sources.cache import atomic_write
from imgsim.sources.decode import open_image
from imgsim.sources.errors import require
from imgsim.sources.folder import printable

ASSETS = PACKAGE / "assets"
DIMENSIONS = 16  # of the points on the page, if the embeddings have as many: the last one is that of the cone
MOST, TILE = 1400, 44  # images on a page of at most 2 MB, and the pixels of a thumbnail's side
QUALITY = 55  # of the thumbnails
TITLE = b"<title>Explore locality-sensitive hashing</title>"


def reduce_points(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Turn vectors (n, d) of length 1 into points of few dimensions, seen from their mean.

    The axes are the leading principal directions, strongest first, and last what these leave of the mean's direction,
    along which the origin lies: so that it can be seen why centring matters.

    Returns:
        The points (n, r) float32, the origin (r,), and the share of the variance kept.
    """
    mean = vectors.mean(axis=0)
    centred = (vectors - mean).astype(np.float64)
    variances, directions = np.linalg.eigh(centred.T @ centred)
    axes = directions[:, ::-1][:, : DIMENSIONS - 1]
    axes *= np.where(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])] < 0, -1, 1)  # eigh leaves signs open
    rest = mean - axes @ (axes.T @ mean)
    if axes.shape[1] < len(mean) and np.linalg.norm(rest) > 1e-6:
        axes = np.column_stack([axes, rest / np.linalg.norm(rest)])
    points = (centred @ axes).astype(np.float32)
    kept = np.square(points).sum() / max(variances.sum(), 1e-12)
    return points, (-mean @ axes).astype(np.float32), float(min(kept, 1))


def page_data(images, vectors: np.ndarray, names: list[str]) -> dict:
    """Return what explore.js shows.

    Args:
        images: n rows with an image each.
        vectors: (n, d) float32 of length 1.
        names: n captions.

    Raises:
        ValueError: there are fewer than three images, or their embeddings have one dimension.
    """
    if len(vectors) < 3 or vectors.shape[1] < 2:
        raise ValueError(f"A map needs three images and two dimensions at least, not {vectors.shape}.")
    rows = np.arange(0, len(vectors), -(-len(vectors) // MOST))
    points, origin, kept = reduce_points(vectors[rows])
    columns = int(np.ceil(np.sqrt(len(rows))))
    sprite = PIL.Image.new("RGB", (columns * TILE, -(-len(rows) // columns) * TILE), "white")
    for place, row in enumerate(rows.tolist()):
        small = PIL.ImageOps.fit(open_image(images[row]["image"]), (TILE, TILE))
        sprite.paste(small, (place % columns * TILE, place // columns * TILE))
    stream = BytesIO()
    sprite.save(stream, "WEBP", quality=QUALITY, method=6)
    some = "" if len(rows) == len(vectors) else f", {len(rows):,} of {len(vectors):,}, evenly taken"
    note = (
        f"The points are the images' embeddings{some}, reduced from {vectors.shape[1]} to {len(origin)} dimensions, "
        f"which keep {kept:.0%} of their variance. The map shows the two in which they differ most. In more than two "
        "dimensions the lines and cells are where planes and cells cut the map through the query. Averages are over "
        "up to 128 of the images, each left out in turn while it is the query."
    )
    return {
        "vectors": b64encode(points.astype("<f4").tobytes()).decode(),
        "origin": origin.tolist(),
        "sprite": f"data:image/webp;base64,{b64encode(stream.getvalue()).decode()}",
        "tile": TILE,
        "columns": columns,
        "names": [names[row] for row in rows.tolist()],
        "note": note,
    }


def read_data(source: str = "builtin", checkpoint: str = "builtin") -> dict:
    """Load and embed all images of a dataset, and return what explore.js shows."""
    images, encoder = all_images(load_images(source), seed=0), load_encoder(checkpoint)
    files = images["image_file_path"][:] if "image_file_path" in images.column_names else [""] * len(images)
    labels = images["labels"][:] if "labels" in images.column_names else [-1] * len(images)
    names = [
        " · ".join(part for part in (printable(Path(file).name), label_name(images, label)) if part) or f"image {row}"
        for row, (file, label) in enumerate(zip(files, labels, strict=True))
    ]
    return page_data(images, normalise(encoder.embed(images)), names)


def check_target(target: str | os.PathLike) -> None:
    """Raise a ValueError if a page cannot be written here, or another file would be lost."""
    path = Path(target).expanduser()
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{str(path)!r} cannot be written: there is no folder {str(path.parent)!r}.")
    if path.is_dir() or (path.exists() and TITLE not in path.read_bytes()[:500]):
        raise ValueError(f"{str(path)!r} is there, and is no page of imgsim explore: choose another --output.")


def write_page(data: dict, target: str | os.PathLike) -> Path:
    """Write a page that shows `page_data` to a file of its own; return the file."""
    text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")  # a name cannot end the script
    html, css, js = ((ASSETS / f"explore.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js"))
    with atomic_write(target) as beside:
        beside.write_text(Template(html).substitute(data=text, css=css, js=js), encoding="utf-8")
    return Path(target).expanduser()


def explore_widget(images, vectors: np.ndarray, names: list[str] | None = None):
    """Return a widget that shows the page's map in a notebook.

    Args:
        images: n rows with an image each.
        vectors: (n, d) float32 of length 1.
        names: n captions; by default the images' numbers.

    Raises:
        ModuleNotFoundError: anywidget is not installed; the sentence says how to.
    """
    require(("anywidget",), "interactive")
    import anywidget
    import traitlets

    class Explore(anywidget.AnyWidget):
        _esm, _css = ASSETS / "explore.js", ASSETS / "explore.css"
        data = traitlets.Dict().tag(sync=True)

    return Explore(data=page_data(images, vectors, names or [f"image {row}" for row in range(len(vectors))]))
