"""Checkpoints without pickle: plain arrays, a checksum for each file, and an index that is written last.

    checkpoints/0000000200/weights.npz, optimizer.npz, index.json

A folder without its index is a checkpoint that was never completed. Files go through ``Storage.write``: a temporary
name, fsync and rename on a local disk, one atomic put on an object store.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from lakering.errors import InputError, IntegrityError
from lakering.lake import Lake

Arrays = dict[str, npt.NDArray]
FOLDER, INDEX, FORMAT = "checkpoints", "index.json", 1


@dataclass(frozen=True)
class Checkpoint:
    """Weights and optimizer state by name, and ``facts``: JSON-like, with ``global_step``, ``epoch`` and ``step`` (the
    next one to do), and what the run was made from."""

    weights: Arrays
    optimizer: Arrays
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def global_step(self) -> int:
        return int(self.facts["global_step"])


def write_arrays(lake: Lake, arrays: Arrays, *parts: str) -> dict[str, Any]:
    """Writes arrays as one ``.npz`` and returns its size and checksum."""
    stream = io.BytesIO()
    np.savez(stream, **{f"a{i}": array for i, array in enumerate(arrays.values())})
    content = stream.getvalue()
    lake.storage.write(content, *parts)
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), "names": list(arrays)}


def read_arrays(lake: Lake, facts: dict[str, Any], *parts: str) -> Arrays:
    """Arrays that ``write_arrays`` wrote. Raises IntegrityError when the file is gone, or not the one that was written."""
    where = lake.storage.path(*parts)
    try:
        content = lake.storage.read(*parts)
    except InputError as error:
        raise IntegrityError(f"{where} cannot be read: {error.message}") from None
    if hashlib.sha256(content).hexdigest() != facts["sha256"]:
        raise IntegrityError(f"{where} does not have the checksum that was written beside it")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            return {name: stored[f"a{i}"] for i, name in enumerate(facts["names"])}
    except (ValueError, KeyError, zipfile.BadZipFile) as error:
        raise IntegrityError(f"{where} does not hold plain arrays: {error}") from None


def write_checkpoint(lake: Lake, run: tuple[str, ...], checkpoint: Checkpoint, *, keep: int) -> str:
    """Writes a checkpoint, removes all but the newest ``keep``, and returns its name."""
    name = f"{checkpoint.global_step:010d}"
    folder = (*run, FOLDER, name)
    files = {
        "weights.npz": write_arrays(lake, checkpoint.weights, *folder, "weights.npz"),
        "optimizer.npz": write_arrays(lake, checkpoint.optimizer, *folder, "optimizer.npz"),
    }
    lake.storage.write_json({**checkpoint.facts, "format": FORMAT, "files": files}, *folder, INDEX)
    for old in sorted(set(list_checkpoints(lake, run)) - {name}, reverse=True)[keep - 1 :]:
        if old < name:
            lake.storage.delete(*run, FOLDER, old)
    return name


def list_checkpoints(lake: Lake, run: tuple[str, ...]) -> list[str]:
    """Names of a run's complete checkpoints, oldest first."""
    return [name for name in lake.storage.list(*run, FOLDER) if lake.storage.exists(*run, FOLDER, name, INDEX)]


def read_checkpoint(lake: Lake, run: tuple[str, ...], name: str) -> Checkpoint:
    """Raises IntegrityError when any part of it is gone, cut or changed."""
    folder = (*run, FOLDER, name)
    facts = lake.storage.read_json(*folder, INDEX)
    if facts.get("format") != FORMAT:
        raise IntegrityError(f"{lake.storage.path(*folder)}: format {facts.get('format')!r}, this version reads {FORMAT}")
    files = facts["files"]
    return Checkpoint(
        read_arrays(lake, files["weights.npz"], *folder, "weights.npz"),
        read_arrays(lake, files["optimizer.npz"], *folder, "optimizer.npz"),
        facts,
    )


def newest_checkpoint(lake: Lake, run: tuple[str, ...]) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole, and a message for each newer one that was passed over."""
    passed_over: list[str] = []
    for name in reversed(list_checkpoints(lake, run)):
        try:
            return read_checkpoint(lake, run, name), passed_over
        except IntegrityError as error:
            passed_over.append(f"checkpoint {name} is passed over: {error.message}")
    return None, passed_over


def hash_arrays(*groups: Arrays) -> str:
    """One hash of the names and bytes of arrays, by which ranks are compared."""
    digest = hashlib.sha256()
    for group in groups:
        for name in sorted(group):
            digest.update(f"{name} {group[name].dtype} {group[name].shape}\0".encode())
            digest.update(np.ascontiguousarray(group[name]).tobytes())
    return digest.hexdigest()[:16]
