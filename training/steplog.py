"""What every step did, as JSON lines in the run's folder, and for TensorBoard (``training.events``).

Lines are written in segments, each just before the checkpoint that completes it, so that a run which was killed and
resumed has every step once: ``steps/0000000000.jsonl`` holds the steps from global step 0 to the next segment's.
"""

from __future__ import annotations

import json
import math
import time
from typing import Any

from lakering.lake import Lake
from training import events

FOLDER = "steps"


class StepLog:
    """Collects lines; ``flush`` writes those since the last flush as one segment. One rank alone writes."""

    def __init__(self, lake: Lake, run: tuple[str, ...], global_step: int, *, tensorboard: bool = False) -> None:
        self._lake, self._run, self._tensorboard = lake, run, tensorboard
        self._first = global_step
        self._lines: list[dict[str, Any]] = []
        self._epochs: list[events.Scalars] = []

    def drop_after(self) -> None:
        """Removes what a killed run wrote beyond the checkpoint that is resumed."""
        for name in self._lake.storage.list(*self._run, FOLDER):
            if int(name.removesuffix(".jsonl")) >= self._first:
                self._lake.storage.delete(*self._run, FOLDER, name)
        for name in self._lake.storage.list(*self._run, events.FOLDER):
            if events.first_step_of(name) >= self._first:
                self._lake.storage.delete(*self._run, events.FOLDER, name)

    def add(self, facts: dict[str, Any]) -> None:
        self._lines.append(facts)

    def add_epoch(self, global_step: int, figures: dict[str, Any]) -> None:
        """An epoch's validation figures; ``global_step`` is its last one."""
        self._epochs.append(events.of_epoch(time.time(), global_step, figures))

    def flush(self) -> None:
        if not self._lines:
            return
        text = "".join(json.dumps(plain(line)) + "\n" for line in self._lines)
        self._lake.storage.write(text.encode(), *self._run, FOLDER, f"{self._first:010d}.jsonl")
        if self._tensorboard:
            content = events.event_file([*map(events.of_step, self._lines), *self._epochs])
            self._lake.storage.write(content, *self._run, events.FOLDER, events.file_name(self._first))
        self._epochs = []
        self._first += len(self._lines)
        self._lines = []


def read_steps(lake: Lake, run: tuple[str, ...]) -> list[dict[str, Any]]:
    """All logged steps of a run, in order."""
    lines: list[dict[str, Any]] = []
    for name in lake.storage.list(*run, FOLDER):
        lines += [json.loads(line) for line in lake.storage.read(*run, FOLDER, name).decode().splitlines()]
    return lines


def plain(value: Any) -> Any:
    """The value as JSON can hold it: what is not finite becomes null."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
