"""Which of the workers side by side takes which file of tests."""

from __future__ import annotations

from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

#: Files of a minute and more, the longest first: none of them is begun last, with the other workers at their end.
LONGEST = ("training/test_exactness.py", "training/test_spark_ranks.py", "test_whole_path.py", "training/test_elastic.py",
           "test_own_data_cluster.py", "training/test_ranks_in_trouble.py", "training/test_ranks.py",
           "training/test_checkpoint_faults.py", "etl/test_stream_faults.py", "etl/test_quarantine.py",
           "etl/test_ingest_dialects.py", "etl/test_ingest_rows.py", "etl/test_ingest_faults.py", "etl/test_stream.py")  # fmt: skip
#: The files that need Spark in the tests' own process, or the broker that tests share.
ETL = ("etl/", "test_kafka.py")


class OfOneRoom(LoadFileScheduling):
    """Whole files, the longest first. Every other worker takes the files of ``ETL`` while there are any, and the rest take
    the others: what is dear to start, Spark here and TensorFlow there, is then warm in one worker and not needed in both."""

    def _assign_work_unit(self, node: WorkerController) -> None:
        takes_etl = int(node.gateway.id.removeprefix("gw")) % 2 == 0

        def place(file: str) -> tuple[bool, int]:
            name = file.removeprefix("tests/")
            return name.startswith(ETL) is not takes_etl, LONGEST.index(name) if name in LONGEST else len(LONGEST)

        self.workqueue.move_to_end(min(self.workqueue, key=place), last=False)
        super()._assign_work_unit(node)
