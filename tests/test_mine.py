"""The engine that a student writes: ready pieces pass and run, broken ones are told apart, in words with numbers."""

import random
from pathlib import Path

import pytest
import torch
from engine_tools import generated, prompt_of, tiny

from disagg.course import checking, hint, mine, piece_checks, progress
from disagg.course.piece_hints import HINTS
from disagg.course.pieces import READY, ReadyCache, ReadyQueue, ReadyRing, ReadyTable, attend_one, bins, next_batch
from disagg.course.student_engine import MyServing, MySetting, twin
from disagg.plan.errors import ConfigError, EngineError, FileError

LENGTHS = (5, 16, 17, 30, 44, 31, 9, 33)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Each test has a my_disagg.py of its own, and one small model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(piece_checks, "tiny", tiny)
    return tmp_path


def prompts(seed: int = 0) -> list[list[int]]:
    return [prompt_of(length, seed + number) for number, length in enumerate(LENGTHS)]


# ---- ready pieces ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", READY)
def test_the_ready_piece_is_right_and_kept(name):
    verdict = mine.check_mine(name, READY[name])
    assert verdict.right and verdict.words.endswith("kept in my_disagg.py"), verdict
    assert mine.wrong_with(name, mine.kept()[name]) is None


@pytest.mark.parametrize("seed", range(6))
def test_ready_pieces_write_the_references_tokens_at_simulates_times(seed):
    draw = random.Random(seed)
    found = mine.serve(
        {}, prompts(seed), tiny(), 10, places=draw.choice((1, 2, 4)), bounds=draw.choice(((), (32,), (20, 40))),
        every_ns=draw.choice((200, 300)) * 10**6, bandwidth=draw.choice((20e6, 1e6, 2e5)),
    )  # fmt: skip
    assert [row.tokens for row in found.rows] == [generated(prompt, 10) for prompt in prompts(seed)]
    assert [row.times_ns for row in found.rows] == [result.token_times_ns for result in found.twin.results]


def test_reference_is_what_generate_answers():
    assert mine.reference(tiny(), prompts()[:2], 5) == [generated(prompt, 5) for prompt in prompts()[:2]]


def test_every_copy_is_simulates_own():
    setting = MySetting(bandwidth=2e5, bounds=())
    engine = MyServing(READY, tiny(), setting)
    with torch.inference_mode():
        rows = engine.serve(prompts()[:3], 4)
    spans = [span for span in twin(rows, tiny(), setting).timeline.spans if span.kind == "copy"]
    theirs = [(s.place.split()[0], s.requests[0], s.index, s.start_ns, s.end_ns) for s in spans]
    assert sorted(engine.copies) == sorted(theirs) and len(theirs) == 2 * 3 * tiny().layers


def test_with_a_cache_each_token_goes_through_the_model_once():
    prompt = prompt_of(20)
    plain, cached = mine.write(tiny(), prompt, 6), mine.write(tiny(), prompt, 6, ReadyCache)
    assert plain.tokens == cached.tokens == generated(prompt, 6)
    assert plain.computed == 20 + 21 + 22 + 23 + 24 + 25 and cached.computed == 20 + 5


def test_blocks_are_used_again_and_prefill_waits_for_them():
    found = mine.serve({}, prompts(), tiny(), 8, blocks=8, places=2)
    assert [row.tokens for row in found.rows] == [generated(prompt, 8) for prompt in prompts()]
    assert found.rows[-1].times_ns[0] > mine.serve({}, prompts(), tiny(), 8, places=2).rows[-1].times_ns[0]


def test_an_answer_that_outgrows_the_memory_says_so():
    with pytest.raises(EngineError, match="no block for request 0: all 2 are held"):
        mine.serve({}, [prompt_of(30)], tiny(), 8, blocks=2)
    assert mine.serve({}, [prompt_of(30)], tiny(), 8, blocks=3).rows[0].done


@pytest.mark.parametrize(
    ("length", "new", "setting", "words"),
    [
        (30, 1, {}, "new is 1"), (0, 4, {}, r"prompts of \[0\] tokens"), (9, 4, {"places": 0}, "64 blocks, 0 places"),
        (40, 4, {"blocks": 2}, r"prompts of \[40\] tokens, 2 blocks"),
    ],
)  # fmt: skip
def test_a_setting_that_can_serve_nobody_says_so(length, new, setting, words):
    with pytest.raises(ConfigError, match=words):
        mine.serve({}, [prompt_of(length)], tiny(), new, **setting)


def test_rows_that_a_piece_lost_are_named():
    engine = MyServing({**READY, "batch": lambda batch, waiting, places: []}, tiny(), MySetting())
    with pytest.raises(EngineError, match=r"these have not ended: \[0\]"), torch.inference_mode():
        engine.serve(prompts()[:1], 4)


def test_a_first_token_that_ends_the_answer_gives_its_blocks_back(monkeypatch):
    first = generated(prompts()[0], 1)[0]
    monkeypatch.setattr(tiny(), "eos_ids", (first,))
    engine = MyServing(READY, tiny(), MySetting())
    with torch.inference_mode():
        rows = engine.serve(prompts()[:1], 6)
    assert rows[0].tokens == [first] and sorted(engine.free) == list(range(64))


def test_all_blocks_and_slots_are_free_in_the_end():
    engine = MyServing(READY, tiny(), MySetting(places=2))
    with torch.inference_mode():
        engine.serve(prompts(), 6)
    engine.decode()  # the step that would come next sends the last rows away
    assert sorted(engine.free) == list(range(64)) and sorted(engine.ring.free) == [0, 1]


def test_served_shows_both_times():
    lines = repr(mine.serve({}, prompts()[:2], tiny(), 4)).splitlines()
    assert len(lines) == 3 and lines[1].split()[:3] == ["0", "4", "25"] and "(25)" in lines[1]


def test_steps_and_landings_are_those_of_the_ready_pieces():
    assert mine.steps(next_batch, [3, 1, 4, 2], 2) == [[0, 1], [0, 2], [0, 2], [2, 3], [2, 3]]
    assert mine.landings(ReadyQueue) == {0: 251, 1: 491, 2: 731}
    assert mine.landings(ReadyQueue, ReadyRing) == {0: 291, 1: 531, 2: 771}


# ---- broken pieces --------------------------------------------------------------------------------------------------


def not_scaled(query, keys, values):
    return attend_one([2 * q for q in query], keys, values)


def unweighted(query, keys, values):
    return [sum(column) / len(column) for column in zip(*values, strict=True)]


class Shared(ReadyCache):
    held_by_all: dict = {}

    def __init__(self):
        self.held = self.held_by_all


class Newest(ReadyCache):
    def update(self, layer, keys, values):
        super().update(layer, keys, values)
        return keys, values


class OneLayer(ReadyCache):
    def update(self, layer, keys, values):
        return super().update(0, keys, values)


class Swapped(ReadyCache):
    def update(self, layer, keys, values):
        return super().update(layer, keys, values)[::-1]


class Backwards(ReadyCache):
    def update(self, layer, keys, values):
        if layer in self.held:
            keys, values = (torch.cat(pair) for pair in zip((keys, values), self.held[layer], strict=True))
        self.held[layer] = keys, values
        return keys, values


def static(batch, waiting, places):
    return batch if any(not row.done for row in batch) else next_batch([], waiting, places)


def one_too_many(batch, waiting, places):
    return next_batch(batch, waiting, places + 1)


def last_come(batch, waiting, places):
    batch = [row for row in batch if not row.done]
    while waiting and len(batch) < places:
        batch.append(waiting.pop())
    return batch


class InTurn(ReadyQueue):
    def take(self, now):
        self.waiting.sort(key=lambda copy: copy[1])
        if not self.waiting or now < self.free_at:
            return None
        self.free_at = now + self.waiting[0][2]
        return self.waiting.pop(0)


class FirstMade(ReadyQueue):
    def take(self, now):
        if not self.waiting or now < self.free_at:
            return None
        self.free_at = now + self.waiting[0][2]
        return self.waiting.pop(0)


class NeverBusy(ReadyQueue):
    def take(self, now):
        self.free_at = now
        return super().take(now)


class Again(ReadyQueue):
    def take(self, now):
        if not self.waiting or now < self.free_at:
            return None
        self.free_at = now + min(self.waiting)[2]
        return min(self.waiting)


class Loses(ReadyQueue):
    def put(self, request, layer, takes):
        self.waiting = [(request, layer, takes)]


class Three(ReadyRing):
    def __init__(self):
        self.free, self.slots = [0, 1, 2], [None] * 3


class Overwrites(ReadyRing):
    def put(self, data):
        self.slots = [data, data]
        return super().put(data)


class NeverFree(ReadyRing):
    def take(self, slot):
        return self.slots[slot]


class SaysFree(ReadyRing):
    """Its own books are right, and `free` is not."""

    def __init__(self):
        super().__init__()
        self.really, self.free = [0, 1], [0, 1]

    def put(self, data):
        if not self.really:
            return None
        self.slots[self.really[-1]] = data
        return self.really.pop()

    def take(self, slot):
        self.really.append(slot)
        return self.slots[slot]


class AlwaysOneMore(ReadyTable):
    def add(self, tokens):
        fits = super().add(tokens)
        if fits and self.free:
            self.blocks.append(self.free.pop())
        return fits


class TakesAll(ReadyTable):
    def add(self, tokens):
        fits = super().add(tokens)
        if not fits:
            self.blocks += [self.free.pop() for _ in range(len(self.free))]
        return fits


class InOrder(ReadyTable):
    def slots(self):
        return list(range(self.tokens))


class Keeps(ReadyTable):
    def give_back(self):
        self.blocks, self.tokens = [], 0


class NeverRefuses(ReadyTable):
    def add(self, tokens):
        return super().add(tokens) or True


def below(lengths, bounds):
    return bins(lengths, [bound - 1 for bound in bounds])


def with_empty_ones(lengths, bounds):
    return [*bins(lengths, bounds), []]


def lengths_not_rows(lengths, bounds):
    return [[lengths[row] for row in group] for group in bins(lengths, bounds)]


BROKEN = [
    ("attention", not_scaled, ", torch ["),
    ("attention", unweighted, "yours gives ["),
    ("attention", lambda query, keys, values: [[1.0]], "torch [5.0, 7.0]"),
    ("attention", lambda query, keys, values: 1 / 0, "it raises ZeroDivisionError in <lambda>, line "),
    ("cache", Shared, "begins with 5 tokens of the first"),
    ("cache", Newest, "given keys [1, 2, 3, 4], and update gives back the keys [4.0]"),
    ("cache", OneLayer, "layer 1 has been given keys [7, 8, 9], and update gives back the keys [1.0"),
    ("cache", Swapped, "update gives back the keys [-1.0, -2.0, -3.0]"),
    ("cache", Backwards, "given keys [1, 2, 3, 4], and update gives back the keys [4.0, 1.0"),
    ("batch", static, "answers of [3, 1, 4, 2] steps, 2 places: step 1 has rows [0, 1]; with rows that leave at once"),
    ("batch", one_too_many, "step 0 has rows [0, 1, 2]; with"),
    ("batch", last_come, "step 0 has rows [3, 2]; with"),
    ("queue", InTurn, "copy 2, yours: direct, request 1, layer 0, 91 to 131 ms; simulate: direct, request 0, layer 2"),
    ("queue", FirstMade, "yours: direct, request 2, layer 0, 291 to 331 ms; simulate: direct, request 1, layer 1, 291"),
    ("queue", NeverBusy, "copy 1, yours: direct, request 0, layer 1, 22 to 62 ms; simulate: direct, request 0"),
    ("queue", Again, "it raises EngineError: layer 0 of request 0 takes the same link (direct) a second time"),
    ("queue", Loses, "simulate: direct, request "),
    ("ring", Three, "three puts into an empty ring give 2, 1, 0; two slots are 0 and 1, then None"),
    ("ring", Overwrites, "slots 1 and 0 held 'a' and 'b'; they give ('c', 'c')"),
    ("ring", NeverFree, "give ('a', 'b'), and the next put gives None"),
    ("ring", SaysFree, "it raises EngineError: the ring has slots [0, 1] free, and put gives None"),
    ("table", AlwaysOneMore, "6 tokens need 2 blocks of 4, and table 0 has ["),
    ("table", TakesAll, "request 1 has 5 tokens and adds 8: 5 tokens need 2 blocks of 4, and table 1 has ["),
    ("table", InOrder, "slots gives [0, 1, 2, 3, 4, 5]; the package has ["),
    ("table", Keeps, "request 0 gives its blocks back: free and held blocks together are ["),
    ("table", NeverRefuses, "request 1 has 5 tokens and adds 8: add gives True, and there are too few blocks"),
    ("bins", below, "rows of [32, 33, 128, 129, 5] tokens with bounds (32, 128) give [[4], [0, 1], [2, 3]]"),
    ("bins", with_empty_ones, "give [[0, 2], [1], []]; the package's bins have rows [[0, 2], [1]]"),
    ("bins", lengths_not_rows, "give [[20, 30], [400]]"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "piece", "words"), BROKEN, ids=[piece.__name__ for _, piece, _ in BROKEN])
def test_a_broken_piece_is_told_with_numbers_and_not_kept(name, piece, words):
    verdict = mine.check_mine(name, piece)
    assert not verdict.right and words in verdict.words, verdict
    assert not Path(mine.FILE).exists() and mine.usable(name, piece) is READY[name]


def test_every_piece_has_a_broken_one_and_three_hints():
    assert {name for name, *_ in BROKEN} == set(piece_checks.CHECKS) == set(READY) == set(HINTS)
    assert {len(hints) for hints in HINTS.values()} == {3}


def test_a_piece_has_hints_once_it_was_wrong_and_counts_once_it_is_right(monkeypatch):
    monkeypatch.setattr(checking, "_told", {})
    mine.check_mine("bins", lambda lengths, bounds: ...)
    assert str(hint("bins")).startswith("Try first: write something, and let check_mine(")
    assert mine.check_mine("bins", below).words.endswith('hint("bins") helps.')
    shown = [str(hint("bins")) for _ in range(3)]
    assert [len(lines.splitlines()) for lines in shown] == [1, 2, 3]
    assert "0 of 7 pieces built" in str(progress())
    assert mine.check_mine("bins", READY["bins"]).right
    assert "1 of 7 pieces built" in str(progress())


# ---- skeletons, and the file ----------------------------------------------------------------------------------------


class MyCache:
    """As it stands in the notebook."""

    def __init__(self):
        self.held = {}

    def update(self, layer, keys, values): ...


def empty(lengths, bounds):
    """Said, and not done."""
    ...


@pytest.mark.parametrize(("name", "piece", "part"), [("cache", MyCache, "MyCache.update"), ("bins", empty, "empty")])
def test_a_skeleton_is_called_empty_and_the_ready_piece_stands_in(name, piece, part):
    verdict = mine.check_mine(name, piece)
    assert repr(verdict) == f"✗ {name}: {part} is still empty; the ready one stands in"
    assert mine.usable(name, piece) is READY[name]
    found = mine.serve({name: piece}, prompts()[:2], tiny(), 4)
    assert found.mine == () and [row.tokens for row in found.rows] == [generated(p, 4) for p in prompts()[:2]]
    assert mine.write(tiny(), prompt_of(9), 4, MyCache).computed == 9 + 3


@pytest.mark.parametrize("given", [None, 3, "MyCache"])
def test_what_is_no_piece_is_reported(given):
    assert (
        mine.check_mine("cache", given).words == f"give the piece itself, as in check_mine('cache', …); got {given!r}"
    )


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="there is no piece 'caches'; known: attention, cache, "):
        mine.check_mine("caches", ReadyCache)


def test_pieces_of_the_file_run_together(folder):
    for name, piece in READY.items():
        mine.check_mine(name, piece)
    found = mine.serve(mine.kept(), prompts(), tiny(), 6)
    assert set(found.mine) == set(READY) and [row.tokens for row in found.rows] == [generated(p, 6) for p in prompts()]
    lines = {name: mine.lines_of(source) for name, source in mine.sources().items()}
    assert mine.my_lines().startswith(f"lines of yours: {sum(lines.values())} (attention ")
    assert mine.my_lines().endswith("stand in: none") and sum(lines.values()) <= 150


def test_a_chapter_takes_the_files_piece_or_the_ready_one():
    assert mine.own("bins") is READY["bins"]
    mine.check_mine("bins", bins)
    assert mine.own("bins").__module__ == "<run_path>" and mine.own("cache") is ReadyCache
    Path(mine.FILE).write_text(Path(mine.FILE).read_text().replace("return [group", "return groups or [group"))
    assert mine.own("bins") is READY["bins"]


def test_a_second_answer_takes_the_place_of_the_first():
    mine.check_mine("bins", bins)
    first = mine.sources()
    mine.check_mine("cache", ReadyCache)
    mine.check_mine("bins", bins)
    assert list(mine.sources()) == ["bins", "cache"] and mine.sources()["bins"] == first["bins"]
    assert "cache 11" in mine.my_lines() and mine.my_lines().endswith("attention, batch, queue, ring, table")


def helper(lengths, bounds):
    return bins(lengths, bounds)


def test_a_piece_that_needs_another_cell_is_right_but_not_kept():
    mine.check_mine("cache", ReadyCache)
    verdict = mine.check_mine("bins", helper)
    assert verdict.right and "not kept, for alone it raises NameError in helper" in verdict.words
    assert list(mine.sources()) == ["cache"] and list(mine.kept()) == ["cache"]


def test_a_piece_without_source_is_right_but_not_kept():
    names: dict = {}
    exec("def typed(lengths, bounds):\n    return ready(lengths, bounds)", {"ready": bins}, names)
    assert "its source can't be found" in mine.check_mine("bins", names["typed"]).words


def test_where_nothing_can_be_written_it_says_so(folder):
    Path(mine.FILE).mkdir()
    assert "my_disagg.py can't be written here" in mine.check_mine("bins", bins).words


def test_a_file_that_does_not_run_says_so():
    mine.check_mine("bins", bins)
    Path(mine.FILE).write_text(Path(mine.FILE).read_text() + "\nthis is no Python\n")
    with pytest.raises(FileError, match="my_disagg.py does not run .SyntaxError"):
        mine.kept()
