"""Training on one rank: complete, resumed, refused. Processes are killed for real."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest

from lakering.errors import InputError, IntegrityError, StageError, TrainingError
from lakering.record import read_record
from recipes import read_recipe
from recipes.training import Training
from training.checkpoint import list_checkpoints
from training.distributed import World
from training.evaluate import evaluate, evaluate_request
from training.feed import Feed, Order
from training.models import ModelColumns, build_model
from training.optimizers import Optimizer
from training.requests import train_request
from training.step import Step
from training.steplog import read_steps
from training.train import train


def train_toy(toy, *overrides, **request):
    return train(World(), {**train_request(read_recipe(toy.recipe, overrides=overrides)), **request})


def record_of(toy, run):
    record = read_record(toy.lake, "toy", run)
    assert record is not None
    return record


def losses(toy, run):
    return [step["loss"] for step in read_steps(toy.lake, toy.lake.run("toy", run))]


def test_a_run_is_recorded_and_its_loss_falls(write_toy):
    toy = write_toy()
    result = train_toy(toy, "training.epochs=10")
    record = record_of(toy, result["run"])
    assert record == result["record"]
    assert record["status"] == "complete"
    assert record["steps"] == 70
    assert record["counts"]["rows"] == {"train": 650, "validation": 150, "test": 300}
    assert record["inputs"]["snapshot"] == toy.manifest.id
    steps = read_steps(toy.lake, toy.lake.run("toy", result["run"]))
    assert [step["global_step"] for step in steps] == list(range(70))
    assert np.mean(losses(toy, result["run"])[-7:]) < np.mean(losses(toy, result["run"])[:7]) - 0.1
    assert record["metrics"]["final"]["validation_auc"] > 0.75


def test_a_complete_run_is_reported_and_made_again_only_with_new(write_toy):
    toy = write_toy()
    first = train_toy(toy)
    again, fresh, other = train_toy(toy), train_toy(toy, new=True), train_toy(toy, "training.seed=18")
    assert (first["made"], again["made"], fresh["made"]) == (True, False, True)
    assert again["run"] == first["run"]
    assert fresh["run"] == f"{first['run']}-2"
    assert losses(toy, fresh["run"]) == pytest.approx(losses(toy, first["run"]), rel=1e-6)
    assert other["run"] not in (first["run"], fresh["run"])
    assert losses(toy, other["run"]) != pytest.approx(losses(toy, first["run"]), rel=1e-3)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_optimizers_and_schedules_learn(write_toy, optimizer):
    toy = write_toy()
    rate = 0.3 if optimizer == "sgd" else 0.02
    result = train_toy(toy, f"training.optimizer={optimizer}", f"training.learning_rate={rate}", "training.epochs=6",
                       "training.schedule=cosine", "training.warmup_steps=5", "training.weight_decay=0.001")  # fmt: skip
    assert np.mean(losses(toy, result["run"])[-7:]) < np.mean(losses(toy, result["run"])[:7]) - 0.05


def test_a_short_last_batch_and_an_empty_part_do_not_retrace(write_toy):
    toy = write_toy()
    columns = ModelColumns.of(toy.manifest)
    model = build_model({"name": "wide_and_deep", "hidden": [4]}, columns, seed=1)
    step = Step(model, Optimizer(Training(), model.variables), World(), seed=1)
    order = Order(seed=1, batch_size=200, window=2, lanes=8)
    for batch in Feed(lake=toy.lake, manifest=toy.manifest, split="train", order=order).epoch(0):
        step(batch, batch.step, 0.01)
    step(None, 4, 0.01)
    assert batch.num_rows == 50
    assert step.num_traces == 1


def test_a_regression_label_and_weights(write_toy):
    toy = write_toy(kind="regression", weight=True)
    result = train_toy(toy, "training.epochs=30", "training.precision=float64", "training.learning_rate=0.02")
    final = result["record"]["metrics"]["final"]
    assert final["validation_rmse"] < 0.8 * toy.rows["validation"]["y"].std()
    evaluation = evaluate(World(), evaluate_request(read_recipe(toy.recipe, overrides=["evaluation.trees=false"])))
    label, weight = toy.rows["test"]["y"], toy.rows["test"]["w"]
    base = np.sqrt(np.average((label - toy.rows["train"]["y"].mean()) ** 2, weights=weight))
    assert evaluation["figures"]["base rate"]["rmse"] == pytest.approx(base, rel=1e-5)
    assert evaluation["verdict"]["against_base_rate"].startswith("better by")
    assert "data:image/png" in Path(evaluation["report"]).read_text()


def test_evaluation_compares_with_baselines_and_writes_one_page(write_toy):
    toy = write_toy()
    run = train_toy(toy, "training.epochs=10")["run"]
    result = evaluate(World(), evaluate_request(read_recipe(toy.recipe)))
    assert result["run"] == run
    label, rate = toy.rows["test"]["y"], toy.rows["train"]["y"].mean()
    base = result["figures"]["base rate"]
    assert base["auc"] == 0.5
    assert base["log_loss"] == pytest.approx(-np.mean(label * np.log(rate) + (1 - label) * np.log(1 - rate)), rel=1e-5)
    assert result["figures"]["model"]["auc"] > 0.75
    assert result["figures"]["boosted trees"]["trained_on_rows"] == 650
    assert result["figures"]["boosted trees"]["ids_as_ordinals"] == ["b"]
    page = Path(result["report"]).read_text()
    assert page.count("data:image/png;base64,") == 4
    assert "http" not in page
    ranges = json.loads(Path(result["report"]).with_name("figures.json").read_text())["ranges"]
    x0 = toy.rows["test"]["x0"]
    assert [r["column"] for r in ranges] == ["x0", "x1"]
    assert (ranges[0]["min"], ranges[0]["max"]) == (x0.min(), x0.max())
    assert ranges[0]["mean"] == pytest.approx(x0.mean(), rel=1e-5)
    assert record_of(toy, run)["evaluation"]["figures"] == result["figures"]


def test_a_run_whose_newest_checkpoint_is_broken_goes_on_from_the_one_before(write_toy, capfd):
    toy = write_toy()
    whole = train_toy(toy)
    run = toy.lake.run("toy", whole["run"])
    folder = Path(toy.lake.storage.path(*run))
    expected = losses(toy, whole["run"])
    (folder / "record.json").unlink()
    assert list_checkpoints(toy.lake, run) == ["0000000008", "0000000012", "0000000014"]
    weights = folder / "checkpoints" / "0000000014" / "weights.npz"
    weights.write_bytes(weights.read_bytes()[::-1])
    resumed = train_toy(toy)
    assert resumed["run"] == whole["run"]
    assert resumed["record"]["resumed_at"] == 12
    assert "checkpoint 0000000014 is passed over" in resumed["notes"][0]
    assert "checkpoint 0000000014 is passed over" in capfd.readouterr().err
    assert losses(toy, whole["run"]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.faults
def test_a_killed_training_ends_as_one_that_was_never_killed(write_toy, start_job):
    toy = write_toy()
    overrides = ("training.epochs=40", "training.checkpoint_every=5")
    flags = [flag for override in overrides for flag in ("--set", override)]
    job = start_job("train", "--recipe", toy.recipe, "--lake", toy.lake.storage.root, "--log-json", *flags)
    for line in job.stderr:
        if '"message": "checkpoint"' in line and (written := json.loads(line)["global_step"]) >= 30:
            break
    job.send_signal(signal.SIGKILL)
    job.communicate()
    assert job.returncode == -signal.SIGKILL
    (killed,) = toy.lake.storage.list("runs", "toy")
    assert record_of(toy, killed)["status"] == "running"
    resumed = train_toy(toy, *overrides)
    assert resumed["run"] == killed
    assert resumed["record"]["resumed_at"] >= written
    whole = train_toy(toy, *overrides, new=True)
    assert len(losses(toy, killed)) == 280
    assert losses(toy, killed) == pytest.approx(losses(toy, whole["run"]), rel=1e-5)


def test_a_loss_that_is_not_finite_stops_the_training(write_toy):
    toy = write_toy(nan_in_train_row=3)
    with pytest.raises(TrainingError, match=r"epoch 0, step \d: the loss is nan.* 1 are not finite: row_id 3: x0 is nan"):
        train_toy(toy)
    (run,) = toy.lake.storage.list("runs", "toy")
    assert record_of(toy, run)["status"] == "running"


def test_a_diverging_training_keeps_its_last_good_checkpoint(write_toy):
    toy = write_toy(kind="regression")
    with pytest.raises(TrainingError, match="all features, labels and weights of the batch are finite") as caught:
        train_toy(toy, "training.optimizer=sgd", "training.learning_rate=1e6", "training.checkpoint_every=1")
    assert "lower training.learning_rate" in str(caught.value)
    assert "the newest checkpoint is from before" in str(caught.value)
    (run,) = toy.lake.storage.list("runs", "toy")
    names = list_checkpoints(toy.lake, toy.lake.run("toy", run))
    assert names
    newest = Path(toy.lake.storage.path(*toy.lake.run("toy", run), "checkpoints", names[-1], "weights.npz"))
    with np.load(newest, allow_pickle=False) as stored:
        assert all(np.isfinite(stored[name]).all() for name in stored.files)


def test_files_that_are_gone_are_refused_before_the_first_step(write_toy):
    toy = write_toy()
    toy.file("test").unlink()
    with pytest.raises(IntegrityError, match="1 of 5 files are gone or changed"):
        train_toy(toy)
    assert toy.lake.storage.list("runs", "toy") == []


def test_a_snapshot_without_rows_to_train_on_is_refused(write_toy):
    with pytest.raises(InputError, match="no rows to train on"):
        train_toy(write_toy({"test": [[10]]}))


def test_stages_that_have_not_run_are_named(write_toy, tmp_path):
    toy = write_toy()
    with pytest.raises(StageError, match="no trained model of recipe 'toy'") as caught:
        evaluate(World(), evaluate_request(read_recipe(toy.recipe)))
    assert "training/jobs/train.py" in str(caught.value)
    with pytest.raises(StageError, match="no snapshot of recipe 'toy'") as caught:
        train(World(), train_request(read_recipe(toy.recipe, lake=str(tmp_path / "empty"))))
    assert "etl/jobs/snapshot.py" in str(caught.value)


def test_a_changed_model_is_not_evaluated(write_toy):
    toy = write_toy()
    run = train_toy(toy)["run"]
    path = Path(toy.lake.storage.path(*toy.lake.run("toy", run), "model", "weights.npz"))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(IntegrityError, match="does not have the checksum"):
        evaluate(World(), evaluate_request(read_recipe(toy.recipe)))


def test_the_job_ends_with_the_errors_status_and_text(write_toy, run_here, tmp_path):
    toy = write_toy()
    done = run_here(
        "training/jobs/train.py", "--recipe", toy.recipe, "--lake", tmp_path / "empty", "--summary", tmp_path / "s.json"
    )
    assert done.returncode == 3
    assert "no snapshot of recipe 'toy'" in done.stderr
    assert "next: spark-submit" in done.stderr
    assert json.loads((tmp_path / "s.json").read_text())["status"] == "StageError"
