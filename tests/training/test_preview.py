"""What --dry-run tells of trainings and evaluations, and that it leaves the lake as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from lakering.errors import InputError, SettingError, StageError
from lakering.summary import Summary
from recipes import read_recipe
from training.distributed import World, num_ranks
from training.evaluate import evaluate, evaluate_request
from training.preview import preview_evaluation, preview_training
from training.requests import train_request
from training.train import train


def files_of(toy):
    """Every file and folder of the lake, with when it was last written."""
    return {path: path.stat().st_mtime_ns for path in Path(toy.lake.storage.root).rglob("*")}


def preview(toy, *overrides, ranks=1, **request):
    before, summary = files_of(toy), Summary("train")
    preview_training(summary, {**train_request(read_recipe(toy.recipe, overrides=overrides)), **request}, ranks)
    assert files_of(toy) == before, "nothing was written"
    return summary.sections


def test_a_dry_run_tells_the_run_its_steps_and_its_model(write_toy):
    toy = write_toy()
    told = preview(toy)
    assert told["run"]["would"] == "start anew"
    assert told["run"]["snapshot"] == toy.manifest.id
    assert told["training"]["rows"] == {"train": 650, "validation": 150, "test": 300}
    assert told["training"]["columns"] == {"float": 2, "id": 2}
    assert (told["training"]["steps_per_epoch"], told["training"]["steps"]) == (7, 14)
    result = train(World(), train_request(read_recipe(toy.recipe)))
    assert result["run"] == told["run"]["id"]
    assert result["record"]["counts"]["parameters"] == told["training"]["parameters"]
    assert preview(toy)["run"]["would"] == "report it: a run of the same inputs is complete (--new trains again)"
    assert preview(toy, new=True)["run"]["id"] == f"{result['run']}-2"


def test_a_dry_run_tells_where_a_broken_run_would_go_on(write_toy):
    toy = write_toy()
    run = train(World(), train_request(read_recipe(toy.recipe)))["run"]
    folder = Path(toy.lake.storage.path(*toy.lake.run("toy", run)))
    (folder / "record.json").unlink()
    (folder / "checkpoints" / "0000000014" / "weights.npz").write_bytes(b"cut")
    told = preview(toy)["run"]
    assert told["would"] == "go on from step 12 (epoch 1, step 5 of 7)"
    assert "checkpoint 0000000014 is passed over" in told["warnings"][0]


def test_a_dry_run_refuses_what_the_training_would_refuse(write_toy, monkeypatch):
    toy = write_toy()
    assert preview(toy, ranks=10)["training"]["ranks"] == 10
    with pytest.raises(SettingError, match=r"cut into 10 lanes, and 11 ranks need one each"):
        preview(toy, ranks=11)
    with pytest.raises(InputError, match="no rows to train on"):
        preview(write_toy({"test": [[10]]}))
    monkeypatch.setenv("HOROVOD_RANK", "0")
    monkeypatch.setenv("HOROVOD_SIZE", "2")
    with pytest.raises(SettingError, match="--ranks 3, but horovodrun started 2"):
        num_ranks(3)


def test_a_dry_run_tells_of_an_evaluation(write_toy):
    toy = write_toy()
    request = evaluate_request(read_recipe(toy.recipe, overrides=["evaluation.trees=false"]))
    with pytest.raises(StageError, match="no trained model of recipe 'toy'"):
        preview_evaluation(Summary("evaluate"), request)
    run = train(World(), train_request(read_recipe(toy.recipe)))["run"]
    before, summary = files_of(toy), Summary("evaluate")
    preview_evaluation(summary, request)
    assert files_of(toy) == before
    assert (summary.sections["run"]["id"], summary.sections["run"]["evaluated_before"]) == (run, "no")
    assert summary.sections["evaluation"] == {"split": "test", "rows": 300, "label": "binary", "baselines": ["base rate"]}
    evaluate(World(), request)
    again = Summary("evaluate")
    preview_evaluation(again, evaluate_request(read_recipe(toy.recipe)))
    assert again.sections["run"]["evaluated_before"] == "yes (it would be written again)"
    assert again.sections["evaluation"]["rows_for_trees"] == 650


def test_the_jobs_take_the_flag(write_toy, run_here):
    toy = write_toy()
    before = files_of(toy)
    done = run_here("training/jobs/train.py", "--recipe", toy.recipe, "--lake", toy.lake.storage.root, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "start anew" in done.stdout
    assert files_of(toy) == before
