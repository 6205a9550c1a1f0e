"""What the training costs beyond its own arithmetic: against bare functions, TensorFlow's own strategy, and itself.

Everything in a temporary folder, on this machine. Contestants take turns, each in processes of its own unless it is said
otherwise; what comes before steps are in full swing (start, compilation) is not timed, but where the start is what is
measured. Their losses must be equal to 1e-5. Figures are medians. The model is wide and deep without ids, the optimizer Adam.

ring_two_ranks         rows per second of two ranks, 5 million parameters, batches of 4096 in memory; limit: two pinned bare
                       processes of one thread that share nothing, each with half of each batch
ring_vs_mwms           the same; peer: two workers of MultiWorkerMirroredStrategy (RING) in a strategy.run loop
ring_fused             sums per second of 200 tensors of 1,000 floats over two ranks; peer: an allreduce each, not fused
ring_loop              milliseconds of a step of 50 ms or more, one rank; limit: a bare function (both in this process)
ring_loop_small        milliseconds of a step beyond those of a bare function, whose step takes about 5
ring_checkpoint_pause  seconds that the loop pauses at most while 200 MiB are saved each 30 steps
ring_start             seconds from spark-submit to the end of the first step on two ranks, beyond those of horovodrun
ring_recovery          seconds from kill -9 of one of two elastic ranks under horovodrun to the end of the next step
ring_memory            most MiB of one rank, 2,000,000 rows; peer: 200,000 (four row groups of 2,048 rows to a window, and
                       4 MiB read ahead, so that either table is more than what is held of it)
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

from benchmarks.ring_contestants import Contestants  # noqa: E402
from benchmarks.ring_jobs import Jobs  # noqa: E402


@dataclass(frozen=True)
class Figure:
    """Names of contestants. With ``beyond``, ours is what is beyond that contestant, turn by turn."""

    ours: str
    peer: str | None = None
    limit: str | None = None
    beyond: str | None = None
    unit: str = "s"

    @property
    def contestants(self) -> list[str]:
        return [name for name in (self.ours, self.peer, self.limit, self.beyond) if name]


#: Figures that share contestants stand together: they are measured in the same turns.
GROUPS = (
    {
        "ring_two_ranks": Figure("two_ours", limit="two_bare", unit="rows/s"),
        "ring_vs_mwms": Figure("two_ours", peer="two_mwms", unit="rows/s"),
    },
    {"ring_fused": Figure("fused", peer="unfused", unit="sums/s")},
    {"ring_loop": Figure("loop_large", limit="bare_large", unit="ms")},
    {"ring_loop_small": Figure("loop_small", beyond="bare_small", unit="ms")},
    {"ring_checkpoint_pause": Figure("checkpoint_pause")},
    {"ring_start": Figure("start_spark", beyond="start_horovodrun")},
    {"ring_recovery": Figure("recovery")},
    {"ring_memory": Figure("memory_ten", peer="memory_once", unit="MiB")},
)


def measure(figures: dict[str, Figure], contestants: Contestants, repeats: int) -> None:
    """Lets the figures' contestants take turns, and prints a JSON object for each figure."""
    names = list(dict.fromkeys(name for figure in figures.values() for name in figure.contestants))
    turns: dict[str, list[float]] = {name: [] for name in names}
    with tqdm([(number, name) for number in range(repeats) for name in names], disable=None, unit="turn") as progress:
        for number, name in progress:
            progress.set_description(name)
            value = contestants.run(name)
            tqdm.write(f"{name} {number + 1}: {value:.4g}", file=sys.stderr)
            turns[name].append(value)
    for name, figure in figures.items():
        print(json.dumps({"name": name, **summarize(figure, turns), "unit": figure.unit, "repeats": repeats}), flush=True)


def summarize(figure: Figure, turns: dict[str, list[float]]) -> dict[str, float | None]:
    """Medians and their ratios; None for what a figure does not have."""
    values = turns[figure.ours]
    if figure.beyond:
        values = [ours - other for ours, other in zip(values, turns[figure.beyond], strict=True)]
    ours = statistics.median(values)
    peer, limit = (statistics.median(turns[name]) if name else None for name in (figure.peer, figure.limit))
    found = {"ours": ours, "peer": peer, "limit": limit, "ratio_peer": ours / peer if peer else None,
             "ratio_limit": ours / limit if limit else None}  # fmt: skip
    return {key: None if value is None else round(value, 3) for key, value in found.items()}


def main() -> None:
    """Prints one JSON object per figure."""
    known = [name for group in GROUPS for name in group]
    parser = argparse.ArgumentParser(description="What the training costs beyond its own arithmetic.")
    parser.add_argument("--only", action="append", choices=known, help="only this figure; may be given again")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: whether all of it runs; the figures mean nothing")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-ring-") as name:
        contestants = Jobs(Path(name), quick=args.quick)
        for group in GROUPS:
            figures = {key: figure for key, figure in group.items() if not args.only or key in args.only}
            if figures:
                measure(figures, contestants, args.repeats)


if __name__ == "__main__":
    main()
