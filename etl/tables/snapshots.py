"""From a build to the manifest that training reads."""

from __future__ import annotations

from etl.tables.example_files import raise_retention, read_row_groups, validate_counts
from etl.tables.example_layout import RETENTION
from etl.tables.examples import find_build
from lakering.lake import Lake
from lakering.manifest import Column, Manifest


def build_manifest(lake: Lake, recipe: str, build_id: str | None = None) -> Manifest:
    """The manifest of a complete build, the newest by default; its retention is raised before.

    Raises StageError when there is no such build, IntegrityError when its files are not those that were written."""
    build = find_build(lake, recipe, build_id)
    table = tuple(build["table"].split("/"))
    if build["format"] == "delta":
        raise_retention(lake, table, {"delta.deletedFileRetentionDuration": RETENTION, "delta.logRetentionDuration": RETENTION})
    version, row_groups = read_row_groups(lake, table, build["format"])
    validate_counts(row_groups, build["num_rows"], f"build {build['build']}")
    return Manifest(
        recipe=recipe,
        build=build["build"],
        table=build["table"],
        version=version,
        columns=tuple(Column(**column) for column in build["columns"]),
        label="label",
        label_kind=build["label_kind"],
        weight=build["weight"],
        statistics=build["statistics"],
        contracts=build["contracts"],
        row_groups=row_groups,
    )
