"""Optimizers against their papers written down in numpy, and what a step does beside them: clipping, accumulation,
smoothed labels. In float64, where only a wrong formula differs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from lakering.errors import SettingError
from recipes import read_recipe
from recipes.training import Training
from training.checkpoint import list_checkpoints, read_checkpoint
from training.distributed import World
from training.feed import Feed, Order
from training.models import Features, ModelColumns, build_model
from training.optimizers import Optimizer
from training.requests import train_request
from training.step import Step
from training.steplog import read_steps
from training.train import train

SHAPES = {"dense/weight": (4, 3), "dense/bias": (3,), "embedding": (5, 2), "zeros": (2, 2), "out/bias": ()}


def norm(values):
    return np.sqrt((np.asarray(values) ** 2).sum())


def sgd(w, g, state, t, rate, decay, momentum):
    """Goyal et al. 2017, equation 9; decay as an L2 penalty."""
    state["v"] = momentum * state.get("v", 0) + g + decay * w
    return w - rate * state["v"]


def adam(w, g, state, t, rate, decay, momentum, decoupled=False):
    """Kingma, Ba 2015, in the form of the end of section 2 (epsilon hat); decoupled: Loshchilov, Hutter 2019."""
    g, w = (g, w - rate * decay * w) if decoupled else (g + decay * w, w)
    m = state["m"] = 0.9 * state.get("m", 0) + 0.1 * g
    v = state["v"] = 0.999 * state.get("v", 0) + 0.001 * g * g
    return w - rate * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-7)


def adamw(w, g, state, t, rate, decay, momentum):
    return adam(w, g, state, t, rate, decay, momentum, decoupled=True)


def lars(w, g, state, t, rate, decay, momentum):
    """You, Gitman, Ginsburg 2017, algorithm 1; vectors get plain momentum without decay."""
    local = 1.0
    if np.ndim(w) > 1:
        local = 0.001 * norm(w) / (norm(g) + decay * norm(w)) if norm(w) else 1.0
        g = g + decay * w
    state["v"] = momentum * state.get("v", 0) + rate * local * g
    return w - state["v"]


def lamb(w, g, state, t, rate, decay, momentum):
    """You et al. 2020, algorithm 2 with phi(z) = z; vectors get Adam's step without decay."""
    m = state["m"] = 0.9 * state.get("m", 0) + 0.1 * g
    v = state["v"] = 0.999 * state.get("v", 0) + 0.001 * g * g
    r = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-6)
    if np.ndim(w) > 1:
        r = r + decay * w
        r = r * (norm(w) / norm(r) if norm(w) and norm(r) else 1.0)
    return w - rate * r


PAPERS = {"sgd": sgd, "adam": adam, "adamw": adamw, "lars": lars, "lamb": lamb}


@pytest.mark.parametrize("decay", [0.0, 0.03])
@pytest.mark.parametrize(
    ("optimizer", "momentum"),
    [("sgd", 0.0), ("sgd", 0.9), ("adam", 0.0), ("adamw", 0.0), ("lars", 0.0), ("lars", 0.9), ("lamb", 0.0)],
)
def test_an_optimizer_is_its_paper(optimizer, momentum, decay):
    random = np.random.default_rng(3)
    expected = {name: random.normal(size=shape) for name, shape in SHAPES.items()}
    expected["zeros"] = np.zeros(SHAPES["zeros"])
    variables = [tf.Variable(value, name=name, dtype=tf.float64) for name, value in expected.items()]
    ours = Optimizer(Training(optimizer=optimizer, momentum=momentum, weight_decay=decay), variables)
    apply = tf.function(ours.apply)
    states: dict[str, dict[str, np.ndarray]] = {name: {} for name in SHAPES}
    for step in range(6):
        rate = 0.05 / (step + 1)
        gradients = {name: random.normal(size=shape) for name, shape in SHAPES.items()}
        if step == 0:
            gradients["zeros"] = np.zeros(SHAPES["zeros"])  # as of ids that no row of a batch has
        apply([tf.constant(g, tf.float64) for g in gradients.values()], tf.constant(ours.rates(rate, step)))
        for name, gradient in gradients.items():
            expected[name] = PAPERS[optimizer](expected[name], gradient, states[name], step + 1, rate, decay, momentum)
        for variable in variables:
            name = variable.name.removesuffix(":0")
            np.testing.assert_allclose(variable.numpy(), expected[name], rtol=1e-10, atol=1e-14, err_msg=f"{name}, step {step}")


def step_through(toy, *, precision="float64", batch_size=130, steps=None, **options):
    """Results of steps over the toy's train split, and the weights after them. The last batch is short; then none."""
    model = build_model({"name": "wide_and_deep", "hidden": [6, 4], "dropout": 0.3}, ModelColumns.of(toy.manifest), seed=1,
                        precision=precision)  # fmt: skip
    settings = Training(optimizer=options.pop("optimizer", "adam"))
    step = Step(model, Optimizer(settings, model.variables), World(), seed=1, **options)
    feed = Feed(lake=toy.lake, manifest=toy.manifest, split="train",
                order=Order(seed=1, batch_size=batch_size, window=2, lanes=10))  # fmt: skip
    results = [step(batch, batch.step, 0.05) for batch in feed.epoch(0) if steps is None or batch.step < steps]
    results.append(step(None, len(results), 0.05))
    assert step.num_traces == 1
    return results, {variable.name: variable.numpy() for variable in model.variables}


@pytest.mark.parametrize("parts", [2, 7, 130])
def test_accumulation_changes_no_number(write_toy, parts):
    toy = write_toy(weight=True)
    (whole, weights), (cut, cut_weights) = step_through(toy), step_through(toy, accumulate=parts)
    assert [r.loss for r in cut] == pytest.approx([r.loss for r in whole], rel=1e-12)
    assert [r.gradient_norm for r in cut] == pytest.approx([r.gradient_norm for r in whole], rel=1e-12)
    assert [r.failed_ranks for r in cut] == [0] * 5 + [1]
    for name, values in weights.items():
        np.testing.assert_allclose(cut_weights[name], values, rtol=1e-9, atol=1e-13, err_msg=name)


def test_a_gradient_beyond_clip_norm_is_scaled_to_it_and_a_smaller_one_is_not(write_toy):
    toy = write_toy()
    _, start = step_through(toy, optimizer="sgd", steps=0)
    (free, _), free_weights = step_through(toy, optimizer="sgd", steps=1)
    limit = free.gradient_norm / 5
    (clipped, _), clipped_weights = step_through(toy, optimizer="sgd", steps=1, clip_norm=limit)
    _, untouched = step_through(toy, optimizer="sgd", steps=1, clip_norm=free.gradient_norm * 1.01)
    moved = {name: clipped_weights[name] - start[name] for name in start}
    assert clipped.gradient_norm == free.gradient_norm, "what is told is the gradient's own norm"
    assert np.sqrt(sum((d**2).sum() for d in moved.values())) == pytest.approx(0.05 * limit, rel=1e-10)
    for name in start:
        np.testing.assert_allclose(5 * moved[name], free_weights[name] - start[name], rtol=1e-8, atol=1e-14)
        np.testing.assert_array_equal(untouched[name], free_weights[name])


def test_smoothed_labels_are_mixed_with_even_odds(write_toy):
    toy = write_toy({"train": [[200]]})
    model = build_model({"name": "wide_and_deep", "hidden": [6], "dropout": 0.0, "embedding_dropout": 0.0},
                        ModelColumns.of(toy.manifest), seed=1, precision="float64")  # fmt: skip
    rows = toy.rows["train"]
    floats, ids = np.stack([rows["x0"], rows["x1"]], 1), np.stack([rows["a"], rows["b"]], 1)
    p = 1 / (1 + np.exp(-model.scores(Features(floats, ids)).numpy()))
    y = np.where(rows["y"] == 1, 0.9, 0.1)
    step = Step(model, Optimizer(Training(optimizer="sgd"), model.variables), World(), seed=1, label_smoothing=0.2)
    feed = Feed(lake=toy.lake, manifest=toy.manifest, split="train", order=Order(seed=1, batch_size=200, window=2, lanes=10))
    (batch,) = feed.epoch(0)
    assert step(batch, 0, 0.1).loss == pytest.approx(-np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)), rel=1e-12)


def train_toy(toy, *overrides, **request):
    return train(World(), {**train_request(read_recipe(toy.recipe, overrides=overrides)), **request})


def losses(toy, run):
    return [step["loss"] for step in read_steps(toy.lake, toy.lake.run("toy", run))]


@pytest.mark.parametrize(
    ("optimizer", "kinds", "settings"),
    [
        ("sgd", {"momentum"}, ("training.momentum=0.9", "training.learning_rate=0.1")),
        ("lars", {"momentum"}, ("training.momentum=0.9", "training.learning_rate=2", "training.warmup_steps=4")),
        ("lamb", {"m", "v"}, ("training.weight_decay=0.01", "training.learning_rate=0.03")),
    ],
)
def test_a_training_learns_and_resumes_with_its_slots(write_toy, optimizer, kinds, settings):
    toy = write_toy()
    overrides = (f"training.optimizer={optimizer}", "training.epochs=4", "training.precision=float64", *settings)
    whole = train_toy(toy, *overrides)["run"]
    run, expected = toy.lake.run("toy", whole), losses(toy, whole)
    assert np.mean(expected[-7:]) < np.mean(expected[:7]) - 0.02
    *_, before, last = list_checkpoints(toy.lake, run)
    slots = read_checkpoint(toy.lake, run, before).optimizer
    assert {name.partition("/")[0] for name in slots} == kinds
    assert all(values.any() for values in slots.values() if values.size > 1)
    folder = Path(toy.lake.storage.path(*run))
    (folder / "record.json").unlink()
    weights = folder / "checkpoints" / last / "weights.npz"
    weights.write_bytes(weights.read_bytes()[::-1])
    resumed = train_toy(toy, *overrides)
    assert (resumed["run"], resumed["record"]["resumed_at"]) == (whole, int(before))
    assert losses(toy, whole) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("training.optimizer=lamp", "'sgd', 'adam', 'adamw', 'lamb' or 'lars', got 'lamp'"),
        ("training.momentum=0.9", r"momentum \(0.9\) is of sgd and lars; adam has its own: leave it out"),
        ("training.momentum=1", "momentum: Input should be less than 1, got 1"),
        ("training.clip_norm=0", "clip_norm: Input should be greater than 0, got 0"),
        ("training.accumulate=0", "accumulate: Input should be greater than or equal to 1, got 0"),
        (
            "training.accumulate=101",
            r"accumulate \(101\) cuts a batch into more parts than it has rows \(global_batch_size 100\)",
        ),
        ("training.label_smoothing=1", "label_smoothing: Input should be less than 1, got 1"),
    ],
)
def test_wrong_settings_are_refused_by_name(write_toy, override, says):
    with pytest.raises(SettingError, match=r"toy.yaml:12: training.*" + says):
        read_recipe(write_toy().recipe, overrides=[override])


def test_labels_of_a_regression_are_not_smoothed(write_toy):
    toy = write_toy(kind="regression")
    with pytest.raises(SettingError, match=r"label_smoothing is 0\.1, and label 'y' is not binary"):
        train_toy(toy, "training.label_smoothing=0.1")
