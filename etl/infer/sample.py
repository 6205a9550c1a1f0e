"""A sample of a table's files as columns of texts, whatever their format."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Literal

from etl.infer.csv_text import BOM, CsvDialect, guess_encoding, read_table, sniff_dialect, with_lines
from etl.infer.json_text import INTEGERS, NESTED, NUMBERS, read_objects
from etl.infer.parquet_types import contract_type, texts_of, widen
from etl.sources.files import SourceFile, list_files
from etl.sources.sample import choose_files, read_head, read_parquet_head
from lakering.errors import InputError, SettingError, nearest
from lakering.storage import StorageSettings

Format = Literal["csv", "json", "parquet"]
FORMATS: dict[str, Format] = {"csv": "csv", "tsv": "csv", "txt": "csv", "json": "json", "jsonl": "json", "ndjson": "json",
                              "parquet": "parquet", "pq": "parquet"}  # fmt: skip
COMPRESSED = (".gz", ".zst", ".bz2", ".lz4")
MAX_FILES = 5


@dataclass(frozen=True)
class Cells:
    """A column: its texts (None where there is no value), of JSON how many values of each kind; of Parquet, and of
    arrays, the type."""

    texts: list[str | None]
    kinds: Counter[str] = field(default_factory=Counter)
    declared: str | None = None


@dataclass(frozen=True)
class Sample:
    """The first rows of some of the files that ``files`` names. ``faults`` counts records that could not be taken apart;
    ``left_out`` tells of each column that no contract can hold why; ``is_whole``: there are no other rows."""

    files: str
    format: Format
    num_files: int
    paths: tuple[str, ...]
    is_whole: bool
    columns: dict[str, Cells] = field(default_factory=dict)
    num_rows: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    left_out: dict[str, str] = field(default_factory=dict)
    dialect: CsvDialect | None = None
    endpoint: str | None = None


def sample_files(files: str, *, max_rows: int, format: Format | None = None, endpoint: str | None = None) -> Sample:
    """Reads the first rows of the first, the last and some other files of a path, folder or glob; ``endpoint`` is that of
    an S3 that is not Amazon's.

    Raises InputError for files that are missing, unlike each other or not of the format, SettingError when the format
    cannot be told."""
    settings = StorageSettings(endpoint=endpoint)
    listed = list_files(files, settings)
    chosen_format = format or _format_of(listed)
    chosen = choose_files(listed, MAX_FILES)
    none = Sample(files, chosen_format, len(listed), tuple(file.path for file in chosen), is_whole=len(chosen) == len(listed),
                  endpoint=endpoint)  # fmt: skip
    read = {"csv": _sample_csv, "json": _sample_json, "parquet": _sample_parquet}[chosen_format]
    sample = read(none, chosen, max(1, max_rows // len(chosen)), settings)
    if not sample.num_rows:
        raise InputError(f"{chosen[0].path} has no rows, so nothing can be told of its columns")
    return sample


def _format_of(files: list[SourceFile]) -> Format:
    found = {}
    for file in files:
        name = file.path.rsplit("/", 1)[-1].lower()
        for ending in COMPRESSED:
            name = name.removesuffix(ending)
        ending = name.rsplit(".", 1)[-1]
        if ending not in FORMATS:
            raise SettingError(f"{file.path}: the format of '.{ending}' is not known{nearest(ending, FORMATS)}",
                               next_step="give it: --format csv, json or parquet")  # fmt: skip
        found[FORMATS[ending]] = file.path
    if len(found) > 1:
        raise InputError(f"files of several formats: {', '.join(found.values())}",
                         next_step="name those of one format, such as --files 'data/*.csv'")  # fmt: skip
    return next(iter(found))


def _sample_csv(sample: Sample, files: list[SourceFile], rows_each: int, settings: StorageSettings) -> Sample:
    heads = [read_head(file, rows_each + 1, settings) for file in files]
    encoding = guess_encoding([head.content for head in heads], [head.path for head in heads])
    texts = [head.content.decode(encoding, "replace").removeprefix(BOM) for head in heads]
    dialect = sniff_dialect(texts[0], encoding)
    for head, text in zip(heads, texts, strict=True):
        dialect = with_lines(text, dialect, is_cut=not head.is_whole)
    header: list[str] = []
    columns: list[list[str]] = []
    faults: Counter[str] = Counter()
    for head, text in zip(heads, texts, strict=True):
        names, rows, bad = read_table(text, head.path, dialect, rows_each, is_cut=not head.is_whole)
        if not header:
            header, columns = names, [[] for _ in names]
        elif sorted(names) != sorted(header):
            raise _unlike(heads[0].path, header, head.path, names)
        for name, values in zip(names, zip(*rows, strict=True), strict=True) if rows else ():
            columns[header.index(name)] += values
        faults += bad
    cells = {name: Cells(list(texts)) for name, texts in zip(header, columns, strict=True)}
    return replace(sample, columns=cells, num_rows=len(columns[0]), faults=faults, dialect=dialect,
                   is_whole=sample.is_whole and all(head.is_whole for head in heads))  # fmt: skip


def _unlike(path: str, names: list[str], other: str, others: list[str]) -> InputError:
    lacks, has = [name for name in names if name not in others], [name for name in others if name not in names]
    words = ([f"lacks {', '.join(lacks)}"] if lacks else []) + ([f"has {', '.join(has)} beyond"] if has else [])
    return InputError(f"{other}:1: the header {' and '.join(words)} that of {path}: one contract cannot hold both",
                      next_step="name files that are alike with --files, and infer a contract for each kind")  # fmt: skip


def _sample_json(sample: Sample, files: list[SourceFile], rows_each: int, settings: StorageSettings) -> Sample:
    rows, faults, whole = [], Counter[str](), sample.is_whole
    for file in files:
        head = read_head(file, rows_each, settings)
        whole &= head.is_whole
        found, bad = read_objects(head.content, file.path, rows_each)
        rows += found
        faults += bad
    columns, left_out = {}, {}
    for name in dict.fromkeys(name for row in rows for name in row):
        cells = [row.get(name) for row in rows]
        kinds = Counter(cell[1] for cell in cells if cell)
        texts = [cell[0] if cell else None for cell in cells]
        if kinds.keys() and kinds.keys() <= {INTEGERS, NUMBERS}:
            columns[name] = Cells(texts, declared=NUMBERS if kinds[NUMBERS] else INTEGERS)
        elif kinds.keys() & {INTEGERS, NUMBERS, NESTED}:
            left_out[name] = "its values are objects, or lists of other than numbers"
        else:
            columns[name] = Cells(texts, kinds)
    return replace(sample, columns=columns, num_rows=len(rows), faults=faults, left_out=left_out, is_whole=whole)


def _sample_parquet(sample: Sample, files: list[SourceFile], rows_each: int, settings: StorageSettings) -> Sample:
    texts: dict[str, list[str | None]] = {}
    types: dict[str, Counter[str]] = {}
    left_out, rows, whole = {}, 0, sample.is_whole
    for file in files:
        table, all_of_it = read_parquet_head(file, rows_each, settings)
        whole &= all_of_it
        for name in table.column_names:
            kind = contract_type(table[name].type)
            if kind is None:
                left_out[name] = f"no contract has a type for {table[name].type}"
                continue
            values = texts.setdefault(name, [])
            values += [None] * (rows - len(values))  # of files that lack the column
            values += texts_of(table[name])
            types.setdefault(name, Counter())[kind] += 1
        rows += table.num_rows
    columns = {}
    for name in texts.keys() - left_out.keys():
        kind = widen(types[name])
        if kind is None:
            left_out[name] = f"its files differ: {', '.join(types[name])}"
        else:
            columns[name] = Cells(texts[name] + [None] * (rows - len(texts[name])), declared=kind)
    ordered = {name: columns[name] for name in texts if name in columns}
    return replace(sample, columns=ordered, num_rows=rows, left_out=left_out, is_whole=whole)
