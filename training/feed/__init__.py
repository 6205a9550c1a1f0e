"""Exact batches of a snapshot's rows: what to read is planned by pure functions, Petastorm reads it."""

from training.feed.batch import Batch
from training.feed.feed import Feed
from training.feed.plan import Order
from training.feed.statistics import FeedStatistics

__all__ = ["Batch", "Feed", "FeedStatistics", "Order"]
