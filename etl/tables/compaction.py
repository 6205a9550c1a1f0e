"""Small files of a table's partitions, merged by the job that writes them."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import PurePosixPath

import pyarrow as pa
from delta.tables import DeltaTable
from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from etl.session import session_settings
from etl.tables.delta import open_log, read_commits
from etl.tables.retry import BEATEN
from etl.transforms.sql import literal
from lakering.lake import Lake
from schemas import Contract
from schemas.expressions import quote_name

log = logging.getLogger(__name__)
#: A partition has no more small files than this; a file of so many bytes is no longer small, and is left as it is.
MAX_SMALL_FILES, SMALL_BYTES = 32, 64 << 20
SETTINGS = {
    "spark.databricks.delta.optimize.minFileSize": SMALL_BYTES,
    "spark.databricks.delta.optimize.maxFileSize": 2 * SMALL_BYTES,
}


class SmallFiles:
    """How many small files each partition of a table has, from the table's log alone: whole once, then commit by commit."""

    def __init__(self, lake: Lake, contract: Contract, limit: int = MAX_SMALL_FILES) -> None:
        self._lake, self._contract, self._limit = lake, contract, limit
        self._version: int | None = None
        self._counts: Counter[str] = Counter()

    def merge(self, spark: SparkSession) -> None:
        """Merges the small files of partitions that have more than the limit, of those that were written since the last time.
        Rows stay as they are. On a local file system the caller holds the table's lock; elsewhere another writer may be
        first, and then it is left to the next time."""
        for folder, values in self._written().items():
            if self._counts[folder] <= self._limit:
                continue
            table = DeltaTable.forPath(spark, self._lake.storage.uri(*self._lake.table(self._contract.table)))
            try:
                with session_settings(spark, SETTINGS):
                    optimize = table.optimize()
                    (optimize.where(self._condition(values)) if values else optimize).executeCompaction()
            except (PySparkException, Py4JError) as error:
                if not BEATEN.search(str(error)):
                    raise
                log.info("another writer was first; the small files of %s stay for now", folder)

    def _written(self) -> dict[str, dict[str, str]]:
        """The partitions, by folder, that were added to since the last time; the first time what the last commit added to."""
        table, written = self._contract.table, {}
        if self._version is None:
            found = open_log(self._lake, self._lake.table(table))
            files = pa.table(found.get_add_actions())
            sizes = zip(files["path"].to_pylist(), files["size_bytes"].to_pylist(), strict=True)
            self._counts = Counter(_folder(path) for path, size in sizes if size < SMALL_BYTES)
            self._version = found.version()
            # These are counted already; of them is only asked which partitions they were in.
            commits, counted = read_commits(self._lake, table, self._version - 1)[:1], True
        else:
            commits, counted = read_commits(self._lake, table, self._version), False
            self._version += len(commits)
        for action in (action for actions in commits for action in actions):
            for kind, number in (("add", 1), ("remove", -1)):
                if kind in action and not counted and (action[kind].get("size") or 0) < SMALL_BYTES:
                    self._counts[_folder(action[kind]["path"])] += number
            if "add" in action:
                written[_folder(action["add"]["path"])] = action["add"]["partitionValues"]
        return written

    def _condition(self, values: dict[str, str]) -> str:
        types = {name: self._contract.require(name, "partitioning").type for name in values}
        return " AND ".join(f"{quote_name(name)} = CAST({literal(text)} AS {types[name]})" for name, text in values.items())


def _folder(path: str) -> str:
    return str(PurePosixPath(path).parent)
