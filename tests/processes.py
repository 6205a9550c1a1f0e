"""What a test asks of the processes that it started."""

from __future__ import annotations

from contextlib import suppress

import psutil


def command_lines(pid: int) -> list[str]:
    """Of this process and of all below it, but of those that end while they are asked."""
    found = []
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):  # a zombie is one of these
            found.append(" ".join(process.cmdline()))
    return found
