"""Puts the locked packages into .venv with uv, which is itself taken from the lock, by its hash."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from spark_conf import ROOT

VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOCK = ROOT / "requirements.lock"


class SetupError(Exception):
    """A step failed; the message says which, and what it printed."""


def run(what: str, command: list[str], **environment: str) -> str:
    """Runs a step's command quietly; its output is shown only if it fails. A Spark of the machine's own is left out."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("SPARK_HOME", "SPARK_CONF_DIR")}
    result = subprocess.run(
        command, cwd=ROOT, env={**inherited, **environment}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False,
    )  # fmt: skip
    if result.returncode:
        end = "\n  ".join(result.stdout.strip().splitlines()[-25:])
        raise SetupError(f"{what} failed (exit status {result.returncode}): {' '.join(command)}\n  {end}")
    return result.stdout


def lock_sections() -> list[str]:
    """The lock's text, cut into its header and one piece for each package."""
    return re.split(r"^(?=[a-zA-Z0-9])", LOCK.read_text(), flags=re.MULTILINE)


def lock_version(name: str) -> str:
    """The version the lock has for a package."""
    found = re.search(rf"^{re.escape(name)}==(\S+)", LOCK.read_text(), re.MULTILINE)
    if not found:
        raise SetupError(f"requirements.lock has no {name}; `make lock` writes it anew.")
    return found.group(1)


class Installer:
    """The steps that change .venv; with a wheelhouse none of them asks an index."""

    def __init__(self, wheelhouse: Path | None) -> None:
        self._source = ["--no-index", "--find-links", str(wheelhouse)] if wheelhouse else []
        self._environment: dict[str, str] = {}

    def bootstrap(self) -> None:
        """Makes the environment if need be, and puts uv into it. uv is told of the index that pip is set to use."""
        if not PYTHON.exists():
            base = getattr(sys, "_base_executable", sys.executable)  # not a Python of the .venv that is being made
            run("Making .venv", [base, "-m", "venv", str(VENV)])
        (VENV / "uv.txt").write_text("".join(part for part in lock_sections() if part.startswith("uv==")))
        pip = [str(PYTHON), "-m", "pip", "--disable-pip-version-check"]
        run("Installing uv", [*pip, "install", "-q", "--require-hashes", *self._source, "-r", str(VENV / "uv.txt")])
        settings = run("Reading pip's settings", [*pip, "config", "list"])
        for name, variable in (
            ("index-url", "UV_DEFAULT_INDEX"),
            ("extra-index-url", "UV_INDEX"),
            ("cert", "SSL_CERT_FILE"),
        ):
            told = re.findall(rf"^[\w:]+\.{name}='(.*)'$", settings, re.MULTILINE)
            if told and variable not in os.environ:
                self._environment[variable] = told[-1]

    def uv(self, what: str, command: str, *arguments: str) -> None:
        """One `uv pip` command on .venv."""
        base = [str(VENV / "bin" / "uv"), "pip", command, "--python", str(PYTHON), "--quiet"]
        run(what, [*base, "--no-build-isolation", *self._source, *arguments], **self._environment)

    def all_but_pyspark(self) -> None:
        """What the others are built with; PySpark is a source package of 400 MB that can be unpacked meanwhile."""
        (VENV / "first.txt").write_text("".join(part for part in lock_sections() if not part.startswith("pyspark==")))
        self.uv("Installing packages", "install", "--no-deps", "--require-hashes", "-r", str(VENV / "first.txt"))

    def everything(self) -> None:
        """Exactly the lock: what it does not name goes."""
        self.uv("Installing PySpark", "sync", "--require-hashes", str(LOCK))

    def project(self) -> None:
        """Editable by a path entry, so that a package added later needs no new set-up."""
        self.uv("Installing lakering", "install", "--no-deps", "-C", "editable_mode=compat", "-e", str(ROOT))

    def wheel(self, wheel: Path) -> None:
        """Horovod, which is built here and so has no hash in the lock."""
        self.uv("Installing Horovod", "install", "--no-deps", "--reinstall", str(wheel))
