"""A stream job that is killed (SIGKILL), its JVM too, at a named point: the entry point of a test, in a process of its own.

python killed_stream.py POINT RECIPE
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import etl.stream.batch
import etl.stream.start
from etl.session import spark_session
from etl.stream.batch import Stream
from etl.stream.run import Start, stream_tables
from etl.stream.state import Place
from recipes import read_recipe
from tests.etl.killed_ingest import dying_after, dying_before, dying_during

if __name__ == "__main__":
    point, recipe = sys.argv[1], read_recipe(sys.argv[2])
    batch: Any = etl.stream.batch
    tables = Path(recipe.lake.storage.path("tables"))
    failpoints: dict[str, tuple[Any, str, Callable[[Callable[..., Any]], Callable[..., Any]]]] = {
        "before the merge": (batch, "write_rows", dying_before),
        "in the merge": (batch, "write_rows", lambda function: dying_during(function, tables)),
        "between table and quarantine": (batch, "write_rows", dying_after),
        "between quarantine and row": (batch, "write_quarantine", dying_after),
        "between row and record": (Place, "tell_batch", dying_after),
        "between record and Spark's log": (Stream, "take", dying_after),
        "before a checkpoint is set aside": (etl.stream.start, "_discard", dying_before),
    }
    owner, name, wrap = failpoints[point]
    setattr(owner, name, wrap(getattr(owner, name)))
    stream_tables(spark_session("killed"), recipe, {"trips": recipe.contract("trips")}, Start(None), threading.Event(), {})
