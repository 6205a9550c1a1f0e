"""Arrays and ids as bytes, little-endian: a column of fixed-size cells is read at the speed of a scan, a list column is not.

Spark has no function that gives the bytes of a float, so this is done in Python, by Arrow batches.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import numpy as np
import pandas as pd
from pyspark.sql import Column as Expr
from pyspark.sql import functions as F

from etl.transforms.ids import FIRST_BUCKET, NULL
from recipes.settings import IdSettings

#: Of an array's row: its bytes; whether it is of another size (it has no bytes then); how many elements were null or not
#: finite, and are 0 in the bytes; and of all elements as float32 the sum, the sum of squares and the extremes.
FIGURES = ("wrong", "bad", "total", "squares", "low", "high")
PACKED = "bytes binary, " + ", ".join(f"{name} double" for name in FIGURES)


def packed_array(value: Expr, shape: tuple[int, ...]) -> Expr:
    """An array of numbers as a struct (see ``FIGURES``) with its float32 in ``bytes``; all are null for a null array."""
    size = math.prod(shape)

    def pack(cells: pd.Series) -> pd.DataFrame:
        return pd.DataFrame([_packed_row(cell, size) for cell in cells], columns=["bytes", *FIGURES])

    return F.pandas_udf(pack, PACKED)(value)  # type: ignore[call-overload]


def _packed_row(cell: np.ndarray | None, size: int) -> tuple[bytes | float | None, ...]:
    if cell is None:
        return (None,) * 7
    if len(cell) != size:
        return (None, 1.0, *(None,) * 5)
    with np.errstate(over="ignore"):
        values = np.asarray(cell, np.float64).astype("<f4")
    finite = np.isfinite(values)
    values = np.where(finite, values, np.float32(0))
    # Row by row and in doubles, so that the sums do not depend on the batch that a row is in.
    exact = values.astype(np.float64)
    return (values.tobytes(), 0.0, float(size - finite.sum()), float(exact.sum()), float((exact * exact).sum()),
            float(exact.min()), float(exact.max()))  # fmt: skip


def packed_ids(tokens: Expr, known: Mapping[str, int], settings: IdSettings, length: int) -> Expr:
    """Words as int32 ids: of the vocabulary, else of a bucket by CRC-32; 0 from the last word on. Null is a single 1."""
    buckets, padding = settings.buckets, [0] * length

    def pack(cells: pd.Series) -> pd.Series:
        rows = []
        for words in cells:
            ids = [NULL] if words is None else [known.get(w) or FIRST_BUCKET + zlib.crc32(w.encode()) % buckets for w in words]
            rows.append(np.array((ids + padding)[:length], "<i4").tobytes())
        return pd.Series(rows, dtype=object)

    return F.pandas_udf(pack, "binary")(tokens)  # type: ignore[call-overload]
