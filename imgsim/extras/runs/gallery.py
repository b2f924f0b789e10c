"""Groups of pictures side by side, as one HTML page that needs no other file."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from imgsim.sources.cache import atomic_write
from imgsim.sources.decode import open_image

TEMPLATE = Path(__file__).parents[2] / "assets" / "gallery.html"


@dataclass
class Picture:
    """A picture on the page.

    Attributes:
        source: the image, as `open_image` takes it.
        name: what it is called.
        notes: lines above the name.
        path: of its file, to which the page links it.
        marked: whether it is framed.
    """

    source: Any
    name: str
    notes: Sequence[str] = ()
    path: str = ""
    marked: bool = False

    @property
    def link(self) -> str | None:
        """The address of the file, or None if there is no such file."""
        return Path(self.path).absolute().as_uri() if Path(self.path).is_file() else None

    @property
    def shown_name(self) -> str:
        """The name as text that any page can hold."""
        return self.name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")

    def thumbnail(self) -> str:
        """Return a small JPEG in base64."""
        content, image = BytesIO(), open_image(self.source)
        image.thumbnail((240, 240))
        image.save(content, "JPEG", quality=80)
        return b64encode(content.getvalue()).decode()


def write_gallery(target: Path, title: str, lines: Sequence[str], groups: Iterable[tuple[str, list[Picture]]]) -> None:
    """Write groups of pictures, each with a heading, below a title and lines of text."""
    from jinja2 import Environment

    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(TEMPLATE.read_text("utf-8"))
    with atomic_write(target) as beside:
        page.stream(title=title, lines=lines, groups=groups).dump(str(beside), "utf-8")
