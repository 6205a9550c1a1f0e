"""Contracts and recipes inferred from files: read back by our own reader, and used to ingest those files."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from check import main as check

from etl.infer import infer_table, sample_files, write_contract, write_recipe
from lakering.errors import InputError, SettingError
from recipes import read_recipe
from schemas import read_contract

ROOT = Path(__file__).resolve().parents[2]
FLIGHTS = ROOT / "data" / "nycflights13"


def write(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def infer(files, *, max_rows=1000, leave_out_bad_names=False, **options):
    return infer_table("t", sample_files(str(files), max_rows=max_rows, **options), leave_out_bad_names=leave_out_bad_names)


def infer_csv(folder, content, **options):
    return infer(write(folder, "t.csv", content), **options)


def contract_of(folder, table):
    (folder / "t.yaml").write_text(write_contract(table), encoding="utf-8")
    return read_contract(folder / "t.yaml")


def column(table, name):
    return next(found for found in table.columns if found.name == name)


def types(contract):
    return {found.name: found.type for found in contract.source_columns}


# --- round trips


@pytest.mark.skipif(not FLIGHTS.exists(), reason="the flights are not here (make data)")
@pytest.mark.parametrize("name", ["flights", "weather", "planes", "airports", "airlines"])
def test_the_flights_contracts_are_inferred_as_they_were_written_by_hand(tmp_path, name):
    table = infer(FLIGHTS / f"{name}.csv", max_rows=20000)
    inferred, by_hand = contract_of(tmp_path, table), read_contract(ROOT / "schemas" / f"{name}.yaml")
    differing = {"weather": {"wind_dir": "int"}}.get(name, {})  # degrees, which the sample shows as whole numbers alone
    assert types(inferred) == types(by_hand) | differing
    assert inferred.dialect.null_tokens == by_hand.dialect.null_tokens or set(table.tokens) < {"", "NA"}
    assert inferred.event_time in (by_hand.event_time, "time_hour")
    hand_key = {
        "flights": None,
        "weather": ("origin", "time_hour"),
        "planes": ("tailnum",),
        "airports": ("faa",),
        "airlines": ("carrier",),
    }
    assert hand_key[name] in (None, inferred.key)


# --- how files are written


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found(tmp_path, delimiter):
    rows = [["id", "text", "number"], *([str(i), f"a,b;c {i}" if delimiter == "|" else f"w{i}", f"{i}.5"] for i in range(9))]
    table = infer_csv(tmp_path, "".join(delimiter.join(row) + "\n" for row in rows))
    assert table.sample.dialect.delimiter == delimiter
    assert contract_of(tmp_path, table).dialect.delimiter == delimiter
    assert [found.type for found in table.columns] == ["int", "string", "double"]


@pytest.mark.parametrize(
    ("cell", "quote", "escape", "text"),
    [('"a,""b"""', '"', '"', 'a,"b"'), ("'it''s, so'", "'", "'", "it's, so"), (r'"a \"b\", c"', '"', "\\", 'a "b", c')],
)
def test_quote_and_escape_are_found(tmp_path, cell, quote, escape, text):
    table = infer_csv(tmp_path, "id,text,more\n" + "".join(f"{i},{cell},x\n" for i in range(5)))
    contract = contract_of(tmp_path, table)
    assert (contract.dialect.quote, contract.dialect.escape) == (quote, escape)
    assert column(table, "text").examples == (text,)


@pytest.mark.parametrize(
    ("ending", "pack"), [("gz", gzip.compress), ("zst", lambda content: pa.compress(content, "zstd", asbytes=True))]
)
def test_compressed_files_are_read(tmp_path, ending, pack):
    write(tmp_path, f"t.csv.{ending}", pack(b"id,n\n1,2.5\n2,3\n"))
    table = infer(tmp_path / f"t.csv.{ending}")
    assert [found.type for found in table.columns] == ["int", "double"]
    assert table.sample.is_whole


def test_a_file_that_is_no_utf_8_gets_a_guess_at_its_encoding(tmp_path):
    latin = infer_csv(tmp_path, "id,city\n1,Köln\n2,Orléans\n".encode("latin-1"))
    assert '{property: encoding, value: "ISO-8859-1"}' in write_contract(latin)
    assert column(latin, "city").examples == ("Köln", "Orléans")
    windows = infer_csv(tmp_path, "id,city\n1,it’s\n".encode("windows-1252"))
    assert '{property: encoding, value: "windows-1252"}' in write_contract(windows)
    broken = infer_csv(tmp_path, "id,city\n1,Köln\n2,Zürich\n".encode() + b"3,K\xf6ln\n")
    assert broken.sample.dialect.encoding == "UTF-8", "one bad line makes no other encoding"
    with pytest.raises(InputError, match=r"UTF-16, which is not read\n  next: write it as UTF-8"):
        infer_csv(tmp_path, "id\n1\n".encode("utf-16"))


def test_line_ends_in_quotes_make_a_file_multi_line_and_a_lone_quote_does_not(tmp_path):
    several = infer_csv(tmp_path, "id,note\n" + "".join(f'{i},"line one\nline two"\n' for i in range(20)) + "20,plain\n")
    assert "{property: multiLine, value: true}" in write_contract(several)
    assert column(several, "note").examples[0] == "line one\nline two"
    assert several.sample.num_rows == 21
    lone = infer_csv(
        tmp_path, "id,note\n" + "".join(f"{i},x\n" for i in range(30)) + '30,"lone\n' + "".join(f"{i},y\n" for i in range(31, 40))
    )
    assert not lone.sample.dialect.multi_line
    assert lone.sample.faults == {"quote": 1}
    assert "# 1 more could not be taken apart and would be refused: quote" in write_contract(lone)


def test_a_sample_is_the_first_rows_of_first_last_and_middle_files(tmp_path):
    for number in range(10):
        write(tmp_path, f"f{number}.csv", "id,n\n" + "".join(f"{number * 100 + row},{row}\n" for row in range(50)))
    sample = sample_files(str(tmp_path / "*.csv"), max_rows=20)
    assert [Path(path).name for path in sample.paths] == ["f0.csv", "f2.csv", "f4.csv", "f7.csv", "f9.csv"]
    assert sample.columns["id"].texts[:5] == ["0", "1", "2", "3", "200"]
    assert (sample.num_rows, sample.is_whole) == (20, False)
    assert write_contract(infer_table("t", sample)).startswith("# Inferred from the first 20 rows of 5 of 10 files: ")
    whole = sample_files(str(tmp_path / "f1.csv"), max_rows=50)
    assert (whole.num_rows, whole.is_whole) == (50, True)


# --- nulls, types and what is told of them


def test_null_tokens_are_those_that_a_column_of_numbers_or_times_shows(tmp_path):
    table = infer_csv(tmp_path, "n,country,text,empty\n" + "1,NA,a,\nNA,DE,-,\n-,NA,b,\n2,FR,c,NULL\n")
    assert table.tokens == {"": ["empty"], "NA": ["n"], "NULL": ["empty"], "-": ["n"]}
    assert contract_of(tmp_path, table).dialect.null_tokens == ("", "NA", "NULL", "-")
    assert column(table, "n").type == "int"
    assert column(table, "empty").notes == ("only nulls were seen, so its type is not known: string, until it is",)
    namibia = infer_csv(tmp_path, "n,country\n1,NA\n2,DE\n3,FR\n")
    assert namibia.tokens == {}
    assert column(namibia, "country").required
    assert column(namibia, "country").notes == ("'NA' are 1 of 3 values: if it means null, add it to nullTokens",)


def test_whole_numbers_get_the_type_that_leaves_them_room(tmp_path):
    table = infer_csv(tmp_path, "small,large,huge,code\n7,300000000,12345678901234567890,007\n8,5,22345678901234567890,008\n")
    assert [found.type for found in table.columns] == ["int", "bigint", "string", "string"]


@pytest.mark.parametrize(
    ("values", "note"),
    [
        (["12.50", "3.00"], "two decimals everywhere: if it is money, physicalType: decimal(10,2) is exact"),
        (["1.0", "2.0"], "whole numbers written as 5.0"),
        ([*map(str, range(30)), "n.a."], "bigint but for 1 of 31 values, such as 'n.a.'"),
        (["1,5", "2"], "numbers with a decimal comma: to use it so, add a column with {property: derived, value: \"cast(replace(x, ',', '.') as double)\"}"),
        ([" 1", " 2"], "bigint with spaces around it, which is refused"),
        (["01/13/2024", "02/01/2024"], "dates written as M/d/yyyy: to use it so"),
        (["01/02/2024", "02/01/2024"], "dates written as M/d/yyyy or d/M/yyyy, which no day after the twelfth tells"),
    ],
)  # fmt: skip
def test_what_a_column_nearly_is_is_told(tmp_path, values, note):
    content = "x;i\n" + "".join(f"{value};{i}\n" for i, value in enumerate(values))
    assert note in " ".join(column(infer_csv(tmp_path, content), "x").notes)


def test_what_notes_tell_to_derive_can_be_derived(tmp_path):
    table = infer_csv(tmp_path, "i;comma;space;day;at\n1;1,5; 1;13/1/2024;13/1/2024 8:00\n2;2,5; 2;14/1/2024;2024-01-01\n")
    text = write_contract(table)
    for number, name in enumerate(("comma", "space", "day")):
        expression = column(table, name).notes[0].split('value: "')[1].removesuffix('"}')
        kind = {"comma": "number", "space": "integer", "day": "date"}[name]
        text += f'      - {{name: d{number}, logicalType: {kind}, customProperties: [{{property: derived, value: "{expression}"}}]}}\n'
    (tmp_path / "t.yaml").write_text(text)
    assert len(read_contract(tmp_path / "t.yaml").derived_columns) == 3


@pytest.mark.parametrize(
    ("values", "pattern", "zone"),
    [
        (["2024-01-01T08:00:00Z"], None, None),
        (["2024-01-01T08:00:00Z", "2024-01-01T08:00:00"], None, "UTC"),
        (["13/1/2024 8:00", "1/2/2024 18:30"], "d/M/yyyy H:mm", "UTC"),
        (["1/13/2024 8:00:00 AM", "1/14/2024 12:30:00 PM"], "M/d/yyyy h:mm:ss a", "UTC"),
    ],
)
def test_how_timestamps_are_written_is_told_to_the_reader(tmp_path, values, pattern, zone):
    table = infer_csv(tmp_path, "at,i\n" + "".join(f"{value},{i}\n" for i, value in enumerate(values)))
    contract = contract_of(tmp_path, table)
    assert (contract.dialect.timestamp_format, contract.dialect.timestamp_zone) == (pattern, zone)
    assert (types(contract)["at"], contract.event_time) == ("timestamp", "at")
    assert ("A GUESS" in write_contract(table)) == (zone is not None)


def test_of_two_timestamps_none_is_taken_for_the_event_time(tmp_path):
    table = infer_csv(tmp_path, "start,end\n" + "2024-01-01T08:00:00Z,2024-01-01T09:00:00Z\n" * 2)
    assert contract_of(tmp_path, table).event_time is None
    assert "# - {property: eventTime, value: start}  # when the row's event was: one of start, end" in write_contract(table)


def test_ranges_and_short_sets_are_rules_to_be_uncommented(tmp_path):
    rows = "".join(f"{i},{i / 8 - 3},{['north', 'no', 'NO', 'ü: #'][i % 4]}\n" for i in range(40))
    table = infer_csv(tmp_path, "i,x,zone\n" + rows)
    text = (
        write_contract(table)
        .replace("        # logicalTypeOptions", "        logicalTypeOptions")
        .replace("        # quality", "        quality")
    )
    (tmp_path / "t.yaml").write_text(text)
    rules = {
        found.name: {rule.name: rule.argument for rule in found.rules} for found in read_contract(tmp_path / "t.yaml").columns
    }
    assert rules == {"i": {"minimum": 0, "maximum": 39}, "x": {"minimum": -3.0, "maximum": 1.875},
                     "zone": {"validValues": ("NO", "no", "north", "ü: #")}}  # fmt: skip


def test_nothing_in_the_data_breaks_the_contract(tmp_path):
    nasty = [
        "a: b # c",
        "- x",
        "{",
        '"',
        "'",
        "\u2028x\u2029",
        "\x85",
        "\u202e",
        "\\n",
        "😀",
        "%",
        "@",
        "\t",
        "\x00\x07",
        "x" * 500,
        "\ud7ff\ufeff",
    ]
    rows = "".join(json.dumps({"text": text, "i": i}, ensure_ascii=True) + "\n" for i, text in enumerate(nasty * 3))
    table = infer(write(tmp_path, "t.jsonl", rows))
    text = write_contract(table)
    (tmp_path / "t.yaml").write_text(text, encoding="utf-8")
    assert types(read_contract(tmp_path / "t.yaml")) == {"text": "string", "i": "int"}
    some = infer(write(tmp_path, "t.jsonl", rows.replace("x" * 500, "y")))
    opened = write_contract(some).replace("        # quality", "        quality")
    (tmp_path / "t.yaml").write_text(opened, encoding="utf-8")
    (rule,) = read_contract(tmp_path / "t.yaml").require("text", "test").rules
    assert set(rule.argument) == {*nasty[:14], "y", nasty[15]}


# --- keys


@pytest.mark.parametrize(
    ("content", "key", "sure"),
    [
        ("amount,trip_id,at\n" + "".join(f"{i},t{i},2024-01-01T00:{i:02}:00Z\n" for i in range(40)), ("trip_id",), "LIKELY"),
        (
            "at,device_id,v\n" + "".join(f"2024-01-01T00:{i // 4:02}:00Z,d{i % 4},{i % 7}.5\n" for i in range(200)),
            ("at", "device_id"),
            "LIKELY",
        ),
        ("name,v\n" + "".join(f"n{i},1\n" for i in range(9)), ("name",), "POSSIBLE"),
        ("at,v\n" + "".join(f"2024-01-01T00:{i:02}:00Z,1\n" for i in range(9)), ("at",), "DOUBTFUL"),
        ("x,y\n" + "".join(f"{i}.25,{i}.75\n" for i in range(9)), None, None),
        ("id,v\n1,a\n1,b\n,b\n", None, None),
        ("id,v\n1,a\n1,a\n2,b\n", ("id",), "LIKELY"),
    ],
)
def test_the_key_is_the_likeliest_smallest_set_that_is_unique(tmp_path, content, key, sure):
    table = infer_csv(tmp_path, content)
    assert (table.key.columns if table.key else None) == key
    assert contract_of(tmp_path, table).key == (key or ())
    assert (table.key.sure.split(":")[0] if table.key else None) == sure
    if key is None:
        assert "# key: none. No set of up to four columns" in write_contract(table)


def test_a_key_of_a_part_of_the_rows_is_told_as_such(tmp_path):
    table = infer_csv(tmp_path, "id,v\n" + "".join(f"{i},1\n" for i in range(100)), max_rows=50)
    assert table.key.sure.endswith("Rows beyond the sample may repeat it")


# --- names and files that cannot be


def test_names_that_no_table_takes_are_refused_with_ones_that_it_would_take(tmp_path):
    content = "id,Trip Distance,fare ($),2nd,Id,été\n1,2,3,4,5,6\n2,2,3,4,5,6\n"
    with pytest.raises(InputError) as caught:
        infer_csv(tmp_path, content)
    assert caught.value.message.startswith(f"{tmp_path}/t.csv:1: the header holds names that no table takes")
    assert "'Trip Distance' (trip_distance), 'fare ($)' (fare), '2nd' (c_2nd), 'Id' (id_2), 'été' (t)" in caught.value.message
    assert caught.value.next_step is not None
    assert "sed -i '1s/.*/id,trip_distance,fare,c_2nd,id_2,t/' FILE" in caught.value.next_step
    table = infer_csv(tmp_path, content, leave_out_bad_names=True)
    assert types(contract_of(tmp_path, table)) == {"id": "int"}
    assert contract_of(tmp_path, table).dialect.extra_columns == "ignore"
    assert "# left out: Trip Distance: its name is none here; such as 'trip_distance'" in write_contract(table)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "1,2.5\n2,3.5\n", r"t.csv:1: the header looks like data, not like names: '1', '2.5'"),
        ("t.csv", ",a\n0,1\n", r"t.csv:1: the header has no name for column 1 of 2"),
        ("t.csv", "a,b,a\n0,1,2\n", r"t.csv:1: the header names 'a' twice"),
        ("t.csv", "a,b\n", r"t.csv has no rows"),
        ("t.csv", "a,b,c\n1,2\n1,2\n1,2,3\n", r"2 of 3 records do not have the header's 3 cells"),
        ("t.json", '[\n{"a": 1},\n{"a": 2}\n]\n', r"3 of 4 lines are no JSON objects; first line 1: '\['"),
        ("t.parquet", "PAR1 not", r"t.parquet cannot be read as Parquet"),
        ("t.csv.gz", "not gzip at all", r"t.csv.gz cannot be read"),
        ("t.dat", "a,b\n1,2\n", r"the format of '.dat' is not known"),
    ],
)
def test_what_is_no_table_is_refused_with_its_reason(tmp_path, name, content, message):
    path = write(tmp_path, name, content)
    with pytest.raises((InputError, SettingError), match=message):
        infer(path)


def test_files_that_differ_are_refused_unless_only_in_order(tmp_path):
    write(tmp_path, "a.csv", "id,n\n1,2.5\n")
    write(tmp_path, "b.csv", "n,id\n3.5,2\n")
    assert infer(tmp_path / "*.csv").sample.columns["n"].texts == ["2.5", "3.5"]
    write(tmp_path, "c.csv", "id,m\n3,1\n")
    with pytest.raises(
        InputError, match=r"c.csv:1: the header lacks n and has m beyond that of .*a.csv: one contract cannot hold both"
    ):
        infer(tmp_path / "*.csv")
    write(tmp_path, "d.jsonl", "{}\n")
    with pytest.raises(InputError, match="files of several formats"):
        infer(tmp_path)


# --- JSON and Parquet


def test_json_tells_numbers_from_texts_and_leaves_nested_values_out(tmp_path):
    lines = [
        {
            "n": 1,
            "t": "1",
            "both": 1,
            "list": [1, "a"],
            "vector": [1, 2],
            "flag": True,
            "none": None,
            "big": 12345678901234567890,
            "Bad name": 1,
        }
    ]
    lines += [{"n": 2.50, "t": "2", "both": "x", "list": [], "vector": [0.5, 2], "flag": False, "none": None, "big": 2}] * 2
    rows = "".join(json.dumps(line) + "\n" for line in lines) + '{"n": 1, "n": 2}\nno json\n'
    with pytest.raises(InputError, match=r"t.jsonl: holds names that no table takes.*'Bad name' \(bad_name\)"):
        infer(write(tmp_path, "t.jsonl", rows))
    table = infer(tmp_path / "t.jsonl", leave_out_bad_names=True)
    contract = contract_of(tmp_path, table)
    assert types(contract) == {
        "n": "double",
        "t": "string",
        "both": "string",
        "vector": "array<double>",
        "flag": "boolean",
        "none": "string",
        "big": "decimal(38,0)",
    }
    assert table.sample.faults == {"repeated_key": 1, "json": 1}
    assert contract.dialect.extra_columns == "ignore"
    assert column(table, "t").notes == ("written in quotes: as bigint these rows would be refused",)
    assert column(table, "both").notes[0].startswith("values of several kinds (2 strings, 1 numbers)")
    assert "# left out: list: its values are objects, or lists of other than numbers" in write_contract(table)


def test_parquet_keeps_its_types(tmp_path):
    rows = 6
    columns = {
        "id": pa.array(range(rows), pa.int64()), "small": pa.array([1, None] * 3, pa.int16()), "price": pa.array([1, 2] * 3, pa.decimal128(9, 2)),
        "at": pa.array([0, 1, 2, 3, 4, 5], pa.timestamp("ns")), "word": pa.array(["a", "b"] * 3).dictionary_encode(), "ratio": pa.array([0.5, float("nan")] * 3),
        "image": pa.array([b"x"] * rows), "vector": pa.array([[1.0, 2.0]] * rows, pa.list_(pa.float32())), "day": pa.array([1] * rows, pa.date32()),
        "thing": pa.array([{"x": 1}] * rows),
    }  # fmt: skip
    for name in ("a", "b"):
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    table = infer(tmp_path / "*.parquet")
    contract = contract_of(tmp_path, table)
    assert types(contract) == {"id": "bigint", "small": "smallint", "price": "decimal(9,2)", "at": "timestamp", "word": "string", "ratio": "double",
                               "image": "binary", "vector": "array<float>", "day": "date"}  # fmt: skip
    assert contract.require("vector", "test").shape == (2,)
    assert contract.dialect.timestamp_zone == "UTC"
    assert column(table, "ratio").notes == ("6 values are NaN or infinite: rows with them are refused",)
    assert not contract.require("small", "test").required
    assert "thing" in table.left_out


# --- the recipe and the job


@pytest.mark.parametrize(
    "content",
    [
        "id,at,zone,fare,paid\n" + "".join(f"{i},2024-01-{i % 28 + 1:02}T08:00:00Z,z{i % 3},{i / 4},true\n" for i in range(200)),
        "name,kind,tall\n" + "".join(f"n{i},k{i % 4},{'true' if i % 3 else 'false'}\n" for i in range(50)),
        "word,kind\n" + "".join(f"w{i % 10},k{i % 4}\n" for i in range(50)),
    ],
)
def test_a_starter_recipe_is_right_once_it_is_uncommented(tmp_path, content, capsys):
    write(tmp_path, "data/t.csv", content)
    table = infer(tmp_path / "data" / "t.csv")
    write(tmp_path, "schemas/t.yaml", write_contract(table))
    text = write_recipe(table, str(tmp_path / "recipes" / "t.yaml"), str(tmp_path / "schemas" / "t.yaml"))
    path = write(tmp_path, "recipes/t.yaml", text)
    assert check(["--recipe", str(path)]) == 0, capsys.readouterr().err
    assert "no examples: it can be ingested" in capsys.readouterr().out
    subprocess.run(["sed", "-i", "/^# examples:/,$ s/^# //", str(path)], check=True)
    assert check(["--recipe", str(path)]) == 0, capsys.readouterr().err
    assert "model wide_and_deep" in capsys.readouterr().out
    recipe = read_recipe(path)
    assert recipe.resolve(recipe.settings.tables["t"].files[0].files) == str(tmp_path / "data" / "t.csv")


def run(*flags, cwd):
    command = [sys.executable, str(ROOT / "etl" / "jobs" / "infer_contract.py"), *map(str, flags)]
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120
    )


def test_the_job_writes_new_files_alone_and_the_standards_own_lint_passes_them(tmp_path):
    write(tmp_path, "data/t.csv", "id,n\n1,2\n2,NA\n")
    done = run("--files", "data/*.csv", "--table", "t", "--out", "schemas/t.yaml", "--recipe", "recipes/t.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "then  make check RECIPE=recipes/t.yaml" in done.stderr
    assert "contract: ../schemas/t.yaml" in (tmp_path / "recipes" / "t.yaml").read_text()
    assert 'files: "../data/*.csv"' in (tmp_path / "recipes" / "t.yaml").read_text()
    lint = subprocess.run(
        [Path(sys.executable).with_name("datacontract"), "lint", tmp_path / "schemas" / "t.yaml"], capture_output=True, text=True
    )
    assert lint.returncode == 0, lint.stdout
    again = run("--files", "data/*.csv", "--table", "t", "--out", "schemas/t.yaml", cwd=tmp_path)
    assert again.returncode == 2
    assert "schemas/t.yaml exists, and is not written over" in again.stderr
    plain = run("--files", "data/*.csv", "--table", "t", cwd=tmp_path)
    assert plain.stdout == (tmp_path / "schemas" / "t.yaml").read_text()
