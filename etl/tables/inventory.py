"""What a lake holds of builds, snapshots and runs, as it lies on storage. Nothing is changed here."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyarrow import fs

from etl.tables.examples import BUILD
from lakering.errors import InputError, IntegrityError, LakeringError
from lakering.lake import EXAMPLES, RUNS, SNAPSHOTS, Lake
from lakering.lock import is_locked
from lakering.manifest import JSON, read_manifest, validate_files
from lakering.names import IDENTIFIER, NAME
from lakering.pins import Pin, read_pins
from lakering.record import read_record

#: How builds and snapshots are named: a fingerprint, with a number behind it for the next of the same.
OURS = re.compile(r"[0-9a-f]{16}(-[0-9]+)?")


@dataclass(frozen=True)
class FolderFacts:
    """Of all files below a folder: how many, their bytes, and when the newest was written."""

    files: int
    bytes: int
    written: datetime.datetime | None


def folder_facts(lake: Lake, *folder: str) -> FolderFacts:
    files = list(lake.storage.walk(*folder))
    times = [info.mtime for info in files if info.mtime]
    return FolderFacts(len(files), sum(info.size or 0 for info in files), max(times, default=None))


def list_recipes(lake: Lake) -> list[str]:
    """The recipes that have builds, snapshots or pins in the lake."""
    found = {*_folders(lake, NAME, EXAMPLES), *_folders(lake, NAME, SNAPSHOTS)}
    return sorted(found | {pin.recipe for pin in read_pins(lake).values()})


def list_builds(lake: Lake, recipe: str) -> list[str]:
    """The builds of a recipe, complete or not. What has no name of ours lies there for reasons of its own."""
    return _folders(lake, OURS, EXAMPLES, recipe)


def list_snapshots(lake: Lake, recipe: str) -> list[str]:
    """The snapshots of a recipe, those with an unfinished manifest too."""
    return _folders(lake, OURS, SNAPSHOTS, recipe)


def list_runs(lake: Lake, recipe: str) -> list[str]:
    return _folders(lake, IDENTIFIER, RUNS, recipe)


def _folders(lake: Lake, names: re.Pattern[str], *folder: str) -> list[str]:
    found = lake.storage.filesystem.get_file_info(fs.FileSelector(lake.storage.path(*folder), allow_not_found=True))
    return sorted(info.base_name for info in found if info.type == fs.FileType.Directory and names.fullmatch(info.base_name))


def build_of(lake: Lake, recipe: str, snapshot: str) -> str | None:
    """The build that a snapshot's manifest names; None where there is no manifest that can be read."""
    try:
        facts = lake.storage.read_json(*lake.snapshot(recipe, snapshot), JSON)
        return str(facts["build"])
    except (InputError, IntegrityError, KeyError, TypeError):
        return None


def list_runs_of(lake: Lake, recipe: str) -> dict[str, dict[str, str]]:
    """The status of each run, by snapshot and run."""
    found: dict[str, dict[str, str]] = {}
    for run in list_runs(lake, recipe):
        record = read_record(lake, recipe, run)
        if record and "inputs" in record:
            found.setdefault(record["inputs"]["snapshot"], {})[run] = record["status"]
    return found


def describe_snapshots(lake: Lake, recipe: str) -> dict[str, dict[str, Any]]:
    """Of each snapshot, newest first: build, when it was made (or last asked for), rows by split, bytes, who pinned it,
    its runs, and whether the files that it names are there."""
    pins = {name: pin for name, pin in read_pins(lake).items() if pin.recipe == recipe}
    runs = list_runs_of(lake, recipe)
    written = {name: _written(lake, *lake.snapshot(recipe, name), JSON) for name in list_snapshots(lake, recipe)}
    names = sorted(written, key=lambda name: (written[name] or "", name), reverse=True)
    return {
        name: _describe_snapshot(lake, recipe, name, written.get(name), pins.get(name), runs.get(name, {}))
        for name in [*names, *sorted(pins.keys() - written.keys())]
    }


def _describe_snapshot(lake: Lake, recipe: str, name: str, made: str | None, pin: Pin | None,
                       runs: Mapping[str, str]) -> dict[str, Any]:  # fmt: skip
    facts: dict[str, Any] = {"build": pin.build if pin else None, "made": made, "rows": {}, "bytes": None,
                             "pinned": f"by {pin.by}" if pin else "no", "runs": dict(runs), "files": "all there"}  # fmt: skip
    try:
        manifest = read_manifest(lake, recipe, name)
        sizes = manifest.row_groups.group_by("path").aggregate([("file_bytes", "max")])["file_bytes_max"].to_pylist()
        facts |= {"build": manifest.build, "rows": manifest.num_rows, "bytes": sum(sizes)}
        validate_files(lake, manifest)
    except LakeringError as error:  # what is wrong with one is told beside the others
        facts["files"] = error.message
    return facts


def describe_unnamed_builds(lake: Lake, recipe: str) -> dict[str, dict[str, Any]]:
    """Of each build that no snapshot and no pin names: its state, when it was last written to, bytes."""
    named = {pin.build for pin in read_pins(lake).values() if pin.recipe == recipe}
    named |= {build for name in list_snapshots(lake, recipe) if (build := build_of(lake, recipe, name))}
    found = {}
    for build in list_builds(lake, recipe):
        folder = lake.build(recipe, build)
        if build not in named:
            state = "complete" if lake.storage.exists(*folder, BUILD) else "incomplete"
            facts = folder_facts(lake, *folder)
            found[build] = {"state": "in work" if is_locked(lake.storage, *folder) else state,
                            "written": _text(facts.written), "bytes": facts.bytes}  # fmt: skip
    return found


def _written(lake: Lake, *file: str) -> str | None:
    return _text(lake.storage.filesystem.get_file_info(lake.storage.path(*file)).mtime)


def _text(time: datetime.datetime | None) -> str | None:
    return time.astimezone(datetime.UTC).isoformat(timespec="seconds") if time else None
