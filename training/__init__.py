"""From a snapshot to a model: the feed, the ranks, the loop, checkpoints, evaluation."""

import os

# TensorFlow's notes on processor features and missing GPUs, three a process; warnings and errors stay. Read at its import.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
