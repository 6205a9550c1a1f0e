"""What all jobs share: their flags, their summary, their exit status."""

from __future__ import annotations

import argparse
import contextlib
import getpass
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from lakering.errors import LakeringError, SettingError, nearest
from lakering.summary import Summary

if TYPE_CHECKING:
    from recipes import Recipe
    from schemas import Contract

Job = Callable[[argparse.Namespace, Summary], None]


def job_parser(description: str) -> argparse.ArgumentParser:
    """The flags that every job takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--recipe", required=True, metavar="FILE", help="the data set's recipe (YAML)")
    add_job_flags(parser)
    return parser


def add_job_flags(parser: argparse.ArgumentParser) -> None:
    """Of those flags, the ones that do not depend on whether a job needs a recipe."""
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
                        help="override a setting of the recipe, such as training.epochs=5; may be given again")  # fmt: skip
    parser.add_argument("--lake", metavar="DIR_OR_URL", help="where the lake is (default: the recipe's, else ./lake)")
    parser.add_argument("--summary", metavar="FILE", help="write the summary as one JSON object to this file")
    parser.add_argument("--log-json", action="store_true", help="log JSON lines to standard error")


def read_recipe_of(args: argparse.Namespace) -> Recipe:
    """The recipe that the flags name, overrides carried out."""
    from recipes import read_recipe  # its models take 0.3 s to import: a job may do so while Spark starts

    return read_recipe(args.recipe, overrides=args.overrides, lake=args.lake)


def read_tables_of(args: argparse.Namespace) -> tuple[Recipe, dict[str, Contract]]:
    """The recipe, and by name the contracts of its tables: of those that ``--table`` asks for, else of all. Raises
    SettingError for a table that the recipe does not have."""
    recipe = read_recipe_of(args)
    tables = recipe.settings.tables
    unknown = [name for name in args.table or [] if name not in tables]
    if unknown:
        raise SettingError(f"--table {unknown[0]!r} is not a table of {recipe.path}{nearest(unknown[0], tables)}")
    return recipe, {name: recipe.contract(name) for name in args.table or tables}


def add_table_flag(parser: argparse.ArgumentParser) -> None:
    """``--table``, for ``read_tables_of``."""
    parser.add_argument("--table", action="append", metavar="NAME", help="only this table of the recipe; may be given again")


def user_name() -> str:
    """Who runs the job, for what is recorded of it; in a container a user may have no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def run_job(main: Job, parser: argparse.ArgumentParser, argv: list[str] | None = None) -> NoReturn:
    """Runs a job and leaves the process with its exit status: 0, or the error's (see ``lakering.errors``)."""
    args = parser.parse_args(argv)
    summary = Summary((parser.prog or "job").removesuffix(".py"))
    if args.log_json:
        log_json_lines()
    started = time.monotonic()
    status = 0
    try:
        main(args, summary)
    except LakeringError as error:
        status, summary.status, summary.error = error.exit_status, type(error).__name__, str(error)
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        status, summary.status = 130, "interrupted"
        print("interrupted", file=sys.stderr)
    except Exception as error:
        # A bug, or an outside fault that nothing named: the trace is what its finder needs.
        status, summary.status, summary.error = 1, type(error).__name__, str(error)
        traceback.print_exc()
    summary.add("time", seconds=round(time.monotonic() - started, 2))
    print(summary.render())
    if args.summary:
        try:
            summary.write(args.summary)
        except OSError as error:
            print(f"error: --summary {args.summary}: {error.strerror}", file=sys.stderr)
            status = status or 2
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    sys.exit(status)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        facts = {"time": self.formatTime(record), "level": record.levelname, "logger": record.name,
                 "message": record.getMessage(), **getattr(record, "facts", {})}  # fmt: skip
        if record.exc_info:
            facts["trace"] = self.formatException(record.exc_info)
        return json.dumps(facts, default=str)


def log_json_lines() -> None:
    """Sends the project's log records to standard error, one JSON object a line."""
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonLines())
    for name in ("lakering", "etl", "training"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
