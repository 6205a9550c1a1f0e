"""One HTML page that needs nothing beside it: plots as inlined PNGs, tables of figures."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lakering.lake import Lake
from training.metrics import BinaryMetrics, Metrics, MulticlassMetrics, RegressionMetrics
from training.models.base import Label

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums } td, th { padding: .2rem .8rem; text-align: right }
td:first-child, th:first-child { text-align: left } tr:nth-child(even) { background: #f5f5f5 }
img { max-width: 100% } .bad { color: #b00020; font-weight: 600 } .plots { display: flex; flex-wrap: wrap }
"""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that a report shows."""

    result: dict[str, Any]
    label: Label
    contestants: dict[str, Metrics]
    ranges: list[dict[str, Any]]
    steps: list[dict[str, Any]]
    facts: dict[str, Any]


def write_report(lake: Lake, findings: Findings, *parts: str) -> None:
    """Writes the page to a path in the lake."""
    lake.storage.write(render(findings).encode(), *parts)


def render(findings: Findings) -> str:
    result = findings.result
    plots = [("Training loss", _loss_plot(findings.steps)), *_quality_plots(findings)]
    if findings.ranges:
        plots.append(("Feature ranges", _range_plot(findings.ranges)))
    figures = result["figures"].items()
    rows = [{"": name, **{k: v for k, v in facts.items() if not isinstance(v, list)}} for name, facts in figures]
    verdicts = "".join(
        f'<p class="{"bad" if "WORSE" in text else ""}">{html.escape(name.replace("_", " "))}: {html.escape(text)}</p>'
        for name, text in result["verdict"].items()
    )
    ordinals = result["figures"].get("boosted trees", {}).get("ids_as_ordinals") or []
    note = f"<p>Boosted trees were given these ids as plain ordinals: {html.escape(', '.join(ordinals))}.</p>" if ordinals else ""
    left_out = result["figures"].get("boosted trees", {}).get("left_out") or []
    note += f"<p>Boosted trees were not given {html.escape(', '.join(left_out))}: neither floats nor ids.</p>" if left_out else ""
    slices = "".join(
        f"<h2>By {html.escape(column)}, the worst first</h2>{_table(rows)}" for column, rows in result.get("slices", {}).items()
    )
    images = "".join(f'<figure><img alt="{name}" src="data:image/png;base64,{png}"></figure>' for name, png in plots)
    title = f"{result['recipe']}: run {result['run']}"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>
<style>{STYLE}</style></head><body>
<h1>{html.escape(title)}</h1>
<p>Snapshot {html.escape(result["snapshot"])}, {html.escape(result["split"])} split,
model {html.escape(findings.facts["model"]["name"])}.</p>
<h2>On the hold-out</h2>{_table(rows)}{verdicts}{note}
<h2>Plots</h2><div class="plots">{images}</div>
{slices}<h2>Feature ranges</h2>{_table(findings.ranges)}
<h2>Model</h2>{_table([{"setting": k, "value": str(v)} for k, v in findings.facts["model"].items()])}
</body></html>
"""


def _table(rows: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f"<th>{html.escape(name.replace('_', ' '))}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(_text(row.get(name)))}</td>" for name in names) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _png(figure: Figure) -> str:
    stream = io.BytesIO()
    FigureCanvasAgg(figure).print_png(stream)
    return base64.b64encode(stream.getvalue()).decode()


def _axes(title: str, across: str, up: str, size: tuple[float, float] = (5.2, 4.0)) -> tuple[Figure, Any]:
    figure = Figure(figsize=size, dpi=90, layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=across, ylabel=up)
    axes.grid(alpha=0.3)
    return figure, axes


def _loss_plot(steps: list[dict[str, Any]]) -> str:
    figure, axes = _axes("Training loss", "step", "mean loss of the global batch")
    at = np.array([step["global_step"] for step in steps])
    loss = np.array([np.nan if step["loss"] is None else step["loss"] for step in steps], float)
    axes.plot(at, loss, lw=0.6, alpha=0.5, label="each step")
    span = max(1, len(loss) // 50)
    if len(loss) > 2 * span:
        axes.plot(at[span - 1 :], np.convolve(loss, np.ones(span) / span, "valid"), label=f"mean of {span}")
    axes.legend()
    return _png(figure)


def _quality_plots(findings: Findings) -> list[tuple[str, str]]:
    if findings.label.kind == "binary":
        named = {name: m for name, m in findings.contestants.items() if isinstance(m, BinaryMetrics)}
        return [("ROC", _roc_plot(named)), ("Calibration", _calibration_plot(named))]
    model = findings.contestants["model"]
    if isinstance(model, MulticlassMetrics):
        confusion = model.confusion
        return [] if confusion is None else [("Confusion", _confusion_plot(confusion, findings.label.classes))]
    assert isinstance(model, RegressionMetrics)
    return [("Predicted and actual", _actual_plot(model)), ("Residuals", _residual_plot(model))]


def _roc_plot(named: dict[str, BinaryMetrics]) -> str:
    figure, axes = _axes("ROC", "false positive rate", "true positive rate")
    for name, metrics in named.items():
        axes.plot(*metrics.roc(), label=f"{name} ({metrics.auc():.4f})")
    axes.legend(loc="lower right")
    return _png(figure)


def _calibration_plot(named: dict[str, BinaryMetrics]) -> str:
    """Each contestant's groups of equal weight with their 95% intervals; below, how the model's predictions lie."""
    figure = Figure(figsize=(5.2, 5.2), dpi=90, layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    axes.set(title="Calibration", ylabel="share of positives (bars: 95%)")
    most = 0.0
    for name, metrics in named.items():
        groups = np.array(metrics.calibration()).reshape(-1, 5)
        predicted, actual, low, high, _ = groups.T
        axes.errorbar(predicted, actual, np.maximum([actual - low, high - actual], 0), fmt="o-", ms=3, elinewidth=0.8, label=name)
        most = max(most, groups[:, :2].max(initial=0.0))
    axes.plot([0, most], [0, most], "k:", lw=1)
    axes.legend()
    edges, counts = named["model"].predictions()
    below.stairs(counts, edges, fill=True, alpha=0.7)
    below.set(xlabel="mean prediction", ylabel="weight")
    each = [group.weight for group in named["model"].calibration()]
    below.set_title(f"the model's predictions: {sum(each):,.0f}, each point above {np.median(each or [0.0]):,.0f}", fontsize=8)
    for part in (axes, below):
        part.grid(alpha=0.3)
    return _png(figure)


def _confusion_plot(confusion: npt.NDArray[np.float64], classes: Sequence[str]) -> str:
    """Of each class, the share of its weight that is told to be of each."""
    many = len(classes) > 10
    figure, axes = _axes("Confusion: shares of each class", "told", "actual", (8, 7) if many else (5.2, 4.4))
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1e-300)
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    axes.grid(False)
    for side in (axes.set_xticks, axes.set_yticks):
        side(range(len(classes)), classes, fontsize=7 if many else 9)
    axes.tick_params(axis="x", rotation=90 if many else 0)
    if not many:
        for (row, column), share in np.ndenumerate(shares):
            axes.text(column, row, f"{share:.2f}", ha="center", va="center", color="white" if share > 0.5 else "black")
    figure.colorbar(image)
    return _png(figure)


def _actual_plot(metrics: RegressionMetrics) -> str:
    figure, axes = _axes("Predicted and actual", "predicted", "actual")
    counts = np.ma.masked_equal(metrics.predicted_and_actual.T, 0)
    image = axes.pcolormesh(metrics.edges, metrics.edges, counts, cmap="viridis")
    figure.colorbar(image, label="weight")
    axes.plot(metrics.edges[[0, -1]], metrics.edges[[0, -1]], "r:", lw=1)
    return _png(figure)


def _residual_plot(metrics: RegressionMetrics) -> str:
    figure, axes = _axes("Residuals", "predicted - actual (outer bars: and beyond)", "weight")
    axes.stairs(metrics.residuals, metrics.residual_edges, fill=True, alpha=0.7)
    return _png(figure)


def _range_plot(ranges: list[dict[str, Any]]) -> str:
    """Each column's range on the hold-out, in units of its range on train: what sticks out was never trained on."""
    across = "0 and 1: the smallest and the largest value of train"
    figure, axes = _axes("Feature ranges on the hold-out", across, "", (10.4, 1.2 + 0.17 * len(ranges)))
    rows = np.arange(len(ranges))[::-1]
    low, high = (np.array([facts[f"train_{end}"] for facts in ranges]) for end in ("min", "max"))
    width = np.where(high > low, high - low, 1)
    least, mean, most = (
        np.clip((np.array([facts[end] for facts in ranges]) - low) / width, -1, 2) for end in ("min", "mean", "max")
    )
    axes.axvspan(0, 1, color="0.92")
    axes.hlines(rows, least, most, lw=3, color="C0", label="smallest to largest")
    axes.plot((np.array([facts["train_mean"] for facts in ranges]) - low) / width, rows, "k|", ms=7, label="mean on train")
    axes.plot(mean, rows, "o", ms=3, color="C1", label="mean")
    axes.set_yticks(rows, [facts["column"] for facts in ranges], fontsize=7)
    axes.legend(loc="lower right", fontsize=8)
    return _png(figure)
