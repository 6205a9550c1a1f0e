"""Side tables (``repeatedKey: replace``): of a key the newest row stands, in whatever order rows come."""

from __future__ import annotations

import os

import pytest

from lakering.errors import SettingError
from tests.etl.conftest import HEADER
from tests.etl.test_ingest_rows import line

BY_FILE = "      - {property: repeatedKey, value: replace}"
BY_COLUMN = BY_FILE + "\n      - {property: orderBy, value: at}"


def write_at(trips, name: str, modified: int, *lines: str) -> None:
    """A file as of ``modified`` (seconds)."""
    path = trips.write(name, HEADER + "".join(text + "\n" for text in lines))
    os.utime(path, (modified, modified))


def fares(trips) -> dict[int, float]:
    return {row["id"]: row["fare"] for row in trips.rows()}


def test_by_a_column_the_newer_row_of_a_key_stands_and_losers_count_as_superseded(make_trips):
    trips = make_trips(table=BY_COLUMN)
    first = trips.csv(
        line(id="1", at="2024-01-02T00:00:00Z", fare="2"), line(id="1", at="2024-01-01T00:00:00Z", fare="1"), line(id="2")
    )
    assert (first.rows_written, first.rows_superseded) == (2, 1)
    later = trips.csv(line(id="1", at="2024-01-03T00:00:00Z", fare="3"), line(id="2", at="2023-01-01T00:00:00Z", fare="0"),
                      name="b.csv")  # fmt: skip
    assert (later.rows_written, later.rows_superseded) == (1, 1)
    assert fares(trips) == {1: 3.0, 2: 10.5}


def test_by_file_time_an_older_file_that_comes_later_overwrites_nothing_newer(make_trips):
    trips = make_trips(table=BY_FILE)
    write_at(trips, "new.csv", 2_000_000, line(id="1", fare="2"))
    trips.ingest("new.csv")
    write_at(trips, "old.csv", 1_000_000, line(id="1", fare="1"), line(id="2", fare="1"))
    result = trips.ingest("old.csv")
    assert (result.rows_written, result.rows_superseded) == (1, 1)
    assert fares(trips) == {1: 2.0, 2: 1.0}


def test_of_one_file_the_last_row_of_a_key_stands(make_trips):
    trips = make_trips(table=BY_FILE)
    result = trips.csv(line(id="1", fare="1"), line(id="1", fare="3"), line(id="1", fare="2"))
    assert (result.rows_written, result.rows_superseded) == (1, 2)
    assert fares(trips) == {1: 2.0}


def test_files_in_one_go_or_one_after_the_other_end_in_the_same_table(make_trips):
    trips = make_trips(table=BY_FILE)
    write_at(trips, "in/a.csv", 3_000_000, line(id="1", fare="3"), line(id="2", fare="3"))
    write_at(trips, "in/b.csv", 2_000_000, line(id="2", fare="2"), line(id="3", fare="2"))
    trips.ingest("in")
    together = fares(trips)
    (trips.folder / "lake").rename(trips.folder / "first")
    trips.ingest("in/a.csv")
    trips.ingest("in/b.csv")
    assert fares(trips) == together == {1: 3.0, 2: 3.0, 3: 2.0}


def test_a_changed_file_is_read_again_alone_and_reading_again_says_the_same(make_trips):
    trips = make_trips(table=BY_FILE)
    write_at(trips, "in/a.csv", 1_000_000, line(id="1", fare="1"))
    write_at(trips, "in/b.csv", 1_000_000, line(id="2", fare="1"))
    trips.ingest("in")
    write_at(trips, "in/a.csv", 2_000_000, line(id="1", fare="5"))
    again = trips.ingest("in")
    assert (again.files_known, again.rows_read, again.rows_written) == (1, 1, 1)
    reread = trips.ingest("in", reread=True)
    assert (reread.rows_written, reread.rows_superseded) == (2, 0)
    assert fares(trips) == {1: 5.0, 2: 1.0}


def test_what_a_repeated_key_means_cannot_change_under_a_table(make_trips):
    make_trips().csv(line(id="1"))
    with pytest.raises(SettingError, match=r"\(repeated key\): table keep, contract replace"):
        make_trips(table=BY_FILE).csv(line(id="2"), name="b.csv")
