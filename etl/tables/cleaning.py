"""The cleaner: removes whole builds that no pin names, with the manifests that name them.

A build goes in an order that leaves nothing half-removed which looks whole: its record first, then the manifests, then
the folder. Killed at any point and run again, the cleaner ends in the same state.
"""

from __future__ import annotations

import datetime
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from tqdm import tqdm

from etl.tables.examples import BUILD, build_lock
from etl.tables.inventory import build_of, folder_facts, list_builds, list_runs, list_snapshots
from lakering.errors import BusyError
from lakering.lake import EXAMPLES, Lake
from lakering.lock import is_locked
from lakering.manifest import JSON
from lakering.pins import Pin, read_pins
from lakering.record import LOCK, read_record
from lakering.storage import sync_folder

#: Where nothing is locked, what was written to within this time may be somebody's work that goes on.
YOUNG = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Finding:
    """What became of a build (or, ``build`` being gone, of snapshots alone), or with a dry run would, and why."""

    build: str | None
    removed: bool
    why: str
    snapshots: tuple[str, ...] = ()
    bytes: int = 0


@dataclass(kw_only=True)
class Cleaner:
    """Cleans one recipe. ``newest_too``: also the newest complete build although no snapshot was made of it yet.
    ``dry_run``: finds the same, and touches nothing. ``now`` tells what is young."""

    lake: Lake
    recipe: str
    now: datetime.datetime
    newest_too: bool = False
    dry_run: bool = False
    _pins: dict[str, Pin] = field(default_factory=dict)
    _builds: dict[str, str] = field(default_factory=dict)

    def clean(self) -> list[Finding]:
        """Every build and what became of it, then snapshots whose build was gone already."""
        builds = list_builds(self.lake, self.recipe)
        shown = tqdm(builds, desc=f"builds of {self.recipe}", disable=not sys.stderr.isatty(), leave=False)
        findings = [self._clean_build(build) for build in shown]
        orphans = [self._clean_orphan(name) for name in list_snapshots(self.lake, self.recipe)]
        return findings + [finding for finding in orphans if finding]

    def _clean_build(self, build: str) -> Finding:
        why = self._why_pinned(build)
        if why:
            return Finding(build, False, why)
        try:
            with self._lock(build):
                return self._judge(build)
        except BusyError:
            return Finding(build, False, "another process works on it")

    def _judge(self, build: str) -> Finding:
        """Under the build's lock, so that what is found here stays so."""
        folder = self.lake.build(self.recipe, build)
        facts, complete = folder_facts(self.lake, *folder), self.lake.storage.exists(*folder, BUILD)
        snapshots = self._snapshots_of(build)
        why = self._why_pinned(build) or (self._why_wanted(build, snapshots) if complete else self._why_in_work(facts.written))
        if why:
            return Finding(build, False, why, snapshots)
        if not self.dry_run and not self._remove(build):
            return Finding(build, False, "pinned while it was looked at", snapshots)
        return Finding(build, True, "no pin names it" if complete else "it was never finished", snapshots, facts.bytes)

    def _why_pinned(self, build: str) -> str | None:
        self._pins = read_pins(self.lake, self._pins)
        names = [name for name, pin in self._pins.items() if (pin.recipe, pin.build) == (self.recipe, build)]
        return f"pinned by snapshot {', '.join(sorted(names))}" if names else None

    def _why_in_work(self, written: datetime.datetime | None) -> str | None:
        """Of an incomplete build, whose lock is ours: where there are locks, nobody makes it."""
        young = not self.lake.storage.is_local and written is not None and self.now - written < YOUNG
        return "incomplete, and written to within a day: it may be in work" if young else None

    def _why_wanted(self, build: str, snapshots: tuple[str, ...]) -> str | None:
        if not snapshots:
            newest = self.lake.newest(EXAMPLES, self.recipe, marker=BUILD)
            return "the newest, and no snapshot was made of it yet" if build == newest and not self.newest_too else None
        for run in list_runs(self.lake, self.recipe):
            record = read_record(self.lake, self.recipe, run) or {}
            # A run that has just begun tells no build yet: it may be any that has a snapshot.
            reads_it = record.get("inputs", {}).get("build", build) == build
            if reads_it and record.get("status") != "complete" and self._goes_on(run):
                return f"run {run} goes on"
        return None

    def _goes_on(self, run: str) -> bool:
        folder = self.lake.run(self.recipe, run)
        if self.lake.storage.is_local:
            return is_locked(self.lake.storage, *folder, LOCK)
        written = folder_facts(self.lake, *folder).written
        return written is not None and self.now - written < YOUNG

    def _remove(self, build: str) -> bool:
        """False when the build was pinned meanwhile, which can be where nothing is locked: then it stays."""
        storage, folder = self.lake.storage, self.lake.build(self.recipe, build)
        record = storage.read(*folder, BUILD) if storage.exists(*folder, BUILD) else None
        storage.delete(*folder, BUILD)
        if storage.is_local:
            sync_folder(storage.path(*folder))
        if self._why_pinned(build):
            if record is not None:
                storage.write(record, *folder, BUILD)
            return False
        for snapshot in self._snapshots_of(build):
            self._remove_snapshot(snapshot)
        storage.delete(*folder)
        return True

    def _remove_snapshot(self, snapshot: str) -> None:
        folder = self.lake.snapshot(self.recipe, snapshot)
        self.lake.storage.delete(*folder, JSON)
        self.lake.storage.delete(*folder)

    def _clean_orphan(self, snapshot: str) -> Finding | None:
        """A manifest whose build is gone, or that was never finished: nothing can be trained on either."""
        build = build_of(self.lake, self.recipe, snapshot)
        try:
            with self._lock(build) if build else nullcontext():
                # A pin is written before its manifest, and this one was there before we look at the pins.
                self._pins = read_pins(self.lake, self._pins)
                if snapshot in self._pins or (build and self.lake.storage.exists(*self.lake.build(self.recipe, build))):
                    return None
                size = folder_facts(self.lake, *self.lake.snapshot(self.recipe, snapshot)).bytes
                if not self.dry_run:
                    self._remove_snapshot(snapshot)
        except BusyError:
            return None
        return Finding(None, True, f"its build {build} is gone" if build else "it has no manifest", (snapshot,), size)

    def _snapshots_of(self, build: str) -> tuple[str, ...]:
        names = list_snapshots(self.lake, self.recipe)
        found = {name: self._builds.get(name) or build_of(self.lake, self.recipe, name) for name in names}
        self._builds = {name: of for name, of in found.items() if of}
        return tuple(name for name, of in found.items() if of == build)

    def _lock(self, build: str) -> AbstractContextManager[None]:
        if not self.dry_run:
            return build_lock(self.lake, self.recipe, build, wait=False)
        if is_locked(self.lake.storage, *self.lake.build(self.recipe, build)):
            raise BusyError(f"another process works on build {build}")
        return nullcontext()
