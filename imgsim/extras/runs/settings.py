"""The settings of a run: defaults, checks, parameter files, and the name of the folder that a run leaves."""

from __future__ import annotations

import json
import re
from hashlib import blake2b
from pathlib import Path
from reprlib import repr as shortened

import yaml

from imgsim.hashing import check_integer, check_settings
from imgsim.search.principal import check_planes
from imgsim.sources.errors import first_line
from imgsim.sources.names import split_checkpoint

DEFAULTS = {
    "dataset": "builtin",
    "checkpoint": "builtin",
    "hash_size": 8,
    "num_tables": 10,
    "planes": "principal",
    "probes": 8,
    "seed": 0,
    "top_k": 5,
    "batch_size": 48,
    "dtype": "float32",
}
WEIGHTS = "'builtin', a checkpoint on the Hub (owner/name or owner/name@revision), or a folder"
HELP = {  # for the command line
    "dataset": "'builtin', a dataset on the Hub (owner/name or owner/name@revision), or a folder of images",
    "checkpoint": f"{WEIGHTS}, any of them after 'untrained:' for the same network with random weights, or ONNX",
    "hash_size": "bits per code, 1 to 64: more bits, smaller buckets",
    "num_tables": "hash tables: more tables, more neighbours found",
    "planes": "'principal', within the directions in which the images differ most, or 'random', as in the article",
    "probes": "extra buckets looked up per table: more probes, more neighbours found",
    "seed": "seed of the planes, and of the held-out tenth if a dataset has only one split",
    "top_k": "matches to show per query",
    "batch_size": "images embedded at a time",
    "dtype": "precision of the model's numbers: float32, bfloat16 or, on a GPU, float16",
}
MINIMUM = {"probes": 0, "seed": 0, "top_k": 1, "batch_size": 1}
ABBREVIATIONS = {"k": "hash_size", "L": "num_tables", "p": "probes", "seed": "seed"}  # in a run's name


def complete_settings(settings: dict) -> dict:
    """Check settings and fill in the defaults.

    Raises:
        ValueError: a name or a value is wrong.
    """
    for name, value in settings.items():
        if name not in DEFAULTS:
            raise ValueError(f"There is no setting {name!r}; the settings are {', '.join(DEFAULTS)}.")
        kind = type(DEFAULTS[name])
        if not isinstance(value, kind) or isinstance(value, bool):
            expected = "a whole number" if kind is int else "text"
            raise ValueError(f"{name} must be {expected}, not {shortened(value):.80}.")  # YAML's aliases grow in secret
        if value == "":
            raise ValueError(f"{name} is empty.")
    settings = DEFAULTS | settings
    check_settings(settings["hash_size"], settings["num_tables"])
    check_planes(settings["planes"])
    for name, minimum in MINIMUM.items():
        check_integer(settings[name], name, minimum)
    return settings


class Loader(yaml.SafeLoader):
    """YAML in which text settings stay text, so that a checkpoint may be called 075, and no name occurs twice."""

    def construct_mapping(self, node, deep=False):
        names = [key.value for key, _ in node.value]
        for i, (name, (key, value)) in enumerate(zip(names, node.value, strict=True)):
            if name in names[:i]:
                raise yaml.MarkedYAMLError(problem=f"{name} occurs twice", problem_mark=key.start_mark)
            if isinstance(name, str) and isinstance(DEFAULTS.get(name), str):
                for item in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    item.tag = "tag:yaml.org,2002:str" if isinstance(item, yaml.ScalarNode) else item.tag
        return super().construct_mapping(node, deep)


def read_params(path) -> dict:
    """Read settings from a papermill parameters file (YAML).

    Raises:
        ValueError: the file cannot be read, or holds something else.
    """
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), Loader) or {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        reason = first_line(error)
        if mark := getattr(error, "problem_mark", None):
            reason = f"line {mark.line + 1}, character {mark.column + 1}: {error.problem}"
        raise ValueError(f"The parameters file {str(path)!r} cannot be read: {reason}") from error
    if not isinstance(content, dict):
        raise ValueError(f"The parameters file {str(path)!r} must hold lines of the form name: value.")
    return content


def run_name(settings: dict) -> str:
    """Name a folder by the settings: beans-mobilenet-v1-025-k8-L10-p8-seed0."""
    prefix, checkpoint = split_checkpoint(settings["checkpoint"])
    numbers = "".join(f"-{letter}{settings[name]}" for letter, name in ABBREVIATIONS.items())
    others = "".join(f"-{settings[name]}" for name in ("planes", "dtype") if settings[name] != DEFAULTS[name])
    name = f"{Path(settings['dataset']).name}-{prefix}{Path(checkpoint).name}{numbers}{others}"
    return re.sub(r"[^\w.-]+", "-", name)


def short_digest(content) -> str:
    """Return a digest of four bytes of anything that JSON can hold."""
    return blake2b(json.dumps(content, sort_keys=True, default=str).encode(), digest_size=4).hexdigest()
