"""Where Delta itself keeps writers apart: who lost runs again on what the other left."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException

from lakering.errors import BusyError

ATTEMPTS = 10
#: By name: Delta's Python package knows these exceptions of Java's in some calls, and not in a merge.
BEATEN = re.compile(r"io\.delta\.exceptions\.(Concurrent\w+|MetadataChanged|ProtocolChanged)Exception|\[DELTA_CONCURRENT_")


def run_again_on_conflict(run: Callable[[], object], what: str, spread: float) -> None:
    """Runs a commit until no other writer came first, each time on a fresh snapshot, with growing pauses; ``spread`` in [0, 1]
    sets two writers' pauses apart. Raises BusyError after ten attempts."""
    for attempt in range(ATTEMPTS):
        try:
            run()
            return
        except (PySparkException, Py4JError) as error:
            if not BEATEN.search(str(error)):
                raise
            time.sleep(0.1 * min(2**attempt, 64) * (0.5 + spread))
    raise BusyError(f"{what}: {ATTEMPTS} times another writer committed first; nothing was written",
                    next_step="run again when fewer write to it at once")  # fmt: skip
