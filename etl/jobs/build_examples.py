"""Builds a recipe's example table from the lake's event and side tables."""

from __future__ import annotations

import argparse

from etl.examples import Plan, plan_examples
from etl.examples.inputs import build_inputs, name_build
from etl.examples.preview import Counts, count_examples, report_counts, report_preview
from etl.examples.report import report_build
from etl.session import spark_session
from etl.tables import table_version
from etl.tables.examples import BUILD, build_lock, make_build, read_build, read_inputs
from lakering.jobs import job_parser, read_recipe_of, run_job
from lakering.summary import Summary


def main(args: argparse.Namespace, summary: Summary) -> None:
    recipe = read_recipe_of(args)
    plan, lake = plan_examples(recipe), recipe.lake
    versions = {name: table_version(lake, name) for name in sorted(plan.contracts)}
    inputs = build_inputs(plan, versions)
    build_id = name_build(inputs, lambda name: read_build(lake, recipe.name, name) is not None, new=args.new)
    if args.dry_run:
        return preview(summary, plan, build_id, versions)
    with build_lock(lake, recipe.name, build_id):
        record = read_build(lake, recipe.name, build_id)
        reused = record is not None
        if record is not None:
            lake.make_newest(*lake.build(recipe.name, build_id), BUILD)
        else:
            spark = spark_session("build_examples", lake.storage.settings)
            try:
                record = make_build(spark, lake, plan, build_id, inputs)
            finally:
                spark.stop()
    report_build(summary, lake, record, reused=reused)


def preview(summary: Summary, plan: Plan, build_id: str, versions: dict[str, tuple[str, int]]) -> None:
    """Tells what would be built; a build that is there has been counted, for another the main table is."""
    lake = plan.recipe.lake
    record = read_build(lake, plan.recipe.name, build_id)
    report_preview(summary, plan, build_id, versions, is_there=record is not None)
    if record is not None:
        return report_counts(summary, plan, Counts(record["num_rows"], record["dropped"]))
    spark = spark_session("build_examples", lake.storage.settings)
    try:
        tables = read_inputs(spark, lake, plan.contracts, {name: version for name, (_, version) in versions.items()})
        report_counts(summary, plan, count_examples(plan, tables))
    finally:
        spark.stop()


def parser() -> argparse.ArgumentParser:
    flags = job_parser(__doc__ or "")
    flags.add_argument("--new", action="store_true", help="build again although the same build is complete")
    flags.add_argument("--dry-run", action="store_true", help="say what would be built, and of which rows; write nothing")
    return flags


if __name__ == "__main__":
    run_job(main, parser())
