"""What set-up needs of the machine, found before anything is changed: Python 3.11, Java 17, a C++ compiler and make."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

HOW = {
    "python": ("apt-get install python3.11 python3.11-venv", "dnf install python3.11", "brew install python@3.11"),
    "headers": ("apt-get install python3.11-dev", "dnf install python3.11-devel", "brew install python@3.11"),
    "venv": ("apt-get install python3.11-venv", "dnf install python3.11", "brew install python@3.11"),
    "java": (
        "apt-get install openjdk-17-jre-headless",
        "dnf install java-17-openjdk-headless",
        "brew install openjdk@17",
    ),
    "compiler": ("apt-get install g++ make", "dnf install gcc-c++ make", "xcode-select --install"),
}


def compiler() -> str | None:
    """The C++ compiler that CMake will take: $CXX, else the first of the usual names on the PATH."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next((found for name in names if (found := shutil.which(name))), None)


def java_command() -> str | None:
    """The java that Spark will start: that of JAVA_HOME if it is set, else the first on the PATH."""
    home = os.environ.get("JAVA_HOME")
    return shutil.which(str(Path(home) / "bin" / "java")) if home else shutil.which("java")


def java_major(version_text: str) -> int | None:
    """The major version in what `java -version` prints (1.8.0_392 is 8), None if there is none."""
    found = re.search(r'version "(\d+)(?:\.(\d+))?', version_text)
    if not found:
        return None
    major = int(found.group(1))
    return int(found.group(2) or 0) if major == 1 else major


def _python() -> tuple[str, str] | None:
    version = sys.version.split()[0]
    if version.startswith("3.11."):
        return None
    return "python", f"Python 3.11 is needed, and this is {version} ({sys.executable})"


def _venv() -> tuple[str, str] | None:
    try:
        import ensurepip  # noqa: F401  Debian leaves it out of its python3.11
    except ImportError:
        return "venv", f"the venv module of {sys.executable} is not complete (no ensurepip)"
    return None


def _headers() -> tuple[str, str] | None:
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return None if header.exists() else ("headers", f"Python's C headers are not there ({header})")


def _java() -> tuple[str, str] | None:
    where = f"JAVA_HOME={os.environ['JAVA_HOME']}" if os.environ.get("JAVA_HOME") else "the PATH"
    command = java_command()
    if command is None:
        return "java", f"Java 17 is needed, and there is no java in {where}"
    text = subprocess.run([command, "-version"], capture_output=True, text=True, check=False).stderr
    major = java_major(text)
    if major in (17, 21):
        return None
    told = f"Java {major}" if major else f"not to be told from {text.strip()[:80]!r}"
    return "java", f"Java 17 (or 21) is needed, and {command} is {told}; set JAVA_HOME to choose another"


def _compiler() -> tuple[str, str] | None:
    missing = [name for name, found in (("a C++ compiler", compiler()), ("make", shutil.which("make"))) if not found]
    if not missing:
        return None
    return "compiler", f"{' and '.join(missing)} is needed to build Horovod, and the PATH has none"


def missing_prerequisites() -> list[str]:
    """One paragraph for each thing that is missing: what was found, and how to get what is needed."""
    checks: list[Callable[[], tuple[str, str] | None]] = [_python, _venv, _headers, _java, _compiler]
    paragraphs = []
    for check in checks:
        if problem := check():
            key, text = problem
            debian, redhat, mac = HOW[key]
            paragraphs.append(f"{text}\n    Debian, Ubuntu: {debian}\n    RHEL, Fedora:   {redhat}\n    macOS:          {mac}")
    return paragraphs
