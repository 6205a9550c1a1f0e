"""The image columns of a feed's batches, decoded by a pool of threads ahead of the training."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from recipes.training import ImageSettings
from training.feed.batch import Batch
from training.feed.blocks import Part, room_for
from training.feed.images import decode_images
from training.feed.reader import RowGroup

#: Images of one task: enough that handing them out costs nothing, few enough for threads to end together.
ROWS_PER_TASK = 16


@dataclass(kw_only=True)
class ImageDecoder:
    """Decodes some image columns, each by its settings; what is random is drawn from (seed, epoch, row id), and only with
    ``augment`` (in training). ``ahead`` batches are decoded beyond the one that is worked on, and held.

    Where a column is set to skip broken images, every batch has weights, and a row with a broken image has weight 0: all
    ranks keep their rows and steps, and the mean over the global batch leaves it out. ``where`` tells, for the error of
    a broken image, what file a row id lies in (see ``find_row``)."""

    settings: Mapping[str, ImageSettings]
    seed: int
    augment: bool
    where: Callable[[int], str]
    threads: int = 1
    ahead: int = 2
    broken: int = 0
    """images so far that were skipped"""

    def decode(self, batches: Iterable[Batch], epoch: int) -> Generator[Batch]:
        """The same batches, their ``images`` float32 [rows, height, width, channels] in fresh memory, aligned for tensors.

        Closing it ends and joins the threads, and so do its end and its errors; the batches' own iterator stays open.
        Raises IntegrityError for a broken image, naming file, row id and column, unless its column skips such."""
        pending: deque[_Pending] = deque()
        pool = ThreadPoolExecutor(self.threads, "lakering-images")
        try:
            for batch in batches:
                pending.append(self._start(pool, batch, epoch))
                if len(pending) > self.ahead:
                    yield self._finish(pending.popleft())
            while pending:
                yield self._finish(pending.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _start(self, pool: ThreadPoolExecutor, batch: Batch, epoch: int) -> _Pending:
        assert len(batch.row_id) == batch.num_rows  # what is random needs them
        parts = tuple(Part(name, np.dtype(np.float32), (*s.size, s.channels)) for name, s in self.settings.items())
        images = room_for(parts, batch.num_rows)
        tasks = [(first, pool.submit(self._decode, batch, name, images[name], first, epoch))
                 for name in self.settings for first in range(0, batch.num_rows, ROWS_PER_TASK)]  # fmt: skip
        return _Pending(batch, images, tasks)

    def _decode(self, batch: Batch, name: str, out: npt.NDArray, first: int, epoch: int) -> npt.NDArray[np.bool_]:
        rows = slice(first, min(first + ROWS_PER_TASK, batch.num_rows))
        row_ids = batch.row_id[rows]
        return decode_images(
            batch.images[name][rows], row_ids, self.settings[name], out=out[rows], column=name,
            source=lambda i: self.where(int(row_ids[i])), seed=self.seed, epoch=epoch if self.augment else None)  # fmt: skip

    def _finish(self, pending: _Pending) -> Batch:
        batch, weight = pending.batch, pending.batch.weight
        if any(settings.on_error == "skip" for settings in self.settings.values()):
            weight = np.ones(batch.num_rows, np.float32) if weight is None else weight.copy()
        for first, task in pending.tasks:
            broken = task.result()
            self.broken += int(broken.sum())
            if weight is not None:
                weight[first : first + ROWS_PER_TASK][broken] = 0
        return replace(batch, weight=weight, images={**batch.images, **pending.images})


@dataclass(frozen=True)
class _Pending:
    batch: Batch
    images: dict[str, npt.NDArray]
    tasks: list[tuple[int, Future[npt.NDArray[np.bool_]]]]


def find_row(files: fs.FileSystem, row_groups: Iterable[RowGroup], column: str, row_id: int) -> str:
    """The file and row group that hold a row id, by reading that column alone; for messages of errors, so it has none."""
    for row_group in row_groups:
        try:
            found = pq.ParquetFile(files.open_input_file(row_group.path)).read_row_group(row_group.index, columns=[column])
        except (OSError, pa.ArrowException):
            continue
        if (found[column].to_numpy() == row_id).any():
            return str(row_group)
    return "a file that cannot be read any more"
