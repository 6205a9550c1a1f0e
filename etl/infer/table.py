"""A table inferred from a sample: its columns, its key, its event time, and how its files write values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from etl.infer.columns import Column, infer_column, null_tokens
from etl.infer.keys import Key, infer_key
from etl.infer.sample import Cells, Sample
from etl.infer.types import FORMATS, infer_type, patterns_of
from lakering.errors import InputError
from lakering.names import NAME


@dataclass(frozen=True)
class Table:
    """``tokens`` are the texts that mean null, with the columns that hold them; ``pattern`` is how timestamps are written
    where that is not ISO; ``needs_zone``: some are without a zone. ``times`` are the candidates for the event time."""

    name: str
    sample: Sample
    columns: tuple[Column, ...]
    key: Key | None
    tokens: dict[str, list[str]] = field(default_factory=dict)
    pattern: str | None = None
    needs_zone: bool = False
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def times(self) -> tuple[str, ...]:
        """The timestamps; without one, the dates."""
        found = [column.name for column in self.columns if column.type == "timestamp"]
        return tuple(found or [column.name for column in self.columns if column.type == "date"])

    def column(self, name: str) -> Column:
        return next(column for column in self.columns if column.name == name)


def infer_table(name: str, sample: Sample, *, leave_out_bad_names: bool = False) -> Table:
    """Infers a table. Raises InputError for columns whose names no contract takes, unless they are to be left out."""
    bad = bad_names(tuple(sample.columns))
    if bad and not leave_out_bad_names:
        raise _bad_names(sample, bad)
    cells = {name: found for name, found in sample.columns.items() if name not in bad}
    if not cells:
        raise InputError(f"{sample.paths[0]}: no column is left that a contract can hold")
    tokens = null_tokens(cells) if sample.format == "csv" else {}
    pattern = _pattern(cells, tuple(tokens)) if sample.format != "parquet" else None
    columns = tuple(infer_column(column, found, tuple(tokens), pattern) for column, found in cells.items())
    key = infer_key(columns, {column: found.texts for column, found in cells.items()}, is_whole=sample.is_whole)
    zones = [column.clock for column in columns if column.clock]
    left_out = {**sample.left_out, **{column: f"its name is none here; such as {new!r}" for column, new in bad.items()}}
    return Table(name, sample, columns, key, tokens, pattern, any(clock != "zoned" for clock in zones), left_out)


def _pattern(columns: dict[str, Cells], tokens: Sequence[str]) -> str | None:
    """The one way, other than ISO, in which all timestamps are written; a contract can tell of one alone."""
    wanted: list[set[str]] = []
    for cells in columns.values():
        values = {text for text in cells.texts if text is not None and text not in tokens}
        if values and infer_type(values) == "timestamp":
            return None
        found = patterns_of(values, FORMATS) if values else []
        if found:
            wanted.append(set(found))
    common = set.intersection(*wanted) if wanted else set()
    # Two patterns mean that the day never came after the twelfth: which is which is for a person to say.
    return common.pop() if len(common) == 1 else None


def bad_names(names: tuple[str, ...]) -> dict[str, str]:
    """Names that no contract takes, each with one that it would take."""
    good = [name for name in names if NAME.fullmatch(name)]
    seen: set[str] = set()
    bad: dict[str, str] = {}
    for name in names:
        if name in good and name.lower() not in seen:
            seen.add(name.lower())
            continue
        new = proposed = _mended(name)
        number = 2
        while proposed.lower() in seen or proposed.lower() in (other.lower() for other in good):
            proposed, number = f"{new[:60]}_{number}", number + 1
        bad[name] = proposed
        seen.add(proposed.lower())
    return bad


def _mended(name: str) -> str:
    words = "".join(letter.lower() if letter.isascii() and letter.isalnum() else " " for letter in name).split()
    new = "_".join(words)[:64]
    return new if new[:1].isalpha() else f"c_{new}"[:64].rstrip("_")


def _bad_names(sample: Sample, bad: dict[str, str]) -> InputError:
    place = f"{sample.paths[0]}:1: the header" if sample.format == "csv" else f"{sample.paths[0]}:"
    listed = ", ".join(f"{name!r} ({new})" for name, new in list(bad.items())[:10]) + (", ..." if len(bad) > 10 else "")
    next_step = "rename them in what writes the files, or leave them out: --leave-out-bad-names"
    if sample.format == "csv" and sample.dialect is not None:
        header = sample.dialect.delimiter.replace("\t", r"\t").join(bad.get(name, name) for name in sample.columns)
        next_step += f". Of one plain file: sed -i '1s/.*/{header}/' FILE"
    return InputError(f"{place} holds names that no table takes (a letter, then letters, digits and underscores, no two "
                      f"alike but for case); in brackets one that it would take: {listed}", next_step=next_step)  # fmt: skip
