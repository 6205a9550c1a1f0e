"""CSV of an unknown dialect: how it is written, and its cells."""

from __future__ import annotations

import csv
import io
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from etl.infer.types import infer_type
from lakering.errors import InputError

DELIMITERS = (",", ";", "\t", "|")
#: Quote and escape; the first is the usual one.
QUOTES = (('"', '"'), ('"', "\\"), ("'", "'"), ("'", "\\"))
SNIFFED_LINES = 500
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
BOM = "\ufeff"


@dataclass(frozen=True)
class CsvDialect:
    """How CSV is written; ``multi_line``: some cells hold line ends, so that a record is not a line."""

    delimiter: str = ","
    quote: str = '"'
    escape: str = '"'
    multi_line: bool = False
    encoding: str = "UTF-8"


def guess_encoding(contents: Sequence[bytes], paths: Sequence[str]) -> str:
    """UTF-8, unless more lines are none than are UTF-8 beyond ASCII; then a Western one by byte. Raises InputError for UTF-16."""
    for content, path in zip(contents, paths, strict=True):
        if content.startswith(UTF_16):
            raise InputError(f"{path} is UTF-16, which is not read",
                             next_step="write it as UTF-8, such as: iconv -f UTF-16 -t UTF-8 IN > OUT")  # fmt: skip
    good, bad, odd = 0, 0, b""
    for line in itertools.chain.from_iterable(content.split(b"\n") for content in contents if not content.isascii()):
        if line.isascii():
            continue
        try:
            line.decode("utf-8")
            good += 1
        except UnicodeDecodeError:
            bad += 1
            odd += line if len(odd) < 1 << 20 else b""
    if bad <= good:
        return "UTF-8"
    # 0x80 to 0x9F are letters and quotation marks in Windows' page, and control characters in ISO's.
    return "windows-1252" if any(0x80 <= byte <= 0x9F for byte in odd) else "ISO-8859-1"


def sniff_dialect(text: str, encoding: str) -> CsvDialect:
    """The dialect under which most of the first records have as many cells as the header; of several the one with the most
    cells, then the usual one."""
    lines = text.split("\n", SNIFFED_LINES)
    head, is_cut = "\n".join(lines[:SNIFFED_LINES]), len(lines) > SNIFFED_LINES
    best, best_score = CsvDialect(encoding=encoding), (0.0, 0)
    for delimiter, (quote, escape) in itertools.product(DELIMITERS, QUOTES):
        if delimiter not in head or ((quote, escape) != QUOTES[0] and (quote not in head or escape not in head)):
            continue
        dialect = with_lines(head, CsvDialect(delimiter, quote, escape, encoding=encoding), is_cut=is_cut)
        share, cells = _score(head, dialect)
        if (round(share, 2), cells) > best_score:
            best, best_score = dialect, (round(share, 2), cells)
    return best


def with_lines(text: str, dialect: CsvDialect, *, is_cut: bool) -> CsvDialect:
    """The dialect as it stands, or multi-line where lines break records apart and no record is broken without them.

    A lone quote swallows what follows it, and so leaves records with other numbers of cells: that file stays single-line."""
    if dialect.multi_line or _score(text, dialect)[0] == 1:
        return dialect
    several = replace(dialect, multi_line=True)
    return several if _score(whole_records(text, dialect) if is_cut else text, several)[0] == 1 else dialect


def whole_records(text: str, dialect: CsvDialect) -> str:
    """A text without a last record that was cut in two: its lines up to the last one at which all quotes are closed."""
    end = start = quotes = 0
    for line in text.split("\n"):
        start += len(line) + 1
        quotes += _num_quotes(line, dialect)
        end = end if quotes % 2 else start
    return text[:end]


def _score(text: str, dialect: CsvDialect) -> tuple[float, int]:
    """The share of records with the header's number of cells, and that number. One cell is no table."""
    try:
        counts = [len(record) if record else 0 for record in read_records(text, dialect, strict=True)]
    except csv.Error:  # a quote that is never closed, or goes on after its end
        return 0.0, 0
    if not counts or counts[0] < 2:
        return 0.0, 0
    return sum(count == counts[0] for count in counts) / len(counts), counts[0]


def read_records(text: str, dialect: CsvDialect, *, strict: bool = False) -> Iterator[list[str] | None]:
    """The records of a file, its header first; None for a line whose quotes do not pair. Blank lines are left out."""
    options = {"delimiter": dialect.delimiter, "quotechar": dialect.quote, "doublequote": dialect.escape == dialect.quote,
               "escapechar": None if dialect.escape == dialect.quote else dialect.escape,
               "strict": strict and dialect.multi_line}  # fmt: skip
    csv.field_size_limit(len(text) + 1)
    if dialect.multi_line:
        yield from (record for record in csv.reader(io.StringIO(text, newline=""), **options) if record)  # type: ignore[arg-type]
        return
    for line in text.split("\n"):
        line = line.removesuffix("\r")
        if not line.strip():
            continue
        if dialect.quote not in line and dialect.escape not in line:
            yield line.split(dialect.delimiter)
        elif _num_quotes(line, dialect) % 2:
            yield None
        else:
            yield next(csv.reader([line], **options))  # type: ignore[arg-type]


def _num_quotes(line: str, dialect: CsvDialect) -> int:
    if dialect.escape != dialect.quote:
        line = line.replace(dialect.escape * 2, "").replace(dialect.escape + dialect.quote, "")
    return line.count(dialect.quote)


def read_table(text: str, path: str, dialect: CsvDialect, max_rows: int, *,
               is_cut: bool = False) -> tuple[list[str], list[list[str]], Counter[str]]:  # fmt: skip
    """The header's names, the rows under it, and how many records could not be taken apart, by what is wrong with them.

    Raises InputError when there is no header, or when most records have another number of cells."""
    text = whole_records(text, dialect) if is_cut and dialect.multi_line else text
    records = read_records(text.removeprefix(BOM), dialect)
    header = next(records, None)
    if header is None:
        raise InputError(f"{path}:1: the header's quotes do not pair, or the file holds blank lines alone")
    validate_header(header, path)
    rows: list[list[str]] = []
    faults: Counter[str] = Counter()
    for record in itertools.islice(records, max_rows):
        if record is None:
            faults["quote"] += 1
        elif len(record) != len(header):
            faults["num_cells"] += 1
        else:
            rows.append(record)
    if faults.total() > len(rows):
        raise InputError(
            f"{path}: {faults.total():,} of {faults.total() + len(rows):,} records do not have the header's {len(header)} cells "
            f"(delimiter {dialect.delimiter!r}, quote {dialect.quote!r})",
            next_step="is this CSV with a header line? For another format give --format",
        )
    return header, rows, faults


def validate_header(header: list[str], path: str) -> None:
    """Raises InputError for names that are empty or stand there twice, and for a first line that is data."""
    place = f"{path}:1: the header"
    empty = [number for number, name in enumerate(header, 1) if not name.strip()]
    if empty:
        raise InputError(f"{place} has no name for column {empty[0]} of {len(header)}",
                         next_step="give every column a name (of pandas: to_csv(..., index=False))")  # fmt: skip
    repeated = sorted({name for name in header if header.count(name) > 1})
    data = [name for name in header if infer_type([name.strip()])]
    if data:
        raise InputError(f"{place} looks like data, not like names: {', '.join(map(repr, data[:5]))}",
                         next_step="put a line of names before the first row; columns are known by them")  # fmt: skip
    if repeated:
        raise InputError(f"{place} names {', '.join(map(repr, repeated))} twice", next_step="rename one of them")
