"""What set-up says of a machine that lacks something."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

SETUP = Path(__file__).resolve().parents[1] / "scripts" / "setup.py"


def set_up(path: Path, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("JAVA_HOME", "CXX")}
    command = [sys.executable, "-c", "from prerequisites import missing_prerequisites as m; print('\\n'.join(m()))"]
    return subprocess.run(command, env={**environment, "PATH": str(path), **env, "PYTHONPATH": str(SETUP.parent)},
                          capture_output=True, text=True, timeout=60)  # fmt: skip


def test_a_missing_java_and_compiler_are_named_with_how_to_get_them(tmp_path):
    told = set_up(tmp_path).stdout
    assert "Java 17 is needed, and there is no java in the PATH" in told
    assert "apt-get install openjdk-17-jre-headless" in told
    assert "a C++ compiler and make is needed to build Horovod" in told
    assert "apt-get install g++ make" in told


@pytest.mark.parametrize(("version", "major"), [("1.8.0_392", 8), ("11.0.22", 11)])
def test_another_java_is_named_with_its_version(tmp_path, version, major):
    java = tmp_path / "java"
    java.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
    java.chmod(java.stat().st_mode | stat.S_IXUSR)
    assert f"is Java {major}; set JAVA_HOME to choose another" in set_up(tmp_path, PATH=f"{tmp_path}:/bin").stdout


def test_nothing_is_missing_where_the_tests_run():
    assert set_up(Path(os.environ["PATH"])).stdout.strip() == ""
