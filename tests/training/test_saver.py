"""Checkpoints that are written behind the training's back: in turn, left out, tried again."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest

from lakering.errors import InputError, SettingError, TrainingError, UnsavedError
from lakering.lake import Lake
from lakering.storage import Storage
from recipes import read_recipe
from training import saver
from training.best import read_best
from training.checkpoint import Checkpoint, list_checkpoints, read_checkpoint
from training.distributed import World
from training.requests import train_request
from training.saver import Saver
from training.steplog import StepLog, read_steps
from training.train import train

RUN = ("runs", "toy", "r1")


@pytest.fixture
def lake(tmp_path):
    return Lake(Storage(str(tmp_path)))


def saver_of(lake, **options):
    return Saver(lake, RUN, StepLog(lake, RUN, 0), **{"keep": 3, "keep_best": False, "epoch_steps": 10, **options})


def checkpoint(step, losses=()):
    epochs = [{"epoch": i, "validation_log_loss": loss} for i, loss in enumerate(losses)]
    return Checkpoint({"w": np.full(3, step)}, {}, {"global_step": step, "epoch": len(losses), "step": 0, "epochs": epochs})


class Gate:
    """Holds what is written until it is opened."""

    def __init__(self, monkeypatch):
        self.reached, self.opened, self.write = threading.Event(), threading.Event(), saver.write_checkpoint
        monkeypatch.setattr(saver, "write_checkpoint", self)

    def __call__(self, *arguments, **options):
        self.reached.set()
        assert self.opened.wait(60)
        return self.write(*arguments, **options)


def test_a_save_that_comes_while_one_is_written_is_left_out_and_told(lake, monkeypatch):
    monkeypatch.setattr(saver, "LEAST_WAIT", 0.01)
    gate, ours = Gate(monkeypatch), saver_of(lake)
    assert ours.save(10, lambda: checkpoint(10))
    assert gate.reached.wait(60), "the step goes on while the checkpoint is written"
    assert not ours.save(20, lambda: pytest.fail("what is left out is not copied"))
    gate.opened.set()
    assert ours.save(30, lambda: checkpoint(30), must=True)
    ours.finish()
    assert list_checkpoints(lake, RUN) == ["0000000010", "0000000030"]
    assert ours.notes == ["1 checkpoints (global steps 20) were left out, since the one before was still being written; "
                          "raise training.checkpoint_every"]  # fmt: skip


def test_steps_that_are_done_meanwhile_are_logged_with_the_next_checkpoint(lake, monkeypatch):
    gate, steps = Gate(monkeypatch), StepLog(lake, RUN, 0)
    ours = Saver(lake, RUN, steps, keep=3, keep_best=False, epoch_steps=10)
    for step in range(4):
        steps.add({"global_step": step})
    ours.save(4, lambda: checkpoint(4))
    assert gate.reached.wait(60)
    for step in range(4, 6):
        steps.add({"global_step": step})
    gate.opened.set()
    ours.close()
    assert [line["global_step"] for line in read_steps(lake, RUN)] == [0, 1, 2, 3]
    ours.save(6, lambda: checkpoint(6))
    ours.finish()
    assert [line["global_step"] for line in read_steps(lake, RUN)] == [0, 1, 2, 3, 4, 5]


def test_the_best_epochs_checkpoint_outlives_the_newest_few(lake):
    ours = saver_of(lake, keep=1, keep_best=True)
    for epoch, losses in enumerate(([0.5], [0.5, 0.3], [0.5, 0.3, 0.4], [0.5, 0.3, 0.4, 0.35])):
        ours.save(10 * epoch + 10, lambda epoch=epoch, losses=losses: checkpoint(10 * epoch + 10, losses), must=True)
    ours.finish()
    assert list_checkpoints(lake, RUN) == ["0000000020", "0000000040"]
    best = json.loads(lake.storage.read(*RUN, "best.json"))
    assert best == {"checkpoint": "0000000020", "epoch": 1, "metric": "validation_log_loss", "value": 0.3}
    anew = saver_of(lake, keep=1, keep_best=True)
    anew.save(50, lambda: checkpoint(50, [0.5, 0.3, 0.4, 0.35, 0.2]))
    anew.finish()
    found = read_best(lake, RUN)
    assert found is not None
    assert (found.checkpoint, found.value) == ("0000000050", 0.2)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"checkpoint": "../x", "epoch": 1, "metric": "m", "value": 1}'])
def test_a_broken_word_of_the_best_is_none(lake, text):
    lake.storage.write(text.encode(), *RUN, "best.json")
    assert read_best(lake, RUN) is None


def test_the_last_one_that_cannot_be_written_is_an_error_and_one_before_it_is_not(lake, capsys):
    """A file in the place of the folder: no checkpoint can be written below it."""
    ours = saver_of(lake)
    lake.storage.write(b"", *RUN, "checkpoints")
    ours.save(10, lambda: checkpoint(10))
    ours.close()
    assert "warning: the checkpoint of global step 10 cannot be written" in capsys.readouterr().err
    with pytest.raises(UnsavedError, match="the last checkpoint, of global step 10, could not be written") as caught:
        ours.finish()
    assert caught.value.exit_status == 8
    lake.storage.delete(*RUN, "checkpoints")
    ours.save(20, lambda: checkpoint(20))
    ours.finish()
    assert ours.notes == ["1 checkpoints (global steps 10) could not be written, and were made good by later ones"]


def train_toy(toy, *overrides, **request):
    return train(World(), train_request(read_recipe(toy.recipe, overrides=overrides), **request))


def test_the_best_epoch_is_exported_and_a_run_is_resumed_by_name(write_toy):
    toy = write_toy()
    # So fast that the first epoch is the best.
    best = ("training.keep_best=true", "training.export=best", "training.keep_checkpoints=1", "training.epochs=4",
            "training.learning_rate=0.5")  # fmt: skip
    result = train_toy(toy, *best)
    run, metrics = toy.lake.run("toy", result["run"]), result["record"]["metrics"]
    losses = [epoch["validation_log_loss"] for epoch in metrics["epochs"]]
    epoch = int(np.argmin(losses))
    assert metrics["best"] == {"checkpoint": f"{7 * (epoch + 1):010d}", "epoch": epoch, "metric": "validation_log_loss",
                               "value": min(losses)}  # fmt: skip
    kept = read_checkpoint(toy.lake, run, metrics["best"]["checkpoint"])
    assert kept.facts["random"] == {"seed": 17}
    assert {"snapshot", "model", "training", "code", "epoch", "step", "last_loss"} <= set(kept.facts)
    with np.load(toy.lake.storage.path(*run, "model", "weights.npz"), allow_pickle=False) as exported:
        for number, name in enumerate(kept.weights):
            np.testing.assert_array_equal(exported[f"a{number}"], kept.weights[name])

    assert train_toy(toy, *best, resume=result["run"])["made"] is False
    with pytest.raises(TrainingError, match=rf"run {result['run']} was made with .*training\.epochs 4, this training has 2"):
        train_toy(toy, resume=result["run"])
    with pytest.raises(InputError, match=rf"--resume r9: recipe 'toy' has no such run .*{result['run']}"):
        train_toy(toy, resume="r9")


def test_settings_that_do_not_fit_are_refused(write_toy):
    toy = write_toy({"train": [[200]]})
    with pytest.raises(SettingError, match="export: best takes the checkpoint that keep_best keeps"):
        train_toy(toy, "training.export=best")
    with pytest.raises(SettingError, match="no validation split"):
        train_toy(toy, "training.keep_best=true")
    with pytest.raises(SettingError, match="--resume r1 goes on with a run, and --new makes one"):
        train_toy(toy, resume="r1", new=True)
