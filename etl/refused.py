"""Refused rows as a person looks at them: how many, of which days and reasons, and examples that a terminal can show."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F

from etl.reasons import Selection, name_reason

#: Characters of a value or a raw form that are shown.
SHOWN = 200


def describe_refused(quarantine: DataFrame, selection: Selection, num_examples: int) -> dict[str, Any]:
    """How many entries are there, of which days and reasons, how many of them were replayed, and examples of each reason:
    entries that are still open first, then by source and position."""
    rows = quarantine.where(selection.condition)
    tally = rows.groupBy("column", "rule", "day").agg(
        F.count("*").alias("rows"), F.count("replayed_on").alias("replayed"), F.count_if("raw_is_cut").alias("cut")
    ).collect()  # fmt: skip
    days: Counter[str] = Counter()
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    for row in tally:
        days[row["day"].isoformat()] += row["rows"]
        reasons[name_reason(row["column"], row["rule"])].update(rows=row["rows"], replayed=row["replayed"])
    examples = _examples(rows, num_examples) if num_examples and tally else {}
    total = {name: sum(row[name] for row in tally) for name in ("rows", "replayed", "cut")}
    ordered = sorted(reasons.items(), key=lambda item: (-item[1]["rows"], item[0]))
    facts = {**total, "days": dict(sorted(days.items())),
             "reasons": {name: {**counts, "examples": examples.get(name, [])} for name, counts in ordered}}  # fmt: skip
    if not tally:
        others = quarantine.select("column", "rule").distinct().collect()
        facts["reasons_of_other_rows"] = sorted(name_reason(row["column"], row["rule"]) for row in others)
    return facts


def _examples(rows: DataFrame, number: int) -> dict[str, list[dict[str, Any]]]:
    order = "replayed_on IS NOT NULL, source, position, contract_version"
    # A character takes four bytes at most: no more than is shown leaves the executors.
    ranked = rows.selectExpr(
        "`column`", "rule", "value", "source", "position", f"substring(raw, 1, {4 * (SHOWN + 1)}) AS raw",
        f"row_number() OVER (PARTITION BY `column`, rule ORDER BY {order}) AS number",
    ).where(f"number <= {number}")  # fmt: skip
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in sorted(ranked.collect(), key=lambda row: row["number"]):
        found[name_reason(row["column"], row["rule"])].append(_example(row))
    return found


def _example(row: Row) -> dict[str, Any]:
    file = row["source"].rpartition("#")[0] or row["source"]
    value = None if row["value"] is None else printable(row["value"].encode())
    raw = None if row["raw"] is None else printable(row["raw"])  # a message without a value: a tombstone
    return {"file": printable(file.removeprefix("file:").encode(), limit=10 * SHOWN), "position": row["position"],
            "value": value, "raw": raw}  # fmt: skip


def printable(raw: bytes, limit: int = SHOWN) -> str:
    """Bytes as a text that no terminal takes for a command: what is not UTF-8, or cannot be seen, is escaped; cut after
    ``limit`` characters."""
    text = raw.decode("utf-8", "backslashreplace")[: limit + 1]
    shown = "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)
    return shown if len(shown) <= limit else shown[:limit] + "…"
