"""Trainings that go on when ranks die and hosts are added, for real; and the launcher that shuts Horovod's doors."""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from lakering.errors import SettingError, TrainingError
from recipes import read_recipe
from tests.training.elastic_ranks import write
from training.checkpoint import newest_checkpoint
from training.distributed import Elastic, World, launch
from training.distributed.horovodrun import SECRET, validate
from training.distributed.services import listening_on
from training.requests import train_request
from training.steplog import read_steps
from training.train import train

LAUNCHER = [sys.executable, "-m", "training.distributed.horovodrun"]
#: Seconds: a busy machine takes long to import TensorFlow.
START = 300
#: 65 steps an epoch.
SETTINGS = {"epochs": 12, "global_batch_size": 10, "precision": "float64", "commit_every": 10, "checkpoint_every": 50}
OVERRIDES = [f"training.{name}={value}" for name, value in SETTINGS.items()]
NUM_STEPS = 12 * 65
PLANTED = "not-for-other-eyes"


@pytest.mark.parametrize("text", ["2", "0:2", "3:2", "a:b", "1:2:3"])
def test_a_range_of_ranks_that_is_none_is_refused(text):
    with pytest.raises(SettingError, match=f"--elastic {text}: expected MIN:MAX"):
        Elastic.parse(text)


def test_elastic_is_refused_where_lost_ranks_are_not_started_anew(monkeypatch):
    with pytest.raises(SettingError, match="--elastic 1:2: plain Python is one rank"):
        launch("nowhere:at_all", {}, elastic=Elastic(1, 2))
    monkeypatch.delenv("HOROVOD_ELASTIC", raising=False)
    with pytest.raises(SettingError, match="horovodrun was started with a fixed number of ranks") as caught:
        Elastic(1, 2).validate("horovodrun")
    assert "horovodrun -np 2 --min-np 1 --max-np 2" in str(caught.value)


def test_one_rank_keeps_and_recovers_nothing():
    world = World()
    world.commit(lambda: pytest.fail("captured"), lambda: pytest.fail("flushed"))
    assert world.recover(lambda: 7) is None


def arguments(**given) -> argparse.Namespace:
    names = (
        "hosts",
        "hostfile",
        "num_proc",
        "min_num_proc",
        "nics",
        "host_discovery_script",
        "elastic_timeout",
        "cooldown_range",
    )
    return argparse.Namespace(**{name: given.get(name) for name in names})


def test_the_launcher_tells_at_once_that_slots_are_too_few(job_environment):
    done = subprocess.run([*LAUNCHER, "-np", "3", "-H", "localhost:2", "true"], env=job_environment, capture_output=True, text=True,
                          timeout=120, check=False)  # fmt: skip
    assert done.returncode == 2
    assert "-np 3, but -H localhost:2 has 2 slots" in done.stderr
    with pytest.raises(SettingError, match="-np 2, but -H localhost:1 has 1 slots"):
        validate(arguments(hosts="localhost:1", num_proc=2, min_num_proc=1))


def test_the_launcher_wants_the_interface_to_other_machines_named():
    with pytest.raises(SettingError, match=r"192.0.2.1 is not this machine, and no interface is named"):
        validate(arguments(hosts="192.0.2.1:1", num_proc=1))
    assert validate(arguments(hosts="192.0.2.1:1", num_proc=1, nics={"eth7"})) == "eth7"
    assert validate(arguments(num_proc=2)) == "lo"


def test_horovods_servers_listen_on_the_named_interface_alone():
    from horovod.runner.http import http_server

    before = http_server.find_port
    with listening_on("lo"):
        server = http_server.KVStoreServer(verbose=0)
        port = server.start_server()
    assert server.httpd.socket.getsockname() == ("127.0.0.1", port)
    server.shutdown_server()
    assert http_server.find_port is before


def test_a_port_that_is_taken_is_told():
    from horovod.runner.http import http_server

    def taken(address: tuple[str, int]) -> None:
        raise OSError(98, "Address already in use")

    with listening_on("lo"), pytest.raises(TrainingError, match=r"no port of 127.0.0.1 \(lo\) can be listened on.*in use"):
        http_server.find_port(taken)


def test_names_of_secrets():
    names = [
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AZURE_STORAGE_SAS",
        "DB_PASSWORD",
        "PATH",
        "PYTHONPATH",
        "OMP_NUM_THREADS",
    ]
    assert [bool(SECRET.search(name)) for name in names] == [True] * 4 + [False] * 3


class Run:
    """An elastic training under way, and its gate."""

    def __init__(self, folder: Path, environment: dict[str, str], *launcher_flags: str, least: int) -> None:
        self.folder, self.gate, self.out = folder, 0, folder / "out"
        self.advance(5)
        script = Path(__file__).with_name("elastic_ranks.py")
        flags = [flag for override in OVERRIDES for flag in ("--set", override)]
        command = [*LAUNCHER, "-np", "2", "--min-np", str(least), "--max-np", "2", *launcher_flags, sys.executable, str(script),
                   str(folder), "--recipe", str(folder / "toy.yaml"), "--elastic", f"{least}:2",
                   "--summary", str(folder / "summary.json"), *flags]  # fmt: skip
        with self.out.open("w") as out:
            self.process = subprocess.Popen(command, env={**environment, "AWS_SECRET_ACCESS_KEY": PLANTED}, stdout=out,
                                            stderr=subprocess.STDOUT)  # fmt: skip

    def advance(self, steps: int) -> None:
        self.gate += steps
        write(self.folder / "gate", str(self.gate))

    def rank(self, number: int) -> tuple[int, int, int]:
        """Its process, its step, and the number of ranks."""
        pid, step, ranks = map(int, (self.folder / f"rank-{number}").read_text().split())
        return pid, step, ranks

    def until(self, condition, seconds: float = START) -> None:
        """Lets it do some steps at a time, until the condition holds."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.out.read_text()[-5000:]
            assert self.process.poll() is None, self.out.read_text()[-5000:]
            if max(self.rank(r)[1] for r in (0, 1) if (self.folder / f"rank-{r}").exists()) >= self.gate - 2:
                self.advance(2)
            time.sleep(0.2)

    def started(self) -> None:
        end = time.monotonic() + START
        while not all((self.folder / f"rank-{rank}").exists() for rank in (0, 1)):
            assert time.monotonic() < end, self.out.read_text()[-5000:]
            assert self.process.poll() is None, self.out.read_text()[-5000:]
            time.sleep(0.1)

    def kill(self, rank: int, at_step: int) -> int:
        """Kills a rank in the middle of its steps; returns its process."""
        self.until(lambda: self.rank(rank)[1] >= at_step)
        self.advance(50)  # the others do not wait at the gate
        time.sleep(random.uniform(0, 0.1))
        pid = self.rank(rank)[0]
        os.kill(pid, 9)
        return pid

    def said(self, text: str) -> bool:
        return text in self.out.read_text()


def seed() -> None:
    value = time.time_ns()
    print("seed", value)
    random.seed(value)


@pytest.mark.faults
def test_ranks_die_and_join_and_every_step_is_done_once(tmp_path, toy_writer, job_environment):
    seed()
    toy = toy_writer(tmp_path)
    hosts, script = tmp_path / "hosts", tmp_path / "discover"
    write(hosts, "localhost:1\n127.0.0.1:1\n")
    script.write_text(f"#!/bin/sh\ncat {hosts}\n")
    script.chmod(0o755)
    run = Run(tmp_path, job_environment, "--host-discovery-script", str(script), least=1)
    try:
        run.started()
        assert_shut(run.process.pid)
        run.kill(0, random.randrange(20, 90))
        run.until(lambda: run.said("going on with 1 rank from step"))
        write(hosts, "localhost:1\n127.0.0.1:1\n127.1:1\n")  # another name of this machine
        run.until(lambda: run.said("going on with 2 ranks from step"))
        run.kill(1, run.rank(0)[1] + random.randrange(20, 60))
        run.until(lambda: run.out.read_text().count("going on with 1 rank from step") == 2)
        run.advance(NUM_STEPS)
        assert run.process.wait(START) == 0, run.out.read_text()[-5000:]
    finally:
        run.process.kill()
    said = json.loads((tmp_path / "summary.json").read_text())
    assert said["elastic"]["resets"] == 3
    assert len(said["elastic"]["left"]) == 2
    assert len(said["elastic"]["joined"]) == 1
    assert said["elastic"]["joined"][0].startswith("127.1, process ")
    assert 0 <= said["elastic"]["steps_done_again"] <= 3 * 11

    elastic = toy.lake.run("toy", said["run"]["id"])
    unbroken = train(World(), train_request(read_recipe(toy.recipe, overrides=OVERRIDES), new=True))
    steps, expected = (read_steps(toy.lake, run) for run in (elastic, toy.lake.run("toy", unbroken["run"])))
    assert [step["global_step"] for step in steps] == list(range(NUM_STEPS))
    assert [step["rows"] for step in steps] == [step["rows"] for step in expected]
    np.testing.assert_allclose([step["loss"] for step in steps], [step["loss"] for step in expected], rtol=1e-10, atol=1e-10)


@pytest.mark.faults
def test_fewer_ranks_than_the_least_end_the_run_and_a_rerun_goes_on(tmp_path, toy_writer, job_environment):
    seed()
    toy = toy_writer(tmp_path)
    run = Run(tmp_path, job_environment, "-H", "localhost:1,127.0.0.1:1", least=2)
    try:
        run.started()
        run.kill(random.randrange(2), random.randrange(80, 110))
        assert run.process.wait(START) != 0
    finally:
        run.process.kill()
    assert run.said("1 of at least 2 ranks are left")
    assert run.said("error: the ranks did not all end well")
    result = train(World(), train_request(read_recipe(toy.recipe, overrides=OVERRIDES)))
    assert result["record"]["resumed_at"] >= 50
    steps = read_steps(toy.lake, toy.lake.run("toy", result["run"]))
    assert [step["global_step"] for step in steps] == list(range(NUM_STEPS))
    assert newest_checkpoint(toy.lake, toy.lake.run("toy", result["run"]))[0].global_step == NUM_STEPS  # type: ignore[union-attr]


@pytest.mark.faults
def test_a_rank_that_dies_before_the_ranks_have_met_is_done_without(tmp_path, toy_writer, job_environment):
    toy = toy_writer(tmp_path)
    write(tmp_path / "dies", "127.0.0.1")
    run = Run(tmp_path, job_environment, "-H", "localhost:1,127.0.0.1:1", least=1)
    try:
        run.advance(NUM_STEPS)
        assert run.process.wait(START) == 0, run.out.read_text()[-5000:]
    finally:
        run.process.kill()
    said = json.loads((tmp_path / "summary.json").read_text())
    steps = read_steps(toy.lake, toy.lake.run("toy", said["run"]["id"]))
    assert [step["global_step"] for step in steps] == list(range(NUM_STEPS))


def assert_shut(launcher: int) -> None:
    """All processes of a launch listen on the loopback alone, and no command line holds a secret."""
    listening = 0
    for process in [psutil.Process(launcher), *psutil.Process(launcher).children(recursive=True)]:
        try:
            command = " ".join(process.cmdline())
            found = [one.laddr.ip for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN]
        except psutil.NoSuchProcess:
            continue
        assert PLANTED not in command
        assert "_HOROVOD_SECRET_KEY" not in command
        assert set(found) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, command
        listening += len(found)
    assert listening >= 3  # the rendezvous, and what tells each rank of hosts
