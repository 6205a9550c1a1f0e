"""Reasons for which rows were refused: how they are written, and the flags that choose rows by reason and day."""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Mapping
from dataclasses import dataclass

from etl.transforms.sql import literal, literals
from lakering.errors import SettingError


@dataclass(frozen=True)
class Selection:
    """Rows that were refused on one of ``days`` for one of ``reasons`` (a column, None for any, and a rule); none named: all."""

    days: tuple[datetime.date, ...] = ()
    reasons: tuple[tuple[str | None, str], ...] = ()

    @property
    def condition(self) -> str:
        """In SQL, over the columns of a quarantine."""
        days = f"day IN ({literals(self.days)})" if self.days else "true"
        reasons = [
            f"rule = {literal(rule)}" + (f" AND `column` = {literal(column)}" if column else "") for column, rule in self.reasons
        ]
        return f"{days} AND ({' OR '.join(reasons) or 'true'})"


def name_reason(column: str | None, rule: str | None) -> str:
    """A reason as summaries write it; ``--reason`` takes the same."""
    return f"{column}: {rule}" if column else str(rule)


def named_counts(reasons: Mapping[tuple[str | None, str | None], int]) -> dict[str, int]:
    """Counts by reason as summaries write them, most frequent first."""
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], str(item[0])))
    return {name_reason(column, rule): count for (column, rule), count in ordered}


def add_selection_flags(parser: argparse.ArgumentParser) -> None:
    """``--day`` and ``--reason``, for ``read_selection``."""
    parser.add_argument("--day", action="append", default=[], metavar="YYYY-MM-DD",
                        help="only rows refused on this day (UTC); may be given again")  # fmt: skip
    parser.add_argument("--reason", action="append", default=[], metavar="REASON",
                        help="only rows refused for this RULE or COLUMN:RULE (zone:validValues); may be repeated")  # fmt: skip


def read_selection(args: argparse.Namespace) -> Selection:
    """What the flags ask for. Raises SettingError for a text that is no day or no reason."""
    days, reasons = [], []
    for text in args.day:
        try:
            days.append(datetime.date.fromisoformat(text))
        except ValueError:
            raise SettingError(f"--day {text!r}: expected a day such as 2024-01-31") from None
    for text in args.reason:
        column, colon, rule = (part.strip() for part in text.rpartition(":"))
        if not rule or (colon and not column):
            raise SettingError(f"--reason {text!r}: expected RULE or COLUMN:RULE, such as zone:validValues")
        reasons.append((column or None, rule))
    return Selection(tuple(days), tuple(reasons))
