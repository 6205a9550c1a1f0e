"""Checkpoints on a real disk: whole or passed over, never unpickled."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest

from lakering.errors import IntegrityError
from lakering.lake import Lake
from lakering.storage import Storage
from training.checkpoint import (
    Arrays,
    Checkpoint,
    hash_arrays,
    list_checkpoints,
    newest_checkpoint,
    read_arrays,
    read_checkpoint,
    write_arrays,
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


def test_a_flipped_byte_is_passed_over_aloud(lake):
    write(lake, 10, 20)
    path = folder(lake, 20) / "weights.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    found, passed_over = newest_checkpoint(lake, RUN)
    assert found is not None
    assert found.global_step == 10
    assert len(passed_over) == 1
    assert "checkpoint 0000000020 is passed over" in passed_over[0]
    assert str(path) in passed_over[0]


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

    def __reduce__(self):
        return (pytest.fail, ("a pickle was read",))


def test_a_pickle_is_refused_unread(lake):
    stream = io.BytesIO()
    np.savez(stream, a0=np.array([Trap()], dtype=object))
    facts = write_arrays(lake, {"w": np.zeros(1)}, "x.npz")
    lake.storage.write(stream.getvalue(), "x.npz")
    import hashlib

    facts["sha256"] = hashlib.sha256(stream.getvalue()).hexdigest()
    with pytest.raises(IntegrityError, match="does not hold plain arrays"):
        read_arrays(lake, json.loads(json.dumps(facts)), "x.npz")


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
