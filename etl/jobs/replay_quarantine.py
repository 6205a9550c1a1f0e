"""Judges refused rows again under today's contracts: what passes goes into its table and is marked in quarantine.

spark-submit --properties-file spark-defaults.conf etl/jobs/replay_quarantine.py --recipe recipes/flights.yaml
"""

from __future__ import annotations

import argparse
import datetime
from dataclasses import asdict
from typing import TYPE_CHECKING

from etl.reasons import Selection, add_selection_flags, read_selection
from lakering.jobs import add_table_flag, job_parser, read_tables_of, run_job
from lakering.summary import Summary

if TYPE_CHECKING:
    from recipes import Recipe
    from schemas import Contract


def main(args: argparse.Namespace, summary: Summary) -> None:
    from etl.session import session_beside, set_storage

    spark, (recipe, contracts, selection) = session_beside("replay_quarantine", lambda: prepare(args))
    set_storage(spark, recipe.lake.storage.settings)
    from etl.replay import replay_table
    from etl.sources.registry import open_schemas

    for name, contract in contracts.items():
        now = datetime.datetime.now(datetime.UTC)
        opened = (open_schemas(recipe, source) for source in recipe.settings.tables[name].topics)
        schemas = [known for known in opened if known is not None]
        result = replay_table(spark, recipe.lake, contract, selection, now=now, dry_run=args.dry_run, schemas=schemas)
        summary.add(name, **asdict(result))
        if args.dry_run:
            summary.add(name, dry_run="nothing was written")
    summary.add("lake", root=recipe.lake.storage.root)


def prepare(args: argparse.Namespace) -> tuple[Recipe, dict[str, Contract], Selection]:
    """What is asked for; done while Spark starts."""
    import etl.replay  # noqa: F401 - so that its libraries are there

    return *read_tables_of(args), read_selection(args)


def parser() -> argparse.ArgumentParser:
    flags = job_parser((__doc__ or "").splitlines()[0])
    add_table_flag(flags)
    add_selection_flags(flags)
    flags.add_argument("--dry-run", action="store_true", help="say what would be written and marked; write nothing")
    return flags


if __name__ == "__main__":
    run_job(main, parser())
