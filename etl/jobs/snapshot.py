"""Pins a build: writes the manifest of its exact files, which is all that training reads of the table."""

from __future__ import annotations

import argparse
from collections import Counter

from etl.tables.snapshots import build_manifest, make_snapshot
from lakering.jobs import job_parser, read_recipe_of, run_job, user_name
from lakering.manifest import JSON
from lakering.summary import Summary


def main(args: argparse.Namespace, summary: Summary) -> None:
    recipe = read_recipe_of(args)
    lake = recipe.lake
    if args.dry_run:
        manifest = build_manifest(lake, recipe.name, args.build, dry_run=True)
        there = lake.storage.exists(*lake.snapshot(recipe.name, manifest.id), JSON)
    else:
        manifest, there = make_snapshot(lake, recipe.name, args.build, by=user_name())
    summary.add("snapshot", id=manifest.id, already_there=there, build=manifest.build, version=manifest.version,
                manifest=lake.storage.path(*lake.snapshot(recipe.name, manifest.id), JSON))  # fmt: skip
    if args.dry_run:
        summary.add("snapshot", dry_run="nothing was written")
    summary.add("rows", **manifest.num_rows)
    summary.add("files", files=len(manifest.row_groups.group_by("path").aggregate([])), row_groups=manifest.row_groups.num_rows,
                rows_in_a_row_group=_range(manifest.row_groups["num_rows"].to_pylist()))  # fmt: skip
    summary.add("columns", float=len(manifest.float_columns), id=len(manifest.id_columns),
                **Counter(str(column.kind) for column in manifest.binary_columns))  # fmt: skip


def _range(sizes: list[int]) -> str:
    return f"{min(sizes):,} to {max(sizes):,}"


def parser() -> argparse.ArgumentParser:
    flags = job_parser(__doc__ or "")
    flags.add_argument("--build", metavar="ID", help="the build to pin (default: the newest complete one)")
    flags.add_argument("--dry-run", action="store_true", help="say what would be pinned; write nothing")
    return flags


if __name__ == "__main__":
    run_job(main, parser())
