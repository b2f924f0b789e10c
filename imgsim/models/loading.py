"""How a checkpoint wants its images: resized, cropped, normalised. Always pillow's way of doing it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import AutoImageProcessor, ViTImageProcessorPil

from imgsim.models.pooling import model_type
from imgsim.sources.cache import first_line

# DINOv3's processor exists for torchvision only. It resizes and normalises as ViT's does, with these defaults.
DINOV3 = {"resample": 2, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
DINOV3 |= {"size": {"height": 224, "width": 224}}


def read_processor(folder: Path, model: torch.nn.Module):
    """The image processor in a checkpoint's folder, with the same results whatever else is installed.

    Raises ValueError, which names the model's type, where there is none or pillow does not do for it.
    """
    try:
        if (folder / "preprocessor_config.json").is_file():
            settings = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
            if str(settings.get("image_processor_type")).startswith("DINOv3ViT"):
                given = {name: settings[name] for name in DINOV3 if settings.get(name) is not None}
                return ViTImageProcessorPil(**DINOV3 | given)
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
        if getattr(processor, "backend", "pil") != "pil":
            raise ValueError(f"{type(processor).__name__} does not work with pillow")
        return processor
    except (OSError, ValueError, KeyError, AttributeError, ImportError) as error:
        kind = model_type(model)
        raise ValueError(f"{str(folder)!r}, of type {kind!r}, has no image processor: {first_line(error)}") from error
