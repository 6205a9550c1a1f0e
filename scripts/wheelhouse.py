"""Collects into a folder what set-up and the demo fetch, for a machine of the same kind without network.

python scripts/wheelhouse.py DIR        then, there: LAKERING_WHEELS=DIR make demo
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import broker_jars
import horovod_wheel
from horovod_wheel import BuildError
from installer import LOCK, PYTHON, SetupError, lock_version, run
from setup import warm_spark
from unpack_nycflights import DataError, fetch_sdist


def collect(folder: Path) -> None:
    """Fills the folder: packages as the lock pins them, Horovod's source and wheel, the jars of Spark and Kafka, the flights."""
    folder.mkdir(parents=True, exist_ok=True)
    pip = [str(PYTHON), "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation", "--require-hashes"]
    run("Fetching the packages", [*pip, "-r", str(LOCK), "-d", str(folder)])
    horovod_wheel.fetch_sdist(PYTHON, folder, None)
    key = horovod_wheel.wheel_key(lock_version("tensorflow"))
    if wheel := horovod_wheel.cached_wheel(key):
        (folder / "wheels" / key).mkdir(parents=True, exist_ok=True)
        shutil.copy2(wheel, folder / "wheels" / key / wheel.name)
    warm_spark("--conf", f"spark.jars.ivy={folder / 'ivy'}")
    broker_jars.bring_jars(folder / "kafka")
    fetch_sdist(folder)


def main() -> int:
    """Exit status 0 if the folder is complete."""
    if len(sys.argv) != 2 or not sys.argv[1]:
        print("wheelhouse: name a folder: make wheelhouse DIR=...", file=sys.stderr)
        return 2
    folder = Path(sys.argv[1]).resolve()
    try:
        collect(folder)
    except (SetupError, BuildError, DataError, OSError) as error:
        print(f"wheelhouse: {error}", file=sys.stderr)
        return 1
    print(f"{folder} is complete; on the other machine: LAKERING_WHEELS={folder} make demo")
    return 0


if __name__ == "__main__":
    sys.exit(main())
