"""Batch ingest: files -> a table and its quarantine.

Order of commits: table, then quarantine, then the record that the files are in. Each can be repeated, so a run that was
killed anywhere is finished by running it again.
"""

from __future__ import annotations

import datetime
import logging
from collections import Counter
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from etl.parse import ParsedRows, Reasons, all_refused, is_lost, parsed_files
from etl.reasons import named_counts
from etl.sources.files import SourceFile, folder_of, list_files, validate_unchanged
from etl.sources.read import FileGroup, group_files, named_errors
from etl.tables import Batch, Counts, foresee_rows, table_id, table_lock, write_quarantine, write_rows
from etl.transforms.parsing import compare_header
from lakering.errors import InputError, RefusedError, nearest
from lakering.lake import Lake
from lakering.names import fingerprint
from recipes import Recipe
from recipes.settings import AnySource, Source
from schemas import Contract

log = logging.getLogger(__name__)
SAMPLE_OF_REFUSED = 1000
ATTEMPTS = 3


@dataclass
class IngestResult:
    """What one table's ingest did. ``rows_read`` is the sum of all that became of them."""

    files: int = 0
    files_known: int = 0
    columns_ignored: dict[str, int] = field(default_factory=dict)
    rows_read: int = 0
    rows_written: int = 0
    rows_already_present: int = 0
    rows_superseded: int = 0
    rows_refused: int = 0
    refused: dict[str, int] = field(default_factory=dict)


def ingest_table(
    spark: SparkSession,
    recipe: Recipe,
    contract: Contract,
    sources: tuple[AnySource, ...],
    *,
    now: datetime.datetime,
    reread: bool = False,
    dry_run: bool = False,
    result: IngestResult | None = None,
) -> IngestResult:
    """Puts what the sources' files hold into the contract's table. Files that are in already, unchanged, are not read again
    unless ``reread``; with ``dry_run`` all is counted and nothing written. ``result`` is filled as far as the ingest comes,
    failed or not.

    Raises InputError for files and for sources without any, RefusedError when too many rows broke the contract."""
    lake = recipe.lake
    result = IngestResult() if result is None else result
    if not any(isinstance(source, Source) for source in sources):
        raise InputError(f"table '{contract.table}' has topics alone among its sources in {recipe.path}, and no files",
                         next_step="fill it with etl/jobs/ingest_stream.py")  # fmt: skip
    listed = _list_sources(recipe, contract, tuple(source for source in sources if isinstance(source, Source)))
    with nullcontext() if dry_run else table_lock(spark, lake, contract.table):
        known = set() if reread else _known_files(lake, contract)
        groups = []
        for source, files in listed:
            fresh = [file for file in files if file.identity(contract.version) not in known]
            result.files += len(files)
            result.files_known += len(files) - len(fresh)
            base = folder_of(recipe.resolve(source.files), lake.storage.settings)
            groups += group_files(source.format, fresh, contract, lake.storage.settings, base)
        for group in groups:
            _validate_header(group, contract, result)
        if groups:
            _ingest_groups(spark, lake, contract, groups, now, dry_run, result)
        if groups and not dry_run:
            _write_progress(lake, contract, groups, result, now)
    return result


def _ingest_groups(spark: SparkSession, lake: Lake, contract: Contract, groups: list[FileGroup], now: datetime.datetime,
                   dry_run: bool, result: IngestResult) -> None:  # fmt: skip
    """Each step can be repeated, so where an executor is lost with the rows that it kept, all of them are done again."""
    for attempt in range(ATTEMPTS):
        try:
            with parsed_files(spark, groups, contract, lake.storage.settings) as parsed, named_errors(groups):
                return _ingest(spark, lake, contract, groups, parsed, now, dry_run, result)
        except PySparkException as error:
            if not is_lost(error) or attempt == ATTEMPTS - 1:
                raise
            log.warning("an executor was lost with rows that it had parsed; reading them again")


def _list_sources(recipe: Recipe, contract: Contract, sources: tuple[Source, ...]) -> list[tuple[Source, list[SourceFile]]]:
    """Each source's files; a file that two sources name is the first one's."""
    seen: dict[str, Source] = {}
    listed = []
    for source in sources:
        files = list_files(recipe.resolve(source.files), recipe.lake.storage.settings)
        for file in files:
            if seen.setdefault(file.uri, source).format != source.format:
                both = f"{file.path} is named as {seen[file.uri].format} and as {source.format}"
                raise recipe.document.error(("tables", contract.table, "sources"), both)
        listed.append((source, [file for file in files if seen[file.uri] is source]))
    return listed


def _known_files(lake: Lake, contract: Contract) -> set[str]:
    """The files that are in the table that is there now: records of another table of its name do not count."""
    folder, table = lake.progress(contract.table), table_id(lake, contract.table)
    records = [lake.storage.read_json(*folder, name) for name in lake.storage.list(*folder) if name.endswith(".json")]
    return {name for record in records if record["table"] == table for name in record["files"]}


def _write_progress(
    lake: Lake, contract: Contract, groups: list[FileGroup], result: IngestResult, now: datetime.datetime
) -> None:
    files = sorted(file.identity(contract.version) for group in groups for file in group.files)
    record = {"files": files, "table": table_id(lake, contract.table), "contract_version": contract.version,
              "completed_at": now.isoformat(), "counts": asdict(result)}  # fmt: skip
    lake.storage.write_json(record, *lake.progress(contract.table), f"{fingerprint(files)}.json")


def _validate_header(group: FileGroup, contract: Contract, result: IngestResult) -> None:
    if group.format not in ("csv", "parquet"):
        return
    path, header = group.files[0].path, group.header
    missing, extra = compare_header(header, contract)
    if missing:
        raise InputError(f"{path}: the header lacks {', '.join(missing)}{nearest(missing[0], extra)}",
                         next_step=f"mend the file, or the contract {contract.document.path}")  # fmt: skip
    if extra and contract.dialect.extra_columns == "refuse":
        raise InputError(f"{path}: the header has {', '.join(extra)}, which the contract {contract.document.path} does not",
                         next_step="add the column to the contract, or set its custom property extraColumns: ignore")  # fmt: skip
    for name in extra:
        result.columns_ignored[name] = result.columns_ignored.get(name, 0) + len(group.files)


def _ingest(spark: SparkSession, lake: Lake, contract: Contract, groups: list[FileGroup], parsed: ParsedRows,
            now: datetime.datetime, dry_run: bool, result: IngestResult) -> None:  # fmt: skip
    files = [file for group in groups for file in group.files]
    validate_unchanged(files, lake.storage.settings)
    result.rows_refused, result.refused = 0, {}
    result.rows_read = parsed.reasons.total()
    _count_refused(result, Counter({reason: count for reason, count in parsed.reasons.items() if reason != (None, None)}))
    _validate_share(spark, lake, contract, parsed, result, now, dry_run)
    counts, conflicts = Counts(), None
    if parsed.num_valid:
        run = fingerprint([now.isoformat(), *(file.source for file in files)])
        batch = Batch(parsed.valid, parsed.num_valid, sum(file.size for file in files), run)
        counts, conflicts = (foresee_rows if dry_run else write_rows)(spark, lake, contract, batch)
    result.rows_written, result.rows_already_present = counts.written, counts.already_present
    result.rows_superseded = counts.superseded
    if counts.conflicts:
        _count_refused(result, Counter({(", ".join(contract.key), "conflict"): counts.conflicts}))
    if result.rows_refused and not dry_run:
        write_quarantine(spark, lake, contract, all_refused(contract, parsed, conflicts), now.date())


def _count_refused(result: IngestResult, refused: Reasons) -> None:
    for name, count in named_counts(refused).items():
        result.refused[name] = result.refused.get(name, 0) + count
        result.rows_refused += count


def _validate_share(spark: SparkSession, lake: Lake, contract: Contract, parsed: ParsedRows, result: IngestResult,
                    now: datetime.datetime, dry_run: bool) -> None:  # fmt: skip
    """Stops before anything is published but a sample of what was refused."""
    if result.rows_refused <= contract.max_refused_share * result.rows_read:
        return
    if not dry_run:
        sample = parsed.refused.orderBy("_source", "_position").limit(SAMPLE_OF_REFUSED)
        write_quarantine(spark, lake, contract, sample, now.date())
    reasons: dict[str, Any] = dict(list(result.refused.items())[:5])
    raise RefusedError(
        f"table '{contract.table}': {result.rows_refused:,} of {result.rows_read:,} rows break the contract, more than the "
        f"{contract.max_refused_share:.2%} it allows; nothing was written but a sample in quarantine. Reasons: {reasons}",
        next_step=f"mend the files, or the rules or maxRefusedShare of {contract.document.path}",
    )
