"""Processes of benchmarks/feed.py. They answer in lines of JSON.

rank LAKE RANK RANKS BATCH   one rank of a feed: goes over an epoch for each line {"epoch", "whole"} that it reads
plan LAKE                    plans an epoch of LAKE's manifest, and tells seconds and the memory that it took
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.feed_table import Tally
from lakering.lake import Lake
from lakering.manifest import Manifest, read_manifest
from lakering.storage import Storage
from training.feed import Feed, Order, plan

WINDOW = 16
NUM_ROW_GROUPS = 1_000_000


def build_feed(lake: Lake, manifest: Manifest, batch_size: int, **options: Any) -> Feed:
    """Over the whole table, in the order that a recipe has by default; without row ids, unless ``options`` ask for them."""
    order = Order(seed=17, batch_size=batch_size, window=WINDOW, lanes=plan.default_lanes(batch_size))
    return Feed(lake=lake, manifest=manifest, split="train", order=order, **{"row_ids": False, **options})


def serve_rank(folder: str, rank: int, ranks: int, batch_size: int) -> None:
    lake = Lake(Storage(folder))
    feed = build_feed(lake, read_manifest(lake, "bench"), batch_size, rank=rank, ranks=ranks)
    for line in sys.stdin:
        asked = json.loads(line)
        tally = Tally(whole=asked["whole"])
        seconds, cpu_seconds = time.perf_counter(), time.process_time()
        with closing(feed.epoch(asked["epoch"])) as batches:
            for batch in batches:
                tally.add((batch.floats, batch.ids), batch.label)
        seconds, cpu_seconds = time.perf_counter() - seconds, time.process_time() - cpu_seconds
        print(json.dumps({**tally.work.__dict__, "seconds": seconds, "cpu_seconds": cpu_seconds}), flush=True)


def serve_plan(folder: str) -> None:
    before = _memory_mib("VmRSS")
    seconds, cpu_seconds = time.perf_counter(), time.process_time()
    lake = Lake(Storage(folder))
    feed = build_feed(lake, read_manifest(lake, "bench"), 4096)
    counts = feed.manifest.split("train")["num_rows"].to_numpy()
    row_groups = rows = 0
    for window in plan.cut_windows(counts, feed.order, 0):
        if window.index == 0:
            share = plan.share(window, feed.order, 0)
            wanted = list(plan.reads(window, share.first, share.last))
            assert (len(wanted), len(share.rows())) == (WINDOW, window.num_rows)
        row_groups += len(window.row_groups)
        rows += window.num_rows
    seconds, cpu_seconds = time.perf_counter() - seconds, time.process_time() - cpu_seconds
    assert rows == feed.num_rows == int(np.sum(counts))
    found = {"row_groups": row_groups, "rows": rows, "seconds": seconds, "cpu_seconds": cpu_seconds}
    print(json.dumps({**found, "peak_mib": _memory_mib("VmHWM") - before}), flush=True)


def _memory_mib(kind: str) -> float:
    """VmRSS, what this process holds, or VmHWM, the most that it held. (ru_maxrss starts with the parent's.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(kind))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["rank", folder, rank, ranks, batch_size]:
            serve_rank(folder, int(rank), int(ranks), int(batch_size))
        case ["plan", folder]:
            serve_plan(folder)
        case other:
            sys.exit(f"benchmarks.feed_child: {other}? It is started by benchmarks/feed.py")
