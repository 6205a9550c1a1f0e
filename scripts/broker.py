"""A Kafka broker on this machine: one node that is its own controller (KRaft), on 127.0.0.1, for trials and tests.

Its settings, data, log and process number lie in one folder, noted before anything waits for them, so that another
process can find, end and start it again, on the same ports.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from broker_jars import class_path
from certificates import make_certificates
from cluster import HOST, free_ports
from prerequisites import java_command

MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
READY, TAKEN = b"Kafka Server started", "Address already in use"
LOGGING = """status = error
rootLogger.level = warn
rootLogger.appenderRef.out.ref = out
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d %p %c{1}: %m%n
logger.ready.name = kafka.server.KafkaRaftServer
logger.ready.level = info
"""  # the level at which {READY!r} is told


class BrokerError(Exception):
    """The broker is not in the state that was asked for."""


class Broker:
    """The broker of one folder.

    ``listeners`` are Kafka's names of what it speaks besides PLAINTEXT: SSL, SASL_PLAINTEXT, SASL_SSL. ``users`` are the
    names and passwords that SASL knows, by PLAIN and SCRAM alike (throw-away ones: they lie in the folder). With SSL the
    folder has ``ca.pem``, and ``client.pem`` with ``client.key`` for a client that shows a certificate; ``other-ca.pem``
    is an authority that did not sign the broker's. ``settings`` are the broker's own, such as ``log.retention.ms``."""

    def __init__(self, folder: Path, *, port: int = 0, listeners: Sequence[str] = (), users: Mapping[str, str] | None = None,
                 settings: Mapping[str, str | int] | None = None, heap: str = "256m") -> None:  # fmt: skip
        self.folder = folder.resolve()
        self._wanted_port, self._listeners = port, ("PLAINTEXT", *listeners)
        self._users, self._settings, self._heap = dict(users or {}), dict(settings or {}), heap
        self._notes = self.folder / "broker.json"
        self._process: subprocess.Popen[bytes] | None = None

    def notes(self) -> dict[str, Any]:
        """What was started: ``pid``, ``ports`` by listener; empty if nothing was."""
        try:
            return dict(json.loads(self._notes.read_text()))
        except (OSError, ValueError):
            return {}

    def _note(self, **values: Any) -> None:
        temporary = self._notes.with_suffix(".tmp")
        temporary.write_text(json.dumps({**self.notes(), **values}, indent=1))
        os.replace(temporary, self._notes)

    @property
    def servers(self) -> str:
        """``host:port`` without security, as clients take it for their bootstrap servers."""
        return self.servers_of("PLAINTEXT")

    def servers_of(self, listener: str) -> str:
        """``host:port`` of a listener."""
        return f"{HOST}:{self.notes()['ports'][listener]}"

    @property
    def log(self) -> Path:
        return self.folder / "broker.log"

    def start(self, timeout_s: float = 120.0) -> str:
        """Starts the broker, on the ports and data of before if there are any, and returns ``servers`` once it serves."""
        if self.running():
            raise BrokerError(f"a broker is running: {self.servers} (stop it first)")
        self.folder.mkdir(parents=True, exist_ok=True)
        names, noted = ("CONTROLLER", *self._listeners), self.notes().get("ports", {})
        is_new, tries = set(noted) != set(names), 3
        while True:
            ports = dict(zip(names, free_ports(len(names)), strict=True)) if is_new else noted
            ports["PLAINTEXT"] = self._wanted_port or ports["PLAINTEXT"]
            tries -= 1
            try:
                self._start(ports, timeout_s)
            except BrokerError as error:  # a port that was free may go to another process before it is ours
                if self._wanted_port or not (is_new and tries and TAKEN in str(error)):
                    raise
            else:
                return self.servers

    def _start(self, ports: Mapping[str, int], timeout_s: float) -> None:
        """As ``start``, on these ports."""
        self._note(ports=ports)
        self._write_settings(ports)
        if not (self.folder / "data" / "meta.properties").exists():
            self._format()
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._java("kafka.Kafka", str(self.folder / "server.properties")), cwd=self.folder,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        try:
            self._note(pid=self._process.pid)
            self._wait(timeout_s)
        except BaseException:  # an interrupt too: no broker is left, and the error goes on
            self.kill()
            raise

    def _wait(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while READY not in self.log.read_bytes():
            if self._process is None or self._process.poll() is not None:
                lines = self.log.read_text(errors="replace").splitlines()
                end = "\n  ".join([line for line in lines if "Exception" in line or "Error" in line][:10] or lines[-10:])
                raise BrokerError(f"the broker has ended; its log ({self.log}) says:\n  {end}")
            if time.monotonic() > deadline:
                raise BrokerError(f"the broker did not serve within {timeout_s:.0f} s; its log: {self.log}")
            time.sleep(0.05)

    def running(self) -> bool:
        """Whether the noted process is alive, and is a broker of this folder: a number may have gone to another since."""
        pid = self.notes().get("pid")
        if not pid:
            return False
        if self._process is not None and self._process.pid == pid:
            return self._process.poll() is None
        told = subprocess.run(["ps", "-ww", "-p", str(pid), "-o", "args="], capture_output=True, text=True, check=False)
        return str(self.folder / "server.properties") in told.stdout

    def stop(self, timeout_s: float = 30.0) -> bool:
        """Ends the broker as an operator would; returns whether there was one. Its folder stays."""
        return self._end(signal.SIGTERM, timeout_s) or self.kill()

    def kill(self) -> bool:
        """Ends the broker by SIGKILL, as a crash would; returns whether there was one."""
        return self._end(signal.SIGKILL, 30.0)

    def _end(self, sign: signal.Signals, timeout_s: float) -> bool:
        if not self.running():
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.notes()["pid"], sign)
        deadline = time.monotonic() + timeout_s
        while self.running():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        self._note(pid=None)
        return True

    def _java(self, main: str, *arguments: str) -> list[str]:
        java = java_command()
        if java is None:
            raise BrokerError("there is no java in JAVA_HOME or the PATH; `make setup` says how to get it")
        options = [f"-Xmx{self._heap}", f"-Xms{self._heap}", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        logging = f"-Dlog4j2.configurationFile={self.folder / 'log4j2.properties'}"
        return [java, *options, logging, "-cp", class_path(), main, *arguments]

    def _format(self) -> None:
        """Makes the data folder, as KRaft asks before the first start."""
        identity = "bGFrZXJpbmctYnJva2VyMQ"  # any 16 bytes; the cluster has one node
        command = self._java("kafka.tools.StorageTool", "format", "-t", identity, "-c", str(self.folder / "server.properties"))
        for name, password in self._users.items() if any("SASL" in listener for listener in self._listeners) else ():
            for mechanism in MECHANISMS[1:]:
                command += ["--add-scram", f"{mechanism}=[name={name},password={password}]"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=self.folder)
        if done.returncode:
            raise BrokerError(f"the broker's data folder could not be made:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")

    def _write_settings(self, ports: Mapping[str, int]) -> None:
        (self.folder / "log4j2.properties").write_text(LOGGING)
        addresses = ",".join(f"{name}://{HOST}:{port}" for name, port in ports.items())
        settings: dict[str, str | int] = {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@{HOST}:{ports['CONTROLLER']}",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "listeners": addresses,
            "advertised.listeners": ",".join(a for a in addresses.split(",") if not a.startswith("CONTROLLER")),
            "listener.security.protocol.map": ",".join(["CONTROLLER:PLAINTEXT", *(f"{n}:{n}" for n in self._listeners)]),
            "log.dirs": str(self.folder / "data"),
            # The controller takes a broker that was killed for alive so long, and a new one waits for that: 9 s by default.
            "broker.session.timeout.ms": 3000,
            "broker.heartbeat.interval.ms": 500,
            "auto.create.topics.enable": "false",
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 4,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "transaction.state.log.num.partitions": 4,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            "group.initial.rebalance.delay.ms": 0,
            **self._security(),
            **self._settings,
        }
        file = self.folder / "server.properties"
        file.touch(mode=0o600)
        file.write_text("".join(f"{name}={value}\n".replace("\\", r"\\") for name, value in settings.items()))

    def _security(self) -> dict[str, str]:
        settings: dict[str, str] = {}
        if any(listener.endswith("SSL") for listener in self._listeners):
            make_certificates(self.folder, HOST)
            settings |= {
                "ssl.keystore.type": "PEM",
                "ssl.keystore.location": str(self.folder / "server.pem"),
                "ssl.truststore.type": "PEM",
                "ssl.truststore.location": str(self.folder / "ca.pem"),
                "ssl.client.auth": "requested",
            }
        for listener in self._listeners:
            if not listener.startswith("SASL"):
                continue
            settings["sasl.enabled.mechanisms"] = ",".join(MECHANISMS)
            known = " ".join(f"user_{name}={_quoted(password)}" for name, password in self._users.items())
            for mechanism in MECHANISMS:
                module = f"org.apache.kafka.common.security.{'plain.Plain' if mechanism == 'PLAIN' else 'scram.Scram'}LoginModule"
                line = f"{module} required{' ' + known if mechanism == 'PLAIN' else ''};"
                settings[f"listener.name.{listener.lower()}.{mechanism.lower()}.sasl.jaas.config"] = line
        return settings


def _quoted(text: str) -> str:
    """A text as a JAAS line has it."""
    return '"' + text.replace("\\", r"\\").replace('"', r"\"") + '"'
