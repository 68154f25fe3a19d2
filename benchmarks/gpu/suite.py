"""The rows of the GPU suites by group, cheap and telling ones first; a group that fails leaves the others standing."""

import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.common import Say
from benchmarks.gpu import dial, paging, pair, pair_rivals, ready, right, rivals, sharing, steps, streaming
from benchmarks.gpu.fixture import Stand
from disagg.plan.errors import ConfigError
from disagg.show.report import Failed, LeftOut, Row


def ceiling_rows(stand: Stand) -> Iterator[Row]:
    limits, scale = stand.limits, stand.scale
    yield Row("ceiling_copy", limits.copy / 1e9, "GB/s", n=10, note="device memory, bytes read and written, median")
    yield Row("ceiling_matmul", limits.matmul / 1e12, "TFLOP/s", n=10, note=f"{scale.side}³, random data, median")
    note = f"as above, back to back for {scale.lasting_s:g} s: the clock falls to what the power allows"
    yield Row("ceiling_matmul[sustained]", stand.sustained / 1e12, "TFLOP/s", note=note)
    yield Row("ceiling_pinned[down]", limits.down / 1e9, "GB/s", n=10, note=f"{scale.pinned_bytes / 1e6:.0f} MB")
    yield Row("ceiling_pinned[up]", limits.up / 1e9, "GB/s", n=10, note=f"{scale.pinned_bytes / 1e6:.0f} MB")


class BenchGroup(NamedTuple):
    """Rows that are measured together, by name without what stands in brackets."""

    names: tuple[str, ...]
    rows: Callable[[Stand], Iterator[Row | LeftOut]]


PARITY = ("gpu_parity_max_logit_diff", "gpu_parity_wrong_tokens")
ONE_GPU = {
    "ceilings": BenchGroup(("ceiling_copy", "ceiling_matmul", "ceiling_pinned"), ceiling_rows),
    "steps": BenchGroup(("step_over_floor", "gap_over_graph"), steps.rows),
    "prefill": BenchGroup(
        (
            "prefill_share",
            "prefill_ms",
            "exposed_layers",
            "streaming_slows_prefill_pct",
            "hop_over_link",
            "host_us_pass",
            "host_us_layer",
        ),
        streaming.prefill_rows,
    ),
    "law": BenchGroup(("law_error_points", "law_error_points_same_pass"), streaming.law_rows),
    "split": BenchGroup(("split_gap_p99_over_alone", "split_prefill_kept"), sharing.split_rows),
    "gaps": BenchGroup(("decode_gap_p99",), sharing.gap_rows),
    "order": BenchGroup(("second_token_gap_p99",), sharing.second_token_rows),
    "dial": BenchGroup(("dial_error_pct",), dial.rows),
    "right": BenchGroup(
        (*PARITY, "bf16_error_over_hf", "cancel_lost", "cancel_leaked_blocks", "cancel_wrong"), right.rows
    ),
    "paged": BenchGroup(
        ("paged_over_full", "paged_spills", "paged_fetches", "paged_recomputes", "paged_parity"), paging.rows
    ),
    "generate": BenchGroup(
        ("dynamic_over_generate_batch", "dynamic_over_generate", "generate_ttft_p50_over_ours"), rivals.generate_rows
    ),
    "nanovllm": BenchGroup(("colocated_over_nanovllm", "dynamic_over_nanovllm"), rivals.nanovllm_rows),
    "ready": BenchGroup(("ready_s",), ready.rows),
}


def two_gpus(traces: list[Path]) -> dict[str, BenchGroup]:
    """Groups of the pair; `traces` are files of arrivals."""
    return {
        "ceilings": ONE_GPU["ceilings"],
        "link": BenchGroup(("ceiling_peer",), pair.link_rows),
        "law": BenchGroup(
            (
                "pair_streaming_slows_prefill_pct",
                "pair_hop_over_link",
                "pair_law_error_points",
                "pair_law_error_points_same_pass",
                "pair_exposed_layers",
            ),
            pair.law_rows,
        ),
        "peer": BenchGroup(("automatic_over_best", "peer_bandwidth_share"), pair.peer_rows),
        "gaps": BenchGroup(("pair_gap_p99_over_alone",), pair.gap_rows),
        "right": BenchGroup(PARITY, pair.right_rows),
        "nanovllm": BenchGroup(("pair_over_nanovllm", "two_colocated_over_nanovllm"), pair_rivals.nanovllm_rows),
        "generate": BenchGroup(("pair_over_generate_batch",), pair_rivals.generate_rows),
        "traces": BenchGroup(("pair_goodput_over_two_colocated",), partial(pair_rivals.trace_rows, traces=traces)),
    }


def chosen(groups: dict[str, BenchGroup], only: str | None) -> dict[str, BenchGroup]:
    """The groups that hold these rows (or have these names), comma between them; all of them without a name."""
    if not only:
        return groups
    found: dict[str, BenchGroup] = {}
    for name in (name.strip().partition("[")[0] for name in only.split(",")):
        hits = {group: groups[group] for group in groups if name == group or name in groups[group].names}
        if not hits:
            rows = ", ".join(row for group in groups.values() for row in group.names)
            raise ConfigError(f"--only {name}: no such row; groups: {', '.join(groups)}; rows: {rows}")
        found |= hits
    return {name: group for name, group in groups.items() if name in found}


def one(say: Say, shape: str, only: str | None = None, sm_split: int = 32) -> Iterator[Row | LeftOut]:
    """The rows of one GPU that plays both devices."""
    return measured(chosen(ONE_GPU, only), Stand(shape, say, sm_split))


def two(say: Say, shape: str, only: str | None = None, traces: Iterable[Path] = ()) -> Iterator[Row | LeftOut]:
    """The rows of two GPUs."""
    return measured(chosen(two_gpus(list(traces)), only), Stand(shape, say, pair=True))


def measured(groups: dict[str, BenchGroup], stand: Stand) -> Iterator[Row | LeftOut]:
    """Rows as they are measured; a group that fails is a row with the reason, and a traceback."""
    try:
        if "ceilings" not in groups and set(groups) != {"ready"}:
            yield from ceiling_rows(stand)  # they stand in the file of every run
        for name, group in groups.items():
            given = set()
            try:
                for row in group.rows(stand):
                    given.add(row.name)
                    yield row
            except Exception as error:
                traceback.print_exc()
                stand.close()
                yield Failed.of(name, error, f" (after {len(given)} rows of this group)")
    finally:
        stand.close()
