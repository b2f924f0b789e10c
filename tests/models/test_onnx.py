"""Encoders as ONNX files: they agree with torch, at any batch size, and are refused where they are not whole."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch

from imgsim import BuildLSHTable, load_encoder
from imgsim.extras.cli import main
from imgsim.models.onnx import SETTINGS, OnnxModel, export_onnx

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
pytestmark = pytest.mark.extra

ALIKE = 1e-4


@pytest.fixture(scope="module")
def exported(tmp_path_factory, checkpoint):
    """The tiny ViT as an ONNX file, written by the command line; nobody changes it."""
    file = tmp_path_factory.mktemp("onnx") / "vit.onnx"
    assert main(["export", str(checkpoint), str(file)]) == 0
    return file


@pytest.fixture
def copy(exported, tmp_path):
    """A copy of the ONNX file that a test may change."""
    return shutil.copy(exported, tmp_path / exported.name)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_an_onnx_file_gives_the_embeddings_of_its_checkpoint(batch_size, exported, encoder, images):
    model = load_encoder(str(exported))
    rows = model.embed(images["test"]["image"], batch_size)
    np.testing.assert_allclose(rows, encoder.embed(images["test"]["image"]), atol=ALIKE)
    assert (model.dim, model.pooling, model.precision) == (32, "rows", "float32") and model.digest != encoder.digest


def test_export_says_what_it_wrote_and_leaves_one_file(checkpoint, tmp_path, capfd):
    assert main(["export", str(checkpoint), str(tmp_path / "model.onnx")]) == 0
    out, err = capfd.readouterr()
    assert "32 numbers" in out and out.count("\n") == 1 and "Error" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx"]


def test_a_convolutional_network_is_exported_too(images, tmp_path):
    from transformers import ConvNextConfig, ConvNextModel, ViTImageProcessorPil

    torch.manual_seed(0)
    model = ConvNextModel(ConvNextConfig(hidden_sizes=[8, 12], depths=[1, 1], num_stages=2))
    encoder = load_encoder(model, "cpu", processor=ViTImageProcessorPil(size={"height": 64, "width": 64}))
    export_onnx(encoder, tmp_path / "model.onnx")
    rows = load_encoder(tmp_path / "model.onnx").embed(images["test"]["image"])
    np.testing.assert_allclose(rows, encoder.embed(images["test"]["image"]), atol=ALIKE)


def test_an_index_takes_an_onnx_file_as_its_model(exported, images, tmp_path):
    index = BuildLSHTable(str(exported)).build(images["train"])
    index.save(tmp_path / "index")
    matches = BuildLSHTable.load(tmp_path / "index", str(exported)).query(images["train"][3]["image"], 1, verbose=False)
    assert matches.ids[0] == 3 and matches.cosine[0] > 0.999


def test_another_file_is_another_encoder_and_a_pickled_one_loads_again(exported, copy, save_vit, tmp_path):
    first = load_encoder(exported)
    assert pickle.loads(pickle.dumps(first)).digest == first.digest == load_encoder(copy).digest
    export_onnx(load_encoder(save_vit(tmp_path / "other", seed=1), "cpu"), copy)
    assert load_encoder(copy).digest != first.digest


def test_an_onnx_file_of_ones_own_needs_its_processor(copy, encoder, images, refused):
    set_metadata(copy)
    with refused(f"{str(copy)!r} does not say how images are prepared (imgsim export did not write it)"):
        load_encoder(copy)
    rows = load_encoder(copy, processor=encoder.processor).embed(images["test"]["image"])
    np.testing.assert_allclose(rows, encoder.embed(images["test"]["image"]), atol=ALIKE)


def set_metadata(file, **metadata):
    """Replace what an ONNX file says of itself."""
    model = onnx.load(file)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, file)


def damage(file, kind):
    if kind == "missing":
        file.unlink()
    elif kind == "cut short":
        file.write_bytes(file.read_bytes()[:-100])
    elif kind == "one changed byte":
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif kind == "no settings":
        set_metadata(file)
    elif kind == "broken settings":
        set_metadata(file, **{SETTINGS: "{"})
    elif kind == "settings of a later version":
        set_metadata(file, **{SETTINGS: json.dumps({"format": 99})})


@pytest.mark.parametrize(
    "kind",
    ["missing", "cut short", "one changed byte", "no settings", "broken settings", "settings of a later version"],
)
def test_a_file_that_is_not_whole_is_refused_before_anything_runs(kind, copy, image_folder, refused, capsys):
    damage(copy, kind)
    with refused(copy.name):
        load_encoder(copy)
    out = copy.parent / "out"
    options = ["run", "--dataset", str(image_folder), "--checkpoint", str(copy), "--output", str(out)]
    assert main(options) == 1 and not out.exists()
    assert copy.name in capsys.readouterr().err


def test_a_file_that_is_no_onnx_model_is_refused(tmp_path, encoder, refused):
    (tmp_path / "text.onnx").write_text("text")
    with refused("text.onnx"):
        load_encoder(tmp_path / "text.onnx", processor=encoder.processor)


def test_an_onnx_file_has_one_precision_and_one_device(exported, image_folder, refused, capsys):
    for dtype in ("bfloat16", torch.bfloat16):
        with refused("bfloat16"):
            load_encoder(exported, dtype=dtype)
    with refused("cuda"):
        load_encoder(exported, device="cuda")
    options = ["run", "--dataset", str(image_folder), "--checkpoint", str(exported), "--dtype", "bfloat16"]
    assert main(options) == 1 and "ONNX" in capsys.readouterr().err


def test_what_cannot_be_exported_is_refused_and_nothing_is_written(exported, checkpoint, encoder, tmp_path, refused):
    with refused("model.txt"):
        export_onnx(encoder, tmp_path / "model.txt")
    with refused("nowhere"):
        export_onnx(encoder, tmp_path / "nowhere" / "model.onnx")
    for other in (load_encoder(exported), load_encoder(checkpoint, "cpu", "bfloat16")):
        with refused("float32"):
            export_onnx(other, tmp_path / "model.onnx")

    class Moody(torch.nn.Module):  # what torch.export cannot follow
        def forward(self, pixels):
            return pixels.flatten(1)[:, :4] * (2 if pixels.sum().item() > 0 else 1)

    with refused("Moody"):
        export_onnx(load_encoder(Moody(), "cpu", processor=encoder.processor), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_without_onnx_runtime_a_sentence_says_what_to_install(exported, monkeypatch, refused):
    monkeypatch.setattr("imgsim.sources.errors.find_spec", lambda name: None)
    with refused("pip install onnxruntime"):
        OnnxModel(exported)
