"""Early stopping: decided from the validation figures alone, the same after a resume."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from lakering.errors import SettingError
from lakering.summary import Summary
from recipes import read_recipe
from recipes.training import EarlyStopping
from training.distributed import World
from training.early_stopping import stopping_reason, validate_early_stopping
from training.requests import train_request
from training.steplog import read_steps
from training.summaries import add_training
from training.train import train


def reason(values, *, metric="validation_auc", **settings):
    epochs = [{"epoch": i, metric: value} for i, value in enumerate(values)]
    return stopping_reason(EarlyStopping(metric=metric, **settings), epochs)


def test_a_training_ends_when_it_gets_no_better():
    told = reason([0.7, 0.75, 0.771, 0.77, 0.771], patience=2)
    assert told == "stopped early after epoch 4: validation_auc has not been better than 0.771 of epoch 2 for 2 epochs"
    assert reason([0.7, 0.75, 0.771, 0.77], patience=2) is None
    assert reason([0.7, 0.75, 0.771, 0.77, 0.772], patience=2) is None
    assert reason([], patience=1) is None


def test_which_way_is_better_is_the_metric_s():
    assert reason([0.5, 0.4, 0.3], metric="validation_log_loss") is None
    assert reason([0.5, 0.6], metric="validation_log_loss") is not None
    assert reason([0.5, 0.6], metric="validation_bias", better="higher") is None
    assert reason([0.5, 0.6], metric="validation_bias", better="lower") is not None


def test_what_is_better_by_less_than_min_delta_is_not_better():
    assert reason([0.7, 0.705, 0.709], patience=2, min_delta=0.01) is not None
    assert reason([0.7, 0.705, 0.711], patience=2, min_delta=0.01) is None


@pytest.mark.parametrize("nothing", [math.nan, None])
def test_a_figure_that_is_no_number_is_no_better(nothing):
    assert reason([0.7, nothing], patience=1) is not None
    assert reason([nothing, 0.7], patience=2) is None
    assert reason([nothing, nothing], patience=2) == (
        "stopped early after epoch 1: validation_auc has not been a number for 2 epochs"
    )


def train_toy(toy, *overrides, **request):
    return train(World(), {**train_request(read_recipe(toy.recipe, overrides=overrides)), **request})


def test_a_run_that_was_stopped_is_complete_and_a_resumed_one_stops_where_it_did(write_toy):
    toy = write_toy()
    long = ("training.epochs=6", "training.schedule=cosine")
    stopped = train_toy(toy, *long, "training.early_stopping={metric: validation_auc, patience: 2, min_delta: 0.5}")
    record = stopped["record"]
    assert (record["status"], record["steps"]) == ("complete", 21)
    assert record["metrics"]["stopped_early"].startswith("stopped early after epoch 2: validation_auc has not been better than")
    summary = Summary("train")
    add_training(summary, {**stopped, "launch": "python"})
    assert summary.sections["training"]["early_stopping"] == record["metrics"]["stopped_early"]
    run = toy.lake.run("toy", stopped["run"])
    whole = train_toy(toy, *long)
    assert whole["record"]["metrics"]["stopped_early"] is None
    steps, all_steps = read_steps(toy.lake, run), read_steps(toy.lake, toy.lake.run("toy", whole["run"]))
    assert len(all_steps) == 42
    assert [s["learning_rate"] for s in steps] == [s["learning_rate"] for s in all_steps[:21]]
    Path(toy.lake.storage.path(*run), "record.json").unlink()
    resumed = train_toy(toy, *long, "training.early_stopping={metric: validation_auc, patience: 2, min_delta: 0.5}")
    assert resumed["run"] == stopped["run"]
    assert (resumed["record"]["resumed_at"], resumed["record"]["steps"]) == (21, 21)
    assert resumed["record"]["metrics"]["stopped_early"] == record["metrics"]["stopped_early"]


def test_a_metric_that_is_not_there_is_refused_before_the_first_step(write_toy):
    with pytest.raises(SettingError, match=r"no 'validation_rmse'.*known: .*validation_auc.*validation_log_loss"):
        train_toy(write_toy(), "training.early_stopping={metric: validation_rmse}")
    with pytest.raises(SettingError, match="looks at validation_auc, and the snapshot has no validation split"):
        train_toy(write_toy({"train": [[200]], "test": [[50]]}), "training.early_stopping={metric: validation_auc}")
    with pytest.raises(SettingError, match="which way validation_base_rate gets better is not known") as caught:
        validate_early_stopping(EarlyStopping(metric="validation_base_rate"), ["auc", "base_rate"])
    assert "early_stopping.better" in str(caught.value)
    validate_early_stopping(EarlyStopping(metric="validation_own", better="higher"), ["own"])
