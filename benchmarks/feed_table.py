"""Tables for benchmarks/feed.py: written as the examples are (snappy, no dictionaries, even row groups), with a manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from lakering.lake import Lake
from lakering.manifest import ROW_GROUP_SCHEMA, Column, Manifest
from lakering.storage import Storage

TABLE = "examples/bench/b1/table"


@dataclass(frozen=True)
class Shape:
    """``num_ids`` has one entry for each id column."""

    rows: int
    floats: int
    num_ids: tuple[int, ...]
    row_group_rows: int
    files: int = 8


def wide(rows: int) -> Shape:
    """26 numbers and 13 ids, as click logs have them: 160 bytes a row, row groups of about 64k rows."""
    return Shape(rows, 26, (8, 24, 100, 365, 1_000, 4_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000), 65_536)


def flights(rows: int) -> Shape:
    """About what the demo's examples hold: 36 numbers, 14 columns that tell of nulls, 10 ids; its size of row groups."""
    return Shape(rows, 50, (16, 8, 110, 4_000, 3_800, 230, 26, 9, 40, 130), 8_192)


@dataclass(frozen=True)
class Work:
    """What a contestant handed on: rows, and sums of their 32-bit patterns, which know no order: the label's, and in
    an untimed turn each column's too (floats, then ids)."""

    rows: int
    label: int
    columns: tuple[int, ...] = field(default=(), repr=False)

    def is_same(self, other: Work) -> bool:
        both = bool(self.columns and other.columns)
        return (self.rows, self.label) == (other.rows, other.label) and (not both or self.columns == other.columns)

    def __str__(self) -> str:
        digest = hashlib.sha256(repr(self.columns).encode()).hexdigest()[:12] if self.columns else "not summed"
        return f"{self.rows:,} rows, label's sum {self.label}, columns {digest}"


class Tally:
    """Sums up a contestant's work; ``whole`` asks for every column's sum."""

    def __init__(self, *, whole: bool) -> None:
        self._whole, self._rows, self._label = whole, 0, 0
        self._columns: npt.NDArray[np.uint64] | None = None

    def add(self, blocks: Iterable[npt.NDArray], label: npt.NDArray) -> None:
        """``blocks`` are [rows, columns] or [rows], of four bytes a cell, in the columns' order. They are only iterated
        over for a whole tally: what ``numpy()`` copies out of a tensor is no part of a contestant's work."""
        self._rows += len(label)
        self._label += int(_bits(label))
        if self._whole:
            sums = np.concatenate([np.atleast_1d(_bits(block)) for block in blocks])
            self._columns = sums if self._columns is None else self._columns + sums

    @property
    def work(self) -> Work:
        return Work(self._rows, self._label, () if self._columns is None else tuple(map(int, self._columns)))


def _bits(block: npt.NDArray) -> npt.NDArray[np.uint64]:
    return np.asarray(block).view(np.uint32).sum(axis=0, dtype=np.uint64)


@dataclass(frozen=True)
class Table:
    """``work`` is what was written, summed up while it was."""

    lake: Lake
    manifest: Manifest
    work: Work

    @property
    def files(self) -> list[str]:
        names = dict.fromkeys(self.manifest.row_groups["path"].to_pylist())
        return [self.lake.storage.path(self.manifest.table, name) for name in names]

    @property
    def features(self) -> list[str]:
        return [column.name for column in self.manifest.columns]


def write_table(folder: Path, shape: Shape) -> Table:
    """Writes a lake of one table, all of it the train split, and its manifest.

    Of four floats, two are normal (means -2 to 2, deviations 0.5 to 3), one exponential (mean 1) and one a count (Poisson,
    mean 4). Ids follow Zipf's law with exponent 1 over [1, num_ids). The label is 1 in a fifth of the rows; ``row_id``
    is in random order."""
    lake = Lake(Storage(str(folder)))
    directory = folder / TABLE
    directory.mkdir(parents=True)
    random = np.random.default_rng(11)
    row_ids = random.permutation(shape.rows)
    tally = Tally(whole=True)
    groups = []
    for number, ids in enumerate(np.array_split(row_ids, shape.files)):
        table = _rows(random, ids, shape)
        label = table.column("y").to_numpy()
        tally.add([table.column(name).to_numpy() for name in table.column_names[:-2]], label)
        path = directory / f"part-{number}.parquet"
        pq.write_table(table, path, row_group_size=shape.row_group_rows, compression="snappy", use_dictionary=False)
        metadata = pq.read_metadata(path)
        file = {"split": "train", "path": path.name, "file_bytes": path.stat().st_size}
        counts = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        groups += [{**file, "row_group": i, "num_rows": rows} for i, rows in enumerate(counts)]
    manifest = manifest_of(shape, pa.Table.from_pylist(groups, schema=ROW_GROUP_SCHEMA))
    manifest.write(lake)
    return Table(lake, manifest, tally.work)


def _rows(random: np.random.Generator, row_ids: npt.NDArray[np.int64], shape: Shape) -> pa.Table:
    rows = len(row_ids)
    columns: dict[str, npt.NDArray] = {f"f{j}": _numbers(random, rows, j) for j in range(shape.floats)}
    # The logarithm of an id is uniform: Zipf's law with exponent 1.
    columns |= {f"i{j}": (num_ids ** random.random(rows)).astype(np.int32) for j, num_ids in enumerate(shape.num_ids)}
    columns |= {"y": (random.random(rows) < 0.2).astype(np.float32), "row_id": row_ids}
    return pa.table(columns)


def _numbers(random: np.random.Generator, rows: int, j: int) -> npt.NDArray[np.float32]:
    if j % 4 == 2:
        return random.standard_exponential(rows, np.float32)
    if j % 4 == 3:
        return random.poisson(4, rows).astype(np.float32)
    mean, deviation = np.float32(j % 5 - 2), np.float32(0.5 + j % 6 / 2)
    return random.standard_normal(rows, np.float32) * deviation + mean


def manifest_of(shape: Shape, row_groups: pa.Table) -> Manifest:
    """The manifest of such a table; its statistics are those of a standard normal column, near enough to train on."""
    floats = tuple(Column(f"f{j}", "float") for j in range(shape.floats))
    ids = tuple(Column(f"i{j}", "id", num_ids) for j, num_ids in enumerate(shape.num_ids))
    quantiles = {"q01": -2.33, "q05": -1.64, "q25": -0.67, "q50": 0.0, "q75": 0.67, "q95": 1.64, "q99": 2.33}
    facts = {"count": float(shape.rows), "mean": 0.0, "std": 1.0, "min": -4.0, "max": 4.0, **quantiles}
    statistics = {column.name: facts for column in floats} | {"y": facts | {"mean": 0.2, "std": 0.4, "min": 0.0, "max": 1.0}}
    return Manifest(recipe="bench", build="b1", table=TABLE, version=None, columns=(*floats, *ids), label="y",
                    label_kind="binary", weight=None, statistics=statistics, contracts={}, row_groups=row_groups)  # fmt: skip


def write_many_row_groups(folder: Path, count: int) -> Lake:
    """A lake with nothing but the manifest of a table of so many row groups, 100 in a file."""
    lake = Lake(Storage(str(folder)))
    index = np.arange(count)
    names = pa.array([f"part-{number:06d}.parquet" for number in range(-(-count // 100))])
    row_groups = pa.table(
        [
            pa.DictionaryArray.from_arrays(np.zeros(count, np.int8), pa.array(["train"])),
            pa.DictionaryArray.from_arrays((index // 100).astype(np.int32), names),
            np.full(count, 100 * 10_500_000),
            (index % 100).astype(np.int32),
            60_000 + index % 5_000,
        ],
        schema=ROW_GROUP_SCHEMA,
    )
    manifest_of(wide(int(row_groups["num_rows"].to_numpy().sum())), row_groups).write(lake)
    return lake
