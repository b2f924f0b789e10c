"""Fonts that can show the names of files and classes, whatever their script."""

from __future__ import annotations

from matplotlib.font_manager import findfont, fontManager, get_font

SCRIPTS = (  # fonts with the characters that matplotlib's own lacks; those that are installed are used
    *("Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans JP", "Droid Sans Fallback", "WenQuanYi Zen Hei"),
    *("PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo", "Thonburi", "Arial Unicode MS", "Noto Sans Thai"),
    *("Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Leelawadee UI", "Nirmala UI", "Noto Sans Devanagari"),
)
FONTS = ["DejaVu Sans", *(name for name in SCRIPTS if name in {font.name for font in fontManager.ttflist})]


def readable(text: str, otherwise: str) -> str:
    """Return a text as a figure can show it, cut to 22 characters; `otherwise` if no font has its characters."""
    if not all(any(get_font(findfont(name)).get_char_index(ord(letter)) for name in FONTS) for letter in text):
        return otherwise
    return text if len(text) <= 22 else f"{text[:21]}…"
