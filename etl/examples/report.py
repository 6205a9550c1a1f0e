"""A build as a summary."""

from __future__ import annotations

from collections import Counter
from typing import Any

from lakering.lake import Lake
from lakering.manifest import share_name
from lakering.summary import Summary


def report_build(summary: Summary, lake: Lake, record: dict[str, Any], *, reused: bool) -> None:
    """Adds a build's record to the summary: ``rows_read`` is the sum of the examples and of the rows dropped."""
    columns, how = record["columns"], Counter(record["features"].values())
    summary.add("build", id=record["build"], reused="yes, it was complete (--new makes another)" if reused else "no",
                table=lake.storage.path(record["table"]), format=record["format"], version=record["version"])  # fmt: skip
    summary.add("rows", rows_read=record["rows_read"], examples=dict(record["num_rows"]), dropped=record["dropped"])
    if classes := record.get("classes"):
        shares = record["statistics"]["label"]
        summary.add("rows", classes_in_train={name: shares[share_name(number)] for number, name in enumerate(classes)})
    else:
        summary.add("rows", label_mean={split: figures["label"]["mean"] for split, figures in record["by_split"].items()})
    summary.add("features", **{
        "of the row itself": how["column"] + how["expression"],
        "as-of (of the moment)": how["as-of"],
        "window (of the moment)": how["window"],
        "look-up (values of today)": how["look-up"],
        "float columns": sum(c["kind"] == "float" for c in columns),
        "id columns": sum(c["kind"] == "id" for c in columns),
    })  # fmt: skip
    for kind in ("array", "tokens", "image"):
        if names := [c["name"] for c in columns if c["kind"] == kind]:
            summary.add("features", **{f"{kind} columns": len(names)})
    for name, text in record["texts"].items():
        cut = sum(text["cut"].values())
        summary.add(
            "features", **{f"{name} cut to {text['length']} words": f"{cut:,} of {sum(record['num_rows'].values()):,} rows"}
        )
    if record["never_in_train"]:
        summary.add("features", never_seen_in_train=record["never_in_train"])
    if record["not_finite"]:
        summary.add("features", taken_as_null=record["not_finite"])
    summary.add("files", files=record["files"], row_groups=record["row_groups"], bytes=record["bytes"])
