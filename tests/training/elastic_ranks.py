"""The training job under an elastic ``horovodrun``, held back by its test: before each batch of the train split a rank notes
its process and step, and waits until the number in the file ``gate`` is larger. A rank on the host that the file ``dies``
names dies before it meets the others.

elastic_ranks.py FOLDER FLAGS_OF_THE_JOB...
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

from lakering.jobs import run_job
from training.distributed import only_first_speaks, peers
from training.feed import Batch, Feed
from training.jobs.train import main, parser


def hold_back(folder: Path) -> None:
    epoch = Feed.epoch

    def held(feed: Feed, number: int, *args: int) -> Generator[Batch]:
        for batch in epoch(feed, number, *args):
            if feed.split == "train":
                step = number * feed.num_steps + batch.step
                write(folder / f"rank-{feed.rank}", f"{os.getpid()} {step} {feed.ranks}")
                while int((folder / "gate").read_text()) <= step:
                    time.sleep(0.01)
            yield batch

    Feed.epoch = held  # type: ignore[method-assign, assignment]


def die_at_meeting(folder: Path) -> None:
    meet = peers.Peers.__init__

    def dying(*arguments: Any, **options: Any) -> None:
        if (folder / "dies").exists() and os.environ["HOROVOD_HOSTNAME"] == (folder / "dies").read_text():
            os.kill(os.getpid(), 9)
        meet(*arguments, **options)

    peers.Peers.__init__ = dying  # type: ignore[method-assign]


def write(path: Path, text: str) -> None:
    """Whole at any moment."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


if __name__ == "__main__":
    hold_back(Path(sys.argv[1]))
    die_at_meeting(Path(sys.argv[1]))
    run_job(main, parser(), only_first_speaks(sys.argv[2:]))
