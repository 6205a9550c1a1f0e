"""``--profile FIRST:LAST``: TensorFlow's profiler on every rank, and Horovod's timeline, for chosen steps of a training."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import tensorflow as tf

from lakering.errors import LakeringError, SettingError
from lakering.lake import Lake
from training.distributed import World

FOLDER, TIMELINE = "profile", "horovod_timeline.json"
#: A profile holds every operation of every step in memory until it is written.
MOST_STEPS = 1000


def read_range(text: str) -> tuple[int, int]:
    """``FIRST:LAST``, global steps from 0, both included. Raises SettingError for anything else."""
    found = re.fullmatch(r"(\d{1,15}):(\d{1,15})", text)
    if not found:
        raise SettingError(f"--profile {text}: expected FIRST:LAST, two global steps", next_step="write --profile 20:24")
    first, last = int(found[1]), int(found[2])
    if last < first:
        raise SettingError(f"--profile {text}: the last step is before the first", next_step=f"write --profile {last}:{first}")
    if last - first >= MOST_STEPS:
        raise SettingError(f"--profile {text}: {last - first + 1:,} steps; a profile is of {MOST_STEPS:,} at most",
                           next_step=f"ten steps tell as much: --profile {first}:{first + 9}")  # fmt: skip
    return first, last


class Profile:
    """Records the steps ``first`` to ``last`` and writes them below the run's folder, ``profile/rank-N``.

    What goes wrong with it is a warning: a training does not fail for want of its profile."""

    def __init__(self, world: World, lake: Lake, run: tuple[str, ...], steps: tuple[int, int]) -> None:
        self._world, self._lake, self._run = world, lake, run
        self._first, self._last = steps
        self._folder: Path | None = None
        self._timeline = ExitStack()
        self.notes: list[str] = []
        self.facts: dict[str, str] = {}

    def validate(self, done: int, total: int) -> None:
        """Raises SettingError unless all of the steps are yet to be done."""
        asked = f"--profile {self._first}:{self._last}"
        if self._last >= total:
            raise SettingError(f"{asked}: the training's last step is {total - 1:,}",
                               next_step="choose steps that it has, not the very first: it compiles the model")  # fmt: skip
        if self._first < done:
            raise SettingError(f"{asked}: the run goes on at step {done:,}",
                               next_step=f"choose steps from {done:,} on, or train anew (--new)")  # fmt: skip

    def before(self, global_step: int) -> None:
        """Called on every rank before a step."""
        if global_step == self._first:
            self._on_all("starts", self._start)

    def after(self, global_step: int) -> None:
        """Called on every rank after a step."""
        if global_step == self._last:
            self._on_all("is written", self._write)

    def close(self) -> None:
        """Ends a profile that the training did not come to the end of; it is not written."""
        if self._folder is not None:
            try:
                self._stop(save=False)
            except (tf.errors.OpError, ValueError) as error:
                self.notes.append(f"the profile could not be stopped: {error}")
            self._remove(self._folder)

    def _start(self) -> None:
        self.close()  # of a training that was rolled back
        folder = Path(tempfile.mkdtemp(prefix="lakering-profile-"))
        try:
            self._timeline.enter_context(self._world.timeline(str(folder / TIMELINE)))
            tf.profiler.experimental.start(str(folder))
        except BaseException:
            self._timeline.close()
            self._remove(folder)
            raise
        self._folder = folder

    def _stop(self, *, save: bool) -> None:
        with self._timeline:
            tf.profiler.experimental.stop(save=save)

    def _write(self) -> None:
        if self._folder is None:
            return
        try:
            self._stop(save=True)
            self._upload(self._folder)
        finally:
            self._remove(self._folder)

    def _upload(self, folder: Path) -> None:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                inside = path.relative_to(folder).parts
                rank = () if path.name == TIMELINE else (f"rank-{self._world.rank}",)
                self._lake.storage.write(path.read_bytes(), *self._run, FOLDER, *rank, *inside)
        where = self._lake.storage.path(*self._run, FOLDER)
        self.facts = {"steps": f"{self._first} to {self._last}", "folder": where,
                      "open": f"tensorboard --logdir {where} (needs the package tensorboard-plugin-profile)"}  # fmt: skip
        if self._world.size > 1:
            self.facts["timeline"] = f"{where}/{TIMELINE}, in Perfetto (ui.perfetto.dev) or chrome://tracing"

    def _remove(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self._folder = None

    def _on_all(self, what: str, work: Callable[[], None]) -> None:
        # All ranks wait for each other here: Horovod takes up its timeline between two rounds of messages, and steps of
        # one rank while another still writes would show as waiting.
        trouble = ""
        try:
            work()
        except (tf.errors.OpError, LakeringError, OSError, ValueError) as error:
            trouble = f"the profile has nothing of rank {self._world.rank}: {error}"
        found = [text for text in self._world.gather(trouble, f"profile {what}") if text]
        self.notes += found
        if self._world.rank == 0:
            for text in found:
                print(f"warning: {text}", file=sys.stderr, flush=True)
