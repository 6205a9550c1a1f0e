"""Half precision: the model is computed in it, the variables are not, and an overflow costs a step and no more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from lakering.errors import SettingError, TrainingError
from recipes import read_recipe
from recipes.training import Training
from tests.training.exchanges import Steep
from tests.training.test_models_learn import features_of, model_of
from training.checkpoint import list_checkpoints, read_checkpoint
from training.distributed import World
from training.feed import Feed, Order
from training.loss_scale import LossScale
from training.models import ModelColumns
from training.optimizers import Optimizer
from training.requests import train_request
from training.step import Step
from training.steplog import read_steps
from training.train import train

NO_DROPOUT = "model={name: wide_and_deep, hidden: [16, 8], dropout: 0, embedding_dropout: 0, max_embedding: 4}"


def train_toy(toy, *overrides, **request):
    return train(World(), {**train_request(read_recipe(toy.recipe, overrides=overrides)), **request})


def steps_of(toy, run):
    return read_steps(toy.lake, toy.lake.run("toy", run))


@pytest.mark.parametrize(("precision", "tolerance"), [("mixed_float16", 0.02), ("mixed_bfloat16", 0.05)])
def test_a_mixed_training_is_close_to_float32_and_resumes_with_its_state(write_toy, precision, tolerance):
    toy = write_toy()
    whole = train_toy(toy, NO_DROPOUT, "training.learning_rate=0.02", "training.epochs=4")
    mixed = train_toy(toy, NO_DROPOUT, "training.learning_rate=0.02", "training.epochs=4", f"training.precision={precision}")
    expected, steps = steps_of(toy, whole["run"]), steps_of(toy, mixed["run"])
    assert [s["loss"] for s in steps] == pytest.approx([s["loss"] for s in expected], rel=tolerance)
    assert steps[5]["loss"] != expected[5]["loss"]
    run = toy.lake.run("toy", mixed["run"])
    *_, before, last = list_checkpoints(toy.lake, run)
    checkpoint = read_checkpoint(toy.lake, run, before)
    assert {values.dtype.name for values in checkpoint.weights.values()} == {"float32"}
    if precision == "mixed_float16":
        assert [(s["loss_scale"], s["skipped"]) for s in steps] == [(2.0**15, False)] * 28
        assert checkpoint.optimizer["loss_scale/good_steps"] == int(before)
        assert (mixed["record"]["loss_scale"], mixed["record"]["skipped_steps"]) == (2.0**15, 0)
    folder = Path(toy.lake.storage.path(*run))
    (folder / "record.json").unlink()
    (folder / "checkpoints" / last / "weights.npz").unlink()
    resumed = train_toy(toy, NO_DROPOUT, "training.learning_rate=0.02", "training.epochs=4", f"training.precision={precision}")
    assert resumed["record"]["resumed_at"] == int(before)
    assert [s["loss"] for s in steps_of(toy, mixed["run"])] == pytest.approx([s["loss"] for s in steps], rel=1e-5)


@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("name", ["dlrm", "text_transformer", "cnn"])
def test_models_compute_in_half_precision_and_score_in_float32(name, precision):
    exact, mixed, features = model_of(name), model_of(name, precision=precision), features_of(name)
    scores = tf.function(mixed.scores)(features)
    assert scores.dtype == tf.float32
    assert {variable.dtype for variable in mixed.variables} == {tf.float32}
    difference = np.abs(scores.numpy() - exact.scores(features).numpy()).max()
    assert 1e-6 < difference < (0.01 if precision == "mixed_float16" else 0.08)


def test_numbers_beyond_float16_are_normalised_before_they_are_cast():
    exact, mixed = model_of("dlrm"), model_of("dlrm", precision="mixed_float16")
    features = features_of("dlrm")._replace(floats=tf.constant([[1e30], [-1e6], [2.0]] + [[0.0]] * 17))
    np.testing.assert_allclose(mixed.scores(features).numpy(), exact.scores(features).numpy(), atol=0.02)


def test_the_scale_grows_and_halves_by_the_rule(monkeypatch):
    monkeypatch.setattr("training.loss_scale.GROWTH_STEPS", 3)
    scale, updates = LossScale(), tf.Variable(0)
    step = tf.function(lambda finite: scale.update(finite, lambda: updates.assign_add(1)), autograph=False)
    seen = []
    for finite in (True, True, False, True, True, True, True, False, False, True):
        step(tf.constant(finite))
        seen.append(int(scale.facts()["loss_scale"]))
    one = 2**15
    assert seen == [one, one, one // 2, one // 2, one // 2, one, one, one // 2, one // 4, one // 4]
    assert updates.numpy() == 7
    assert scale.facts()["skipped_steps"] == 3
    assert scale.variables["loss_scale/good_steps"].numpy() == 1


def steps_with(toy, slope, number, **options):
    """Of a steep model, 200 rows a step, trained with momentum: results, weight and slots after each step."""
    settings = Training(optimizer="sgd", momentum=0.5, precision="mixed_float16")
    model = Steep(ModelColumns.of(toy.manifest), slope)
    optimizer = Optimizer(settings, model.variables)
    step = Step(model, optimizer, World(), seed=1, batch_rows=200, **options)
    (batch,) = Feed(lake=toy.lake, manifest=toy.manifest, split="train",
                    order=Order(seed=1, batch_size=200, window=2, lanes=10)).epoch(0)  # fmt: skip
    results = []
    for i in range(number):
        result = step(batch, i, 0.25)
        results.append((result, float(model.variables[0].numpy()), float(optimizer.slots["momentum/weight"].numpy())))
    return results


def test_an_overflow_changes_nothing_and_the_step_after_it_is_the_unscaled_one(write_toy):
    """The sum of 200 rows of gradient 4 is 800; scaled by 2^15 / 256 it is 102,400, and by 2^14 / 256 it is 51,200."""
    toy = write_toy({"train": [[200]]})
    (first, weight, momentum), (second, moved, after) = steps_with(toy, 2.0, 2)
    assert (first.loss, first.skipped, first.loss_scale) == (1.0, True, 2.0**14)
    assert (weight, momentum) == (0.0, 0.0)
    assert (second.loss, second.skipped, second.loss_scale) == (1.0, False, 2.0**14)
    assert second.gradient_norm == pytest.approx(4.0, rel=1e-3)
    assert (moved, after) == (pytest.approx(-0.25 * 4, abs=1e-3), pytest.approx(4, rel=1e-3))
    (_, clipped, _) = steps_with(toy, 2.0, 2, clip_norm=2.0)[-1]
    assert clipped == pytest.approx(-0.25 * 2, abs=1e-3), "clipped after it is unscaled"


def test_a_scale_below_1_ends_the_training(write_toy, monkeypatch):
    monkeypatch.setattr("training.loss_scale.START", 4.0)
    monkeypatch.setattr("training.train.build_model", lambda section, columns, **_: Steep(columns, 300.0))
    with pytest.raises(TrainingError, match="epoch 0, step 2: the loss scale has fallen below 1") as caught:
        train_toy(write_toy(), "training.precision=mixed_float16")
    assert "mixed_bfloat16" in str(caught.value)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("training.precision=float16", "'float32', 'float64', 'mixed_float16' or 'mixed_bfloat16', got 'float16'"),
        ("training.compression=bf16", "compression: bfloat16 cannot be sent: Gloo, over which the ranks speak, has no such type"),
        ("training.compression=adasum", "compression: Adasum is not in this Horovod's build: gradients are summed"),
        ("training.compression=fp8", "compression: Input should be 'none' or 'fp16', got 'fp8'"),
        ("training.sparse_gradients=always", "sparse_gradients: Input should be 'auto' or 'dense', got 'always'"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(write_toy, override, says):
    with pytest.raises(SettingError, match=r"toy.yaml:12: training.*" + says):
        read_recipe(write_toy().recipe, overrides=[override])
