"""A streamed table is worth what an ingested one is: the same examples, and on a cluster the same rows as in local mode."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from broker import Broker
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic
from pyspark.sql import SparkSession

from etl.examples import plan_examples
from etl.examples.inputs import build_inputs
from etl.ingest import ingest_table
from etl.stream.batch import StreamResult
from etl.stream.run import Start, stream_tables
from etl.stream.state import Place
from etl.tables import read_quarantine, read_table, table_version
from etl.tables.examples import make_build
from recipes import Recipe, read_recipe
from tests.etl.conftest import NOW
from tests.etl.streams import create_topic
from tests.rides import write_rides

RIDES = Path(__file__).resolve().parents[1] / "rides"
SPLITS = ["split=test", "split=train", "split=validation"]


def write_recipe(folder: Path, servers: str, topic: str) -> Path:
    """The rides' recipe with a topic beside its files, in small micro-batches."""
    text = (RIDES / "recipe.yaml").read_text().replace("${RIDES}", str(folder))
    for name in ("rides", "stations"):
        text = text.replace(f"contract: {name}.yaml", f"contract: {RIDES / name}.yaml")
    files = 'rides/*.jsonl", format: json}'
    assert files in text
    text = text.replace(files, f"{files}, {{topic: {topic}, format: json, max_offsets_per_trigger: 250}}")
    path = folder / "recipe.yaml"
    path.write_text(f"{text}\nkafka: {{servers: '{servers}'}}\n")
    return path


def send(servers: str, topic: str, lines: list[bytes]) -> None:
    """Deals lines out to a new topic's three partitions."""
    kept = NewTopic(topic, 3, config={"retention.ms": "-1"})
    create_topic(AdminClient({"bootstrap.servers": servers}), kept)
    producer = Producer({"bootstrap.servers": servers})
    for number, line in enumerate(lines):
        producer.produce(topic, line, partition=number % 3)
    assert producer.flush(60) == 0


def lines_of(folder: Path) -> list[bytes]:
    return [line for name in ("a", "b") for line in (folder / "rides" / f"{name}.jsonl").read_bytes().splitlines()]


def ingest(spark: SparkSession, recipe: Recipe, *tables: str) -> None:
    for name in tables:
        ingest_table(spark, recipe, recipe.contract(name), recipe.settings.tables[name].files, now=NOW)


def drain(spark: SparkSession, recipe: Recipe) -> StreamResult:
    results: dict[str, StreamResult] = {}
    stream_tables(spark, recipe, {"rides": recipe.contract("rides")}, Start(None), threading.Event(), results)
    (result,) = results.values()
    return result


def examples_of(spark: SparkSession, recipe: Recipe) -> dict[str, pa.Table]:
    """Builds the examples; their rows by split, in the order in which they stand."""
    plan, lake = plan_examples(recipe), recipe.lake
    versions = {name: table_version(lake, name) for name in sorted(plan.contracts)}
    make_build(spark, lake, plan, "build", build_inputs(plan, versions))
    table = Path(lake.storage.path(*lake.build(recipe.name, "build"), "table"))
    return {split.name: pa.concat_tables(pq.ParquetFile(file).read() for file in sorted(split.glob("*.parquet")))
            for split in sorted(table.glob("split=*"))}  # fmt: skip


def test_streamed_rows_give_the_examples_of_the_same_rows_from_files(spark: SparkSession, broker: Broker, tmp_path: Path) -> None:
    write_rides(tmp_path, num_rows=600, num_bad=3)
    path = write_recipe(tmp_path, broker.servers, "examples-rides")
    files, streamed = (read_recipe(path, lake=str(tmp_path / name)) for name in ("files", "streamed"))
    ingest(spark, files, "rides", "stations")
    lines = lines_of(tmp_path)
    send(broker.servers, "examples-rides", [*reversed(lines), *lines[:100]])
    told = drain(spark, streamed)
    assert (told.batches, told.rows_read, told.rows_written, told.rows_already_present) == (3, 703, 600, 100)
    assert told.refused == {"ride_id: pattern": 3}
    ingest(spark, streamed, "rides", "stations")

    ours, theirs = examples_of(spark, streamed), examples_of(spark, files)
    assert list(ours) == list(theirs) == SPLITS
    assert sum(rows.num_rows for rows in ours.values()) == 600
    for split in SPLITS:
        assert ours[split].schema == theirs[split].schema
        for name in ours[split].column_names:
            mine, other = ours[split][name].to_pylist(), theirs[split][name].to_pylist()
            # A mean may differ in its last bit with the order in which a sum was taken.
            assert mine == (pytest.approx(other) if pa.types.is_floating(ours[split].schema.field(name).type) else other), name


def stored(spark: SparkSession, recipe: Recipe) -> list[list[dict[str, Any]]]:
    """The table with its provenance, and the quarantine but for the day of the test."""
    table = read_table(spark, recipe.lake, recipe.contract("rides")).orderBy("ride_id")
    refused = read_quarantine(spark, recipe.lake, "rides").orderBy("source", "position")
    refused = refused.select("source", "position", "column", "rule", "value", "raw", "timestamp")
    return [[row.asDict() for row in rows.collect()] for rows in (table, refused)]


def executors_of(mark: str) -> list[psutil.Process]:
    """The JVMs that have this mark in their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.name() == "java" and process.environ().get("MARK") == mark:
                found.append(process)
    return found


@pytest.mark.faults
def test_the_cluster_streams_a_topic_as_local_mode_does_though_an_executor_is_killed(
    spark: SparkSession, broker: Broker, cluster: str, submit: Callable[..., Any], tmp_path: Path
) -> None:
    write_rides(tmp_path, num_rows=600, num_bad=3)
    path = write_recipe(tmp_path, broker.servers, "cluster-rides")
    send(broker.servers, "cluster-rides", lines_of(tmp_path))
    summary = tmp_path / "summary.json"
    mark = uuid.uuid4().hex
    flags = ("--recipe", str(path), "--lake", str(tmp_path / "cluster"), "--table", "rides", "--once", "--summary", str(summary))
    place = Place(read_recipe(path, lake=str(tmp_path / "cluster")).lake, "rides", "cluster-rides")
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(submit, "etl/jobs/ingest_stream.py", *flags, master=cluster, conf=(f"spark.executorEnv.MARK={mark}",))
        while (state := place.read()) is None or state.batch < 0:
            assert not job.done(), job.result().stderr[-5000:]
            time.sleep(0.05)
        executors_of(mark)[0].kill()  # the second batch is under way, or about to be
        done = job.result()
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    told = json.loads(summary.read_text())["rides from cluster-rides"]
    assert (told["batches"], told["rows_read"], told["rows_written"], told["rows_refused"]) == (3, 603, 600, 3)

    on_cluster, local = (read_recipe(path, lake=str(tmp_path / name)) for name in ("cluster", "local"))
    drain(spark, local)
    assert stored(spark, on_cluster) == stored(spark, local)
