"""Training that goes on when a rank is lost or a host is added, under ``horovodrun --min-np MIN --max-np MAX``.

A change ends a world: its ranks leave what they do, Horovod's driver gives them new numbers, and the work is called again
in a new world, where it goes on from the newest state that any rank kept. The work is the same function as without
elasticity; it tells its world what it reached, and asks it what to go on from.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lakering.errors import LakeringError, SettingError, TrainingError
from training.checkpoint import Arrays, Checkpoint
from training.distributed.launcher import end_with_launcher
from training.distributed.modes import Mode, be_silent
from training.distributed.peers import UnreachedError
from training.distributed.services import listening_on
from training.distributed.world import HorovodWorld, World

Work = Callable[[World, dict[str, Any]], dict[str, Any]]
MAX_RESETS = 20
#: Seconds that ranks wait for each other when a world begins: one that joins has TensorFlow to import.
CONNECT_SECONDS = 90


@dataclass(frozen=True)
class Elastic:
    """How many ranks there may be, and how often they may change before the run ends."""

    least: int
    most: int
    max_resets: int = MAX_RESETS

    @classmethod
    def parse(cls, text: str, max_resets: int = MAX_RESETS) -> Elastic:
        """``MIN:MAX``. Raises SettingError."""
        found = re.fullmatch(r"(\d+):(\d+)", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise SettingError(f"--elastic {text}: expected MIN:MAX with 1 <= MIN <= MAX, such as 1:4")
        if max_resets < 1:
            raise SettingError(f"--max-resets {max_resets}: expected 1 or more")
        return cls(int(found[1]), int(found[2]), max_resets)

    def validate(self, mode: Mode) -> None:
        """Raises SettingError unless the launcher starts ranks anew for those that are lost."""
        asked = f"--elastic {self.least}:{self.most}"
        if mode == "python" or (mode == "horovodrun" and os.environ.get("HOROVOD_ELASTIC") != "1"):
            raise SettingError(f"{asked}: " + ("plain Python is one rank" if mode == "python" else "horovodrun was started "
                               "with a fixed number of ranks"),
                               next_step=f"horovodrun -np {self.most} --min-np {self.least} --max-np {self.most} "
                               "--network-interface NIC -H host1:1,host2:1 (or --host-discovery-script FILE) "
                               f"python ... {asked}")  # fmt: skip


class LostRanks(TrainingError):
    """Other ranks are gone; those that are left can go on."""


class HostsAdded(Exception):
    """The driver has found other hosts; all ranks are at the same step."""


@dataclass
class Kept:
    """What a process keeps from world to world. ``worlds``: how many it was in; ``why``: what ended the last one."""

    checkpoint: Checkpoint | None = None
    memory: dict[str, Any] = field(default_factory=dict)
    reached: int = 0
    worlds: int = 0
    why: str = ""


class HostNews:
    """What Horovod's driver tells rank 0: that there are other hosts now."""

    def __init__(self) -> None:
        self.changed = False

    def on_hosts_updated(self, timestamp: float, change: int) -> None:
        self.changed = True


class ElasticWorld(HorovodWorld):
    """The ranks between two changes."""

    _elastic = True

    def __init__(self, kept: Kept, news: HostNews, elastic: Elastic, stall_seconds: int, *, profiled: bool) -> None:
        news.changed = False
        self._kept, self._news = kept, news
        try:
            super().__init__(stall_seconds, profiled=profiled, watch_launcher=False)
            self._meet(elastic)
        except UnreachedError as error:
            self.leave()
            raise LostRanks(error.message, next_step=error.next_step) from error
        except BaseException:
            self.leave()
            raise

    def _meet(self, elastic: Elastic) -> None:
        """Tells all ranks what each of them kept, and notes who left and who joined."""
        kept = self._kept
        me = {"worlds": kept.worlds, "reached": kept.reached, "why": kept.why, "memory": kept.memory,
              "step": kept.checkpoint.global_step if kept.checkpoint else -1,
              "member": f"{os.environ.get('HOROVOD_HOSTNAME')}, process {os.getpid()}"}  # fmt: skip
        self._all = [json.loads(text) for text in self.gather(json.dumps(me), "members")]
        # One that has just joined knows nothing yet.
        eldest = max(self._all, key=lambda found: (found["worlds"], found["step"]))
        kept.memory = eldest["memory"]
        members, before = [found["member"] for found in self._all], self.memory.get("members")
        kept.worlds, self.memory["members"] = eldest["worlds"] + 1, members
        if before is None:
            return
        resets = self.memory.setdefault("resets", [])
        resets.append({"why": eldest["why"], "ranks": self.size, "left": sorted(set(before) - set(members)),
                       "joined": sorted(set(members) - set(before))})  # fmt: skip
        if len(resets) > elastic.max_resets:
            raise TrainingError(f"ranks were lost or added {len(resets)} times, and --max-resets is {elastic.max_resets}: "
                                f"{eldest['why']}",
                                next_step="see why ranks die; started again, the training goes on")  # fmt: skip

    @property
    def memory(self) -> dict[str, Any]:
        return self._kept.memory

    def reached(self, global_step: int) -> None:
        self._kept.reached = global_step

    def commit(self, capture: Callable[[], Checkpoint], flush: Callable[[], None]) -> None:
        def on_first() -> dict[str, bool]:
            try:
                flush()
            except (LakeringError, OSError) as error:
                print(f"warning: the log of steps cannot be written, the state is not kept: {error}", file=sys.stderr)
                return {"flushed": False, "changed": False}
            return {"flushed": True, "changed": self._news.changed}

        found = self.from_first("commit", on_first)
        if found["flushed"]:
            self._kept.checkpoint = capture()
        if found["changed"]:
            raise HostsAdded("hosts were added or removed")

    def recover(self, stored: Callable[[], int]) -> Checkpoint | None:
        newest = max(range(self.size), key=lambda rank: (self._all[rank]["step"], -rank))
        step = self._all[newest]["step"]
        on_disk = int(self.from_first("stored", stored))
        source = newest if step >= 0 and step >= on_disk else None
        self._kept.checkpoint = found = None if source is None else self._from(source)
        if resets := self.memory.get("resets"):
            step = max(step, on_disk, 0)
            back = max(rank["reached"] for rank in self._all) - step
            resets[-1].update(step=step, steps_again=back)
            if self.rank == 0:
                ranks = "1 rank" if self.size == 1 else f"{self.size} ranks"
                print(f"elastic: {resets[-1]['why']}; going on with {ranks} from step {step:,} ({back} steps back)",
                      file=sys.stderr, flush=True)  # fmt: skip
        return found

    def _from(self, source: int) -> Checkpoint:
        """What rank ``source`` kept, on all ranks: names, shapes and facts as JSON, then the arrays one by one."""
        mine = self._kept.checkpoint if self.rank == source else None
        groups = [mine.weights, mine.optimizer] if mine else [{}, {}]
        text = json.dumps({"facts": mine.facts, "arrays": [[[n, str(a.dtype), a.shape] for n, a in group.items()]
                                                           for group in groups]}) if mine else ""  # fmt: skip
        head = json.loads(self.gather(text, "kept")[source])
        filled: list[Arrays] = [{}, {}]
        for group, (names, into) in enumerate(zip(head["arrays"], filled, strict=True)):
            for i, (name, dtype, shape) in enumerate(names):
                array = groups[group][name] if mine else np.zeros(shape, dtype)
                into[name] = self.broadcast(array, f"kept.{group}.{i}", source)
        return Checkpoint(filled[0], filled[1], head["facts"])

    def _gone(self, reason: str) -> TrainingError:
        lost = self._peers is None or self._peers.lost or self._peers.why(0) is None
        return LostRanks(reason) if lost else TrainingError(reason)

    def leave(self) -> None:
        """Lets go of a world that has ended; the process goes on."""
        if self._peers:
            self._peers.release()
        self._shutdown()


def run_elastic(work: Work, request: dict[str, Any], elastic: Elastic, stall_seconds: int) -> dict[str, Any]:
    """Calls ``work`` in one world after the other, until it returns, or fails with anything but a loss of ranks.

    Raises what it failed with; TrainingError after ``elastic.max_resets`` changes."""
    from horovod.common.elastic import notification_manager
    from horovod.common.exceptions import HorovodInternalError

    end_with_launcher(int(os.environ.get("HOROVOD_RANK", "0")))
    os.environ.setdefault("HOROVOD_GLOO_TIMEOUT_SECONDS", str(CONNECT_SECONDS))
    news, kept, failed_starts = HostNews(), Kept(), 0
    with listening_on(os.environ.get("HOROVOD_GLOO_IFACE")):
        notification_manager.init()
    notification_manager.register_listener(news)
    while True:
        world = None
        try:
            world = ElasticWorld(kept, news, elastic, stall_seconds, profiled=bool(request.get("profile")))
            failed_starts = 0
            result = work(world, request)
            world.close()
            return _told(world, result)
        except (LostRanks, HostsAdded, HorovodInternalError) as change:
            kept.why = change.message if isinstance(change, LostRanks) else str(change)
            if world is None:
                failed_starts += 1
                if failed_starts > elastic.max_resets:
                    raise TrainingError(f"the ranks could not be brought together {failed_starts} times: {kept.why}") from change
                continue
            if isinstance(change, LostRanks) and world.size - 1 < elastic.least:
                print(f"elastic: {kept.why}; {world.size - 1} of at least {elastic.least} ranks are left: waiting for a host "
                      "until horovodrun gives up (--elastic-timeout)", file=sys.stderr, flush=True)  # fmt: skip
            world.leave()
        except BaseException as failure:
            if world is not None:
                world.close(failure)
                _told(world, {})
            raise


def _told(world: World, result: dict[str, Any]) -> dict[str, Any]:
    """The last rank 0 speaks for all: the one that was started as it may be gone."""
    if world.rank != 0:
        be_silent()
    return result
