"""An encoder as one ONNX file: written from a checkpoint, run by ONNX Runtime."""

from __future__ import annotations

import json
import logging
import warnings
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from transformers import AutoImageProcessor

from imgsim.sources.cache import atomic_write, write_json
from imgsim.sources.errors import first_line, require
from imgsim.sources.names import is_onnx

FORMAT = 1  # of the settings beside an ONNX file
AGREEMENT = 1e-4  # of the file's embeddings with torch's, measured against the largest number in them


def sidecar_path(file: Path) -> Path:
    return file.with_name(f"{file.name}.json")


def read_settings(checkpoint, processor=None) -> dict:
    """What `export` wrote beside an ONNX file; with a processor of one's own nothing need be there.

    Raises ValueError where a file is missing, or the two are not those that were written together.
    """
    file = Path(checkpoint).expanduser()
    if not file.is_file():
        raise ValueError(f"checkpoint {str(file)!r}: there is no such file.")
    require(("onnxruntime",), "onnx")
    digest = blake2b(file.read_bytes(), digest_size=16).hexdigest()
    if processor is not None:
        return {"file": file, "digest": digest}
    beside = sidecar_path(file)
    try:
        settings = json.loads(beside.read_text(encoding="utf-8"))
        if settings["format"] != FORMAT:
            raise ValueError(f"its format is {settings['format']}, and this version reads {FORMAT}")
        written = settings["digest"]
        _ = settings["processor"]["image_processor_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"checkpoint {str(file)!r}: {beside.name} beside it, which says how images are prepared, "
            f"cannot be read ({reason}); export it again."
        ) from error
    if written != digest:
        raise ValueError(f"checkpoint {str(file)!r} is damaged, or not the file that {beside.name} was written for.")
    return settings | {"file": file}


def onnx_processor(settings: dict):
    """The image processor that belongs to an ONNX file."""
    with TemporaryDirectory() as folder:
        write_json(Path(folder) / "preprocessor_config.json", settings["processor"])
        return AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)


class OnnxModel(torch.nn.Module):
    """An ONNX file as a module: pixels (b, 3, h, w) in, rows (b, d) out, on the CPU, in float32."""

    def __init__(self, settings: dict):
        import onnxruntime

        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # an encoder gives each of its threads a batch
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(
                str(settings["file"]), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exceptions have no common class
            raise ValueError(
                f"checkpoint {str(settings['file'])!r} is no ONNX model that can be run: {first_line(error)}"
            ) from error
        self.content = settings["digest"]

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        (pixels_in, *_), (rows_out, *_) = self.session.get_inputs(), self.session.get_outputs()
        return torch.from_numpy(self.session.run([rows_out.name], {pixels_in.name: pixels.numpy()})[0])


def export(encoder, target) -> str:
    """Write an encoder to an ONNX file, pooling inside, and its image processor's settings to <file>.json.

    Any number of images can go through the file at once. Returns a line that says what was written and how far
    its embeddings are from torch's; where they do not agree, ValueError is raised and nothing is written.
    """
    require(("onnx", "onnxscript", "onnxruntime"), "onnx")
    file = Path(target).expanduser()
    if not is_onnx(file) or not file.parent.is_dir():
        raise ValueError(f"{str(file)!r} must be a file in a folder that exists, and its name must end in .onnx.")
    if encoder.dtype != torch.float32 or encoder.device.type != "cpu" or isinstance(encoder.model, OnnxModel):
        raise ValueError("Only an encoder in float32 on the CPU that is no ONNX file yet can be exported.")
    network, example = encoder.network, encoder.example()
    batch = torch.export.Dim("batch")
    with atomic_write(file) as beside:
        try:
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
                warnings.simplefilter("ignore")
                torch.onnx.export(
                    network,
                    (example.clone(),),
                    beside,
                    input_names=["pixels"],
                    output_names=["embeddings"],
                    dynamic_shapes=({0: batch},),
                    external_data=False,
                    dynamo=True,
                    verbose=False,
                )
        except Exception as error:  # the exporter's have no common class either
            raise ValueError(f"{encoder.name!r} cannot be exported to ONNX: {first_line(error)}") from error
        digest = blake2b(beside.read_bytes(), digest_size=16).hexdigest()
        noise = torch.randn(3, *example.shape[1:], generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            ours, theirs = network(noise).numpy(), OnnxModel({"file": beside, "digest": digest})(noise).numpy()
        difference = float(np.abs(ours - theirs).max())
        if not difference <= AGREEMENT * max(1, np.abs(ours).max()):
            raise ValueError(f"{encoder.name!r} gives other embeddings as ONNX (by up to {difference:.2g}).")
        settings = {"format": FORMAT, "checkpoint": encoder.name, "pooling": encoder.pooling, "dim": encoder.dim}
        settings |= {"digest": digest, "processor": json.loads(encoder.processor.to_json_string())}
        write_json(sidecar_path(file), settings)
    size = file.stat().st_size / 1e6
    return (
        f"{file}: {encoder.dim} numbers an image ({encoder.pooling}), {size:.1f} MB; "
        f"they differ from torch's by at most {difference:.0e}."
    )
