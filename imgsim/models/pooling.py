"""From a vision model's outputs to one embedding per image: which part of the model, which output, pooled how."""

from __future__ import annotations

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
PARALLEL = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
PREFIX = ("cls_token", "class_embedding", "distillation_token", "register_tokens")  # these come before the patches


def model_type(model: torch.nn.Module) -> str:
    """Return the name that transformers gives this architecture, else the module's class."""
    return getattr(getattr(model, "config", model), "model_type", type(model).__name__)


def no_masking(sequence: torch.Tensor, noise: Any = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Replace ViTMAE's masking: all patches in their order, none masked, and the order that restores them."""
    order = torch.arange(sequence.shape[1], device=sequence.device).expand(sequence.shape[:2])
    return sequence, torch.zeros_like(order), order


def backbone(model: torch.nn.Module) -> torch.nn.Module:
    """Return the part that sees: without a classifier's head and a masked autoencoder's masks."""
    if isinstance(model, PARALLEL):  # they hide what decides the pooling
        model = model.module
    if isinstance(model, PreTrainedModel) and MODEL_MAPPING.get(type(model.config), None) is not type(model):
        model = model.base_model  # not always: DINOv3's bare model calls a part of itself its base
    if hasattr(getattr(model, "embeddings", None), "random_masking"):
        model.embeddings.random_masking = no_masking  # type: ignore[union-attr]
    return model


def prefix_tokens(model: torch.nn.Module) -> int:
    """Count the output tokens that come before those of the patches."""
    tokens = (weights for name, weights in model.named_parameters() if name.endswith(PREFIX))
    return sum(weights.numel() // weights.shape[-1] for weights in tokens)


class Pooled(torch.nn.Module):
    """A vision model and its pooling as one module: pixels (b, 3, h, w) in, embeddings (b, d) out.

    Attributes:
        model: the backbone.
        pooling: one of POOLINGS, "rows" if the outputs are embeddings already, or None until `resolve_pooling`.
        prefix: output tokens before those of the patches.
    """

    def __init__(self, model: torch.nn.Module, pooling: str | None = None):
        if pooling not in (None, "rows", *POOLINGS):
            raise ValueError(f"There is no pooling {pooling!r}; there are {', '.join(map(repr, POOLINGS))}.")
        super().__init__()
        self.model = backbone(model)
        self.pooling = pooling
        self.prefix = prefix_tokens(self.model)

    @property
    def to_joint_space(self) -> Any:
        """The way of a dual encoder from images (CLIP, SigLIP) or sounds (CLAP) to its joint space, or None."""
        return getattr(self.model, "get_image_features", None) or getattr(self.model, "get_audio_features", None)

    def resolve_pooling(self, pixels: torch.Tensor) -> int:
        """Settle the pooling by a real pass over two copies of an image (2, 3, h, w), and return the length d.

        Raises:
            ValueError: the model cannot be pooled in this way, or does not give both copies the same embedding.
        """
        kind = model_type(self.model)
        try:
            outputs = self.outputs(pixels)
        except Exception as error:  # whatever a model that is not for images raises
            raise ValueError(f"A model of type {kind!r} cannot embed images: {first_line(error)}") from error
        chosen = next((name for name in self.suitable_poolings() if self.pool(outputs, name) is not None), None)
        if chosen is None:
            raise ValueError(f"A model of type {kind!r} gives no output that stands for a whole image.")
        embeddings = self.pool(outputs, self.pooling or chosen)
        if embeddings is None:
            raise ValueError(f"A model of type {kind!r} cannot be pooled by {self.pooling!r}, but by {chosen!r}.")
        if not torch.isfinite(embeddings).all():
            raise ValueError(f"A model of type {kind!r} gives numbers that are not finite: are its weights damaged?")
        two = embeddings.ndim == len(embeddings) == 2
        if not (two and torch.allclose(embeddings[0].float(), embeddings[1].float(), rtol=1e-2, atol=1e-3)):
            raise ValueError(f"A model of type {kind!r} does not give one image the same row of numbers twice.")
        self.pooling = self.pooling or chosen
        return embeddings.shape[1]

    def suitable_poolings(self) -> tuple[str, ...]:
        """Return the poolings that suit the model, the best first.

        A dual encoder (CLIP, SigLIP) has its joint space. Otherwise it is the model's own pooled output (an average
        over the image for ConvNeXT, RegNet, ResNet, MobileNet, Swin and, with a trained normalisation, BEiT; the
        normalised class token for DINOv2, DINOv3 and CLIP's tower; an attention for SigLIP's), unless a dense layer
        makes it: that one is trained, if at all, for another task, and checkpoints of classifiers lack it (ViT,
        DeiT). Then it is the class token, and without one (I-JEPA, SegFormer) the mean.
        """
        if self.to_joint_space:
            return "rows", "joint space"
        pooler = getattr(self.model, "pooler", None) or torch.nn.Identity()
        dense = any(isinstance(layer, torch.nn.Linear) for layer in pooler.modules())
        return ("rows", "class token", "mean") if dense else ("rows", "pooler", "class token", "mean")

    def outputs(self, pixels: torch.Tensor) -> Any:
        """Return the model's outputs for pixels (b, 3, h, w), as transformers defines them."""
        return (self.to_joint_space or self.model)(pixels)

    def pool(self, outputs: Any, pooling: str | None = None) -> Any:
        """Pool outputs into embeddings (b, d), by default in the way settled; None if this is not possible."""
        pooling = pooling or self.pooling
        if isinstance(outputs, torch.Tensor):
            return outputs if pooling == "rows" and outputs.ndim == 2 else None
        if pooling == "pooler" or (pooling == "joint space" and self.to_joint_space):
            pooled = getattr(outputs, "pooler_output", None)
            return pooled.flatten(1) if isinstance(pooled, torch.Tensor) else None
        hidden = getattr(outputs, "last_hidden_state", None)
        # The outputs of a decoder (DETR) are tokens of the objects found, not of places in the image.
        if hidden is None or hasattr(outputs, "encoder_last_hidden_state"):
            return None
        if pooling == "class token":
            return hidden[:, 0] if hidden.ndim == 3 and self.prefix else None
        if pooling == "mean" and hidden.ndim == 3:
            return hidden[:, self.prefix :].mean(1)
        return hidden.mean((2, 3)) if pooling == "mean" and hidden.ndim == 4 else None

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.pool(self.outputs(pixels))
