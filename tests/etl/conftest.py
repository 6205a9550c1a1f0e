"""A small table, its contract and recipe, for tests of ingest."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic
from pyspark.sql import Row, SparkSession

from etl.ingest import IngestResult, ingest_table
from etl.tables import read_quarantine, read_table
from recipes import Recipe, read_recipe
from schemas import Contract

if TYPE_CHECKING:  # Spark's workers import this file, and know no scripts
    from broker import Broker

    from tests.etl.streams import StreamedTrips

NOW = datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC)
TRIPS = """
apiVersion: v3.1.0
kind: DataContract
id: trips
version: 1.0.0
status: active
schema:
  - name: trips
    customProperties:
      - {property: nullTokens, value: ['NA', '']}
      - {property: eventTime, value: at}
TABLE
    properties:
      - {name: day, logicalType: date, primaryKey: true, primaryKeyPosition: 1, partitioned: true}
      - {name: id, logicalType: integer, physicalType: int, primaryKey: true, primaryKeyPosition: 2}
      - {name: at, logicalType: timestamp, required: true}
      - {name: fare, logicalType: number, logicalTypeOptions: {minimum: 0, maximum: 500}}
      - {name: price, logicalType: number, physicalType: "decimal(4,2)"}
      - name: zone
        logicalType: string
        quality: [{metric: invalidValues, arguments: {validValues: [north, south]}, mustBe: 0}]
      - {name: paid, logicalType: boolean}
      - {name: note, logicalType: string, logicalTypeOptions: {maxLength: 20}}
COLUMNS
"""
HEADER = "day,id,at,fare,price,zone,paid,note\n"
PASSWORD = 'wonder"land\\9'
GOOD = "2024-01-01,1,2024-01-01T08:00:00Z,10.5,1.25,north,true,hello\n"


@dataclass
class Trips:
    """A lake with one table, and the means to fill and read it."""

    spark: SparkSession
    folder: Path

    def contract_text(self, table: str = "", columns: str = "", kind: str = "") -> None:
        text = TRIPS.replace("TABLE", table).replace("COLUMNS", columns)
        (self.folder / "trips.yaml").write_text(text)

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def recipe(self, files: str, format: str = "csv", *more: str) -> Recipe:
        sources = "".join(f", {{files: '{name}', format: {format}}}" for name in more)
        text = f"name: trips\nlake: lake\ntables:\n  trips:\n    contract: trips.yaml\n    sources: [{{files: '{files}', format: {format}}}{sources}]\n"
        (self.folder / "recipe.yaml").write_text(text)
        return read_recipe(self.folder / "recipe.yaml")

    @property
    def contract(self) -> Contract:
        return self.recipe("x").contract("trips")

    def ingest(self, files: str, format: str = "csv", *more: str, reread: bool = False, dry_run: bool = False,
               now: datetime.datetime = NOW) -> IngestResult:  # fmt: skip
        recipe = self.recipe(files, format, *more)
        result = ingest_table(self.spark, recipe, recipe.contract("trips"), recipe.settings.tables["trips"].sources,
                              now=now, reread=reread, dry_run=dry_run)  # fmt: skip
        parts = (
            result.rows_written,
            result.rows_already_present,
            result.rows_superseded,
            result.rows_refused,
        )
        assert result.rows_read == sum(parts), "every row read has one fate"
        assert sum(result.refused.values()) == result.rows_refused, "every refused row has one reason"
        return result

    def csv(self, *lines: str, name: str = "a.csv", header: str = HEADER) -> IngestResult:
        self.write(name, header + "".join(line + "\n" for line in lines))
        return self.ingest(name)

    def rows(self) -> list[Row]:
        return read_table(self.spark, self.recipe("x").lake, self.contract).orderBy("id").collect()

    def refused(self) -> list[tuple[Any, ...]]:
        table = read_quarantine(self.spark, self.recipe("x").lake, "trips").orderBy("source", "position")
        return [(row["position"], row["column"], row["rule"], row["value"]) for row in table.collect()]


@pytest.fixture
def trips(spark: SparkSession, tmp_path: Path) -> Trips:
    made = Trips(spark, tmp_path)
    made.contract_text()
    return made


@pytest.fixture
def make_trips(spark: SparkSession, tmp_path: Path) -> Callable[..., Trips]:
    def make(**parts: str) -> Trips:
        made = Trips(spark, tmp_path)
        made.contract_text(**parts)
        return made

    return make


@pytest.fixture
def stream(trips: Trips, broker: Broker, request: pytest.FixtureRequest) -> StreamedTrips:
    """A topic of the test's own, of two partitions."""
    from tests.etl.streams import StreamedTrips

    made = StreamedTrips(trips, broker.servers, re.sub(r"\W", "-", request.node.name))
    made.create()
    return made


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Broker]:
    """A broker that a test may end."""
    from broker import Broker

    made = Broker(tmp_path / "broker")
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker that speaks everything, and has a topic of three partitions with five messages in two of them."""
    from broker import Broker

    from tests.etl.streams import create_topic  # which has what is below

    made = Broker(tmp_path_factory.mktemp("secured"), listeners=("SSL", "SASL_PLAINTEXT", "SASL_SSL"), users={"alice": PASSWORD})
    made.start()
    create_topic(AdminClient({"bootstrap.servers": made.servers}), NewTopic("trips", 3))
    producer = Producer({"bootstrap.servers": made.servers})
    for number in range(5):
        producer.produce("trips", b"%d" % number, partition=number % 2)
    assert producer.flush(30) == 0
    del producer
    yield made
    made.stop()
