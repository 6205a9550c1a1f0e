"""What a batch does with good rows, bad rows, and rows that it has seen."""

from __future__ import annotations

import datetime
from decimal import Decimal

import pytest

import etl.tables.write
from etl.sources.files import list_files
from lakering.errors import InputError, RefusedError, SettingError
from tests.etl.conftest import GOOD, HEADER


def line(id: str = "1", day: str = "2024-01-01", at: str = "2024-01-01T08:00:00Z", fare: str = "10.5", price: str = "1.25",
         zone: str = "north", paid: str = "true", note: str = "hello") -> str:  # fmt: skip
    return f"{day},{id},{at},{fare},{price},{zone},{paid},{note}"


def test_a_good_row_arrives_typed_with_its_provenance(trips):
    result = trips.csv(line())
    (row,) = trips.rows()
    assert result.rows_written == 1
    assert (row["day"], row["id"], row["fare"], row["price"]) == (datetime.date(2024, 1, 1), 1, 10.5, Decimal("1.25"))
    assert (row["zone"], row["paid"], row["note"]) == ("north", True, "hello")
    assert row["_source"].startswith(f"file:{trips.folder}/a.csv#")
    assert row["_position"] == 2
    assert len(row["_content_hash"]) == 16


REFUSED = {
    "wrong type": (line(fare="ten"), "fare", "type", "ten"),
    "a number with a suffix": (line(fare="12d"), "fare", "type", "12d"),
    "not a number": (line(fare="NaN"), "fare", "type", "NaN"),
    "infinite": (line(fare="1e999"), "fare", "type", "1e999"),
    "a leading zero": (line(id="007"), "id", "type", "007"),
    "a plus sign": (line(id="+5"), "id", "type", "+5"),
    "a fraction for an integer": (line(id="5.0"), "id", "type", "5.0"),
    "an integer too large": (line(id="3000000000"), "id", "type", "3000000000"),
    "a year for a date": (line(day="2013"), "day", "type", "2013"),
    "a day that does not exist": (line(day="2023-02-30"), "day", "type", "2023-02-30"),
    "a time without a zone": (line(at="2024-01-01T08:00:00"), "at", "type", "2024-01-01T08:00:00"),
    "more digits than the decimal holds": (line(price="1.239"), "price", "type", "1.239"),
    "two zeros": (line(id="00"), "id", "type", "00"),
    "a negative zero": (line(id="-0"), "id", "type", "-0"),
    "a zero before more digits": (line(id="012345"), "id", "type", "012345"),
    "a zero behind the sign": (line(id="-012"), "id", "type", "-012"),
    "an integer that ends in a point": (line(id="5."), "id", "type", "5."),
    "space behind an integer": (line(id="5 "), "id", "type", "5 "),
    "a second of one digit": (line(at="2024-01-01T08:00:5.Z"), "at", "type", "2024-01-01T08:00:5.Z"),
    "space before the zone": (line(at="2024-01-01T08:00:5 Z"), "at", "type", "2024-01-01T08:00:5 Z"),
    "a minute of one digit": (line(at="2024-01-01T08:0:05.Z"), "at", "type", "2024-01-01T08:0:05.Z"),
    "a month of one digit": (line(at="2024-1-01T08:00:0.5Z"), "at", "type", "2024-1-01T08:00:0.5Z"),
    "not quite true": (line(paid="t"), "paid", "type", "t"),
    "below the minimum": (line(fare="-1"), "fare", "minimum", "-1"),
    "above the maximum": (line(fare="500.5"), "fare", "maximum", "500.5"),
    "not a member of the set": (line(zone="west"), "zone", "validValues", "west"),
    "too long": (line(note="x" * 21), "note", "maxLength", "x" * 21),
    "null in the key": (line(id="NA"), "id", "null", None),
    "null where it must not be": (line(at=""), "at", "null", None),
    "too few cells": ("2024-01-01,1", None, "num_cells", None),
    "too many cells": (line() + ",more", None, "num_cells", None),
    "an unclosed quote": (line(note='"hello'), None, "quote", None),
}


def test_each_bad_row_is_refused_with_its_reason_and_the_good_rows_beside_it_arrive(trips):
    lines = [line(id="100"), *(bad for bad, *_ in REFUSED.values()), line(id="101")]
    result = trips.csv(*lines)
    assert [row["id"] for row in trips.rows()] == [100, 101]
    assert (result.rows_read, result.rows_written, result.rows_refused) == (len(lines), 2, len(REFUSED))
    expected = [(number + 3, *reason) for number, (_, *reason) in enumerate(REFUSED.values())]
    assert trips.refused() == expected


def test_integers_of_any_length_are_taken(trips):
    ids = sorted(
        {sign * (10**power + step) for sign in (1, -1) for power in range(10) for step in (-1, 0, 1)} | {-(2**31), 2**31 - 1}
    )
    assert trips.csv(*(line(id=str(id)) for id in ids)).rows_written == len(ids)
    assert [row["id"] for row in trips.rows()] == ids


def test_quarantine_keeps_the_bytes_of_a_line_that_is_not_utf8(trips):
    bad = line(id="2").encode().replace(b"hello", b"h\xffllo")
    trips.write("a.csv", HEADER.encode() + GOOD.encode() + bad + b"\n")
    assert trips.ingest("a.csv").refused == {"utf8": 1}
    from etl.tables import read_quarantine

    (row,) = read_quarantine(trips.spark, trips.recipe("x").lake, "trips").collect()
    assert (bytes(row["raw"]), row["position"], row["raw_is_cut"]) == (bad, 3, False)


def test_quotes_line_ends_and_null_tokens_are_read_as_csv_writes_them(trips):
    trips.write(
        "a.csv", "\ufeff" + HEADER.replace("\n", "\r\n") + line(id="1", note='"a, ""b"""') + "\r\n\r\n" + line(id="2", note="NA")
    )
    assert trips.ingest("a.csv").rows_read == 2
    assert [row["note"] for row in trips.rows()] == ['a, "b"', None]
    assert [row["_position"] for row in trips.rows()] == [2, 4]


def test_columns_are_taken_by_name_whatever_their_order(trips):
    trips.write("in/a.csv", HEADER + line(id="1") + "\n")
    trips.write("in/b.csv", "note,paid,zone,price,fare,at,id,day\nhello,true,north,1.25,10.5,2024-01-01T08:00:00Z,2,2024-01-01\n")
    trips.ingest("in")
    first, second = trips.rows()
    assert first[:1] + first[2:8] == second[:1] + second[2:8]


def test_a_header_that_lacks_a_column_names_it(trips):
    with pytest.raises(InputError, match=r"a\.csv: the header lacks zone; did you mean 'zones'"):
        trips.csv(line(), header=HEADER.replace("zone", "zones"))


def test_an_extra_column_is_refused_or_by_policy_kept_out_with_a_count(trips, make_trips):
    header = HEADER.replace("note", "note,mood")
    with pytest.raises(InputError, match="the header has mood"):
        trips.csv(line() + ",fine", header=header)
    lenient = make_trips(table="      - {property: extraColumns, value: ignore}")
    assert lenient.csv(line() + ",fine", header=header).columns_ignored == {"mood": 1}
    assert "mood" not in lenient.rows()[0].asDict()


def test_line_numbers_hold_over_many_blocks(trips):
    lines = [line(id=str(number), note="x" * (number % 17)) for number in range(1, 3001)]
    bad = {100, 1500, 2999}
    lines = [text.replace("north", "west") if number + 2 in bad else text for number, text in enumerate(lines)]
    trips.spark.conf.set("spark.sql.files.maxPartitionBytes", "20000")
    try:
        trips.csv(*lines)
    finally:
        trips.spark.conf.unset("spark.sql.files.maxPartitionBytes")
    assert [position for position, *_ in trips.refused()] == sorted(bad)
    assert all(row["_position"] == row["id"] + 1 for row in trips.rows())


def test_the_same_file_again_is_known_and_read_again_adds_nothing(trips):
    trips.csv(line(id="1"), line(id="2"))
    again = trips.ingest("a.csv")
    assert (again.files, again.files_known, again.rows_read) == (1, 1, 0)
    reread = trips.ingest("a.csv", reread=True)
    assert reread.rows_written == 2, "the rows stand in the table under this very source and position"
    assert len(trips.rows()) == 2


def test_two_overlapping_files_leave_each_key_once(trips):
    trips.csv(line(id="1"), line(id="2"))
    result = trips.csv(line(id="2"), line(id="3"), line(id="4", day="2024-01-02"), name="b.csv")
    assert (result.rows_written, result.rows_already_present, result.rows_refused) == (2, 1, 0)
    assert [row["id"] for row in trips.rows()] == [1, 2, 3, 4]


def test_a_key_twice_in_a_file_is_present_when_alike_and_a_conflict_when_not(trips):
    result = trips.csv(line(id="1"), line(id="1"), line(id="1", fare="11"))
    assert (result.rows_written, result.rows_already_present, result.refused) == (1, 1, {"day, id: conflict": 1})
    assert [row["fare"] for row in trips.rows()] == [10.5]
    ((position, column, rule, value),) = trips.refused()
    assert (position, column, rule) == (4, "day, id", "conflict")
    assert value.startswith("stored from file:")
    assert value.endswith(":2")


def test_other_content_under_a_stored_key_is_a_conflict_and_the_first_stays(trips):
    trips.csv(line(id="1", fare="1"))
    result = trips.csv(line(id="1", fare="2"), line(id="2"), name="b.csv")
    assert (result.rows_written, result.refused) == (1, {"day, id: conflict": 1})
    assert [(row["id"], row["fare"]) for row in trips.rows()] == [(1, 1.0), (2, 10.5)]


def test_keys_of_dates_and_times_are_found_again_at_both_ends_of_what_they_hold(make_trips):
    column = "      - {{name: {0}, logicalType: {1}, primaryKey: true, primaryKeyPosition: {2}}}\n"
    trips = make_trips(columns=column.format("since", "date", 3) + column.format("moment", "timestamp", 4))
    header = HEADER.replace("\n", ",since,moment\n")
    keys = [("-2147483648", "0001-01-01,0001-01-01T00:00:00Z"), ("-1", "1969-12-31,1969-12-31T23:59:59.999999Z"),
            ("2147483647", "9999-12-31,9999-12-31T23:59:59.999999Z")]  # fmt: skip
    lines = [line(id=id) + "," + others for id, others in keys]
    assert trips.csv(*lines, header=header).rows_written == 3
    for number, text in enumerate(lines):  # each alone, so that it is all that the batch spans
        assert trips.csv(text, name=f"{number}.csv", header=header).rows_already_present == 1
        changed = trips.csv(text.replace("10.5", "11"), name=f"other-{number}.csv", header=header)
        assert changed.refused == {"day, id, since, moment: conflict": 1}
    assert trips.csv(*lines, name="again.csv", header=header).rows_already_present == 3


def test_files_of_other_keys_are_not_read_when_rows_are_put_in(trips):
    trips.csv(line(id="1"), line(id="9"))
    (file,) = (trips.folder / "lake/tables/trips").glob("day=*/*.parquet")
    file.unlink()  # who reads it, fails
    assert trips.csv(line(id="10"), name="b.csv").rows_written == 1
    with pytest.raises(Exception, match=file.name):
        trips.csv(line(id="5"), name="c.csv")


def test_files_before_and_behind_more_partitions_than_are_named_are_not_read(trips, monkeypatch):
    monkeypatch.setattr(etl.tables.write, "MAX_LITERALS", 1)
    trips.csv(line(id="1", day="2024-01-01"))
    trips.csv(line(id="2", day="2024-01-03"), name="b.csv")
    (file,) = (trips.folder / "lake/tables/trips").glob("day=2024-01-01/*.parquet")
    file.unlink()  # who reads it, fails
    result = trips.csv(
        line(id="1", day="2024-01-02"), line(id="2", day="2024-01-03"), line(id="3", day="2024-01-03"), name="c.csv"
    )
    assert (result.rows_written, result.rows_already_present) == (2, 1)


def test_csv_and_json_rows_of_the_same_content_are_the_same(trips):
    trips.csv(line(id="1", note="NA"), line(id="2", note='"a ""b"""'))
    trips.write("a.jsonl", '{"day":"2024-01-01","id":1,"at":"2024-01-01T08:00:00+00:00","fare":1.05e1,"price":1.25,"zone":"north","paid":true}\n'
                '{"note":"a \\"b\\"","day":"2024-01-01","id":2,"at":"2024-01-01T09:00:00+01:00","fare":10.5,"price":1.25,"zone":"north","paid":true}\n')  # fmt: skip
    result = trips.ingest("a.jsonl", "json")
    assert (result.rows_read, result.rows_already_present, result.rows_refused) == (2, 2, 0)


def test_bad_json_rows_are_refused_with_their_reason(trips):
    good = '"day":"2024-01-01","at":"2024-01-01T08:00:00Z","fare":10.5,"price":1.25,"zone":"north","paid":true'
    cases = [
        ("{" + good + ',"id":1}', None),
        ('{"id":2', (None, "json", None)),
        ("[1]", (None, "json", None)),
        ("null", (None, "json", None)),
        ("{" + good + ',"id":3,"id":4}', (None, "repeated_key", None)),
        ("{" + good + ',"id":"5"}', ("id", "type", "5")),
        ("{" + good + ',"id":6.5}', ("id", "type", "6.5")),
        ("{" + good + ',"id":7,"note":7}', ("note", "type", "7")),
        ("{" + good + ',"id":8,"mood":"fine"}', (None, "extra_column", "mood")),
        ("{" + good.replace("10.5", "1e400") + ',"id":9}', ("fare", "type", None)),
        ("{" + good + ',"id":null}', ("id", "null", None)),
        ("{" + good.replace("true", '"true"') + ',"id":10}', ("paid", "type", "true")),
        ("{" + good + ',"id":11} trailing', (None, "json", None)),
    ]
    trips.write("a.jsonl", "".join(text + "\n" for text, _ in cases))
    trips.ingest("a.jsonl", "json")
    assert [row["id"] for row in trips.rows()] == [1]
    found = {position: reason for position, *reason in trips.refused()}
    for position, (text, reason) in enumerate(cases, start=1):
        if reason:
            assert found[position][:2] == list(reason[:2]), text
            assert reason[2] is None or found[position][2] == reason[2], text


@pytest.mark.parametrize(("files", "message"), [("no.csv", "no.csv does not exist"), ("none/*.csv", "matches no file"),
                                                ("hollow", "is a folder without files"), ("empty.csv", "empty.csv is empty")])  # fmt: skip
def test_files_that_are_not_there_are_named(trips, files, message):
    (trips.folder / "hollow").mkdir()
    trips.write("empty.csv", "")
    with pytest.raises(InputError, match=message) as caught:
        trips.ingest(files)
    assert caught.value.exit_status == 2


def test_a_glob_a_folder_and_odd_names_are_read(trips):
    trips.write("in/a [1] {x} 100%.csv", HEADER + line(id="1") + "\n")
    trips.write("in/deep/é b.csv", HEADER + line(id="2") + "\n")
    trips.write("in/_SUCCESS", "ignored")
    assert trips.ingest("in/*.csv").files == 1
    assert trips.ingest("in").files == 2
    assert [row["id"] for row in trips.rows()] == [1, 2]


def test_too_many_refused_rows_publish_nothing_but_a_sample(make_trips):
    trips = make_trips(table="      - {property: maxRefusedShare, value: 0.1}")
    with pytest.raises(RefusedError, match=r"1 of 2 rows break the contract, more than the 10\.00%") as caught:
        trips.csv(line(id="1"), line(id="2", zone="west"))
    assert caught.value.exit_status == 4
    assert trips.refused() == [(3, "zone", "validValues", "west")]
    assert not (trips.folder / "lake/tables/trips/_delta_log").exists()


def test_a_new_nullable_column_is_taken_up_and_any_other_change_is_refused_with_both_sides(make_trips):
    make_trips().csv(line(id="1"))
    wider = make_trips(columns="      - {name: tip, logicalType: number}")
    wider.csv(line(id="2") + ",0.5", name="b.csv", header=HEADER.replace("note", "note,tip"))
    assert [row["tip"] for row in wider.rows()] == [None, 0.5]
    changed = make_trips()
    text = (changed.folder / "trips.yaml").read_text().replace("physicalType: int,", "physicalType: bigint,")
    (changed.folder / "trips.yaml").write_text(text)
    with pytest.raises(SettingError, match="id: table int not null, contract bigint not null"):
        changed.csv(line(id="3"), name="c.csv")


def test_a_derived_column_that_cannot_be_worked_out_refuses_its_row_alone(make_trips):
    derived = ("      - {name: per_id, logicalType: number, required: true, customProperties: "
               "[{property: derived, value: \"fare / (id - 1)\"}]}")  # fmt: skip
    trips = make_trips(columns=derived)
    result = trips.csv(line(id="1"), line(id="3"))
    assert result.refused == {"per_id: null": 1}
    assert [row["per_id"] for row in trips.rows()] == [5.25]


def test_a_file_that_two_sources_name_is_read_once(trips):
    trips.write("in/a.csv", HEADER + line(id="1") + "\n" + line(id="2", zone="west") + "\n")
    result = trips.ingest("in", "csv", "in/a.csv")
    assert (result.files, result.rows_read, result.rows_written) == (1, 2, 1)
    assert len(trips.refused()) == 1


def test_files_are_read_again_when_their_table_was_moved_away(trips):
    trips.csv(line(id="1"))
    (trips.folder / "lake/tables/trips").rename(trips.folder / "away")
    assert trips.ingest("a.csv").rows_written == 1
    assert [row["id"] for row in trips.rows()] == [1]


def test_a_line_end_inside_a_text_is_not_taken_for_its_end(trips):
    row = '{"day":"2024-01-01","at":"2024-01-01T08:00:00Z\\n","fare":1,"price":1.25,"zone":"north","paid":true,"id":1}'
    trips.write("a.jsonl", "\ufeff\t" + row + "\n\t\n")
    trips.ingest("a.jsonl", "json")
    assert trips.refused() == [(1, "at", "type", "2024-01-01T08:00:00Z\n")]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [("in/*", ["a.csv", "b.csv"]), ("in/[!a].csv", ["b.csv"]), ("in/**", ["a.csv", "b.csv", "c.csv"]),
     ("in/**/c.csv", ["c.csv"]), ("in/.h*", [".h.csv"]), ("in/?.csv", ["a.csv", "b.csv"])],
)  # fmt: skip
def test_globs_leave_hidden_files_out_and_know_their_signs(tmp_path, pattern, found):
    for name in ("a.csv", "b.csv", ".h.csv", ".a.csv.crc", "_SUCCESS", "deep/c.csv"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    assert [file.path.rsplit("/", 1)[1] for file in list_files(f"{tmp_path}/{pattern}")] == found


def test_a_dry_run_counts_what_an_ingest_then_does_and_writes_nothing(trips):
    trips.csv(line(id="1"), line(id="2", fare="1"))
    trips.write("b.csv", HEADER + "".join(text + "\n" for text in (
        line(id="1"), line(id="2", fare="2"), line(id="3"), line(id="3"), line(id="4", zone="west"))))  # fmt: skip
    before = sorted((path, path.stat().st_mtime_ns) for path in (trips.folder / "lake").rglob("*"))
    dry = trips.ingest("b.csv", dry_run=True)
    assert sorted((path, path.stat().st_mtime_ns) for path in (trips.folder / "lake").rglob("*")) == before
    assert (dry.rows_written, dry.rows_already_present, dry.refused) == (1, 2, {"zone: validValues": 1, "day, id: conflict": 1})
    assert trips.ingest("b.csv") == dry


def test_a_dry_run_of_a_table_that_is_not_there_yet_makes_none(trips):
    trips.write("a.csv", HEADER + line(id="1") + "\n")
    assert trips.ingest("a.csv", dry_run=True).rows_written == 1
    assert not (trips.folder / "lake").exists()
