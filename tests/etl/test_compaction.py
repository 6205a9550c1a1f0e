"""A partition that is written in many small batches."""

from __future__ import annotations

import datetime
import json

import pytest

from etl.stream.messages import source_prefix
from etl.tables import Batch, SmallFiles, create_table, read_table, write_rows
from tests.etl.conftest import Trips

PREFIX = source_prefix("topic")


def write(trips: Trips, day: datetime.date, number: int) -> None:
    rows = trips.spark.sql(
        f"SELECT DATE '{day}' AS day, {number} AS id, TIMESTAMP '2024-01-01 08:00:00Z' AS at, 1.5D AS fare, "
        "CAST(1.25 AS DECIMAL(4,2)) AS price, 'north' AS zone, true AS paid, 'hello' AS note, "
        f"'{PREFIX}0' AS _source, {number}L AS _position, X'00' AS _content_hash, 0L AS _modified")  # fmt: skip
    write_rows(trips.spark, trips.recipe("x").lake, trips.contract, Batch(rows, 1, 100, f"{number:04x}"))


@pytest.mark.parametrize("restarted", [False, True])
def test_a_partition_has_few_small_files_and_all_its_rows(trips, restarted):
    lake, contract = trips.recipe("x").lake, trips.contract
    create_table(trips.spark, lake, contract)
    log = trips.folder / "lake" / "tables" / "trips" / "_delta_log"
    small, most = SmallFiles(lake, contract, limit=2), 0
    days = [datetime.date(2024, 1, 1), datetime.date(2024, 1, 1), datetime.date(2024, 1, 2)]
    for number in range(7):
        write(trips, days[number % 3], number)
        small = SmallFiles(lake, contract, limit=2) if restarted else small
        small.merge(trips.spark)
        files = read_table(trips.spark, lake, contract).where("day = '2024-01-01'").inputFiles()
        most = max(most, len(files))
    assert most == 2
    assert sorted(row["id"] for row in read_table(trips.spark, lake, contract).collect()) == list(range(7))
    merges = [actions for path in sorted(log.glob("*.json"))
              for actions in [[json.loads(line) for line in path.read_text().splitlines()]]
              if any(a.get("commitInfo", {}).get("operation") == "OPTIMIZE" for a in actions)]  # fmt: skip
    assert len(merges) == 2
    changed = [a[kind] for actions in merges for a in actions for kind in ("add", "remove") if kind in a]
    assert {file["dataChange"] for file in changed} == {False}
    assert {file["partitionValues"]["day"] for file in changed} == {"2024-01-01"}, "the other partition has no more than two"
