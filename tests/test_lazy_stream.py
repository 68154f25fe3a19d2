"""Streams that are late: nothing runs before an edge forces it, and what runs does so in an order that edges allow."""

import pytest
import torch

from disagg.course.buglab.lazy_stream import LazyEvent, LazyStream, LazyWorld, lazy_gpus


@pytest.fixture
def world():
    return LazyWorld()


def test_an_operation_runs_when_a_wait_needs_it(world):
    stream, data = LazyStream(world), torch.zeros(3)
    with world.on(stream):
        data.add_(1)
        twice = data * 2
    assert data.tolist() == [0, 0, 0] and twice.tolist() == [0, 0, 0]
    stream.synchronize()
    assert data.tolist() == [1, 1, 1] and twice.tolist() == [2, 2, 2]


def test_an_event_forces_what_is_before_it_and_nothing_behind(world):
    stream, event, data = LazyStream(world), LazyEvent(world), torch.zeros(2)
    with world.on(stream):
        data[0] = 1
        event.record()
        data[1] = 1
    event.synchronize()
    assert data.tolist() == [1, 0] and event.at_ns > 0


@pytest.mark.parametrize("how", ["event", "stream"])
def test_a_stream_that_waits_takes_the_other_along(world, how):
    first, second, data = LazyStream(world), LazyStream(world), torch.zeros(1)
    with world.on(first):
        data.fill_(3)
    if how == "event":
        event = LazyEvent(world)
        event.record(first)
        second.wait_event(event)
    else:
        second.wait_stream(first)
    with world.on(second):
        read = data.clone()
    second.synchronize()
    assert read.tolist() == [3]


def test_without_an_edge_the_other_stream_reads_what_was_there_before(world):
    first, second, data = LazyStream(world), LazyStream(world), torch.zeros(1)
    with world.on(first):
        data.fill_(3)
    with world.on(second):
        read = data.clone()
    second.synchronize()
    assert read.tolist() == [0]
    first.synchronize()
    assert data.tolist() == [3]


def test_waiting_inside_a_stream_runs_and_does_not_enqueue_again(world):
    stream, data = LazyStream(world), torch.zeros(1)
    with world.on(stream):
        data.add_(1)
        stream.synchronize()
        assert data.tolist() == [1] and len(stream.work) == stream.done == 1


def test_nothing_is_kept_outside_a_stream_and_an_event_without_record_is_not_waited_for(world):
    LazyEvent(world).synchronize()
    data = torch.zeros(1)
    data.add_(1)
    assert data.tolist() == [1]
    with pytest.raises(AssertionError, match="no stream is current"):
        LazyEvent(world).record()


def test_a_seed_runs_streams_ahead_alike_every_time():
    def order(seed):
        world, ran = LazyWorld(seed), []
        streams = [LazyStream(world) for _ in range(3)]
        for number in range(30):
            streams[number % 3].add(lambda number=number: ran.append(number))
        return ran

    assert order(1) == order(1) and order(1) != order(2) and order(1)
    for ran in (order(1), order(2)):
        for lane in range(3):
            mine = [number for number in ran if number % 3 == lane]
            assert mine == sorted(mine), "a stream keeps its order"


def test_what_stands_in_for_cuda_is_gone_afterwards():
    before = torch.cuda.Event, torch.cuda.Stream, torch.cuda.stream, torch.tensor, torch.zeros, torch.empty
    with pytest.raises(KeyboardInterrupt), lazy_gpus(1):
        assert torch.zeros(2, pin_memory=True).tolist() == [0, 0]
        raise KeyboardInterrupt
    assert (torch.cuda.Event, torch.cuda.Stream, torch.cuda.stream, torch.tensor, torch.zeros, torch.empty) == before
