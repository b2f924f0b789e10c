"""From a vision model's outputs to one embedding per image: which part of the model, which output, pooled how."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from transformers import MODEL_MAPPING, PreTrainedModel

from imgsim.sources.errors import first_line

POOLINGS = {
    "class token": "the first output token, into which a transformer gathers the whole image",
    "pooler": "the model's own pooled output",
    "mean": "the average over the image: of the patches' tokens, or of each channel's map",
    "joint space": "where a dual encoder puts images (or sounds) and texts side by side",
}
PREFIX = ("cls_token", "class_embedding", "distillation_token", "register_tokens")  # these come before the patches


def model_type(model: torch.nn.Module) -> str:
    """Return the name that transformers gives this architecture, else the module's class."""
    return getattr(getattr(model, "config", model), "model_type", type(model).__name__)


def no_masking(sequence: torch.Tensor, noise: Any = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Replace ViTMAE's masking: all patches in their order, none masked, and the order that restores them."""
    order = torch.arange(sequence.shape[1], device=sequence.device).expand(sequence.shape[:2])
    return sequence, torch.zeros_like(order), order


def backbone(model: torch.nn.Module) -> torch.nn.Module:
    """Return the part that sees: without a classifier's head, and without a masked autoencoder's masks."""
    if isinstance(model, PreTrainedModel) and MODEL_MAPPING.get(type(model.config), None) is not type(model):
        model = model.base_model  # not always: DINOv3's bare model calls a part of itself its base
    if hasattr(getattr(model, "embeddings", None), "random_masking"):
        model = copy.deepcopy(model)  # the caller may go on training the original, with masks
        model.embeddings.random_masking = no_masking  # type: ignore[union-attr]
    return model


def to_joint_space(model: torch.nn.Module) -> Callable[[torch.Tensor], Any] | None:
    """Return a dual encoder's way from images (CLIP, SigLIP) or sounds (CLAP) to its joint space, if it has one."""
    return getattr(model, "get_image_features", None) or getattr(model, "get_audio_features", None)


def prefix_tokens(model: torch.nn.Module) -> int:
    """Count the output tokens that come before those of the patches."""
    tokens = (weights for name, weights in model.named_parameters() if name.endswith(PREFIX))
    return sum(weights.numel() // weights.shape[-1] for weights in tokens)


def choose_pooling(model: torch.nn.Module, outputs: Any) -> str:
    """Choose the pooling that suits a model, by its parts and outputs.

    Outputs (b, d) stay as they are, and a dual encoder (CLIP, SigLIP) has its joint space. Otherwise it is the
    model's own pooled output (an average over the image for ConvNeXT, RegNet, ResNet, MobileNet, Swin and, with a
    trained normalisation, BEiT; the normalised class token for DINOv2, DINOv3 and CLIP's tower; an attention for
    SigLIP's), unless a dense layer makes it: that one is trained, if at all, for another task, and checkpoints
    of classifiers lack it (ViT, DeiT). Then it is the class token, and without one (I-JEPA, SegFormer) the mean.

    Raises:
        ValueError: no output stands for a whole image.
    """
    if isinstance(outputs, torch.Tensor) and outputs.ndim == 2:
        return "rows"
    choices = ["pooler", "class token", "mean"]
    pooler = getattr(model, "pooler", None)
    if pooler is not None and any(isinstance(layer, torch.nn.Linear) for layer in pooler.modules()):
        choices.remove("pooler")
    if to_joint_space(model):
        choices = ["joint space"]
    for pooling in choices:
        if supports(model, outputs, pooling):
            return pooling
    raise ValueError(f"A model of type {model_type(model)!r} gives no output that stands for a whole image.")


def supports(model: torch.nn.Module, outputs: Any, pooling: str) -> bool:
    """Tell whether a model's outputs can be pooled in this way."""
    if pooling in ("pooler", "joint space"):
        pooled = isinstance(getattr(outputs, "pooler_output", None), torch.Tensor)
        return pooled and (pooling == "pooler" or to_joint_space(model) is not None)
    hidden = getattr(outputs, "last_hidden_state", None)
    # The outputs of a decoder (DETR) are tokens of the objects found, not of places in the image.
    if hidden is None or hasattr(outputs, "encoder_last_hidden_state"):
        return False
    if pooling == "class token":
        return hidden.ndim == 3 and prefix_tokens(model) > 0
    return hidden.ndim in (3, 4)


class Pooled(torch.nn.Module):
    """A vision model and its pooling as one module: pixels (b, 3, h, w) in, embeddings (b, d) out.

    Attributes:
        model: the backbone.
        pooling: one of POOLINGS, "rows" if the outputs are embeddings already, or None before `resolve_pooling`.

    Raises:
        ValueError: there is no such pooling.
    """

    def __init__(self, model: torch.nn.Module, pooling: str | None = None):
        if pooling not in (None, "rows", *POOLINGS):
            raise ValueError(f"There is no pooling {pooling!r}; there are {', '.join(map(repr, POOLINGS))}.")
        super().__init__()
        self.model = backbone(model)
        self.pooling = pooling

    def resolve_pooling(self, pixels: torch.Tensor) -> int:
        """Settle the pooling by a real pass, and return the embeddings' length d.

        Args:
            pixels: two copies of an image, (2, 3, h, w).

        Raises:
            ValueError: the model cannot be pooled in this way, or does not give both copies the same embedding.
        """
        kind = model_type(self.model)
        try:
            outputs = self.outputs(pixels)
        except Exception as error:  # whatever a model that is not for images raises
            raise ValueError(f"A model of type {kind!r} cannot embed images: {first_line(error)}") from error
        chosen = choose_pooling(self.model, outputs)
        if self.pooling not in (None, chosen) and (chosen == "rows" or not supports(self.model, outputs, self.pooling)):
            raise ValueError(f"A model of type {kind!r} cannot be pooled by {self.pooling!r}, but by {chosen!r}.")
        self.pooling = self.pooling or chosen
        embeddings = self.pool(outputs)
        two = embeddings.ndim == len(embeddings) == 2
        if not (two and torch.allclose(embeddings[0].float(), embeddings[1].float(), rtol=1e-2, atol=1e-3)):
            raise ValueError(f"A model of type {kind!r} does not give one image the same row of numbers twice.")
        return embeddings.shape[1]

    def outputs(self, pixels: torch.Tensor) -> Any:
        """Return the model's outputs for pixels (b, 3, h, w), as transformers defines them."""
        return (to_joint_space(self.model) or self.model)(pixels)

    def pool(self, outputs: Any) -> torch.Tensor:
        """Pool the model's outputs into embeddings (b, d)."""
        if isinstance(outputs, torch.Tensor):
            return outputs
        hidden = outputs.last_hidden_state
        if self.pooling == "class token":
            return hidden[:, 0]
        if self.pooling == "mean":
            return hidden[:, prefix_tokens(self.model) :].mean(1) if hidden.ndim == 3 else hidden.mean((2, 3))
        return outputs.pooler_output.flatten(1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.pool(self.outputs(pixels))
