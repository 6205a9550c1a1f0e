"""Texts of a stranger's data inside YAML: nothing that they hold may end a comment or a value."""

from __future__ import annotations

from typing import Any

import yaml

MAX_SHOWN = 40


def shown(text: str, most: int = MAX_SHOWN) -> str:
    """A text as a comment can hold it: on one line, cut, and everything that does not print escaped."""
    cut = text if len(text) <= most else text[: most - 3] + "..."
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in cut)


def flow(value: Any) -> str:
    """A value as YAML on one line, texts in double quotes."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(flow, value)) + "]"
    style = '"' if isinstance(value, str) else None
    text: str = yaml.safe_dump(value, default_style=style, width=1 << 20, allow_unicode=True)
    return text.removesuffix("\n...\n").strip()


def plain(path: str) -> str:
    """A path as a value: quoted only where it must be."""
    return path if path and all(letter.isascii() and (letter.isalnum() or letter in "_./-") for letter in path) else flow(path)
