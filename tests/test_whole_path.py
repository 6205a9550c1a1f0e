"""A data set of its own, from JSON lines to an evaluated model: contracts and a recipe, each stage its own job."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pyarrow.parquet as pq
import pytest
from nbclient import NotebookClient

from lakering.lake import Lake
from lakering.storage import Storage
from tests.rides import write_rides
from training.steplog import read_steps

ROOT = Path(__file__).resolve().parents[1]
RECIPE = "tests/rides/recipe.yaml"
STAGES = {
    "ingest": ["etl/jobs/ingest_batch.py"],
    "examples": ["etl/jobs/build_examples.py"],
    "snapshot": ["etl/jobs/snapshot.py"],
    "train": ["training/jobs/train.py", "--ranks", "2"],
    "evaluate": ["training/jobs/evaluate.py"],
}
Summaries = dict[str, dict[str, Any]]


def run_stages(submit: Callable[..., Any], folder: Path, lake: Path, *names: str, **options: Any) -> Summaries:
    summaries: Summaries = {}
    for name in names:
        job, *own = STAGES[name]
        file = lake / "summaries" / f"{name}.json"
        done = submit(job, "--recipe", RECIPE, "--lake", str(lake), "--summary", str(file), *own, RIDES=str(folder), **options)
        assert done.returncode == 0, f"{name}: {done.stdout[-3000:]}\n{done.stderr[-5000:]}"
        summaries[name] = json.loads(file.read_text())
        assert summaries[name]["status"] == "ok"
    return summaries


def examples_of(lake: Path) -> dict[str, list[dict[str, Any]]]:
    """Every row of the example table, by split, in the order in which they stand."""
    (table,) = lake.glob("examples/rides/*/table")
    return {split.name: [row for file in sorted(split.glob("*.parquet")) for row in pq.ParquetFile(file).read().to_pylist()]
            for split in sorted(table.glob("split=*"))}  # fmt: skip


def losses_of(lake: Path) -> list[float]:
    (run,) = (path for path in (lake / "runs" / "rides").iterdir() if path.is_dir())
    return [step["loss"] for step in read_steps(Lake(Storage(str(lake))), ("runs", "rides", run.name))]


@pytest.fixture(scope="module")
def rides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rides")
    write_rides(folder)
    return folder


@pytest.fixture(scope="module")
def local(submit: Callable[..., Any], rides: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Summaries]:
    """The lake after all stages on local mode, training under spark-submit with two ranks."""
    lake = tmp_path_factory.mktemp("local") / "lake"
    return lake, run_stages(submit, rides, lake, *STAGES)


def test_every_row_is_accounted_for_from_the_files_to_the_report(local):
    lake, summaries = local
    rides = summaries["ingest"]["rides"]
    assert (rides["rows_read"], rides["rows_written"], rides["refused"]) == (4005, 4000, {"ride_id: pattern": 5})
    examples = examples_of(lake)
    assert {split: len(rows) for split, rows in examples.items()}.keys() == {"split=test", "split=train", "split=validation"}
    assert sum(map(len, examples.values())) == 4000
    assert (lake / "runs").is_dir()
    report = Path(summaries["evaluate"]["report"]["file"])
    assert report.suffix == ".html"
    assert "data:image/png;base64," in report.read_text()


def test_the_model_learns_what_the_data_says(local):
    _, summaries = local
    evaluation = summaries["evaluate"]
    # The noise has a standard deviation of 1.5 minutes; the rides' times one of about 14.
    assert 1.4 < evaluation["model"]["rmse"] < 3.5
    assert evaluation["model"]["rmse"] < 0.3 * evaluation["base rate"]["rmse"]


@pytest.mark.faults  # not a fault, but as slow
def test_the_cluster_makes_the_same_examples_and_losses_as_local_mode(local, cluster, submit, rides, tmp_path):
    lake, _ = local
    run_stages(submit, rides, tmp_path / "lake", *STAGES, master=cluster)
    assert examples_of(tmp_path / "lake") == examples_of(lake)
    assert losses_of(tmp_path / "lake")[:20] == pytest.approx(losses_of(lake)[:20], rel=1e-5)


@pytest.mark.parametrize("launcher", [
    ["python"],
    pytest.param(["horovodrun", "-np", "2", "--network-interface", "lo", "python"], marks=pytest.mark.faults)])  # fmt: skip
def test_other_launchers_have_the_losses_of_two_ranks_under_spark(local, rides, tmp_path, launcher):
    lake, _ = local
    for name in ("snapshots", "examples"):
        (tmp_path / name).symlink_to(lake / name)
    command = [*launcher, "training/jobs/train.py", "--recipe", RECIPE, "--lake", str(tmp_path)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "RIDES": str(rides), "PATH": path}, capture_output=True,
                          text=True, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("train: ok") == 1, "one summary, whatever the number of ranks"
    assert losses_of(tmp_path)[:20] == pytest.approx(losses_of(lake)[:20], rel=1e-5)


def test_a_stage_that_is_run_again_says_that_its_result_is_there(local, submit, rides):
    lake, _ = local
    again = run_stages(submit, rides, lake, "ingest")
    assert again["ingest"]["rides"]["files_known"] == 2
    assert again["ingest"]["rides"]["rows_read"] == 0


@pytest.mark.faults  # not a fault, but slow
def test_the_notebook_runs_on_what_the_stages_left(local, spark_conf_dir, rides, tmp_path, monkeypatch):
    lake, _ = local
    for name, value in {"LAKERING_RECIPE": str(ROOT / RECIPE), "LAKERING_LAKE": str(lake), "RIDES": str(rides),
                        "SPARK_CONF_DIR": str(spark_conf_dir), "IPYTHONDIR": str(tmp_path)}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(ROOT / "notebooks" / "look.ipynb", as_version=4)
    NotebookClient(notebook, timeout=180, resources={"metadata": {"path": str(ROOT / "notebooks")}}).execute()
    text = "".join(output.get("text", "") for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs)
    assert "pattern" in text, "the refused rows' rule"
    assert re.search(r"snapshot [0-9a-f]{16} of build", text)
    assert any("image/png" in output.get("data", {}) for output in notebook.cells[-1].outputs), "the plot of the losses"


@pytest.mark.parametrize(
    ("job", "command"),
    [
        ("etl/jobs/build_examples.py", "etl/jobs/ingest_batch.py"),
        ("etl/jobs/snapshot.py", "etl/jobs/build_examples.py"),
        ("training/jobs/train.py", "etl/jobs/snapshot.py"),
        ("training/jobs/evaluate.py", "training/jobs/train.py"),
    ],
)
def test_a_stage_before_the_one_it_needs_names_the_command_to_run_first(job, command, run_here, rides, tmp_path, monkeypatch):
    monkeypatch.setenv("RIDES", str(rides))
    monkeypatch.chdir(ROOT)
    done = run_here(job, "--recipe", RECIPE, "--lake", tmp_path)
    assert done.returncode == 3, done.stderr
    assert f"next: spark-submit --properties-file spark-defaults.conf {command}" in done.stderr.replace(
        "python ", "spark-submit --properties-file spark-defaults.conf "
    )
