"""Builds a recipe's example table from the lake's event and side tables."""

from __future__ import annotations

import argparse

from etl.examples import plan_examples
from etl.examples.inputs import build_inputs, name_build
from etl.examples.report import report_build
from etl.session import spark_session
from etl.tables import table_version
from etl.tables.examples import BUILD, build_lock, make_build, read_build
from lakering.jobs import job_parser, read_recipe_of, run_job
from lakering.summary import Summary


def main(args: argparse.Namespace, summary: Summary) -> None:
    recipe = read_recipe_of(args)
    plan, lake = plan_examples(recipe), recipe.lake
    versions = {name: table_version(lake, name) for name in sorted(plan.contracts)}
    inputs = build_inputs(plan, versions)
    build_id = name_build(inputs, lambda name: read_build(lake, recipe.name, name) is not None, new=args.new)
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


def parser() -> argparse.ArgumentParser:
    flags = job_parser(__doc__ or "")
    flags.add_argument("--new", action="store_true", help="build again although the same build is complete")
    return flags


if __name__ == "__main__":
    run_job(main, parser())
