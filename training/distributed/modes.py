"""How this process was started."""

from __future__ import annotations

import os
import sys
from typing import Literal

from lakering.errors import SettingError

Mode = Literal["python", "horovodrun", "spark"]


def detect_mode() -> Mode:
    """From what the launchers leave in the environment; neither Horovod nor Spark is imported to find out."""
    if "HOROVOD_RANK" in os.environ:
        return "horovodrun"
    return "spark" if "PYSPARK_GATEWAY_PORT" in os.environ else "python"


def is_first_rank() -> bool:
    """Whether this process speaks to the user: rank 0, or the launcher."""
    return os.environ.get("HOROVOD_RANK", "0") == "0"


def validate_ranks(mode: Mode, ranks: int | None) -> int:
    """How many ranks there will be. Raises SettingError when the launcher cannot give as many as asked for."""
    if ranks is not None and ranks < 1:
        raise SettingError(f"--ranks {ranks}: expected 1 or more")
    if mode == "horovodrun":
        started = int(os.environ["HOROVOD_SIZE"])
        if ranks not in (None, started):
            raise SettingError(f"--ranks {ranks}, but horovodrun started {started}; leave --ranks out under horovodrun")
        return started
    if mode == "python" and (ranks or 1) > 1:
        raise SettingError(
            f"--ranks {ranks}: plain Python is one rank",
            next_step=f"horovodrun -np {ranks} python ... (without --ranks), or spark-submit ... --ranks {ranks}",
        )
    return ranks or 1


def only_first_speaks(argv: list[str]) -> list[str]:
    """For a job under horovodrun: on all ranks but the first, standard output is closed and ``--summary`` left out, so
    that one summary is printed and written. Returns the arguments to go on with. An elastic run tells at its end which
    rank is the first."""
    if is_first_rank() or "HOROVOD_ELASTIC" in os.environ:
        return argv
    be_silent()
    kept, skip = [], False
    for argument in argv:
        if not skip and argument != "--summary" and not argument.startswith("--summary="):
            kept.append(argument)
        skip = argument == "--summary"
    return kept


def be_silent() -> None:
    """Closes this process's standard output."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the rest of the process
