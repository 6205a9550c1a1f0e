"""The record of a run: what went in, by version, and what came out."""

from __future__ import annotations

from typing import Any

from lakering.lake import RUNS, Lake

RECORD = "record.json"
#: Beside the record: held, on a local file system, while the run goes on.
LOCK = "run"


def write_record(lake: Lake, recipe: str, run_id: str, **facts: Any) -> dict[str, Any]:
    """Adds facts to a run's record (made when it is missing) and returns the whole of it."""
    known = read_record(lake, recipe, run_id) or {"run": run_id, "recipe": recipe}
    record = {**known, **facts}
    lake.storage.write_json(record, *lake.run(recipe, run_id), RECORD)
    return record


def read_record(lake: Lake, recipe: str, run_id: str) -> dict[str, Any] | None:
    """A run's record, or None when the run has none."""
    folder = lake.run(recipe, run_id)
    if not lake.storage.exists(*folder, RECORD):
        return None
    record: dict[str, Any] = lake.storage.read_json(*folder, RECORD)
    return record


def list_runs(lake: Lake, recipe: str) -> list[str]:
    """The ids of a recipe's runs, in alphabetical order."""
    return lake.storage.list(RUNS, recipe)
