"""What build_examples --dry-run tells, and that it leaves the lake as it was."""

from __future__ import annotations

import json
import re

import pytest

from etl.examples import plan_examples
from etl.examples.preview import Counts, count_examples, report_counts, report_preview
from lakering.errors import InputError, SettingError
from lakering.summary import Summary
from tests.etl.trips import at, frame, trip, write_recipe

FEATURES = [
    {"column": "fare"},
    {"column": "city", "as": "id"},
    {"aggregate": "late", "by": ["city"], "window": "6 hours", "functions": ["avg", "count"]},
    {"lookup": "cities", "on": {"city": "name"}, "prefix": "city", "columns": ["size"]},
]
TRIPS = [
    trip(1, "1 08:00:00"),
    trip(2, "2 08:00:00"),
    trip(3, "3 08:00:00"),
    trip(4, "5 08:00:00"),
    trip(5, "1 09:00:00", late=None),
    trip(6, "1 09:00:00", ends="1 08:00:00"),
]


def count(spark, folder, trips=TRIPS, **examples):
    plan = plan_examples(write_recipe(folder, **{"features": FEATURES, **examples}))
    rows = {"trips": trips, "weather": [{"place": "rome", "station": 1, "at": at("1 08:00:00")}], "cities": [{"name": "rome"}]}
    return count_examples(plan, lambda name: frame(spark, folder, name, rows[name]))


def test_rows_are_counted_by_split_and_by_what_leaves_them_out(spark, tmp_path):
    counts = count(spark, tmp_path)
    assert counts.num_rows == {"train": 2, "validation": 1, "test": 1}
    assert counts.dropped == {"no_label": 1, "label_known_before": 1}
    assert counts.rows_read == 6


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ({"predict": {"label": "late", "moment": "starts"}}, "a binary label is a condition"),
        ({"features": [{"column": "city"}]}, "'city' is string, not a number; take it as an id"),
        ({"features": [{"lookup": "cities", "on": {"city": "name"}, "columns": ["state"]}]}, "'state' is string, not a number"),
        ({"features": [{"aggregate": "city", "window": "1 day", "functions": ["avg"]}]}, "gives string, expected a number"),
        (
            {"features": [{"aggregate": "late", "where": "fare", "window": "1 day", "functions": ["avg"]}]},
            "gives double, expected a condition",
        ),
    ],
)
def test_what_the_build_would_refuse_is_refused_with_its_line(spark, tmp_path, examples, message):
    with pytest.raises(SettingError, match=r"recipe.yaml:\d+: ") as caught:
        count(spark, tmp_path, **examples)
    assert message in str(caught.value)


def test_a_recipe_that_leaves_nothing_to_train_on_is_told(tmp_path):
    summary, plan = Summary("build_examples"), plan_examples(write_recipe(tmp_path))
    with pytest.raises(InputError, match=r"nothing to train on \(examples: {'test': 2}, left out: {'no_label': 1}\)"):
        report_counts(summary, plan, Counts({"test": 2}, {"no_label": 1}))
    assert summary.sections["rows"]["rows_read"] == 3, "the counts are told all the same"


def test_the_job_tells_the_build_and_writes_nothing(spark, run_here, tmp_path, monkeypatch):
    recipe, lake = write_recipe(tmp_path, features=FEATURES[:3]), tmp_path / "lake"
    frame(spark, tmp_path, "trips", TRIPS).write.format("delta").save(str(lake / "tables" / "trips"))
    before = {path: path.stat().st_mtime_ns for path in lake.rglob("*")}
    monkeypatch.setattr(type(spark), "stop", lambda _: None)  # the job's session is that of all tests
    done = run_here("etl/jobs/build_examples.py", "--recipe", recipe.path, "--lake", lake, "--dry-run",
                    "--summary", tmp_path / "summary.json")  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert {path: path.stat().st_mtime_ns for path in lake.rglob("*")} == before
    told = json.loads((tmp_path / "summary.json").read_text())
    assert re.fullmatch("[0-9a-f]{16}", told["build"]["id"])
    assert told["build"]["would"] == "build it"
    assert told["would read"]["trips"].startswith("version 0 ")
    assert told["features"] == {"column": ["fare", "city"], "window": ["late_avg_city_6h", "late_count_city_6h"]}
    assert told["rows"]["examples"] == {"train": 2, "validation": 1, "test": 1}


def test_a_build_that_is_there_is_told_as_such(tmp_path):
    summary = Summary("build_examples")
    report_preview(summary, plan_examples(write_recipe(tmp_path)), "abc", {"trips": ("id", 3)}, is_there=True)
    assert summary.sections["build"]["would"] == "report it: it is complete (--new makes another)"
    assert summary.sections["would read"] == {"trips": "version 3 (table id)"}
