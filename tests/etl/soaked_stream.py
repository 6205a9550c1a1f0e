"""A stream job that tells when it begins and ends a micro-batch, and goes on until it is killed: the entry point of a test,
in a process of its own.

python soaked_stream.py RECIPE
"""

from __future__ import annotations

import sys
import threading

from pyspark.sql import DataFrame, SparkSession

from etl.session import spark_session
from etl.stream.batch import Stream
from etl.stream.run import Start, stream_tables
from recipes import read_recipe

BEGINS, ENDS = "begins micro-batch", "ends micro-batch"

if __name__ == "__main__":
    take = Stream.take

    def told(stream: Stream, spark: SparkSession, messages: DataFrame, number: int) -> None:
        print(BEGINS, number, flush=True)
        take(stream, spark, messages, number)
        print(ENDS, number, flush=True)

    setattr(Stream, "take", told)  # noqa: B010 - a method is not assigned to
    recipe = read_recipe(sys.argv[1])
    stream_tables(spark_session("soaked"), recipe, {"trips": recipe.contract("trips")}, Start("100 milliseconds"),
                  threading.Event(), {})  # fmt: skip
