"""The whole path on a year of flights: each stage its own spark-submit, then a report of what came out.

    python scripts/demo.py [--measure] [--master spark://...] [--lake lake] [--only train] [-- --set training.epochs=5]

What follows `--` goes to every stage. --measure adds each stage's peak memory.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spark_conf import ROOT, write_conf_dir
from stage_process import run_stage

RECIPE = "recipes/flights.yaml"
# name, job, arguments of its own
STAGES: list[tuple[str, str, list[str]]] = [
    ("ingest", "etl/jobs/ingest_batch.py", []),
    ("examples", "etl/jobs/build_examples.py", []),
    ("snapshot", "etl/jobs/snapshot.py", []),
    ("train", "training/jobs/train.py", ["--ranks", "2"]),
    ("evaluate", "training/jobs/evaluate.py", []),
]


def stage_command(name: str, options: argparse.Namespace) -> tuple[list[str], Path]:
    """The spark-submit of a stage, and the summary that it will write."""
    number, (_, job, own) = next((n, stage) for n, stage in enumerate(STAGES, start=1) if stage[0] == name)
    summary = ROOT / options.lake / "demo" / f"{number:02d}-{name}.json"
    progress = "" if sys.stderr.isatty() else "spark.ui.showConsoleProgress false"
    conf = write_conf_dir(ROOT / ".venv" / "spark-demo", extra=progress)
    master = ["--master", options.master] if options.master else []
    lake = ["--lake", options.lake] if options.lake != "lake" else []
    submit = ["spark-submit", "--properties-file", str(conf.relative_to(ROOT)), *master, job, "--recipe", RECIPE]
    return [*submit, *lake, *own, *options.rest, "--summary", os.path.relpath(summary, ROOT)], summary


def run_stages(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Runs the stages one after the other; returns their summaries, each with `seconds` and `peak_memory_bytes`.

    :raises SystemExit: with the status of the first stage that fails.
    """
    summaries = {}
    for name in options.only or [stage[0] for stage in STAGES]:
        command, file = stage_command(name, options)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        print(f"\n== {name}\n$ {shlex.join(command)}", flush=True)
        started = time.monotonic()
        status, peak = run_stage(command, measure=options.measure)
        seconds = time.monotonic() - started
        if status:
            print(
                f"\ndemo: stage {name} ended with exit status {status}; the command above runs it alone",
                file=sys.stderr,
            )
            raise SystemExit(status)
        summary = json.loads(file.read_text()) if file.exists() else {}
        summaries[name] = {**summary, "seconds": seconds, "peak_memory_bytes": peak}
        measured = f", peak memory {peak / 2**30:.2f} GiB" if options.measure else ""
        print(f"-- {name}: {seconds:.1f} s{measured}", flush=True)
    return summaries


def report_lines(summaries: dict[str, dict[str, Any]]) -> Iterator[str]:
    """What a reader wants to know at the end, of the stages that ran."""
    if "ingest" in summaries:
        tables = [facts for facts in summaries["ingest"].values() if isinstance(facts, dict) and "rows_read" in facts]
        rows = {key: sum(table[key] for table in tables) for key in ("rows_read", "rows_refused", "rows_written")}
        known = sum(table["files_known"] for table in tables)
        again = f" ({known} files were in already)" if known else ""
        yield f"rows       {rows['rows_read']:,} in, {rows['rows_refused']:,} refused, {rows['rows_written']:,} written{again}"
    if "examples" in summaries:
        splits = summaries["examples"]["rows"]["examples"]
        yield "examples   " + ", ".join(f"{split} {rows:,}" for split, rows in splits.items())
    if "train" in summaries:
        training, last = summaries["train"]["training"], summaries["train"]["last epoch"]
        speed = training["rows_per_second"]  # none where a resumed training had no step left
        told = f"{speed:,.0f} rows/s, " if speed else ""
        yield f"training   {training['steps']:,} steps, {told}loss {last['train_loss']:.4f}"
    if "evaluate" in summaries:
        for name in ("model", "base rate", "boosted trees"):
            figures = summaries["evaluate"].get(name, {})
            if figures:
                head = "hold-out" if name == "model" else ""
                yield f"{head:<11}{name:<14} AUC {figures['auc']:.4f}  log loss {figures['log_loss']:.4f}"
        yield f"report     {summaries['evaluate']['report']['file']}"
    seconds = sum(summary["seconds"] for summary in summaries.values())
    peak = max((summary["peak_memory_bytes"] for summary in summaries.values()), default=0)
    yield f"in all     {seconds:.0f} s" + (f", peak memory {peak / 2**30:.2f} GiB" if peak else "")


def main() -> int:
    """Exit status 0 if every stage ended well, else that of the stage that did not."""
    parser = argparse.ArgumentParser(description="The whole path on a year of flights.")
    parser.add_argument("--measure", action="store_true", help="peak memory of each stage")
    parser.add_argument("--master", help="where the stages run (default: Spark's own, local[*])")
    parser.add_argument("--lake", default="lake", help="folder of the tables (default: lake)")
    parser.add_argument("--only", action="append", choices=[stage[0] for stage in STAGES], help="run this stage only")
    parser.add_argument("rest", nargs="*", help="after --: arguments for every stage")
    summaries = run_stages(parser.parse_args())
    print()
    for line in report_lines(summaries):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
