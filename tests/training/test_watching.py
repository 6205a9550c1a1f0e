"""What a training tells while it runs and after: times of its steps, TensorBoard's files, profiles, and a bar."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from lakering.errors import SettingError
from lakering.summary import Summary
from recipes import read_recipe
from training import watch
from training.distributed import World
from training.loop import Loop
from training.profile import read_range
from training.requests import train_request
from training.steplog import read_steps
from training.summaries import add_training
from training.timing import RankTimes, StepTimes, slowest_rank, time_facts
from training.train import train
from training.watch import Watch


def train_toy(toy, *overrides, profile=None, **request):
    recipe = read_recipe(toy.recipe, overrides=overrides)
    return train(World(), {**train_request(recipe, profile=profile), **request})


def events_of(folder: Path) -> list[tuple[int, str, float]]:
    """(step, tag, value) of all event files of a folder, in the order in which TensorBoard reads them."""
    found = []
    for path in sorted(folder.iterdir()):
        assert "tfevents" in path.name
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
    return found


def clock(monkeypatch, *moments):
    left = iter(moments)
    monkeypatch.setattr("training.timing.time.perf_counter", lambda: next(left))


def test_a_step_is_input_allreduce_and_compute(monkeypatch):
    times = StepTimes()
    #                  ask, begin, end; a pause of 1.5 s; the same again
    clock(monkeypatch, 10.0, 10.5, 12.5, 14.0, 14.25, 15.25)
    for allreduce in (0.5, 7.0):  # the clock of the second allreduce was set: no more than the step's own second
        times.ask()
        times.begin()
        times.end(100, allreduce)
    assert (times.steps, times.rows) == (2, 200)
    assert (times.input, times.allreduce, times.compute) == (0.75, 1.5, 1.5)
    assert (times.shortest, times.longest, times.paused) == (1.25, 2.5, 1.5)


def test_quantiles_of_many_steps_take_a_fixed_amount_of_memory():
    seconds = np.random.default_rng(3).lognormal(-5, 1.2, 4000)
    halves = [StepTimes(), StepTimes()]
    for i, value in enumerate(seconds):
        halves[i % 2].steps += 1
        halves[i % 2]._count(float(value))
    size = len(halves[0].counts)
    halves[0].add(halves[1])
    assert len(halves[0].counts) == size
    for share in (0.05, 0.5, 0.95):
        assert halves[0].quantile(share) == pytest.approx(np.quantile(seconds, share), rel=0.05)
    assert (halves[0].quantile(1.0), halves[0].shortest) == (seconds.max(), seconds.min())
    assert StepTimes().quantile(0.95) == 0.0


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        ([(1, 10), (1, 10.2)], "ranks even"),
        ([(1, 10), (1, 13)], "rank 1 on host1 (compute 1.3x the others' median)"),
        ([(4, 10), (2, 10), (1, 10), (2, 10)], "rank 0 on host0 (input 2x the others' median)"),
        ([(0, 10), (5, 10)], "rank 1 on host1 (input 33% of its work, of the others' next to none)"),
    ],
)
def test_the_slowest_rank_is_the_one_whose_own_work_takes_longest(ranks, expected):
    # Those that wait for it have the longer allreduce.
    most = max(sum(own) for own in ranks)
    assert slowest_rank([RankTimes(f"host{i}", a, b, most - a - b) for i, (a, b) in enumerate(ranks)]) == expected


class ThreeRanks(World):
    """Rank 0 of three, with what the other two would send."""

    size = 3

    def gather(self, text, name):
        others = (
            {"host": "b", "input": 0.0, "compute": 10.0, "allreduce": 2.0},
            {"host": "c", "input": 1.0, "compute": 4.0, "allreduce": 7.0},
        )
        return [text, *map(json.dumps, others)]


def test_waiting_for_others_is_told_apart_from_the_allreduce():
    facts = time_facts(ThreeRanks(), StepTimes(steps=10, rows=6000, input=2.0, compute=4.0, allreduce=6.0, seconds=15.0))
    assert facts["milliseconds_per_step"] == pytest.approx(
        {"input": 100, "compute": 600, "allreduce": 200, "waiting_for_others": 300, "between_steps": 300})  # fmt: skip
    assert (facts["rows_per_second"], facts["rows_per_second_per_rank"]) == (400, pytest.approx(400 / 3))
    assert facts["slowest"] == "rank 1 on b (compute 2.5x the others' median)"


def test_a_training_tells_where_its_time_went(write_toy, caplog):
    toy = write_toy()
    with caplog.at_level(logging.INFO, "training"):
        result = train_toy(toy, "training.epochs=2")
    timings = result["record"]["timings"]
    steps = read_steps(toy.lake, toy.lake.run("toy", result["run"]))
    split = timings["milliseconds_per_step"]
    assert set(split) == {"input", "compute", "between_steps"}
    assert 14 * (split["input"] + split["compute"]) == pytest.approx(1e3 * sum(step["seconds"] for step in steps))
    # 1,300 rows in the wall time of the loop, which is what the parts add up to.
    assert timings["rows_per_second"] == pytest.approx(1300 / (14 * sum(split.values()) / 1e3), rel=1e-6)
    assert timings["step_milliseconds"]["max"] == pytest.approx(1e3 * max(step["seconds"] for step in steps))
    assert timings["longest_pause_seconds"] > 0
    assert timings["validation_seconds"] > 0
    assert all(step["gradient_norm"] > 0 and step["allreduce_seconds"] == 0 for step in steps)
    told = [record.facts for record in caplog.records if record.message == "epoch done"]
    assert [facts["epoch"] for facts in told] == [0, 1]
    assert all(facts["rows_per_second"] > 0 for facts in told)
    summary = Summary("train")
    add_training(summary, {**result, "launch": "python, one rank"})
    assert summary.sections["steps"]["milliseconds_per_step"] == split
    assert summary.sections["feed"]["row_groups_read"] > 0


def test_tensorboard_shows_every_step_once_after_a_resumed_run(write_toy, monkeypatch):
    toy = write_toy()
    save, saved = Loop.save, []

    def dying(loop: Loop, **options: Any) -> None:
        save(loop, **options)
        loop.saver.close()
        saved.append(loop.progress.global_step)
        if len(saved) == 4:
            # What a run leaves that dies between its log and its checkpoint.
            loop.steps.add({**read_steps(toy.lake, loop.run)[-1], "global_step": 99})
            loop.steps.flush()
            raise KeyboardInterrupt

    monkeypatch.setattr(Loop, "save", dying)
    with pytest.raises(KeyboardInterrupt):
        train_toy(toy, "training.epochs=3")
    monkeypatch.setattr(Loop, "save", save)
    run = train_toy(toy, "training.epochs=3")
    assert run["record"]["resumed_at"] == saved[-1] == 12
    steps = read_steps(toy.lake, toy.lake.run("toy", run["run"]))
    events = events_of(Path(toy.lake.storage.path(*toy.lake.run("toy", run["run"]), "tensorboard")))
    for tag in ("loss", "learning_rate", "gradient_norm", "rows_per_second"):
        shown = [(step, value) for step, name, value in events if name == f"train/{tag}"]
        assert [step for step, _ in shown] == list(range(21))
        assert [value for _, value in shown] == pytest.approx([step[tag] for step in steps], rel=1e-6)
    auc = [(step, value) for step, name, value in events if name == "validation/auc"]
    assert [step for step, _ in auc] == [6, 13, 20]
    assert [value for _, value in auc] == pytest.approx([e["validation_auc"] for e in run["record"]["metrics"]["epochs"]])


def test_tensorboard_can_be_left_out(write_toy):
    toy = write_toy()
    run = train_toy(toy, "training.epochs=1", "training.tensorboard=false")["run"]
    assert "tensorboard" not in toy.lake.storage.list(*toy.lake.run("toy", run))


def test_chosen_steps_are_profiled(write_toy, capsys):
    toy = write_toy()
    result = train_toy(toy, "training.epochs=1", profile="2:3")
    folder = Path(toy.lake.storage.path(*toy.lake.run("toy", result["run"]), "profile"))
    (xplane,) = folder.glob("rank-0/plugins/profile/*/*.xplane.pb")
    assert b"__inference_run" in xplane.read_bytes()
    assert result["record"]["profile"]["steps"] == "2 to 3"
    assert str(folder) in result["record"]["profile"]["open"]
    assert (result["notes"], capsys.readouterr().err.count("warning")) == ([], 0)
    again = train_toy(toy, "training.epochs=1", profile="2:3")
    assert again["notes"] == ["no step was profiled: the run is complete (--new trains again)"]


def test_a_profile_that_cannot_be_made_is_a_warning(write_toy, capsys):
    toy = write_toy()
    tf.profiler.experimental.start("")  # a process has one profiler
    try:
        result = train_toy(toy, "training.epochs=1", profile="2:3")
    finally:
        tf.profiler.experimental.stop(save=False)
    assert result["record"]["status"] == "complete"
    assert "the profile has nothing of rank 0" in result["notes"][0]
    assert "the profile has nothing of rank 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5", "--profile 5: expected FIRST:LAST, two global steps"),
        ("7:5", "--profile 7:5: the last step is before the first"),
        ("0:1000", "--profile 0:1000: 1,001 steps; a profile is of 1,000 at most"),
    ],
)
def test_wrong_ranges_are_refused(text, message):
    with pytest.raises(SettingError, match=message):
        read_range(text)


def test_steps_that_a_training_does_not_have_or_has_done_are_refused(write_toy, monkeypatch):
    toy = write_toy()
    with pytest.raises(SettingError, match="--profile 5:14: the training's last step is 13"):
        train_toy(toy, "training.epochs=2", profile="5:14")
    save = Loop.save

    def dying(loop: Loop, **options: Any) -> None:
        save(loop, **options)
        loop.saver.close()
        raise KeyboardInterrupt

    monkeypatch.setattr(Loop, "save", dying)
    with pytest.raises(KeyboardInterrupt):
        train_toy(toy, "training.epochs=2")
    with pytest.raises(SettingError, match="--profile 3:9: the run goes on at step 4"):
        train_toy(toy, "training.epochs=2", profile="3:9")


def test_without_a_terminal_a_line_now_and_then_shows_life(monkeypatch, capsys):
    moments = iter([0.0, 10.0, 31.0, 40.0, 62.0, 63.0])
    monkeypatch.setattr(watch.time, "perf_counter", lambda: next(moments))
    shown = Watch(100, 20, shown=True)
    for step in range(21, 25):
        shown.step(step, 1, 0.5, 620)
    shown.close()
    assert capsys.readouterr().err.splitlines() == [
        "training: step 22 of 100, epoch 1, loss 0.5000, 40 rows/s, 20:09 left",
        "training: step 24 of 100, epoch 1, loss 0.5000, 40 rows/s, 19:38 left",
    ]
    hidden = Watch(100, 20, shown=False)
    hidden.step(99, 1, 0.5, 620)
    assert capsys.readouterr().err == ""
