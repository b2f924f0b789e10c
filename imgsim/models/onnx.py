"""An encoder as one ONNX file: written from a checkpoint, run by ONNX Runtime."""

from __future__ import annotations

import json
import logging
import os
import warnings
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoImageProcessor

from imgsim.sources.cache import atomic_write, write_json
from imgsim.sources.errors import first_line, require
from imgsim.sources.names import is_onnx

FORMAT = 2  # of the settings in a file; those of format 1 were in a file of their own
SETTINGS, DIGEST = "imgsim", "imgsim_digest"  # keys of a file's metadata
BLANK = "-" * 32  # stands for the digest in a file while it is computed
AGREEMENT = 1e-4  # of the file's embeddings with torch's, relative to the largest number in them


class OnnxModel(torch.nn.Module):
    """An ONNX file as a module: pixels (b, 3, h, w) in, embeddings (b, d) out, on the CPU, in float32.

    Attributes:
        file: its path.
        content: a digest of the file.
        processor: the image processor given, or else the one that the file describes.
    """

    def __init__(self, checkpoint: str | os.PathLike, processor: Any = None):
        super().__init__()
        self.file = Path(checkpoint).expanduser()
        name = f"checkpoint {str(self.file)!r}"
        if not self.file.is_file():
            raise ValueError(f"{name}: there is no such file.")
        require(["onnxruntime"], "onnx")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # an encoder gives each of its threads a batch
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(self.file, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common class
            raise ValueError(f"{name} is no ONNX model that can be run: {first_line(error)}") from error
        metadata = self.session.get_modelmeta().custom_metadata_map
        self.content = file_digest(self.file.read_bytes(), metadata.get(DIGEST, BLANK))
        if metadata.get(DIGEST, self.content) != self.content:
            raise ValueError(f"{name} is damaged: it is not as imgsim export wrote it.")
        try:
            self.processor = processor or make_processor(metadata.get(SETTINGS))
        except Exception as error:  # of any kind, for the file is anybody's
            raise ValueError(
                f"{name} does not say how images are prepared ({first_line(error)}): "
                "export it again, or give its processor, too."
            ) from error

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        (pixels_in, *_), (embeddings_out, *_) = self.session.get_inputs(), self.session.get_outputs()
        return torch.from_numpy(self.session.run([embeddings_out.name], {pixels_in.name: pixels.numpy()})[0])


def make_processor(settings: str | None) -> Any:
    """Make the image processor that a file's settings describe, as JSON."""
    if settings is None:
        raise ValueError("imgsim export did not write it")
    content = json.loads(settings)
    if content["format"] != FORMAT:
        raise ValueError(f"its settings have format {content['format']}, and this version reads {FORMAT}")
    with TemporaryDirectory() as folder:
        write_json(Path(folder) / "preprocessor_config.json", content["processor"])
        return AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)


def file_digest(content: bytes, written: str) -> str:
    """Compute the digest of a file's bytes, apart from the digest that is written in them."""
    return blake2b(content.replace(written.encode(), BLANK.encode()), digest_size=16).hexdigest()


def export_onnx(encoder, target: str | os.PathLike) -> str:
    """Write an `Encoder` to one ONNX file, with its pooling and its image processor's settings, for any batch size.

    Returns:
        A line that says what was written, and how far its embeddings are from torch's.

    Raises:
        ValueError: the encoder cannot be exported, or its embeddings do not agree; nothing is written.
    """
    require(["onnx", "onnxscript", "onnxruntime"], "onnx")
    file = Path(target).expanduser()
    if not is_onnx(file) or not file.parent.is_dir():
        raise ValueError(f"{str(file)!r} must be a file in a folder that exists, and its name must end in .onnx.")
    if encoder.dtype != torch.float32 or encoder.device.type != "cpu" or isinstance(encoder.model, OnnxModel):
        raise ValueError("Only an encoder in float32 on the CPU that is no ONNX file yet can be exported.")
    example = encoder.example()
    try:
        program = to_onnx(encoder.network, example)
    except Exception as error:  # the exporter's have no common class either
        raise ValueError(f"{encoder.name!r} cannot be exported to ONNX: {first_line(error)}") from error
    settings = {"format": FORMAT, "checkpoint": encoder.name, "pooling": encoder.pooling}
    settings["processor"] = json.loads(encoder.processor.to_json_string())
    program.model.metadata_props.update({SETTINGS: json.dumps(settings), DIGEST: BLANK})
    with atomic_write(file) as beside:
        program.save(beside, external_data=False)
        content = beside.read_bytes()
        beside.write_bytes(content.replace(BLANK.encode(), file_digest(content, BLANK).encode()))
        noise = torch.randn(3, *example.shape[1:], generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            expected, embeddings = encoder.network(noise), OnnxModel(beside)(noise)
        difference = float((expected - embeddings).abs().max())
        if not difference <= AGREEMENT * max(1, float(expected.abs().max())):
            raise ValueError(f"{encoder.name!r} gives other embeddings as ONNX (by up to {difference:.2g}).")
    size = file.stat().st_size / 1e6
    return (
        f"{file}: {encoder.dim} numbers per image ({encoder.pooling}), {size:.1f} MB; "
        f"they differ from torch's by at most {difference:.0e}."
    )


def to_onnx(network: torch.nn.Module, example: torch.Tensor) -> torch.onnx.ONNXProgram:
    """Convert a network to ONNX, for any number of pixels such as the example (2, 3, h, w)."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(action="ignore"), torch.inference_mode(False), torch.no_grad():
        return torch.onnx.export(  # type: ignore[return-value]
            network,
            (example.clone(),),
            input_names=["pixels"],
            output_names=["embeddings"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
