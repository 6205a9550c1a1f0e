"""What the suite shares: one local-mode SparkSession, with the project's settings and the small-machine overlay."""

from __future__ import annotations

import logging
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyspark.sql import SparkSession
from xdist.remote import Producer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from broker import Broker  # noqa: E402
from spark_conf import write_conf_dir  # noqa: E402

from tests.order import OfOneRoom  # noqa: E402

# Ranks wait so long for each other at a start: on a busy machine Gloo's own 30 s may be too few to import TensorFlow.
os.environ.setdefault("HOROVOD_GLOO_TIMEOUT_SECONDS", "180")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> OfOneRoom | None:
    return OfOneRoom(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def spark_conf_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_conf_dir(tmp_path_factory.mktemp("spark-conf")).parent


@pytest.fixture(scope="session")
def spark(spark_conf_dir: Path) -> Iterator[SparkSession]:
    os.environ["SPARK_CONF_DIR"] = str(spark_conf_dir)
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    session = SparkSession.builder.master("local[2]").config("spark.ui.showConsoleProgress", "false").getOrCreate()
    yield session
    session.stop()


def submit_command(conf_dir: Path, job: str, *args: str, master: str = "local[2]", conf: tuple[str, ...] = ()) -> list[str]:
    return [str(Path(sys.executable).with_name("spark-submit")), "--master", master,
            "--properties-file", str(conf_dir / "spark-defaults.conf"),
            *(part for setting in conf for part in ("--conf", setting)), str(ROOT / job), *args]  # fmt: skip


@pytest.fixture(scope="session")
def submit(spark_conf_dir: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a job as a user does: ``spark-submit`` in a process of its own."""

    def run(
        job: str, *args: str, master: str = "local[2]", conf: tuple[str, ...] = (), **env: str
    ) -> subprocess.CompletedProcess[str]:
        command = submit_command(spark_conf_dir, job, *args, master=master, conf=conf)
        return subprocess.run(command, cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, timeout=600)

    return run


@pytest.fixture
def run_here(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a job's file as ``python FILE FLAGS`` does, but in this process, which has TensorFlow already: a process of its
    own takes ten times as long to import it as most jobs take to say what is wrong."""

    def run(job: str, *flags: str | Path) -> subprocess.CompletedProcess[str]:
        loggers = [logging.getLogger(name) for name in ("lakering", "etl", "etl.stream", "training")]
        before = [(logger, logger.level, list(logger.handlers)) for logger in loggers]
        monkeypatch.setattr(sys, "argv", [job, *map(str, flags)])
        try:
            with pytest.raises(SystemExit) as ended:
                runpy.run_path(str(ROOT / job), run_name="__main__")
        finally:
            for logger, level, handlers in before:
                logger.setLevel(level)
                logger.handlers = handlers
        said = capsys.readouterr()
        return subprocess.CompletedProcess(sys.argv, int(str(ended.value.code)), said.out, said.err)

    return run


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A standalone Spark cluster of two workers on this machine."""
    folder = tmp_path_factory.mktemp("cluster")
    script = [sys.executable, str(ROOT / "scripts" / "cluster.py")]
    started = subprocess.run([*script, "start", "--folder", str(folder)], capture_output=True, text=True, timeout=120)
    assert started.returncode == 0, started.stderr
    found = re.search(r"spark://\S+", started.stdout)
    assert found
    yield found[0]
    subprocess.run([*script, "stop", "--folder", str(folder)], check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A Kafka broker on this machine, without security: ``broker.servers``. It is shared: name topics after their test, and
    stop or kill one of your own only."""
    started = Broker(tmp_path_factory.mktemp("broker"))
    started.start()
    yield started
    started.stop()
