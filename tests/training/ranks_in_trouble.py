"""Runs under ``horovodrun -np 2``: ranks that sum until they are told to end, or until one of them falls asleep.

ranks_in_trouble.py FOLDER STALL_SECONDS SLEEP_AT_STEP
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from lakering.errors import TrainingError
from training.distributed.world import HorovodWorld


def main(folder: str, stall_seconds: int, sleep_at_step: int) -> None:
    world = HorovodWorld(stall_seconds)
    here = Path(folder)
    (here / f"pid-{world.rank}").write_text(str(os.getpid()))
    try:
        for step in range(10**9):
            world.doing(f"reading step {step}")
            if step == sleep_at_step and world.rank == 1:
                time.sleep(600)
            world.sum([1.0], "step")
            (here / f"step-{world.rank}").write_text(str(step))
            time.sleep(0.01)
    except TrainingError as error:
        (here / f"error-{world.rank}").write_text(json.dumps(error.message))
        world.close(error)
        raise SystemExit(error.exit_status) from error


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
