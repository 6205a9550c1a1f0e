"""A training that is killed while it writes, that runs out of disk, that is told to stop: with processes, for real."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys

import psutil
import pytest

from lakering.record import read_record
from recipes import read_recipe
from training.checkpoint import list_checkpoints, read_checkpoint
from training.distributed import World
from training.requests import train_request
from training.steplog import read_steps
from training.train import train

OVERRIDES = ("training.precision=float64", "training.epochs=40", "training.checkpoint_every=5")

#: Stops for ever where the index of the second checkpoint would be written.
HELD = """
import sys, threading
import training.saver
from lakering.storage import Storage
from recipes import read_recipe
from training.distributed import World
from training.requests import train_request
from training.train import train

write_json = Storage.write_json

def held(storage, value, *parts):
    if parts[-2:] == ("0000000007", "index.json"):
        print("held", flush=True)
        threading.Event().wait()
    write_json(storage, value, *parts)

training.saver.LEAST_WAIT = 60.0  # no checkpoint is left out, however long one takes
Storage.write_json = held
train(World(), train_request(read_recipe(sys.argv[1], overrides=sys.argv[2:])))
"""

#: No file may be longer than some bytes, until the first checkpoint could not be written, or for ever.
FULL = """
import logging, resource, sys
import training.saver
from lakering.jobs import run_job
from training.jobs.train import main, parser

class MakesRoom(logging.Handler):
    def emit(self, record):
        if record.getMessage() == "checkpoint failed":
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)

if sys.argv.pop(1) == "once":
    logging.getLogger("training").addHandler(MakesRoom())
training.saver.LEAST_WAIT = 60.0  # no checkpoint is left out, however long one takes
resource.setrlimit(resource.RLIMIT_FSIZE, (8000, resource.RLIM_INFINITY))
run_job(main, parser())
"""


def flags(*overrides):
    return [flag for override in overrides for flag in ("--set", override)]


def train_here(toy, *overrides, **request):
    return train(World(), train_request(read_recipe(toy.recipe, overrides=overrides), **request))


def validate_as_unbroken(toy, run, *overrides):
    """The steps and the last weights of a run are those of one that nothing happened to."""
    whole = train_here(toy, *overrides, new=True)["run"]
    ours, theirs = (toy.lake.run("toy", found) for found in (run, whole))
    steps = [[step["loss"] for step in read_steps(toy.lake, found)] for found in (ours, theirs)]
    assert len(steps[0]) == len(steps[1])
    assert steps[0] == pytest.approx(steps[1], rel=1e-10)
    name = list_checkpoints(toy.lake, theirs)[-1]
    ends = [read_checkpoint(toy.lake, found, name) for found in (ours, theirs)]
    for variable, values in ends[1].weights.items():
        assert values.ravel().tolist() == pytest.approx(ends[0].weights[variable].ravel().tolist(), rel=1e-9, abs=1e-12)


@pytest.mark.faults
def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(write_toy, job_environment):
    toy = write_toy()
    overrides = ("training.precision=float64",)
    command = [sys.executable, "-c", HELD, str(toy.recipe), *overrides]
    with subprocess.Popen(command, env=job_environment, stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == "held\n"
        job.send_signal(signal.SIGKILL)
    (run,) = toy.lake.storage.list("runs", "toy")
    names = toy.lake.storage.list("runs", "toy", run, "checkpoints")
    assert names == ["0000000004", "0000000007"]
    assert list_checkpoints(toy.lake, toy.lake.run("toy", run)) == ["0000000004"]
    resumed = train_here(toy, *overrides)
    assert (resumed["run"], resumed["record"]["resumed_at"]) == (run, 4)
    validate_as_unbroken(toy, run, *overrides)


@pytest.mark.faults
def test_a_full_disk_is_told_and_the_next_checkpoint_is_tried(write_toy, job_environment, tmp_path):
    toy = write_toy()
    command = [sys.executable, "-c", FULL, "once", "--recipe", str(toy.recipe), "--lake", toy.lake.storage.root,
               "--summary", str(tmp_path / "s.json"), *flags("training.precision=float64")]  # fmt: skip
    done = subprocess.run(command, env=job_environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("cannot be written: File too large; training goes on") == 1
    summary = json.loads((tmp_path / "s.json").read_text())
    assert summary["run"]["warnings"] == ["1 checkpoints (global steps 4) could not be written, and were made good by later ones"]
    run = toy.lake.run("toy", summary["run"]["id"])
    assert len(read_steps(toy.lake, run)) == 14
    assert toy.lake.storage.list(*run, "checkpoints") == list_checkpoints(toy.lake, run)


@pytest.mark.faults
def test_a_disk_that_stays_full_is_the_exit_status(write_toy, job_environment):
    toy = write_toy()
    command = [sys.executable, "-c", FULL, "always", "--recipe", str(toy.recipe), "--lake", toy.lake.storage.root,
               *flags("training.precision=float64")]  # fmt: skip
    done = subprocess.run(command, env=job_environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 8, done.stderr
    assert "error: the last checkpoint, of global step 14, could not be written" in done.stderr
    assert "next: make room" in done.stderr
    (run,) = toy.lake.storage.list("runs", "toy")
    assert toy.lake.storage.list("runs", "toy", run, "checkpoints") == []


@pytest.mark.faults
@pytest.mark.parametrize("ranks", [1, 2])
def test_sigterm_to_one_rank_saves_and_ends_all_and_one_rank_goes_on(write_toy, start_job, ranks):
    toy = write_toy()
    job = start_job(
        "train", "--recipe", toy.recipe, "--lake", toy.lake.storage.root, "--log-json", *flags(*OVERRIDES), ranks=ranks
    )
    before = []
    for line in job.stderr:
        before.append(line)
        if '"global_step": 33' in line:
            break
    rank_of(job.pid, ranks - 1).send_signal(signal.SIGTERM)
    output, errors = job.communicate(timeout=300)
    assert job.returncode == (75 if ranks == 1 else 1), errors
    assert f"error: a termination notice (rank {ranks - 1}: SIGTERM) stopped the training" in "".join(before) + output + errors
    (run,) = toy.lake.storage.list("runs", "toy")
    record = read_record(toy.lake, "toy", run)
    assert record is not None
    assert record["status"] == "running"
    newest = int(list_checkpoints(toy.lake, toy.lake.run("toy", run))[-1])
    resumed = train_here(toy, *OVERRIDES)
    assert (resumed["run"], resumed["record"]["resumed_at"]) == (run, newest)
    assert 33 < newest < 280
    validate_as_unbroken(toy, run, *OVERRIDES)


def rank_of(pid, rank):
    """The process of a rank below horovodrun, or the job itself."""
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # one that ends while it is asked
            if "train.py" not in " ".join(process.cmdline()) or process.environ().get("HOROVOD_RANK") != str(rank):
                continue
            if process.name().startswith("python"):
                return process
    return psutil.Process(pid)
