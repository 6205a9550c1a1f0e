"""Shows the refused rows of a recipe's tables: how many, of which days, for which reasons, with examples of each.

spark-submit --properties-file spark-defaults.conf etl/jobs/quarantine.py --recipe recipes/flights.yaml
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from etl.reasons import Selection, add_selection_flags, read_selection
from lakering.errors import SettingError
from lakering.jobs import add_table_flag, job_parser, read_tables_of, run_job
from lakering.summary import Summary

if TYPE_CHECKING:
    from recipes import Recipe
    from schemas import Contract


def main(args: argparse.Namespace, summary: Summary) -> None:
    from etl.session import session_beside, set_storage

    spark, (recipe, contracts, selection) = session_beside("quarantine", lambda: prepare(args))
    set_storage(spark, recipe.lake.storage.settings)
    from etl.refused import describe_refused
    from etl.tables import has_quarantine, read_quarantine

    for name in contracts:
        if has_quarantine(spark, recipe.lake, name):
            summary.add(name, **describe_refused(read_quarantine(spark, recipe.lake, name), selection, args.examples))
        else:
            summary.add(name, rows=0, quarantine="no row of this table was ever refused")
    summary.add("lake", root=recipe.lake.storage.root)


def prepare(args: argparse.Namespace) -> tuple[Recipe, dict[str, Contract], Selection]:
    """What is asked for; done while Spark starts."""
    import etl.tables  # noqa: F401 - so that its libraries are there

    if args.examples < 0:
        raise SettingError(f"--examples {args.examples}: expected 0 or more")
    return *read_tables_of(args), read_selection(args)


def parser() -> argparse.ArgumentParser:
    flags = job_parser((__doc__ or "").splitlines()[0])
    add_table_flag(flags)
    add_selection_flags(flags)
    flags.add_argument("--examples", type=int, default=3, metavar="N", help="rows to show of each reason")
    return flags


if __name__ == "__main__":
    run_job(main, parser())
