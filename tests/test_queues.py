"""Queues by policy, where chunks end, and the cheaper way to preempt: spill, or compute again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg.plan.link import Link
from disagg.plan.policy import POLICIES
from disagg.plan.preemption import PreemptionCosts
from disagg.plan.queues import Queue, chunk_stop
from disagg.plan.request import Job, Record

KEYS = {name: (lambda record, policy=policy: policy.order(record.seen(1))) for name, policy in POLICIES.items()}


class Waiting(Queue):
    """A queue whose records get their priority as they are pushed."""

    def __init__(self, policy: str):
        super().__init__()
        self.policy = policy

    def push(self, record: Record):
        record.priority = KEYS[self.policy](record)
        super().push(record)


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
        queue = Waiting(policy)
        for item in reversed(records):
            queue.push(item)
        assert [r.id for r in queue] == order == drain(queue)


def test_shortest_counts_new_tokens_and_what_arrived_before():
    """Of 6 tokens in all, it is overtaken by what arrives within the next 12."""
    queue = Waiting("shortest")
    for number, before in ((0, 0), (1, 6), (2, 11), (3, 13)):
        job = Job(number, (0,) * (2 if number == 0 else 1), 4 if number == 0 else 1, number)
        queue.push(Record(job, arrived_before=before - (number > 0)))
    assert drain(queue) == [1, 0, 2, 3]


def test_removed_records_are_skipped():
    queue, records = Waiting("fcfs"), [record(n) for n in range(3)]
    for item in records:
        queue.push(item)
    queue.remove(records[0])
    queue.remove(records[0])
    queue.remove(record(9))
    assert len(queue) == 2 and records[0] not in queue and queue.peek() is records[1]
    queue.push(records[0])
    assert drain(queue) == [0, 1, 2] and queue.peek() is None
    queue.push(records[0])
    queue.push(records[0])
    assert drain(queue) == [0] and queue.peek() is None, "pushed twice counts once"


def test_reorder_keeps_everybody():
    queue = Waiting("fcfs")
    for number, prompt in ((0, 9), (1, 5), (2, 7)):
        queue.push(record(number, prompt, number))
    queue.remove(next(iter(queue)))
    queue.policy = "shortest"
    queue.reorder()
    assert drain(queue) == [1, 2]


@given(st.lists(st.tuples(st.sampled_from(["push", "remove", "pop"]), st.integers(0, 5))))
def test_a_queue_behaves_like_a_sorted_list(actions):
    records = [record(n, prompt=1 + n * 7 % 4) for n in range(6)]
    queue, plain, key = Waiting("shortest"), [], KEYS["shortest"]
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


def test_there_and_back_behind_what_pages_already():
    costs = PreemptionCosts(copy_ns_per_byte=1.0)
    assert (costs.spill_ns(1000, 0), costs.spill_ns(1000, 5000)) == (2000, 7000)


def test_a_dialled_wire_costs_what_the_dial_says():
    costs = PreemptionCosts(out=Link(1e6, latency_s=1e-3, fixed_s=1e-4), back=Link(2e6), copy_ns_per_byte=0.1)
    assert costs.spill_ns(1000, 0) == (1_000_000 + 1_000_000 + 100_000) + 500_000


def test_speeds_follow_what_was_measured():
    costs = PreemptionCosts(copy_ns_per_byte=1.0)
    costs.observe_copy(100, 200)
    costs.observe_copy(0, 10**9)
    assert costs.copy_ns_per_byte == pytest.approx(1.2)
