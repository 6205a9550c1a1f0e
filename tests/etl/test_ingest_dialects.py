"""Every way in which files may write the same rows: dialects of CSV, encodings, compressions, JSON, Parquet, images."""

from __future__ import annotations

import datetime
import gzip
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etl.tables import read_quarantine, read_table
from lakering.errors import InputError, SettingError
from tests.etl.conftest import Trips

HEAD = """apiVersion: v3.1.0
kind: DataContract
id: trips
version: 1.0.0
status: active
schema:
  - name: trips
    customProperties: PROPERTIES
    properties:
"""
NOTES = ("{name: id, logicalType: integer}", "{name: note, logicalType: string}")
MOMENT = ("{name: id, logicalType: integer}", "{name: at, logicalType: timestamp}")
VECTORS = tuple(
    f"{{name: {name}, logicalType: array, items: {{logicalType: {kind}, physicalType: {physical}}}, "
    "customProperties: [{property: shape, value: [2]}]}"
    for name, kind, physical in (("v", "number", "float"), ("w", "integer", "int"))
)


class Files(Trips):
    """A lake with a table of the test's own columns and dialect."""

    def under(self, columns: tuple[str, ...], **properties: Any) -> Files:
        listed = [{"property": name, "value": value} for name, value in {"repeatedKey": "keep", **properties}.items()]
        text = HEAD.replace("PROPERTIES", json.dumps(listed)) + "".join(f"      - {column}\n" for column in columns)
        (self.folder / "trips.yaml").write_text(text)
        return self

    def stored(self, *names: str) -> list[tuple[Any, ...]]:
        """The named columns, by file and position."""
        table = read_table(self.spark, self.recipe("x").lake, self.contract)
        return [tuple(row) for row in table.orderBy("_source", "_position").select(*names).collect()]

    def instants(self) -> list[tuple[Any, ...]]:
        """Position, and the instant in microseconds."""
        table = read_table(self.spark, self.recipe("x").lake, self.contract)
        return [tuple(row) for row in table.orderBy("_position").selectExpr("_position", "unix_micros(at)").collect()]


@pytest.fixture
def files(spark, tmp_path) -> Files:
    return Files(spark, tmp_path)


def micros(text: str) -> int:
    moment = datetime.datetime.fromisoformat(text) - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return moment // datetime.timedelta(microseconds=1)


QUOTES: dict[str, tuple[str, str, str, list[tuple[bytes, str | None]]]] = {  # delimiter, quote, escape, what stands in the file and what it says; None where it is refused
    "doubled": (",", '"', '"', [(b'"a ""b"", c"', 'a "b", c'), (b'""', ""), (b'5" x 4"', '5" x 4"'), (b'"x"y', None),
                                (b'"x" ', None), (b'"\0""\xef\xbf\xbf"', '\0"\uffff'), (b"a\rb", "a\rb")]),
    "escaped": (";", "'", "\\", [(rb"'it\'s; \\'", "it's; \\"), (rb"'C:\new'", r"C:\new"), (rb"C:\new", r"C:\new"),
                                 (b"'a''b'", None)]),
    "tab": ("\t", '"', '"', [(b'"a\tb"', "a\tb"), (b"a,b", "a,b"), (b"", "")]),
    "backslash": ("\\", "'", "'", [(rb"'a\b'", r"a\b"), (b"$^|.*", "$^|.*")]),
}  # fmt: skip


@pytest.mark.parametrize(("dialect", "multi_line"), [*((name, False) for name in QUOTES), ("doubled", True), ("escaped", True)])
def test_quotes_mean_the_same_in_both_readers(files, dialect, multi_line):
    delimiter, quote, escape, cells = QUOTES[dialect]
    # What a line by itself refuses is an error of the whole file where records may go over lines.
    cells = [(text, said) for text, said in cells if not multi_line or (said is not None and "\r" not in said)]
    between = delimiter.encode()
    lines = [str(number).encode() + between + text for number, (text, _) in enumerate(cells, start=2)]
    files.under(NOTES, delimiter=delimiter, quote=quote, escape=escape, multiLine=multi_line, nullTokens=[])
    files.write("a.csv", b"id" + between + b"note\n" + b"\n".join(lines) + b"\n")
    files.ingest("a.csv")
    good = [(number, said) for number, (_, said) in enumerate(cells, start=2) if said is not None]
    assert files.stored("_position", "note") == good
    bad = [number for number, (_, said) in enumerate(cells, start=2) if said is None]
    assert not bad or files.refused() == [(number, None, "quote", None) for number in bad]


def test_blank_lines_go_and_rows_of_empty_cells_stay(files):
    """A line of nothing but tabs is a row where tabs are the delimiter."""
    files.under(NOTES, delimiter="\t")
    content = b"\xef\xbb\xbfid\tnote\r\n1\tone\r\n\r\n  \r\n\t\r\n2\ttwo"
    files.write("in/a.csv", content)
    files.write("in/b.csv.gz", gzip.compress(content))
    assert files.ingest("in").rows_read == 6
    expected = [(2, 1, "one"), (5, None, None), (6, 2, "two")]
    assert files.stored("_position", "id", "note") == expected * 2


def test_records_of_several_lines_keep_what_is_in_their_quotes(files):
    files.under(NOTES, multiLine=True)
    content = b'\xef\xbb\xbfid,note\r\n1,"two\r\nlines, and ""more"""\r\n\r\n,\r\n2,"\n"\r\n3,x,y\r\n'
    files.write("a.csv", content)
    files.ingest("a.csv")
    assert files.stored("_position", "id", "note") == [(2, 1, 'two\r\nlines, and "more"'), (4, None, None), (5, 2, "\n")]
    assert files.refused() == [(6, None, "num_cells", None)]


def test_compressed_files_say_what_the_plain_one_says(files):
    files.under(NOTES)
    rows = b"id,note\n1,one\n\n2,\xc3\xbc\nx,bad\n3,\xff\n"
    objects = b'{"id": 1, "note": "one"}\n\n{"id": 2, "note": "\xc3\xbc"}\n{"id": "x"}\n{"note": "\xff"}\n'
    for content, name in ((rows, "csv"), (objects, "json")):
        files.write(f"{name}/a.{name}", content)
        files.write(f"{name}/b.{name}.gz", gzip.compress(content[:20]) + gzip.compress(content[20:]))
        files.write(f"{name}/c.{name}.zst", pa.compress(content, codec="zstd", asbytes=True))
    files.ingest("csv", "csv")
    files.ingest("json", "json")
    found = files.stored("_source", "_position", "id", "note", "_content_hash")
    by_file: dict[str, list[Any]] = {}
    for source, *row in found:
        by_file.setdefault(source.split("#")[0].rsplit("/", 1)[1], []).append(row)
    plain = by_file["a.csv"]
    assert [row[:3] for row in plain] == [[2, 1, "one"], [4, 2, "ü"]]
    assert by_file["b.csv.gz"] == by_file["c.csv.zst"] == plain
    in_json = [[position - 1, *rest] for position, *rest in plain]  # there is no header
    assert by_file["a.json"] == by_file["b.json.gz"] == by_file["c.json.zst"] == in_json
    assert files.refused() == [(5, "id", "type", "x"), (6, None, "utf8", None)] * 3 + [
        (4, "id", "type", "x"), (5, None, "utf8", None)] * 3  # fmt: skip


@pytest.mark.parametrize(
    ("encoding", "bad"),
    [("cp1252", b"3,\x81x"), ("UTF-16", b"3\0,\0\0\xd8"), ("cp037", None), ("shift_jis", b"3,\x81")],
)
def test_a_file_in_another_encoding_is_read_and_a_line_that_is_not_in_it_keeps_its_bytes(files, encoding, bad):
    files.under(NOTES, encoding=encoding)
    word = "アユ" if encoding == "shift_jis" else "Köln"
    end = "\n".encode("utf-16-le" if encoding == "UTF-16" else encoding)
    content = f"id,note\n1,{word}\n".encode(encoding)
    content += (bad + end if bad else b"") + f"4,{word}\n".encode("utf-16-le" if encoding == "UTF-16" else encoding)
    files.write("a.csv", content)
    files.ingest("a.csv")
    assert files.stored("id", "note") == [(1, word), (4, word)]
    if bad:
        (row,) = read_quarantine(files.spark, files.recipe("x").lake, "trips").collect()
        assert (row["position"], row["rule"]) == (3, "utf8")
        assert bytes(row["raw"]) == (bad if encoding != "UTF-16" else b"3,\xed\xb3\xbf"), "of UTF-16, what could be read of it"


def test_one_folder_may_hold_headers_of_any_order_and_names_that_systems_read_otherwise(files):
    files.under(NOTES, extraColumns="ignore")
    names = ["a'b\"c.csv", "d\\e #f?.csv", "2024-01-01T08:00.csv", "${env:HOME}.csv", "%41 ü+&;.csv", "[x]{y}*.csv"]
    for number, name in enumerate(names):
        header, row = (["id", "note"], [number, name[0]]) if number % 2 else (["note", "more", "id"], [name[0], "x", number])
        files.write(f"in/{name}", ",".join(header) + "\n" + ",".join(map(str, row)) + "\n")
    result = files.ingest("in")
    assert (result.rows_written, result.columns_ignored) == (6, {"more": 3})
    assert sorted(files.stored("id", "note")) == [(number, name[0]) for number, name in enumerate(names)]


def test_timestamps_are_read_in_the_format_and_zone_that_are_declared(files):
    files.under(MOMENT, timestampFormat="dd/MM/yyyy HH:mm", timestampZone="Europe/Paris")
    texts = ["13/01/2024 08:00", "1/2/2024 8:00", "30/02/2024 08:00", "31/03/2024 02:30", "31/03/2024 03:30", "01/01/0000 00:00"]
    files.write("a.csv", "id,at\n" + "".join(f"{number},{text}\n" for number, text in enumerate(texts)))
    files.ingest("a.csv")
    assert files.instants() == [(2, micros("2024-01-13T07:00Z")), (6, micros("2024-03-31T01:30Z"))]
    assert files.refused() == [(3, "at", "type", texts[1]), (4, "at", "type", texts[2]),
                               (5, "at", "type", texts[3]),  # an hour that summer time left out
                               (7, "at", "type", texts[5])]  # fmt: skip


def test_without_a_format_a_zone_in_the_text_goes_before_the_declared_one(files):
    files.under(MOMENT, timestampZone="America/New_York")
    texts = ["2024-01-13T08:00:00", "2024-01-13 08:00:00.000001+01:00", "2024-01-13T08:00:00.1234567Z", "2024-03-10T02:30:00"]
    files.write("a.csv", "id,at\n" + "".join(f"{number},{text}\n" for number, text in enumerate(texts)))
    files.ingest("a.csv")
    assert files.instants() == [(2, micros("2024-01-13T13:00Z")), (3, micros("2024-01-13T07:00:00.000001Z"))]
    assert [position for position, *_ in files.refused()] == [4, 5]


BAD_CONTRACTS = [
    ({"timestampFormat": "bogus", "timestampZone": "UTC"}, "trips.yaml.*DATETIME"),
    ({"timestampFormat": "HH:mm", "timestampZone": "UTC"}, "trips.yaml.*'HH:mm' does not tell a day"),
    ({"timestampFormat": "yyyy-MM-dd"}, "trips.yaml:7.*reads no zone from the text"),
    ({"timestampFormat": "yyyy-MM-dd SSSSSSSSS", "timestampZone": "UTC"}, "trips.yaml:7.*reads nanoseconds"),
    ({"timestampZone": "Mars/Olympus"}, "trips.yaml:7.*'Mars/Olympus' is not a zone"),
    ({"quote": "😀"}, "trips.yaml:7.*quote '😀' is not a character"),
    ({"delimiter": '"'}, "trips.yaml:7.*delimiter '\"' is the quote"),
    ({"encoding": "undefined"}, "trips.yaml:7.*encoding 'undefined' is not known"),
    ({"encoding": "rot13"}, "trips.yaml:7.*encoding 'rot13' is not known"),
]


@pytest.mark.parametrize(("properties", "message"), BAD_CONTRACTS)
def test_a_dialect_that_means_nothing_is_an_error_of_the_contract(files, properties, message):
    files.write("a.csv", "id,at\n1,x\n")
    with pytest.raises(SettingError, match=message):
        files.under(MOMENT, **properties).ingest("a.csv")


def test_a_pattern_that_is_one_to_python_and_none_to_java_is_an_error_of_the_contract(files):
    files.under(("{name: note, logicalType: string, logicalTypeOptions: {pattern: '(a)(?(1)b|c)'}}",))
    files.write("a.csv", "note\nx\n")
    with pytest.raises(SettingError, match=r"trips\.yaml.*Spark cannot carry out the contract"):
        files.ingest("a.csv")


def parquet(files: Files, columns: dict[str, pa.Array], name: str = "a.parquet", **options: Any) -> Path:
    pq.write_table(pa.table(columns), files.folder / name, **options)
    return files.folder / name


def test_parquet_values_arrive_exactly_or_are_refused(files):
    columns = ("{name: n, logicalType: integer, physicalType: int}", "{name: x, logicalType: number}",
               '{name: p, logicalType: number, physicalType: "decimal(4,2)"}', "{name: s, logicalType: string}",
               "{name: d, logicalType: date}")  # fmt: skip
    files.under(columns)
    broken = pa.array([b"ok", b"x\xff", b"", None, b"ok", b"ok", b"ok"])
    parquet(files, {
        "d": pa.array([0, 0, 0, None, 0, 0, 2**30], pa.int32()).cast(pa.date32()),
        "n": pa.array([1, 2, 3_000_000_000, None, 5, 6, 7], pa.int64()),
        "x": pa.array([0.1, 0.5, 0.5, None, float("nan"), 0.5, 0.5], pa.float32()),
        "p": pa.array([Decimal("1.2500"), None, None, None, None, Decimal("1.2345"), None], pa.decimal128(10, 4)),
        "s": pa.Array.from_buffers(pa.string(), 7, broken.buffers()),
    }, row_group_size=2)  # fmt: skip
    result = files.ingest("a.parquet", "parquet")
    widened = 0.10000000149011612  # what float32 has for 0.1
    assert files.stored("_position", "n", "x", "p", "s", "d") == [
        (1, 1, widened, Decimal("1.25"), "ok", datetime.date(1970, 1, 1)), (4, None, None, None, None, None)]  # fmt: skip
    assert (result.rows_written, result.rows_refused) == (2, 5)
    assert [(position, column, rule) for position, column, rule, _ in files.refused()] == [
        (2, "s", "utf8"), (3, "n", "type"), (5, "x", "type"), (6, "p", "type"), (7, "d", "type")]  # fmt: skip


def test_a_decimal_of_many_digits_is_not_rounded(files):
    files.under(('{name: p, logicalType: number, physicalType: "decimal(38,2)"}',
                 '{name: q, logicalType: number, physicalType: "decimal(38,0)"}'))  # fmt: skip
    values = [Decimal("1.2500"), Decimal("1.239"), Decimal("-0.10"), None]
    parquet(files, {"p": pa.array(values, pa.decimal128(38, 20)),
                    "q": pa.array([Decimal("100"), None, None, Decimal("0.5")], pa.decimal128(38, 1))})  # fmt: skip
    files.ingest("a.parquet", "parquet")
    assert files.stored("p", "q") == [(Decimal("1.25"), Decimal("100")), (Decimal("-0.10"), None)]
    assert [(position, column, rule) for position, column, rule, _ in files.refused()] == [(2, "p", "type"), (4, "q", "type")]


def test_parquet_timestamps_of_every_unit_are_instants(files):
    """Also nanoseconds, which pandas writes and Spark has no type for."""
    moments = [datetime.datetime(2024, 1, 13, 8), datetime.datetime(2024, 3, 10, 2, 30)]  # the second is not, in New York
    nanos = [1_705_132_800_000_001_000, 1_705_132_800_000_001_001]
    files.under(MOMENT, timestampZone="America/New_York")
    identity = pa.array([1, 2])
    (files.folder / "in").mkdir()
    parquet(files, {"id": identity, "at": pa.array(moments, pa.timestamp("us"))}, "in/a.parquet")
    parquet(files, {"id": identity, "at": pa.array(moments, pa.timestamp("ms", "UTC"))}, "in/b.parquet")
    parquet(files, {"id": identity, "at": pa.array(nanos, pa.timestamp("ns", "UTC"))}, "in/c.parquet")
    parquet(files, {"id": identity, "at": pa.array(nanos, pa.timestamp("ns"))}, "in/d.parquet")
    files.ingest("in", "parquet")
    table = read_table(files.spark, files.recipe("x").lake, files.contract)
    found = [tuple(row) for row in table.orderBy("_source", "_position").selectExpr("_position", "unix_micros(at)").collect()]
    assert found == [
        (1, micros("2024-01-13T13:00Z")),
        (1, micros("2024-01-13T08:00Z")), (2, micros("2024-03-10T02:30Z")),
        (1, micros("2024-01-13T08:00:00.000001Z")),
        (1, micros("2024-01-13T13:00:00.000001Z")),
    ]  # fmt: skip
    assert [(position, column, rule) for position, column, rule, _ in files.refused()] == [(2, "at", "type")] * 3


def test_parquet_columns_of_another_kind_are_named_with_their_file(files):
    files.under(MOMENT)
    moments = pa.array([datetime.datetime(2024, 1, 13)], pa.timestamp("us"))
    cases = [({"id": pa.array(["1"]), "at": moments}, r"a\.parquet: column 'id' holds string, the contract says bigint"),
             ({"id": pa.array([1]), "at": moments}, r"a\.parquet: column 'at' holds timestamps without a zone"),
             ({"id": pa.array([1], pa.uint64()), "at": moments}, r"column 'id' holds decimal\(20,0\), the contract says bigint"),
             ({"id": pa.array([1])}, r"a\.parquet: the header lacks at")]  # fmt: skip
    for columns, message in cases:
        parquet(files, columns)
        with pytest.raises(InputError, match=message):
            files.ingest("a.parquet", "parquet")
    files.under(NOTES[:1], extraColumns="ignore")
    parquet(files, {"id": pa.array([1]), "t": pa.array([1], pa.time64("ns"))})
    with pytest.raises(InputError, match=r"a\.parquet cannot be read by Spark: .*TIME\(NANOS"):
        files.ingest("a.parquet", "parquet")


TEXTS = {"[1, 2.5]": True, "[1e0,-2E+0]": True, "": None, "[1]": "shape", "[]": "shape", "[1,null]": "type", "[1,1e999]": "type",
         "[01,2]": "type", "[1,2,]": "type", "[1 2]": "type", "1": "type", "[1,2]]": "type", "[[1,2]]": "type"}  # fmt: skip


def test_arrays_are_read_from_the_texts_of_csv(files):
    files.under(VECTORS)
    whole = {"[3,4]": True, "[1,2.5]": "type", "[1,3000000000]": "type"}
    rows = [(text, "[3,4]", said) for text, said in TEXTS.items()] + [("[1,2]", text, said) for text, said in whole.items()]
    files.write("a.csv", "v,w\n" + "".join(f'"{v}","{w}"\n' for v, w, _ in rows))
    files.ingest("a.csv")
    assert files.stored("v", "w") == [([1.0, 2.5], [3, 4]), ([1.0, -2.0], [3, 4]), (None, [3, 4]), ([1.0, 2.0], [3, 4])]
    expected = [(number, said) for number, (_, _, said) in enumerate(rows, start=2) if isinstance(said, str)]
    assert [(position, rule) for position, _, rule, _ in files.refused()] == expected


def test_arrays_are_read_from_json_and_from_lists_of_parquet(files):
    files.under(VECTORS[:1])
    files.write("a.jsonl", "".join(f'{{"v":{text}}}\n' for text in
                                   ("[1, 2.5]", '"[1,2]"', '[1,"2"]', "[]", "null", "[1,null]", "[[1,2]]", '{"a":1}')))  # fmt: skip
    lists = [[1.0, 2.5], [1.0], None, [1.0, None], [1.0, float("nan")], [0.1, 1e300]]
    parquet(files, {"v": pa.array(lists, pa.list_(pa.float64()))}, "b.parquet")
    files.ingest("a.jsonl", "json")
    files.ingest("b.parquet", "parquet")
    assert files.stored("_position", "v") == [(1, [1.0, 2.5]), (5, None), (1, [1.0, 2.5]), (3, None)]
    rules = [(position, rule) for position, _, rule, _ in files.refused()]
    assert rules[:6] == [(2, "type"), (3, "type"), (4, "shape"), (6, "type"), (7, "type"), (8, "type")]
    assert rules[6:] == [(2, "shape"), (4, "type"), (5, "type"), (6, "type")]
    parquet(files, {"v": pa.array([[[1.0, 2.0]]])}, "c.parquet")
    with pytest.raises(InputError, match=r"c\.parquet: column 'v' holds array<array<double>>, the contract says array<float>"):
        files.ingest("c.parquet", "parquet")


def test_a_folder_of_images_is_a_table_of_paths_and_bytes(files):
    files.under(("{name: path, logicalType: string, primaryKey: true}",
                 "{name: image, logicalType: string, physicalType: binary}"))  # fmt: skip
    jpeg, png = b"\xff\xd8\xff\xe0abc", b"\x89PNG\r\n\x1a\n123"
    files.write("img/a.jpg", jpeg)
    files.write("img/sub dir/ü 100%#?.png", png)
    files.write("img/note.txt", b"hello")
    files.ingest("img", "images")
    assert [(path, bytes(image)) for path, image in files.stored("path", "image")] == [
        ("a.jpg", jpeg), ("sub dir/ü 100%#?.png", png)]  # fmt: skip
    assert files.refused() == [(1, None, "image", "note.txt")]
    files.write("img/x:y.png", png)
    with pytest.raises(InputError, match=r"img/x:y\.png: Hadoop takes a colon"):
        files.ingest("img", "images")


JSON = {  # a line, and what it says; the rule where it is refused
    r'{"note":"\ud83d\ude00"}': "😀", r'{"note":"\\ud800"}': "\\ud800", r'{"note":"\ud800"}': "utf8",
    "{'note':'x'}": "json", '{"id":NaN}': "json", '{"note":"x"} ,': "json", '{"note":"\\u0000"}': "\0",
    '{"note":"a","note":"b"}': "repeated_key", '\ufeff{"note":"x"}': "json", '{"id":1.0}': "type", "{}": None,
}  # fmt: skip


def test_a_json_line_is_taken_as_json_has_it_and_in_no_other_way(files):
    files.under(NOTES)
    files.write("a.jsonl", "\ufeff" + "{}\n" + "".join(text + "\n" for text in JSON))
    files.ingest("a.jsonl", "json")
    rules = {"utf8", "json", "repeated_key", "type"}
    said = list(enumerate(JSON.values(), start=2))
    assert files.stored("_position", "note") == [(1, None), *((number, text) for number, text in said if text not in rules)]
    assert [(position, rule) for position, _, rule, _ in files.refused()] == [(n, text) for n, text in said if text in rules]
