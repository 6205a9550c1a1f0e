"""Checkpoints without pickle: plain arrays, a checksum for each file, and an index that is written last.

    checkpoints/0000000200/weights.npz, optimizer.npz, index.json

A folder without its index is a checkpoint that was never completed. Files go through ``Storage.writing``: a temporary
name, fsync and rename on a local disk, one put on an object store.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from lakering.errors import InputError, IntegrityError
from lakering.lake import Lake
from lakering.names import fingerprint

Arrays = dict[str, npt.NDArray]
FOLDER, INDEX, PARTS = "checkpoints", "index.json", ("weights.npz", "optimizer.npz")
#: Since 2 the index has a checksum of its own.
FORMAT = 2
NAME = re.compile(r"\d{10,}")


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
    """Writes arrays as one ``.npz`` and returns its size, its checksum and their names. At no time are they in memory twice."""
    with lake.storage.writing(*parts) as file:
        stream = _Hashing(file)
        np.savez(stream, **{f"a{i}": array for i, array in enumerate(arrays.values())})
    return {"bytes": stream.num_bytes, "sha256": stream.digest.hexdigest(), "names": list(arrays)}


class _Hashing:
    """A stream that is only written to, and hashed on the way. It cannot seek, so the archive is written front to back."""

    def __init__(self, file: Any) -> None:
        self._file, self.digest, self.num_bytes = file, hashlib.sha256(), 0

    def write(self, content: bytes) -> int:
        self._file.write(content)
        self.digest.update(content)
        self.num_bytes += len(content)
        return len(content)

    def read(self, size: int = -1) -> bytes:
        """NumPy takes what has no ``read`` for the name of a file."""
        raise io.UnsupportedOperation("this stream is only written to")

    def flush(self) -> None:
        pass


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
        return _unpack(content, facts["names"])
    except (
        ValueError,
        KeyError,
        EOFError,
        NotImplementedError,
        RuntimeError,
        MemoryError,
        SyntaxError,
        zipfile.BadZipFile,
    ) as error:
        raise IntegrityError(f"{where} does not hold plain arrays: {error}") from None


def _unpack(content: bytes, names: list[str]) -> Arrays:
    """An archive's arrays, by our own names. Nothing is taken from it but entries of the names that it must have, stored
    as they are (a few bytes cannot grow to gigabytes), each exactly as long as its header says, and never an object."""
    arrays: Arrays = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
        expected = [f"a{i}.npy" for i in range(len(names))]
        if [entry.filename for entry in entries] != expected:
            raise ValueError(f"its entries are not the {len(names)} that it must have")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("its entries are compressed")
        if sum(entry.file_size for entry in entries) > len(content):
            raise ValueError("its entries claim more bytes than it has")
        for name, entry in zip(names, entries, strict=True):
            with archive.open(entry) as stream:
                if np.lib.format.read_magic(stream) != (1, 0):
                    raise ValueError("an array is of another version of NumPy's format")
                shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(stream)
                data = stream.read()
            if dtype.hasobject:
                raise ValueError("an array holds pickled objects")
            if math.prod(shape) * dtype.itemsize != len(data):
                raise ValueError("an array is not as long as its header says")
            arrays[name] = np.frombuffer(data, dtype).reshape(shape, order="F" if is_fortran else "C")
    return arrays


def write_checkpoint(lake: Lake, run: tuple[str, ...], checkpoint: Checkpoint, *, keep: int, spare: str | None = None) -> str:
    """Writes a checkpoint, removes all but the newest ``keep`` up to it and the one named ``spare``, and returns its name. What
    could not be written whole is removed before its error goes on.

    One of the same step and arrays that is there, such as a stopped training's before its epoch was validated, is not written
    again: what is told of it is, in one write, so that at no moment it is not there."""
    name = f"{checkpoint.global_step:010d}"
    folder = (*run, FOLDER, name)
    files = _files_there(lake, folder, checkpoint)
    if files is not None:
        _write_index(lake, folder, checkpoint, files)
    else:
        lake.storage.delete(*folder)  # what was broken off there, or passed over
        try:
            files = {part: write_arrays(lake, arrays, *folder, part) for part, arrays in _parts(checkpoint)}
            _write_index(lake, folder, checkpoint, files)
        except BaseException:
            with suppress(Exception):
                lake.storage.delete(*folder)
            raise
    older = [other for other in list_checkpoints(lake, run) if other < name]
    kept = {name, spare, *older[len(older) - (keep - 1) :]}
    for old in lake.storage.list(*run, FOLDER):
        if old < name and old not in kept:  # broken off, too
            lake.storage.delete(*run, FOLDER, old)
    return name


def _parts(checkpoint: Checkpoint) -> Iterator[tuple[str, Arrays]]:
    return zip(PARTS, (checkpoint.weights, checkpoint.optimizer), strict=True)


def _write_index(lake: Lake, folder: tuple[str, ...], checkpoint: Checkpoint, files: dict[str, Any]) -> None:
    index = {**checkpoint.facts, "format": FORMAT, "files": files}
    lake.storage.write_json({**index, "checksum": _checksum(index)}, *folder, INDEX)


def _files_there(lake: Lake, folder: tuple[str, ...], checkpoint: Checkpoint) -> dict[str, Any] | None:
    """What an index tells of its files, if a whole checkpoint with the same arrays is there."""
    if not lake.storage.exists(*folder, INDEX):
        return None
    try:
        index = _read_index(lake, *folder)
        same = all(_equal(read_arrays(lake, index["files"][part], *folder, part), arrays) for part, arrays in _parts(checkpoint))
    except IntegrityError:
        return None
    return index["files"] if same else None


def _equal(stored: Arrays, arrays: Arrays) -> bool:
    return list(stored) == list(arrays) and all(
        stored[name].dtype == array.dtype and stored[name].shape == array.shape and stored[name].tobytes() == array.tobytes()
        for name, array in arrays.items()
    )


def _checksum(index: dict[str, Any]) -> str:
    return fingerprint(index, length=64)


def list_checkpoints(lake: Lake, run: tuple[str, ...]) -> list[str]:
    """Names of a run's complete checkpoints, oldest first."""
    names = [name for name in lake.storage.list(*run, FOLDER) if NAME.fullmatch(name)]
    return [name for name in names if lake.storage.exists(*run, FOLDER, name, INDEX)]


def read_checkpoint(lake: Lake, run: tuple[str, ...], name: str) -> Checkpoint:
    """Raises IntegrityError when any part of it is gone, cut or changed."""
    folder = (*run, FOLDER, name)
    index = _read_index(lake, *folder)
    weights, optimizer = (read_arrays(lake, index["files"][part], *folder, part) for part in PARTS)
    return Checkpoint(weights, optimizer, index)


def _read_index(lake: Lake, *folder: str) -> dict[str, Any]:
    where = lake.storage.path(*folder, INDEX)
    try:
        index = lake.storage.read_json(*folder, INDEX)
    except (InputError, RecursionError) as error:
        raise IntegrityError(f"{where} cannot be read: {error}") from None
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        found = index.get("format") if isinstance(index, dict) else None
        raise IntegrityError(f"{where}: format {found!r}, this version reads {FORMAT}")
    if index.pop("checksum", None) != _checksum(index):
        raise IntegrityError(f"{where} does not have the checksum that it says")
    files = index.get("files")
    if not isinstance(files, dict) or set(files) != set(PARTS):
        names = ", ".join(map(repr, files)) if isinstance(files, dict) else repr(files)
        raise IntegrityError(f"{where} names files {names}, and must name {', '.join(PARTS)}")
    for part, facts in files.items():
        held = facts.get("names") if isinstance(facts, dict) else None
        if not isinstance(held, list) or not all(isinstance(each, str) for each in held) or "sha256" not in facts:
            raise IntegrityError(f"{where} does not tell what {part} holds")
    if index.get("global_step") != int(folder[-1]):
        raise IntegrityError(f"{where} is of global step {index.get('global_step')!r}, its folder of {int(folder[-1])}")
    return index


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
