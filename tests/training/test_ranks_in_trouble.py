"""Ranks that die, sleep or lose their launcher, for real; and how the one at fault is told."""

from __future__ import annotations

import json
import os
import random
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from lakering.errors import SettingError, TrainingError
from recipes import read_recipe
from tests.processes import command_lines
from training.distributed import World, launch
from training.distributed.launcher import ancestors, is_orphan
from training.distributed.peers import Peer, address_of, late_ranks, verdict
from training.requests import train_request
from training.train import train

HOST = socket.gethostname()
#: Seconds: a busy machine takes long to import TensorFlow.
START = 300


def peer(doing: str, *, waiting: bool = False, since: float = 90, heard: float = 100, end: str | None = None) -> Peer:
    return Peer("h", doing, waiting, since, heard, end)


def test_the_rank_that_does_something_else_is_late():
    peers = {0: peer("in step 7", waiting=True), 1: peer("reading", since=40), 2: peer("in step 7", waiting=True)}
    assert late_ranks(peers, 100) == ["rank 1 on h, reading for 60 s"]
    assert verdict(peers, 100) == "the other ranks waited in vain for rank 1 on h, reading for 60 s"


def test_no_rank_is_late_while_none_waits():
    assert late_ranks({0: peer("reading"), 1: peer("reading")}, 100) == []
    assert verdict({0: peer("in step", waiting=True), 1: peer("in step", waiting=True)}, 100) is None


def test_a_rank_that_left_is_named_with_its_error():
    peers = {0: peer("in step 7", waiting=True), 1: peer("reading", end="ValueError: x")}
    assert verdict(peers, 100) == "rank 1 on h ended before the others: ValueError: x"


def test_a_silent_rank_is_named():
    peers = {0: peer("in step 7", waiting=True), 1: peer("in step 7", waiting=True, heard=78)}
    assert verdict(peers, 100) == "the other ranks waited in vain for rank 1 on h, not heard of for 22 s, last seen in step 7"


def test_addresses_of_interfaces():
    assert address_of("lo") == "127.0.0.1"
    with pytest.raises(TrainingError, match="network interface 'none0' has no IPv4 address"):
        address_of("none0")


def test_a_short_stall_is_refused():
    with pytest.raises(SettingError, match="--stall-seconds 9: expected 10 or more"):
        launch("nowhere:at_all", {}, stall_seconds=9)


def test_a_process_whose_grandparent_is_killed_is_an_orphan():
    launcher = "import subprocess, sys; subprocess.run(['sh', '-c', 'sleep 60 & echo $!; wait'], start_new_session=True)"
    with subprocess.Popen([sys.executable, "-c", launcher], stdout=subprocess.PIPE, text=True) as started:
        rank = int(started.stdout.readline())  # type: ignore[union-attr]
        chain = ancestors(rank)
        try:
            assert [process.pid for process in chain[::2]] == [rank, started.pid]
            assert not is_orphan(chain)
            started.kill()
            started.wait()
            wait_until(lambda: is_orphan(chain), 10)
        finally:
            for process in reversed(chain[:2]):  # the shell first: it ends with its child, and one that is gone is not killed
                process.kill()


def test_a_training_tells_at_its_start_what_it_trains_on(tmp_path, toy_writer, capsys):
    toy = toy_writer(tmp_path)
    run = train(World(), train_request(read_recipe(toy.recipe)))["run"]
    line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("training: "))
    assert line.startswith(f"training: 1 rank (1 on {HOST} ")
    assert f"snapshot {toy.manifest.id}, global batch 100, steps 0 to 14, record in " in line
    assert line.endswith(f"runs/toy/{run}")


def wait_until(condition, seconds: float) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)


@pytest.fixture
def start(tmp_path: Path, job_environment: dict[str, str]) -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts ``ranks_in_trouble.py``; whatever becomes of a test, its launcher is killed, and no rank outlives that."""
    started = []

    def start(stall_seconds: int = 600, sleep_at_step: int = -1) -> subprocess.Popen:
        script = Path(__file__).with_name("ranks_in_trouble.py")
        command = [str(Path(sys.executable).with_name("horovodrun")), "-np", "2", "--network-interface", "lo", sys.executable,
                   str(script), str(tmp_path), str(stall_seconds), str(sleep_at_step)]  # fmt: skip
        with (tmp_path / "out").open("w") as out:
            started.append(subprocess.Popen(command, env=job_environment, stdout=out, stderr=subprocess.STDOUT))
        return started[-1]

    yield start
    for run in started:
        run.kill()
        run.wait()


def step_of(folder: Path, rank: int) -> int:
    file = folder / f"step-{rank}"
    return int(file.read_text() or 0) if file.exists() else -1


def pids_of(folder: Path) -> list[int]:
    return [int((folder / f"pid-{rank}").read_text()) for rank in (0, 1)]


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def ends_all_ranks(folder: Path, seconds: float) -> None:
    wait_until(lambda: not any(is_running(pid) for pid in pids_of(folder)), seconds)


@pytest.mark.faults
def test_a_killed_rank_is_named_and_ranks_listen_on_the_loopback_alone(start, tmp_path):
    run = start()
    at = random.Random(time.time_ns()).randrange(40, 120)
    wait_until(lambda: step_of(tmp_path, 1) >= at, START)
    pids = pids_of(tmp_path)
    for pid in pids:
        addresses = [found.laddr.ip for found in psutil.Process(pid).net_connections("inet")]
        assert addresses
        assert set(addresses) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    commands = command_lines(run.pid)
    assert len(commands) >= 3, "the launcher's and both ranks'"
    assert not any("_HOROVOD_SECRET_KEY" in command for command in commands)
    os.kill(pids[1], 9)
    assert run.wait(60) != 0
    ends_all_ranks(tmp_path, 5)
    assert f"rank 1 on {HOST} died" in (tmp_path / "out").read_text()


@pytest.mark.faults
def test_no_rank_outlives_a_killed_horovodrun(start, tmp_path):
    run = start()
    wait_until(lambda: step_of(tmp_path, 1) >= 5, START)
    run.kill()
    run.wait()
    ends_all_ranks(tmp_path, 60)


@pytest.mark.faults
def test_a_sleeping_rank_is_named_and_ends_the_run(start, tmp_path):
    run = start(stall_seconds=10, sleep_at_step=3)
    assert run.wait(START) != 0
    ends_all_ranks(tmp_path, 5)
    said = (tmp_path / "out").read_text()
    assert re.search(rf"warning: the other ranks have waited [1-9] s for rank 1 on {HOST}, reading step 3", said)
    reason = json.loads((tmp_path / "error-0").read_text())
    assert reason.startswith("stalled for 1")
    assert f"the other ranks waited in vain for rank 1 on {HOST}, reading step 3" in reason
