"""Thin entry points for ``spark-submit``, ``horovodrun`` and plain Python."""
