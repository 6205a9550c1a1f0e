"""Builds Horovod into a wheel, once per combination of versions, kept in the user's cache folder.

Its source package does not compile against TensorFlow 2.20 as it is: the optional XLA ops include headers that have
moved. They are off by default, so their source is left out. It is unpacked afresh each time, since a build that was
stopped leaves its gloo subfolder changed.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import threading
from pathlib import Path

from prerequisites import compiler
from progress import Progress

VERSION = "0.28.1"
SDIST_SHA256 = "92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0"
BUILD_ENVIRONMENT = {
    "HOROVOD_WITH_TENSORFLOW": "1",
    "HOROVOD_WITHOUT_PYTORCH": "1",
    "HOROVOD_WITHOUT_MXNET": "1",
    "HOROVOD_WITHOUT_MPI": "1",
    "HOROVOD_WITH_GLOO": "1",
}
# Each of two ranks gives its rank + 1, so a sum of 3 shows that both were heard.
ALLREDUCE = """
import horovod.tensorflow as hvd, tensorflow as tf
hvd.init()
total = hvd.allreduce(tf.constant([float(hvd.rank() + 1)]), op=hvd.Sum).numpy()[0]
assert (hvd.size(), total) == (2, 3.0), f"size {hvd.size()}, sum {total}"
"""


class BuildError(Exception):
    """The build or its check failed; the message names the log and shows its end."""


def cache_folder() -> Path:
    """Where wheels and logs are kept: ${XDG_CACHE_HOME:-~/.cache}/lakering."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lakering"


def wheel_key(tensorflow: str) -> str:
    """What a wheel depends on: a wheel built for other versions is never taken."""
    command = compiler() or "c++"
    found = subprocess.run([command, "-dumpversion"], capture_output=True, text=True, check=False).stdout.strip()
    parts = [
        f"horovod-{VERSION}",
        f"tensorflow-{tensorflow}",
        f"py{sys.version_info.major}{sys.version_info.minor}",
        sysconfig.get_platform(),
        "-".join(platform.libc_ver()) or "libc",
        f"{Path(command).name}-{found.split('.')[0]}",
    ]
    return re.sub(r"[^A-Za-z0-9._+-]", "_", "_".join(parts))


def cached_wheel(key: str, folder: Path | None = None) -> Path | None:
    """The finished wheel of this key, None if there is none yet."""
    return next(iter(sorted(((folder or cache_folder() / "wheels") / key).glob("horovod-*.whl"))), None)


def fetch_sdist(python: Path, folder: Path, wheelhouse: Path | None) -> Path:
    """Horovod's source package, checked against its hash."""
    requirement = folder / "horovod.txt"
    requirement.write_text(f"horovod=={VERSION} --hash=sha256:{SDIST_SHA256}\n")
    command = [str(python), "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    command += ["--no-build-isolation", "--require-hashes", "-r", str(requirement), "-d", str(folder)]
    if wheelhouse:
        command += ["--no-index", "--find-links", str(wheelhouse)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise BuildError(f"Horovod's source package could not be fetched:\n{result.stderr.strip()[-2000:]}")
    sdist = folder / f"horovod-{VERSION}.tar.gz"
    if hashlib.sha256(sdist.read_bytes()).hexdigest() != SDIST_SHA256:
        raise BuildError(f"{sdist.name} is not the source package that was pinned (sha256 {SDIST_SHA256}).")
    return sdist


def unpack_sdist(sdist: Path, folder: Path) -> Path:
    """A fresh source tree without the XLA ops."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    source = folder / f"horovod-{VERSION}"
    lists = source / "horovod" / "tensorflow" / "CMakeLists.txt"
    lines = lists.read_text().splitlines(keepends=True)
    kept = [line for line in lines if "xla_mpi_ops.cc" not in line]
    if len(kept) != len(lines) - 1:
        raise BuildError(f"{lists} does not name xla_mpi_ops.cc once, so this is not the source that was pinned.")
    lists.write_text("".join(kept))
    return source


def build_wheel(python: Path, key: str, *, progress: Progress, stop: threading.Event, wheelhouse: Path | None = None) -> Path:
    """Builds a wheel in a folder of its own; `publish_wheel` puts it into the cache once it was checked.

    Setting `stop` ends the compiler.

    :raises BuildError: with the log's path and its end.
    """
    cache = cache_folder()
    remove_builds()
    log = cache / "logs" / f"{key}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="building-", dir=cache))
    source = unpack_sdist(fetch_sdist(python, work, wheelhouse), work)
    compile_wheel(python, source, work / "dist", log=log, progress=progress, stop=stop)
    return next((work / "dist").glob("horovod-*.whl"))


def compile_wheel(python: Path, source: Path, target: Path, *, log: Path, progress: Progress, stop: threading.Event) -> None:
    """Runs the source package's own build, its output in the log; tells the compiler's percentage from there."""
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"  # CMake comes as a wheel
    jobs = f"-j{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 2}"
    environment = {**os.environ, **BUILD_ENVIRONMENT, "PATH": path, "MAKEFLAGS": jobs, "TF_CPP_MIN_LOG_LEVEL": "3"}
    with log.open("wb") as output:
        build = subprocess.Popen(
            [str(python), "setup.py", "bdist_wheel", "-d", str(target)],
            cwd=source, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            while build.poll() is None and not stop.is_set():
                told = re.findall(rb"^\[ *(\d+)%\]", log.read_bytes(), re.MULTILINE)
                progress.tick(f"Horovod: compiling, {int(told[-1]) if told else 0} % (once; the wheel is kept)")
                try:
                    build.wait(timeout=1)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            if build.poll() is None:
                os.killpg(build.pid, signal.SIGTERM)  # make and its compilers too
                build.wait()
    if build.returncode:
        lines = log.read_text(errors="replace").splitlines()
        errors = [line for line in lines if re.search(r"\b(error|Error|fatal)\b", line)][:10]
        end = "\n  ".join([*errors, "...", *lines[-15:]])
        raise BuildError(f"Horovod did not compile (exit status {build.returncode}). The whole log: {log}\n  {end}")


def check_wheel(python: Path, timeout_s: float = 180.0) -> None:
    """A real allreduce of two ranks with the Horovod that is installed.

    :raises BuildError: if the ranks do not agree within the time.
    """
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "allreduce.py"
        script.write_text(ALLREDUCE)
        loopback = "lo0" if sys.platform == "darwin" else "lo"
        command = [str(python.parent / "horovodrun"), "-np", "2", "--network-interface", loopback]
        path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
        try:
            result = subprocess.run(
                [*command, str(python), str(script)],
                env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                timeout=timeout_s, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise BuildError(f"An allreduce of two ranks did not end within {timeout_s:.0f} s.") from error
    if result.returncode:
        end = "\n  ".join((result.stdout + result.stderr).splitlines()[-15:])
        raise BuildError(f"An allreduce of two ranks failed (exit status {result.returncode}):\n  {end}")


def publish_wheel(built: Path, key: str) -> Path:
    """Moves a checked wheel into the cache by one rename, so that a wheel that is there is whole."""
    final = cache_folder() / "wheels" / key / built.name
    final.parent.mkdir(parents=True, exist_ok=True)
    os.replace(built, final)
    remove_builds()
    return final


def remove_builds() -> None:
    """Removes build folders, a killed build's too. Set-up holds the cache's lock, so none of them is at work."""
    for left in cache_folder().glob("building-*"):
        shutil.rmtree(left, ignore_errors=True)
