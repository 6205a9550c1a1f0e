"""Files -> event tables and their quarantine.

spark-submit --properties-file spark-defaults.conf etl/jobs/ingest_batch.py --recipe recipes/flights.yaml
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

from lakering.errors import SettingError, nearest
from lakering.jobs import job_parser, read_recipe_of, run_job
from lakering.summary import Summary
from schemas import Contract

if TYPE_CHECKING:
    from etl.ingest import IngestResult


def main(args: argparse.Namespace, summary: Summary) -> None:
    recipe = read_recipe_of(args)
    tables = recipe.settings.tables
    unknown = [name for name in args.table or [] if name not in tables]
    if unknown:
        raise SettingError(f"--table {unknown[0]!r} is not a table of {recipe.path}{nearest(unknown[0], tables)}")
    chosen = {name: tables[name] for name in args.table or tables}

    from etl.session import session_beside

    def prepare() -> tuple[dict[str, Contract], Callable[..., IngestResult]]:
        from etl.ingest import ingest_table

        return {name: recipe.contract(name) for name in chosen}, ingest_table

    spark, (contracts, ingest_table) = session_beside("ingest", recipe.lake.storage.settings, prepare)
    for name, table in chosen.items():
        now = datetime.datetime.now(datetime.UTC)
        result = ingest_table(spark, recipe, contracts[name], table.sources, now=now, reread=args.reread)
        summary.add(name, **asdict(result))
    summary.add("lake", root=recipe.lake.storage.root)


if __name__ == "__main__":
    parser = job_parser("Puts what the recipe's files hold into their tables; rows that break the contract into quarantine.")
    parser.add_argument("--table", action="append", metavar="NAME", help="only this table of the recipe; may be given again")
    parser.add_argument("--reread", action="store_true", help="read files again that are in the table already, unchanged")
    run_job(main, parser)
