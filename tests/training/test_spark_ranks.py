"""Ranks in the tasks of a real Spark: the GPUs they are given, and what happens when something is killed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyspark
import pytest
from pyspark import SparkConf

from lakering.errors import SettingError, TrainingError
from tests.training.conftest import ROOT
from training.distributed.devices import ASSIGNED, gpu_environment, parse_device, pin_device
from training.distributed.spark import LostRank, _result, interface_of, rank_environment, rendezvous, wants_gpu

HOST = socket.gethostname()


def test_places_of_ranks_on_two_hosts():
    everyone = [{"host": host, "address": "10.0.0.1", "port": 5} for host in ("a", "b", "a")]
    names = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE")
    found = [rank_environment(rank, everyone) for rank in range(3)]
    assert [[each[f"HOROVOD_{name}"] for name in names] for each in found] == [
        ["0", "3", "0", "2", "0", "2"], ["1", "3", "0", "1", "1", "2"], ["2", "3", "1", "2", "0", "1"]]  # fmt: skip
    assert found[1]["HOROVOD_HOSTNAME"] == "b"
    assert (found[1]["HOROVOD_GLOO_RENDEZVOUS_ADDR"], found[1]["HOROVOD_GLOO_RENDEZVOUS_PORT"]) == ("10.0.0.1", "5")


def test_the_rendezvous_listens_on_its_address_alone():
    with rendezvous("127.0.0.1") as port:
        own = psutil.Process().net_connections("inet")
        assert [found.laddr.ip for found in own if found.laddr.port == port] == ["127.0.0.1"]
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_the_interface_is_the_one_with_the_address_of_spark():
    assert interface_of("127.0.0.1:7337") == "lo"
    with pytest.raises(TrainingError, match=r"has Spark's address 203\.0\.113\.9\n  next: .* --network-interface"):
        interface_of("203.0.113.9:7337")


def outcome(rank: int, **found: Any) -> dict[str, Any]:
    return {"rank": rank, "host": "h", **found}


def failed(rank: int, message: str, *, ours: bool) -> dict[str, Any]:
    return outcome(rank, error={"kind": "TrainingError", "message": message}, ours=ours)


def test_of_several_failures_the_one_that_explains_the_others_is_told():
    assert _result([outcome(0, result={"run": "r"}), outcome(1, result={})]) == {"run": "r"}
    with pytest.raises(LostRank, match="rank 1 on h was ended by SIGKILL"):
        _result([failed(0, "rank 1 is gone", ours=True), outcome(1, ended=-9)])
    with pytest.raises(TrainingError, match="stalled for 10 s"):
        _result([outcome(0, ended=7), failed(1, "lost", ours=False), failed(2, "stalled for 10 s", ours=True)])
    with pytest.raises(LostRank, match="rank 1 on h ended with exit status 3"):
        _result([outcome(0, result={}), outcome(1, ended=3)])


def test_a_task_takes_one_whole_gpu():
    conf = SparkConf(loadDefaults=False)
    assert not wants_gpu(conf)
    assert wants_gpu(conf.set("spark.task.resource.gpu.amount", "1"))
    for amount in ("0.5", "2"):
        with pytest.raises(SettingError, match=rf"spark\.task\.resource\.gpu\.amount is {amount}: expected 1"):
            wants_gpu(conf.set("spark.task.resource.gpu.amount", amount))


def test_devices(monkeypatch):
    import tensorflow as tf

    chosen: list[Any] = []
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda devices, kind: chosen.append(devices))
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", lambda device, on: chosen.append((device, on)))
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["a", "b"])
    assert pin_device("auto", 3, 1, 2) == "GPU 1"
    assert chosen == [["b"], ("b", True)]
    assert pin_device("cpu", 0, 0, 1) == "CPU"
    assert chosen[-1] == []
    assert pin_device("auto", 0, 0, 3) == "CPU, 2 GPU being too few for 3 ranks"
    with pytest.raises(TrainingError, match=f"rank 4 on {HOST} is one of 3 ranks there, and TensorFlow sees 2 GPU"):
        pin_device("gpu", 4, 0, 3)
    monkeypatch.setenv(ASSIGNED, gpu_environment("GPU-7")[ASSIGNED])
    assert pin_device("auto", 3, 1, 2) == "GPU GPU-7"
    assert chosen[-1] == ("a", True)
    with pytest.raises(SettingError, match="--device tpu: expected auto, cpu, gpu"):
        parse_device("tpu")


def test_a_gpu_that_is_asked_for_and_not_there(monkeypatch):
    import tensorflow as tf

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    assert pin_device("auto", 0, 0, 1) == "CPU"
    with pytest.raises(TrainingError, match=f"rank 1 on {HOST}: --device gpu was asked for, and TensorFlow sees no GPU"):
        pin_device("gpu", 1, 0, 1)
    monkeypatch.setenv(ASSIGNED, "5")
    with pytest.raises(TrainingError, match=f"rank 1 on {HOST}: Spark assigned it GPU 5, and TensorFlow sees no GPU"):
        pin_device("auto", 1, 0, 1)


def start(conf_dir: Path, master: str, log: Path, *arguments: str | Path, conf: tuple[str, ...] = ()) -> subprocess.Popen:
    command = [str(Path(sys.executable).with_name("spark-submit")), "--master", master,
               "--properties-file", str(conf_dir / "spark-defaults.conf"),
               *(part for setting in conf for part in ("--conf", setting)),
               str(ROOT / "tests" / "training" / "spark_ranks.py"), *map(str, arguments)]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2", "PYSPARK_PYTHON": sys.executable,
                   "SPARK_HOME": str(Path(pyspark.__file__).parent)}  # fmt: skip
    with log.open("w") as out:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT)


@pytest.mark.faults  # not a fault, but as slow
def test_each_rank_is_pinned_to_the_gpu_that_spark_assigned(spark_conf_dir, tmp_path):
    script = tmp_path / "discover.sh"
    script.write_text("""#!/bin/sh\necho '{"name": "gpu", "addresses": ["3", "5"]}'\n""")
    script.chmod(0o755)
    conf = ("spark.worker.resource.gpu.amount=2", f"spark.worker.resource.gpu.discoveryScript={script}",
            "spark.executor.resource.gpu.amount=1", "spark.task.resource.gpu.amount=1",
            "spark.executor.cores=2", "spark.executor.memory=1g", "spark.executor.instances=2")  # fmt: skip
    run = start(spark_conf_dir, "local-cluster[1,4,2048]", tmp_path / "log", "gpus", tmp_path / "seen", conf=conf)
    assert run.wait(400) == 0, (tmp_path / "log").read_text()[-5000:]
    seen = json.loads((tmp_path / "seen").read_text())
    given = {address: place for _, address, _, place in seen["told"]}
    assert sorted(given) == ["3", "5"]
    assert sorted(given.values()) == [0, 1]
    assert {(device, order) for device, _, order, _ in seen["told"]} == {
        (f"CPU, not GPU {address} that Spark assigned", "PCI_BUS_ID") for address in ("3", "5")}  # fmt: skip
    assert seen["one"]["launch"] == "spark, one rank in the driver"
    assert seen["no gpu"].startswith("TrainingError: rank ")
    assert f" on {HOST}: Spark assigned it GPU " in seen["no gpu"]
    assert "TensorFlow sees no GPU" in seen["no gpu"]
    assert "--device cpu" in seen["no gpu"]
    assert seen["too many"].startswith("SettingError: --ranks 3, but local-cluster[1,4,2048] has 2 task slots, each with a GPU")


def wait_until(condition: Callable[[], Any], seconds: float, log: Path) -> Any:
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, f"waited in vain\n{log.read_text()[-5000:]}"
        time.sleep(0.1)
    return found


def ranks_of(mark: str) -> dict[int, psutil.Process]:
    """The running ranks of the submission whose executors have this mark in their environment."""
    found = {}
    for process in psutil.process_iter():
        try:
            if "training.distributed.rank" in process.cmdline() and process.environ().get("TEST_MARK") == mark:
                found[int(process.environ()["HOROVOD_RANK"])] = process
        except psutil.Error:
            continue
    return found


def steps(lake: Path) -> int:
    """The steps that are logged. A run under way writes its files under other names first, and removes some as it resumes."""
    found = 0
    for log in lake.glob("runs/toy/*/steps/*.jsonl"):
        with contextlib.suppress(FileNotFoundError):
            found += len(log.read_text().splitlines())
    return found


@pytest.mark.faults
def test_kills_under_spark_end_all_ranks_and_running_again_completes(spark_conf_dir, cluster, tmp_path, toy_writer):
    """A rank; then the driver; then, of an elastic run, an executor. Each run goes on from the one before."""
    toy, log, random_steps = toy_writer(tmp_path), tmp_path / "log", random.Random(time.time_ns())

    def begin(*elastic: str) -> tuple[subprocess.Popen, str, dict[int, psutil.Process]]:
        mark, before = uuid.uuid4().hex, steps(toy.folder / "lake")
        run = start(spark_conf_dir, cluster, log, "train", tmp_path / "result", toy.recipe, *elastic,
                    conf=(f"spark.executorEnv.TEST_MARK={mark}", "spark.executor.memory=1g"))  # fmt: skip
        more = random_steps.randrange(20, 60)
        wait_until(lambda: steps(toy.folder / "lake") >= before + more or run.poll() is not None, 400, log)
        assert run.poll() is None, log.read_text()[-5000:]
        return run, mark, ranks_of(mark)

    run, mark, ranks = begin()
    assert sorted(ranks) == [0, 1]
    assert not any(word in " ".join(rank.cmdline()).lower() for rank in ranks.values() for word in ("secret", "token", "request"))
    ranks[1].kill()
    wait_until(lambda: not ranks_of(mark), 60, log)
    assert run.wait(60) == TrainingError.exit_status
    assert f"rank 1 on {HOST} was ended by SIGKILL" in log.read_text()

    run, mark, ranks = begin()
    for process in (*psutil.Process(run.pid).children(recursive=True), psutil.Process(run.pid)):
        with contextlib.suppress(psutil.NoSuchProcess):  # ends with the one before
            process.kill()
    wait_until(lambda: not ranks_of(mark), 60, log)

    run, mark, ranks = begin("1:2")
    executor = next(parent for parent in ranks[1].parents() if parent.name() == "java")
    executor.kill()
    assert run.wait(400) == 0, log.read_text()[-5000:]
    assert "rank 1 on 127.0.0.1 is gone with its Spark executor" in log.read_text()  # as the cluster names the host
    assert "starting again from the newest checkpoint, with 1 to 2 ranks" in log.read_text()
    assert not ranks_of(mark)
    record = json.loads((tmp_path / "result").read_text())["record"]
    assert record["status"] == "complete"
    assert record["steps"] == 60 * 7
    assert 0 < record["resumed_at"] < record["steps"]
