"""What a recipe says of the feed: how rows come changes nothing of what is learnt; what is told of it."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

import pytest

from lakering.errors import SettingError, TrainingError
from lakering.record import read_record
from lakering.summary import Summary
from recipes import read_recipe
from recipes.training import Training
from training.checkpoint import newest_checkpoint
from training.distributed import World
from training.evaluate import evaluate, evaluate_request
from training.feed.reader import RowGroupReader
from training.preview import preview_training
from training.requests import train_request
from training.runs import validate_origin
from training.steplog import read_steps
from training.summaries import add_training
from training.train import build_loop, train


def train_toy(toy, *overrides, **request):
    return train(World(), {**train_request(read_recipe(toy.recipe, overrides=overrides)), **request})


def losses(toy, run):
    return [step["loss"] for step in read_steps(toy.lake, toy.lake.run("toy", run))]


FED = {"none": (), "threads": ("feed.reading_threads=3", "feed.read_ahead=1"), "memory": ("feed.cache=memory",),
       "disk": ("feed.cache=disk", "feed.cache_folder=cache")}  # fmt: skip


@pytest.mark.parametrize("how", ["threads", "memory", "disk"])
def test_a_training_learns_the_same_however_it_is_fed(write_toy, how):
    toy = write_toy()
    plain = train_toy(toy)
    fed = train_toy(toy, *FED[how], new=True)
    assert fed["run"] == f"{plain['run']}-2", "the same inputs: the same run, made again"
    assert losses(toy, fed["run"]) == losses(toy, plain["run"])
    reads = {"threads": 12, "memory": 6, "disk": 6}  # of train's six row groups, in two epochs
    assert fed["record"]["timings"]["row_groups_read"] == reads[how]
    assert fed["record"]["timings"]["cache_hits"] == 12 - reads[how]


def test_a_cache_folder_is_relative_to_the_recipe(write_toy):
    toy = write_toy()
    train_toy(toy, *FED["disk"])
    assert len(list((toy.folder / "cache").glob("*.rows"))) == 7, "of train and validation"


def test_a_short_last_batch_is_dropped_where_that_is_asked_for(write_toy):
    toy = write_toy()
    run = train_toy(toy, "training.drop_last=true")["run"]
    assert [step["rows"] for step in read_steps(toy.lake, toy.lake.run("toy", run))] == [100] * 12


def test_dropping_the_only_batch_is_refused(write_toy):
    with pytest.raises(SettingError, match=r"the 650 rows of train are fewer than training\.global_batch_size 1,000"):
        train_toy(write_toy(), "training.drop_last=true", "training.global_batch_size=1000")


def test_a_batch_larger_than_the_split_is_the_split(write_toy):
    toy = write_toy()
    run = train_toy(toy, "training.global_batch_size=1000")["run"]
    assert [step["rows"] for step in read_steps(toy.lake, toy.lake.run("toy", run))] == [650, 650]


def test_a_model_is_trained_and_evaluated_on_some_columns(write_toy):
    toy = write_toy()
    run = train_toy(toy, "training.columns=[x0, b]")["run"]
    found = evaluate(World(), evaluate_request(read_recipe(toy.recipe)))
    assert (found["run"], found["snapshot"]) == (run, toy.manifest.id)
    assert found["figures"]["boosted trees"]["ids_as_ordinals"] == ["b"]
    record = read_record(toy.lake, "toy", run)
    assert record is not None
    assert record["inputs"]["training"]["columns"] == ["x0", "b"]


def test_a_column_that_is_not_there_is_named(write_toy):
    with pytest.raises(SettingError, match=r"no feature 'x3'; did you mean 'x\d'\? \(known: a, b, x0, x1\)"):
        train_toy(write_toy(), "training.columns=[x3]")


def test_a_training_that_is_not_begun_makes_no_cache(write_toy):
    toy = write_toy()
    request = train_request(read_recipe(toy.recipe, overrides=FED["disk"]))
    preview_training(Summary("train"), request, ranks=1)
    assert not (toy.folder / "cache").exists()


def test_a_disk_cache_without_a_folder_is_refused_with_its_line(write_toy):
    with pytest.raises(SettingError, match="cache: disk needs a cache_folder"):
        train_toy(write_toy(), "feed.cache=disk")


def test_a_cache_folder_that_is_not_local_is_refused(write_toy):
    with pytest.raises(SettingError, match="cache_folder s3://bucket/cache must be a local folder"):
        train_toy(write_toy(), "feed.cache=disk", "feed.cache_folder=s3://bucket/cache")


def test_validation_leaves_the_memory_cache_to_the_training(write_toy):
    toy = write_toy()
    settings = read_recipe(toy.recipe, overrides=FED["memory"])
    request = train_request(settings)
    loop = build_loop(World(), toy.lake, request, toy.manifest, Training.model_validate(request["training"]), "r", {})
    assert (loop.feed.cache, loop.validation and loop.validation.cache) == ("memory", "none")


def test_input_that_is_the_bottleneck_is_told(write_toy, monkeypatch):
    read = RowGroupReader.read

    def slow(self, row_group):
        time.sleep(0.3)
        return read(self, row_group)

    monkeypatch.setattr(RowGroupReader, "read", slow)
    result = train_toy(write_toy(), "training.epochs=3")
    assert [note.split(":")[0] for note in result["notes"]] == ["input is the bottleneck"]
    summary = Summary("train")
    add_training(summary, {**result, "launch": "python"})
    assert "input is the bottleneck: the training waited for it" in summary.render()


def test_epochs_log_how_they_were_fed(write_toy, caplog):
    with caplog.at_level(logging.INFO, "training"):
        train_toy(write_toy(), "feed.cache=memory")
    facts = [record.facts for record in caplog.records if record.getMessage() == "epoch fed"]
    assert [(f["epoch"], f["row_groups_read"], f["cache_hits"]) for f in facts] == [(0, 6, 0), (1, 0, 6)]
    assert facts[0]["bytes_read"] > 650 * 8, "two float32 columns, which do not compress"
    assert facts[1]["bytes_read"] == 0


def test_a_checkpoint_of_another_snapshot_is_refused_with_both_shown(write_toy):
    toy = write_toy()
    result = train_toy(toy)
    checkpoint, _ = newest_checkpoint(toy.lake, toy.lake.run("toy", result["run"]))
    assert checkpoint is not None
    inputs = result["record"]["inputs"]
    made_from = {name: inputs[name] for name in ("snapshot", "model", "training", "code")}
    validate_origin("the checkpoint", checkpoint.facts, made_from)
    other = replace(checkpoint, facts={**checkpoint.facts, "snapshot": "s2"})
    with pytest.raises(TrainingError, match=f"made with snapshot s2, this training has {toy.manifest.id}"):
        validate_origin("the checkpoint", other.facts, made_from)
    other = replace(checkpoint, facts={**checkpoint.facts, "training": {**inputs["training"], "learning_rate": 5}})
    with pytest.raises(TrainingError, match=r"training.learning_rate 5, this training has 0.01"):
        validate_origin("the checkpoint", other.facts, made_from)
