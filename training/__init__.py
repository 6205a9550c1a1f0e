"""From a snapshot to a model: the feed, the ranks, the loop, checkpoints, evaluation."""

import os

# Both are read when the libraries are loaded. TensorFlow's notes on processor features go; warnings and errors stay.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
# Boosted trees' threads wait by spinning otherwise: twice as slow beside any other work (12 s against 24 s).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
