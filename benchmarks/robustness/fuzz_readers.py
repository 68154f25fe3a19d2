"""Readers of files from outside: each with valid ones to start from, and the errors that it may raise."""

import contextlib
import gzip
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from safetensors import safe_open

from benchmarks.robustness.architectures import make_tiny
from benchmarks.robustness.file_mutation import mutated, other_numbers
from disagg.cli.tape import Tape, gauges_of
from disagg.course import catalogue
from disagg.plan.config import Config
from disagg.plan.errors import ConfigError, EngineError, FileError, ModelError, RequestError, TraceError
from disagg.plan.link import Link
from disagg.plan.request import Request
from disagg.run.model import weights
from disagg.run.model.folder_checks import check_folder
from disagg.run.model.model import load_model
from disagg.show.html_page import page
from disagg.show.plots import summaries
from disagg.show.plots.block_words import BlockView
from disagg.show.plots.counter_plot import counters
from disagg.show.recordings import RUNGS, StepTime, StepTimes
from disagg.trace.batch_history import batch_steps
from disagg.trace.results import Run
from disagg.trace.timeline import Timeline
from disagg.twin.calibration import Calibration
from disagg.twin.hardware import Costs, Hardware, device_named
from disagg.twin.model_shapes import TINY, sizes_of
from disagg.twin.simulate import simulate
from disagg.twin.traces import COLUMNS, read_trace, scaled


class FuzzedReader(NamedTuple):
    """`read` takes the path of a file that bears one of the seeds' names."""

    name: str
    errors: tuple[type[Exception], ...]  # its own; anything else is a bug
    seeds: Callable[[Path], list[Path]]  # writes valid files into a folder
    read: Callable[[Path], object]
    names_file: bool = True  # must a message name the file?
    mutate: Callable[[bytes, random.Random], bytes] = mutated


# ---- recordings ------------------------------------------------------------------------------------------------------


def _recordings(folder: Path) -> list[Path]:
    pools = dict(decode_blocks=22, prefill_blocks=40, host_blocks=100)
    requests = [Request([1] * (40 + 30 * index), 3 + index, arrival_s=0.3 * index) for index in range(4)]
    runs = [simulate(Config.preset(name, link=0.05e9, **pools), requests) for name in ("paged", "streamed")]
    paths = [folder / name for name in ("run.jsonl", "run.jsonl.gz", "streamed.jsonl", "timeline.jsonl")]
    for path, run in zip(paths[:3], (runs[0], *runs), strict=True):
        run.save(path)
    runs[0].timeline.save(paths[3])
    return paths


def _runs(folder: Path) -> list[Path]:
    return _recordings(folder)[:3]


def _load(path: Path) -> None:
    Timeline.load(path)
    if path.stem != "timeline":  # that one never had a run
        Run.load(path)


def _use(path: Path) -> None:
    """What the command `timeline`, the page and the player do with a recording."""
    run = Run.load(path)
    if run.timeline.end_ns <= run.timeline.start_ns:
        raise FileError(f"{path}: no time was recorded")
    page(run).encode()
    run.timeline.to_perfetto(path.with_suffix(".trace"))
    summaries.sentence(run, times=False), summaries.sentence(run), summaries.places(run.timeline), run.metrics()
    with contextlib.suppress(EngineError):  # steps of requests that are not of the run
        batch_steps(run)
    counters(run), BlockView(run)
    for index in range(len(run.results)):
        run.law(index), run.overlap(index), summaries.sentence(run, index)
    tape = Tape(run.timeline, summaries.row_names(run.timeline))
    for name in gauges_of(run.timeline):
        tape.most(name), tape.value(name, tape.end_ms)
    with contextlib.suppress(EngineError):  # a request without a receipt says so
        run.receipts()


def _steps(folder: Path) -> list[Path]:
    times = [StepTime(rung, rows, 0.01, 0.02, 10**9, 300.0, 20) for rung in RUNGS for rows in (1, 8)]
    paths = [folder / "gpu_steps.json", folder / "gpu_steps.json.gz"]
    for path in paths:
        StepTimes("one GPU", "llama3-8b", 2e12, 6e14, 2e10, 2e10, tuple(times)).save(path)
    return paths


def _read_steps(path: Path) -> object:
    times = StepTimes.load(path)
    return [times.over_floor(time.rung, time.rows) for time in times.times]


# ---- traces of arrivals ----------------------------------------------------------------------------------------------


def _traces(folder: Path) -> list[Path]:
    calls = [f"2023-11-16 18:{17 + index}:03.9799600,{4808 - index},{10 + index}" for index in range(8)]
    blocks = [{"timestamp": 900 * index, "input_length": 700 + index, "output_length": 52} for index in range(8)]
    azure = "\n".join([",".join(COLUMNS), *calls, ""]).encode()
    mooncake = "".join(json.dumps(row | {"hash_ids": [46, 47]}) + "\n" for row in blocks).encode()
    made = {"trace.csv": azure, "trace.jsonl": mooncake, "packed.csv.gz": gzip.compress(azure, mtime=0),
            "packed.jsonl.gz": gzip.compress(mooncake, mtime=0)}  # fmt: skip
    for name, content in made.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in made]


def _read_trace(path: Path) -> None:
    """What is taken has sane numbers, and can be scaled."""
    found = read_trace(path)
    for arrival in (*found, *scaled(found, 0.5, 2.0)):
        if not (0 <= arrival.at_s < float("inf") and arrival.prompt_tokens >= 0 and arrival.new_tokens >= 0):
            raise AssertionError(f"{arrival} was taken")
    if found[0].at_s != 0 or any(one.at_s > other.at_s for one, other in zip(found, found[1:], strict=False)):
        raise AssertionError("arrivals go back in time")


# ---- what the twin reads ---------------------------------------------------------------------------------------------


def _calibrations(folder: Path) -> list[Path]:
    device, paths = device_named("H200"), [folder / "calibration.json", folder / "calibration.json.gz"]
    for path in paths:
        Calibration("a machine", "tiny", Hardware(device, device), {"steps": 0.1}, {"steps": 9}, 3.0).save(path)
    return paths


def _read_calibration(path: Path) -> None:
    """What is taken predicts times."""
    found = Calibration.load(path)
    simulate(Config.preset("streamed", model="tiny"), [Request([1] * 40, 3)], hardware=found.hardware)


def _configs(folder: Path) -> list[Path]:
    path = folder / "config.json"
    path.write_text(json.dumps(TINY | {"head_dim": 16, "rope_theta": 1e4}))
    return [path]


def _read_config(path: Path) -> object:
    """Sizes are counted from a config.json, and cost time."""
    return Costs(sizes_of(str(path.parent)), device_named("L4")).step_s(8, 800)


# ---- models ----------------------------------------------------------------------------------------------------------


@cache
def _model() -> Path:
    """A small model as a user would save it."""
    folder = Path(tempfile.mkdtemp(prefix="disagg-fuzz-"))
    with weights.quiet_transformers():
        return make_tiny("llama", folder)


def _model_files(folder: Path) -> list[Path]:
    names = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
    paths = [Path(shutil.copy(_model() / name, folder / name)) for name in names]
    index = folder / "model.safetensors.index.json"
    with safe_open(paths[-1], "pt") as tensors:
        held = dict.fromkeys(tensors.keys(), names[-1])
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": held}))
    return [*paths, index]


@contextlib.contextmanager
def _swapped(path: Path) -> Iterator[Path]:
    """The model's folder with this one file in place of its own."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / path.name  # so that messages name it
        folder.mkdir()
        for good in _model().iterdir():
            os.link(good, folder / good.name)
        (folder / path.name).unlink(missing_ok=True)
        shutil.copy(path, folder / path.name)
        yield folder


def _read_folder(path: Path) -> None:
    with _swapped(path) as folder:
        check_folder(folder)


def _read_model(path: Path) -> None:
    with _swapped(path) as folder:
        model = load_model(str(folder))
        model.text.detokenizer().push(model.encode("Why?")[0])


def _receipts(folder: Path) -> list[Path]:
    receipt = folder / "receipt.json"
    identity = weights.cheap_identity(_model() / "model.safetensors")
    receipt.write_text(json.dumps(dict(sha256="0" * 64, **identity)))
    return [receipt, Path(shutil.copy(_model() / "model.safetensors", folder))]


def _read_receipt(path: Path) -> None:
    with _swapped(path) as folder:
        if path.name != "receipt.json":
            good = _receipts(Path(tempfile.mkdtemp(dir=folder)))[0]
            shutil.copy(good, folder)
        weights.check_smollm2(folder)


# ---- arguments, and solved exercises ---------------------------------------------------------------------------------


def _settings(folder: Path) -> list[Path]:
    path = folder / "settings.json"
    config = {"link": 1e6, "bins": [64, 128], "max_batch": 4, "route": "staged", "itl_target_s": 0.5, "model": "tiny"}
    config |= {"decode_blocks": 40, "prefill_device": "cpu", "decode_device": "cpu", "verify_kv": True}
    request = {"prompt": [1, 2, 3], "max_new_tokens": 4, "temperature": 0.5, "top_p": 0.9, "seed": 3, "arrival_s": 0.1}
    link = {"bandwidth": 1e6, "latency_s": 0.1, "fixed_s": 0.1, "compute_ratio": 0.5}
    path.write_text(json.dumps({"config": config, "request": request, "link": link}))
    return [path]


def _read_settings(path: Path) -> None:
    """Arguments as a notebook would pass them; what is no JSON, or no argument's name, is left out."""
    try:
        given = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return
    for make in (Link, Request, Config):
        values = given.get(make.__name__.lower()) if isinstance(given, dict) else None
        if not isinstance(values, dict) or (make is Request and "prompt" not in values):
            continue
        known = values if make is Config else make.__dataclass_fields__
        repr(make(**{name: value for name, value in values.items() if name in known}))


def _progress(folder: Path) -> list[Path]:
    path = folder / catalogue.FILE
    path.write_text(json.dumps(sorted(catalogue.exercises())[:4]))
    return [path]


def _read_progress(path: Path) -> None:
    """A file that can't be read counts as none; a new solution is remembered all the same."""
    first, path = next(iter(catalogue.exercises())), path.resolve()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        shutil.copy(path, catalogue.FILE)
        catalogue.solved()
        catalogue.remember(first)
        if first not in catalogue.solved():
            raise AssertionError("a solved exercise was not remembered")


READERS = {
    reader.name: reader
    for reader in (
        FuzzedReader("recording", (FileError,), _recordings, _load),
        FuzzedReader("use", (FileError, EngineError), _runs, _use, False, other_numbers),
        FuzzedReader("steps", (FileError,), _steps, _read_steps),
        FuzzedReader("trace", (TraceError,), _traces, _read_trace),
        FuzzedReader("calibration", (FileError, ConfigError), _calibrations, _read_calibration, names_file=False),
        FuzzedReader("shape", (ConfigError,), _configs, _read_config, names_file=False),
        FuzzedReader("folder", (ModelError,), _model_files, _read_folder),
        FuzzedReader("model", (ModelError,), _model_files, _read_model, names_file=False),
        FuzzedReader("receipt", (ModelError,), _receipts, _read_receipt, names_file=False),
        FuzzedReader("settings", (ConfigError, RequestError), _settings, _read_settings, names_file=False),
        FuzzedReader("progress", (), _progress, _read_progress),
    )
}
