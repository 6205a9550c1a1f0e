"""Progress of set-up: one living line on a terminal, and a line now and then where nobody watches."""

from __future__ import annotations

import sys
import threading
import time
from typing import TextIO


class Progress:
    """Prints steps as they start and end; several threads may use it."""

    def __init__(self, *, stream: TextIO = sys.stdout, quiet_s: float = 30.0) -> None:
        self._stream, self._quiet_s = stream, quiet_s
        self._tty = stream.isatty()
        self._lock, self._started = threading.Lock(), time.monotonic()
        self._last, self._live = self._started, ""

    def elapsed(self) -> str:
        """Time since the start, as m:ss."""
        seconds = int(time.monotonic() - self._started)
        return f"{seconds // 60}:{seconds % 60:02d}"

    def say(self, text: str) -> None:
        """A line that stays."""
        with self._lock:
            self._clear()
            print(f"set-up {self.elapsed()}  {text}", file=self._stream, flush=True)
            self._last = time.monotonic()

    def tick(self, text: str) -> None:
        """What is going on: rewritten in place on a terminal, else printed when nothing was for a while."""
        with self._lock:
            if self._tty:
                self._clear()
                self._live = f"set-up {self.elapsed()}  {text}"
                print(self._live, end="", file=self._stream, flush=True)
            elif time.monotonic() - self._last >= self._quiet_s:
                print(f"set-up {self.elapsed()}  {text}", file=self._stream, flush=True)
                self._last = time.monotonic()

    def _clear(self) -> None:
        if self._live:
            print("\r" + " " * len(self._live) + "\r", end="", file=self._stream)
            self._live = ""
