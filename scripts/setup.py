"""Makes .venv: the locked packages, the project, Horovod, Spark's and Kafka's jars. Run by `make setup`; standard library only.

    python3.11 scripts/setup.py [--offline DIR]

Each part is stamped in .venv once it is done, and done again only when what it was made from has changed. It may be
stopped at any moment: an environment whose packages are not stamped is made anew (uv keeps the downloads), and
wheels enter the cache by a rename. With --offline (or LAKERING_WHEELS=DIR) nothing is fetched: all of it comes from a
folder that `make wheelhouse DIR=...` filled on a machine with network.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import pwd
import re
import shutil
import signal
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import NoReturn

import broker_jars
import horovod_wheel
from horovod_wheel import BuildError
from installer import LOCK, PYTHON, VENV, Installer, SetupError, lock_sections, lock_version, run
from prerequisites import java_command, missing_prerequisites
from progress import Progress
from spark_conf import ROOT, write_conf_dir

STAMP = VENV / "lakering-setup.json"
# Where Spark 4.0 keeps what its resolver brought. Java asks the user's entry for the home folder, not $HOME.
IVY = Path(pwd.getpwuid(os.getuid()).pw_dir) / ".ivy2.5.2"


def digest(*texts: str) -> str:
    """A short hash of what a part was made from."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def wanted_parts() -> dict[str, str]:
    """The hash of each part's inputs, as it should be stamped."""
    jars = str(re.findall(r"^spark\.jars.*", (ROOT / "spark-defaults.conf").read_text(), re.MULTILINE))
    base = digest(str(ROOT), sys.version, LOCK.read_text())
    return {
        "packages": base,
        "project": digest(base, (ROOT / "pyproject.toml").read_text()),
        "horovod": digest(base, horovod_wheel.SDIST_SHA256, json.dumps(horovod_wheel.BUILD_ENVIRONMENT)),
        "kafka": digest(base, broker_jars.PACKAGES, java_command() or ""),
        "spark": digest(base, jars, (ROOT / "scripts" / "warm_spark.py").read_text(), java_command() or ""),
    }


def read_stamp() -> dict[str, str]:
    """What is in place; empty if nothing is sure."""
    try:
        return dict(json.loads(STAMP.read_text()))
    except (OSError, ValueError):
        return {}


def write_stamp(parts: dict[str, str]) -> None:
    """Tells by one rename what is in place."""
    temporary = STAMP.with_suffix(".tmp")
    temporary.write_text(json.dumps(parts, indent=1))
    os.replace(temporary, STAMP)


def warm_spark(*extra: str) -> None:
    """Brings the jars and leaves the archive of loaded classes that spark-defaults.conf names."""
    archive = VENV / f"spark.jsa.{os.getpid()}"
    conf = write_conf_dir(VENV / "spark-small", extra="spark.ui.showConsoleProgress false")
    environment = {"PATH": f"{PYTHON.parent}{os.pathsep}{os.environ['PATH']}", "PYSPARK_PYTHON": str(PYTHON)}
    command = [str(PYTHON.parent / "spark-submit"), "--properties-file", str(conf), "--master", "local[2]"]
    options = f"-Dlog4j2.configurationFile={ROOT}/log4j2.properties -Xlog:disable -XX:ArchiveClassesAtExit={archive}"
    command += ["--conf", f"spark.driver.defaultJavaOptions={options}", *extra, str(ROOT / "scripts" / "warm_spark.py")]
    try:
        run("Bringing Spark's jars", command, **environment)
        if archive.exists():
            os.replace(archive, VENV / "spark.jsa")
    finally:
        archive.unlink(missing_ok=True)


def set_up(parts: dict[str, str], progress: Progress, wheelhouse: Path | None, stop: threading.Event) -> None:
    """Does what is missing, Horovod's compiler beside the rest."""
    done = read_stamp()
    installer = Installer(wheelhouse)
    if "packages" not in done and VENV.exists():
        progress.say("removing a .venv that is not complete")
        shutil.rmtree(VENV)
    with ThreadPoolExecutor(max_workers=1) as pool:
        building: Future[Path] | None = None
        key = horovod_wheel.wheel_key(lock_version("tensorflow"))
        wheel = horovod_wheel.cached_wheel(key) or (
            horovod_wheel.cached_wheel(key, wheelhouse / "wheels") if wheelhouse else None
        )
        try:
            if done.get("packages") != parts["packages"]:
                STAMP.unlink(missing_ok=True)
                done = {}
                progress.say(f"{len(lock_sections()) - 1} packages into {VENV}")
            installer.bootstrap()
            if not done:
                installer.all_but_pyspark()
            if done.get("horovod") != parts["horovod"] and wheel is None:
                progress.say("Horovod: building its wheel (2 to 7 minutes, once)")
                building = pool.submit(
                    horovod_wheel.build_wheel, PYTHON, key, progress=progress, stop=stop, wheelhouse=wheelhouse
                )
            if not done:
                installer.everything()
                done["packages"] = parts["packages"]
                write_stamp(done)
                progress.say("packages are in place")
            if done.get("project") != parts["project"]:
                installer.project()
                done["project"] = parts["project"]
                write_stamp(done)
            if done.get("spark") != parts["spark"]:
                if wheelhouse:
                    shutil.copytree(wheelhouse / "ivy", IVY, dirs_exist_ok=True)
                warm_spark()
                done["spark"] = parts["spark"]
                write_stamp(done)
                progress.say("Spark's jars are in place")
            if done.get("kafka") != parts["kafka"]:
                broker_jars.bring_jars(cache=wheelhouse / "kafka" / "cache" if wheelhouse else None)
                done["kafka"] = parts["kafka"]
                write_stamp(done)
                progress.say("the Kafka broker's jars are in place")
            if done.get("horovod") != parts["horovod"]:
                built = building.result() if building else None
                installer.wheel(built or wheel)  # type: ignore[arg-type]
                if built:
                    progress.tick("Horovod: an allreduce of two ranks")
                    horovod_wheel.check_wheel(PYTHON)
                    progress.say(f"Horovod: two ranks agree; kept as {horovod_wheel.publish_wheel(built, key)}")
                done["horovod"] = parts["horovod"]
                write_stamp(done)
        finally:
            stop.set()


def _terminated(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def main() -> int:
    """Exit status 0: all is in place; 2: the machine lacks something; 1: a step failed."""
    parser = argparse.ArgumentParser(description="Makes .venv with all that lakering needs.")
    house = os.environ.get("LAKERING_WHEELS") or None
    parser.add_argument("--offline", metavar="DIR", default=house, help="fetch nothing: a folder of `make wheelhouse`")
    offline = parser.parse_args().offline
    parts = wanted_parts()
    if read_stamp() == parts:
        print("set-up: everything is in place")
        return 0
    if missing := missing_prerequisites():
        print("set-up: this machine lacks something:\n\n- " + "\n- ".join(missing), file=sys.stderr)
        return 2
    if offline and not Path(offline).is_dir():
        print(f"set-up: no folder {offline}; `make wheelhouse DIR={offline}` makes it, with network", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _terminated)
    progress, stop = Progress(), threading.Event()
    lock_file = os.open(ROOT, os.O_RDONLY)  # one set-up of a checkout at a time; the kernel frees it however we end
    fcntl.flock(lock_file, fcntl.LOCK_EX)
    cache = horovod_wheel.cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    cache_lock = os.open(cache, os.O_RDONLY)  # a second checkout waits for the wheel instead of building it too
    fcntl.flock(cache_lock, fcntl.LOCK_EX)
    try:
        set_up(parts, progress, Path(offline).resolve() if offline else None, stop)
    except (SetupError, BuildError) as error:
        progress.say("failed")
        print(f"set-up: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        progress.say("stopped; run again to go on")
        return 130
    progress.say("done: everything is in place")
    return 0


if __name__ == "__main__":
    sys.exit(main())
