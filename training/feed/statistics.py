"""What a feed tells of its work."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass
class FeedStatistics:
    """What a feed did: rows handed out; row groups read, how many of them another rank began (summed over the ranks: how many
    were read twice), and their bytes in the files; row groups found, or not found, in the cache; broken images that were
    skipped; seconds that the caller waited for batches, and from the first one asked for to the end, its own work
    included."""

    rows: int = 0
    row_groups: int = 0
    row_groups_shared: int = 0
    bytes_read: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    images_skipped: int = 0
    waited: float = 0.0
    elapsed: float = 0.0

    @property
    def waiting_share(self) -> float:
        return self.waited / self.elapsed if self.elapsed else 0.0

    def since(self, before: FeedStatistics) -> FeedStatistics:
        """What was done after ``before``, a copy of these statistics at that time."""
        return FeedStatistics(**{f.name: getattr(self, f.name) - getattr(before, f.name) for f in fields(self)})

    def facts(self) -> dict[str, float]:
        """All of it, under names that tell the units, for summaries and logs."""
        return {"rows_per_second": self.rows_per_second, "waiting_for_input_share": self.waiting_share,
                "bytes_read": int(self.bytes_read), "row_groups_read": int(self.row_groups),
                "row_groups_read_by_another_rank_too": int(self.row_groups_shared), "cache_hits": int(self.cache_hits),
                "cache_misses": int(self.cache_misses), "images_skipped": int(self.images_skipped)}  # fmt: skip

    @property
    def rows_per_second(self) -> float:
        return self.rows / self.elapsed if self.elapsed else 0.0
