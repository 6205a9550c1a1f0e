"""The manifest: all that training knows of a table.

A manifest names one version of one build, its exact files with their row groups and row counts, the columns in the
order in which a batch holds them, and what was learnt of them on the train split. It lies in two files: ``manifest.json``,
small, written last, and ``row_groups.parquet``, in columns, so that a million row groups are no burden. The JSON holds
the checksum of the Parquet.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from lakering.errors import IntegrityError, SettingError, StageError, nearest
from lakering.lake import PINS, SNAPSHOTS, Lake
from lakering.names import fingerprint

FORMAT = 2
JSON, ROW_GROUPS = "manifest.json", "row_groups.parquet"
SPLITS = ("train", "validation", "test")

#: One row per row group, in table order (split, file, row group). ``path`` is relative to the table's folder.
ROW_GROUP_SCHEMA = pa.schema(
    [
        ("split", pa.dictionary(pa.int8(), pa.string())),
        ("path", pa.dictionary(pa.int32(), pa.string())),
        ("file_bytes", pa.int64()),
        ("row_group", pa.int32()),
        ("num_rows", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Column:
    """A feature column of an example table; none holds nulls.

    ``float`` columns are float32; ``id`` columns are int32 in [0, num_ids): 0 is padding, 1 null, then the
    out-of-vocabulary buckets, then the vocabulary. The others are binary columns: of an ``array`` the little-endian
    float32 of its ``shape``, row-major; of ``tokens`` as many little-endian int32 ids as ``shape`` tells, padded at the
    end; of an ``image`` the bytes of its file.
    """

    name: str
    kind: Literal["float", "id", "array", "tokens", "image"]
    num_ids: int | None = None
    shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.shape is not None:  # a list, when it comes from JSON
            object.__setattr__(self, "shape", tuple(self.shape))

    @property
    def cell_bytes(self) -> int | None:
        """Bytes of a cell of an array or of tokens."""
        return None if self.shape is None else 4 * math.prod(self.shape)


@dataclass(frozen=True)
class Manifest:
    """See the module's text. ``statistics`` maps a float column to its count, mean, std, min, max and quantiles on the
    train split, an array to those of its elements; ``table`` is the table's folder relative to the lake's root;
    ``version`` is Delta's (None: Parquet). ``classes`` are the names of a multi-class label's numbers; the label's statistics
    hold the share of each (see ``share_name``)."""

    recipe: str
    build: str
    table: str
    version: int | None
    columns: tuple[Column, ...]
    label: str
    label_kind: Literal["binary", "multiclass", "regression"]
    weight: str | None
    statistics: dict[str, dict[str, float]]
    contracts: dict[str, str]
    row_groups: pa.Table
    row_id: str = "row_id"
    classes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.classes is not None:  # a list, when it comes from JSON
            object.__setattr__(self, "classes", tuple(self.classes))

    @property
    def id(self) -> str:
        return fingerprint(self._identity())

    @property
    def schema_hash(self) -> str:
        classes = [self.classes] if self.classes else []
        return fingerprint([asdict(c) for c in self.columns] + [self.label, self.label_kind, self.weight, self.row_id, *classes])

    @property
    def float_columns(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.columns if c.kind == "float")

    @property
    def id_columns(self) -> tuple[Column, ...]:
        return tuple(c for c in self.columns if c.kind == "id")

    @property
    def binary_columns(self) -> tuple[Column, ...]:
        """Arrays, tokens and images."""
        return tuple(c for c in self.columns if c.kind not in ("float", "id"))

    def only(self, *kinds: str) -> Manifest:
        """The same rows with the columns of some kinds alone."""
        return replace(self, columns=tuple(c for c in self.columns if c.kind in kinds))

    def with_columns(self, names: Iterable[str]) -> Manifest:
        """The same rows with some columns alone. Raises SettingError, with the nearest name, for one that is not there."""
        known, chosen = [c.name for c in self.columns], set(names)
        for name in chosen - set(known):
            raise SettingError(f"snapshot {self.id} has no feature {name!r}{nearest(name, known)}")
        return replace(self, columns=tuple(c for c in self.columns if c.name in chosen))

    @property
    def num_rows(self) -> dict[str, int]:
        """Rows of each split that has any."""
        totals = self.row_groups.group_by("split").aggregate([("num_rows", "sum")])
        found = dict(zip(totals["split"].to_pylist(), totals["num_rows_sum"].to_pylist(), strict=True))
        return {split: found[split] for split in SPLITS if split in found}

    def split(self, name: str) -> pa.Table:
        """The row groups of one split, in table order."""
        return self.row_groups.filter(pa.compute.equal(self.row_groups["split"].cast(pa.string()), name))

    def _identity(self) -> dict[str, Any]:
        # Without classes as before there were any: a snapshot keeps its name.
        left_out = ("row_groups",) if self.classes else ("row_groups", "classes")
        facts = {name: value for name, value in self.__dict__.items() if name not in left_out}
        return {**facts, "columns": [asdict(column) for column in self.columns], "format": FORMAT}

    def _row_group_bytes(self) -> bytes:
        sink = pa.BufferOutputStream()
        pq.write_table(self.row_groups.cast(ROW_GROUP_SCHEMA), sink, compression="zstd")
        return sink.getvalue().to_pybytes()

    def write(self, lake: Lake) -> str:
        """Writes both files, the JSON last, and returns the snapshot's id."""
        folder, content = lake.snapshot(self.recipe, self.id), self._row_group_bytes()
        facts = self._identity() | {"id": self.id, "schema_hash": self.schema_hash, "num_rows": self.num_rows,
                                    "row_groups_sha256": _checksum(content)}  # fmt: skip
        lake.storage.write(content, *folder, ROW_GROUPS)
        lake.storage.write_json(facts, *folder, JSON)
        return self.id


def share_name(number: int) -> str:
    """Under what the label's statistics hold the share of a class."""
    return f"share_{number}"


def read_manifest(lake: Lake, recipe: str, snapshot_id: str | None = None) -> Manifest:
    """The manifest of a snapshot, the newest one by default.

    Raises StageError when there is none, IntegrityError when its files do not belong together."""
    command = "spark-submit --properties-file spark-defaults.conf etl/jobs/snapshot.py --recipe FILE"
    chosen = snapshot_id or lake.newest(SNAPSHOTS, recipe, marker=JSON)
    if chosen is None or not lake.storage.exists(*lake.snapshot(recipe, chosen), JSON):
        which = f"snapshot {snapshot_id!r}" if snapshot_id else "snapshot"
        raise StageError(f"no {which} of recipe '{recipe}' in {lake.storage.root}", next_step=command)
    folder = lake.snapshot(recipe, chosen)
    facts = lake.storage.read_json(*folder, JSON)
    content = lake.storage.read(*folder, ROW_GROUPS)
    where = lake.storage.path(*folder)
    if facts.get("format") != FORMAT:
        raise IntegrityError(f"{where}: manifest format {facts.get('format')!r}, this version reads {FORMAT}", next_step=command)
    if _checksum(content) != facts["row_groups_sha256"]:
        raise IntegrityError(f"{where}/{ROW_GROUPS} does not have the checksum that {JSON} holds", next_step=command)
    derived = ("format", "id", "schema_hash", "num_rows", "row_groups_sha256")
    known = {name: value for name, value in facts.items() if name not in derived}
    known["columns"] = tuple(Column(**column) for column in facts["columns"])
    manifest = Manifest(**known, row_groups=pq.read_table(pa.BufferReader(content)).cast(ROW_GROUP_SCHEMA))
    if manifest.id != facts["id"] or facts["id"] != chosen:
        raise IntegrityError(f"{where}/{JSON} was changed: it hashes to {manifest.id}, not {chosen}", next_step=command)
    return manifest


def validate_files(lake: Lake, manifest: Manifest) -> None:
    """Raises IntegrityError when a file that the manifest names is gone or has another size. Reads no data."""
    paths = manifest.row_groups.group_by("path").aggregate([("file_bytes", "max")])
    names = paths["path"].to_pylist()
    infos = lake.storage.filesystem.get_file_info([lake.storage.path(manifest.table, name) for name in names])
    expected = paths["file_bytes_max"].to_pylist()
    bad = [info.path for info, size in zip(infos, expected, strict=True) if not info.is_file or info.size != size]
    if bad:
        which = f"snapshot {manifest.id} (build {manifest.build}, version {manifest.version})"
        raise IntegrityError(
            f"{which}: {len(bad)} of {len(names)} files are gone or changed, first {min(bad)}",
            next_step="build the examples again (build_examples --new), then snapshot",
        )


def write_pin(lake: Lake, manifest: Manifest, by: str) -> None:
    """Names the build, so that the cleaner leaves it alone."""
    pin = {"snapshot": manifest.id, "recipe": manifest.recipe, "build": manifest.build, "table": manifest.table}
    lake.storage.write_json({**pin, "version": manifest.version, "by": by}, PINS, f"{manifest.id}.json")


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
