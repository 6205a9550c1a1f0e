"""Where Delta itself keeps writers apart: who lost runs again on what the other left."""

from __future__ import annotations

import time
from collections.abc import Callable

from delta.exceptions import DeltaConcurrentModificationException

from lakering.errors import BusyError

ATTEMPTS = 10


def run_again_on_conflict(run: Callable[[], object], what: str, spread: float) -> None:
    """Runs a commit until no other writer came first, each time on a fresh snapshot, with growing pauses; ``spread`` in [0, 1]
    sets two writers' pauses apart. Raises BusyError after ten attempts."""
    for attempt in range(ATTEMPTS):
        try:
            run()
            return
        except DeltaConcurrentModificationException:
            time.sleep(0.1 * min(2**attempt, 64) * (0.5 + spread))
    raise BusyError(f"{what}: {ATTEMPTS} times another writer committed first; nothing was written",
                    next_step="run again when fewer write to it at once")  # fmt: skip
