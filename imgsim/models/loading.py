"""Checkpoints in transformers format: the network, its image processor, its device and precision."""

from __future__ import annotations

import atexit
import gc
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

import torch
import transformers
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoImageProcessor, AutoModel, ViTImageProcessorPil

from imgsim.models.pooling import model_type
from imgsim.sources.errors import first_line
from imgsim.sources.names import is_onnx

BUILTIN = Path(__file__).parents[1] / "assets" / "leaf-vit"
DTYPES = ("float32", "bfloat16", "float16")
LOADING_ERRORS = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError)
# DINOv3's processor exists for torchvision only. It resizes and normalises as ViT's does, with these defaults.
DINOV3 = {"resample": 2, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
DINOV3 |= {"size": {"height": 224, "width": 224}}

atexit.register(gc.freeze)  # a process that ends would look through all that was imported, for more than a second


def pick_device(checkpoint="builtin") -> torch.device:
    """Return CUDA or MPS if there is one, else the CPU, which also runs ONNX files."""
    if is_onnx(checkpoint):
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def as_device(device) -> torch.device:
    """Return a device given by name or as torch has it, by default that of `pick_device`.

    Raises:
        ValueError: it is not there.
    """
    try:
        return torch.zeros((), device=device or pick_device()).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch's builds differ
        raise ValueError(f"There is no device {str(device)!r} here: take cuda, mps or cpu.") from error


def pick_dtype(dtype, device: torch.device, checkpoint="builtin") -> torch.dtype:
    """Return a precision given by name or as torch has it.

    Raises:
        ValueError: there is no such precision, or this device or checkpoint does not run in it.
    """
    name = "float32" if dtype is None else str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(f"dtype is {name!r}, but must be one of {', '.join(DTYPES)}.")
    if name == "float16" and device.type == "cpu":
        raise ValueError("float16 is for GPUs, and this is a CPU: take bfloat16 or float32.")
    if is_onnx(checkpoint) and name != "float32":
        raise ValueError(f"An ONNX file runs in float32, not in {name}; take the checkpoint that it was made of.")
    return getattr(torch, name)


@contextmanager
def quiet() -> Iterator[None]:
    """Hide transformers' load report, harmless here: an encoder has no use for the classifier's weights."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        transformers.logging.enable_progress_bar()


def load_model(folder: Path, untrained: bool, pooling: str | None) -> torch.nn.Module:
    """Load the network of a checkpoint's folder, or the same network with random weights, always the same ones.

    Raises:
        ValueError: weights that an embedding needs are missing.
        LOADING_ERRORS: whatever else transformers raises.
    """
    with quiet():
        model, report = AutoModel.from_pretrained(
            folder, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
        if untrained:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                return AutoModel.from_config(model.config)
    needed = [name for name in report["missing_keys"] if pooling == "pooler" or not name.startswith("pooler.")]
    if needed:
        raise ValueError(f"its weights lack {len(needed)} of the model's, such as {min(needed)}")
    return model


def read_processor(folder: Path, model: torch.nn.Module):
    """Read the image processor in a checkpoint's folder, with the same results whatever else is installed.

    Raises:
        ValueError: there is none, or it does not work with pillow; the sentence names the model's type.
    """
    try:
        with quiet():
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


def memory_layout(model: torch.nn.Module) -> torch.memory_format:
    """Return the layout of pixels in memory that suits a model.

    Convolutions that overlap run faster on pixels whose colours lie side by side.
    """
    convolutions = (part for part in model.modules() if isinstance(part, torch.nn.Conv2d))
    overlap = any(part.kernel_size > part.stride for part in convolutions)
    return torch.channels_last if overlap else torch.contiguous_format


def weights_state(model: torch.nn.Module) -> list[tuple[int, int]]:
    """Return what changes when a module's weights do, without reading them; ValueError if it has none."""
    tensors = (*model.parameters(), *model.buffers())
    if any(tensor.is_meta for tensor in tensors):
        raise ValueError("The model has no weights yet, only their shapes (torch's meta device): load them first.")
    return [(tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for tensor in tensors]


def example_pixels(prepare: Callable[[list], torch.Tensor]) -> torch.Tensor:
    """Return what an image processor makes of two copies of an image.

    Raises:
        ValueError: it makes no pixels, or makes of images of another shape pixels of another shape.
    """
    try:
        pixels, others = (prepare([Image.new("RGB", size)] * 2) for size in ((64, 64), (96, 48)))
    except KeyError as error:
        raise ValueError(
            f"The image processor makes of images no {first_line(error)}: is it one for images?"
        ) from error
    if pixels.shape != others.shape:
        raise ValueError("The image processor keeps the shape of images: it must crop or resize them to one size.")
    return pixels


def model_digest(model: torch.nn.Module, processor, pooling: str, precision: str) -> str:
    """Return a digest of all that decides an encoder's embeddings: weights, configuration, processor, pooling."""
    config = model.config.to_dict() if hasattr(model, "config") else {}
    unstable = ("_name_or_path", "transformers_version", "architectures", "dtype")
    settings = {key: value for key, value in config.items() if key not in unstable}
    prepared = processor.to_dict() if hasattr(processor, "to_dict") else {}
    backend = getattr(processor, "backend", None)  # pillow's pixels are not torchvision's
    content = getattr(model, "content", None)  # of an ONNX file
    parts = [settings, prepared, backend, pooling, precision, content]
    digest = blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=16)
    for name, weights in sorted(model.state_dict().items()):
        if pooling == "pooler" or not name.startswith("pooler."):  # an unused pooler may differ at every load
            digest.update(name.encode())
            digest.update(weights.float().cpu().contiguous().numpy())
    return digest.hexdigest()
