"""The contract of pooling, family by family, on tiny models of random weights; with -s it prints its table."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import AutoModel, ViTImageProcessorPil

from imgsim import load_encoder
from imgsim.models.pooling import POOLINGS

ALIKE = 1e-4
TOKENS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64, "patch_size": 16}
VIT = TOKENS | {"intermediate_size": 32, "initializer_range": 0.3}
TOWER = TOKENS | {"intermediate_size": 32}
TEXT = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
STAGES = {"hidden_sizes": [8, 12], "depths": [1, 1], "num_stages": 2}
BLOCKS = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
WINDOWS = {"image_size": 64, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
DECODER = {f"decoder_{name}": VIT[name] for name in ("hidden_size", "num_attention_heads", "intermediate_size")}


def first_token(model, outputs):
    return outputs.last_hidden_state[:, 0]


def mean_of_tokens(model, outputs):
    return outputs.last_hidden_state.mean(1)


def mean_of_maps(model, outputs):
    return outputs.last_hidden_state.mean((2, 3))


def normalised_mean_of_maps(model, outputs):
    return model.layernorm(outputs.last_hidden_state.mean((2, 3)))


def normalised_mean_of_patches(model, outputs):
    return model.pooler.layernorm(outputs.last_hidden_state[:, 1:].mean(1))


def normalised_first_token(model, outputs):
    return model.post_layernorm(outputs.last_hidden_state[:, 0])


def projected(model, outputs):
    return model.visual_projection(model.vision_model.post_layernorm(outputs.last_hidden_state[:, 0]))


# Family: the class that saves the checkpoint, its settings, the pooling, the embeddings' length, and what the
# architecture's own definition makes of the bare model's outputs.
FAMILIES = {
    "ViT": ("ViTForImageClassification", VIT, "class token", 32, first_token),
    "DeiT": ("DeiTForImageClassification", VIT, "class token", 32, first_token),
    "BEiT": ("BeitForImageClassification", VIT, "pooler", 32, normalised_mean_of_patches),
    "DINOv2": ("Dinov2Model", TOKENS, "pooler", 32, first_token),
    "DINOv2 with registers": ("Dinov2WithRegistersModel", TOKENS, "pooler", 32, first_token),
    "DINOv3 ViT": ("DINOv3ViTModel", VIT, "pooler", 32, first_token),
    "DINOv3 ConvNeXT": ("DINOv3ConvNextModel", {"hidden_sizes": [8] * 3 + [12]}, "pooler", 12, first_token),
    "ViTMAE": (
        "ViTMAEForPreTraining",
        VIT | DECODER | {"decoder_num_hidden_layers": 1},
        "class token",
        32,
        first_token,
    ),
    "ViTMSN": ("ViTMSNModel", VIT, "class token", 32, first_token),
    "I-JEPA": ("IJepaModel", VIT, "mean", 32, mean_of_tokens),
    "Swin": ("SwinForImageClassification", WINDOWS, "pooler", 16, mean_of_tokens),
    "Swinv2": ("Swinv2ForImageClassification", WINDOWS, "pooler", 16, mean_of_tokens),
    "ConvNeXT": ("ConvNextForImageClassification", STAGES, "pooler", 12, normalised_mean_of_maps),
    "ConvNeXTV2": ("ConvNextV2ForImageClassification", STAGES, "pooler", 12, normalised_mean_of_maps),
    "RegNet": ("RegNetForImageClassification", BLOCKS | {"groups_width": 8}, "pooler", 16, mean_of_maps),
    "ResNet": ("ResNetForImageClassification", BLOCKS | {"layer_type": "basic"}, "pooler", 16, mean_of_maps),
    "MobileNetV1": ("MobileNetV1ForImageClassification", {"depth_multiplier": 0.25}, "pooler", 256, mean_of_maps),
    "MobileNetV2": ("MobileNetV2ForImageClassification", {"depth_multiplier": 0.25}, "pooler", 1280, mean_of_maps),
    "EfficientNet": (
        "EfficientNetForImageClassification",
        {"width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 320},
        "pooler",
        320,
        mean_of_maps,
    ),
    "SegFormer": (
        "SegformerForImageClassification",
        {"hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4, "num_attention_heads": [1, 1, 2, 2]},
        "mean",
        16,
        mean_of_maps,
    ),
    "CLIP": (
        "CLIPModel",
        {"text_config": TEXT, "vision_config": TOWER, "projection_dim": 20},
        "joint space",
        20,
        projected,
    ),
    "CLIP's vision tower": ("CLIPVisionModel", TOWER, "pooler", 32, normalised_first_token),
    "SigLIP": (
        "SiglipModel",
        {"text_config": TEXT, "vision_config": TOWER},
        "joint space",
        32,
        lambda model, outputs: model.vision_model.head(outputs.last_hidden_state),
    ),
    "SigLIP's vision tower": (
        "SiglipVisionModel",
        TOWER,
        "pooler",
        32,
        lambda model, outputs: model.head(outputs.last_hidden_state),
    ),
}


@pytest.fixture(scope="module")
def save(tmp_path_factory):
    """A function that saves a tiny model of random weights with an image processor, once for each of its kinds."""
    folders = {}

    def save_once(kind, settings):
        key = kind + json.dumps(settings)
        if key not in folders:
            torch.manual_seed(0)
            maker = getattr(transformers, kind)
            model = maker(maker.config_class(**settings))
            for name, values in model.state_dict().items():  # as after training: no norm is the identity any more
                if values.ndim == 4:
                    torch.nn.init.kaiming_normal_(values)
                elif "norm" in name and "running" not in name and values.is_floating_point():
                    values.add_(0.3 * torch.randn_like(values))
            norms = [part for part in model.modules() if isinstance(part, torch.nn.BatchNorm2d)]
            for part in norms:
                part.momentum = 1.0
            if norms:  # one look at noise, so that signals reach the last layer
                model.train()(torch.randn(4, 3, 64, 64))
            folders[key] = tmp_path_factory.mktemp("families")
            model.save_pretrained(folders[key])
            ViTImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folders[key])
        return folders[key]

    return save_once


@pytest.fixture(scope="module")
def table():
    """The contract's rows, printed in the end."""
    rows = [("family", "pooling", "dimension", "agreement")]
    yield rows
    print("\n" + "\n".join(f"{name:24}{pooling:14}{dim:>10}{agreement:>12}" for name, pooling, dim, agreement in rows))


def own_definition(folder, definition, pixels):
    """The embedding as the architecture defines it, from the bare model as transformers loads it."""
    masks = (
        {"mask_ratio": 0.0} if "ViTMAE" in json.loads((folder / "config.json").read_text())["architectures"][0] else {}
    )
    model = AutoModel.from_pretrained(folder, **masks).eval()
    order = {"noise": torch.arange(16.0).expand(len(pixels), 16)} if masks else {}
    with torch.inference_mode():
        outputs = getattr(model, "get_image_features", model)(pixel_values=pixels, **order)
        return definition(model, outputs).numpy()


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_embedded_as_it_defines_it(family, save, images, table, capfd):
    kind, settings, pooling, dim, definition = FAMILIES[family]
    folder, sources = save(kind, settings), images["test"]["image"]
    capfd.readouterr()
    encoder, again = load_encoder(folder, "cpu"), load_encoder(folder, "cpu")
    assert capfd.readouterr() == ("", "")  # no alarm about weights that are not used
    rows = encoder.embed(sources)
    expected = own_definition(folder, definition, encoder.prepare(sources))
    agreement = np.abs(rows - expected).max() / np.abs(expected).max()
    table.append((family, encoder.pooling, encoder.dim, f"{agreement:.0e}"))
    assert (encoder.pooling, encoder.dim, rows.shape) == (pooling, dim, (9, dim))
    assert agreement < ALIKE and np.ptp(rows, axis=0).max() > 1e-3
    assert again.digest == encoder.digest
    order, scale = np.random.default_rng(0).permutation(9).tolist(), np.abs(expected).max()
    np.testing.assert_allclose(again.embed(sources), rows, atol=ALIKE * scale)  # the same at every load
    shuffled = encoder.embed([sources[i] for i in order], batch_size=2)
    np.testing.assert_allclose(shuffled, rows[order], atol=ALIKE * scale)


@pytest.mark.slow
def test_bare_models_and_heads_given_as_modules_are_embedded_alike(save, images):
    for family in ("DINOv3 ViT", "DINOv3 ConvNeXT", "ViTMAE", "BEiT", "CLIP"):
        kind, settings, pooling, *_ = FAMILIES[family]
        folder = save(kind, settings)
        expected = load_encoder(folder, "cpu")
        for model in (AutoModel, getattr(transformers, kind)):
            encoder = load_encoder(model.from_pretrained(folder), "cpu", processor=expected.processor)
            assert encoder.pooling == pooling, family
            rows = expected.embed(images["test"]["image"])
            np.testing.assert_allclose(encoder.embed(images["test"]["image"]), rows, atol=ALIKE * np.abs(rows).max())


def test_a_masked_autoencoder_that_was_given_still_masks(save):
    kind, settings, *_ = FAMILIES["ViTMAE"]
    model = AutoModel.from_pretrained(save(kind, settings))
    load_encoder(model, "cpu")
    assert model(torch.zeros(1, 3, 64, 64)).last_hidden_state.shape[1] == 1 + 16 // 4


def test_another_pooling_can_be_asked_for(save, images):
    folder, sources = save(*FAMILIES["DINOv2 with registers"][:2]), images["test"]["image"]
    encoders = {name: load_encoder(folder, "cpu", pooling=name) for name in ("class token", "pooler", "mean")}
    patches = own_definition(
        folder, lambda model, outputs: outputs.last_hidden_state[:, 5:].mean(1), encoders["mean"].prepare(sources)
    )
    np.testing.assert_allclose(encoders["mean"].embed(sources), patches, atol=ALIKE)
    assert np.abs(encoders["mean"].embed(sources) - encoders["pooler"].embed(sources)).max() > 0.1
    assert len({encoder.digest for encoder in encoders.values()}) == 3
    assert load_encoder(folder, "cpu").digest == encoders["pooler"].digest


def test_the_trained_norm_of_a_pooler_counts_for_the_digest(save):
    folder = save(*FAMILIES["BEiT"][:2])
    model = AutoModel.from_pretrained(folder)
    with torch.no_grad():
        model.pooler.layernorm.weight[0] += 1e-3
    assert load_encoder(model, "cpu").digest != load_encoder(folder, "cpu").digest


def test_a_pooling_that_a_model_lacks_is_refused(save, refused, checkpoint):
    with refused("convnext"):
        load_encoder(save(*FAMILIES["ConvNeXT"][:2]), "cpu", pooling="class token")
    with refused("joint space"):
        load_encoder(checkpoint, "cpu", pooling="joint space")
    with refused("pooler.dense"):  # it would be drawn at random
        load_encoder(checkpoint, "cpu", pooling="pooler")
    with refused(", ".join(map(repr, POOLINGS))):
        load_encoder(checkpoint, "cpu", pooling="cls")


UNSUITED = {
    "bert": ("BertModel", TEXT),
    "detr": (
        "DetrModel",
        {
            "backbone_config": {"model_type": "resnet", **BLOCKS, "layer_type": "basic", "out_features": ["stage2"]},
            **dict.fromkeys(("encoder_layers", "decoder_layers"), 1),
            **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2),
            **dict.fromkeys(("d_model", "encoder_ffn_dim", "decoder_ffn_dim"), 16),
        },
    ),
}


@pytest.mark.parametrize("kind", UNSUITED)
def test_what_cannot_be_pooled_is_refused_by_its_type(kind, save, refused):
    with refused(repr(kind)):
        load_encoder(save(*UNSUITED[kind]), "cpu")


def test_a_text_model_without_image_processor_is_refused_by_its_type(save, refused, tmp_path):
    folder = shutil.copytree(save(*UNSUITED["bert"]), tmp_path / "text")
    (folder / "preprocessor_config.json").unlink()
    with refused("'bert'"):
        load_encoder(folder, "cpu")


def test_dinov3_needs_no_torchvision(save, images, tmp_path):
    folder = shutil.copytree(save(*FAMILIES["DINOv3 ViT"][:2]), tmp_path / "dinov3")
    settings = {"image_processor_type": "DINOv3ViTImageProcessorFast", "size": {"height": 64, "width": 64}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | {"do_center_crop": None}))
    encoder, image = load_encoder(folder, "cpu"), images["test"][0]["image"]
    pixels = np.asarray(image.resize((64, 64), Image.BILINEAR)) / 255  # its definition, on rounded pixels
    normalised = (pixels - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    np.testing.assert_allclose(encoder.prepare([image])[0].permute(1, 2, 0), normalised, atol=1e-5)


def test_a_model_that_draws_at_random_is_refused(encoder, refused):
    class Dice(torch.nn.Module):
        def forward(self, pixels):
            return torch.rand(len(pixels), 4)

    with refused("Dice"):
        load_encoder(Dice(), "cpu", processor=encoder.processor)
