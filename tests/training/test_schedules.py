"""Learning rates at points worked out by hand, and what is derived from a batch of another size."""

from __future__ import annotations

import json
import math

import pytest

from lakering.errors import SettingError
from lakering.summary import Summary
from recipes import read_recipe
from recipes.training import LearningRateScaling, StepDecay, Training
from training.preview import preview_training
from training.requests import train_request
from training.schedules import derive, learning_rate, with_scaled_batch


def rates(settings: Training, steps: list[int], total: int) -> list[float]:
    return [learning_rate(settings, step, total) for step in steps]


def test_after_warm_up_a_rate_is_constant():
    settings = Training(learning_rate=0.8, warmup_steps=4)
    assert rates(settings, [0, 1, 3, 4, 99], 100) == pytest.approx([0.2, 0.4, 0.8, 0.8, 0.8])


def test_a_cosine_falls_from_the_end_of_warm_up_to_the_last_step():
    settings = Training(learning_rate=2.0, warmup_steps=10, schedule="cosine")
    half = 1 + math.sqrt(0.5)  # 2 * (1 + cos 45°) / 2
    assert rates(settings, [4, 9, 10, 20, 30, 50], 50) == pytest.approx([1.0, 2.0, 2.0, half, 1.0, 0.0])


def test_steps_of_decay_stand_at_epochs_whole_or_not():
    settings = Training(learning_rate=1.0, warmup_steps=2, epochs=4, schedule="step",
                        step_decay=StepDecay(at_epochs=(1.5, 3), factor=0.5))  # fmt: skip
    assert rates(settings, [0, 1, 2, 14, 15, 29, 30, 39], 40) == pytest.approx([0.5, 1, 1, 1, 0.5, 0.5, 0.25, 0.25])
    twice_the_batch = rates(settings, [7, 8, 14, 15], 20)
    assert twice_the_batch == pytest.approx([1, 0.5, 0.5, 0.25]), "the same epochs: 7.5 and 15 steps"


@pytest.mark.parametrize(("rule", "rate"), [("linear", 0.8), ("square_root", 0.4)])
def test_a_rate_is_scaled_with_the_batch_and_warm_up_keeps_its_rows(rule, rate):
    settings = Training(global_batch_size=1600, learning_rate=0.2, warmup_steps=10,
                        scale_learning_rate=LearningRateScaling(rule=rule, base_batch_size=400))  # fmt: skip
    derived = derive(settings)
    assert (derived.global_batch_size, derived.warmup_steps) == (1600, 3), "4,000 rows are 2.5 steps"
    assert derived.learning_rate == pytest.approx(rate)
    assert rates(settings, [0, 2, 3], 100) == pytest.approx([rate / 3, rate, rate])
    assert derived.facts(settings)["scaled"] == (
        f"by the {rule.replace('_', ' ')} rule, from 400 rows at rate 0.2 with 10 warm-up steps"
    )


def test_a_smaller_batch_than_the_base_has_a_smaller_rate_and_more_steps():
    settings = Training(global_batch_size=100, learning_rate=0.2, warmup_steps=10,
                        scale_learning_rate=LearningRateScaling(rule="linear", base_batch_size=400))  # fmt: skip
    assert derive(settings).learning_rate == pytest.approx(0.05)
    assert derive(settings).warmup_steps == 40


def test_without_a_rule_nothing_is_derived():
    settings = Training(global_batch_size=123, learning_rate=0.3, warmup_steps=7)
    assert derive(settings).facts(settings) == {"global_batch_size": 123, "learning_rate": 0.3, "warmup_steps": 7}


@pytest.mark.parametrize(("optimizer", "rate"), [("sgd", 0.16), ("lars", 0.16), ("adam", 0.04), ("adamw", 0.04), ("lamb", 0.04)])
def test_a_scaled_batch_has_the_rule_that_fits_the_optimizer(optimizer, rate):
    section = Training(optimizer=optimizer, global_batch_size=256, learning_rate=0.01).model_dump(mode="json")
    derived = derive(Training.model_validate(with_scaled_batch(section, 16)))
    assert derived.global_batch_size == 4096
    assert derived.learning_rate == pytest.approx(rate)


def test_a_recipes_own_rule_and_base_hold_for_a_scaled_batch():
    scaling = LearningRateScaling(rule="square_root", base_batch_size=100)
    section = Training(optimizer="sgd", global_batch_size=400, learning_rate=0.01, scale_learning_rate=scaling)
    derived = derive(Training.model_validate(with_scaled_batch(section.model_dump(mode="json"), 4)))
    assert derived.learning_rate == pytest.approx(0.04)


@pytest.mark.parametrize("factor", [0, -2, 10**9])
def test_a_factor_below_one_or_beyond_reason_is_refused(factor):
    with pytest.raises(SettingError, match=f"--scale-batch {factor}: expected 1 to 1,000,000"):
        with_scaled_batch(Training().model_dump(mode="json"), factor)


def test_a_scaled_batch_is_another_run_and_a_dry_run_tells_what_was_derived(write_toy):
    toy = write_toy()
    recipe = read_recipe(toy.recipe, overrides=["training.warmup_steps=8"])
    told = {}
    for factor in (None, 4):
        summary = Summary("train")
        preview_training(summary, train_request(recipe, scale_batch=factor), 1)
        told[factor] = summary.sections
    assert told[None]["run"]["id"] != told[4]["run"]["id"]
    facts = told[4]["training"]
    assert (facts["global_batch_size"], facts["learning_rate"], facts["warmup_steps"]) == (400, pytest.approx(0.02), 2)
    assert (facts["steps_per_epoch"], told[None]["training"]["steps_per_epoch"]) == (2, 7)
    assert "scaled" not in told[None]["training"]


def test_the_job_scales_the_batch_and_says_so(write_toy, run_here, tmp_path):
    toy = write_toy()
    done = run_here("training/jobs/train.py", "--recipe", toy.recipe, "--lake", toy.lake.storage.root, "--scale-batch", "2", "--log-json",
                    "--set", "training.warmup_steps=4", "--summary", tmp_path / "s.json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "s.json").read_text())["training"]
    rate = 0.01 * math.sqrt(2)
    assert (told["global_batch_size"], told["warmup_steps"], told["steps"]) == (200, 2, 8)
    assert told["learning_rate"] == pytest.approx(rate)
    assert "by the square root rule, from 100 rows at rate 0.01 with 4 warm-up steps" in done.stdout
    assert "by the square root rule, from 100 rows" in done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    logged = [line["learning_rate"] for line in lines if line["message"] == "step"]
    assert logged == pytest.approx([rate / 2, rate, *[rate] * 6])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("training.schedule=step", "schedule: step has no step_decay; write schedule: step with step_decay: {at_epochs:"),
        ("training.step_decay={at_epochs: [1]}", "schedule: constant does not use step_decay"),
        ("training.step_decay={at_epochs: [2, 1]}", "epochs must ascend, and 2, 1 do not"),
        ("training.step_decay={at_epochs: [1], factor: 2}", "step_decay.*less than 1, got 2"),
        ("training.scale_learning_rate={rule: cubic, base_batch_size: 1}", "'linear' or 'square_root', got 'cubic'"),
        ("training.scale_learning_rate={rule: linear}", "key 'base_batch_size' is missing"),
    ],
)
def test_wrong_schedules_are_refused_by_name(write_toy, override, says):
    with pytest.raises(SettingError, match=r"toy.yaml:12: training.*" + says):
        read_recipe(write_toy().recipe, overrides=[override])
