"""A replay that is killed (SIGKILL), its JVM too, at a named point: the entry point of a test, in a process of its own.

python killed_replay.py POINT RECIPE
"""

from __future__ import annotations

import datetime
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import etl.replay
from etl.reasons import Selection
from etl.session import spark_session
from recipes import read_recipe
from tests.etl.killed_ingest import die


def dying_during(function: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    """Dies as soon as a new data file is there, before its commit."""

    def call(*args: Any, **kwargs: Any) -> Any:
        before = set(folder.rglob("*.parquet"))

        def watch() -> None:
            while set(folder.rglob("*.parquet")) <= before:
                pass
            die()

        threading.Thread(target=watch, daemon=True).start()
        return function(*args, **kwargs)

    return call


if __name__ == "__main__":
    point, recipe = sys.argv[1], read_recipe(sys.argv[2])
    module: Any = etl.replay
    folder = Path(recipe.lake.storage.path())
    failpoints: dict[str, tuple[str, Callable[[Callable[..., Any]], Callable[..., Any]]]] = {
        "in the table's commit": ("write_rows", lambda function: dying_during(function, folder / "tables")),
        "between table and marks": ("mark_replayed", lambda _: die),
        "in the marks' commit": ("mark_replayed", lambda function: dying_during(function, folder / "quarantine")),
    }
    name, wrap = failpoints[point]
    setattr(module, name, wrap(getattr(module, name)))
    etl.replay.replay_table(spark_session("killed"), recipe.lake, recipe.contract("trips"), Selection(),
                            now=datetime.datetime.now(datetime.UTC))  # fmt: skip
