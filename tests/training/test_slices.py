"""The figures of parts of the rows, against those of the same rows taken by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn import metrics as reference

from lakering.errors import SettingError
from lakering.summary import Summary
from recipes import read_recipe
from training.distributed import World
from training.evaluate import evaluate, evaluate_request
from training.export import read_model
from training.feed import Feed, Order
from training.preview import preview_evaluation
from training.requests import train_request
from training.step import Predictor
from training.summaries import add_evaluation
from training.train import train


def trained(toy, *overrides):
    """The recipe, its model trained, and the test split's predictions and columns, row by row."""
    recipe = read_recipe(toy.recipe, overrides=["evaluation.trees=false", *overrides])
    run = train(World(), train_request(recipe))["run"]
    model, _ = read_model(toy.lake, toy.lake.run("toy", run))
    order = Order(seed=1, batch_size=1000, window=2, lanes=8)
    manifest = toy.manifest.with_columns(model.columns.names)
    (batch,) = Feed(lake=toy.lake, manifest=manifest, split="test", order=order).epoch(0)
    rows = toy.rows["test"]
    places = np.argsort(rows["row_id"])[np.searchsorted(np.sort(rows["row_id"]), batch.row_id)]
    return recipe, Predictor(model)(batch), {name: values[places] for name, values in rows.items()}


def by_value(table):
    return {row["value"]: row for row in table}


@pytest.mark.parametrize("weight", [False, True])
def test_slices_are_their_rows_figures(write_toy, weight):
    toy = write_toy(weight=weight)
    slices = "evaluation.slices=[a, b, x1]"
    recipe, prediction, rows = trained(toy, slices, "evaluation.slice_values=7", "training.columns=[x0, b]")
    result = evaluate(World(), evaluate_request(recipe))
    weights = rows["w"] if weight else np.ones(300)

    def expected(part):
        label, p, w = rows["y"][part], prediction[part], weights[part]
        return {"rows": part.sum(), "base_rate": np.average(label, weights=w), "mean_prediction": np.average(p, weights=w),
                "log_loss": reference.log_loss(label, p, sample_weight=w, labels=[0, 1])}  # fmt: skip

    def compare(ours, part):
        theirs = expected(part)
        assert {name: ours[name] for name in theirs} == pytest.approx(theirs, rel=1e-6)
        auc = reference.roc_auc_score(rows["y"][part], prediction[part], sample_weight=weights[part])
        # Of 50 rows each pair that shares a bin moves it by a thousandth.
        assert ours["auc"] == pytest.approx(auc, abs=4e-3)

    found = {column: by_value(table) for column, table in result["slices"].items()}
    for id_ in range(1, 6):
        ours = found["a"][f"id {id_}"]
        compare(ours, rows["a"] == id_)
    totals = {id_: weights[rows["b"] == id_].sum() for id_ in np.unique(rows["b"])}
    top = sorted(totals, key=lambda id_: (-totals[id_], id_))[:7]
    assert set(found["b"]) == {"other", *(f"id {id_}" for id_ in top)}
    compare(found["b"]["other"], ~np.isin(rows["b"], top))
    low, high = np.quantile(toy.rows["train"]["x1"], (0.25, 0.5)).astype(np.float32)
    ours = found["x1"][f"{low:.4g} to {high:.4g}"]
    compare(ours, (rows["x1"] >= low) & (rows["x1"] < high))
    areas = [row["auc"] for row in result["slices"]["a"]]
    assert areas == sorted(areas)


def test_slices_stand_in_the_report_the_figures_and_the_summary_by_their_names(write_toy):
    toy = write_toy(kind="regression")
    names = {3: "oslo & co", 4: "rome", 5: "bern"}
    folder = Path(toy.lake.storage.path(*toy.lake.build("toy", "b1"), "learnt", "vocabulary"))
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"feature": ["a", "a", "a", "b"], "value": [*names.values(), "x"], "count": [3, 2, 2, 9],
                             "id": pa.array([*names, 3], pa.int32())}), folder / "part-0.parquet")  # fmt: skip
    recipe, prediction, rows = trained(toy, "evaluation.slices=[a]")
    result = evaluate(World(), evaluate_request(recipe))
    table = by_value(result["slices"]["a"])
    assert set(table) == {"null", "unknown 2", *names.values()}
    for value, id_ in (("rome", 4), ("null", 1)):
        part = rows["a"] == id_
        rmse = np.sqrt(np.mean((prediction[part] - rows["y"][part]) ** 2))
        assert (table[value]["rmse"], table[value]["rows"]) == (pytest.approx(rmse, rel=1e-6), part.sum())
    worst = [row["rmse"] for row in result["slices"]["a"]]
    assert worst == sorted(worst, reverse=True)
    page = Path(result["report"]).read_text()
    assert "By a, the worst first" in page
    assert "oslo &amp; co" in page
    figures = json.loads(Path(result["report"]).with_name("figures.json").read_text())
    assert figures["slices"] == result["slices"]
    summary = Summary("evaluate")
    add_evaluation(summary, {**result, "launch": "python"})
    assert summary.sections["worst slices"]["a"].startswith(f"{result['slices']['a'][0]['value']}: mae ")


def test_a_column_that_cannot_be_sliced_is_told_before_any_work(write_toy):
    toy = write_toy()
    train(World(), train_request(read_recipe(toy.recipe)))
    request = evaluate_request(read_recipe(toy.recipe, overrides=["evaluation.slices=[x9]"]))
    for work in (lambda: evaluate(World(), request), lambda: preview_evaluation(Summary("evaluate"), request)):
        with pytest.raises(SettingError, match=r"evaluation.slices: snapshot \w+ has no feature 'x9'; did you mean 'x"):
            work()
