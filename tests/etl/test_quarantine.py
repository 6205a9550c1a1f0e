"""Refused rows: shown with their reasons, and replayed under a contract that was mended."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import etl.replay
from etl.jobs import quarantine, replay_quarantine
from etl.reasons import Selection
from etl.refused import printable
from etl.replay import ReplayResult, replay_table
from etl.tables import read_quarantine
from lakering.errors import SettingError
from lakering.summary import Summary
from tests.etl.conftest import HEADER, NOW, Trips
from tests.etl.test_ingest_rows import line

ENTRY = Path(__file__).with_name("killed_replay.py")
ROOT = Path(__file__).resolve().parents[2]
LATER = NOW + datetime.timedelta(days=2)
TODAY = LATER.date()
ALL = Selection()
MULTI_LINE = ("{property: eventTime, value: at}", "{property: eventTime, value: at}\n      - {property: multiLine, value: true}")
KEY = (", primaryKey: true, primaryKeyPosition: 1, partitioned: true", ", required: true, partitioned: true")
KEYLESS = (KEY, (", primaryKey: true, primaryKeyPosition: 2", ""))


def change(trips: Trips, *changes: tuple[str, str]) -> None:
    """The contract with parts of its text replaced."""
    path = trips.folder / "trips.yaml"
    for old, new in changes:
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))


def mend(trips: Trips, *changes: tuple[str, str]) -> None:
    """A contract that takes zone west too."""
    change(trips, ("[north, south]", "[north, south, west]"), *changes)


def replay(trips: Trips, selection: Selection = ALL) -> ReplayResult:
    result = replay_table(trips.spark, trips.recipe("x").lake, trips.contract, selection, now=LATER)
    fates = (result.rows_written, result.rows_already_present, result.rows_superseded, result.rows_still_refused)
    assert result.rows_read == sum(fates), "every row read has one fate"
    assert result.rows_still_refused == sum(result.still_refused.values()), "every row still refused has one reason"
    return result


def marks(trips: Trips) -> dict[tuple[str, int, str], datetime.date | None]:
    """When what was refused was replayed, by file, position and contract version."""
    rows = read_quarantine(trips.spark, trips.recipe("x").lake, "trips").collect()
    return {(file_of(row["source"]), row["position"], row["contract_version"]): row["replayed_on"] for row in rows}


def file_of(source: str) -> str:
    return source.split("#")[0].rsplit("/", 1)[1]


def ids(trips: Trips) -> list[int]:
    return [row["id"] for row in trips.rows()]


def test_rows_of_every_form_are_read_again_as_they_stood_in_their_files(make_trips):
    trips = make_trips(table="      - {property: timestampFormat, value: \"yyyy-MM-dd'T'HH:mm:ssX\"}")
    trips.csv(line(id="1", zone="west"), line(id="2", zone="west", note='"a, ""b"""'))
    trips.write("a.jsonl", '{"day":"2024-01-01","id":3,"at":"2024-01-01T08:00:00Z","zone":"west","paid":true,"note":"é\\n"}\n')
    trips.ingest("a.jsonl", "json")
    at = datetime.datetime(2024, 1, 1, 8, 0, 0, 123456, tzinfo=datetime.UTC)
    table = pa.table({"day": [datetime.date(2024, 1, 1)], "id": [4], "at": pa.array([at], pa.timestamp("us", tz="UTC")),
                      "fare": pa.array([0.1], pa.float32()), "price": pa.array([None], pa.decimal128(4, 2)),
                      "zone": ["west"], "paid": pa.array([None], pa.bool_()), "note": ["p"]})  # fmt: skip
    pq.write_table(table, trips.folder / "a.parquet")
    trips.ingest("a.parquet", "parquet")
    change(trips, MULTI_LINE)
    not_utf8 = line(id="6", zone="west").encode().replace(b"hello", b"h\xffllo")
    trips.write("b.csv", HEADER.encode() + line(id="5", zone="west", note='"a\nb"').encode() + b"\n" + not_utf8 + b"\n")
    trips.ingest("b.csv")

    mend(trips)
    result = replay(trips)
    assert (result.rows_read, result.rows_written, result.entries_marked) == (6, 5, 5)
    assert result.still_refused == {"utf8": 1}
    rows = trips.rows()
    assert [(row["id"], file_of(row["_source"]), row["_position"], row["note"]) for row in rows] == [
        (1, "a.csv", 2, "hello"),
        (2, "a.csv", 3, 'a, "b"'),
        (3, "a.jsonl", 1, "é\n"),
        (4, "a.parquet", 1, "p"),
        (5, "b.csv", 2, "a\nb"),
    ]
    assert (rows[3]["at"].microsecond, rows[3]["fare"], rows[3]["paid"]) == (123456, 0.10000000149011612, None)
    pq.write_table(table, trips.folder / "again.parquet")
    assert trips.ingest("again.parquet", "parquet").rows_already_present == 1, "read from its file it is the same row"


def test_rows_are_chosen_by_reason_and_by_day_and_twice_adds_nothing(trips):
    trips.csv(line(id="1", zone="west"), line(id="2", fare="-1"))
    trips.write("b.csv", HEADER + line(id="3", zone="west") + "\n" + line(id="4", fare="ten") + "\n")
    trips.ingest("b.csv", now=NOW + datetime.timedelta(days=1))
    mend(trips, ("minimum: 0", "minimum: -5"))
    of_second_day = replay(trips, Selection(days=(datetime.date(2024, 5, 2),)))
    assert (of_second_day.rows_written, of_second_day.still_refused) == (1, {"fare: type": 1})
    assert ids(trips) == [3]
    assert replay(trips, Selection(reasons=(("fare", "minimum"),))).rows_read == 1
    assert ids(trips) == [2, 3]
    assert marks(trips) == {("a.csv", 2, "1.0.0"): None, ("a.csv", 3, "1.0.0"): TODAY,
                            ("b.csv", 2, "1.0.0"): TODAY, ("b.csv", 3, "1.0.0"): None}  # fmt: skip
    assert replay(trips, Selection(reasons=((None, "validValues"), (None, "type")))).rows_written == 1
    assert ids(trips) == [1, 2, 3]
    again = replay(trips)
    assert (again.rows_read, again.rows_written, again.still_refused) == (1, 0, {"fare: type": 1})
    assert ids(trips) == [1, 2, 3]


def test_a_row_refused_under_two_versions_is_replayed_once_and_marked_under_both(trips):
    trips.csv(line(id="1", zone="west"), line(id="2", zone="moon"))
    change(trips, ("version: 1.0.0", "version: 2.0.0"))
    trips.ingest("a.csv")
    mend(trips, ("version: 2.0.0", "version: 3.0.0"))
    result = replay(trips)
    assert (result.rows_read, result.rows_written, result.entries_marked) == (2, 1, 2)
    assert result.still_refused == {"zone: validValues": 1}
    assert marks(trips) == {("a.csv", 2, "1.0.0"): TODAY, ("a.csv", 2, "2.0.0"): TODAY,
                            ("a.csv", 3, "1.0.0"): None, ("a.csv", 3, "2.0.0"): None}  # fmt: skip


def test_what_was_cut_or_stands_under_another_header_stays_with_its_reason(trips):
    trips.csv(line(id="1", zone="west"), line(id="2", note="x" * 70_000))
    trips.write("a.jsonl", '{"day":"2024-01-01","id":3,"at":"2024-01-01T08:00:00Z","zone":"west"}\n')
    trips.ingest("a.jsonl", "json")
    mend(trips, ("      - {name: note,", "      - {name: tip, logicalType: number}\n      - {name: note,"))
    result = replay(trips)
    assert (ids(trips), result.entries_marked) == ([3], 1), "without the new column JSON says null, and CSV nothing"
    assert result.still_refused == {"the header lacks tip": 1, "cut: read the file again with --reread": 1}


def test_repeated_keys_among_replayed_rows_follow_the_usual_rule(trips):
    trips.csv(line(id="1", fare="1"), line(id="1", fare="2"), line(id="4", zone="west"), line(id="4", zone="west"),
              line(id="4", zone="west", fare="4"))  # fmt: skip
    mend(trips)
    result = replay(trips)
    assert (result.rows_written, result.rows_already_present, result.entries_marked) == (1, 1, 2)
    assert result.still_refused == {"day, id: conflict": 2}
    assert [(row["id"], row["fare"], row["_position"]) for row in trips.rows()] == [(1, 1.0, 2), (4, 10.5, 4)]
    assert marks(trips)["a.csv", 6, "1.0.0"] is None


def test_an_older_row_of_a_side_table_is_superseded_and_marked(make_trips):
    trips = make_trips(table="      - {property: repeatedKey, value: replace}")
    for name, modified, row in [("a.csv", 1_000_000, line(id="1", zone="west")), ("b.csv", 2_000_000, line(id="1"))]:
        os.utime(trips.write(name, HEADER + row + "\n"), (modified, modified))
        trips.ingest(name)
    mend(trips)
    result = replay(trips)
    assert (result.rows_written, result.rows_superseded, result.entries_marked) == (0, 1, 1)
    assert [row["zone"] for row in trips.rows()] == ["north"]


@pytest.mark.faults
def test_without_a_key_a_replay_that_failed_before_it_marked_adds_nothing_twice(trips, monkeypatch):
    change(trips, *KEYLESS)
    trips.csv(line(id="1"), line(id="2", zone="west"), line(id="2", zone="west"))
    mend(trips)
    with monkeypatch.context() as patch:
        patch.setattr(etl.replay, "mark_replayed", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            replay(trips)
    assert ids(trips) == [1, 2, 2]
    result = replay(trips)
    assert (result.rows_written, result.entries_marked) == (2, 2), "they stand in the table under their own source and position"
    assert ids(trips) == [1, 2, 2]
    assert replay(trips).rows_read == 0


def run(job: ModuleType, trips: Trips, *flags: str) -> Summary:
    trips.recipe("x")
    summary = Summary("job")
    job.main(job.parser().parse_args(["--recipe", str(trips.folder / "recipe.yaml"), *flags]), summary)
    return summary


def test_the_jobs_show_reasons_with_counts_and_examples_and_replay_them(trips):
    assert run(quarantine, trips).sections["trips"] == {"rows": 0, "quarantine": "no row of this table was ever refused"}
    assert run(replay_quarantine, trips).sections["trips"]["rows_read"] == 0
    bad = line(id="4").encode().replace(b"hello", b"\xff\x1b[31m")
    lines = [line(id=str(number), zone="west").encode() for number in (1, 2, 3)]
    trips.write("a.csv", HEADER.encode() + b"\n".join([*lines, bad, line(id="5", note="é" * 3000).encode()]) + b"\n")
    trips.ingest("a.csv")

    summary = run(quarantine, trips, "--examples", "2")
    facts, file = summary.sections["trips"], f"{trips.folder}/a.csv"
    assert (facts["rows"], facts["replayed"], facts["days"]) == (5, 0, {"2024-05-01": 5})
    assert {name: reason["rows"] for name, reason in facts["reasons"].items()} == {
        "zone: validValues": 3, "note: maxLength": 1, "utf8": 1}  # fmt: skip
    assert facts["reasons"]["zone: validValues"]["examples"] == [
        {"file": file, "position": 2, "value": "west", "raw": line(id="1", zone="west")},
        {"file": file, "position": 3, "value": "west", "raw": line(id="2", zone="west")},
    ]
    assert facts["reasons"]["utf8"]["examples"][0]["raw"].endswith(r",\xff\x1b[31m")
    long = facts["reasons"]["note: maxLength"]["examples"][0]
    assert (long["value"], len(long["raw"]), long["raw"][-2:]) == ("é" * 200 + "…", 201, "é…")
    assert all(sign.isprintable() or sign == "\n" for sign in summary.render())

    mend(trips)
    dry = run(replay_quarantine, trips, "--reason", "zone: validValues", "--dry-run").sections["trips"]
    assert (dry["rows_written"], dry["entries_marked"], dry["dry_run"]) == (3, 0, "nothing was written")
    assert not (trips.folder / "lake/tables/trips/_delta_log").exists()
    assert run(replay_quarantine, trips, "--table", "trips").sections["trips"]["entries_marked"] == 3
    shown = run(quarantine, trips, "--reason", "zone:validValues", "--day", "2024-05-01", "--examples", "0").sections["trips"]
    assert (shown["rows"], shown["replayed"]) == (3, 3)
    nothing = run(quarantine, trips, "--reason", "validValue").sections["trips"]
    assert nothing["reasons_of_other_rows"] == ["note: maxLength", "utf8", "zone: validValues"]


@pytest.mark.parametrize(("flags", "message"), [
    (["--table", "trip"], "--table 'trip' is not a table of .*did you mean 'trips'"),
    (["--day", "yesterday"], "--day 'yesterday': expected a day such as"),
    (["--reason", "zone:"], "--reason 'zone:': expected RULE or COLUMN:RULE")])  # fmt: skip
def test_what_cannot_be_asked_for_is_named(trips, flags, message):
    with pytest.raises(SettingError, match=message):
        run(quarantine, trips, *flags)


def test_no_terminal_takes_what_is_shown_for_a_command():
    assert printable(b"a\x00\x1b]0;x\x07\r\n\xc3\xa9\xe2\x80\xae\xff") == r"a\x00\x1b]0;x\x07\r\né\u202e\xff"


@pytest.mark.faults
@pytest.mark.parametrize("point", ["in the table's commit", "between table and marks", "in the marks' commit"])
def test_killed_anywhere_and_run_again_a_replay_ends_in_the_same_state(trips, spark_conf_dir, tmp_path, point):
    lines = [line(id=str(n), day=f"2024-01-{1 + n % 9:02d}", zone="moon" if n % 10 == 0 else "west") for n in range(1, 200)]
    trips.csv(*lines, line(id="200"))
    mend(trips)
    trips.recipe("a.csv")
    environment = {**os.environ, "SPARK_CONF_DIR": str(spark_conf_dir), "PYSPARK_PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    killed = subprocess.run([sys.executable, str(ENTRY), point, str(tmp_path / "recipe.yaml")], env=environment, timeout=300,
                            capture_output=True, text=True, start_new_session=True)  # fmt: skip
    assert killed.returncode == -9, killed.stderr
    result = replay(trips)
    assert (result.rows_written, result.entries_marked, result.still_refused) == (180, 180, {"zone: validValues": 19})
    assert ids(trips) == [n for n in range(1, 201) if n == 200 or n % 10]
    assert sorted(place for place, day in marks(trips).items() if day is None) == [
        ("a.csv", n + 1, "1.0.0") for n in range(10, 200, 10)]  # fmt: skip
    assert replay(trips).rows_written == 0
