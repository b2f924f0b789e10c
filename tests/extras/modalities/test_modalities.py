"""Texts and sounds as rows, captions that are true, and the built-in dual encoder's answers to unseen captions."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Image
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTModel,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
)

from imgsim import BuildLSHTable, load_encoder
from imgsim.encoder import BUILTIN as LEAF_VIT
from imgsim.extras.modalities import encoders as modalities
from imgsim.extras.modalities.captions import ADJECTIVES, MEANINGS, caption, facts_of, fits, traits_of, unseen_facts
from imgsim.extras.modalities.encoders import TextEncoder, load_audio_encoder, load_dual_encoder
from imgsim.hashing import normalise
from imgsim.sources.builtin import render_folder, sample_image
from imgsim.sources.decode import open_image
from imgsim.sources.leaves import CLASSES, render_leaf, sample_traits

papermill = pytest.importorskip("papermill", reason="the extra notebooks is not installed")

ROOT = Path(__file__).resolve().parents[3]
SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
WORDS = ["[PAD]", "[UNK]", "[END]", "a", "dark", "pale", "leaf"]
RATE = 16_000


# Captions


def test_traits_are_those_that_were_rendered(tmp_path):
    folder = render_folder(tmp_path / "leaves", seed=3, sizes={"train": 4, "test": 2}, size=64)
    for split in ("train", "test"):
        paths = [str(path) for path in sorted((folder / split).rglob("*.jpg"))]
        images = Dataset.from_dict({"image": paths}).cast_column("image", Image())
        for path, traits in zip(paths, traits_of(images, seed=3), strict=True):
            i = int(path.split(".")[-2]) * 3 + CLASSES.index(traits.label)
            again, rng = sample_image(split, i, seed=3)
            assert traits == again
            rendered, kept = np.float32(render_leaf(traits, rng, 64)), np.float32(open_image(path))
            assert np.abs(rendered - kept).mean() < 12  # JPEG


def some_traits(count):
    rng = np.random.default_rng(0)
    return [sample_traits(CLASSES[i % 3], rng) for i in range(count)]


def test_captions_are_true_varied_and_partial():
    rng, leaves = np.random.default_rng(0), some_traits(300)
    facts = [facts_of(leaf, rng) for leaf in leaves]
    assert all(fits(told, leaf) for told, leaf in zip(facts, leaves, strict=True))
    assert all(set(told) <= set(facts_of(leaf)) for told, leaf in zip(facts, leaves, strict=True))
    told = {aspect: {fact[aspect] for fact in facts if aspect in fact} for aspect in MEANINGS}
    assert told == {aspect: set(meanings) for aspect, meanings in MEANINGS.items()}
    assert len({caption(facts_of(leaves[0]), rng) for _ in range(50)}) > 25
    one = {"condition": "many rust spots", "shade": "dark", "background": "soil"}
    words = caption(one, rng).split()
    assert "leaf" in words and ("dark" in words or "dim" in words) and ("soil" in words or "earth" in words)


def test_what_is_false_does_not_fit():
    for leaf in some_traits(30):
        true = facts_of(leaf)
        for aspect, meanings in MEANINGS.items():
            holding = [meaning for meaning in meanings if fits({aspect: meaning}, leaf)]
            assert (true[aspect] in holding) if aspect in true else not holding
        wrong = "stone" if leaf.background != "stone" else "soil"
        assert not fits(true | {"background": wrong}, leaf)
    assert fits({}, leaf)


def test_unseen_combinations_are_twenty_and_share_every_word_with_others():
    combinations = unseen_facts()
    assert len({tuple(sorted(facts.items())) for facts in combinations}) == 20 and combinations == unseen_facts()
    for aspect in ("condition", *ADJECTIVES):
        assert all(facts.get(aspect) in (None, *MEANINGS[aspect]) for facts in combinations)
    assert all(len(facts) == 3 for facts in combinations)


# The built-in dual encoder


@pytest.fixture(scope="module")
def dual():
    return load_dual_encoder(device="cpu")


def test_the_built_in_dual_encoder_is_small_and_its_tower_is_the_tutorials(dual):
    assert sum(path.stat().st_size for path in modalities.BUILTIN.iterdir()) < 10_000_000
    assert {"README.md", "model.safetensors", "tokenizer.json"} <= {path.name for path in modalities.BUILTIN.iterdir()}
    ours, base = (load_file(folder / "model.safetensors") for folder in (modalities.BUILTIN, LEAF_VIT))
    tower = {name: weights for name, weights in base.items() if not name.startswith("classifier")}
    assert all(torch.equal(ours[name.replace("vit.", "vision_model.", 1)], tower[name]) for name in tower)


def test_texts_find_images_that_fit_them(dual):
    """Show 2 at small scale: captions that the training never said, among leaves that it never saw."""
    images, texts = dual
    rng = np.random.default_rng(0)
    leaves = [sample_traits(CLASSES[i % 3], rng) for i in range(1500)]
    asked = [facts for facts in unseen_facts() if sum(fits(facts, leaf) for leaf in leaves[:300]) >= 3][:6]
    wanted = [leaf for facts in asked for leaf in [leaf for leaf in leaves[300:] if fits(facts, leaf)][:3]]
    leaves = wanted + leaves[: 120 - len(wanted)]
    index = BuildLSHTable(images).build_from_embeddings(images.embed([render_leaf(leaf, rng, 224) for leaf in leaves]))
    found = index.search(texts.embed([caption(facts, rng) for facts in asked]), 5).ids
    true = np.array([[fits(facts, leaf) for leaf in leaves] for facts in asked])
    share, chance = np.take_along_axis(true, found, 1).mean(), true.mean()
    print(f"of the five best {share:.0%} fit, by chance {chance:.0%}")
    assert (found >= 0).all() and share > 4 * chance


def test_word_order_and_synonyms_hardly_matter_and_meanings_do(dual):
    one, other, opposite = normalise(
        dual[1].embed(
            [
                "a dark leaf with rust on soil",
                "here is a dim leaf on bare earth with bean rust",
                "a pale leaf in good health on paper",
            ]
        )
    )
    assert one @ other > 0.8 > one @ opposite


def test_unknown_words_are_named_and_what_is_no_text_is_refused(dual, refused):
    with pytest.warns(UserWarning, match="a zebra"):
        dual[1].embed(["a leaf", "a zebra"])
    for wrong in ("a leaf", ["a leaf", ""], [3]):
        with refused("list of texts"):
            dual[1].embed(wrong)
    assert dual[1].embed([]).shape == (0, dual[1].dim)


# Checkpoints of others, tiny and random


@pytest.fixture(scope="module")
def tokenizer():
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, "[UNK]"))
    words.pre_tokenizer = Whitespace()
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[END]"}
    return PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=16, **names)


def save_dual(folder, kind, tokenizer):
    torch.manual_seed(0)
    text = SMALL | {"vocab_size": len(WORDS), "max_position_embeddings": 16, "projection_dim": 24, "eos_token_id": 2}
    vision = SMALL | {"image_size": 32, "patch_size": 16, "projection_dim": 24}
    if kind == "clip":
        model, processor = (
            CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)),
            CLIPImageProcessorPil,
        )
    else:
        model, processor = SiglipModel(SiglipConfig(text_config=text, vision_config=vision)), SiglipImageProcessorPil
    model.save_pretrained(folder)
    crop = {"crop_size": {"height": 32, "width": 32}} if kind == "clip" else {}
    processor(size={"height": 32, "width": 32}, **crop).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_dual_encoders_of_the_hub_give_what_their_own_definition_gives(kind, tmp_path, tokenizer, draw):
    folder = save_dual(tmp_path / kind, kind, tokenizer)
    images, texts = load_dual_encoder(folder, "cpu")
    said = ["a dark leaf", "leaf", "a pale leaf"]
    rows = texts.embed(said, batch_size=2)
    full = {"padding": "max_length", "max_length": 16} if kind == "siglip" else {"padding": True}
    with torch.inference_mode():
        own = images.model.get_text_features(**tokenizer(said, return_tensors="pt", **full)).pooler_output
    assert np.allclose(rows, own, atol=1e-5) and texts.dim == images.dim == rows.shape[1]
    assert texts.embed(["a " * 100]).shape == (1, texts.dim)  # cut to what the model takes
    index = BuildLSHTable(images).build_from_embeddings(images.embed([draw(i) for i in range(20)]))
    assert index.search(rows, 3).ids.shape == (3, 3)
    captions = BuildLSHTable(texts).build_from_embeddings(rows)  # and the other way: which text fits an image?
    assert captions.save(tmp_path / "index") and len(BuildLSHTable.load(tmp_path / "index", texts)) == 3


def test_what_has_no_text_side_is_refused(encoder, refused, tmp_path, tokenizer):
    with refused("no text side"):
        TextEncoder(encoder)
    folder = save_dual(tmp_path / "clip", "clip", tokenizer)
    with refused("no text side"):
        TextEncoder(load_encoder(folder, "cpu", pooling="pooler"))
    (folder / "tokenizer.json").write_text("{}")
    with refused("no tokenizer"):
        load_dual_encoder(folder, "cpu")


def save_sound_model(folder, kind):
    torch.manual_seed(0)
    if kind == "ast":
        model = ASTModel(ASTConfig(**SMALL, max_length=64, num_mel_bins=32))
        extractor = ASTFeatureExtractor(max_length=64, num_mel_bins=32)
    elif kind == "wav2vec2":
        layers = {"conv_dim": (16, 16), "conv_kernel": (10, 3), "conv_stride": (5, 2), "num_feat_extract_layers": 2}
        around = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
        model, extractor = Wav2Vec2Model(Wav2Vec2Config(**SMALL, **layers, **around)), Wav2Vec2FeatureExtractor()
    else:
        sounds = {"depths": [1, 1], "num_attention_heads": [2, 2], "patch_embeds_hidden_size": 16, "hidden_size": 32}
        sounds |= {"window_size": 4, "spec_size": 64, "num_mel_bins": 16}
        text = SMALL | {"vocab_size": len(WORDS), "max_position_embeddings": 32}
        model = ClapModel(ClapConfig(text_config=text, audio_config=sounds, projection_dim=24))
        extractor = ClapFeatureExtractor(feature_size=16, max_length_s=1, truncation="rand_trunc")
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder


def tones(rate, count=6):
    seconds = np.arange(rate) / rate
    return [np.sin(2 * np.pi * 110 * 2**i * seconds)[: rate - 500 * i].astype(np.float32) for i in range(count)]


@pytest.mark.parametrize(("kind", "pooling"), [("ast", "pooler"), ("wav2vec2", "mean"), ("clap", "joint space")])
def test_sounds_become_rows_and_find_themselves(kind, pooling, tmp_path, tokenizer):
    folder = save_sound_model(tmp_path / kind, kind)
    tokenizer.save_pretrained(folder)
    sounds = load_audio_encoder(folder, "cpu")
    heard = tones(sounds.sampling_rate)
    rows = sounds.embed(heard)
    assert sounds.pooling == pooling and rows.shape == (6, sounds.dim) and rows.dtype == np.float32
    for sound, row in zip(heard, rows, strict=True):  # whatever stands beside it in the list
        assert np.allclose(sounds.embed([sound])[0], row, atol=1e-5)
    index = BuildLSHTable(sounds, probes=255).build_from_embeddings(rows)
    assert index.query(heard[2], top_k=1, verbose=False).ids.tolist() == [2]
    index.save(tmp_path / "index")
    assert len(BuildLSHTable.load(tmp_path / "index", load_audio_encoder(folder, "cpu"))) == 6
    if kind == "clap":
        assert TextEncoder(sounds).embed(["a dark leaf"]).shape == (1, 24)
        long = np.random.default_rng(0).normal(size=5 * sounds.sampling_rate)
        assert np.array_equal(sounds.embed([long]), sounds.embed([long]))  # the same part of it every time


def test_bad_sounds_and_models_of_something_else_are_refused(checkpoint, refused, tmp_path):
    with refused(checkpoint):
        load_audio_encoder(checkpoint)
    with refused("nowhere"):
        load_audio_encoder("nowhere/")
    sounds = load_audio_encoder(save_sound_model(tmp_path / "wav2vec2", "wav2vec2"), "cpu")
    for wrong in (np.zeros((2, 100)), np.zeros(0), np.array([np.nan] * 100)):
        with refused("row of finite numbers"):
            sounds.embed([wrong])


# The notebooks


def test_training_notebook_saves_a_dual_encoder_at_toy_scale(tmp_path, monkeypatch, in_this_process):
    monkeypatch.setenv("IMGSIM_CACHE", str(tmp_path))
    settings = {"leaves": 9, "epochs": 1, "batch_size": 4, "output": str(tmp_path)}
    papermill.execute_notebook(
        str(ROOT / "notebooks" / "00b_captions.ipynb"), str(tmp_path / "out.ipynb"), settings, progress_bar=False
    )
    images, texts = load_dual_encoder(tmp_path / "checkpoint", "cpu")
    assert texts.embed(["a leaf"]).shape == (1, images.dim)
    card = json.loads((tmp_path / "checkpoint" / "config.json").read_text())
    assert card["model_type"] == "vision-text-dual-encoder"


def test_notebook_searches_other_images_with_another_checkpoint(tmp_path, tokenizer, image_folder, in_this_process):
    folder = save_dual(tmp_path / "clip", "clip", tokenizer)
    settings = {"dataset": str(image_folder), "checkpoint": str(folder), "captions": "a dark leaf; a pale leaf"}
    settings |= {"hash_size": 4, "probes": 0, "output": str(tmp_path)}
    papermill.execute_notebook(
        str(ROOT / "notebooks" / "08_other_modalities.ipynb"), str(tmp_path / "out.ipynb"), settings, progress_bar=False
    )
    assert (tmp_path / "figures" / "08-answers.png").exists() and (tmp_path / "figures" / "08-gap.png").exists()
