"""The order of rows: every property for any table, batch, window, lanes and ranks."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.feed import plan
from training.feed.arena import Arena
from training.feed.plan import Order

COUNTS = st.lists(st.integers(0, 40), min_size=1, max_size=20).filter(lambda counts: sum(counts) > 0)
ORDERS = st.builds(
    Order, seed=st.integers(0, 2**31), batch_size=st.integers(1, 50), window=st.integers(1, 8), lanes=st.integers(1, 12)
)
EPOCHS = st.integers(0, 3)


def served(counts: list[int], order: Order, epoch: int, rank: int, ranks: int) -> list[tuple[int, int, int]]:
    """(output, row group, row) of everything that a rank serves, by reading what the plan says to read."""
    found = []
    for window in plan.cut_windows(counts, order, epoch):
        share = plan.share(window, order, epoch, rank, ranks)
        block = [(g, row) for g, first, last in plan.reads(window, share.first, share.last) for row in range(first, last)]
        assert len(block) == share.num_rows == len(share.rows())
        outputs = share.outputs(0, share.num_rows)
        found += [(int(output), *block[row]) for output, row in zip(outputs, share.rows(), strict=True)]
    return found


@settings(deadline=None)
@given(COUNTS, ORDERS, EPOCHS, st.integers(1, 6))
def test_every_row_is_served_once_and_outputs_have_no_gap(counts, order, epoch, ranks):
    ranks = min(ranks, order.lanes)
    everything = [row for rank in range(ranks) for row in served(counts, order, epoch, rank, ranks)]
    assert sorted(output for output, _, _ in everything) == list(range(sum(counts)))
    assert sorted((g, row) for _, g, row in everything) == [(g, row) for g, n in enumerate(counts) for row in range(n)]


@settings(deadline=None)
@given(COUNTS, ORDERS, EPOCHS, st.integers(2, 6))
def test_the_row_at_an_output_does_not_depend_on_the_number_of_ranks(counts, order, epoch, ranks):
    ranks = min(ranks, order.lanes)
    alone = {output: row for output, *row in served(counts, order, epoch, 0, 1)}
    shared = {output: row for rank in range(ranks) for output, *row in served(counts, order, epoch, rank, ranks)}
    assert shared == alone


@settings(deadline=None)
@given(COUNTS, ORDERS, EPOCHS, st.integers(1, 6))
def test_outputs_of_a_rank_ascend_and_shares_differ_by_one_lane_at_most(counts, order, epoch, ranks):
    ranks = min(ranks, order.lanes)
    for window in plan.cut_windows(counts, order, epoch):
        shares = [plan.share(window, order, epoch, rank, ranks) for rank in range(ranks)]
        assert all((np.diff(share.outputs(0, share.num_rows)) > 0).all() for share in shares)
        longest_lane = -(-window.num_rows // order.lanes)
        sizes = [share.num_rows for share in shares]
        # Ranks differ by a lane, and lanes by a row.
        assert max(sizes) - min(sizes) <= longest_lane + order.lanes // ranks + 1


@settings(deadline=None)
@given(COUNTS, ORDERS, EPOCHS, st.integers(1, 6))
def test_row_groups_are_read_again_by_neighbours_alone(counts, order, epoch, ranks):
    ranks = min(ranks, order.lanes)
    windows = plan.cut_windows(counts, order, epoch)
    num_reads = sum(
        len(list(plan.reads(window, share.first, share.last)))
        for window in windows
        for share in (plan.share(window, order, epoch, rank, ranks) for rank in range(ranks))
    )
    # A border between two ranks cuts one row group at most: N - 1 more reads in each window.
    assert num_reads <= sum(n > 0 for n in counts) + (ranks - 1) * len(windows)


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(1, 50))
def test_steps_cover_the_rows(num_rows, batch_size):
    steps = plan.num_steps(num_rows, batch_size)
    sizes = [plan.rows_of_step(num_rows, batch_size, step) for step in range(steps)]
    assert sum(sizes) == num_rows
    assert all(size == batch_size for size in sizes[:-1])
    assert all(size > 0 for size in sizes)


def test_lanes_are_served_in_turn_and_the_longer_ones_first():
    order = Order(seed=1, batch_size=4, window=1, lanes=3)
    (window,) = plan.cut_windows([8], order, 0)
    share = plan.share(window, order, 0)
    assert share.outputs(0, 8).tolist() == list(range(8))
    lanes = [0, 0, 0, 1, 1, 1, 2, 2]
    assert [lanes[row] for row in share.rows()] == [0, 1, 2, 0, 1, 2, 0, 1]


def test_the_order_is_the_one_that_runs_were_trained_in():
    """Written down once: a change of it would make every run's position mean other rows."""
    order = Order(seed=9, batch_size=4, window=2, lanes=3)
    found = {}
    for epoch in (0, 1):
        windows = plan.cut_windows([5, 4, 3], order, epoch)
        found[epoch] = [(w.row_groups.tolist(), plan.share(w, order, epoch).rows().tolist()) for w in windows]
    assert found == {
        0: [([0, 1], [2, 3, 7, 1, 5, 6, 0, 4, 8]), ([2], [0, 1, 2])],
        1: [([1, 0], [2, 4, 8, 0, 5, 7, 1, 3, 6]), ([2], [0, 1, 2])],
    }


def test_the_order_of_a_large_window_is_the_one_that_runs_were_trained_in():
    order = Order(seed=123, batch_size=4096, window=16, lanes=1024)
    last = plan.cut_windows([65536] * 20, order, 3)[1]
    assert last.row_groups.tolist() == [12, 5, 18, 14]
    rows = plan.share(last, order, 3, 2, 3).rows().astype("<i8")
    assert hashlib.sha256(rows.tobytes()).hexdigest().startswith("517187915643f443")


@settings(deadline=None)
@given(COUNTS, ORDERS, EPOCHS, st.integers(1, 6), st.integers(0, 900))
def test_rows_served_before_an_output_are_counted(counts, order, epoch, ranks, output):
    ranks = min(ranks, order.lanes)
    for window in plan.cut_windows(counts, order, epoch):
        for rank in range(ranks):
            share = plan.share(window, order, epoch, rank, ranks)
            assert share.num_before(output) == (share.outputs(0, share.num_rows) < output).sum()


@settings(deadline=None)
@given(COUNTS, ORDERS, EPOCHS, st.integers(0, 900), st.integers(0, 900))
def test_windows_between_outputs_are_those_that_hold_them(counts, order, epoch, first, last):
    windows = plan.cut_windows(counts, order, epoch)
    holding = [w.index for w in windows if any(first <= x < last for x in range(w.first_output, w.first_output + w.num_rows))]
    assert [w.index for w in windows.between(first, last)] == holding


@settings(deadline=None)
@given(COUNTS, ORDERS, EPOCHS, st.integers(1, 6))
def test_two_windows_take_no_more_rows_than_is_said(counts, order, epoch, ranks):
    ranks = min(ranks, order.lanes)
    windows = list(plan.cut_windows(counts, order, epoch))
    for rank in range(ranks):
        sizes = [plan.share(window, order, epoch, rank, ranks).num_rows for window in windows]
        most = plan.most_rows_held(counts, order, rank, ranks)
        assert max(a + b for a, b in zip([0, *sizes], [*sizes, 0], strict=True)) <= most <= sum(counts)


@settings(deadline=None)
@given(COUNTS, ORDERS, EPOCHS, st.integers(1, 3), st.sampled_from([0, 30, 100]))
def test_places_never_overlap_and_two_windows_always_find_room(counts, order, epoch, ranks, kept_rows):
    """In a ring of the rows of two windows and a row group."""
    ranks = min(ranks, order.lanes)
    ring_rows = plan.most_rows_held(counts, order, 0, ranks) + max(counts)
    arena = Arena((), np.array(counts), kept_rows=kept_rows, ring_rows=ring_rows)
    owners: dict[int, tuple[int, int]] = {}  # of a row of the arena: a kept row group, or a window
    ends: list[int] = []
    for window in plan.cut_windows(counts, order, epoch):
        if len(ends) > 1:  # the one before is still held
            arena.free(ends[-2])
            owners = {row: owner for row, owner in owners.items() if owner != (0, window.index - 2)}
        share = plan.share(window, order, epoch, 0, ranks)
        for row_group, first, last in plan.reads(window, share.first, share.last):
            place = arena.place(row_group, last - first)
            assert place is not None
            owner = (1, row_group) if place.kept else (0, window.index)
            for row in range(place.at, place.at + (counts[row_group] if place.kept else last - first)):
                assert owners.setdefault(row, owner) == owner
                assert row < kept_rows if place.kept else kept_rows <= row < kept_rows + ring_rows
        ends.append(arena.position)


@settings(deadline=None)
@given(COUNTS, ORDERS, EPOCHS, st.integers(1, 6), st.integers(0, 30))
def test_a_resumed_epoch_is_the_rest_on_any_number_of_ranks(counts, order, epoch, ranks, step):
    ranks = min(ranks, order.lanes)
    start = step * order.batch_size
    rest = sorted(row for row in served(counts, order, epoch, 0, 1) if row[0] >= start)
    found = []
    for window in plan.cut_windows(counts, order, epoch).between(start, sum(counts)):
        for rank in range(ranks):
            share = plan.share(window, order, epoch, rank, ranks)
            block = [(g, row) for g, first, last in plan.reads(window, share.first, share.last) for row in range(first, last)]
            done = share.num_before(start)
            outputs = share.outputs(done, share.num_rows)
            found += [(int(x), *block[row]) for x, row in zip(outputs, share.rows()[done:], strict=True)]
    assert sorted(found) == rest


def test_places_come_in_the_order_of_their_rows():
    order = Order(seed=3, batch_size=4, window=2, lanes=3)
    (window,) = plan.cut_windows([7, 4], order, 0)
    share = plan.share(window, order, 0, 1, 2)
    places = np.array([90, 70, 50, 30, 10, 20, 40], np.int32)
    assert share.rows(places).tolist() == [[90, 70, 50, 30, 10, 20, 40][row] for row in share.rows()]


def test_a_million_row_groups_are_cut_one_window_at_a_time():
    order = Order(seed=3, batch_size=4096, window=16, lanes=1024)
    windows = plan.cut_windows(np.full(1_000_000, 65_536), order, 0)
    assert (len(windows), windows[62_499].first_output) == (62_500, 65_536 * 16 * 62_499)
    assert [w.index for w in windows.between(65_536 * 16 * 40_000, 65_536 * 16 * 40_001)] == [40_000]


def test_a_short_last_batch_is_left_out_where_it_is_asked_for():
    assert [plan.num_steps(n, 4, drop_last=True) for n in (0, 3, 4, 11)] == [0, 0, 1, 2]


def test_order_changes_with_the_epoch_and_the_seed():
    def rows(seed: int, epoch: int) -> list[int]:
        order = Order(seed=seed, batch_size=8, window=2, lanes=4)
        return [g * 1000 + row for _, g, row in served([50, 50, 50, 50], order, epoch, 0, 1)]

    assert rows(1, 0) == rows(1, 0)
    assert rows(1, 0) != rows(1, 1)
    assert rows(1, 0) != rows(2, 0)


def test_rows_move_far():
    """A lane is shuffled whole: the place of a row in its lane tells nothing of where it is served."""
    order = Order(seed=3, batch_size=64, window=4, lanes=4)
    (window,) = plan.cut_windows([2000] * 4, order, 0)
    share = plan.share(window, order, 0)
    lane_0 = share.rows()[share.outputs(0, share.num_rows) % 4 == 0]
    assert abs(np.corrcoef(np.arange(len(lane_0)), lane_0)[0, 1]) < 0.1


def test_default_lanes_divide_the_batch():
    assert [plan.default_lanes(n) for n in (1, 7, 100, 1024, 4096, 3000)] == [1, 7, 100, 1024, 1024, 1000]


def test_more_ranks_than_lanes_are_refused():
    with pytest.raises(ValueError, match="at least as many lanes, got 2"):
        plan.lanes_of(0, 3, 2)
