"""Which GPUs reach each other, as `doctor` says it; by fakes, so that it is asked on every machine."""

import pytest
import torch

from disagg.cli import doctor
from disagg.run.gpu import peer_access
from disagg.run.gpu.machine import machine


@pytest.mark.parametrize(
    ("count", "apart", "words"),
    [
        (0, (), "nothing to reach: it takes two GPUs"),
        (1, (), "nothing to reach: it takes two GPUs"),
        (2, (), "between all 2 GPUs; peer_access=False sends K/V through pinned host memory all the same"),
        (3, ((0, 2), (2, 0)), "not between cuda:0 and cuda:2: K/V go through pinned host memory there"),
        (2, ((1, 0),), "not between cuda:0 and cuda:1: K/V go through pinned host memory there"),
    ],
)
def test_doctor_says_which_gpus_reach_each_other(monkeypatch, count, apart, words):
    machine()  # kept from here on: what it really is
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    if not count:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(peer_access, "reaches", lambda a, b: (a.index, b.index) not in apart)
    assert peer_access.describe() == dict(doctor.findings())["peer access"] == words


def test_the_driver_is_asked_once_a_pair_and_not_about_a_gpu_and_itself(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda a, b: asked.append((a, b)))
    first, second = torch.device("cuda:6"), torch.device("cuda:7")
    assert (
        peer_access.reaches(first, first)
        and not peer_access.reaches(first, second)
        and not peer_access.reaches(first, second)
    )
    assert asked == [(first, second)]
    peer_access.reaches.cache_clear()
