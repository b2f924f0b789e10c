"""What the tests share: small images, tiny checkpoints, real data where there is some."""

import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

settings.register_profile(
    "imgsim",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],  # machines may be slow
)
settings.load_profile("imgsim")

CLASSES = {"blue": (0.2, 0.3, 1), "green": (0.3, 1, 0.2), "red": (1, 0.2, 0.3)}
SPLITS = {"train": 8, "validation": 2, "test": 3}  # images a class


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Mark tests by their folder: `notebooks` and `extras`."""
    for item in items:
        folders = item.path.relative_to(config.rootpath).parts[:-1]
        for folder, marker in (("notebooks", "notebook"), ("extras", "extra")):
            if folder in folders:
                item.add_marker(marker)


@pytest.fixture(scope="session")
def draw():
    """A function that draws colour noise, an image of 40 x 30 pixels, from a seed."""

    def noise(seed, tint=(1, 1, 1)):
        grid = np.random.default_rng(seed).uniform(0, 255, (5, 6, 3)) * tint
        return Image.fromarray(grid.astype(np.uint8)).resize((40, 30), Image.BICUBIC)

    return noise


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory, draw):
    """A folder <split>/<class>/<name>.png of noise in three tints: 24, 6 and 9 images."""
    folder = tmp_path_factory.mktemp("images")
    for split, count in SPLITS.items():
        for label, (name, tint) in enumerate(CLASSES.items()):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                draw([list(SPLITS).index(split), label, i], tint).save(folder / split / name / f"{name}.{i}.png")
    return folder


@pytest.fixture(scope="session")
def images(image_folder):
    """The image folder as a dataset; nobody changes it."""
    from imgsim import load_images

    return load_images(image_folder)


@pytest.fixture(scope="session")
def save_vit():
    """A function that saves a tiny ViT classifier with random weights and its image processor.

    A classifier has no pooler: transformers draws one at random whenever it loads it as a bare model.
    """
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    def save(folder, seed=0):
        torch.manual_seed(seed)
        # initializer_range: with the usual .02 a random ViT maps all images to nearly the same embedding.
        size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        config = ViTConfig(**size, image_size=32, patch_size=8, initializer_range=0.3)
        ViTForImageClassification(config).save_pretrained(folder)
        ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, save_vit):
    """The folder of a tiny ViT; nobody changes it."""
    return save_vit(tmp_path_factory.mktemp("checkpoints") / "vit")


@pytest.fixture(scope="session")
def encoder(checkpoint):
    """The tiny ViT as an encoder, on the CPU; nobody changes it."""
    from imgsim import load_encoder

    return load_encoder(checkpoint, device="cpu")


@pytest.fixture(scope="session")
def clear():
    """A function that marks the vectors (n, d) that are on no plane of a projection.

    Sums are rounded differently on another processor, or for one row and many; only these have the same codes anyway.
    """

    def mark(projection, vectors):
        return np.abs(projection.margins(vectors)).min(axis=(1, 2)) > 1e-5

    return mark


@pytest.fixture
def refused():
    """A context in which something has to be refused with one sentence, which holds what was wrong."""

    @contextmanager
    def expect(naming="", error=ValueError):
        with pytest.raises(error) as caught:
            yield
        message = str(caught.value)
        assert type(caught.value) is error and "\n" not in message and " " in message
        assert str(naming) in message

    return expect


@pytest.fixture(scope="session")
def real():
    """The folder of real photographs, checkpoints and embeddings, where the environment names one."""
    folder = os.environ.get("IMGSIM_REAL_DATA")
    if not folder:
        pytest.skip("IMGSIM_REAL_DATA names no folder of real photographs and checkpoints")
    return Path(folder)


@pytest.fixture
def in_this_process(monkeypatch):
    """Papermill executes notebooks in the test's own process: there is no kernel that has to load torch again."""
    from IPython.core.inputtransformer2 import TransformerManager
    from papermill.engines import Engine, papermill_engines

    class InThisProcess(Engine):
        @classmethod
        def execute_managed_notebook(cls, manager, *args, **settings):
            names = {}
            for cell in manager.nb.cells:
                if cell.cell_type == "code":
                    source = cell.source.replace('assert "torch" not in sys.modules', "")  # here it is
                    exec(TransformerManager().transform_cell(source), names)

    monkeypatch.setitem(papermill_engines._engines, None, InThisProcess)
