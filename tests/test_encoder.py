"""Checkpoints as functions from images to embeddings, with tiny models of random weights."""

import json
import logging
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import dill
import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from datasets import Dataset, Features, Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    BitImageProcessorPil,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    ViTModel,
)

from imgsim import load_encoder
from imgsim.encoder import Encoder
from imgsim.models.batches import cached_embeddings

ALIKE = 1e-5  # float32 sums are rounded differently in batches of another size; embeddings are about 1


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    """An empty cache folder for one test."""
    monkeypatch.setenv("IMGSIM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "embeddings"


@pytest.fixture
def copy(checkpoint, tmp_path):
    """A copy of the tiny ViT's folder that a test may change."""
    return shutil.copytree(checkpoint, tmp_path / "copy")


@pytest.fixture
def passes(monkeypatch):
    """The batches that went through any model in this test, by their size."""
    sizes, forward = [], Encoder.forward

    def count(encoder, pixels):
        sizes.append(len(pixels))
        return forward(encoder, pixels)

    monkeypatch.setattr(Encoder, "forward", count)
    return sizes


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})


def change_settings(folder, name, **values):
    settings = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(settings | values))


def byte_backed(paths):
    rows = [{"bytes": path.read_bytes(), "path": None} for path in paths]
    return Dataset.from_dict({"image": rows}, Features({"image": Image()}))


def test_embeddings_are_float32_rows(encoder, images):
    rows = encoder.embed(images["test"]["image"])
    assert rows.shape == (9, 32) and rows.dtype == np.float32 and encoder.dim == 32
    assert np.isfinite(rows).all() and np.unique(rows, axis=0).shape == rows.shape


def test_nothing_to_embed_gives_no_rows(encoder, images):
    assert encoder.embed([]).shape == (0, 32)
    for _ in range(2):  # the second time from the cache, if from anywhere
        assert encoder.embed(images["test"].select([])).shape == (0, 32)


def test_a_vit_is_pooled_by_its_class_token(checkpoint, encoder, images):
    model = AutoModel.from_pretrained(checkpoint).eval()
    pixels = encoder.prepare(images["test"]["image"])
    with torch.inference_mode():
        outputs = model(pixels)
    rows = encoder.embed(images["test"]["image"])
    np.testing.assert_allclose(rows, outputs.last_hidden_state[:, 0].numpy(), atol=ALIKE)
    assert np.abs(rows - outputs.pooler_output.numpy()).max() > 0.1


def test_two_loads_of_a_vit_give_the_same_embeddings(checkpoint, encoder, images):
    again = load_encoder(str(checkpoint), device="cpu")
    poolers = [one.model.pooler.dense.weight for one in (encoder, again)]
    assert not torch.equal(*poolers)  # drawn at random at every load, so this test can fail
    np.testing.assert_allclose(again.embed(images["test"]["image"]), encoder.embed(images["test"]["image"]), atol=ALIKE)


def test_a_classifier_loads_without_a_word(checkpoint, encoder, images, capfd, caplog):
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)  # its own handler may write to a stream that was there before capfd
    try:
        load_encoder(checkpoint, device="cpu")
    finally:
        logger.removeHandler(caplog.handler)
    assert capfd.readouterr() == ("", "") and not caplog.records


def test_loading_leaves_the_level_of_logging_as_it_was(checkpoint):
    before = transformers.logging.get_verbosity()
    load_encoder(checkpoint, device="cpu")
    assert transformers.logging.get_verbosity() == before


def test_a_classifier_given_as_a_module_is_embedded_by_its_backbone(checkpoint, encoder, images):
    model = ViTForImageClassification.from_pretrained(checkpoint)
    rows = load_encoder(model, "cpu", processor=encoder.processor).embed(images["test"]["image"])
    np.testing.assert_allclose(rows, encoder.embed(images["test"]["image"]), atol=ALIKE)


@pytest.mark.parametrize("batch_size", [1, 4, 9, 100])
def test_embeddings_do_not_depend_on_the_batch_size(batch_size, encoder, images):
    sources = images["test"]["image"]
    np.testing.assert_allclose(encoder.embed(sources, batch_size), encoder.embed(sources, 5), atol=ALIKE)


def test_embeddings_do_not_depend_on_the_order(encoder, images):
    sources, order = list(images["test"]["image"]), np.random.default_rng(0).permutation(9)
    shuffled = encoder.embed([sources[i] for i in order], 4)
    np.testing.assert_allclose(shuffled, encoder.embed(sources, 4)[order], atol=ALIKE)


def test_paths_bytes_and_pictures_give_the_same_embeddings(encoder, images):
    paths = images["test"]["image_file_path"]
    expected = encoder.embed(images["test"]["image"])
    contents = [Path(path).read_bytes() for path in paths]
    arrays = [np.asarray(image) for image in images["test"]["image"]]
    for sources in (paths, contents, arrays):
        np.testing.assert_array_equal(encoder.embed(list(sources)), expected)


def test_a_module_needs_no_processor_where_it_knows_its_folder(checkpoint, encoder, images):
    rows = load_encoder(AutoModel.from_pretrained(checkpoint), "cpu").embed(images["test"]["image"])
    np.testing.assert_allclose(rows, encoder.embed(images["test"]["image"]), atol=ALIKE)


def test_a_module_lives_on_as_it_was(checkpoint, images, own_cache):
    module = AutoModel.from_pretrained(checkpoint).bfloat16().train()
    before = {name: weights.clone() for name, weights in module.state_dict().items()}
    first = load_encoder(module, dtype="float32")
    rows = first.embed(images["test"])
    module.train()
    load_encoder(module, dtype="bfloat16").embed(images["test"])
    assert module.training and module.dtype == torch.bfloat16
    assert all(torch.equal(weights, before[name]) for name, weights in module.state_dict().items())
    np.testing.assert_array_equal(first.embed(images["test"]), rows)


@pytest.mark.parametrize("change", ["a step", "other weights", "a statistic"])
def test_embeddings_follow_a_module_in_training(change, checkpoint, images, own_cache):
    module = AutoModel.from_pretrained(checkpoint)
    module.register_buffer("statistic", torch.zeros(1))
    encoder = load_encoder(module)
    before, digest = encoder.embed(images["test"]), encoder.digest
    with torch.no_grad():
        if change == "a step":
            for weights in module.parameters():
                weights.add_(torch.randn_like(weights))
        elif change == "a statistic":
            module.statistic.fill_(1)
        else:
            module.load_state_dict({name: -weights for name, weights in module.state_dict().items()})
    now = encoder.embed(images["test"])
    assert encoder.digest != digest and (np.abs(now - before).max() > 0.1) == (change != "a statistic")
    np.testing.assert_array_equal(now, load_encoder(module).embed(images["test"]))


def test_a_processor_that_keeps_the_shape_is_refused(refused):
    model = Dinov2Model(Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, patch_size=7))
    with refused("one size"):
        load_encoder(model, processor=BitImageProcessorPil(size={"shortest_edge": 28}, do_center_crop=False))


@pytest.mark.parametrize("one", ["photo.jpg", Path("photo.jpg"), b"bytes", PIL.Image.new("RGB", (9, 9))])
def test_one_image_is_no_sequence(one, encoder, refused):
    with refused("embed([image])"):
        encoder.embed(one)


def test_a_module_without_a_processor_is_refused(refused):
    with refused("processor"):
        load_encoder(torch.nn.Linear(2, 2))
    with refused("processor"):
        load_encoder(ViTModel(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=32)))


def test_a_module_from_a_folder_without_processor_settings_is_refused(copy, refused):
    model = AutoModel.from_pretrained(copy)
    (copy / "preprocessor_config.json").unlink()
    with refused(copy):
        load_encoder(model)


def test_a_module_of_ones_own_may_give_its_rows_as_they_are(encoder, images):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 5))
    own = load_encoder(model, "cpu", processor=encoder.processor)
    assert own.dim == 5 and own.embed(images["test"]["image"]).shape == (9, 5)


@pytest.mark.parametrize("wrap", [torch.nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_a_wrapped_module_is_pooled_as_it_is_alone(wrap, checkpoint, encoder, images):
    wrapped = load_encoder(wrap(AutoModel.from_pretrained(checkpoint)), "cpu", processor=encoder.processor)
    assert wrapped.pooling == encoder.pooling
    sources = images["test"]["image"]
    np.testing.assert_allclose(wrapped.embed(sources), encoder.embed(sources), atol=1e-5)


def test_a_classifier_on_several_devices_is_embedded_without_its_head(copy, encoder, images):
    model = torch.nn.DataParallel(AutoModelForImageClassification.from_pretrained(copy))
    wrapped, sources = load_encoder(model, "cpu", processor=encoder.processor), images["test"]["image"]
    np.testing.assert_allclose(wrapped.embed(sources), encoder.embed(sources), atol=1e-5)


def test_a_module_that_cannot_embed_is_refused_with_the_reason(checkpoint, encoder, refused):
    broken = AutoModel.from_pretrained(checkpoint)
    broken.layernorm.weight.data.fill_(torch.nan)
    with refused("not finite"):
        load_encoder(broken, "cpu", processor=encoder.processor)
    with refused("no weights yet"):
        load_encoder(AutoModel.from_pretrained(checkpoint).to("meta"), "cpu", processor=encoder.processor)
    with refused("pixel_values"):
        load_encoder(broken, "cpu", processor=lambda images, return_tensors: {"input_values": torch.zeros(2, 9)})
    with refused("no device 'gpu'"):
        load_encoder(checkpoint, "gpu")


def test_a_model_without_a_pooled_output_is_refused(encoder, refused):
    with refused("Conv2d"):
        load_encoder(torch.nn.Conv2d(3, 4, 3), "cpu", processor=encoder.processor)


def test_the_digest_is_that_of_the_files(copy, encoder):
    assert load_encoder(copy, device="cpu").digest == encoder.digest  # wherever they lie, whatever the random pooler
    assert load_encoder(AutoModel.from_pretrained(copy), "cpu").digest == encoder.digest


def test_the_digest_changes_with_one_weight(copy, encoder):
    def change(weights):
        weights["vit.embeddings.cls_token"][0, 0, 0] += 1e-3
        return weights

    change_weights(copy, change)
    assert load_encoder(copy, device="cpu").digest != encoder.digest


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("preprocessor_config.json", {"image_mean": [0.4, 0.5, 0.5]}),
        ("preprocessor_config.json", {"resample": 3}),
        ("config.json", {"hidden_act": "relu"}),
    ],
)
def test_the_digest_changes_with_a_setting(file, change, copy, encoder):
    change_settings(copy, file, **change)
    assert load_encoder(copy, device="cpu").digest != encoder.digest


def test_a_data_set_is_embedded_once(checkpoint, images, own_cache, passes):
    first, second = (load_encoder(checkpoint, device="cpu") for _ in range(2))
    passes.clear()  # an encoder finds its dimension by a pass
    rows = first.embed(images["test"])
    assert sum(passes) == 9 and len(list(own_cache.iterdir())) == 1
    np.testing.assert_array_equal(second.embed(images["test"]), rows)
    assert sum(passes) == 9 and second.images_per_second == first.images_per_second > 0


def test_a_cached_data_set_equals_its_images(encoder, images, own_cache):
    rows = encoder.embed(images["test"]["image"])
    for _ in range(2):
        np.testing.assert_allclose(encoder.embed(images["test"]), rows, atol=ALIKE)


def test_a_changed_image_or_order_is_embedded_again(encoder, images, own_cache, passes, draw, tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        draw(i).save(path)
    before = encoder.embed(byte_backed(paths))
    draw(7).save(paths[1])
    after = encoder.embed(byte_backed(paths))
    assert sum(passes) == 6 and (np.abs(after - before).max(axis=1) > 0.01).tolist() == [False, True, False]
    np.testing.assert_allclose(encoder.embed(byte_backed(paths[::-1])), after[::-1], atol=ALIKE)


def test_another_checkpoint_is_embedded_again(checkpoint, images, own_cache, save_vit, tmp_path):
    encoders = [load_encoder(folder, device="cpu") for folder in (checkpoint, save_vit(tmp_path / "other", seed=1))]
    rows = [encoder.embed(images["test"]) for encoder in encoders]
    assert np.abs(rows[0] - rows[1]).max() > 0.1
    for encoder, expected in zip(encoders, rows, strict=True):
        np.testing.assert_array_equal(encoder.embed(images["test"]), expected)


def test_another_precision_is_embedded_again(checkpoint, encoder, images, own_cache):
    exact = encoder.embed(images["test"])
    coarse = load_encoder(checkpoint, "cpu", torch.bfloat16).embed(images["test"])
    assert coarse.dtype == np.float32 and 0 < np.abs(exact - coarse).max() < 0.5


@pytest.mark.parametrize("keep", [0, 1, 20, -1, -30], ids="keep {} bytes".format)
def test_a_cache_file_cut_short_is_made_again(keep, encoder, images, own_cache):
    rows = encoder.embed(images["test"])
    (file,) = own_cache.iterdir()
    file.write_bytes(file.read_bytes()[:keep])
    np.testing.assert_array_equal(encoder.embed(images["test"]), rows)
    np.testing.assert_array_equal(np.load(file)["embeddings"], rows)


@pytest.mark.parametrize("mark", [b"text", b"PK\1\2", b"\x93NUMPY"])
def test_a_damaged_cache_file_is_made_again(mark, encoder, images, own_cache):
    rows = encoder.embed(images["test"])
    (file,) = own_cache.iterdir()
    content = file.read_bytes()
    at = 0 if mark == b"text" else content.index(mark) + len(mark) + 4  # the start, or the bytes after a mark
    file.write_bytes(content[:at] + b"\xff" * 8 + content[at + 8 :])
    np.testing.assert_array_equal(encoder.embed(images["test"]), rows)


def test_a_cache_file_with_any_byte_changed_is_made_again(own_cache):
    rows = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    make = lambda: (rows, 1.0)  # noqa: E731
    cached_embeddings("key", make)
    file = next(own_cache.iterdir())
    whole = file.read_bytes()
    for place in range(0, len(whole), 3):
        for value in (0, 1, 255):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ value]) + whole[place + 1 :])
            np.testing.assert_array_equal(cached_embeddings("key", make)[0], rows)


def test_no_pickle_is_read_from_the_cache(encoder, images, own_cache):
    rows = encoder.embed(images["test"])
    (file,) = own_cache.iterdir()
    np.savez(file, embeddings=np.array([{"a": 1}], dtype=object), images_per_second=1.0)
    np.testing.assert_array_equal(encoder.embed(images["test"]), rows)


@pytest.mark.parametrize("pickler", [pickle, dill])
def test_a_pickled_encoder_is_small_and_loads_again(pickler, encoder, images):
    content = pickler.dumps(encoder)
    again = pickler.loads(content)
    assert len(content) < 10_000 and again.digest == encoder.digest and again.dim == encoder.dim
    np.testing.assert_allclose(again.embed(images["test"]["image"]), encoder.embed(images["test"]["image"]), atol=ALIKE)


def test_a_pickled_encoder_keeps_its_processor(checkpoint, images):
    processor = ViTImageProcessorPil(size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3])
    encoder = load_encoder(checkpoint, "cpu", processor=processor)
    again = pickle.loads(pickle.dumps(encoder))
    np.testing.assert_allclose(again.embed(images["test"]["image"]), encoder.embed(images["test"]["image"]), atol=ALIKE)


def test_an_encoder_of_a_module_can_be_pickled(encoder, images):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 5))
    own = load_encoder(model, "cpu", processor=encoder.processor)
    again = pickle.loads(pickle.dumps(own))
    np.testing.assert_allclose(again.embed(images["test"]["image"]), own.embed(images["test"]["image"]), atol=ALIKE)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_a_folder_without_one_of_the_files_is_refused(missing, copy, refused):
    (copy / missing).unlink()
    with refused(copy):
        load_encoder(copy)


@pytest.mark.parametrize("folder", ["nowhere", "empty"])
def test_a_folder_without_a_model_is_refused(folder, tmp_path, refused):
    (tmp_path / "empty").mkdir()
    with refused(tmp_path / folder):
        load_encoder(tmp_path / folder)


def test_pickled_weights_are_refused(copy, refused):
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with refused(copy):
        load_encoder(copy)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "{"),
        ("config.json", '{"model_type": "nonsense"}'),
        ("model.safetensors", "text"),
        ("preprocessor_config.json", "{"),
    ],
)
def test_a_broken_checkpoint_is_refused(file, content, copy, refused):
    (copy / file).write_text(content)
    with refused(copy):
        load_encoder(copy)


def test_weights_of_another_shape_are_refused(copy, refused):
    change_weights(copy, lambda weights: weights | {"vit.embeddings.cls_token": torch.zeros(1, 1, 16)})
    with refused(copy):
        load_encoder(copy)


@pytest.mark.parametrize("lost", ["vit.layernorm.weight", "vit."])
def test_a_backbone_is_never_filled_up_with_random_weights(lost, copy, refused):
    change_weights(copy, lambda weights: {name: value for name, value in weights.items() if not name.startswith(lost)})
    with refused(copy):
        load_encoder(copy)


@pytest.mark.parametrize(("name", "dim"), [("mobilenet-v1-025", 256), ("mobilenet-v1-075", 768)])
def test_real_checkpoints(name, dim, real):
    encoder = load_encoder(real / name, device="cpu")
    photographs = sorted((real / "beans" / "test").rglob("*.jpg"))[::20]
    rows = encoder.embed(photographs)
    assert rows.shape == (len(photographs), dim) and encoder.dim == dim
    np.testing.assert_allclose(encoder.embed(photographs, 2), rows, atol=1e-4)  # values up to 6, many layers


def test_precision_is_known_by_name(checkpoint, encoder, refused):
    assert encoder.precision == "float32" and encoder.dtype == torch.float32
    by_name, as_torch_has_it = (load_encoder(checkpoint, "cpu", dtype) for dtype in ("bfloat16", torch.bfloat16))
    assert by_name.precision == as_torch_has_it.precision == "bfloat16"
    for dtype in ("float16", torch.float16):
        with refused("float16 is for GPUs"):
            load_encoder(checkpoint, "cpu", dtype)
    for dtype in ("float64", "half", torch.int8, 32):
        with refused("float32, bfloat16, float16"):
            load_encoder(checkpoint, "cpu", dtype)


def test_the_digest_knows_the_precision_even_where_it_rounds_no_weight(copy, images, own_cache):
    change_weights(copy, lambda weights: {name: value.bfloat16().float() for name, value in weights.items()})
    exact, coarse = (load_encoder(copy, "cpu", dtype) for dtype in ("float32", "bfloat16"))
    assert exact.digest != coarse.digest
    assert np.abs(exact.embed(images["test"]) - coarse.embed(images["test"])).max() > 0


def test_another_pooling_is_embedded_again(checkpoint, encoder, images, own_cache):
    rows, mean = encoder.embed(images["test"]), load_encoder(checkpoint, "cpu", pooling="mean").embed(images["test"])
    assert np.abs(rows - mean).max() > 0.1 and len(list(own_cache.iterdir())) == 2


def test_one_changed_weight_or_image_is_embedded_again_and_nothing_else(
    copy, images, own_cache, passes, draw, tmp_path
):
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        draw(i).save(path)

    def embedded() -> int:
        """How many images went through the model."""
        encoder = load_encoder(copy, device="cpu")
        before = sum(passes)
        encoder.embed(byte_backed(paths))
        return sum(passes) - before

    assert [embedded(), embedded()] == [3, 0]
    change_weights(copy, lambda weights: weights | {"vit.layernorm.bias": weights["vit.layernorm.bias"] + 1e-3})
    assert [embedded(), embedded()] == [3, 0]
    draw(7).save(paths[1])
    assert [embedded(), embedded()] == [3, 0]


OTHER = """
import sys
from pathlib import Path

from imgsim import load_encoder, load_images

checkpoint, folder, cache = sys.argv[1:]
images, encoder = load_images(folder)["test"], load_encoder(checkpoint, "cpu")
print("ready", flush=True)
for _ in range(30):
    encoder.embed(images)
    for file in Path(cache).glob("[!.]*"):
        file.unlink(missing_ok=True)
"""


@pytest.mark.slow
def test_two_processes_may_use_the_cache_at_once(checkpoint, image_folder, encoder, images, own_cache):
    expected = encoder.embed(images["test"]["image"])
    command = [sys.executable, "-c", OTHER, str(checkpoint), str(image_folder), own_cache]
    other = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"ready\n"
    while other.poll() is None:  # while the other one writes and clears away the same file
        np.testing.assert_allclose(encoder.embed(images["test"]), expected, atol=ALIKE)
    assert other.returncode == 0 and not list(own_cache.glob(".*"))


def test_what_is_passed_at_a_time_suits_the_device(encoder):
    assert [encoder.micro_batch(size) for size in (1, 8, 48)] == [1, 8, 8]


def test_convolutions_run_on_colours_side_by_side(encoder):
    torch.manual_seed(0)
    model = transformers.ResNetModel(
        transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    )
    convolutional = load_encoder(model, "cpu", processor=encoder.processor)
    pixels = torch.zeros(2, 3, 32, 32)
    assert convolutional.to_device(pixels).is_contiguous(memory_format=torch.channels_last)
    assert encoder.to_device(pixels).is_contiguous()
