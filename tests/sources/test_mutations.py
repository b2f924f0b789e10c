"""A thousand damaged image files, from a fixed seed: each is read or refused with a sentence, in bounded memory."""

import json
import subprocess
import sys
from pathlib import Path

COUNT = 1000
WORK = f"""
import io, json, resource, sys, time, warnings
import numpy as np
import PIL.Image
from oddities import BROKEN, ODD, contents, marked
from imgsim.sources.decode import open_image, why_unreadable

warnings.simplefilter("ignore")
photo = PIL.Image.fromarray(np.random.default_rng(1).integers(0, 256, (90, 120, 3), np.uint8))
wholes = [content for content, *_ in [*ODD.values(), *BROKEN.values()] if 0 < len(content) < 200_000]
wholes += [contents(photo, form) for form in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM")]
wholes += [contents(photo, "JPEG", progressive=True), contents(photo, "TIFF", compression="tiff_lzw")]


def damage(rng):
    content = bytearray(wholes[rng.integers(len(wholes))])
    for _ in range(rng.integers(1, 4)):
        kind, place, length = rng.integers(6), int(rng.integers(len(content) + 1)), int(rng.integers(1, 60))
        if kind == 0:
            for spot in rng.integers(len(content), size=length) if content else ():
                content[spot] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            content = content[:place]
        elif kind == 2:
            content[place : place + length] = rng.choice([b"\\0", b"\\xff", b"\\x7f"]) * length
        elif kind == 3:
            content[place:place] = rng.bytes(length)
        elif kind == 4:  # a part twice, or of another file
            other = rng.choice([len(wholes), 0]) and wholes[rng.integers(len(wholes))] or bytes(content)
            content[place:place] = other[place : place + 20 * length]
        elif kind == 5:
            content[place : place + 4] = int(rng.integers(2**31)).to_bytes(4, rng.choice(["big", "little"]))
    return bytes(content)


before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
counts, slowest = {{"read": 0, "refused": 0}}, 0
for number in range({COUNT}):
    content = damage(np.random.default_rng([9, number]))
    print(number, file=sys.stderr, flush=True)  # the last one is known if the process dies
    start = time.perf_counter()
    reason = why_unreadable(content)
    try:
        image = open_image(content)
        assert image.mode == "RGB" and image.width * image.height > 0 and reason is None
        counts["read"] += 1
    except ValueError as error:
        assert reason and "\\n" not in str(error) and reason in str(error), (number, error)
        counts["refused"] += 1
    slowest = max(slowest, time.perf_counter() - start)
megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
print(json.dumps(counts | {{"megabytes": megabytes, "slowest": slowest}}))
"""


def test_a_thousand_damaged_files_are_read_or_refused():
    folder = Path(__file__).parent
    answer = subprocess.run([sys.executable, "-c", WORK], cwd=folder, capture_output=True, text=True, timeout=600)
    assert answer.returncode == 0, answer.stderr[-2000:]
    counts = json.loads(answer.stdout)
    print(counts)
    assert counts["read"] + counts["refused"] == COUNT and min(counts["read"], counts["refused"]) > 100
    assert counts["megabytes"] < 2000
