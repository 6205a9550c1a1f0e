"""What a person sees of a running training on rank 0: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

#: Seconds between two lines where there is no terminal, and between two texts of the bar where there is one.
LINE, BAR = 30.0, 0.5


class Watch:
    """Steps, loss, rows a second since the last text, and the time left. Costs a step next to nothing."""

    def __init__(self, total: int, done: int, *, shown: bool) -> None:
        """``total`` and ``done``: global steps, of the whole training and at its start; ``shown``: on rank 0."""
        self._total, self._shown = total, shown
        self._bar = tqdm(total=total, initial=done, unit="step", mininterval=BAR) if shown and sys.stderr.isatty() else None
        self._every = BAR if self._bar is not None else LINE
        self._told_at, self._told_step, self._rows = time.perf_counter(), done, 0
        self._step = done

    def step(self, global_step: int, epoch: int, loss: float, rows: int) -> None:
        """A step is done, of so many rows over all ranks; ``global_step`` is the next one."""
        if not self._shown:
            return
        self._rows += rows
        self._step = global_step
        now = time.perf_counter()
        if now - self._told_at >= self._every:
            self._tell(now - self._told_at, global_step, epoch, loss)
            self._told_at, self._told_step, self._rows = now, global_step, 0

    def _tell(self, seconds: float, global_step: int, epoch: int, loss: float) -> None:
        speed = self._rows / seconds
        if self._bar is not None:
            self._bar.set_postfix_str(f"epoch {epoch}, loss {loss:.4f}, {speed:,.0f} rows/s", refresh=False)
            self._bar.update(global_step - self._bar.n)
            return
        left = (self._total - global_step) * seconds / (global_step - self._told_step)
        print(f"training: step {global_step:,} of {self._total:,}, epoch {epoch}, loss {loss:.4f}, {speed:,.0f} rows/s, "
              f"{tqdm.format_interval(left)} left", file=sys.stderr, flush=True)  # fmt: skip

    def close(self) -> None:
        if self._bar is not None:
            self._bar.update(self._step - self._bar.n)
            self._bar.close()
