"""Everything distributed: the only room that imports Horovod, and PySpark to ask for the submitted session."""

from training.distributed.devices import parse_device
from training.distributed.elastic import MAX_RESETS, Elastic
from training.distributed.launch import launch, num_ranks
from training.distributed.modes import only_first_speaks
from training.distributed.world import STALL_SECONDS, World

__all__ = [
    "MAX_RESETS",
    "STALL_SECONDS",
    "Elastic",
    "World",
    "launch",
    "num_ranks",
    "only_first_speaks",
    "parse_device",
]
