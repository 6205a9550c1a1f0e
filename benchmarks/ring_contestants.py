"""Who takes part in benchmarks/ring.py. Each has one turn at a time and gives one number, in its figure's unit."""

from __future__ import annotations

import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.feed_table import Shape, write_table
from benchmarks.ring_work import Sizes, Trained, bare_step, batches_for, model_for, settings_of, train_bare, train_ours
from training.checkpoint import FOLDER as CHECKPOINTS
from training.distributed import World
from training.optimizers import Optimizer

ROOT = Path(__file__).resolve().parents[1]
#: Parameters: 5.0 million; a step of 50 ms or more, one of about 5; 17.5 million, whose Adam holds 200 MiB.
TWO = Sizes(hidden=(2048, 2200), batch=4096, steps=5, warm=2)
LARGE = Sizes(hidden=(1024, 512), batch=4096, steps=40)
SMALL = Sizes(hidden=(256, 64), batch=1024, steps=300)
CHECKPOINT = Sizes(hidden=(4070, 4070), batch=16, steps=90)
SAVE_EVERY = 30
#: For a look whether all of it runs.
QUICK = {"TWO": Sizes((64,), 512, 3, 2), "LARGE": Sizes((64,), 256, 10), "SMALL": Sizes((16,), 64, 20),
         "CHECKPOINT": Sizes((512, 512), 16, 30)}  # fmt: skip
LAUNCHER = ("horovodrun", "--network-interface", "lo", "-np", "2")


class Contestants:
    """Each method is a contestant. It asserts that it did the same work as those that it is compared with: their losses
    are equal to 1e-5."""

    def __init__(self, folder: Path, *, quick: bool) -> None:
        self.folder, self._quick = folder, quick
        self._numbers = itertools.count()
        self._losses: dict[str, list[float]] = {}

    def run(self, name: str) -> float:
        contestant: Callable[[], float] = getattr(self, name)
        return contestant()

    def _sizes(self, name: str) -> Sizes:
        sizes: Sizes = QUICK[name] if self._quick else globals()[name]
        return sizes

    def same_work(self, work: str, losses: list[float]) -> None:
        """Ends the process unless the losses are those that came first under this name."""
        known = self._losses.setdefault(work, losses)
        if len(known) != len(losses) or not np.allclose(known, losses, rtol=1e-5, atol=0) or not np.all(np.isfinite(losses)):
            sys.exit(f"{work}: losses {losses}, before {known}: nothing to compare")

    # Two ranks, a dense model: rows per second

    def two_ours(self) -> float:
        found = self._processes("ours", self._two, launcher=LAUNCHER)
        self.same_work("two", found[0]["losses"])
        return self._rows_per_second(found[:1])

    def two_bare(self) -> float:
        """Each process has its own weights, and after the first step others: that one's loss is compared."""
        found = self._processes("bare", self._two)
        mean = statistics.mean(part["losses"][0] for part in found)
        self.same_work("two, first", [mean])
        self.same_work("two, first", self._losses.get("two", [mean])[:1])
        return self._rows_per_second(found, share=2)

    def two_mwms(self) -> float:
        found = self._processes("mwms", {**self._two, "workers": [f"localhost:{port}" for port in free_ports(2)]})
        self.same_work("two", found[0]["losses"])
        return self._rows_per_second(found[:1])

    @property
    def _two(self) -> dict[str, Any]:
        sizes = self._sizes("TWO")
        return {"hidden": sizes.hidden, "batch": sizes.batch, "steps": sizes.steps, "warm": sizes.warm}

    def _rows_per_second(self, found: list[dict[str, Any]], share: int = 1) -> float:
        """Of processes together, each of which does ``1 / share`` of a batch."""
        batch = self._sizes("TWO").batch / share
        return sum(batch * len(part["gaps"]) / sum(part["gaps"]) for part in found)

    # 200 small tensors: sums of all of them per second

    def fused(self) -> float:
        return self._sums_per_second("grouped", {})

    def unfused(self) -> float:
        return self._sums_per_second("single", {"HOROVOD_FUSION_THRESHOLD": "0"})

    def _sums_per_second(self, kind: str, environment: dict[str, str]) -> float:
        steps = 2 if self._quick else 20
        found = self._processes(kind, {"warm": 2, "steps": steps}, launcher=LAUNCHER, environment=environment)
        return 1 / statistics.median(found[0]["gaps"])

    # One rank, in this process: milliseconds per step

    def loop_large(self) -> float:
        return self._loop("LARGE")

    def bare_large(self) -> float:
        return self._bare("LARGE")

    def loop_small(self) -> float:
        return self._loop("SMALL")

    def bare_small(self) -> float:
        return self._bare("SMALL")

    def _loop(self, name: str) -> float:
        return self._milliseconds(name, train_ours(World(), self.folder / "lake", self._sizes(name)))

    def _bare(self, name: str) -> float:
        sizes = self._sizes(name)
        model = model_for(sizes)
        optimizer = Optimizer(settings_of(sizes), model.variables)
        step = tf.function(bare_step(model, optimizer, sizes.batch))
        return self._milliseconds(name, train_bare(sizes, batches_for(sizes), step, optimizer))

    def _milliseconds(self, name: str, trained: Trained) -> float:
        self.same_work(name, trained.losses)
        assert len(trained.gaps) == self._sizes(name).steps
        return 1000 * statistics.mean(trained.gaps)

    def checkpoint_pause(self) -> float:
        """Seconds: the longest time from step to step, less the median."""
        sizes = self._sizes("CHECKPOINT")
        lake = self.folder / f"lake-{next(self._numbers)}"
        trained = train_ours(World(), lake, sizes, checkpoint_every=10 if self._quick else SAVE_EVERY, keep_checkpoints=2)
        self.same_work("checkpoint", trained.losses)
        for index in lake.glob(f"runs/bench/*/{CHECKPOINTS}/*/index.json"):
            held = sum(file.stat().st_size for file in index.parent.iterdir())
            assert self._quick or held > 200 * 2**20, f"{index.parent} holds {held:,} bytes"
        return max(trained.gaps) - statistics.median(trained.gaps)

    # Jobs

    def memory_once(self) -> float:
        return self._peak_mib(1)

    def memory_ten(self) -> float:
        return self._peak_mib(10)

    def _peak_mib(self, times: int) -> float:
        rows = (20_000 if self._quick else 200_000) * times
        (found,) = self._processes("train", {"recipe": str(self.recipe(rows))}, count=1)
        assert (found["rows"], found["steps"]) == (rows, -(-rows // 4096)), found
        return float(found["peak_mib"])

    def recipe(self, rows: int) -> Path:
        """A recipe whose lake holds a table of so many rows and its snapshot."""
        return self._recipes(rows)

    @cached_property
    def _recipes(self) -> Callable[[int], Path]:
        made: dict[int, Path] = {}

        def recipe(rows: int) -> Path:
            if rows not in made:
                folder = self.folder / f"rows-{rows}"
                write_table(folder, Shape(rows, 36, (10, 100, 1_000), 2_048, files=4))
                made[rows] = folder / "bench.yaml"
                made[rows].write_text(RECIPE.format(lake=folder))
            return made[rows]

        return recipe

    # Processes

    def _processes(self, kind: str, facts: dict[str, Any], *, launcher: tuple[str, ...] = (), count: int = 2,
                   environment: dict[str, str] | None = None) -> list[dict[str, Any]]:  # fmt: skip
        """What each process of ``ring_child`` found; ``count`` of them, or those that a launcher starts."""
        folder = self.folder / f"{kind}-{next(self._numbers)}"
        folder.mkdir()
        command = [*launcher, sys.executable, "-m", "benchmarks.ring_child", kind, str(folder), json.dumps(facts)]
        commands = [command] if launcher else [[*command, str(rank)] for rank in range(count)]
        run_all(commands, {**job_environment(), **(environment or {})})
        return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(count)]


#: The feed reads ahead so little that the smaller table is no exception.
RECIPE = """
name: bench
lake: {lake}
tables:
  bench: {{contract: bench.yaml, sources: [{{files: bench.csv, format: csv}}]}}
examples:
  from: bench
  predict: {{label: "y", kind: binary, moment: "t"}}
  features: [{{column: f0}}]
  split: {{by: hash, of: [k]}}
model: {{name: wide_and_deep, hidden: [32], dropout: 0.0, embedding_dropout: 0.0}}
training: {{global_batch_size: 4096, epochs: 1, learning_rate: 0.001, window: 4}}
feed: {{read_ahead: 4}}
"""


def run_all(commands: list[list[str]], environment: dict[str, str]) -> None:
    """Runs commands at the same time; ends this process with what one said that failed."""
    started = [subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
               for command in commands]  # fmt: skip
    try:
        for process in started:
            said, _ = process.communicate(timeout=900)
            if process.returncode:
                sys.exit(f"{process.args!r} ended with status {process.returncode}:\n{said[-3000:]}")
    finally:
        for process in started:
            process.kill()


def job_environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2", "PATH": path}


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(server.getsockname()[1]) for server in sockets]
    for server in sockets:
        server.close()
    return ports
