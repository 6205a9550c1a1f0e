"""Two real ranks under horovodrun: the same training as on one, and errors that reach all of them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lakering.errors import SettingError
from recipes import read_recipe
from tests.training.exchanges import local_gradients
from tests.training.two_ranks import LARGE_BATCH, SLICES, TWO_TOWERS
from training.distributed import World, launch
from training.distributed.modes import detect_mode, only_first_speaks, validate_ranks
from training.evaluate import evaluate, evaluate_request
from training.requests import lake_of, train_request
from training.step import share_of_cores
from training.steplog import read_steps
from training.train import train


@pytest.fixture(scope="module")
def seen(tmp_path_factory, toy_writer, job_environment):
    """What each rank of ``two_ranks.py`` saw, and the toy that they trained on."""
    toy = toy_writer(tmp_path_factory.mktemp("two"))
    (toy.folder / "nan").mkdir()
    toy_writer(toy.folder / "nan", nan_in_train_row=3)
    script = Path(__file__).with_name("two_ranks.py")
    command = [str(Path(sys.executable).with_name("horovodrun")), "-np", "2", "--network-interface", "lo",
               sys.executable, str(script), str(toy.recipe), str(toy.folder)]  # fmt: skip
    done = subprocess.run(command, env=job_environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return toy, [json.loads((toy.folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


def test_collectives(seen):
    for rank in seen[1]:
        assert rank["size"] == 2
        assert rank["gather"] == ["rank 0", "rank 1rank 1"]
        assert rank["broadcast"] == [5]
        assert rank["sum"] == [[0.2, 1.0]]


def test_disagreement_and_failures_reach_every_rank(seen):
    for rank in seen[1]:
        assert rank["agree"] == "TrainingError: ranks disagree on recipe: rank 0 has r0, rank 1 has r1"
        assert rank["together"] == "IntegrityError: file x is cut"
        assert "ranks disagree on" in rank["other recipe"]
        assert rank["broken feed"] == "IntegrityError: train-1.parquet, row group 0 cannot be read"
        assert rank["two towers, broken feed"] == rank["broken feed"]
    assert "No such file" in seen[1][1]["from_first"]


def test_a_weight_that_changes_on_one_rank_ends_every_rank(seen):
    """At the next comparison, before it is saved; named are the rank and the variable, and when they were the same. The
    gradients are sums over the ranks, so that nothing else differs."""
    for rank in seen[1]:
        assert rank["changed weight"] == (
            f"TrainingError: the ranks' weights are no longer the same at global step 3: rank 1 on {socket.gethostname()} in "
            "dense_0/weight; they agreed at global step 0"
        )


def test_a_broken_file_ends_every_rank_within_seconds(seen):
    """Whichever of them read it: the other was not left waiting."""
    for rank in seen[1]:
        assert rank["broken file"].startswith("IntegrityError: ")
        assert "train-1.parquet, row group 0 cannot be read" in rank["broken file"]
        assert rank["broken file's seconds"] < 30


def test_a_row_that_is_not_finite_is_named_by_every_rank_at_the_same_step(seen):
    """Whichever of them has it."""
    ours, theirs = (rank["not finite"] for rank in seen[1])
    assert ours == theirs
    assert ours.startswith("TrainingError: epoch 0, step ")
    assert "of the batch's values 1 are not finite: row_id 3: x0 is nan" in ours


def test_two_ranks_have_the_losses_of_one(seen):
    toy, ranks = seen
    recipe = read_recipe(toy.recipe)
    alone = train(World(), {**train_request(recipe), "new": True})
    lake = lake_of(train_request(recipe))
    ours, theirs = (read_steps(lake, lake.run("toy", run)) for run in (alone["run"], ranks[0]["run"]))
    assert len(ours) == len(theirs) == 14
    assert [s["rows"] for s in ours] == [s["rows"] for s in theirs] == ([100] * 6 + [50]) * 2
    assert [s["loss"] for s in ours] == pytest.approx([s["loss"] for s in theirs], rel=1e-5)
    assert ours[0]["loss"] != ours[1]["loss"]


def test_clipped_accumulated_and_smoothed_steps_are_those_of_one_rank(seen):
    toy, ranks = seen
    recipe = read_recipe(toy.recipe, overrides=LARGE_BATCH)
    alone = train(World(), {**train_request(recipe, scale_batch=2), "new": True})
    theirs, ours = (read_steps(toy.lake, toy.lake.run("toy", run)) for run in (ranks[0]["large batch"], alone["run"]))
    assert [s["rows"] for s in theirs] == ([200] * 3 + [50]) * 2
    assert [s["loss"] for s in ours] == pytest.approx([s["loss"] for s in theirs], rel=1e-10)


def test_sums_as_fp16_cannot_overflow_and_lose_no_more_than_rounding(seen):
    """Each of three roundings, of two ranks and of their sum, is at most 2^-11 of the largest sum there could be."""
    ranks = [rank["exchanges"]["fp16"] for rank in seen[1]]
    assert ranks[0] == ranks[1]
    locals_ = [local_gradients(rank) for rank in (0, 1)]
    for ours, a, b in zip(ranks[0]["sums"], *locals_, strict=True):
        exact = a.astype(np.float64) + b
        np.testing.assert_allclose(ours, exact, rtol=0, atol=3 * 2**-11 * (np.abs(a).max() + np.abs(b).max()))
    assert np.abs(ranks[0]["sums"][0]).max() > 1e8, "far beyond float16's 65,504"
    assert np.all(np.array(ranks[0]["sums"][1]) != 0), "far below its least number"
    assert ranks[0]["facts"] == [33_554_427.0 + 1, 0, 2], "in float32: the sum of 16,777,213 and 16,777,214, rounded"
    assert ranks[0]["broken is finite"] is False
    assert ranks[0]["says"] == "communication: 3 dense tensors 0.0 MiB a step, as fp16"


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_large_table_sent_by_its_rows_gives_the_weights_of_the_dense_gradient(seen, optimizer):
    ours, theirs = (rank["exchanges"][optimizer] for rank in seen[1])
    assert ours == theirs
    assert ours["moved"] > 1e-3
    assert ours["sparse"] < 1e-12
    assert ours["fp16"] > 0
    if optimizer == "sgd":
        assert ours["fp16"] < 1e-5
    assert ours["traces"] == 1
    # Two lookups a row, each of 4 numbers of 8 bytes and an id; the small table is not worth it.
    assert ours["communication"] == {"ranks": 2, "dense_tensors": 2, "dense_bytes": 301 * 4 * 8,
                                     "sparse": {"table": 100 * 2 * (4 * 8 + 8)}, "compression": "none"}  # fmt: skip


def test_an_overflow_on_one_rank_is_skipped_on_both(seen):
    ours, theirs = (rank["exchanges"]["overflows"] for rank in seen[1])
    assert ours == theirs
    skipped = [step[0] for step in ours]
    assert skipped == sorted(skipped, reverse=True), "skipped until the scale is small enough"
    number = sum(skipped)
    assert 1 <= number <= 8
    assert [step[1] for step in ours] == [2.0 ** (15 - min(i + 1, number)) for i in range(9)]
    assert {step[2] for step in ours[:number]} == {0.0}
    assert ours[number][2] != 0


def test_each_rank_has_cores_of_its_own(seen):
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("one core")
    ours, theirs = (rank["cores"] for rank in seen[1])
    assert all(thread == ours[0] for thread in ours)
    assert all(thread == theirs[0] for thread in theirs)
    assert ours[0] + theirs[0] == cores


@pytest.mark.parametrize(("cores", "ranks", "shares"), [
    ([0, 1, 2, 3, 4], 2, [[0, 1], [2, 3, 4]]), ([4, 6], 1, [[4, 6]]), ([1, 3], 3, [[1, 3]] * 3)])  # fmt: skip
def test_shares_of_cores(cores, ranks, shares):
    assert [share_of_cores(cores, rank, ranks) for rank in range(ranks)] == shares


def test_negatives_span_the_batch_of_both_ranks(seen):
    toy, ranks = seen
    alone = train(World(), {**train_request(read_recipe(toy.recipe, overrides=TWO_TOWERS)), "new": True})
    theirs, ours = (read_steps(toy.lake, toy.lake.run("toy", run)) for run in (ranks[0]["two towers"], alone["run"]))
    assert [s["rows"] for s in theirs] == ([100] * 6 + [50]) * 3
    assert [s["loss"] for s in theirs] == pytest.approx([s["loss"] for s in ours], rel=1e-10)


def test_the_slowest_rank_is_named_and_the_others_waiting_is_no_allreduce(seen):
    toy, ranks = seen
    record = ranks[0]["watched"]["record"]
    timings = record["timings"]
    split = timings["milliseconds_per_step"]
    assert timings["slowest"].startswith(f"rank 1 on {socket.gethostname()} (compute")
    # Rank 0 waits for the 500 ms of rank 1 at each step, less what itself is slower: on an average of both ranks, half of that.
    assert split["waiting_for_others"] > 50
    assert split["compute"] > 250
    assert timings["rows_per_second"] == pytest.approx(2 * timings["rows_per_second_per_rank"])
    # 1,300 rows in 14 steps of 500 ms and more.
    assert 0 < timings["rows_per_second"] < 1300 / (14 * 0.5)
    steps = read_steps(toy.lake, toy.lake.run("toy", ranks[0]["watched"]["run"]))
    assert all(0 < step["allreduce_seconds"] < step["seconds"] for step in steps)


def test_profiled_steps_come_from_every_rank_with_the_timeline_of_exactly_those_steps(seen):
    toy, ranks = seen
    folder = Path(toy.lake.storage.path(*toy.lake.run("toy", ranks[0]["watched"]["run"]), "profile"))
    assert [len(list(folder.glob(f"rank-{rank}/plugins/profile/*/*.xplane.pb"))) for rank in (0, 1)] == [1, 1]
    timeline = json.loads((folder / "horovod_timeline.json").read_text())
    names = {event["pid"]: event["args"]["name"] for event in timeline if "name" in event.get("args", {})}
    done = Counter(names[event["pid"]] for event in timeline if event.get("name") == "ALLREDUCE")
    of_steps = {name: count for name, count in done.items() if name.startswith("step")}
    assert len(of_steps) > 5
    assert set(of_steps.values()) == {3}
    assert ranks[0]["watched"]["record"]["profile"]["timeline"].startswith(str(folder / "horovod_timeline.json"))


def test_two_ranks_evaluate_as_one(seen):
    toy, ranks = seen
    assert ranks[0]["again"] is False
    assert ranks[1]["evaluation"] == {}
    alone = evaluate(World(), evaluate_request(read_recipe(toy.recipe, overrides=[SLICES]), run=ranks[0]["run"]))
    assert alone["figures"]["model"] == pytest.approx(ranks[0]["evaluation"]["figures"]["model"], rel=1e-6)
    assert alone["figures"]["model"]["rows"] == 300
    slices = ranks[0]["evaluation"]["slices"]
    assert sum(row["rows"] for row in slices["a"]) == 300
    for column, table in alone["slices"].items():
        for ours, theirs in zip(table, slices[column], strict=True):
            assert ours.pop("value") == theirs.pop("value")
            assert ours == pytest.approx(theirs, rel=1e-6)


def test_ranks_stop_early_together(seen):
    for rank in seen[1]:
        assert [epoch["epoch"] for epoch in rank["stopped early"]["epochs"]] == [0, 1]
        assert rank["stopped early"]["stopped_early"].startswith("stopped early after epoch 1: validation_log_loss has not been")


def test_modes(monkeypatch):
    for name in ("HOROVOD_RANK", "HOROVOD_SIZE", "PYSPARK_GATEWAY_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert detect_mode() == "python"
    with pytest.raises(SettingError, match="--ranks 2: plain Python is one rank") as caught:
        launch("nowhere:at_all", {}, ranks=2)
    assert "horovodrun -np 2" in str(caught.value)
    with pytest.raises(SettingError, match="--ranks 0: expected 1 or more"):
        validate_ranks("spark", 0)
    monkeypatch.setenv("PYSPARK_GATEWAY_PORT", "1")
    assert detect_mode() == "spark"
    assert validate_ranks("spark", None) == 1
    monkeypatch.setenv("HOROVOD_RANK", "0")
    monkeypatch.setenv("HOROVOD_SIZE", "2")
    assert detect_mode() == "horovodrun"
    assert validate_ranks("horovodrun", None) == 2
    with pytest.raises(SettingError, match="--ranks 3, but horovodrun started 2"):
        validate_ranks("horovodrun", 3)


def test_only_the_first_rank_writes_the_summary(monkeypatch, capsys):
    arguments = ["--recipe", "r.yaml", "--summary", "s.json", "--new"]
    monkeypatch.setenv("HOROVOD_RANK", "0")
    assert only_first_speaks(arguments) == arguments
    monkeypatch.setenv("HOROVOD_RANK", "1")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", sys.stdout)
        assert only_first_speaks(arguments) == ["--recipe", "r.yaml", "--new"]
        print("not seen")
    assert capsys.readouterr().out == ""
