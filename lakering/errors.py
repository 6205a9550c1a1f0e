"""Every error that a user can meet, with the exit status that a job ends with.

    LakeringError      1  something asked for is not in place
    ├─ SettingError    2  a recipe, contract or flag is wrong
    ├─ InputError      2  a file, folder or table that was named is missing, empty or unreadable
    ├─ StageError      3  an earlier stage has not run
    ├─ RefusedError    4  the data broke its contract beyond the limit: a batch ingest wrote nothing of it
    │  └─ StreamRefusedError 9  the same of a stream's micro-batch: it is written, its refused rows are in quarantine
    ├─ IntegrityError  5  something written earlier is gone, cut or changed
    ├─ BusyError       6  another writer holds what is needed
    ├─ TrainingError   7  training cannot go on: ranks disagree, a loss is not finite, a rank died
    ├─ UnsavedError    8  the last checkpoint, or the trained model, could not be written
    └─ StoppedError   75  a termination notice ended a training early; its state is saved, and the same command goes on

A message names the thing, the value it had, and the next step. Exit status 0 means that everything asked for is in
place; 130 that a person interrupted the job.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LakeringError(Exception):
    """Base of the tree. ``next_step`` is printed on a line of its own below the message."""

    exit_status = 1

    def __init__(self, message: str, *, next_step: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step

    def __str__(self) -> str:
        return self.message if self.next_step is None else f"{self.message}\n  next: {self.next_step}"

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.next_step))


def _rebuild(kind: type[LakeringError], message: str, next_step: str | None) -> LakeringError:
    return kind(message, next_step=next_step)


class SettingError(LakeringError):
    """A recipe, contract or flag is wrong."""

    exit_status = 2


class InputError(LakeringError):
    """A file, folder or table that was named is missing, empty or unreadable."""

    exit_status = 2


class StageError(LakeringError):
    """An earlier stage has not run; ``next_step`` holds the command that runs it."""

    exit_status = 3


class RefusedError(LakeringError):
    """More of the data broke its contract than the contract allows."""

    exit_status = 4


class StreamRefusedError(RefusedError):
    """More of a micro-batch broke its contract than the contract allows. The batch and its quarantine are written, and the
    stream stands behind it: the same command goes on with what follows."""

    exit_status = 9


class IntegrityError(LakeringError):
    """Something written earlier is gone, cut or changed."""

    exit_status = 5


class BusyError(LakeringError):
    """Another writer holds what is needed, and did so for too long."""

    exit_status = 6


class TrainingError(LakeringError):
    """Training cannot go on."""

    exit_status = 7


class UnsavedError(LakeringError):
    """The last state of a training, or its model, could not be written."""

    exit_status = 8


class StoppedError(LakeringError):
    """A termination notice ended a training before its end. Its state is saved: the same command goes on."""

    exit_status = 75  # EX_TEMPFAIL of sysexits.h: try again


def nearest(name: str, known: Iterable[str]) -> str:
    """A clause that offers the nearest of the known names, and lists them while they are few."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    listed = ", ".join(names[:30]) + (", ..." if len(names) > 30 else "")
    return f"{hint} (known: {listed})" if names else hint
