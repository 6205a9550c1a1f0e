"""A toy with one more column in every file, whose label follows from it alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lakering.manifest import Column, Manifest

Cells = list[bytes]


def with_cells(
    toy: Any, column: Column, make: Callable[[np.random.Generator, np.ndarray], Cells], *, keep: tuple[str, ...] = ()
) -> Any:
    """``make`` gives the cells of some labels. The other features are left out, but for those of ``keep``."""
    random = np.random.default_rng(11)
    sizes = {}
    for file in sorted(toy.file("train").parent.glob("*.parquet")):
        parquet, rows = pq.ParquetFile(file), pq.read_table(file)
        label = random.integers(0, 2, rows.num_rows)
        rows = rows.set_column(rows.column_names.index("y"), "y", pa.array(label, pa.float32()))
        rows = rows.append_column(column.name, pa.array(make(random, label), pa.binary()))
        with pq.ParquetWriter(file, rows.schema) as writer:
            at = 0
            for group in range(parquet.num_row_groups):
                count = parquet.metadata.row_group(group).num_rows
                writer.write_table(rows.slice(at, count))
                at += count
        sizes[file.name] = file.stat().st_size
    groups = [{**group, "file_bytes": sizes[group["path"]]} for group in toy.manifest.row_groups.to_pylist()]
    manifest: Manifest = replace(
        toy.manifest, columns=(*(c for c in toy.manifest.columns if c.name in keep), column),
        statistics={**toy.manifest.statistics, "y": {"count": 1.0, "mean": 0.5, "std": 0.5, "min": 0.0, "max": 1.0}},
        row_groups=pa.Table.from_pylist(groups, schema=toy.manifest.row_groups.schema))  # fmt: skip
    manifest.write(toy.lake)
    return replace(toy, manifest=manifest)
