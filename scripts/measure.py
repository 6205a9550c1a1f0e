"""Peak memory of a process tree: the summed proportional set size (PSS), so that shared pages count once."""

from __future__ import annotations

import threading
from pathlib import Path


def children() -> dict[int, list[int]]:
    """Each process's children, as /proc tells."""
    tree: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:  # it has ended
            continue
        parent = int(text.rpartition(")")[2].split()[1])
        tree.setdefault(parent, []).append(int(stat.parent.name))
    return tree


def pss_bytes(pid: int) -> int:
    """One process's PSS; 0 if it has ended."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


class PeakMemory(threading.Thread):
    """Samples the tree below a process until it is stopped; `peak` is the largest sum seen, in bytes.

    A process seen once stays counted when its parent ends before it.
    """

    def __init__(self, root: int, *, interval_s: float = 0.25) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self._root, self._interval_s, self._ended = root, interval_s, threading.Event()

    def run(self) -> None:
        """Samples until stopped."""
        seen = {self._root}
        while not self._ended.wait(self._interval_s):
            tree, todo = children(), list(seen)
            while todo:
                for child in tree.get(todo.pop(), []):
                    if child not in seen:
                        seen.add(child)
                        todo.append(child)
            sizes = {pid: pss_bytes(pid) for pid in seen}
            seen = {pid for pid, size in sizes.items() if size} | {self._root}
            self.peak = max(self.peak, sum(sizes.values()))

    def stop(self) -> int:
        """Ends the sampling and returns the peak."""
        self._ended.set()
        self.join()
        return self.peak
