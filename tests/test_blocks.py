"""Pools and tables: by name, and by a state machine that keeps its own account."""

from itertools import pairwise

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from disagg.plan.blocks import USED, BlockPool, Table, blocks_for


def test_blocks_for_shorter_equal_and_one_over():
    assert [blocks_for(tokens, 4) for tokens in (0, 1, 3, 4, 5, 8, 9)] == [0, 1, 1, 1, 2, 2, 3]


def test_reserve_takes_all_or_nothing():
    pool = BlockPool("p", 3)
    assert pool.reserve(4, owner=1) is None and pool.held == 0
    assert pool.reserve(3, owner=1) == [0, 1, 2]
    assert pool.reserve(1, owner=2) is None and pool.reserve(0, owner=2) == []
    assert (pool.available, pool.peak) == (0, 3)


def test_it_takes_the_lowest_place_where_all_lie_adjacent():
    pool = BlockPool("p", 9)
    pool.reserve(9, owner=1)
    pool.release([6, 4, 1, 3, 7, 8], owner=1)
    assert pool.reserve(2, owner=2) == [3, 4], "one lies lower, and two higher"
    assert pool.reserve(1, owner=3) == [1]
    assert pool.reserve(3, owner=4) == [6, 7, 8]


def test_without_such_a_place_it_takes_the_lowest():
    pool = BlockPool("p", 7)
    pool.reserve(7, owner=1)
    pool.release([6, 5, 3, 1], owner=1)
    assert pool.reserve(3, owner=2) == [1, 3, 5]


def test_growth_comes_from_the_other_end_so_that_places_stay_whole():
    pool = BlockPool("p", 8)
    first, second = (Table.reserve(pool, 2, owner) for owner in (1, 2))
    assert [table.grow() for table in (first, second, first)] == [[7], [6], [5]]
    assert first.blocks == [0, 1, 7, 5]
    first.release()
    assert second.grow() == [7] and pool.reserve(2, owner=3) == [0, 1]


def test_blocks_of_another_and_free_ones_are_neither_released_nor_marked():
    pool = BlockPool("p", 2)
    pool.reserve(1, owner=1)
    for call in (pool.release, lambda blocks, owner: pool.mark(blocks, owner, USED)):
        with pytest.raises(AssertionError, match="p: block 0 belongs to 1, not to 2"):
            call([0], owner=2)
        with pytest.raises(AssertionError, match="p: block 1 belongs to None"):
            call([1], owner=1)
    assert pool.counts()["used"] == 0
    pool.release([0], owner=1)
    with pytest.raises(AssertionError, match="belongs to None"):
        pool.release([0], owner=1)


def test_a_lowered_capacity_drains():
    pool = BlockPool("p", 4)
    pool.reserve(3, owner=1)
    pool.capacity = 2
    assert pool.available == 0 and pool.reserve(1, owner=2) is None
    pool.release([0, 1], owner=1)
    assert pool.available == 1
    assert pool.reserve(1, owner=2) is not None and pool.available == 0


def test_check_says_what_is_wrong():
    pool = BlockPool("p", 2)
    pool.reserve(1, owner=1)
    for held, code in ((0, 1), (2, 1), (1, 0), (1, 9)):
        pool.held, pool._state[0] = held, code
        with pytest.raises(AssertionError, match=f"p: {held} held against states .* of 2"):
            pool.check()
    pool.held, pool._state[0], pool._owner[0] = 1, 1, None
    with pytest.raises(AssertionError, match="p: block 0 is in_flight and owned by None"):
        pool.check()


def test_check_finds_a_block_that_was_freed_twice_in_one_call():
    pool = BlockPool("p", 3)
    pool.release([*pool.reserve(2, owner=1), 0], owner=1)
    with pytest.raises(AssertionError, match="p: -1 held against states"):
        pool.check()


def test_a_table_check_finds_doubles_wrong_states_and_blocks_of_another():
    pool = BlockPool("p", 2)
    table = Table.reserve(pool, 1, owner=1)
    table.blocks.append(table.blocks[0])
    with pytest.raises(AssertionError, match="a block stands twice in the table of 1"):
        table.check()
    table.blocks.pop()
    state, pool._state[0] = pool._state[0], 2
    with pytest.raises(AssertionError, match="block 0 of 1 is not in_flight"):
        table.check()
    pool._state[0] = state
    table.check()
    pool._owner[0] = 2
    with pytest.raises(AssertionError, match="p: block 0 belongs to 2, not to 1"):
        table.check()


def test_reserve_commit_release():
    pool = BlockPool("p", 3)
    table = Table.reserve(pool, 2, owner=1)
    assert pool.counts() == {"free": 1, "in_flight": 2, "used": 0, "quarantined": 0}
    table.commit()
    assert table.grow() == [2] and pool.counts()["used"] == 3
    assert table.grow() is None and len(table.blocks) == 3
    table.release()
    assert pool.counts()["free"] == 3
    with pytest.raises(AssertionError, match="released twice"):
        table.release()


def test_ending_is_not_freeing():
    pool = BlockPool("p", 2)
    table = Table.reserve(pool, 2, owner=1)
    table.pin(7)
    table.pin(8)
    table.release()
    assert pool.counts()["quarantined"] == 2 and pool.reserve(1, owner=2) is None
    table.unpin(7)
    table.unpin(7)
    table.unpin(99)
    assert pool.counts()["quarantined"] == 2, "an activity that is unknown or over changes nothing"
    table.unpin(8)
    assert pool.counts()["free"] == 2


def by_the_rule(free: list[int], count: int) -> list[int]:
    """The lowest place of adjacent ones among sorted free blocks, or the lowest."""
    places = (free[at : at + count] for at in range(len(free) - count + 1))
    return next((place for place in places if all(b - a == 1 for a, b in pairwise(place))), free[:count])


class Blocks(RuleBasedStateMachine):
    """Pool and tables against a plain account: owner → blocks, pins, whether it ended."""

    TOTAL = 9

    def __init__(self):
        super().__init__()
        self.pool = BlockPool("p", self.TOTAL)
        self.tables: list[Table] = []  # those that still hold blocks
        self.owners = self.activities = 0

    def room(self) -> int:
        held = sum(len(table.blocks) for table in self.tables)
        return max(0, min(self.TOTAL, self.pool.capacity) - held)

    def free(self) -> list[int]:
        return sorted(set(range(self.TOTAL)).difference(*(table.blocks for table in self.tables)))

    @property
    def open(self) -> list[Table]:
        return [table for table in self.tables if not table.released]

    @property
    def pinned(self) -> list[Table]:
        return [table for table in self.tables if table.pins]

    @rule(count=st.integers(0, TOTAL + 1))
    def reserve(self, count):
        room, free = self.room(), self.free()
        self.owners += 1
        table = Table.reserve(self.pool, count, self.owners)
        assert (table.blocks if table else None) == (by_the_rule(free, count) if count <= room else None)
        if count and table is not None:
            self.tables.append(table)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def grow(self, data):
        table = data.draw(st.sampled_from(self.open))
        room, free, before = self.room(), self.free(), list(table.blocks)
        grown = table.grow()
        assert grown == (free[-1:] if room else None)
        assert table.blocks == before + (grown or []), "tokens stay where they are"

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def commit(self, data):
        data.draw(st.sampled_from(self.open)).commit()

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def pin(self, data):
        self.activities += 1
        data.draw(st.sampled_from(self.open)).pin(self.activities)

    @precondition(lambda self: self.pinned)
    @rule(data=st.data())
    def unpin(self, data):
        table = data.draw(st.sampled_from(self.pinned))
        table.unpin(data.draw(st.sampled_from(table.pins)))
        if table.released and not table.pins:
            self.tables.remove(table)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def release(self, data):
        table = data.draw(st.sampled_from(self.open))
        table.release()
        if not table.pins:
            self.tables.remove(table)

    @rule(capacity=st.integers(0, TOTAL))
    def shrink(self, capacity):
        self.pool.capacity = capacity

    @invariant()
    def accounts_agree(self):
        self.pool.check()
        held = [block for table in self.tables for block in table.blocks]
        assert sorted(held) == sorted(set(held)), "a block has two owners"
        assert self.pool.held == len(held) <= self.pool.peak
        assert self.pool.available == self.room()
        quarantined = sum(len(table.blocks) for table in self.tables if table.released)
        assert self.pool.counts()["quarantined"] == quarantined
        for table in self.tables:
            table.check()


TestBlocks = Blocks.TestCase
