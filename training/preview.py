"""What a training or an evaluation would do: nothing is written, and no rank is launched."""

from __future__ import annotations

from collections import Counter

from lakering.lake import Lake
from lakering.record import read_record
from lakering.summary import Summary
from recipes.training import Evaluation, Training
from training.checkpoint import newest_checkpoint
from training.distributed import World
from training.evaluate import FIGURES, choose_model
from training.evaluate import FOLDER as EVALUATION
from training.requests import Request, lake_of
from training.runs import Chosen, choose_run
from training.schedules import derive
from training.train import build_loop


class _Ranks(World):
    """The first of several ranks, on its own."""

    def __init__(self, size: int) -> None:
        self.size = size


def preview_training(summary: Summary, request: Request, ranks: int) -> None:
    """Tells of the training that ``train`` would do on so many ranks: run, snapshot, steps, model, and where it would start.

    Raises what ``train`` would raise before its first step."""
    lake, settings = lake_of(request), Training.model_validate(request["training"])
    chosen = choose_run(World(), lake, request)
    manifest = chosen.manifest
    loop = build_loop(_Ranks(ranks), lake, request, manifest, settings, chosen.run, chosen.made_from)
    steps = loop.feed.num_steps
    starts_at, notes = _start(lake, request, chosen, steps)
    summary.add("run", id=chosen.run, dry_run="nothing was written", would=starts_at, snapshot=manifest.id,
                build=manifest.build, code=chosen.made_from["code"])  # fmt: skip
    if notes:
        summary.add("run", warnings=notes)
    columns = dict(Counter(column.kind for column in manifest.columns))
    parameters = int(sum(variable.shape.num_elements() for variable in loop.model.variables))
    summary.add("training", model=request["model"]["name"], parameters=parameters, columns=columns, rows=manifest.num_rows,
                ranks=ranks, **derive(settings).facts(settings), steps_per_epoch=steps, epochs=settings.epochs,
                steps=steps * settings.epochs)  # fmt: skip


def _start(lake: Lake, request: Request, chosen: Chosen, steps: int) -> tuple[str, list[str]]:
    """Where the training would start, in words, and which checkpoints it would pass over."""
    if chosen.complete:
        return "report it: a run of the same inputs is complete (--new trains again)", []
    checkpoint, notes = newest_checkpoint(lake, lake.run(request["recipe"], chosen.run))
    if checkpoint is not None:
        epoch, step = checkpoint.facts["epoch"], checkpoint.facts["step"]
        return f"go on from step {checkpoint.global_step:,} (epoch {epoch}, step {step} of {steps})", notes
    if read_record(lake, request["recipe"], chosen.run) is not None:
        return "start again: the run was broken off before its first checkpoint", notes
    return "start anew", notes


def preview_evaluation(summary: Summary, request: Request) -> None:
    """Tells of the evaluation that ``evaluate`` would do. Raises what it would raise before its first batch."""
    lake, settings = lake_of(request), Evaluation.model_validate(request["evaluation"])
    run, model, facts, manifest = choose_model(World(), lake, request)
    there = lake.storage.exists(*lake.run(request["recipe"], run), EVALUATION, FIGURES)
    baselines = ["base rate", *(["boosted trees"] if settings.trees else [])]
    summary.add("run", id=run, dry_run="nothing was written", snapshot=manifest.id, model=facts["model"]["name"],
                evaluated_before="yes (it would be written again)" if there else "no")  # fmt: skip
    summary.add("evaluation", split=settings.split, rows=manifest.num_rows[settings.split], label=model.columns.label.kind,
                baselines=baselines)  # fmt: skip
    if settings.trees:
        summary.add("evaluation", rows_for_trees=min(manifest.num_rows.get("train", 0), settings.max_tree_rows))
