"""What the feed costs, against the disk format's own reader, Petastorm's stock path, and itself.

A table of 26 float32, 13 int32 and a label, written as examples are (benchmarks/feed_table.py), in a temporary folder.
Every contestant runs once untimed, then they take turns; what each handed on is compared with what was written: in the
untimed turn the sums of all columns' bits, in the others row count and label. Figures are medians. Speeds are in rows
per second; `_cpu` beside a figure is the same in CPU-seconds of all threads, which other work on the machine disturbs
less. Ratios are speeds, so that more is better, but for feed_step. The scan is one thread of pyarrow over the same
columns, row group by row group. A feed stays from turn to turn, as it does from epoch to epoch, with the memory that it
works in.

feed_first_epoch       shuffled batches of 4096 as tensors, nothing cached; limit: the scan
feed_first_epoch_cpu   the same per CPU-second
feed_vs_stock          the same; peer: make_petastorm_dataset().unbatch().shuffle(10000).batch(4096), on 131,072 rows
feed_memory            a later epoch, newly shuffled from the memory cache; limit: the scan
feed_disk              the same from the disk cache, its pages in memory
feed_vs_tfdata_cache   the memory cache; peer: tf.data's cache().unbatch().shuffle(100000).batch(4096) of packed row
                       groups, on 131,072 rows
feed_two_ranks         rows per CPU-second of two processes, each a rank; peer: one process (batches of numpy arrays)
feed_plan              seconds from the manifest of a million row groups to the first window's plan, all windows cut,
                       in a new process; peak_mib is what it took beyond the interpreter and its modules
feed_step              milliseconds of a step of the demo's model with the feed; limit: with batches in memory
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

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from benchmarks.feed_contestants import Contestants, Turn  # noqa: E402

UNITS = {
    "rows/s": lambda turn: turn.rows / turn.seconds,
    "rows/CPU-s": lambda turn: turn.rows / turn.cpu_seconds,
    "s": lambda turn: turn.seconds,
    "ms": lambda turn: 1000 * turn.seconds / turn.steps,
    "CPU-ms": lambda turn: 1000 * turn.cpu_seconds / turn.steps,
}
CPU_UNITS = {"rows/s": "rows/CPU-s", "ms": "CPU-ms"}


@dataclass(frozen=True)
class Figure:
    """Names of contestants, and what is measured of them."""

    ours: str
    peer: str | None = None
    limit: str | None = None
    unit: str = "rows/s"

    @property
    def sides(self) -> dict[str, str | None]:
        return {"ours": self.ours, "peer": self.peer, "limit": self.limit}


#: Figures that share contestants stand together: they are measured in the same turns.
GROUPS = (
    {
        "feed_first_epoch": Figure("feed", limit="scan"),
        "feed_first_epoch_cpu": Figure("feed", limit="scan", unit="rows/CPU-s"),
        "feed_vs_stock": Figure("feed", peer="stock"),
    },
    {
        "feed_memory": Figure("memory", limit="scan"),
        "feed_disk": Figure("disk", limit="scan"),
        "feed_vs_tfdata_cache": Figure("memory", peer="tfdata_cache"),
    },
    {"feed_two_ranks": Figure("two_ranks", peer="one_rank", unit="rows/CPU-s")},
    {"feed_plan": Figure("plan", unit="s")},
    {"feed_step": Figure("step_feed", limit="step_memory", unit="ms")},
)


def measure(figures: dict[str, Figure], contestants: Contestants, repeats: int) -> None:
    """Lets the figures' contestants take turns, and prints a JSON object for each figure."""
    names = list(dict.fromkeys(name for figure in figures.values() for name in figure.sides.values() if name))
    turns: dict[str, list[Turn]] = {name: [] for name in names}
    with tqdm([(number, name) for number in range(repeats + 1) for name in names], disable=None, unit="turn") as progress:
        for number, name in progress:
            progress.set_description(name if number else f"{name}, untimed")
            turn = contestants.run(name, whole=number == 0)
            tqdm.write(f"{name} {number or 'untimed'}: {turn.seconds:.2f} s, CPU {turn.cpu_seconds:.2f} s", file=sys.stderr)
            if number:
                turns[name].append(turn)
    for name, figure in figures.items():
        print(json.dumps({"name": name, **summarize(figure, turns), "unit": figure.unit, "repeats": repeats}), flush=True)


def summarize(figure: Figure, turns: dict[str, list[Turn]]) -> dict[str, float | None]:
    """Medians and their ratios; None for what a figure does not have."""
    values = _medians(figure, turns, figure.unit)
    digits = 0 if figure.unit.startswith("rows") else 3
    found = {side: _rounded(value, digits) for side, value in values.items()}
    found |= {f"ratio_{side}": _rounded(_ratio(values["ours"], values[side]), 3) for side in ("peer", "limit")}
    if unit := CPU_UNITS.get(figure.unit):
        found |= {f"{side}_cpu": _rounded(value, digits) for side, value in _medians(figure, turns, unit).items()}
    peaks = [turn.peak_mib for turn in turns[figure.ours] if turn.peak_mib is not None]
    return found | ({"peak_mib": round(statistics.median(peaks))} if peaks else {})


def _medians(figure: Figure, turns: dict[str, list[Turn]], unit: str) -> dict[str, float | None]:
    return {side: statistics.median(map(UNITS[unit], turns[name])) if name else None for side, name in figure.sides.items()}


def _ratio(ours: float | None, other: float | None) -> float | None:
    return ours / other if ours and other else None


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def main() -> None:
    """Prints one JSON object per figure."""
    known = [name for group in GROUPS for name in group]
    parser = argparse.ArgumentParser(description="What the feed costs.")
    parser.add_argument("--only", action="append", choices=known, help="only this figure; may be given again")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, default=2_000_000, help="of the table, 160 bytes each (at most 10 million)")
    args = parser.parse_args()
    if not 1 <= args.rows <= 10_000_000:
        sys.exit(f"--rows {args.rows:,}: between 1 and 10 million")
    with tempfile.TemporaryDirectory(prefix="bench-feed-") as name:
        contestants = Contestants(Path(name), args.rows)
        try:
            for group in GROUPS:
                figures = {key: figure for key, figure in group.items() if not args.only or key in args.only}
                if figures:
                    measure(figures, contestants, args.repeats)
        finally:
            contestants.close()


if __name__ == "__main__":
    main()
