"""The ground that every room stands on: errors, summaries, storage, the manifest and the run record."""

__version__ = "0.1.0"
