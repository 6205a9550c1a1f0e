"""The ranks of a training, and what they do together. One rank needs no Horovod and imports none."""

from __future__ import annotations

import json
import os
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from lakering import errors
from lakering.errors import LakeringError, TrainingError
from training.checkpoint import Checkpoint
from training.distributed.launcher import end_with_launcher
from training.distributed.peers import Peers

T = TypeVar("T")
#: Seconds until a rank that keeps the others waiting ends the run; it is named after a tenth of them.
STALL_SECONDS = 600


class World:
    """One rank: every collective gives back what it was given."""

    rank, size, local_rank, local_size = 0, 1, 0, 1
    #: What it trains on, as a person is told.
    device = "CPU"

    def sum_tensors(self, tensors: Sequence[Any], name: str) -> list[Any]:
        """The sums over all ranks of tensors of one type, as one grouped allreduce, for use inside a ``tf.function``."""
        return list(tensors)

    def gather_rows(self, tensors: Sequence[Any], name: str) -> list[Any]:
        """Of tensors of one type the rows of all ranks, in the order of ranks, for use inside a ``tf.function``; ranks may have
        different numbers of rows."""
        return list(tensors)

    def gather_tensors(self, tensor: Any, name: str) -> tuple[Any, Any]:
        """All ranks' rows of a tensor, in the order of ranks, and the index of this rank's first; for use inside a
        ``tf.function``. A rank may have no row. The gradient of a row is summed over the ranks that made use of it."""
        return tensor, 0

    def sum(self, values: npt.ArrayLike, name: str) -> npt.NDArray[np.float64]:
        """The sum over all ranks of an array, in float64."""
        return np.asarray(values, np.float64)

    def gather(self, text: str, name: str) -> list[str]:
        """Every rank's text, in the order of ranks."""
        return [text]

    def broadcast(self, value: npt.NDArray, name: str, root: int = 0) -> npt.NDArray:
        """Rank ``root``'s array; shape and type are the same on all ranks."""
        return value

    def watch(self) -> AbstractContextManager[None]:
        """Inside, a step that fails because another rank is gone raises TrainingError."""
        return nullcontext()

    def timeline(self, path: str) -> AbstractContextManager[None]:
        """Inside, rank 0 records what the ranks' collectives wait for and do, as a local file in Chrome's trace format.
        Entered on every rank."""
        return nullcontext()

    def close(self, failure: BaseException | None = None) -> None:
        """Leaves the ranks; the others learn with which error."""

    @property
    def memory(self) -> dict[str, Any]:
        """JSON-like facts that an elastic training keeps, on every rank, when ranks are lost or join; else empty each time."""
        return {}

    def reached(self, global_step: int) -> None:
        """Notes how many steps are done."""

    def commit(self, capture: Callable[[], Checkpoint], flush: Callable[[], None]) -> None:
        """Called on every rank between the same two steps: an elastic training keeps the state, after ``flush`` on rank 0,
        to go on from when ranks are lost. When hosts were added the world ends here."""

    def recover(self, stored: Callable[[], int]) -> Checkpoint | None:
        """What an elastic training goes on from after ranks were lost or joined: the newest state that any rank kept, on
        all of them. None at a start, and when ``stored`` (asked on rank 0: the global step of the newest checkpoint in
        storage, -1 for none) is newer."""
        return None

    def doing(self, what: str, *, waiting: bool = False) -> None:
        """Notes what this rank does from now on, and whether it waits for the others meanwhile: for the text that names
        the rank that died, or for which the others waited in vain."""

    def together(self, name: str, work: Callable[[], T]) -> T:
        """Does some work on every rank, and raises on all of them when it fails on one, so that none waits for it."""
        self.doing(f"at '{name}'")
        result, failure = _attempt(work)
        self.raise_together(name, failure)
        return result  # type: ignore[return-value]

    def from_first(self, name: str, work: Callable[[], Any]) -> Any:
        """Does some work on rank 0 alone, and gives its JSON-like result, or its error, to all ranks."""
        self.doing(f"at '{name}'")
        result, failure = _attempt(work) if self.rank == 0 else (None, None)
        text = self.gather(_to_json(failure, self.rank) if failure else json.dumps({"result": result}), name)[0]
        found = json.loads(text)
        if failure:
            raise failure
        if "kind" in found:
            raise _from_json(found)
        return found["result"]

    def raise_together(self, name: str, failure: Exception | None) -> None:
        """Raises the first rank's failure, if any rank has one, on all ranks."""
        texts = self.gather(_to_json(failure, self.rank) if failure else "", name)
        if failure:
            raise failure
        for text in filter(None, texts):
            raise _from_json(json.loads(text))

    def agree(self, facts: dict[str, str]) -> None:
        """Raises TrainingError, naming what differs and where, unless all ranks hold the same facts."""
        everyone = [json.loads(text) for text in self.gather(json.dumps(facts, sort_keys=True), "agree")]
        for rank, theirs in enumerate(everyone):
            for name in everyone[0]:
                if theirs.get(name) != everyone[0][name]:
                    raise TrainingError(
                        f"ranks disagree on {name}: rank 0 has {everyone[0][name]}, rank {rank} has {theirs.get(name)}",
                        next_step="start all ranks with the same recipe, code and lake",
                    )


class HorovodWorld(World):
    """The ranks that ``horovodrun`` or Spark started; made inside each of them.

    A rank that keeps the others waiting for ``stall_seconds`` (whole, 10 or more) ends the run with its name. Only with
    ``profiled`` can ``timeline`` be entered."""

    _elastic = False

    def __init__(self, stall_seconds: int = STALL_SECONDS, *, profiled: bool = False, watch_launcher: bool = True) -> None:
        # A stalled rank waits for ever by default. Read when Horovod starts, so set before it.
        os.environ.setdefault("HOROVOD_STALL_CHECK_TIME_SECONDS", str(stall_seconds // 10))
        os.environ.setdefault("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", str(stall_seconds))
        if profiled:
            # Horovod refuses to start a timeline later unless it is told so at its start; and a thread of rank 0 then turns
            # without a pause, recording or not: on a machine of two cores steps took 1.4 times as long.
            os.environ.setdefault("HOROVOD_TIMELINE", "DYNAMIC")
        if watch_launcher:
            end_with_launcher(int(os.environ.get("HOROVOD_RANK", "0")))
        import horovod.tensorflow as hvd

        self._hvd = hvd
        self._peers: Peers | None = None
        self._shutting_down, self._is_down = threading.Lock(), False
        hvd.init()
        self.rank, self.size = hvd.rank(), hvd.size()
        self.local_rank, self.local_size = hvd.local_rank(), hvd.local_size()
        if self.size > 1:
            self._peers = Peers(self.rank, self.size, lambda text: self.gather(text, "peers")[0],
                                stall_seconds=stall_seconds, abandon=self._shutdown, elastic=self._elastic)  # fmt: skip

    def sum_tensors(self, tensors: Sequence[Any], name: str) -> list[Any]:
        return list(self._hvd.grouped_allreduce(tensors, op=self._hvd.Sum, name=name))

    def gather_rows(self, tensors: Sequence[Any], name: str) -> list[Any]:
        return list(self._hvd.grouped_allgather(tensors, name=name))

    def gather_tensors(self, tensor: Any, name: str) -> tuple[Any, Any]:
        import tensorflow as tf

        rows = tf.shape(tensor, out_type=tf.int64)[:1]
        first = tf.reduce_sum(self._hvd.allgather(rows, name=f"{name}.rows")[: self.rank])

        # Not the gradient that Horovod registered: it takes the mean over the ranks where the sum is meant.
        @tf.custom_gradient
        def gathered(part: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
            def gradient(whole: tf.Tensor) -> tf.Tensor:
                whole = self._hvd.allreduce(whole, op=self._hvd.Sum, name=f"{name}.gradient")
                return whole[first : first + rows[0]]

            return self._hvd.allgather(part, name=name), gradient

        return gathered(tensor), first

    def sum(self, values: npt.ArrayLike, name: str) -> npt.NDArray[np.float64]:
        import tensorflow as tf

        array = np.asarray(values, np.float64)
        with self._waiting(name):
            flat = tf.constant(array.reshape(-1), tf.float64)
            return self._hvd.allreduce(flat, op=self._hvd.Sum, name=name).numpy().reshape(array.shape)

    def gather(self, text: str, name: str) -> list[str]:
        import tensorflow as tf

        content = np.frombuffer(text.encode(), np.uint8)
        with self._waiting(name):
            lengths = self._hvd.allgather(tf.constant([len(content)], tf.int64), name=f"{name}.lengths").numpy()
            joined = self._hvd.allgather(tf.constant(content), name=f"{name}.texts").numpy().tobytes()
        ends = np.cumsum(lengths)
        return [joined[end - length : end].decode() for end, length in zip(ends, lengths, strict=True)]

    def broadcast(self, value: npt.NDArray, name: str, root: int = 0) -> npt.NDArray:
        import tensorflow as tf

        with self._waiting(name):
            return self._hvd.broadcast(tf.constant(value), root_rank=root, name=name).numpy()

    @contextmanager
    def watch(self) -> Iterator[None]:
        import tensorflow as tf

        try:
            yield
        # The last two: the others were known to be gone before the collective began.
        except (tf.errors.UnknownError, tf.errors.FailedPreconditionError, ValueError) as error:
            if "horovod" not in str(error).lower():  # in the words of Horovod, or of Gloo below it with the path of its sources
                raise
            reason = self._peers.why() if self._peers else None
            raise self._gone(reason or f"rank {self.rank} lost the other ranks: one of them failed or was ended") from error

    def _gone(self, reason: str) -> TrainingError:
        return TrainingError(reason)

    @contextmanager
    def timeline(self, path: str) -> Iterator[None]:
        self._hvd.start_timeline(path)
        try:
            yield
        finally:
            self._hvd.stop_timeline()

    def doing(self, what: str, *, waiting: bool = False) -> None:
        if self._peers:
            self._peers.doing(what, waiting)

    @contextmanager
    def _waiting(self, name: str) -> Iterator[None]:
        if self._peers is None:
            with self.watch():
                yield
            return
        before = self._peers.doing(f"waiting for all at '{name}'", True)
        with self.watch():
            yield
        self._peers.doing(*before)

    def close(self, failure: BaseException | None = None) -> None:
        if self._peers:
            self._peers.close("" if failure is None else f"{type(failure).__name__}: {failure}".split("\n")[0])
        self._shutdown()

    def _shutdown(self) -> None:
        with self._shutting_down:  # Horovod joins its thread, which two must not do at once, nor later: it may run anew
            if not self._is_down:
                self._is_down = True
                self._hvd.shutdown()


def _attempt(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return work(), None
    except Exception as error:
        return None, error


def _to_json(failure: Exception, rank: int) -> str:
    if isinstance(failure, LakeringError):
        facts = {"kind": type(failure).__name__, "message": failure.message, "next": failure.next_step}
    else:
        facts = {"kind": "TrainingError", "message": f"rank {rank}: {''.join(traceback.format_exception(failure))}"}
    return json.dumps(facts)


def _from_json(facts: dict[str, Any]) -> LakeringError:
    kind = getattr(errors, facts["kind"], LakeringError)
    error: LakeringError = kind(facts["message"], next_step=facts.get("next"))
    return error
