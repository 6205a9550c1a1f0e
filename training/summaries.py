"""What the jobs of this room tell when they are done."""

from __future__ import annotations

from typing import Any

from lakering.summary import Summary


def add_training(summary: Summary, result: dict[str, Any]) -> None:
    """The facts of a training, or of the complete run that was found in its place."""
    record = result["record"]
    inputs, counts, timings = record["inputs"], record["counts"], record["timings"]
    summary.add("run", id=result["run"], made=result["made"] or "no: a run of the same inputs is complete (--new trains again)",
                snapshot=inputs["snapshot"], code=inputs["code"], launch=result["launch"], ranks=record["ranks"])  # fmt: skip
    if result["notes"]:
        summary.add("run", warnings=result["notes"])
    summary.add("training", model=inputs["model"]["name"], parameters=counts["parameters"], rows=counts["rows"],
                **record["derived"], steps=record["steps"], resumed_at=record["resumed_at"],
                rows_per_second=timings["rows_per_second"], seconds=timings["seconds"],
                waiting_for_input_share=timings["waiting_for_input_share"])  # fmt: skip
    if stopped := record["metrics"].get("stopped_early"):
        summary.add("training", early_stopping=stopped)
    names = ("milliseconds_per_step", "step_milliseconds", "rows_per_second_per_rank", "longest_pause_seconds",
             "validation_seconds", "slowest")  # fmt: skip
    summary.add("steps", **{name: timings[name] for name in names if name in timings})
    if record.get("profile"):
        summary.add("profile", **record["profile"])
    if resets := record.get("resets"):
        summary.add("elastic", resets=len(resets), steps_done_again=sum(reset["steps_again"] for reset in resets),
                    left=[member for reset in resets for member in reset["left"]],
                    joined=[member for reset in resets for member in reset["joined"]])  # fmt: skip
    names = ("bytes_read", "row_groups_read", "row_groups_read_by_another_rank_too", "cache_hits", "cache_misses",
             "images_skipped")  # fmt: skip
    summary.add("feed", **{name: timings[name] for name in names})
    summary.add("last epoch", **record["metrics"]["final"])


def add_evaluation(summary: Summary, result: dict[str, Any]) -> None:
    """The model's figures beside the baselines', and where the report lies."""
    summary.add("run", id=result["run"], snapshot=result["snapshot"], split=result["split"], launch=result["launch"])
    for name, figures in result["figures"].items():
        summary.add(name, **figures)
    summary.add("verdict", **result["verdict"])
    for column, rows in result.get("slices", {}).items():
        summary.add("worst slices", **{column: _worst(rows)})
    summary.add("report", file=result["report"])


def _worst(rows: list[dict[str, Any]]) -> str:
    """The worst slice of those with a hundredth of the rows or more: chance makes the smallest look bad."""
    least = sum(row["rows"] for row in rows) / 100
    worst = next((row for row in rows if row["rows"] >= least), rows[0])
    figures = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in worst.items() if isinstance(value, float)]
    return f"{worst['value']}: {', '.join(figures)} of {worst['rows']:,} rows"
