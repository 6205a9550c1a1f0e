"""Files -> event tables and their quarantine.

spark-submit --properties-file spark-defaults.conf etl/jobs/ingest_batch.py --recipe recipes/flights.yaml
"""

from __future__ import annotations

import argparse
import datetime
from dataclasses import asdict
from typing import TYPE_CHECKING

from lakering.jobs import add_table_flag, job_parser, read_tables_of, run_job
from lakering.summary import Summary

if TYPE_CHECKING:
    from recipes import Recipe
    from schemas import Contract


def main(args: argparse.Namespace, summary: Summary) -> None:
    from etl.session import session_beside, set_storage

    spark, (recipe, contracts) = session_beside("ingest", lambda: prepare(args))
    set_storage(spark, recipe.lake.storage.settings)
    from etl.ingest import IngestResult, ingest_table

    chosen = {name: recipe.settings.tables[name] for name in contracts}
    for name, table in chosen.items():
        if not (table.files or args.table):
            summary.add(name, sources="topics alone: etl/jobs/ingest_stream.py fills it")
            continue
        now = datetime.datetime.now(datetime.UTC)
        result = IngestResult()
        try:
            ingest_table(spark, recipe, contracts[name], table.sources, now=now, reread=args.reread, dry_run=args.dry_run,
                         result=result)  # fmt: skip
        finally:
            summary.add(name, **asdict(result))  # what was counted is told, though the table was refused
    summary.add("lake", root=recipe.lake.storage.root, **({"dry run": "nothing was written"} if args.dry_run else {}))


def prepare(args: argparse.Namespace) -> tuple[Recipe, dict[str, Contract]]:
    """The recipe, and the contracts of the tables that are asked for; done while Spark starts."""
    import etl.ingest  # noqa: F401 - so that its libraries are there

    return read_tables_of(args)


if __name__ == "__main__":
    parser = job_parser("Puts what the recipe's files hold into their tables; rows that break the contract into quarantine.")
    add_table_flag(parser)
    parser.add_argument("--reread", action="store_true", help="read files again that are in the table already, unchanged")
    parser.add_argument("--dry-run", action="store_true", help="count what would be read, refused and written; write nothing")
    run_job(main, parser)
