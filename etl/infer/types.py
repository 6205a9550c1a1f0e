"""Which types hold what a text says: the acceptance rule of ``transforms.validation``, told without Spark."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Literal, TypeVar

Moment = TypeVar("Moment", bound=datetime.date)
Clock = Literal["zoned", "local", "either"]

INTEGER = re.compile(r"-?[1-9][0-9]*|0")
DECIMAL = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?", re.ASCII)
DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
ISO_TIMESTAMP = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?")
ZONE = re.compile(r"Z|[+-][0-9]{2}:[0-9]{2}")
MAX_OFFSET = datetime.timedelta(hours=18)
INT, BIGINT = 2**31, 2**63

#: Other ways to write a timestamp, as Spark's pattern and as Python's; of those without a year in front, month or day may
#: come first, and only a day after the twelfth tells which.
FORMATS = {
    "yyyy-M-d H:mm": "%Y-%m-%d %H:%M",
    "yyyy-M-d'T'H:mm": "%Y-%m-%dT%H:%M",
    "yyyy/M/d H:mm": "%Y/%m/%d %H:%M",
    "yyyy/M/d H:mm:ss": "%Y/%m/%d %H:%M:%S",
    "M/d/yyyy H:mm": "%m/%d/%Y %H:%M",
    "M/d/yyyy H:mm:ss": "%m/%d/%Y %H:%M:%S",
    "M/d/yyyy h:mm a": "%m/%d/%Y %I:%M %p",
    "M/d/yyyy h:mm:ss a": "%m/%d/%Y %I:%M:%S %p",
    "d/M/yyyy H:mm": "%d/%m/%Y %H:%M",
    "d/M/yyyy H:mm:ss": "%d/%m/%Y %H:%M:%S",
    "d.M.yyyy H:mm": "%d.%m.%Y %H:%M",
    "d.M.yyyy H:mm:ss": "%d.%m.%Y %H:%M:%S",
}
DATE_FORMATS = {"M/d/yyyy": "%m/%d/%Y", "d/M/yyyy": "%d/%m/%Y", "d.M.yyyy": "%d.%m.%Y", "yyyy/M/d": "%Y/%m/%d"}


def is_boolean(text: str) -> bool:
    return text in ("true", "false")


def is_integer(text: str, bound: int = BIGINT) -> bool:
    """A canonical whole number: no ``+5``, ``007``, ``-0`` or ``5.0``."""
    return INTEGER.fullmatch(text) is not None and len(text) < 21 and -bound <= int(text) < bound


def is_double(text: str) -> bool:
    return DECIMAL.fullmatch(text) is not None and math.isfinite(float(text))


def is_date(text: str) -> bool:
    return DATE.fullmatch(text) is not None and _parsed(datetime.date.fromisoformat, text) is not None


def clock_of(text: str) -> Clock | None:
    """Whether a text is an ISO timestamp ``zoned`` or ``local``; None for neither."""
    match = ISO_TIMESTAMP.match(text)
    if match is None:
        return None
    rest = text[match.end() :]
    if rest and not ZONE.fullmatch(rest):
        return None
    moment = _parsed(datetime.datetime.fromisoformat, text)
    if moment is None or (rest and abs(moment.utcoffset() or datetime.timedelta()) > MAX_OFFSET):
        return None
    return "zoned" if rest else "local"


def parse_timestamp(text: str, pattern: str | None) -> datetime.datetime:
    """The moment of an accepted text, without a zone taken as UTC: for comparing, not for storing."""
    moment = datetime.datetime.fromisoformat(text) if pattern is None else datetime.datetime.strptime(text, FORMATS[pattern])
    return moment.replace(tzinfo=datetime.UTC) if moment.tzinfo is None else moment


def patterns_of(texts: Collection[str], known: Mapping[str, str]) -> list[str]:
    """The patterns under which every text is a timestamp (or, of ``DATE_FORMATS``, a date)."""
    left = list(known)
    for text in texts:
        left = [pattern for pattern in left if _fits(text, known[pattern])]
        if not left:
            break
    return left


def _fits(text: str, pattern: str) -> bool:
    # Python takes 2 digits for a year, spaces for digits and years of fewer digits where Spark does not.
    if not re.fullmatch(r"[0-9]{1,4}[-/.][0-9]{1,2}[-/.][0-9]{1,4}([ T][0-9]{1,2}:[0-9]{2}(:[0-9]{2})?( [AP]M)?)?", text):
        return False
    if not re.search(r"(^|[-/.])[0-9]{4}([-/. T]|$)", text):
        return False
    return _parsed(lambda value: datetime.datetime.strptime(value, pattern), text) is not None


def _parsed(parse: Callable[[str], Moment], text: str) -> Moment | None:
    try:
        return parse(text)
    except ValueError:
        return None


def infer_type(texts: Collection[str]) -> str | None:
    """The narrowest of boolean, bigint, double, date and timestamp that accepts every text; None when only a text does."""
    for name, accepts in (("boolean", is_boolean), ("bigint", is_integer), ("double", is_double), ("date", is_date),
                          ("timestamp", clock_of)):  # fmt: skip
        if texts and all(accepts(text) for text in texts):
            # Whole numbers beyond bigint would be rounded as double: such as long ids.
            return None if name == "double" and all(INTEGER.fullmatch(text) for text in texts) else name
    return None
