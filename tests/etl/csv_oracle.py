"""What a CSV file says, by the rules of the project's documentation alone: a character at a time, with none of its code.

- A file may begin with a byte order mark. Lines end in a line feed, with or without a carriage return before it.
- A line of nothing but spaces, tabs and their like is none, unless it holds a delimiter; it counts as a position.
- A quote that begins a cell ends with it; inside, a quote stands behind an escape, which may be a quote too.
- Elsewhere a quote is text; an odd number of them in a line may be half of a record, and the line is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

BOM = "\ufeff".encode()
SPACES = " \t\v\f\r"
Verdict = str  # right, open (a quote is not closed), broken (text behind a closed cell), odd (quotes inside of cells)


@dataclass(frozen=True)
class Signs:
    delimiter: str = ","
    quote: str = '"'
    escape: str = '"'


@dataclass(frozen=True)
class Line:
    """What stands at a position: its bytes (of a record of several lines those of its cells), and its values by column or its
    fault."""

    position: int
    raw: bytes = b""
    cells: list[bytes] = field(default_factory=list)
    values: dict[str, str | int | None] | None = None
    fault: str | None = None


def cut(text: str, signs: Signs) -> tuple[list[str], Verdict]:
    """The cells of a record."""
    cells: list[str] = []
    cell, state, odd, at = "", "start", False, 0
    while at < len(text):
        sign, escaped = text[at], text[at] == signs.escape and text[at + 1 : at + 2] in {signs.quote, signs.escape}
        if state == "quoted" and escaped:
            cell, at = cell + text[at + 1], at + 1
        elif state == "quoted" and sign == signs.quote:
            state = "closed"
        elif state == "quoted":
            cell += sign
        elif sign == signs.delimiter:
            cells, cell, state = [*cells, cell], "", "start"
        elif state == "closed":
            return [], "broken"
        elif state == "start" and sign == signs.quote:
            state = "quoted"
        elif escaped and signs.escape != signs.quote:
            cell, state, at = cell + text[at : at + 2], "plain", at + 1
        else:
            cell, state, odd = cell + sign, "plain", odd != (sign == signs.quote)
        at += 1
    return [*cells, cell], "open" if state == "quoted" else "odd" if odd else "right"


def is_blank(line: bytes, signs: Signs) -> bool:
    return not line.decode("latin-1").strip(SPACES) and signs.delimiter.encode() not in line


def lines_of(content: bytes) -> list[bytes]:
    *lines, rest = content.removeprefix(BOM).split(b"\n")
    return [*lines, rest] if rest else lines


def said(cells: list[str], header: list[str], nulls: tuple[str, ...]) -> tuple[dict[str, str | int | None] | None, str | None]:
    """Values by column (``id`` is a whole number of 64 bits), or the fault."""
    if len(cells) != len(header):
        return None, "num_cells"
    values: dict[str, str | int | None] = {
        name: None if cell in nulls else cell for name, cell in zip(header, cells, strict=True)
    }
    if isinstance(text := values["id"], str):
        number = int(text) if re.fullmatch(r"-?[0-9]{1,19}", text, re.ASCII) else 1 << 63
        if str(number) != text or not -(1 << 63) <= number < 1 << 63:
            return None, "type"
        values["id"] = number
    return values, None


def read_lines(content: bytes, signs: Signs, nulls: tuple[str, ...]) -> Iterator[Line]:
    """Where a line is a record."""
    header: list[str] = []
    for position, ended in enumerate(lines_of(content), start=1):
        line = ended.removesuffix(b"\r")
        if not header:
            header, _ = cut(line.decode(), signs)
        elif is_blank(line, signs):
            continue
        elif "\ufffd" in (text := line.decode("utf-8", "replace")) and text.encode() != line:
            yield Line(position, line, fault="utf8")
        else:
            cells, verdict = cut(text, signs)
            yield Line(position, line, [], *said(cells, header, nulls) if verdict == "right" else (None, "quote"))


def read_records(content: bytes, signs: Signs, nulls: tuple[str, ...]) -> list[Line] | None:
    """Where a quoted cell may hold line ends: None for a file that cannot be read, for a quote that is open or broken."""
    header: list[str] = []
    found: list[Line] = []
    position, waiting = 0, b""
    for ended in lines_of(content):
        line = waiting + ended.removesuffix(b"\r")
        cells, verdict = cut(line.decode("utf-8", "surrogateescape"), signs)
        if verdict == "broken":
            return None
        if verdict == "open":
            waiting += ended + b"\n"
            continue
        position, waiting = position + 1, b""
        if not header:
            header = cells
        elif is_blank(line, signs):
            continue
        else:
            held = [cell.encode("utf-8", "surrogateescape") for cell in cells]
            is_text = all(not "\udc80" <= sign <= "\udcff" for cell in cells for sign in cell)
            found.append(Line(position, b"", held, *said(cells, header, nulls) if is_text else (None, "utf8")))
    return None if waiting else found
