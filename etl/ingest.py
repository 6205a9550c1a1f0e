"""Batch ingest: files -> a table and its quarantine.

Order of commits: table, then quarantine, then the record that the files are in. Each can be repeated, so a run that was
killed anywhere is finished by running it again.
"""

from __future__ import annotations

import datetime
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from pyspark import StorageLevel
from pyspark.errors import AnalysisException, ParseException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from etl.sources.files import SourceFile, list_files, read_header, read_lines, validate_unchanged
from etl.tables import Counts, table_id, table_lock, write_quarantine, write_rows
from etl.transforms.parsing import with_csv_cells, with_json_cells
from etl.transforms.provenance import with_content_hash
from etl.transforms.validation import with_typed_columns
from lakering.errors import InputError, RefusedError, nearest
from lakering.lake import Lake
from lakering.names import fingerprint
from recipes import Recipe
from recipes.settings import Source
from schemas import Contract

SAMPLE_OF_REFUSED = 1000


@dataclass
class IngestResult:
    """What one table's ingest did. ``rows_read`` is the sum of all that became of them."""

    files: int = 0
    files_known: int = 0
    columns_ignored: dict[str, int] = field(default_factory=dict)
    rows_read: int = 0
    rows_written: int = 0
    rows_already_present: int = 0
    rows_replaced: int = 0
    rows_superseded: int = 0
    rows_refused: int = 0
    refused: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Group:
    """Files that are parsed alike: one source's, under one header."""

    source: Source
    header: tuple[str, ...]
    files: list[SourceFile]


def ingest_table(
    spark: SparkSession,
    recipe: Recipe,
    contract: Contract,
    sources: tuple[Source, ...],
    *,
    now: datetime.datetime,
    reread: bool = False,
    result: IngestResult | None = None,
) -> IngestResult:
    """Puts what the sources hold into the contract's table. Files that are in already, unchanged, are not read again
    unless ``reread``. ``result`` is filled as far as the ingest comes, failed or not.

    Raises InputError for files, RefusedError when too many rows broke the contract."""
    lake = recipe.lake
    result = IngestResult() if result is None else result
    listed = _list_sources(recipe, contract, sources)
    with table_lock(lake, contract.table):
        wanted = {file.identity(contract.version) for _, files in listed for file in files}
        known = set() if reread else _known_files(lake, contract)
        if contract.repeated_key == "replace" and known != wanted:
            known = set()  # the table becomes what all of the files say, so one that has changed asks for all
        groups = []
        for source, files in listed:
            fresh = [file for file in files if file.identity(contract.version) not in known]
            result.files += len(files)
            result.files_known += len(files) - len(fresh)
            groups += _groups(source, fresh, contract, lake, result)
        if groups:
            _ingest(spark, lake, contract, groups, now, result)
            _write_progress(lake, contract, groups, result, now)
    return result


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


def _write_progress(lake: Lake, contract: Contract, groups: list[_Group], result: IngestResult, now: datetime.datetime) -> None:
    files = sorted(file.identity(contract.version) for group in groups for file in group.files)
    record = {"files": files, "table": table_id(lake, contract.table), "contract_version": contract.version,
              "completed_at": now.isoformat(), "counts": asdict(result)}  # fmt: skip
    # A `keep` table holds the files of all its ingests, a `replace` table those of the last.
    name = "current" if contract.repeated_key == "replace" else fingerprint(files)
    lake.storage.write_json(record, *lake.progress(contract.table), f"{name}.json")


def _groups(source: Source, files: list[SourceFile], contract: Contract, lake: Lake, result: IngestResult) -> list[_Group]:
    if source.format == "json":
        return [_Group(source, (), files)] if files else []
    by_header: dict[tuple[str, ...], list[SourceFile]] = {}
    for file in files:
        header = read_header(file, contract.dialect, lake.storage.settings)
        _validate_header(file, header, contract, result)
        by_header.setdefault(header, []).append(file)
    return [_Group(source, header, members) for header, members in by_header.items()]


def _validate_header(file: SourceFile, header: tuple[str, ...], contract: Contract, result: IngestResult) -> None:
    names = [column.name for column in contract.source_columns]
    missing = [name for name in names if name not in header]
    extra = [name for name in header if name not in names]
    if missing:
        raise InputError(f"{file.path}: the header lacks {', '.join(missing)}{nearest(missing[0], extra)}",
                         next_step=f"mend the file, or the contract {contract.document.path}")  # fmt: skip
    if extra and contract.dialect.extra_columns == "refuse":
        raise InputError(f"{file.path}: the header has {', '.join(extra)}, which the contract {contract.document.path} does not",
                         next_step="add the column to the contract, or set its custom property extraColumns: ignore")  # fmt: skip
    for name in extra:
        result.columns_ignored[name] = result.columns_ignored.get(name, 0) + 1


def _ingest(spark: SparkSession, lake: Lake, contract: Contract, groups: list[_Group], now: datetime.datetime,
            result: IngestResult) -> None:  # fmt: skip
    parsed = None
    for group in groups:
        rows = _parse(read_lines(spark, group.files, contract.version), group, contract)
        parsed = rows if parsed is None else parsed.unionByName(rows)
    assert parsed is not None
    parsed = parsed.persist(StorageLevel.MEMORY_AND_DISK)
    try:
        refused = Counter({(row["column"], row["rule"]): row["count"] for row in parsed.groupBy(
            "_refusal.column", "_refusal.rule").count().collect()})  # fmt: skip
        validate_unchanged((file for group in groups for file in group.files), lake.storage.settings)
        result.rows_read = refused.total()
        valid = refused.pop((None, None), 0)
        _count_refused(result, refused)
        _validate_share(spark, lake, contract, parsed, result, now)
        counts, conflicts = Counts(), parsed.limit(0)
        if valid:
            counts, conflicts = write_rows(spark, lake, contract, parsed.where("_refusal is null").drop("_refusal"))
        result.rows_written, result.rows_already_present = counts.written, counts.already_present
        result.rows_replaced, result.rows_superseded = counts.replaced, counts.superseded
        if counts.conflicts:
            _count_refused(result, Counter({(", ".join(contract.key), "conflict"): counts.conflicts}))
        if result.rows_refused:
            names = ["_source", "_position", "_raw", "_refusal"]
            bad = parsed.where("_refusal is not null").select(*names)
            bad = bad.unionByName(conflicts.select(*names)) if counts.conflicts else bad
            write_quarantine(spark, lake, contract, bad, now.date())
    finally:
        parsed.unpersist()


def _parse(lines: DataFrame, group: _Group, contract: Contract) -> DataFrame:
    filled = lines.where(F.col("_raw").rlike(r"\S"))
    if group.source.format == "json":
        cells = with_json_cells(filled, contract)
    else:
        cells = with_csv_cells(filled.where("_position > 1"), contract, group.header)
    try:
        return with_content_hash(with_typed_columns(cells, contract), contract)
    except (AnalysisException, ParseException) as error:
        reason = str(error).split(" SQLSTATE")[0].splitlines()[0]
        raise contract.document.error(
            (), f"a derived column of table '{contract.table}' cannot be worked out: {reason}"
        ) from None


def _count_refused(result: IngestResult, refused: Counter[tuple[str | None, str]]) -> None:
    for (column, rule), count in sorted(refused.items(), key=lambda item: (-item[1], str(item[0]))):
        name = f"{column}: {rule}" if column else rule
        result.refused[name] = result.refused.get(name, 0) + count
        result.rows_refused += count


def _validate_share(spark: SparkSession, lake: Lake, contract: Contract, parsed: DataFrame, result: IngestResult,
                    now: datetime.datetime) -> None:  # fmt: skip
    """Stops before anything is published but a sample of what was refused."""
    if result.rows_refused <= contract.max_refused_share * result.rows_read:
        return
    sample = parsed.where("_refusal is not null").orderBy("_source", "_position").limit(SAMPLE_OF_REFUSED)
    write_quarantine(spark, lake, contract, sample, now.date())
    reasons: dict[str, Any] = dict(list(result.refused.items())[:5])
    raise RefusedError(
        f"table '{contract.table}': {result.rows_refused:,} of {result.rows_read:,} rows break the contract, more than the "
        f"{contract.max_refused_share:.2%} it allows; nothing was written but a sample in quarantine. Reasons: {reasons}",
        next_step=f"mend the files, or the rules or maxRefusedShare of {contract.document.path}",
    )
