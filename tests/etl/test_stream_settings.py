"""What a recipe may say of topics."""

from __future__ import annotations

import pytest

from etl.ingest import ingest_table
from lakering.errors import InputError, SettingError
from recipes import read_recipe
from tests.etl.conftest import NOW


def recipe_of(folder, sources: str):
    (folder / "recipe.yaml").write_text(f"name: r\ntables:\n  trips:\n    contract: trips.yaml\n    sources: {sources}\n")
    return read_recipe(folder / "recipe.yaml")


def test_files_and_topics_stand_side_by_side(tmp_path):
    table = recipe_of(tmp_path, "[{files: a.csv, format: csv}, {topic: a.b-c, format: json}]").settings.tables["trips"]
    assert [source.files for source in table.files] == ["a.csv"]
    assert [(source.topic, source.max_offsets_per_trigger) for source in table.topics] == [("a.b-c", 1_000_000)]


@pytest.mark.parametrize(
    ("sources", "told"),
    [
        ("[{topic: 'a/b', format: json}]", "a topic's name is of letters"),
        ("[{topic: '..', format: json}]", "a topic's name is of letters"),
        ("[{topic: a, format: csv}]", "json"),
        ("[{topic: a, files: b, format: json}]", "a source has exactly one of the keys files, topic"),
        ("[{format: json}]", "a source has exactly one of the keys files, topic"),
        ("[{topic: a, format: json}, {topic: a, format: json}]", "topic 'a' more than once"),
        ("[{topic: a, format: json, max_offsets_per_trigger: 0}]", "max_offsets_per_trigger"),
    ],
)
def test_a_wrong_source_is_an_error_that_says_what_is_wrong(tmp_path, sources, told):
    with pytest.raises(SettingError) as raised:
        recipe_of(tmp_path, sources)
    assert told in str(raised.value)
    assert "recipe.yaml" in str(raised.value)


def test_batch_ingest_of_a_table_without_files_names_the_stream_job(trips):
    recipe = recipe_of(trips.folder, "[{topic: a, format: json}]")
    with pytest.raises(InputError, match=r"ingest_stream\.py"):
        ingest_table(trips.spark, recipe, trips.contract, recipe.settings.tables["trips"].sources, now=NOW)
