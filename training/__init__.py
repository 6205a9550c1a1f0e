"""From a snapshot to a model: the feed, the ranks, the loop, checkpoints, evaluation."""

import os

# Both are read when the libraries are loaded. TensorFlow's notes on processor features go; warnings and errors stay where
# there is a GPU. Where there is none, its one error is that there is none; what fails is raised in Python all the same.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1" if os.path.exists("/dev/nvidiactl") else "3")
# Boosted trees' threads wait by spinning otherwise: twice as slow beside any other work (12 s against 24 s).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
