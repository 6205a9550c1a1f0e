"""Checkpoints on a real disk: whole or passed over, never unpickled."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lakering.lake import Lake
from lakering.storage import Storage
from training.checkpoint import (
    Arrays,
    Checkpoint,
    hash_arrays,
    list_checkpoints,
    newest_checkpoint,
    read_checkpoint,
    write_checkpoint,
)

RUN = ("runs", "toy", "r1")


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(Storage(str(tmp_path)))


def checkpoint(step: int) -> Checkpoint:
    weights = {"dense/weight": np.full((3, 2), step, np.float32), "../out": np.array(1.5)}
    return Checkpoint(weights, {"m/dense/weight": np.zeros((3, 2), np.float32)}, {"global_step": step, "epoch": 0, "step": step})


def write(lake: Lake, *steps: int, keep: int = 3) -> None:
    for step in steps:
        write_checkpoint(lake, RUN, checkpoint(step), keep=keep)


def folder(lake: Lake, step: int) -> Path:
    return Path(lake.storage.path(*RUN, "checkpoints", f"{step:010d}"))


def test_what_is_written_is_read(lake):
    write(lake, 20)
    found = read_checkpoint(lake, RUN, "0000000020")
    assert found.global_step == 20
    np.testing.assert_array_equal(found.weights["dense/weight"], np.full((3, 2), 20, np.float32))
    assert found.weights["../out"] == 1.5, "names are data, never paths"
    assert list(found.optimizer) == ["m/dense/weight"]


def test_the_newest_few_are_kept(lake):
    write(lake, 5, 10, 15, 20, keep=2)
    assert list_checkpoints(lake, RUN) == ["0000000015", "0000000020"]


@pytest.mark.parametrize("name", ["weights.npz", "optimizer.npz", "index.json"])
def test_a_flipped_byte_is_passed_over_aloud(lake, name):
    write(lake, 10, 20)
    path = folder(lake, 20) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    found, passed_over = newest_checkpoint(lake, RUN)
    assert found is not None
    assert found.global_step == 10
    assert len(passed_over) == 1
    assert "checkpoint 0000000020 is passed over" in passed_over[0]
    assert str(path) in passed_over[0]


GARBAGE = [b"", b"\xff\xfe", b"null", b"[]", b"{}", b'{"format": 2}', b'{"format": [2]}', b'{"format": 2, "checksum": 7}',
           b"[" * 100_000, b'{"a": ' * 100_000]  # fmt: skip


@pytest.mark.parametrize("content", GARBAGE, ids=range(len(GARBAGE)))
def test_an_index_of_garbage_is_passed_over(lake, content):
    write(lake, 10, 20)
    (folder(lake, 20) / "index.json").write_bytes(content)
    assert step_taken_in_place_of(lake, 20) == 10


def step_taken_in_place_of(lake: Lake, step: int) -> int:
    found, passed_over = newest_checkpoint(lake, RUN)
    assert [f"{step:010d}" in text for text in passed_over] == [True]
    assert found is not None
    return found.global_step


def forge(lake: Lake, step: int, **changes: Any) -> None:
    """An index of somebody who knows how to work out its checksum, and those of the files."""
    path = folder(lake, step) / "index.json"
    index = {**json.loads(path.read_text()), **changes}
    del index["checksum"]
    for name, facts in index["files"].items() if isinstance(index["files"], dict) else ():
        file = folder(lake, step) / name
        if isinstance(facts, dict) and file.exists():
            facts["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    text = json.dumps(index, sort_keys=True, separators=(",", ":"))
    path.write_text(json.dumps({**index, "checksum": hashlib.sha256(text.encode()).hexdigest()}))


def test_a_forged_index_can_be_read(lake):
    """Else the tests below would pass for its checksum alone."""
    write(lake, 10)
    forge(lake, 10, note="forged")
    assert read_checkpoint(lake, RUN, "0000000010").facts["note"] == "forged"


@pytest.mark.parametrize("files", [
    {"../../secret.npz": {"sha256": "", "names": []}, "optimizer.npz": {"sha256": "", "names": []}},
    {"/etc/passwd": {"sha256": "", "names": []}, "weights.npz": {"sha256": "", "names": []}},
    {"weights.npz": {"sha256": "", "names": []}}, {"weights.npz": 1, "optimizer.npz": None}, ["weights.npz"], None,
    {"weights.npz": {"sha256": "", "names": "abc"}, "optimizer.npz": {"names": []}},
], ids=range(7))  # fmt: skip
def test_an_index_that_names_other_files_is_passed_over(lake, files):
    write(lake, 10, 20)
    forge(lake, 20, files=files)
    assert step_taken_in_place_of(lake, 20) == 10


def test_an_index_of_another_step_is_passed_over(lake):
    write(lake, 10, 20)
    forge(lake, 20, global_step="20")
    assert step_taken_in_place_of(lake, 20) == 10


@pytest.mark.parametrize("name", ["weights.npz", "optimizer.npz"])
def test_a_missing_or_cut_file_is_passed_over(lake, name):
    write(lake, 10, 20, 30)
    (folder(lake, 30) / name).unlink()
    with (folder(lake, 20) / name).open("r+b") as file:
        file.truncate(30)
    found, passed_over = newest_checkpoint(lake, RUN)
    assert found is not None
    assert found.global_step == 10
    assert len(passed_over) == 2


def test_one_without_its_index_was_never_completed(lake):
    write(lake, 10, 20)
    (folder(lake, 20) / "index.json").unlink()
    found, passed_over = newest_checkpoint(lake, RUN)
    assert found is not None
    assert found.global_step == 10
    assert passed_over == []


def test_a_cut_index_is_passed_over(lake):
    write(lake, 10, 20)
    index = folder(lake, 20) / "index.json"
    index.write_text(index.read_text()[:40])
    found, passed_over = newest_checkpoint(lake, RUN)
    assert found is not None
    assert found.global_step == 10
    assert len(passed_over) == 1


def test_none_at_all(lake):
    assert newest_checkpoint(lake, RUN) == (None, [])


class Trap:
    """What a pickle could do when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def zipped(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return stream.getvalue()


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def huge() -> bytes:
    """The header of an array of 4 TiB, and 8 bytes of it."""
    return npy(np.zeros(1)).replace(b"(1,), }" + b" " * 12, b"(549755813888,), }" + b" ")


WHOLE = npy(np.zeros((3, 2), np.float32))
MALICIOUS = {
    "an absolute path": lambda trap: zipped({"/tmp/a0.npy": WHOLE, "a1.npy": npy(np.array(1.5))}),
    "a path upwards": lambda trap: zipped({"../a0.npy": WHOLE, "a1.npy": npy(np.array(1.5))}),
    "an entry too many": lambda trap: zipped({"a0.npy": WHOLE, "a1.npy": npy(np.array(1.5)), "a2.npy": WHOLE}),
    "a bomb": lambda trap: zipped({"a0.npy": npy(np.zeros(10**6)), "a1.npy": WHOLE}, zipfile.ZIP_DEFLATED),
    "a header that lies": lambda trap: zipped({"a0.npy": huge(), "a1.npy": WHOLE}),
    "a pickle": lambda trap: zipped({"a0.npy": npy(np.array([trap], dtype=object)), "a1.npy": WHOLE}),
    "a pickle alone": lambda trap: zipped({"a0.npy": pickle.dumps(trap), "a1.npy": WHOLE}),
    "no archive": lambda trap: pickle.dumps(trap),
}


@pytest.mark.parametrize("kind", MALICIOUS)
def test_what_is_no_plain_array_is_refused_unread(lake, tmp_path, kind):
    assert len(huge()) == len(npy(np.zeros(1)))
    trap = Trap(tmp_path / "sprung")
    write(lake, 10, 20)
    (folder(lake, 20) / "weights.npz").write_bytes(MALICIOUS[kind](trap))
    forge(lake, 20)
    found, passed_over = newest_checkpoint(lake, RUN)
    assert "does not hold plain arrays" in passed_over[0]
    assert found is not None
    assert found.global_step == 10
    assert not trap.path.exists()


def test_the_trap_springs_where_pickles_are_read(tmp_path):
    pickle.loads(pickle.dumps(Trap(tmp_path / "sprung")))
    assert (tmp_path / "sprung").exists()


def test_what_was_broken_off_is_removed_and_a_spared_one_stays(lake):
    write(lake, 5, 10, 15)
    (folder(lake, 10) / "index.json").unlink()
    write_checkpoint(lake, RUN, checkpoint(20), keep=1, spare="0000000005")
    assert sorted(path.name for path in folder(lake, 20).parent.iterdir()) == ["0000000005", "0000000020"]


def test_a_checkpoint_that_is_told_anew_is_there_at_every_moment(lake, monkeypatch):
    write(lake, 10)
    again = Checkpoint(checkpoint(10).weights, checkpoint(10).optimizer, {"global_step": 10, "epochs": [1]})
    with monkeypatch.context() as full:
        full.setattr(Storage, "write_json", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            write_checkpoint(lake, RUN, again, keep=1)
    found, _ = newest_checkpoint(lake, RUN)
    assert found is not None
    assert "epochs" not in found.facts
    write_checkpoint(lake, RUN, again, keep=1)
    found, passed_over = newest_checkpoint(lake, RUN)
    assert found is not None
    assert (found.facts["epochs"], passed_over) == ([1], [])


def test_one_that_was_passed_over_does_not_count_as_kept(lake):
    write(lake, 10, 20, 40)
    (folder(lake, 40) / "weights.npz").write_bytes(b"cut")
    write_checkpoint(lake, RUN, checkpoint(30), keep=2)
    assert sorted(path.name for path in folder(lake, 30).parent.iterdir()) == ["0000000020", "0000000030", "0000000040"]


def test_hashes_tell_names_shapes_types_and_values_apart():
    base: Arrays = {"w": np.zeros((2, 3), np.float32)}
    others: list[Arrays] = [
        {"v": base["w"]},
        {"w": np.zeros((3, 2), np.float32)},
        {"w": np.zeros((2, 3))},
        {"w": np.ones((2, 3), np.float32)},
    ]
    hashes = [hash_arrays(group) for group in (base, *others)]
    assert len(set(hashes)) == len(hashes)
    assert hash_arrays({"w": np.zeros((2, 3), np.float32)}) == hashes[0]
