"""Sources of every kind through one recipe: a standalone cluster of two workers makes the tables that local mode makes."""

from __future__ import annotations

import bz2
import datetime
import gzip
import json
from collections.abc import Callable
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from etl.ingest import ingest_table
from etl.reasons import Selection
from etl.replay import replay_table
from etl.tables import read_quarantine, read_table
from recipes import read_recipe

NOW = datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC)
HEAD = "apiVersion: v3.1.0\nkind: DataContract\nid: {name}\nversion: 1.0.0\nstatus: active\nschema:\n  - name: {name}\n"
ORDERS = """    customProperties: [{property: delimiter, value: ;}, {property: timestampZone, value: Europe/Berlin}]
    properties:
      - {name: id, logicalType: integer, primaryKey: true}
      - {name: at, logicalType: timestamp, required: true}
      - {name: fare, logicalType: number, physicalType: "decimal(6,2)"}
      - name: zone
        logicalType: string
        quality: [{metric: invalidValues, arguments: {validValues: [north, south]}, mustBe: 0}]
"""
NOTES = """    customProperties: [{property: multiLine, value: true}]
    properties:
      - {name: id, logicalType: integer, primaryKey: true}
      - {name: note, logicalType: string, logicalTypeOptions: {maxLength: 20}}
"""
PHOTOS = """    properties:
      - {name: path, logicalType: string, primaryKey: true}
      - {name: image, logicalType: string, physicalType: binary}
"""
RECIPE = """name: orders
tables:
  orders:
    contract: orders.yaml
    sources:
      - {files: "orders/*.csv*", format: csv}
      - {files: "orders/*.jsonl.zst", format: json}
      - {files: "orders/*.parquet", format: parquet}
  notes: {contract: notes.yaml, sources: [{files: "notes/*", format: csv}]}
  photos: {contract: photos.yaml, sources: [{files: photos, format: images}]}
"""
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
# Every file of orders holds a zone that the contract takes later, and a fare that it never takes.
WEST, HALF_A_CENT = 5, 7
#: Columns of quarantine that do not tell on which day a test ran.
REFUSED = ("source", "position", "contract_version", "column", "rule", "value", "raw", "form", "header", "modified")
Rows = list[dict[str, Any]]


def orders(first: int, count: int) -> Rows:
    """Orders numbered from ``first``; the sixth of them is of zone west, the eighth costs half a cent."""
    rows = [{"id": first + i, "at": f"2024-03-31 {4 + i % 20:02}:30:00", "fare": f"{i}.25", "zone": "north"}
            for i in range(count)]  # fmt: skip
    rows[WEST]["zone"], rows[HALF_A_CENT]["fare"] = "west", "0.005"
    return rows


def write_orders(folder: Path) -> None:
    """Of each kind of file one; the plain one is larger than a block, as the cluster is told to cut it."""
    folder.mkdir()
    pack: dict[str, Callable[[bytes], bytes]] = {"a.csv": bytes, "b.csv.gz": gzip.compress, "c.csv.bz2": bz2.compress}
    for (name, compress), first, count in zip(pack.items(), (0, 2000, 2100), (2000, 100, 100), strict=True):
        lines = ["zone;fare;at;id", *(";".join([r["zone"], r["fare"], r["at"], str(r["id"])]) for r in orders(first, count))]
        (folder / name).write_bytes(compress("\n".join(lines).encode() + b"\n"))
    with pa.output_stream(str(folder / "d.jsonl.zst"), compression="zstd") as stream:
        stream.write("".join(json.dumps({**row, "fare": float(row["fare"])}) + "\n" for row in orders(2200, 100)).encode())
    typed = [{**row, "at": datetime.datetime.fromisoformat(row["at"]), "fare": Decimal(row["fare"])} for row in orders(2300, 100)]
    pq.write_table(pa.Table.from_pylist(typed), folder / "e.parquet", row_group_size=10)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Files of every kind, their contracts and the recipe."""
    write_orders(tmp_path / "orders")
    for name, content in {
        "notes/a.csv": b'note,id\r\n"one\r\n""line""\ntwo",1\r\n\r\nthree,2\r\n"longer\nthan the contract takes",3\r\n',
        "notes/b.csv.gz": gzip.compress(b'id,note\n4,"\n"\n5,\n'),
        "photos/x/red.png": PNG + b"red",
        "photos/blue.jpg": JPEG + b"blue",
        "photos/read.me": b"no image",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    for name, table in {"orders": ORDERS, "notes": NOTES, "photos": PHOTOS}.items():
        (tmp_path / f"{name}.yaml").write_text(HEAD.format(name=name) + table)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def mend(data: Path) -> None:
    """Contracts that take zone west, and longer notes."""
    for name, old, new in (("orders", "[north, south]", "[north, south, west]"), ("notes", "maxLength: 20", "maxLength: 40")):
        path = data / f"{name}.yaml"
        path.write_text(path.read_text().replace(old, new))


def stored(spark: SparkSession, data: Path, lake: str) -> dict[str, Rows]:
    """Every row of every table with its provenance, and of every quarantine."""
    recipe = read_recipe(data / "recipe.yaml", lake=str(data / lake))
    found: dict[str, Rows] = {}
    for name in recipe.settings.tables:
        table = read_table(spark, recipe.lake, recipe.contract(name)).orderBy("_source", "_position").collect()
        found[name] = [row.asDict() for row in table]
        refused = read_quarantine(spark, recipe.lake, name).selectExpr(*REFUSED, "replayed_on IS NOT NULL AS replayed")
        found[f"{name} refused"] = [row.asDict() for row in refused.orderBy("source", "position").collect()]
    return found


def run_local(spark: SparkSession, data: Path, *, replay: bool) -> dict[str, dict[str, Any]]:
    recipe = read_recipe(data / "recipe.yaml", lake=str(data / "local"))
    counts = {}
    for name, table in recipe.settings.tables.items():
        contract = recipe.contract(name)
        if replay:
            counts[name] = asdict(replay_table(spark, recipe.lake, contract, Selection(), now=NOW))
        else:
            counts[name] = asdict(ingest_table(spark, recipe, contract, table.sources, now=NOW))
    return counts


def run_on(cluster: str, submit: Callable[..., Any], data: Path, job: str) -> dict[str, dict[str, Any]]:
    """Runs a job on the cluster, where files are cut into small blocks; returns its counts by table."""
    summary = data / f"{Path(job).stem}.json"
    done = submit(job, "--recipe", str(data / "recipe.yaml"), "--lake", str(data / "cluster"), "--summary", str(summary),
                  master=cluster, conf=("spark.sql.files.maxPartitionBytes=20000", "spark.sql.files.openCostInBytes=0"))  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    facts = json.loads(summary.read_text())
    return {name: facts[name] for name in ("orders", "notes", "photos")}


def names_of(rows: Rows) -> list[tuple[str, int, str, bool]]:
    """File, position, rule, and whether it was replayed."""
    return [(row["source"].split("#")[0].rsplit("/", 1)[1], row["position"], row["rule"], row["replayed"]) for row in rows]


@pytest.mark.faults  # not a fault, but as slow
def test_the_cluster_ingests_and_replays_sources_of_every_kind_as_local_mode_does(spark, cluster, submit, data):
    assert run_on(cluster, submit, data, "etl/jobs/ingest_batch.py") == run_local(spark, data, replay=False)
    ingested = stored(spark, data, "cluster")
    assert ingested == stored(spark, data, "local")
    assert {name: len(rows) for name, rows in ingested.items()} == {
        "orders": 2390, "orders refused": 10, "notes": 4, "notes refused": 1, "photos": 2, "photos refused": 1}  # fmt: skip

    mend(data)
    assert run_on(cluster, submit, data, "etl/jobs/replay_quarantine.py") == run_local(spark, data, replay=True)
    replayed = stored(spark, data, "cluster")
    assert replayed == stored(spark, data, "local")

    by_id = {row["id"]: row for row in replayed["orders"]}
    assert sorted(by_id) == [i for i in range(2400) if i not in {first + HALF_A_CENT for first in (0, 2000, 2100, 2200, 2300)}]
    assert [by_id[i]["_position"] for i in (1999, 2005, 2299)] == [2001, 7, 100], "lines, a header among them"
    half_past_two = datetime.datetime(2024, 3, 31, 2, 30, tzinfo=datetime.UTC).timestamp()
    assert {by_id[first]["at"].timestamp() for first in (0, 2000, 2200)} == {half_past_two}, "Berlin's summer began at one UTC"
    alike = [i + 10 for i in (0, 2000, 2100, 2200, 2300)]
    assert {(by_id[i]["at"], by_id[i]["fare"], by_id[i]["zone"]) for i in alike} == {
        (by_id[10]["at"], by_id[10]["fare"], "north")}, "the same order, in whichever format"  # fmt: skip
    assert names_of(replayed["orders refused"]) == [
        ("a.csv", 7, "validValues", True), ("a.csv", 9, "type", False),
        ("b.csv.gz", 7, "validValues", True), ("b.csv.gz", 9, "type", False),
        ("c.csv.bz2", 7, "validValues", True), ("c.csv.bz2", 9, "type", False),
        ("d.jsonl.zst", 6, "validValues", True), ("d.jsonl.zst", 8, "type", False),
        ("e.parquet", 6, "validValues", True), ("e.parquet", 8, "type", False),
    ]  # fmt: skip
    assert [(row["id"], row["_position"], row["note"]) for row in replayed["notes"]] == [
        (1, 2, 'one\r\n"line"\ntwo'), (2, 4, "three"), (3, 5, "longer\nthan the contract takes"), (4, 2, "\n"), (5, 3, None)]  # fmt: skip
    assert [(row["path"], bytes(row["image"])) for row in replayed["photos"]] == [
        ("blue.jpg", JPEG + b"blue"), ("x/red.png", PNG + b"red")]  # fmt: skip
    assert names_of(replayed["photos refused"]) == [("read.me", 1, "image", False)]
