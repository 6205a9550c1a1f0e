"""Why a column that a person may take for numbers or times is a text, and what to do about it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from etl.infer.types import DATE_FORMATS, FORMATS, infer_type, is_integer, patterns_of

COMMA = re.compile(r"-?[0-9]+,[0-9]+")
#: From this share on, a column counts as nearly of a type, and is told so.
NEARLY = 0.9


def notes_on_text(name: str, values: Counter[str], tokens: Iterable[str]) -> tuple[str, ...]:
    """Notes on a column of CSV that stays a text. ``tokens`` are words that may mean null, and are no null tokens."""
    for known, function, what in ((FORMATS, "try_to_timestamp", "timestamps"), (DATE_FORMATS, "try_to_date", "dates")):
        found = patterns_of(values, known)
        if found:
            which = " or ".join(found) + (", which no day after the twelfth tells" if len(found) > 1 else "")
            return (f"{what} written as {which}: " + _derived(f"{function}({name}, '{found[0]}')"),)
    if all(COMMA.fullmatch(text) or is_integer(text) for text in values):
        return ("numbers with a decimal comma: " + _derived(f"cast(replace({name}, ',', '.') as double)"),)
    stripped = infer_type([text.strip() for text in values])
    if stripped:
        return (f"{stripped} with spaces around it, which is refused: " + _derived(f"cast(trim({name}) as {stripped})"),)
    doubtful = [f"{token!r} are {values[token]:,} of {values.total():,} values: if it means null, add it to nullTokens"
                for token in tokens if values[token]]  # fmt: skip
    return (*doubtful, *_nearly(values))


def _derived(expression: str) -> str:
    return f'to use it so, add a column with {{property: derived, value: "{expression}"}}'


def _nearly(values: Counter[str]) -> Iterable[str]:
    types = {text: infer_type([text]) for text in values}
    for kind in ("bigint", "double", "date", "timestamp", "boolean"):
        misfits = [text for text, found in types.items() if found != kind and not (kind == "double" and found == "bigint")]
        number = sum(values[text] for text in misfits)
        if number <= (1 - NEARLY) * values.total():
            shown = ", ".join(repr(text[:20]) for text in misfits[:3])
            yield f"{kind} but for {number:,} of {values.total():,} values, such as {shown}: as {kind} these would be refused"
            return
