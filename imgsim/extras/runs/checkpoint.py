"""The checkpoint to take where none is named."""

from __future__ import annotations

import sys

from imgsim.sources.hub import locate

GENERAL = "facebook/dinov2-small"  # for photographs of anything
LEAVES_ONLY = "The built-in checkpoint knows only rendered leaves"


def ask_for_checkpoint() -> str:
    """Return the checkpoint for photos if it is here or the user wants it downloaded, else the built-in one."""
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache(GENERAL, "model.safetensors"), str):
        return GENERAL
    if sys.stdin.isatty() and sys.stderr.isatty():
        print(f"{LEAVES_ONLY}. Download {GENERAL} (88 MB)? [Y/n] ", file=sys.stderr)
        if sys.stdin.readline().strip().lower() in ("", "y", "yes"):
            try:
                locate(GENERAL, "checkpoint")
                return GENERAL
            except ConnectionError as error:
                print(error, file=sys.stderr)
    return "builtin"
