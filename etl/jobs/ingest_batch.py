"""Files -> event tables and their quarantine.

spark-submit --properties-file spark-defaults.conf etl/jobs/ingest_batch.py --recipe recipes/flights.yaml
"""

from __future__ import annotations

import argparse
import datetime
from dataclasses import asdict

from lakering.errors import SettingError, nearest
from lakering.jobs import job_parser, read_recipe_of, run_job
from lakering.summary import Summary
from schemas import Contract


def main(args: argparse.Namespace, summary: Summary) -> None:
    recipe = read_recipe_of(args)
    tables = recipe.settings.tables
    unknown = [name for name in args.table or [] if name not in tables]
    if unknown:
        raise SettingError(f"--table {unknown[0]!r} is not a table of {recipe.path}{nearest(unknown[0], tables)}")
    chosen = {name: tables[name] for name in args.table or tables}

    from etl.session import session_beside

    def prepare() -> dict[str, Contract]:
        import etl.ingest  # noqa: F401 - its libraries take as long to import as Spark's session to start

        return {name: recipe.contract(name) for name in chosen}

    spark, contracts = session_beside("ingest", recipe.lake.storage.settings, prepare)
    from etl.ingest import IngestResult, ingest_table

    for name, table in chosen.items():
        now = datetime.datetime.now(datetime.UTC)
        result = IngestResult()
        try:
            ingest_table(spark, recipe, contracts[name], table.sources, now=now, reread=args.reread, result=result)
        finally:
            summary.add(name, **asdict(result))  # what was counted is told, though the table was refused
    summary.add("lake", root=recipe.lake.storage.root)


if __name__ == "__main__":
    parser = job_parser("Puts what the recipe's files hold into their tables; rows that break the contract into quarantine.")
    parser.add_argument("--table", action="append", metavar="NAME", help="only this table of the recipe; may be given again")
    parser.add_argument("--reread", action="store_true", help="read files again that are in the table already, unchanged")
    run_job(main, parser)
