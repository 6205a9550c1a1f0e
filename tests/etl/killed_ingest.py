"""An ingest that is killed (SIGKILL), its JVM too, at a named point: the entry point of a test, in a process of its own.

python killed_ingest.py POINT RECIPE
"""

from __future__ import annotations

import datetime
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import etl.ingest
from etl.session import spark_session
from recipes import read_recipe


def die(*_: Any) -> None:
    """Kills this process and its JVM. A test starts them in a session of their own."""
    assert os.getpgrp() == os.getpid()
    os.killpg(0, signal.SIGKILL)


def dying_before(function: Callable[..., Any]) -> Callable[..., Any]:
    return die


def dying_after(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> None:
        function(*args, **kwargs)
        die()

    return call


def dying_during(function: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    """Dies as soon as the first data file is there, before its commit."""

    def watch() -> None:
        while not any(folder.rglob("*.parquet")):
            pass
        die()

    def call(*args: Any, **kwargs: Any) -> None:
        threading.Thread(target=watch, daemon=True).start()
        function(*args, **kwargs)

    return call


if __name__ == "__main__":
    point, recipe = sys.argv[1], read_recipe(sys.argv[2])
    module: Any = etl.ingest
    tables = Path(recipe.lake.storage.path("tables"))
    failpoints: dict[str, tuple[str, Callable[[Callable[..., Any]], Callable[..., Any]]]] = {
        "before the table": ("write_rows", dying_before),
        "in the table's commit": ("write_rows", lambda function: dying_during(function, tables)),
        "between table and quarantine": ("write_rows", dying_after),
        "between quarantine and record": ("write_quarantine", dying_after),
    }
    name, wrap = failpoints[point]
    setattr(module, name, wrap(getattr(module, name)))
    contract = recipe.contract("trips")
    etl.ingest.ingest_table(spark_session("killed"), recipe, contract, recipe.settings.tables["trips"].sources,
                            now=datetime.datetime.now(datetime.UTC))  # fmt: skip
