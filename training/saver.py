"""Checkpoints are written behind the training's back: its steps stop for the copy alone."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf

from lakering.errors import LakeringError, UnsavedError
from lakering.lake import Lake
from training.best import better, read_best, write_best
from training.checkpoint import Arrays, Checkpoint, write_checkpoint
from training.steplog import StepLog

log = logging.getLogger("training")
#: The share of an epoch that steps may stop for one that is still written; and seconds that they may whatever its length.
MOST_WAIT, LEAST_WAIT = 0.05, 0.25


class Copies:
    """The memory that variables are copied into for each checkpoint, the same each time: to copy into fresh memory takes ten
    times as long. One that is still being written must not be copied over."""

    def __init__(self, variables: Mapping[str, tf.Variable]) -> None:
        self._variables = dict(variables)
        # Written to here, so that the first copy finds it in place.
        self._arrays = {name: np.full(v.shape, 0, v.dtype.as_numpy_dtype) for name, v in self._variables.items()}

    def take(self) -> Arrays:
        for name, variable in self._variables.items():
            np.copyto(self._arrays[name], _seen(variable))
        return dict(self._arrays)


def _seen(variable: tf.Variable) -> np.ndarray:
    """A variable's own memory, to be read before its next step; on a GPU a copy."""
    tensor = variable.read_value()
    return tensor.numpy() if "GPU" in tensor.device else np.asarray(memoryview(tensor))


class Saver:
    """Writes the log of steps and then a checkpoint in a thread, one at a time; on one rank alone.

    One that cannot be written is told and tried again when the next is due; ``finish`` raises when that was the last.
    Of the checkpoints, the newest ``keep`` stay, and with ``keep_best`` the one with the least validation loss."""

    def __init__(self, lake: Lake, run: tuple[str, ...], steps: StepLog, *, keep: int, keep_best: bool, epoch_steps: int) -> None:
        self._lake, self._run, self._steps = lake, run, steps
        self._keep, self._keep_best, self._epoch_steps = keep, keep_best, epoch_steps
        self._started, self._num_steps = time.monotonic(), 0
        self._writer: threading.Thread | None = None
        self._failure: Exception | None = None
        self._failed: list[int] = []
        self._left_out: list[int] = []

    def step_done(self) -> None:
        """Counts a step: how long an epoch takes is known from them."""
        self._num_steps += 1

    def save(self, global_step: int, capture: Callable[[], Checkpoint], *, must: bool = False) -> bool:
        """Starts to write what ``capture`` gives. While the one before is written it waits for 5% of an epoch, and then
        leaves this one out, which is told in the log; unless it ``must`` be written. Says whether it is."""
        if self._writer is not None:
            self._writer.join(None if must else self._patience())
            if self._writer.is_alive():
                self._left_out.append(global_step)
                log.warning("checkpoint left out", extra={"facts": {"global_step": global_step, "why": "the last is written"}})
                return False
        started = time.perf_counter()
        checkpoint = capture()
        copied = time.perf_counter() - started
        self._writer = threading.Thread(target=self._write, args=(checkpoint, copied), name="checkpoint")
        self._writer.start()
        return True

    def finish(self) -> None:
        """Waits until the last one is written. Raises UnsavedError when it could not be."""
        self.close()
        if self._failure is not None:
            raise UnsavedError(f"the last checkpoint, of global step {self._failed[-1]:,}, could not be written: {self._failure}",
                               next_step="make room where the lake lies, then run the same command again: it goes on from the "
                               "newest checkpoint that was written")  # fmt: skip

    def close(self) -> None:
        """Waits for the thread; also after an error of the training, whose newest checkpoint is wanted."""
        if self._writer is not None:
            self._writer.join()

    @property
    def notes(self) -> list[str]:
        """What a summary should say of those that were not written."""
        told = [
            ("could not be written, and were made good by later ones", self._failed),
            ("were left out, since the one before was still being written; raise training.checkpoint_every", self._left_out),
        ]
        return [f"{len(steps)} checkpoints (global steps {', '.join(map(str, steps[:5]))}{', ...' if steps[5:] else ''}) {what}"
                for what, steps in told if steps]  # fmt: skip

    def _patience(self) -> float:
        pace = (time.monotonic() - self._started) / max(self._num_steps, 1)
        return max(MOST_WAIT * pace * self._epoch_steps, LEAST_WAIT)

    def _write(self, checkpoint: Checkpoint, copied: float) -> None:
        started = time.perf_counter()
        step = checkpoint.global_step
        try:
            self._steps.flush(before=step)
            self._write_and_keep(checkpoint)
        except Exception as error:
            self._failure = error
            self._failed.append(step)
            text = (
                f"the checkpoint of global step {step:,} cannot be written: {_told(error)}; training goes on, the next is tried"
            )
            print(f"warning: {text}", file=sys.stderr, flush=True)
            log.warning("checkpoint failed", extra={"facts": {"global_step": step, "error": _told(error)}})
            return
        self._failure = None
        facts = {"global_step": step, "copied_seconds": copied, "written_seconds": time.perf_counter() - started}
        log.info("checkpoint", extra={"facts": facts})

    def _write_and_keep(self, checkpoint: Checkpoint) -> None:
        best = read_best(self._lake, self._run) if self._keep_best else None
        name = write_checkpoint(self._lake, self._run, checkpoint, keep=self._keep, spare=best.checkpoint if best else None)
        if self._keep_best and checkpoint.facts["epochs"] and checkpoint.facts["step"] == 0:
            newest = better(best, name, checkpoint.facts["epochs"])
            if newest is not None and newest != best:
                write_best(self._lake, self._run, newest)


def _told(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return error.message if isinstance(error, LakeringError) else f"{type(error).__name__}: {error}"
