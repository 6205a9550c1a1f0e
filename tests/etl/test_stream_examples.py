"""A streamed table is worth what an ingested one is: the same examples, and on a cluster the same rows as in local mode."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
import uuid
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
from tests.conftest import ROOT, submit_command
from tests.etl.conftest import NOW, PASSWORD
from tests.etl.streams import create_topic
from tests.rides import write_rides

RIDES = Path(__file__).resolve().parents[1] / "rides"
SPLITS = ["split=test", "split=train", "split=validation"]


def write_recipe(folder: Path, servers: str, topic: str, security: str = "") -> Path:
    """The rides' recipe with a topic beside its files, in small micro-batches."""
    text = (RIDES / "recipe.yaml").read_text().replace("${RIDES}", str(folder))
    for name in ("rides", "stations"):
        text = text.replace(f"contract: {name}.yaml", f"contract: {RIDES / name}.yaml")
    files = 'rides/*.jsonl", format: json}'
    assert files in text
    text = text.replace(files, f"{files}, {{topic: {topic}, format: json, max_offsets_per_trigger: 250}}")
    path = folder / "recipe.yaml"
    path.write_text(f"{text}\nkafka: {{servers: '{servers}'{security}}}\n")
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
def test_the_cluster_streams_a_secured_topic_as_local_mode_does_though_an_executor_and_then_the_job_are_killed(
    spark: SparkSession, secured: Broker, cluster: str, spark_conf_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rides(tmp_path, num_rows=600, num_bad=3)
    monkeypatch.setenv("TEST_KAFKA_PASSWORD", PASSWORD)
    path = write_recipe(tmp_path, secured.servers_of("SASL_SSL"), "cluster-rides",
                        ", security: SASL_SSL, mechanism: SCRAM-SHA-512, user: alice, password_variable: TEST_KAFKA_PASSWORD, "
                        f"ca: '{secured.folder}/ca.pem'")  # fmt: skip
    send(secured.servers, "cluster-rides", lines_of(tmp_path))
    on_cluster, local = (read_recipe(path, lake=str(tmp_path / name)) for name in ("cluster", "local"))
    place, mark, log = Place(on_cluster.lake, "rides", "cluster-rides"), uuid.uuid4().hex, tmp_path / "log"

    def wait_for_batch(number: int, job: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + 300
        while (state := place.read()) is None or state.batch < number:
            assert job.poll() is None, log.read_text()[-5000:]
            assert time.monotonic() < deadline, log.read_text()[-5000:]
            time.sleep(0.05)

    flags = ("--recipe", str(path), "--lake", str(tmp_path / "cluster"), "--table", "rides", "--once")
    command = submit_command(spark_conf_dir, "etl/jobs/ingest_stream.py", *flags, master=cluster,
                             conf=(f"spark.executorEnv.MARK={mark}",))  # fmt: skip
    with log.open("w") as out:
        job = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, start_new_session=True)
    try:
        wait_for_batch(0, job)
        executors_of(mark)[0].kill()  # the second batch is under way, or about to be
        wait_for_batch(1, job)
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
        job.wait()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    state = place.read()
    assert state is not None
    assert [state.totals[name] for name in ("read", "written", "refused")] == [603, 600, 3]

    drain(spark, local)
    assert stored(spark, on_cluster) == stored(spark, local)
