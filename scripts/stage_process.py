"""Runs one stage as a process of its own, and keeps what Spark's resolver tells at every submit off the screen."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path

from measure import PeakMemory
from spark_conf import ROOT

# Ivy and the JVM print these past every logger.
NOISE = re.compile(
    rb"::|\t|Ivy Default Cache|The jars for the packages|\S+#\S+ added as a dependency|WARNING: Using incubator modules"
    rb"|Setting Spark log level to"
)


def _forward(source: int, target: int) -> None:
    """Copies what a stage writes, line by line (a progress bar's lines end with a carriage return), less the noise."""
    rest = b""
    while True:
        try:
            chunk = os.read(source, 65536)
        except OSError:  # a pseudo-terminal's other end was closed
            chunk = b""
        *lines, rest = re.split(rb"(?<=[\r\n])", rest + chunk) if chunk else (rest, b"")
        for line in lines:
            if line and not NOISE.match(line):
                os.write(target, line)
        if not chunk:
            return


def stage_environment() -> dict[str, str]:
    """The environment of every stage: .venv's Python and Spark first, and no other Spark."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("SPARK_HOME", "SPARK_CONF_DIR")}
    binaries = Path(sys.executable).parent
    path = f"{binaries}{os.pathsep}{os.environ['PATH']}"
    return {"TF_CPP_MIN_LOG_LEVEL": "3", **inherited, "PATH": path, "PYSPARK_PYTHON": sys.executable}


def run_stage(command: list[str], *, measure: bool) -> tuple[int, int]:
    """Runs a command from the project's root; returns its exit status and, if measured, its tree's peak memory (bytes).

    On a terminal its stderr is a pseudo-terminal, so that it goes on showing its progress bars.
    """
    terminal = sys.stderr.isatty()
    reader, writer = pty.openpty() if terminal else os.pipe()
    if terminal:
        with contextlib.suppress(OSError):
            size = fcntl.ioctl(sys.stderr.fileno(), termios.TIOCGWINSZ, b"\0" * 8)
            fcntl.ioctl(writer, termios.TIOCSWINSZ, size)
    sys.stdout.flush()
    stage = subprocess.Popen(command, cwd=ROOT, env=stage_environment(), stdin=subprocess.DEVNULL, stderr=writer)
    os.close(writer)
    memory = PeakMemory(stage.pid) if measure else None
    if memory:
        memory.start()
    try:
        _forward(reader, sys.stderr.fileno())
        return stage.wait(), memory.stop() if memory else 0
    finally:
        os.close(reader)
        if stage.poll() is None:
            stage.terminate()
            stage.wait()
