"""Exact batches of a snapshot's rows: what to read is planned by pure functions, Petastorm reads it."""

from training.feed.batch import Batch
from training.feed.feed import Feed, FeedStatistics
from training.feed.plan import Order

__all__ = ["Batch", "Feed", "FeedStatistics", "Order"]
