"""The only place that builds a SparkSession."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from pyspark.sql import SparkSession

from lakering.errors import SettingError
from lakering.storage import StorageSettings

T = TypeVar("T")
DELTA = "io.delta.sql.DeltaSparkSessionExtension"
#: Tasks that read a shuffle take so much of it, even where that leaves cores idle.
TASKS_BY_SIZE = {"spark.sql.adaptive.coalescePartitions.parallelismFirst": "false",
                 "spark.sql.adaptive.advisoryPartitionSizeInBytes": str(20 << 20)}  # fmt: skip


def spark_session(name: str, storage: StorageSettings | None = None) -> SparkSession:
    """The session of this job, as it was submitted. Settings of the storage are added; nothing else is set here.

    Raises SettingError when the job was submitted without the project's ``spark-defaults.conf``."""
    builder = SparkSession.builder.appName(f"lakering {name}")
    for key, value in (storage.for_spark() if storage else {}).items():
        builder = builder.config(key, value)
    spark = builder.getOrCreate()
    if DELTA not in (spark.conf.get("spark.sql.extensions", "") or ""):
        spark.stop()
        raise SettingError(
            "Spark runs without Delta's extension, so the project's settings were not read",
            next_step="submit with --properties-file spark-defaults.conf (plain Python: set SPARK_CONF_DIR)",
        )
    return spark


def session_beside(name: str, work: Callable[[], T]) -> tuple[SparkSession, T]:
    """The session, and what ``work`` gave meanwhile: Spark's start waits on the JVM, so reading a recipe and importing
    libraries beside it takes no time of its own. An error of ``work`` is raised once the session is there."""
    with ThreadPoolExecutor(1) as pool:
        session = pool.submit(spark_session, name)
        result = work()
        return session.result(), result


def set_storage(spark: SparkSession, storage: StorageSettings) -> None:
    """Gives a session that is there already the settings of a recipe's storage."""
    for key, value in storage.for_spark().items():
        spark.conf.set(key.removeprefix("spark.hadoop."), value)


@contextmanager
def session_settings(spark: SparkSession, wanted: Mapping[str, str | int]) -> Iterator[None]:
    """Settings of a session for a while; put back afterwards, on failure too."""
    before = {name: spark.conf.get(name, None) for name in wanted}
    try:
        for name, value in wanted.items():
            spark.conf.set(name, str(value))
        yield
    finally:
        for name, old in before.items():
            if old is None:
                spark.conf.unset(name)
            else:
                spark.conf.set(name, old)
