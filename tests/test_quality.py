"""What the pieces are worth together: the built-in checkpoint on drawn leaves, real checkpoints on real ones."""

import numpy as np
import pytest

from imgsim import candidates_and_queries, load_encoder, load_images
from imgsim.evaluation import exact_neighbours, label_precision
from imgsim.extras.runs.assess import assess
from imgsim.images import labels_of


@pytest.mark.slow
def test_builtin_checkpoint_carries_the_classes_and_more():
    rows = [line.rsplit(maxsplit=2) for line in assess().splitlines()[1:]]
    precision = {name.strip(): float(value) for name, value, _ in rows}
    ratio = {name.strip(): float(value) for name, _, value in rows}
    assert precision["checkpoint"] >= 0.9 and ratio["checkpoint"] >= 10
    assert precision["the same, untrained"] <= 0.6 and precision["pixels"] <= 0.6


@pytest.mark.slow
@pytest.mark.parametrize(("checkpoint", "published"), [("mobilenet-v1-025", 0.745), ("mobilenet-v1-075", 0.839)])
def test_real_checkpoints_reach_their_known_precision_on_real_beans(real, checkpoint, published):
    candidates, queries = candidates_and_queries(load_images(real / "beans"))
    encoder = load_encoder(real / checkpoint)
    nearest, _ = exact_neighbours(encoder.embed(queries), encoder.embed(candidates), 5)
    precision = label_precision(nearest, labels_of(candidates), labels_of(queries))
    assert precision == pytest.approx(published, abs=0.01)
    assert len(np.unique(labels_of(candidates))) == 3
