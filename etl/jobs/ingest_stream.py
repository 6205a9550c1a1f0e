"""Kafka's topics -> event tables and their quarantine.

spark-submit --properties-file spark-defaults.conf etl/jobs/ingest_stream.py --recipe recipes/flights.yaml --every 5s
"""

from __future__ import annotations

import argparse
import logging
import re
import signal
import sys
import threading
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lakering.errors import SettingError
from lakering.jobs import add_table_flag, job_parser, read_tables_of, run_job
from lakering.summary import Summary

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from recipes import Recipe
    from schemas import Contract


def main(args: argparse.Namespace, summary: Summary) -> None:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    every = None if args.once else spark_interval(args.every)
    wait = interval_seconds("--wait", args.wait)
    if not args.log_json:
        log_lines()
    from etl.session import session_beside, set_storage

    spark, (recipe, contracts) = session_beside("stream", lambda: prepare(args, wait))
    set_storage(spark, recipe.lake.storage.settings)
    stop_on_sigterm(spark, stop)
    from etl.stream.batch import StreamResult
    from etl.stream.run import Start, stream_tables

    results: dict[str, StreamResult] = {}
    try:
        stream_tables(spark, recipe, contracts, Start(every, args.start, args.accept_gap, wait), stop, results)
    finally:
        for name, result in results.items():
            summary.add(name, **asdict(result))
    summary.add("lake", root=recipe.lake.storage.root)


def prepare(args: argparse.Namespace, wait: float) -> tuple[Recipe, dict[str, Contract]]:
    """The recipe, and the contracts of the tables that are asked for; done while Spark starts. A broker that does not answer is
    told here already, where it is not to be waited for longer."""
    from etl.sources.broker import Broker
    from etl.stream.run import PATIENCE_S

    recipe, contracts = read_tables_of(args)
    has_topics = any(recipe.settings.tables[name].topics for name in contracts)
    if recipe.kafka is not None and has_topics and wait <= PATIENCE_S:
        Broker(recipe.kafka).topics(wait)
    return recipe, contracts


def interval_seconds(flag: str, text: str) -> float:
    """Seconds in a flag's time, such as 500ms, 5s, 1min, 2h. Raises SettingError."""
    match = re.fullmatch(r"([1-9]\d{0,5})(ms|s|min|h)", text)
    if not match:
        raise SettingError(f"{flag} {text!r}: expected a number and a unit (ms, s, min, h), such as 5s")
    return int(match[1]) * {"ms": 0.001, "s": 1, "min": 60, "h": 3600}[match[2]]


def spark_interval(text: str) -> str:
    """A trigger's interval as Spark writes it. Raises SettingError."""
    return f"{round(interval_seconds('--every', text) * 1000)} milliseconds"


def stop_on_sigterm(spark: SparkSession, stop: threading.Event) -> None:
    """Under spark-submit the process that a person sees and ends is the JVM, which would tear its context down in the middle of
    a batch. From here on its SIGTERM does what that of this process does."""

    class Handler:
        def handle(self, _signal: Any) -> None:
            stop.set()

        class Java:
            implements = ("sun.misc.SignalHandler",)

    from pyspark.java_gateway import ensure_callback_server_started

    context = spark.sparkContext
    ensure_callback_server_started(context._gateway)
    jvm: Any = context._jvm
    jvm.sun.misc.Signal.handle(jvm.sun.misc.Signal("TERM"), Handler())


class _Line(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        facts = " ".join(f"{name}={value}" for name, value in getattr(record, "facts", {}).items())
        return f"{self.formatTime(record)} {record.getMessage()} {facts}".rstrip()


def log_lines() -> None:
    """A line for each micro-batch on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Line())
    logger = logging.getLogger("etl.stream")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


if __name__ == "__main__":
    parser = job_parser("Puts the messages of the recipe's topics into their tables, each once; those that break the contract "
                        "into quarantine. Ends with status 9 after a micro-batch that broke it beyond the limit.")  # fmt: skip
    add_table_flag(parser)
    pace = parser.add_mutually_exclusive_group()
    pace.add_argument("--once", action="store_true", help="end when what is there at the start is in")
    pace.add_argument("--every", default="5s", metavar="TIME", help="a micro-batch so often, such as 500ms, 5s, 1min")
    parser.add_argument("--from", choices=["table", "earliest", "latest"], dest="start",
                        help="where to start, in place of the checkpoint, which goes")  # fmt: skip
    parser.add_argument("--accept-gap", action="store_true", help="go on where messages are lost, and record what is missing")
    parser.add_argument(
        "--wait", default="10s", metavar="TIME", help="for a broker that does not answer at the start (default: 10s)"
    )
    run_job(main, parser)
