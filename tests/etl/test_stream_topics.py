"""Several topics and several tables in one stream job."""

from __future__ import annotations

import threading

import pytest
from broker import Broker
from pyspark.sql import DataFrame, SparkSession

from etl.stream.batch import Stream, StreamResult
from etl.stream.run import Start, stream_tables
from etl.stream.state import Place
from etl.tables import read_origins, read_table
from recipes import read_recipe
from tests.etl.conftest import Trips
from tests.etl.streams import StreamedTrips, trip


def test_each_topic_has_a_checkpoint_and_a_session_of_its_own_and_no_key_comes_twice(
    trips: Trips, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    topics = ["several-a", "several-b", "several-c"]
    a, b, c = (StreamedTrips(trips, broker.servers, topic) for topic in topics)
    for topic in (a, b, c):
        topic.create(1)
    a.send(trip(id=1), trip(id=2), trip(id=3))
    b.send(trip(id=3), trip(id=4), b"{")
    c.send(trip(id=1, zone="south"), trip(id=2, at="2030-01-01T00:00:00Z"), timestamp=1704096000000)
    folder = trips.folder
    (folder / "others.yaml").write_text((folder / "trips.yaml").read_text().replace("trips", "others"))
    (folder / "several.yaml").write_text(
        f"name: several\nlake: lake\nkafka: {{servers: '{broker.servers}'}}\ntables:\n"
        "  trips:\n    contract: trips.yaml\n    sources: [{topic: several-a, format: json}, {topic: several-b, format: json}]\n"
        "  others:\n    contract: others.yaml\n    sources: [{topic: several-c, format: json}]\n")  # fmt: skip
    recipe = read_recipe(folder / "several.yaml")
    contracts = {name: recipe.contract(name) for name in ("trips", "others")}
    results: dict[str, StreamResult] = {}
    take, sessions = Stream.take, {str(trips.spark._jsparkSession.sessionUUID())}

    def noted(stream: Stream, spark: SparkSession, messages: DataFrame, number: int) -> None:
        sessions.add(str(spark._jsparkSession.sessionUUID()))
        take(stream, spark, messages, number)

    monkeypatch.setattr(Stream, "take", noted)
    stream_tables(trips.spark, recipe, contracts, Start(None), threading.Event(), results)

    assert {name: result.rows_read for name, result in results.items()} == {
        "trips from several-a": 3, "trips from several-b": 3, "others from several-c": 2}  # fmt: skip
    both = [results[f"trips from {topic}"] for topic in topics[:2]]
    assert sum(result.rows_written for result in both) == 4
    assert sum(result.rows_already_present for result in both) == 1
    assert results["trips from several-b"].refused == {"json": 1}
    assert a.ids() == [1, 2, 3, 4]
    assert len(sessions) == 4, "what a batch sets for its commits, no other query's has"
    told = [(origin["topic"], origin["offsets"]) for origin in read_origins(recipe.lake, "trips", None)]
    assert sorted(told) == [("several-a", {"0": [0, 3]}), ("several-b", {"0": [0, 3]})]
    others = read_table(trips.spark, recipe.lake, contracts["others"]).orderBy("id").collect()
    assert [(row["id"], row["zone"]) for row in others] == [(1, "south"), (2, "north")]
    assert results["others from several-c"].watermark == "2024-01-01T08:00:00+00:00", (
        "an event is no later than its record, whatever it says"
    )
    places = [Place(recipe.lake, table, topic) for table, topic in zip(("trips", "trips", "others"), topics, strict=True)]
    assert len({place.checkpoint_id() for place in places}) == 3
    assert [state.next for place in places if (state := place.read())] == [{0: 3}, {0: 3}, {0: 2}]
