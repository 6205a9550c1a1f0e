"""What the ingest costs, against plain Spark, against what is usually written by hand, and against itself.

One warm session of two cores, with the project's settings and those for a small machine. Every contestant runs once
untimed, then they take turns; after each turn what it made is compared, row counts, keys and content. Figures are medians.

ingest_vs_plain   three years of flights, checked, deduplicated, merged; limit: Spark's CSV reader into partitioned Parquet
ingest_vs_hand    the same; peer: typed CSV, dropDuplicates, an insert-only Delta merge
ingest_again      the same files once more; peer: the first time
ingest_overlap    a file, one row in ten of it new, into 3 of a table's 100 partitions; peer: into a table of those 3
ingest_x10        ten years of flights; peer: ten times one year
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

from spark_conf import write_conf_dir  # noqa: E402

from benchmarks.ingest_contestants import FLIGHTS_CSV, Contestants, Work  # noqa: E402


@dataclass(frozen=True)
class Figure:
    """Names of contestants. The peer's seconds and work count ``peer_times``."""

    ours: str
    peer: str | None = None
    limit: str | None = None
    peer_times: int = 1

    @property
    def contestants(self) -> list[str]:
        return [name for name in (self.peer, self.ours, self.limit) if name]


#: Figures that share contestants stand together: they are measured in the same turns.
GROUPS = (
    {
        "ingest_vs_plain": Figure("first", limit="plain"),
        "ingest_vs_hand": Figure("first", peer="hand"),
        "ingest_again": Figure("again", peer="first"),
    },
    {"ingest_overlap": Figure("overlap_large", peer="overlap_small")},
    {"ingest_x10": Figure("ten_years", peer="one_year", peer_times=10)},
)


def measure(figures: dict[str, Figure], contestants: Contestants, spark: SparkSession, repeats: int) -> None:
    """Lets the figures' contestants take turns, and prints a JSON object for each figure."""
    names = list(dict.fromkeys(name for figure in figures.values() for name in figure.contestants))
    names.sort(key=lambda name: name == "again")  # it needs what ``first`` left
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
        print(json.dumps({"name": name, **summarize(figure, seconds), "unit": "s", "repeats": repeats}), flush=True)


def validate_same_work(figures: dict[str, Figure], work: dict[str, Work]) -> None:
    """Ends the process when contestants of one figure made different things."""
    for name, figure in figures.items():
        mine = work[figure.ours]
        sides = [(figure.peer, figure.peer_times), (figure.limit, 1)]
        for other, times in sides:
            if other and work[other].times(times) != mine:
                sys.exit(f"{name}: {figure.ours} made {mine}, {other} (times {times}) {work[other]}: nothing to compare")


def summarize(figure: Figure, seconds: dict[str, list[float]]) -> dict[str, float | None]:
    """Medians and their ratios; None for what a figure does not have."""
    ours = statistics.median(seconds[figure.ours])
    peer = statistics.median(seconds[figure.peer]) * figure.peer_times if figure.peer else None
    limit = statistics.median(seconds[figure.limit]) if figure.limit else None
    ratios = {"ratio_peer": ours / peer if peer else None, "ratio_limit": ours / limit if limit else None}
    values = {"ours": ours, "peer": peer, "limit": limit, **ratios}
    return {key: None if value is None else round(value, 3) for key, value in values.items()}


def main() -> None:
    """Prints one JSON object per figure."""
    known = [name for group in GROUPS for name in group]
    parser = argparse.ArgumentParser(description="What the ingest costs.")
    parser.add_argument("--only", action="append", choices=known, help="only this figure; may be given again")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    if not FLIGHTS_CSV.is_file():
        sys.exit(f"{FLIGHTS_CSV} is missing. Next: make data")
    with tempfile.TemporaryDirectory(prefix="bench-ingest-") as name:
        os.environ["SPARK_CONF_DIR"] = str(write_conf_dir(Path(name) / "conf").parent)
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        spark = SparkSession.builder.master("local[2]").config("spark.ui.showConsoleProgress", "false").getOrCreate()
        try:
            for group in GROUPS:
                figures = {key: figure for key, figure in group.items() if not args.only or key in args.only}
                if figures:
                    measure(figures, Contestants(spark, Path(name)), spark, args.repeats)
        finally:
            spark.stop()


if __name__ == "__main__":
    main()
