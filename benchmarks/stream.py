"""What streaming costs, against the parsing alone, against what is usually written by hand, and against itself.

A real broker and one warm session of two cores, with the project's settings and those for a small machine. A million JSON
messages of about 300 bytes in four partitions are drained, in four micro-batches where no other size is named. Every
contestant runs once untimed, then they take turns; after each turn what it made is compared, row counts, keys and content.
Figures are medians.

stream_drain      into an empty table, all checks on; limit: the same parse, and then nothing (messages/s)
stream_vs_append  the same; peer: from_json and append, no keys, no checks (messages/s)
stream_vs_merge   in micro-batches of 25,000, as 5,000 a second make in 5 s, into 20 million rows in 60 partitions; peer:
                  dropDuplicates and a merge over the whole table (messages/s)
stream_vs_merge_of_large  the same in micro-batches of 250,000 (messages/s)
stream_growth     a micro-batch into those; peer: into a table of the newest three of its partitions (s)
stream_latency    5,000 messages/s, a micro-batch every 5 s: 95th percentile from a message's time to its row, less the 5 s (s)
stream_memory     the driver's heap after full collections at batches' ends, last third of a soak; peer: the first third (MB)
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pyspark.sql import SparkSession
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from broker import Broker  # noqa: E402
from spark_conf import write_conf_dir  # noqa: E402

from benchmarks.ingest_contestants import Work  # noqa: E402
from benchmarks.stream_contestants import Contestants  # noqa: E402

RATE, EVERY_S, SOAK_RATE, SOAK_EVERY_S = 5000, 5.0, 1000, 1.0
LATENCY_MINUTES, SOAK_MINUTES = 3.0, 30.0


@dataclass(frozen=True)
class Figure:
    """Names of contestants. Seconds are told as they are, or with ``speed`` as messages a second."""

    ours: str
    peer: str | None = None
    limit: str | None = None
    speed: bool = True

    @property
    def contestants(self) -> list[str]:
        return [name for name in (self.peer, self.ours, self.limit) if name]


@dataclass(frozen=True)
class Group:
    """Figures that are measured in the same turns, in so many micro-batches."""

    repeats: int
    figures: dict[str, Figure]
    batches: int = 4


GROUPS = (
    Group(5, {"stream_drain": Figure("drain", limit="noop"), "stream_vs_append": Figure("drain", peer="append")}),
    # The merge by hand takes long.
    Group(3, {"stream_vs_merge": Figure("into_large", peer="merge")}, batches=40),
    Group(3, {"stream_vs_merge_of_large": Figure("into_large", peer="merge")}),
    Group(5, {"stream_growth": Figure("batch_of_large", peer="batch_of_small", speed=False)}),
)
ROWS_STEP = 160
LATENCY, MEMORY = "stream_latency", "stream_memory"


def measure(figures: dict[str, Figure], contestants: Contestants, spark: SparkSession, repeats: int) -> None:
    """Lets the figures' contestants take turns, and prints a JSON object for each figure."""
    names = list(dict.fromkeys(name for figure in figures.values() for name in figure.contestants))
    seconds: dict[str, list[float]] = {name: [] for name in names}
    turns = [(turn, name) for turn in range(repeats + 1) for name in names]
    work: dict[str, Work] = {}
    with tqdm(turns, disable=None, unit="turn") as progress:
        for turn, name in progress:
            progress.set_description(name if turn else f"{name}, untimed")
            spark.catalog.clearCache()
            spark.sparkContext._gateway.jvm.System.gc()  # type: ignore[union-attr]
            os.sync()  # what the one before wrote is not to be this one's wait
            taken, work[name] = contestants.run(name)
            tqdm.write(f"{name} {turn or 'untimed'}: {taken:.2f} s", file=sys.stderr)
            if turn:
                seconds[name].append(taken)
            if name == names[-1]:
                validate_same_work(figures, work)
    for name, figure in figures.items():
        median = {side: statistics.median(seconds[side]) for side in figure.contestants}
        found = {side: contestants.num_rows / taken if figure.speed else taken for side, taken in median.items()}
        peer, limit = (found[side] if side else None for side in (figure.peer, figure.limit))
        print_figure(name, found[figure.ours], peer, limit, "messages/s" if figure.speed else "s", repeats)


def validate_same_work(figures: dict[str, Figure], work: dict[str, Work]) -> None:
    """Ends the process when contestants of one figure made different things. One that keeps nothing has no checksum."""
    for name, figure in figures.items():
        mine = work[figure.ours]
        for other in figure.contestants:
            same = work[other] == mine if work[other].checksum else work[other].rows == mine.rows
            if not same:
                sys.exit(f"{name}: {figure.ours} made {mine}, {other} {work[other]}: nothing to compare")


def print_figure(name: str, ours: float, peer: float | None, limit: float | None, unit: str, repeats: int) -> None:
    values = {"ours": ours, "peer": peer, "limit": limit, "ratio_peer": ours / peer if peer else None,
              "ratio_limit": ours / limit if limit else None}  # fmt: skip
    rounded = {key: None if value is None else round(value, 3) for key, value in values.items()}
    print(json.dumps({"name": name, **rounded, "unit": unit, "repeats": repeats}), flush=True)


def main() -> None:
    """Prints one JSON object per figure."""
    known = [*(name for group in GROUPS for name in group.figures), LATENCY, MEMORY]
    parser = argparse.ArgumentParser(description="What streaming costs.")
    parser.add_argument("--only", action="append", choices=known, help="only this figure; may be given again")
    parser.add_argument("--repeats", type=int, help="turns that are timed (default: 5, and 3 against the merge)")
    parser.add_argument("--rows", type=int, default=1_000_000, help="messages that are drained, a multiple of 160")
    parser.add_argument("--minutes", type=float,
                        help=f"minutes of a stream (default: {LATENCY_MINUTES:.0f}, soak {SOAK_MINUTES:.0f})")  # fmt: skip
    args = parser.parse_args()
    if args.rows % ROWS_STEP:
        parser.error(f"--rows {args.rows}: expected a multiple of {ROWS_STEP}, so that micro-batches are as large as each other")
    with tempfile.TemporaryDirectory(prefix="bench-stream-") as name:
        folder = Path(name)
        os.environ["SPARK_CONF_DIR"] = str(write_conf_dir(folder / "conf").parent)
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        broker = Broker(folder / "broker", heap="512m")
        servers = broker.start()
        spark = SparkSession.builder.master("local[2]").config("spark.ui.showConsoleProgress", "false").getOrCreate()
        try:
            contestants = Contestants(spark, servers, folder / "lakes", args.rows)
            for group in GROUPS:
                figures = {key: figure for key, figure in group.figures.items() if not args.only or key in args.only}
                if figures:
                    contestants.num_batches = group.batches
                    measure(figures, contestants, spark, args.repeats or group.repeats)
            contestants.num_batches = 1  # what keeps coming is taken in as it comes
            if not args.only or LATENCY in args.only:
                slow, median = contestants.latency(RATE, args.minutes or LATENCY_MINUTES, EVERY_S)
                print(f"stream_latency: the median is {median:.2f} s", file=sys.stderr)
                print_figure(LATENCY, slow - EVERY_S, None, None, "s", 1)
            if not args.only or MEMORY in args.only:
                sizes = contestants.heap(SOAK_RATE, args.minutes or SOAK_MINUTES, SOAK_EVERY_S)
                print(f"stream_memory: {' '.join(f'{size:.0f}' for size in sizes)} MB", file=sys.stderr)
                third = len(sizes) // 3
                print_figure(MEMORY, statistics.fmean(sizes[-third:]), statistics.fmean(sizes[:third]), None, "MB", 1)
        finally:
            spark.stop()
            broker.kill()


if __name__ == "__main__":
    main()
