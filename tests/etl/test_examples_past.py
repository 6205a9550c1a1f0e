"""What an example sees of the past: to the microsecond, on either side."""

from __future__ import annotations

import random

import pytest
from pyspark.sql import functions as F

from etl.transforms.point_in_time import Stream, fixed_point, with_past
from tests.etl.trips import at, build, trip

WINDOW = 100


def seen_from(spark, moments, events, *, last_within=None):
    """(count, sum, last) at each moment, of events (key, known, value) within ``WINDOW``."""
    values = spark.createDataFrame(events, "k string, known bigint, number bigint")
    values = values.withColumns({"last": F.struct("known", "number"), "tie": F.col("number")})
    examples = spark.createDataFrame([(i, k, t) for i, (k, t) in enumerate(moments)], "i int, k string, _moment bigint")
    stream = Stream("s", values, {WINDOW: True}, last_within=last_within)
    rows = with_past(examples, ["k"], [stream]).collect()
    last = "_s_last" if last_within else None
    found = {r["i"]: (r["_s_n_100"], r["_s_s_100"], last and (r[last]["number"] if r[last] else None)) for r in rows}
    return [found[i] for i in range(len(moments))]


def test_the_window_is_open_at_its_start_and_closed_at_the_moment(spark):
    moments = [("a", t) for t in (999, 1000, 1099, 1100)]
    assert [count for count, *_ in seen_from(spark, moments, [("a", 1000, 7)])] == [0, 1, 1, 0]


def test_a_null_key_matches_nothing(spark):
    assert seen_from(spark, [(None, 1000), ("a", 1000)], [(None, 990, 7), ("a", 990, 3)]) == [(None, None, None), (1, 3, None)]


def test_running_figures_agree_with_a_plain_count(spark):
    random.seed(3)
    events = [(random.choice("ab"), random.randint(-900, 900), random.randint(-50, 50)) for _ in range(300)]
    events = [(k, t, v) for (k, t), v in {(k, t): v for k, t, v in events}.items()]
    moments = [(random.choice("abc"), random.randint(-1000, 1000)) for _ in range(200)]
    expected = []
    for key, moment in moments:
        window = [v for k, t, v in events if k == key and moment - WINDOW < t <= moment]
        recent = [(t, v) for k, t, v in events if k == key and moment - 30 < t <= moment]
        expected.append((len(window), sum(window), max(recent)[1] if recent else None))
    assert seen_from(spark, moments, events, last_within=30) == expected


@pytest.mark.parametrize(("greatest", "count"), [(1.0, 1), (0.1, 10**9), (1e300, 5), (1e-300, 5), (2881.0, 336_776)])
def test_sums_in_fixed_point_never_overflow(greatest, count):
    scale = fixed_point(greatest, count)
    assert greatest * scale * count < 2**62
    assert scale == 2**1000 or greatest * scale * count >= 2**59


LATE = [{"aggregate": "late", "by": ["city"], "window": "6 hours", "functions": ["count", "avg", "last", "sum"], "name": "l"}]


@pytest.mark.parametrize(
    ("ends", "seen"),
    [("1 09:00:01", False), ("1 09:00:00", True), ("1 03:00:01", True), ("1 03:00:00", False)],
    ids=["a second after the moment", "at the moment", "within the window", "at the window's start"],
)
def test_an_outcome_is_seen_once_it_is_known(spark, tmp_path, ends, seen):
    # Trip 2 is asked for at nine o'clock; trip 1 starts long before and is known when it ends.
    trips = [trip(1, "1 01:00:00", late=42, ends=ends), trip(2, "1 10:00:00", late=5)]
    rows, _ = build(spark, tmp_path, trips, features=LATE)
    assert rows[2]["l_count_city_6h"] == (1.0 if seen else 0.0)
    assert rows[2]["l_avg_city_6h_is_null"] == (0.0 if seen else 1.0)
    if seen:
        assert (rows[2]["l_avg_city_6h"], rows[2]["l_last_city_6h"], rows[2]["l_sum_city_6h"]) == (42.0, 42.0, 42.0)


def test_a_row_never_sees_its_own_outcome(spark, tmp_path):
    # Trip 1 is over before the moment at which it would be asked for: its label was known, so it is no example.
    trips = [trip(1, "1 10:00:00", late=42, ends="1 08:59:00"), trip(2, "1 10:00:00", late=5)]
    rows, facts = build(spark, tmp_path, trips, features=LATE)
    assert list(rows) == [2]
    assert facts["dropped"] == {"label_known_before": 1}
    assert rows[2]["l_last_city_6h"] == 42.0


def test_where_and_null_values_leave_rows_out_of_a_window(spark, tmp_path):
    feature = {**LATE[0], "where": "fare > 2", "functions": ["count"]}
    trips = [
        trip(1, "1 03:00:00", fare=1.0),
        trip(2, "1 03:00:00", fare=3.0),
        trip(3, "1 03:00:00", fare=3.0, late=None),
        trip(4, "1 10:00:00"),
    ]
    rows, facts = build(spark, tmp_path, trips, features=[feature])
    assert rows[4]["l_count_city_6h"] == 1.0
    assert facts["dropped"] == {"no_label": 1}


RAIN = [{"asof": "weather", "on": {"city": "place"}, "columns": ["rain"], "at_most": "3 hours"}]


def observed(time: str, rain: float, station: int = 1, place: str = "rome") -> dict:
    return {"place": place, "station": station, "at": at(time), "rain": rain}


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (["1 09:00:00"], 0.0),
        (["1 09:00:01"], None),
        (["1 06:00:00"], 0.0),
        (["1 05:59:59"], None),
        (["1 06:00:00", "1 08:59:59", "1 09:30:00"], 1.0),
    ],
    ids=["at the moment", "a second after", "as old as allowed", "a second too old", "the newest that was known"],
)
def test_an_as_of_join_takes_the_newest_row_known_at_the_moment(spark, tmp_path, times, expected):
    rows, _ = build(
        spark, tmp_path, [trip(1, "1 10:00:00")], weather=[observed(t, float(i)) for i, t in enumerate(times)], features=RAIN
    )
    assert (rows[1]["rain"] if "rain_is_null" not in rows[1] else None) == expected


def test_a_tie_falls_the_same_way_whatever_the_order_of_rows(spark, tmp_path):
    weather = [observed("1 08:00:00", float(s), station=s) for s in range(6)]
    seen = {
        build(spark, tmp_path, [trip(1, "1 10:00:00")], weather=order, features=RAIN)[0][1]["rain"]
        for order in (weather, weather[::-1])
    }
    assert len(seen) == 1
