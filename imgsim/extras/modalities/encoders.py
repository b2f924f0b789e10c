"""Texts and sounds as embeddings: whatever becomes one can be hashed, stored and found like an image."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoFeatureExtractor, AutoModel, AutoTokenizer

from imgsim.encoder import Encoder, load_encoder
from imgsim.models.loading import LOADING_ERRORS, quiet
from imgsim.models.pooling import model_type
from imgsim.sources.errors import first_line
from imgsim.sources.hub import locate

BUILTIN = Path(__file__).parents[2] / "assets" / "leaf-captions"
ERRORS = (*LOADING_ERRORS, AttributeError)


class TextEncoder:
    """The text side of a dual encoder (CLIP, SigLIP, CLAP): texts in, embeddings out.

    It is made from the encoder of the same model's images or sounds; ValueError if the model has no text side.
    """

    def __init__(self, encoder: Encoder):
        self.model: Any = encoder.model
        self.device, self.dim = encoder.device, encoder.dim
        self.name, self.digest, self.describe = encoder.name, encoder.digest, encoder.describe
        kind = model_type(self.model)
        if encoder.pooling != "joint space" or not hasattr(self.model, "get_text_features"):
            raise ValueError(f"{self.name!r}, of type {kind!r}, has no text side: take a CLIP, a SigLIP or a CLAP.")
        try:
            folder = locate(self.name, "checkpoint")
            self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except ERRORS as error:
            raise ValueError(f"{self.name!r} has no tokenizer that can be read: {first_line(error)}") from error
        longest = getattr(getattr(self.model.config, "text_config", None), "max_position_embeddings", None)
        length = min(longest or self.tokenizer.model_max_length, self.tokenizer.model_max_length)
        # SigLIP learnt from texts that were all padded to the same length.
        padding = "max_length" if kind.startswith("siglip") else True
        self.options = {"padding": padding, "truncation": True, "max_length": length, "return_tensors": "pt"}

    @torch.inference_mode()
    def embed(self, texts: Sequence[str], batch_size: int = 48) -> np.ndarray:
        """Embed a list of n texts into (n, d) float32, as the model gives them; warns of words it does not know."""
        if isinstance(texts, str) or not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError("texts must be a list of texts, none of them empty.")
        texts, embeddings = list(texts), [np.empty((0, self.dim), np.float32)]
        self._warn_of_unknown_words(texts)
        for start in range(0, len(texts), batch_size):
            tokens = self.tokenizer(texts[start : start + batch_size], **self.options).to(self.device)
            outputs = self.model.get_text_features(**tokens)
            embeddings.append(getattr(outputs, "pooler_output", outputs).float().cpu().numpy())
        return np.concatenate(embeddings)

    def _warn_of_unknown_words(self, texts: list[str]) -> None:
        unknown = self.tokenizer.unk_token_id
        for text in texts if unknown is not None else ():
            if unknown in self.tokenizer(text, add_special_tokens=False)["input_ids"]:
                # The caller of embed is four levels up: torch stands between.
                warnings.warn(f"The model does not know all the words in {text!r}.", stacklevel=4)


def load_dual_encoder(checkpoint: str | os.PathLike = "builtin", device: Any = None) -> tuple[Encoder, TextEncoder]:
    """Load both sides of a dual encoder, for images and for texts; errors as for `load_encoder`.

    Args:
        checkpoint: "builtin" (small, knows rendered leaves and some seventy words), a folder, or a Hub id such as
            laion/CLIP-ViT-B-32-laion2B-s34B-b79K or google/siglip-base-patch16-224.
        device: as for `load_encoder`.
    """
    images = load_encoder(BUILTIN if checkpoint == "builtin" else checkpoint, device)
    return images, TextEncoder(images)


class AudioEncoder(Encoder):
    """Sounds in, embeddings out; made by `load_audio_encoder`.

    A sound is an array (samples,) of floats, `sampling_rate` of them per second.
    """

    @property
    def sampling_rate(self) -> int:
        return self.processor.sampling_rate

    def example(self) -> torch.Tensor:
        """Return the inputs for two copies of a tone of one second."""
        tone = np.sin(2 * np.pi * 440 / self.sampling_rate * np.arange(self.sampling_rate))
        return self.prepare([tone, tone])

    def prepare(self, sources: Sequence) -> torch.Tensor:
        """Turn sounds into inputs (b, ...) as the network wants them."""
        sounds = [np.asarray(source, dtype=np.float32) for source in sources]
        for sound in sounds:
            if sound.ndim != 1 or not len(sound) or not np.isfinite(sound).all():
                raise ValueError(f"A sound must be a row of finite numbers, not an array of shape {sound.shape}.")
        # CLAP would cut out a part of a longer sound at random.
        sounds = [sound[: getattr(self.processor, "nb_max_samples", None)] for sound in sounds]
        inputs = self.processor(sounds, sampling_rate=self.sampling_rate, return_tensors="pt")
        return inputs[self.processor.model_input_names[0]]

    def to_device(self, inputs: torch.Tensor) -> torch.Tensor:
        """Move inputs (b, ...) to the network's device and precision."""
        return inputs.to(self.device, self.dtype)

    def micro_batch(self, batch_size: int) -> int:
        """Return 1: padded to the length of others, a sound would get another embedding from some models."""
        return 1


def load_audio_encoder(checkpoint: str | os.PathLike, device: Any = None) -> AudioEncoder:
    """Load a model of sounds: wav2vec 2.0 (the mean over time), AST (its pooled tokens) or CLAP (the joint space).

    Args:
        checkpoint: a folder, or a Hub id such as MIT/ast-finetuned-audioset-10-10-0.4593, facebook/wav2vec2-base or
            laion/clap-htsat-unfused.
        device: as for `load_encoder`, and so are the errors.
    """
    folder = locate(str(checkpoint), "checkpoint")
    try:
        with quiet():
            model = AutoModel.from_pretrained(folder, use_safetensors=True, trust_remote_code=False)
            extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=False)
        if not hasattr(extractor, "sampling_rate"):
            raise ValueError(f"a model of type {model_type(model)!r} takes no sounds")
        encoder = AudioEncoder(model, extractor, device)
    except ERRORS as error:
        reason = first_line(error)
        raise ValueError(f"checkpoint {str(checkpoint)!r} cannot be loaded as a model of sounds: {reason}") from error
    encoder.name = str(checkpoint)
    return encoder
