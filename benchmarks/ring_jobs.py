"""The contestants of benchmarks/ring.py that are the training job itself: when its first step is done, and how it goes on
when a rank is killed."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from spark_conf import write_conf_dir  # noqa: E402
from stage_process import stage_environment  # noqa: E402

from benchmarks.ring_contestants import LAUNCHER, Contestants, run_all  # noqa: E402
from lakering.lake import Lake  # noqa: E402
from lakering.storage import Storage  # noqa: E402
from training.steplog import FOLDER as STEPS  # noqa: E402
from training.steplog import read_steps  # noqa: E402

JOB = "training/jobs/train.py"
ELASTIC = (*LAUNCHER, "--min-np", "1", "--max-np", "2", "-H", "localhost:1,127.0.0.1:1")
#: Steps that are done before the rank is killed, and again after it; how long the job has for them; seconds that are looked
#: at after the kill.
STEPS_DONE, GO_ON_SECONDS, LOOK_SECONDS = 30, 180, 20


class Jobs(Contestants):
    """``Contestants`` that launch training/jobs/train.py."""

    # Seconds from the launch to the end of the first step

    def start_spark(self) -> float:
        conf = write_conf_dir(self.folder / "conf")
        return self._first_step(["spark-submit", "--properties-file", str(conf), "--master", "local[2]", JOB], ["--ranks", "2"])

    def start_horovodrun(self) -> float:
        return self._first_step([*LAUNCHER, sys.executable, JOB], [])

    def _first_step(self, launch: list[str], flags: list[str]) -> float:
        """A checkpoint after each step: the log of the first step is a file of its own, whose time is that of its end."""
        recipe = self.recipe(2_000)
        lake = Lake(Storage(str(recipe.parent)))
        before = set(lake.storage.list("runs", "bench"))
        settings = ["--set", "training.checkpoint_every=1", "--set", "training.global_batch_size=500", "--new"]
        environment = {**stage_environment(), "PYTHONPATH": str(ROOT)}
        environment.pop("SPARK_CONF_DIR", None)
        launched = time.time()
        run_all([[*launch, "--recipe", str(recipe), *flags, *settings]], environment)
        (name,) = set(lake.storage.list("runs", "bench")) - before
        run = lake.run("bench", name)
        self.same_work("start", [step["loss"] for step in read_steps(lake, run)])
        return Path(lake.storage.path(*run, STEPS, "0000000000.jsonl")).stat().st_mtime - launched

    # Seconds from a rank's death to the end of the next step

    def recovery(self) -> float:
        """Rank 0 tells each step in its log. The next step is the one after the longest silence."""
        recipe = self.recipe(200_000)
        command = [*ELASTIC, sys.executable, JOB, "--recipe", str(recipe), "--new", "--elastic", "1:2", "--log-json",
                   "--set", "training.epochs=200", "--set", "training.checkpoint_every=10"]  # fmt: skip
        environment = {**stage_environment(), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        job = psutil.Popen(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        steps: list[float] = []
        said: list[str] = []
        reader = threading.Thread(target=read_steps_said, args=(job.stdout, steps, said), daemon=True)
        reader.start()
        try:
            wait_for(lambda: len(steps) > STEPS_DONE, job, said)
            rank_of(job, "127.0.0.1").kill()
            died, last = time.time(), len(steps)
            wait_for(lambda: time.time() > died + LOOK_SECONDS and len(steps) > last + STEPS_DONE, job, said)
        finally:
            for process in (job, *job.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            job.wait()
        return max(pairwise(steps[last - 1 :]), key=lambda pair: pair[1] - pair[0])[1] - died


def read_steps_said(lines: Any, steps: list[float], said: list[str]) -> None:
    for line in lines:
        said.append(line)
        if '"message": "step"' in line:
            steps.append(time.time())


def wait_for(condition: Callable[[], bool], job: psutil.Popen, said: list[str]) -> None:
    until = time.monotonic() + GO_ON_SECONDS
    while not condition():
        if job.poll() is not None or time.monotonic() > until:
            sys.exit(f"the elastic job does not go on (status {job.poll()}):\n{''.join(said)[-3000:]}")
        time.sleep(0.05)


def rank_of(job: psutil.Popen, host: str) -> psutil.Process:
    """The process of the rank that horovodrun started on a host, below its shell."""
    found = [process for process in job.children(recursive=True)
             if process.name().startswith("python") and JOB in process.cmdline()
             and process.environ().get("HOROVOD_HOSTNAME") == host]  # fmt: skip
    return found[-1]
