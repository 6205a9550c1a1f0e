"""Combines spark-defaults.conf with overlays, for submits and for what is started without spark-submit.

    python scripts/spark_conf.py FOLDER [OVERLAY...]

writes FOLDER/spark-defaults.conf. Name that file as --properties-file, or the folder as SPARK_CONF_DIR (pytest,
notebooks, plain Python), from any working directory.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RELATIVE = {"=log4j2.properties": f"={ROOT}/log4j2.properties", "=.venv/": f"={ROOT}/.venv/"}


def write_conf_dir(folder: Path, *, overlays: tuple[str, ...] = ("spark-small.conf",), extra: str = "") -> Path:
    """Writes spark-defaults.conf with its overlays (a later line for a key wins) and lines of the caller's own.

    Names of files that are relative to the project become absolute. Returns the file.
    """
    text = "\n".join([*((ROOT / name).read_text() for name in ("spark-defaults.conf", *overlays)), extra, ""])
    for relative, absolute in RELATIVE.items():
        text = text.replace(relative, absolute)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "spark-defaults.conf"
    temporary = folder / f".spark-defaults.{os.getpid()}"
    temporary.write_text(text)
    os.replace(temporary, file)
    return file


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    print(write_conf_dir(Path(sys.argv[1]), overlays=tuple(sys.argv[2:]) or ("spark-small.conf",)))
