"""Bytes that may stand in a CSV file: each line is written as it says or refused with its reason, as an oracle has it."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterable
from random import Random
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from etl.session import session_settings
from etl.sources.files import list_files
from etl.sources.streams import Stream, record_batches
from etl.tables import read_quarantine, read_table
from lakering.errors import InputError
from lakering.storage import StorageSettings
from schemas import Dialect
from tests.etl import csv_oracle as oracle
from tests.etl.conftest import Trips
from tests.etl.csv_oracle import Signs

#: Examples are made anew by a seed, and not made smaller: each is a whole ingest.
FUZZ = settings(deadline=None, derandomize=True, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
NULLS = ("NA", "")
INSIDE = (b"\n", b"\r\n", b"\r", b"\n\n")
DOUBLED, BACKSLASH, TAB = Signs(), Signs(";", "'", "\\"), Signs("\t")
WORDS = [b"a", b"b c", b"NA", b"1", b"-7", b"\xc3\xa9", b"\xf0\x9f\x98\x80", b"\xef\xbf\xbf", b"\xef\xbf\xbd", b"\xef\xbb\xbf", b"\xc2\x85",
         b"\xe2\x80\xa8", b"\xc2\xa0", b"\0", b"\x1c", b"\x0b", b"\x0c", b" ", b"  ", b"\t", b",", b";", b"|", b"'", b'"', b"\\", b"\\n",
         b"${x}", b"$1", b"[", b"{", b"#", b"%41", b"\x7f"]  # fmt: skip
BROKEN = [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80", b"\x80"]
NUMBERS = [b"0", b"1", b"12", b"-3", b"9223372036854775807"]
NO_NUMBERS = [b"9223372036854775808", b"-0", b"007", b"+5", b"5.0", b" 1", b"1 ", b"x", b"1e3", b"\xd9\xa3", b"NA", b"", b"0x1", b"1_0"]  # fmt: skip


class Bytes:
    """Files made of a random source. ``inside`` is what a line end within quotes may be; without, records are lines."""

    def __init__(self, random: Random, signs: Signs, inside: tuple[bytes, ...] = ()) -> None:
        self.random, self.inside = random, inside
        self.delimiter, self.quote, self.escape = (sign.encode() for sign in (signs.delimiter, signs.quote, signs.escape))

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def word(self) -> bytes:
        return self.random.choice(BROKEN if self.chance(0.01) else WORDS)

    def quoted(self) -> bytes:
        """A cell in quotes, now and then with one that is not escaped."""
        doubled = (self.escape + self.quote, self.escape + self.escape, self.delimiter, *(self.inside or (b"\r",)))
        words = [self.random.choice(doubled) if self.chance(0.4) else self.word() for _ in range(self.random.randrange(5))]
        if self.chance(0.97):
            words = [b"" if word in (self.quote, self.escape) else word for word in words]
        elif self.inside:
            words = [word.replace(b"\r", b"") for word in words]
        return self.quote + b"".join(words) + self.quote

    def bare(self) -> bytes:
        loose = [self.word() for _ in range(self.random.randrange(4))]
        if self.inside:  # a quote that begins a cell could take the rest of a file with it
            loose = [word.replace(self.quote, b"q") for word in loose]
        elif self.chance(0.05):
            loose.append(b"\r")
        return b"".join(loose)

    def cell(self) -> bytes:
        return self.quoted() if self.chance(0.5) else self.bare()

    def number(self) -> bytes:
        number = self.random.choice(NUMBERS if self.chance(0.85) else NO_NUMBERS)
        return self.quote + number + self.quote if self.chance(0.15) else number

    def line(self, order: list[str]) -> bytes:
        if self.chance(0.05):
            return self.random.choice(
                [
                    b"",
                    b" ",
                    b"\t",
                    self.quote + b" " + self.quote,
                    b" \t\x0b\x0c ",
                    self.delimiter,
                    self.quote * 2,
                    self.delimiter * 2,
                ]
            )
        cells = [self.number() if name == "id" else self.cell() for name in order]
        if self.chance(0.04):
            cells = cells[:1] if self.chance(0.5) else [*cells, self.cell()]
        line = self.delimiter.join(cells)
        if self.chance(0.03) and b"\r" not in line:
            at = self.random.randrange(len(line) + 1)
            line = line[:at] + (self.word() if not self.inside else b"x") + line[at:]
        return line

    def file(self, lines: int) -> bytes:
        order = self.random.sample(["id", "note"], 2)
        header = [self.quote + name.encode() + self.quote if self.chance(0.2) else name.encode() for name in order]
        ends = self.random.choice([(b"\n",), (b"\r\n",), (b"\n", b"\r\n")])
        content = oracle.BOM if self.chance(0.3) else b""
        content += self.delimiter.join(header) + self.random.choice(ends)
        for _ in range(lines):
            content += self.line(order) + self.random.choice(ends)
        return content if self.chance(0.7) else content.removesuffix(b"\n")


def packed(random: Random, content: bytes) -> tuple[str, bytes]:
    """The end of a file's name, and its bytes, compressed or not."""
    zstd = pa.compress(content, codec="zstd", asbytes=True)
    return random.choice([(".csv", content), (".csv", content), (".csv.gz", gzip.compress(content)), (".csv.zst", zstd)])


class Lake(Trips):
    def under(self, signs: Signs, multi_line: bool) -> None:
        dialect = {"repeatedKey": "keep", "nullTokens": list(NULLS), "delimiter": signs.delimiter, "quote": signs.quote,
                   "escape": signs.escape, "multiLine": multi_line}  # fmt: skip
        table = {"name": "trips", "customProperties": [{"property": name, "value": value} for name, value in dialect.items()],
                 "properties": [{"name": "id", "logicalType": "integer"}, {"name": "note", "logicalType": "string"}]}  # fmt: skip
        contract = {
            "apiVersion": "v3.1.0",
            "kind": "DataContract",
            "id": "trips",
            "version": "1.0.0",
            "status": "active",
            "schema": [table],
        }
        (self.folder / "trips.yaml").write_text(json.dumps(contract))

    def found(self) -> tuple[dict[tuple[str, int], Any], dict[tuple[str, int], Any]]:
        """By file and position, what stands in the table, and why what does not was refused."""
        lake = self.recipe("x").lake
        rows = read_table(self.spark, lake, self.contract).select("_source", "_position", "id", "note").collect()
        bad = read_quarantine(self.spark, lake, "trips").select("source", "position", "rule", "raw").collect()
        written = {(name(row[0]), row[1]): {"id": row[2], "note": row[3]} for row in rows}
        refused = {(name(row[0]), row[1]): (row[2], bytes(row[3])) for row in bad}
        assert (len(written), len(refused)) == (len(rows), len(bad)), "no line twice"
        return written, refused


def name(source: str) -> str:
    return source.split("#")[0].rsplit("/", 1)[1]


def difference(found: dict[Any, Any], expected: dict[Any, Any], files: dict[str, bytes]) -> list[str]:
    """Where two answers differ, with the file, for a person to read."""
    places = sorted(place for place in {**found, **expected} if found.get(place) != expected.get(place))
    return [
        f"{place}: got {found.get(place)!r}, expected {expected.get(place)!r}, in {files[place[0]]!r}" for place in places[:3]
    ]


def check(lake: Lake, files: dict[str, bytes], expected: Iterable[tuple[str, oracle.Line]], split: int, raw: bool) -> None:
    """Ingests the folder ``in``, whose ``files`` are given unpacked."""
    lines = list(expected)
    with session_settings(lake.spark, {"spark.sql.files.maxPartitionBytes": split}):
        result = lake.ingest("in")
    written, refused = lake.found()
    good = {(file, line.position): line.values for file, line in lines if line.fault is None}
    bad = {(file, line.position): (line.fault, line.raw if raw else b"") for file, line in lines if line.fault is not None}
    refused = {place: (rule, held if raw else b"") for place, (rule, held) in refused.items()}
    assert difference(written, good, files) == []
    assert difference(refused, bad, files) == []
    assert (result.rows_read, result.rows_written) == (len(lines), len(good))
    faults = Counter(line.fault for _, line in lines if line.fault)
    assert Counter({reason.removeprefix("id: "): count for reason, count in result.refused.items()}) == faults
    wanted = ("utf8", "quote", "num_cells", "type") if raw else ("num_cells", "type")
    assert min(len(good), *(faults[fault] for fault in wanted)) > 3, "all of it was tried"


@pytest.fixture
def make_lake(spark, tmp_path_factory):
    def make(signs: Signs, multi_line: bool = False) -> Lake:
        lake = Lake(spark, tmp_path_factory.mktemp("fuzz"))
        lake.under(signs, multi_line)
        return lake

    return make


@pytest.mark.parametrize(("signs", "split"), [(DOUBLED, 3000), (BACKSLASH, 1 << 20)], ids=["doubled", "backslash"])
@settings(FUZZ, max_examples=1)
@given(seed=st.integers(1, 1 << 32))
def test_each_line_is_written_or_refused_as_it_says(make_lake, signs, split, seed):
    lake, random, files, lines = make_lake(signs), Random(seed), {}, []
    for number in range(8):
        content = Bytes(random, signs).file(random.randrange(200))
        end, stored = packed(random, content)
        file = f"{number:02}{end}"
        lake.write(f"in/{file}", stored)
        files[file] = content
        lines += [(file, line) for line in oracle.read_lines(content, signs, NULLS)]
    check(lake, files, lines, split, raw=True)


@pytest.mark.parametrize("signs", [DOUBLED, BACKSLASH, TAB], ids=["doubled", "backslash", "tab"])
@settings(FUZZ, max_examples=300)
@given(seed=st.integers(0, 1 << 32))
def test_each_record_of_several_lines_is_cut_as_it_says(tmp_path_factory, signs, seed):
    random = Random(seed)
    content = Bytes(random, signs, INSIDE).file(random.randrange(12))
    end, stored = packed(random, content)
    path = tmp_path_factory.getbasetemp() / f"record{end}"
    path.write_bytes(stored)
    (file,) = list_files(str(path), StorageSettings())
    dialect = Dialect(signs.delimiter, signs.quote, signs.escape, multi_line=True)
    expected = oracle.read_records(content, signs, NULLS)
    batches = record_batches(Stream(file.path, file.uri, dialect, StorageSettings()), skip=1)
    if expected is None:
        with pytest.raises(InputError, match=rf"record{end}: the record that begins on line"):
            list(batches)
        return
    found = {row["_row"]: row["_cells"] for batch in batches for row in batch.to_pylist()}
    assert found == {line.position: line.cells for line in expected}, content


@settings(FUZZ, max_examples=1)
@given(seed=st.integers(1, 1 << 32))
def test_each_record_of_several_lines_is_written_or_refused_as_it_says(make_lake, seed):
    lake, random, files, lines = make_lake(DOUBLED, multi_line=True), Random(seed), {}, []
    for number in range(15):
        content = Bytes(random, DOUBLED, INSIDE).file(random.randrange(25))
        end, stored = packed(random, content)
        records = oracle.read_records(content, DOUBLED, NULLS)
        file = f"{number:02}{end}"
        if records is None:
            lake.write(f"bad/{file}", stored)
            continue
        lake.write(f"in/{file}", stored)
        files[file] = content
        lines += [(file, line) for line in records]
    check(lake, files, lines, 1 << 20, raw=False)
    path = next((lake.folder / "bad").iterdir())
    with pytest.raises(InputError, match=f"bad/{path.name}: the record that begins on line"):
        lake.ingest(f"bad/{path.name}")
