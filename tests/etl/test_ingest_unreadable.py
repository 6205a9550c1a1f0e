"""Files that cannot be read whole: nothing of them is published, and the error names them. A full disk."""

from __future__ import annotations

import gzip
import os
import random
import resource
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lakering.errors import InputError
from tests.etl.conftest import HEADER
from tests.etl.test_ingest_rows import line

FEW = "".join(line(id=str(number)) + "\n" for number in range(1, 4))


def published(trips) -> bool:
    return (trips.folder / "lake/tables/trips/_delta_log").exists()


def test_a_truncated_gzip_publishes_nothing_and_is_named(trips):
    trips.write("in/good.csv", HEADER + line(id="9") + "\n")
    noise = "".join(line(id=str(n), note=f"{random.Random(n).random():.17f}"[:20]) + "\n" for n in range(3000))
    whole = gzip.compress((HEADER + noise).encode())
    trips.write("in/cut.csv.gz", whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"in/cut\.csv\.gz cannot be read to its end as gzip"):
        trips.ingest("in")
    assert not published(trips)


@pytest.mark.parametrize("where", ["footer", "page"])
def test_a_corrupt_parquet_file_publishes_nothing_and_is_named(make_trips, where):
    trips = make_trips()
    path = trips.folder / "in/a.parquet"
    path.parent.mkdir()
    names = [column.name for column in trips.contract.source_columns]
    kinds = [
        pa.date32(),
        pa.int32(),
        pa.timestamp("us", "UTC"),
        pa.float64(),
        pa.decimal128(4, 2),
        pa.string(),
        pa.bool_(),
        pa.string(),
    ]
    rows = [[0] * 500, list(range(500)), [0] * 500, [1.0] * 500, [None] * 500, ["north"] * 500, [True] * 500, ["x"] * 500]
    columns = [pa.array(values, kind) for values, kind in zip(rows, kinds, strict=True)]
    pq.write_table(pa.table(columns, names), path, compression="gzip", use_dictionary=False)
    content = bytearray(path.read_bytes())
    at = len(content) - 6 if where == "footer" else pq.read_metadata(path).row_group(0).column(1).data_page_offset + 60
    content[at : at + 40] = bytes(byte ^ 0xFF for byte in content[at : at + 40])
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"in/a\.parquet cannot be read"):
        trips.ingest("in", "parquet")
    assert not published(trips)


def test_a_quoted_line_end_in_single_line_mode_refuses_both_halves(trips):
    result = trips.csv(line(id="1"), line(id="2", note='"two\nlines"'), line(id="3"))
    assert [row["id"] for row in trips.rows()] == [1, 3]
    assert result.rows_refused == 2
    assert [(position, rule) for position, _, rule, _ in trips.refused()] == [(3, "quote"), (4, "quote")]


def test_in_multi_line_mode_a_quoted_line_end_is_kept_and_an_unclosed_quote_names_its_line(make_trips):
    trips = make_trips(table="      - {property: multiLine, value: true}")
    trips.csv(line(id="1"), line(id="2", note='"two\r\nlines"'), line(id="3"))
    assert [(row["id"], row["note"], row["_position"]) for row in trips.rows()] == [
        (1, "hello", 2), (2, "two\r\nlines", 3), (3, "hello", 4)]  # fmt: skip
    with pytest.raises(InputError, match=r"b\.csv: the record that begins on line 3 cannot be read"):
        trips.csv(line(id="4"), line(id="5", note='"never closed'), line(id="6"), name="b.csv")
    assert len(trips.rows()) == 3


INGEST = """
import datetime, sys
from etl.ingest import ingest_table
from etl.session import spark_session
from lakering.errors import LakeringError
from recipes import read_recipe
recipe = read_recipe(sys.argv[1])
try:
    ingest_table(spark_session("full"), recipe, recipe.contract("trips"), recipe.settings.tables["trips"].sources,
                 now=datetime.datetime.now(datetime.UTC))
except LakeringError as error:
    print("error:", error)
    sys.exit(error.exit_status)
"""


@pytest.mark.faults
def test_a_full_disk_is_named_and_the_next_run_ends_as_if_there_had_been_room(trips, spark_conf_dir):
    noise = random.Random(1)
    lines = [line(id=str(n), note=f"{noise.getrandbits(60):x}") for n in range(1, 400_001)]
    trips.csv(*lines)
    rows = trips.rows()
    (trips.folder / "lake").rename(trips.folder / "never-full")
    trips.recipe("a.csv")
    limit = 9 << 20  # bytes of any one file: less than the data needs, and enough for all that Spark writes beside it
    full = subprocess.run(
        [sys.executable, "-c", INGEST, str(trips.folder / "recipe.yaml")], capture_output=True, text=True, timeout=600,
        env={**os.environ, "SPARK_CONF_DIR": str(spark_conf_dir), "PYSPARK_PYTHON": sys.executable},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))  # fmt: skip
    assert full.returncode == 1, full.stderr[-3000:]
    assert "Spark could not write: File too large" in full.stdout
    assert trips.ingest("a.csv").rows_written == len(lines)
    assert trips.rows() == rows
