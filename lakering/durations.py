"""Durations as recipes and contracts write them."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

MAX_SECONDS = 10_000 * 366 * 86400
UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604800}


def parse_duration(text: str) -> int:
    """Seconds in a duration such as ``3 hours``. Raises ValueError on anything else."""
    match = re.fullmatch(r"(\d{1,9}) +(second|minute|hour|day|week)s?", text.strip())
    if not match or int(match[1]) == 0:
        raise ValueError(f"expected a duration such as '3 hours' (units: {', '.join(UNITS)})")
    seconds = int(match[1]) * UNITS[match[2]]
    if seconds > MAX_SECONDS:
        raise ValueError("longer than 10,000 years, which is all the time there is")
    return seconds


def _duration(text: str) -> str:
    parse_duration(text)
    return text


Duration = Annotated[str, AfterValidator(_duration)]
