"""Everything distributed: the only room that imports Horovod, and PySpark to ask for the submitted session."""

from training.distributed.launch import launch
from training.distributed.modes import only_first_speaks
from training.distributed.world import World

__all__ = ["World", "launch", "only_first_speaks"]
