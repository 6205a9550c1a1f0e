"""Infers a contract from a sample of files, and a recipe to start from: types, nulls, a candidate key, what was seen.

    python etl/jobs/infer_contract.py --files 'data/*.csv' --table trips > schemas/trips.yaml
    python etl/jobs/infer_contract.py --files 'data/*.csv' --table trips --out schemas/trips.yaml --recipe recipes/trips.yaml

CSV with a header line (delimiter, quote and encoding are found out), JSON lines and Parquet, compressed or not, of a path, a
folder, a glob or a URL (s3://). The first rows of the first, the last and some files between are read, without Spark. The
contract goes to standard output or to --out, what was found to standard error. A contract holds samples of the data in its
comments: look them through before you share it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from etl.infer import (
    exists,
    infer_table,
    report_table,
    sample_files,
    validate_contract,
    write_contract,
    write_new,
    write_recipe,
)
from lakering.errors import SettingError
from lakering.jobs import run_job
from lakering.names import validate_name
from lakering.summary import Summary


def main(args: argparse.Namespace, summary: Summary) -> None:
    validate_name(args.table, "--table")
    if args.rows < 1:
        raise SettingError(f"--rows {args.rows}: expected 1 or more")
    if args.recipe and not args.out:
        raise SettingError("--recipe needs --out: a recipe names the contract's file")
    for path in (args.out, args.recipe):
        if path and Path(path).exists():
            raise exists(path)
    sample = sample_files(args.files, max_rows=args.rows, format=args.format, endpoint=args.endpoint)
    table = infer_table(args.table, sample, leave_out_bad_names=args.leave_out_bad_names)
    text = write_contract(table)
    validate_contract(text)
    if args.out:
        write_new(args.out, text)
    else:
        print(text, end="", file=sys.__stdout__)
    if args.recipe:
        write_new(args.recipe, write_recipe(table, args.recipe, args.out))
    report_table(summary, table, contract=args.out, recipe=args.recipe)


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--files", required=True, metavar="FILES", help="a file, a folder, a glob in quotes, or a URL")
    flags.add_argument("--table", required=True, metavar="NAME", help="the table's name")
    flags.add_argument("--out", metavar="FILE", help="write the contract here (default: standard output)")
    flags.add_argument("--recipe", metavar="FILE", help="write a recipe to start from here, too")
    flags.add_argument("--format", choices=("csv", "json", "parquet"), help="default: by the files' extension")
    flags.add_argument("--rows", type=int, default=100_000, metavar="N", help="rows to look at, in all (default: 100,000)")
    flags.add_argument("--endpoint", metavar="URL", help="of s3:// files that are not at Amazon's")
    flags.add_argument("--leave-out-bad-names", action="store_true",
                       help="leave out columns whose names no table takes, instead of refusing the files")  # fmt: skip
    flags.add_argument("--summary", metavar="FILE", help="write what was found as one JSON object to this file")
    flags.set_defaults(log_json=False)
    return flags


if __name__ == "__main__":
    # Standard output is the contract's.
    sys.stdout = sys.stderr
    run_job(main, parser())
