"""What is a checkpoint worth? Its embeddings are compared with those of its untrained self and with plain pixels."""

from __future__ import annotations

import numpy as np

from imgsim.encoder import load_encoder
from imgsim.evaluation import exact_neighbours, label_precision, participation_ratio
from imgsim.images import candidates_and_queries, labels_of, load_images
from imgsim.sources.decode import open_image
from imgsim.sources.names import UNTRAINED

PIXELS = 16  # images shrunk to 16 x 16 RGB: what colour and layout alone tell


def shrink(images) -> np.ndarray:
    """Return images as rows (n, 768) of pixels."""
    return np.stack([np.asarray(open_image(image).resize((PIXELS, PIXELS))).ravel() for image in images["image"]])


def assess(dataset: str = "builtin", checkpoint: str = "builtin") -> str:
    """Return a small table: exact label precision at 5 and participation ratio of a checkpoint on a dataset.

    Raises:
        ValueError: there is no such dataset or checkpoint.
        ConnectionError: the Hub cannot be reached.
    """
    candidates, queries = candidates_and_queries(load_images(dataset))
    trained = load_encoder(checkpoint)
    untrained = load_encoder(UNTRAINED + checkpoint)
    lines = [f"{'':24}{'precision@5':>12}{'participation ratio':>21}"]
    for name, embed in (("checkpoint", trained.embed), ("the same, untrained", untrained.embed), ("pixels", shrink)):
        rows = embed(candidates)
        nearest, _ = exact_neighbours(embed(queries), rows, 5)
        precision = label_precision(nearest, labels_of(candidates), labels_of(queries))
        shown = "no labels" if precision is None else f"{precision:.3f}"
        lines.append(f"{name:24}{shown:>12}{participation_ratio(rows):21.1f}")
    return "\n".join(lines)
