"""A standalone Spark cluster on this machine: a master and its workers on 127.0.0.1, from the PySpark in .venv.

    python scripts/cluster.py start [--workers 2] [--cores 1] [--memory 2g]     prints the master's URL
    python scripts/cluster.py status | stop

The pip package has no start-master.sh, so the daemons are started by their classes. Processes, ports and logs are noted
in a folder (.cluster, or --folder) before anything waits for them: a start that was killed is cleaned up by `stop` or
the next start. Executors run the environment's Python, in which the project is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HOST = "127.0.0.1"
MASTER, WORKER = "org.apache.spark.deploy.master.Master", "org.apache.spark.deploy.worker.Worker"


class ClusterError(Exception):
    """The cluster is not in the state that was asked for."""


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens on just now, each another: they are held together until all are found."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(number)]
        for probe in probes:
            probe.bind((HOST, 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def is_daemon(pid: int) -> bool:
    """Whether the process is one of ours: a number may have gone to another since."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        if Path("/proc/self/cmdline").exists():
            return False
        told = subprocess.run(["ps", "-p", str(pid), "-o", "args="], capture_output=True, check=False)
        command = told.stdout
    return b"org.apache.spark.deploy." in command or b"spark-class" in command


class Cluster:
    """The daemons noted in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._notes = folder, folder / "cluster.json"

    def notes(self) -> dict[str, Any]:
        """What was started: `pids`, `ui` (the master's JSON), `url`; empty if nothing was."""
        try:
            return dict(json.loads(self._notes.read_text()))
        except (OSError, ValueError):
            return {}

    def _note(self, **values: Any) -> None:
        temporary = self._notes.with_suffix(".tmp")
        temporary.write_text(json.dumps({**self.notes(), **values}, indent=1))
        os.replace(temporary, self._notes)

    def _launch(self, name: str, *arguments: str) -> None:
        spec = importlib.util.find_spec("pyspark")
        if spec is None or spec.origin is None:
            raise ClusterError(f"no PySpark in {sys.executable}: run `make setup`, and use .venv/bin/python")
        home = Path(spec.origin).parent
        inherited = {key: value for key, value in os.environ.items() if key not in ("SPARK_CONF_DIR", "SPARK_MASTER_HOST")}
        environment = {
            **inherited,
            "SPARK_HOME": str(home),
            "SPARK_LOCAL_IP": HOST,  # the web pages too listen on nothing else
            "SPARK_DAEMON_MEMORY": "512m",
            "SPARK_DAEMON_JAVA_OPTS": "-XX:+UseSerialGC -XX:TieredStopAtLevel=1",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYSPARK_PYTHON": sys.executable,
        }
        with (self.folder / f"{name}.log").open("wb") as log:
            daemon = subprocess.Popen(
                [str(home / "bin" / "spark-class"), *arguments],
                cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        self._note(pids={**self.notes().get("pids", {}), name: daemon.pid})

    def _wait(self, workers: int, timeout_s: float) -> dict[str, Any]:
        """The master's state, once so many workers are alive."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for name, pid in self.notes()["pids"].items():
                # Asked of the kernel: the command line, which tells a daemon from another process, is empty during exec.
                if os.waitpid(pid, os.WNOHANG)[0] == pid:
                    end = "\n  ".join((self.folder / f"{name}.log").read_text(errors="replace").splitlines()[-10:])
                    raise ClusterError(f"{name} has ended; its log ({self.folder / f'{name}.log'}) says:\n  {end}")
            with contextlib.suppress(OSError, ValueError, urllib.error.URLError):
                state = self.state()
                if sum(worker["state"] == "ALIVE" for worker in state["workers"]) >= workers:
                    return state
            time.sleep(0.2)
        raise ClusterError(f"{workers} workers were not registered within {timeout_s:.0f} s; logs: {self.folder}/*.log")

    def state(self) -> dict[str, Any]:
        """What the master tells of itself."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self.notes()['ui']}/json/", timeout=5) as answer:
            return dict(json.load(answer))

    def start(self, *, workers: int, cores: int, memory: str, timeout_s: float = 90.0) -> str:
        """Starts the daemons and returns the master's URL once all workers are registered, or cleans up."""
        if self.running():
            raise ClusterError(f"a cluster is running: {self.notes().get('url')} (stop it first)")
        self.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        port, ui = free_ports(2)
        self._note(pids={}, ui=f"http://{HOST}:{ui}", url=f"spark://{HOST}:{port}")
        try:
            self._launch("master", MASTER, "--host", HOST, "--port", str(port), "--webui-port", str(ui))
            url = str(self._wait(0, timeout_s)["url"])
            self._note(url=url)
            for number in range(workers):
                options = ["--host", HOST, "--webui-port", "0", "-c", str(cores), "-m", memory]
                self._launch(f"worker-{number}", WORKER, *options, "-d", str(self.folder / f"work-{number}"), url)
            self._wait(workers, timeout_s)
        except BaseException:  # an interrupt too: no daemon is left, and the error goes on
            self._end()
            raise
        return url

    def running(self) -> bool:
        """Whether the noted master is alive."""
        pid = self.notes().get("pids", {}).get("master")
        return bool(pid) and is_daemon(pid)

    def _end(self, timeout_s: float = 10.0) -> int:
        """Ends the daemons that are left, workers first (they end their executors); returns how many there were."""
        pids = [pid for pid in reversed(self.notes().get("pids", {}).values()) if is_daemon(pid)]
        for sign in (signal.SIGTERM, signal.SIGKILL):
            for pid in filter(is_daemon, pids):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, sign)
            deadline = time.monotonic() + timeout_s
            while any(map(is_daemon, pids)) and time.monotonic() < deadline:
                for pid in pids:
                    with contextlib.suppress(ChildProcessError):
                        os.waitpid(pid, os.WNOHANG)
                time.sleep(0.1)
        return len(pids)

    def stop(self) -> int:
        """Ends what is left of a cluster and removes its folder."""
        ended = self._end()
        shutil.rmtree(self.folder, ignore_errors=True)
        return ended


def _terminated(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Exit status 0: as asked; 1: not running, or could not be started."""
    parser = argparse.ArgumentParser(description="A standalone Spark cluster on this machine.")
    parser.add_argument("action", choices=["start", "stop", "status"])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cores", type=int, default=1, help="of each worker")
    parser.add_argument("--memory", default="2g", help="of each worker")
    parser.add_argument("--folder", type=Path, default=ROOT / ".cluster")
    arguments = parser.parse_args()
    cluster = Cluster(arguments.folder.resolve())
    signal.signal(signal.SIGTERM, _terminated)
    try:
        if arguments.action == "start":
            print(cluster.start(workers=arguments.workers, cores=arguments.cores, memory=arguments.memory))
        elif arguments.action == "stop":
            print(f"{cluster.stop()} processes ended")
        elif not cluster.running():
            print("no cluster is running", file=sys.stderr)
            return 1
        else:
            state = cluster.state()
            print(f"{state['url']}: {state['aliveworkers']} workers, {state['coresused']} of {state['cores']} cores used")
    except (ClusterError, OSError) as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("cluster: stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
