"""Queues by policy, and where chunks end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg.plan.queues import POLICIES, Queue, chunk_stop
from disagg.plan.request import Job, Record


def record(number: int, prompt=1, arrival=0) -> Record:
    return Record(Job(number, (0,) * prompt, 4, arrival))


def take(queue: Queue) -> Record | None:
    first = queue.peek()
    if first is not None:
        queue.remove(first)
    return first


def drain(queue: Queue) -> list[int]:
    return [take(queue).id for _ in range(len(queue))]


def test_first_come_first_served_and_shortest_first():
    records = [record(0, 9, 5), record(1, 3, 7), record(2, 3, 6), record(3, 9, 5)]
    for policy, order in (("fcfs", [0, 3, 2, 1]), ("shortest", [2, 1, 0, 3])):
        queue = Queue(POLICIES[policy])
        for item in reversed(records):
            queue.push(item)
        assert [r.id for r in queue] == order == drain(queue)


def test_shortest_counts_what_was_generated():
    queue, long = Queue(POLICIES["shortest"]), record(0, 2)
    long.generated += [1, 2, 3]
    queue.push(long)
    queue.push(record(1, 4))
    assert drain(queue) == [1, 0]


def test_removed_records_are_skipped():
    queue, records = Queue(POLICIES["fcfs"]), [record(n) for n in range(3)]
    for item in records:
        queue.push(item)
    queue.remove(records[0])
    queue.remove(records[0])
    queue.remove(record(9))
    assert len(queue) == 2 and records[0] not in queue and queue.peek() is records[1]
    queue.push(records[0])
    assert drain(queue) == [0, 1, 2] and queue.peek() is None


def test_pushed_twice_counts_once():
    queue, item = Queue(POLICIES["fcfs"]), record(0)
    queue.push(item)
    queue.push(item)
    assert drain(queue) == [0] and queue.peek() is None


def test_reorder_keeps_everybody():
    queue = Queue(POLICIES["fcfs"])
    for number, prompt in ((0, 9), (1, 5), (2, 7)):
        queue.push(record(number, prompt, number))
    queue.remove(next(iter(queue)))
    queue.reorder(POLICIES["shortest"])
    assert drain(queue) == [1, 2]


@given(st.lists(st.tuples(st.sampled_from(["push", "remove", "pop"]), st.integers(0, 5))))
def test_a_queue_behaves_like_a_sorted_list(actions):
    records = [record(n, prompt=1 + n * 7 % 4) for n in range(6)]
    queue, plain, key = Queue(POLICIES["shortest"]), [], POLICIES["shortest"]
    for action, number in actions:
        item = records[number]
        if action == "push" and item not in plain:
            plain.append(item)
            queue.push(item)
        elif action == "remove":
            plain = [other for other in plain if other is not item]
            queue.remove(item)
        elif action == "pop":
            first = min(plain, key=key, default=None)
            assert take(queue) is first
            plain = [other for other in plain if other is not first]
        assert len(queue) == len(plain) and queue.peek() is min(plain, key=key, default=None)
        assert list(queue) == sorted(plain, key=key)


@pytest.mark.parametrize(
    "start, target, budget, stop",
    [(0, 10, 16, 10), (0, 16, 16, 16), (0, 17, 16, 16), (16, 17, 1, 17), (0, 10, 7, 4), (4, 20, 9, 12), (0, 9, 3, 0)],
)
def test_chunks_end_at_whole_blocks_or_at_the_target(start, target, budget, stop):
    assert chunk_stop(start, target, budget, 4) == stop
