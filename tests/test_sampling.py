import math

import torch

from disagg.plan.request import Sampling
from disagg.run.model.sampling import Draw, pick_tokens, uniform
from disagg.run.reports import Reports

GREEDY = Sampling()


def sample(x, samplings, positions, keep=None, failed=None):
    reports = Reports(lambda event: failed.append(tuple(event)), keep, None, None)
    pairs = enumerate(zip(samplings, positions, strict=True))
    return list(pick_tokens(x, [Draw(row, sampling, place, row) for row, (sampling, place) in pairs], reports))


def logits(rows, vocab=50, seed=0):
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


def test_greedy_and_a_tiny_top_p_are_argmax():
    x = logits(5)
    assert sample(x, [GREEDY] * 5, [3] * 5) == x.argmax(-1).tolist()
    assert sample(x, [Sampling(1.0, 1e-9, i) for i in range(5)], [0] * 5) == x.argmax(-1).tolist()


def test_a_drawn_token_does_not_depend_on_who_shares_the_batch():
    x, warm = logits(6), [Sampling(0.9, 0.95, seed) for seed in range(6)]
    together = sample(x, warm, list(range(10, 16)))
    alone = [sample(x[i : i + 1], [warm[i]], [10 + i])[0] for i in range(6)]
    mixed = sample(x, [GREEDY, *warm[1:]], list(range(10, 16)))
    assert together == alone and mixed[1:] == together[1:]


def test_seed_and_position_both_move_the_draw():
    draws = {uniform(seed, position) for seed in range(20) for position in range(20)}
    assert len(draws) == 400 and min(draws) >= 0 and max(draws) < 1
    assert uniform(1, 12) != uniform(11, 2) and uniform(7, 3) == 0.6059511421183436, "the same on every machine"


def test_frequencies_follow_the_softmax():
    x, count = torch.tensor([[0.0, 1.0, 2.0]]), 3000
    found = [sample(x, [Sampling(1.0, 1.0, 5)], [place])[0] for place in range(count)]
    for token, share in enumerate(torch.softmax(x[0].double(), 0).tolist()):
        deviation = math.sqrt(share * (1 - share) / count)  # of a share over `count` draws; the seed is fixed
        assert abs(found.count(token) / count - share) < 4 * deviation


def test_temperature_sharpens():
    assert {sample(torch.tensor([[0.0, 1.0]]), [Sampling(0.05)], [place])[0] for place in range(200)} == {1}


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    x = torch.log(torch.tensor([[0.1, 0.5, 0.3, 0.1]]))

    def seen(top_p):
        return {sample(x, [Sampling(1.0, top_p)], [place])[0] for place in range(300)}

    assert seen(0.4) == {1} and seen(0.75) == {1, 2} and seen(1.0) == {0, 1, 2, 3}


def test_the_kept_tokens_share_the_mass_by_their_odds():
    x, count = torch.log(torch.tensor([[0.5, 0.3, 0.2]])), 2000
    found = [sample(x, [Sampling(1.0, 0.75)], [place])[0] for place in range(count)]
    assert abs(found.count(0) / count - 0.5 / 0.8) < 4 * math.sqrt(0.25 / count)


def test_minus_infinity_is_never_drawn():
    x = torch.full((1, 8), -math.inf)
    x[0, 5] = x[0, 2] = 0.0
    assert {sample(x, [Sampling(2.0)], [place])[0] for place in range(50)} == {2, 5}


def test_forced_tokens_replace_the_models_choice_and_logits_are_kept():
    x, kept = logits(3), {}
    forced = Sampling(force_ids=(7, 8, 9), keep_logits=True)
    assert sample(x, [GREEDY, forced, forced], [0, 0, 0], kept.__setitem__)[1:] == [8, 9]
    assert sorted(kept) == [1, 2] and torch.equal(kept[2], x[2])
