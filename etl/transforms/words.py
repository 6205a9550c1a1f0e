"""The words of a text: lower-cased runs of letters, marks and digits of any script."""

from __future__ import annotations

from pyspark.sql import Column as Expr
from pyspark.sql import functions as F

#: A mark belongs to its letter: without it, words of many scripts would fall apart.
WORD = r"[\p{L}\p{M}\p{N}]+"


def words_of(text: Expr, length: int) -> Expr:
    """A struct of the first ``length`` words (``words``), how many there are (``total``), and whether some were cut off
    (``is_cut``: 0 or 1); all are null for a null text."""
    found = F.array(F.regexp_extract_all(F.lower(text), F.lit(WORD), F.lit(0)))
    # Out of an array of one, so that the text is taken apart once and not three times.
    return F.transform(found, lambda words: F.struct(
        F.slice(words, 1, length).alias("words"),
        F.size(words).alias("total"),
        (F.size(words) > length).cast("int").alias("is_cut"),
    ))[0]  # fmt: skip
