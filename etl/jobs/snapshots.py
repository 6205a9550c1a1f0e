"""Lists snapshots, pins and unpins them, and removes builds that no pin names.

spark-submit --properties-file spark-defaults.conf etl/jobs/snapshots.py list --recipe recipes/flights.yaml
"""

from __future__ import annotations

import argparse
import datetime

from etl.tables.cleaning import Cleaner, Finding
from etl.tables.inventory import describe_snapshots, describe_unnamed_builds, list_recipes, list_runs_of
from etl.tables.snapshots import find_recipe, pin_snapshot, unpin_snapshot
from lakering.errors import InputError, SettingError
from lakering.jobs import add_job_flags, read_recipe_of, run_job, user_name
from lakering.lake import Lake
from lakering.storage import Storage
from lakering.summary import Summary
from recipes.recipe import DEFAULT_LAKE


def main(args: argparse.Namespace, summary: Summary) -> None:
    args.run(args, summary)


def lake_of(args: argparse.Namespace) -> tuple[Lake, list[str]]:
    """The lake, and the recipe given or else all that the lake knows. Raises InputError when there is no lake."""
    if args.overrides and not args.recipe:
        raise SettingError("--set changes a recipe: give one with --recipe FILE")
    recipe = read_recipe_of(args) if args.recipe else None
    lake = recipe.lake if recipe else Lake(Storage(args.lake or DEFAULT_LAKE))
    if not lake.storage.exists():
        raise InputError(f"there is no lake at {lake.storage.root}", next_step="say where it is with --lake DIR_OR_URL")
    return lake, [recipe.name] if recipe else list_recipes(lake)


def list_all(args: argparse.Namespace, summary: Summary) -> None:
    lake, recipes = lake_of(args)
    summary.add("snapshots", **{recipe: describe_snapshots(lake, recipe) for recipe in recipes})
    summary.add("builds without a snapshot", **{recipe: describe_unnamed_builds(lake, recipe) for recipe in recipes})


def pin(args: argparse.Namespace, summary: Summary) -> None:
    lake, recipes = lake_of(args)
    by = user_name()
    manifest = pin_snapshot(lake, find_recipe(lake, recipes, args.id), args.id, by=by)
    summary.add("pinned", snapshot=manifest.id, build=manifest.build, by=by, rows=manifest.num_rows)


def unpin(args: argparse.Namespace, summary: Summary) -> None:
    lake, recipes = lake_of(args)
    recipe = find_recipe(lake, recipes, args.id)
    build, pin = unpin_snapshot(lake, recipe, args.id)
    summary.add("unpinned", snapshot=args.id, build=build, was_pinned=f"by {pin.by}" if pin else "no",
                runs=list_runs_of(lake, recipe).get(args.id))  # fmt: skip


def clean(args: argparse.Namespace, summary: Summary) -> None:
    lake, recipes = lake_of(args)
    now = datetime.datetime.now(datetime.UTC)
    found = {recipe: Cleaner(lake=lake, recipe=recipe, now=now, newest_too=args.newest_too, dry_run=args.dry_run).clean()
             for recipe in recipes}  # fmt: skip
    removed = [finding for findings in found.values() for finding in findings if finding.removed]
    summary.add("in all", builds=sum(finding.build is not None for finding in removed),
                snapshots=sum(len(finding.snapshots) for finding in removed), bytes=sum(f.bytes for f in removed))  # fmt: skip
    if args.dry_run:
        summary.add("in all", dry_run="nothing was removed")
    summary.add("would remove" if args.dry_run else "removed", **{recipe: _removed(fs) for recipe, fs in found.items()})
    summary.add("kept", **{recipe: {f.build: f.why for f in fs if not f.removed} for recipe, fs in found.items()})


def _removed(findings: list[Finding]) -> dict[str, dict[str, object]]:
    return {f.build or f"snapshot {f.snapshots[0]}": {"why": f.why, "snapshots": list(f.snapshots), "bytes": f.bytes}
            for f in findings if f.removed}  # fmt: skip


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = flags.add_subparsers(required=True, metavar="list|pin|unpin|clean")
    for name, run, text in [
        ("list", list_all, "snapshots with their builds, rows, sizes, pins and runs; then builds without one"),
        ("pin", pin, "keep a snapshot and its build"),
        ("unpin", unpin, "let the next clean remove a snapshot and its build"),
        ("clean", clean, "remove builds that no pin names, and what killed builders left"),
    ]:
        command = commands.add_parser(name, help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        command.set_defaults(run=run)
        if name in ("pin", "unpin"):
            command.add_argument("id", metavar="ID", help="the snapshot")
        if name == "clean":
            command.add_argument("--dry-run", action="store_true", help="say what would go, and how many bytes; remove nothing")
            command.add_argument("--newest-too", action="store_true",
                                 help="the newest build too, although no snapshot was made of it yet")  # fmt: skip
        command.add_argument("--recipe", metavar="FILE", help="this recipe alone (default: every recipe in the lake)")
        add_job_flags(command)
    return flags


if __name__ == "__main__":
    run_job(main, parser())
