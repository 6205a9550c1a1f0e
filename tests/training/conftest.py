"""A small example table written with pyarrow, its manifest, and a recipe: what the training room stands on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lakering.lake import Lake
from lakering.manifest import ROW_GROUP_SCHEMA, Column, Manifest
from lakering.storage import Storage

ROOT = Path(__file__).resolve().parents[2]

CLASSES = ("low", "middle", "high")
RECIPE = """
name: toy
lake: lake
tables:
  toy: {{contract: toy.yaml, sources: [{{files: toy.csv, format: csv}}]}}
examples:
  from: toy
  predict: {{label: "y", kind: {kind}{classes}, moment: "t"}}
  features: [{{column: x0}}]
  split: {{by: hash, of: [k]}}
model: {{name: wide_and_deep, hidden: [16, 8], dropout: 0.2, embedding_dropout: 0.1, max_embedding: 4}}
training: {{global_batch_size: 100, epochs: 2, learning_rate: 0.01, window: 3, lanes: 10, checkpoint_every: 4}}
evaluation: {{split: test}}
"""


@dataclass(frozen=True)
class Toy:
    """A lake with one snapshot. ``rows`` holds the table's columns per split, as they were written."""

    folder: Path
    lake: Lake
    manifest: Manifest
    rows: dict[str, dict[str, np.ndarray]]

    @property
    def recipe(self) -> Path:
        return self.folder / "toy.yaml"

    def file(self, split: str, number: int = 0) -> Path:
        return Path(self.lake.storage.path(self.manifest.table, f"{split}-{number}.parquet"))


@pytest.fixture(autouse=True)
def every_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """A toy's epoch is shorter than any write: without patience, which of its checkpoints are there would be chance."""
    monkeypatch.setattr("training.saver.LEAST_WAIT", 60.0)


@pytest.fixture
def write_toy(tmp_path: Path) -> Callable[..., Toy]:
    """Writes a toy into a folder of its own; see ``write_toy_into``."""

    def write(sizes: dict[str, list[list[int]]] | None = None, **options: Any) -> Toy:
        folder = tmp_path / f"toy-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        return write_toy_into(folder, sizes, **options)

    return write


@pytest.fixture(scope="module")
def toy_writer() -> Callable[..., Toy]:
    return write_toy_into


def write_toy_into(
    folder: Path,
    sizes: dict[str, list[list[int]]] | None = None,
    *,
    kind: Literal["binary", "multiclass", "regression"] = "binary",
    weight: bool = False,
    nan_in_train_row: int | None = None,
) -> Toy:
    """Writes a lake with a table of known rows: ``sizes`` are the row groups' rows of each file of each split."""
    sizes = sizes or {"train": [[130, 70], [90, 110, 50], [200]], "validation": [[150]], "test": [[120, 180]]}
    (folder / "toy.yaml").write_text(
        RECIPE.format(kind=kind, classes=f", classes: [{', '.join(CLASSES)}]" if kind == "multiclass" else "")
    )
    lake = Lake(Storage(str(folder / "lake")))
    random = np.random.default_rng(5)
    rows: dict[str, dict[str, np.ndarray]] = {}
    groups: list[dict[str, Any]] = []
    next_id = 0
    for split, files in sizes.items():
        parts = []
        for number, counts in enumerate(files):
            columns = toy_rows(random, sum(counts), next_id, kind, weight)
            next_id += sum(counts)
            if split == "train" and number == 0 and nan_in_train_row is not None:
                columns["x0"][nan_in_train_row] = np.nan
            parts.append(columns)
            path = folder / "lake" / "examples" / "toy" / "b1" / "table" / f"{split}-{number}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_row_groups(path, columns, counts)
            groups += [
                {"split": split, "path": path.name, "file_bytes": path.stat().st_size, "row_group": i, "num_rows": n}
                for i, n in enumerate(counts)
            ]
        rows[split] = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    learnt = rows["train" if "train" in rows else "test"]
    manifest = Manifest(
        recipe="toy", build="b1", table="examples/toy/b1/table", version=None,
        columns=(Column("x0", "float"), Column("x1", "float"), Column("a", "id", 6), Column("b", "id", 300)),
        label="y", label_kind=kind, weight="w" if weight else None,
        statistics={name: statistics_of(learnt[name]) for name in ("x0", "x1")} | {"y": label_statistics(learnt["y"], kind)},
        classes=CLASSES if kind == "multiclass" else None,
        contracts={"toy": "1.0.0"}, row_groups=pa.Table.from_pylist(groups, schema=ROW_GROUP_SCHEMA))  # fmt: skip
    manifest.write(lake)
    return Toy(folder, lake, manifest, rows)


def toy_rows(random: np.random.Generator, rows: int, first_id: int, kind: str, weight: bool) -> dict[str, np.ndarray]:
    x0 = random.normal(3, 2, rows).astype(np.float32)
    x1 = random.exponential(1, rows).astype(np.float32)
    a = random.integers(1, 6, rows).astype(np.int32)
    b = random.integers(1, 300, rows).astype(np.int32)
    truth = 0.8 * (x0 - 3) - x1 + (a - 3) * 0.5
    noise = random.logistic(0, 1, rows)
    numbers = {"binary": truth + noise > 0, "multiclass": np.digitize(truth + noise, (-1.5, 0.5)),
               "regression": 50 + 10 * (truth + 0.3 * noise)}  # fmt: skip
    y = numbers[kind].astype(np.float32)
    columns = {"x0": x0, "x1": x1, "a": a, "b": b, "y": y, "row_id": np.arange(first_id, first_id + rows, dtype=np.int64)}
    return {**columns, "w": random.uniform(0.5, 2, rows).astype(np.float32)} if weight else columns


def write_row_groups(path: Path, columns: dict[str, np.ndarray], counts: list[int]) -> None:
    table = pa.table(columns)
    with pq.ParquetWriter(path, table.schema) as writer:
        start = 0
        for rows in counts:
            writer.write_table(table.slice(start, rows), row_group_size=max(rows, 1))
            start += rows


def label_statistics(values: np.ndarray, kind: str) -> dict[str, float]:
    shares = {f"share_{k}": float(np.mean(values == k)) for k in range(len(CLASSES))} if kind == "multiclass" else {}
    return statistics_of(values) | shares


def statistics_of(values: np.ndarray) -> dict[str, float]:
    values = values[np.isfinite(values)]
    quantiles = {f"q{q:02d}": float(np.quantile(values, q / 100)) for q in (1, 5, 25, 50, 75, 95, 99)}
    return {"count": float(len(values)), "mean": float(values.mean()), "std": float(values.std()),
            "min": float(values.min()), "max": float(values.max()), **quantiles}  # fmt: skip


@pytest.fixture
def run_job() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a job of this room in a process of its own; with ``ranks``, under horovodrun."""

    def run(job: str, *flags: str | Path, ranks: int = 1, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            job_command(job, *flags, ranks=ranks), cwd=ROOT, env=job_environment(), capture_output=True, text=True,
            timeout=timeout, check=False)  # fmt: skip

    return run


def job_command(job: str, *flags: str | Path, ranks: int = 1) -> list[str]:
    command = [sys.executable, str(ROOT / "training" / "jobs" / f"{job}.py"), *map(str, flags)]
    if ranks > 1:
        launcher = str(Path(sys.executable).with_name("horovodrun"))
        command = [launcher, "-np", str(ranks), "--network-interface", "lo", *command]
    return command


@pytest.fixture(scope="session", name="job_environment")
def job_environment_fixture() -> dict[str, str]:
    return job_environment()


def job_environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2", "PATH": path}


@pytest.fixture
def start_job() -> Callable[..., subprocess.Popen[str]]:
    def start(job: str, *flags: str | Path, ranks: int = 1) -> subprocess.Popen[str]:
        return subprocess.Popen(job_command(job, *flags, ranks=ranks), cwd=ROOT, env=job_environment(), text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip

    return start


def pytest_configure(config: pytest.Config) -> None:
    # Petastorm works through pyarrow's old dataset classes; training.feed.reader silences them, pytest starts afresh.
    config.addinivalue_line("filterwarnings", "ignore::FutureWarning:petastorm.*")
