"""The processes above a rank: none of its kind outlives its launcher."""

from __future__ import annotations

import os
import threading
import time
from itertools import pairwise

import psutil

from training.distributed.peers import end_process

#: Set in the environment of a rank that a task of Spark started.
SPARK_TASK = "LAKERING_SPARK_TASK"
#: Seconds between two looks.
INTERVAL = 1.0


def ancestors(pid: int | None = None, *, in_spark: bool = False) -> list[psutil.Process]:
    """The processes from a rank up to its launcher: a Spark executor (the first JVM), or what started the session that
    the rank is in. horovodrun starts each rank in a session of its own, below a helper and a shell; Spark's tasks are
    processes below their executor. Any of them may be what is killed."""
    process = psutil.Process(pid)
    chain = process.parents()
    leader = os.getsid(process.pid)
    marks = [parent.name() == "java" if in_spark else parent.pid == leader for parent in chain]
    last = marks.index(True) if True in marks else 0
    return [process, *chain[: last + (1 if in_spark else 2)]]


def is_orphan(chain: list[psutil.Process]) -> bool:
    """Whether one of them is gone: its child then has another parent."""
    try:
        return any(child.ppid() != parent.pid for child, parent in pairwise(chain))
    except psutil.NoSuchProcess:
        return True


def end_with_launcher(rank: int, *, in_spark: bool = False) -> None:
    """Starts the thread that ends this process when one above it is gone; ``in_spark`` in a driver, whose launcher is a JVM as
    a task's is."""
    chain = ancestors(in_spark=in_spark or SPARK_TASK in os.environ)

    def watch() -> None:
        while not is_orphan(chain):
            time.sleep(INTERVAL)
        end_process(f"error: rank {rank} on {os.uname().nodename} ends: its launcher is gone")

    threading.Thread(target=watch, name="launcher", daemon=True).start()
