"""Texts and sounds as rows: whatever becomes rows can be hashed, stored and found like images."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import AutoFeatureExtractor, AutoModel, AutoTokenizer

from imgsim.encoder import Encoder, load_encoder
from imgsim.models.loading import quiet
from imgsim.models.pooling import model_type
from imgsim.sources.errors import first_line
from imgsim.sources.hub import locate

BUILTIN = Path(__file__).parents[2] / "assets" / "leaf-captions"
LOADING = (OSError, ValueError, KeyError, RuntimeError, ImportError, AttributeError, SafetensorError)


class TextEncoder:
    """The text side of a dual encoder (CLIP, SigLIP, CLAP): texts in, rows (n, d) out.

    other: the encoder of the same model's images or sounds, among which the rows lie. tokenizer: by default the
    one in the checkpoint's folder. Raises ValueError where the model has no text side.
    """

    def __init__(self, other: Encoder, tokenizer=None):
        if other.pooling != "joint space" or not hasattr(other.model, "get_text_features"):
            kind = model_type(other.model)
            raise ValueError(f"{other.name!r}, of type {kind!r}, has no text side: take a CLIP, a SigLIP or a CLAP.")
        self.model, self.device, self.dim, self.name, self.digest, self.describe = (
            getattr(other, name) for name in ("model", "device", "dim", "name", "digest", "describe")
        )
        try:
            self.tokenizer = tokenizer or AutoTokenizer.from_pretrained(
                locate(self.name, "checkpoint"), trust_remote_code=False
            )
        except LOADING as error:
            raise ValueError(f"{self.name!r} has no tokenizer that can be read: {first_line(error)}") from error
        settings = getattr(self.model.config, "text_config", None)
        longest = getattr(settings, "max_position_embeddings", None) or self.tokenizer.model_max_length
        # SigLIP learnt from texts that were all filled up to the same length.
        padding = "max_length" if model_type(self.model).startswith("siglip") else True
        length = min(longest, self.tokenizer.model_max_length)
        self.how = {"padding": padding, "truncation": True, "max_length": length, "return_tensors": "pt"}

    @torch.inference_mode()
    def embed(self, texts, batch_size: int = 48) -> np.ndarray:
        """Embed a list of texts into rows (n, d), float32, as the model gives them; overlong ones are cut.

        Raises ValueError for what is not a list of texts; warns of words that the model has never seen.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError("texts must be a list of texts, none of them empty.")
        texts, rows = list(texts), [np.empty((0, self.dim), np.float32)]
        self._warn_of_unknown_words(texts)
        for start in range(0, len(texts), batch_size):
            tokens = self.tokenizer(texts[start : start + batch_size], **self.how).to(self.device)
            outputs = self.model.get_text_features(**tokens)
            rows.append(getattr(outputs, "pooler_output", outputs).float().cpu().numpy())
        return np.concatenate(rows)

    def _warn_of_unknown_words(self, texts: list[str]) -> None:
        unknown = self.tokenizer.unk_token_id
        for text in texts if unknown is not None else ():
            if unknown in self.tokenizer(text, add_special_tokens=False)["input_ids"]:
                # The caller of embed is four floors up: torch stands between.
                warnings.warn(f"The model does not know all the words in {text!r}.", stacklevel=4)


def load_dual_encoder(checkpoint="builtin", device=None, dtype=None) -> tuple[Encoder, TextEncoder]:
    """Load both sides of a dual encoder: one of images and one of texts, whose rows can be compared.

    checkpoint: "builtin" (small, knows drawn leaves and some seventy words), a folder, or a Hub id such as
    openai/clip-vit-base-patch32 or google/siglip-base-patch16-224. Raises ValueError, ConnectionError.
    """
    images = load_encoder(BUILTIN if checkpoint == "builtin" else checkpoint, device, dtype)
    return images, TextEncoder(images)


class AudioEncoder(Encoder):
    """Sounds in, rows (n, d) out; made by `load_audio_encoder`.

    A sound is an array (samples,) of floats, `sampling_rate` of them a second. Sounds go through the model one at
    a time: filled up to the length of others, some models would answer otherwise.
    """

    @property
    def sampling_rate(self) -> int:
        return self.processor.sampling_rate

    def example(self) -> torch.Tensor:
        """Two copies of a second of a tone, prepared."""
        tone = np.sin(2 * np.pi * 440 / self.sampling_rate * np.arange(self.sampling_rate))
        return self.prepare([tone, tone])

    def prepare(self, sources) -> torch.Tensor:
        sounds = [np.asarray(source, dtype=np.float32) for source in sources]
        for sound in sounds:
            if sound.ndim != 1 or not len(sound) or not np.isfinite(sound).all():
                raise ValueError(f"A sound must be a row of finite numbers, not an array of shape {sound.shape}.")
        # CLAP would cut out a part of a longer sound at random.
        sounds = [sound[: getattr(self.processor, "nb_max_samples", None)] for sound in sounds]
        inputs = self.processor(sounds, sampling_rate=self.sampling_rate, return_tensors="pt")
        return inputs[self.processor.model_input_names[0]]

    def to_device(self, inputs: torch.Tensor) -> torch.Tensor:
        """Inputs where and how the network takes them."""
        return inputs.to(self.device, self.dtype)

    def micro_batch(self, batch_size: int) -> int:
        """One sound at a time."""
        return 1


def load_audio_encoder(checkpoint, device=None) -> AudioEncoder:
    """Load a model of sounds: wav2vec 2.0 (the mean over time), AST (its pooled tokens) or CLAP (the joint space).

    checkpoint: a folder or a Hub id such as MIT/ast-finetuned-audioset-10-10-0.4593, facebook/wav2vec2-base or
    laion/clap-htsat-unfused. Raises ValueError where it cannot embed sounds, ConnectionError.
    """
    folder = locate(str(checkpoint), "checkpoint")
    try:
        with quiet():
            model = AutoModel.from_pretrained(folder, use_safetensors=True, trust_remote_code=False)
            extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=False)
        if not hasattr(extractor, "sampling_rate"):
            raise ValueError(f"a model of type {model_type(model)!r} takes no sounds")
        encoder = AudioEncoder(model, extractor, device)
    except LOADING as error:
        raise ValueError(
            f"checkpoint {str(checkpoint)!r} cannot be loaded as a model of sounds: {first_line(error)}"
        ) from error
    encoder.name = str(checkpoint)
    return encoder
