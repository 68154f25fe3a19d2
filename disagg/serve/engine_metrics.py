"""What a Prometheus server reads of an engine: counts and times of ended requests, and what is open and held now.

Names follow vLLM's metrics, with our prefix.
"""

from collections import Counter as Count
from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily

from disagg.run.engine import Engine
from disagg.trace.results import Result

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class EngineMetrics:
    def __init__(self, engine: Engine) -> None:
        self._engine, self._registry = engine, CollectorRegistry()
        one: dict[str, Any] = dict(namespace="disagg", registry=self._registry)
        self._ended = Counter("requests", "Requests that ended, by how", ["finish"], **one)
        self._prompt = Counter("prompt_tokens", "Tokens of prompts of requests that ended", **one)
        self._new = Counter("generation_tokens", "Tokens of answers, also of unfinished ones", **one)
        times: dict[str, Any] = dict(buckets=SECONDS, **one)
        self._ttft = Histogram("time_to_first_token_seconds", "From arrival to the first token", **times)
        self._itl = Histogram("inter_token_latency_seconds", "Between two tokens of an answer", **times)
        self._whole = Histogram("e2e_request_latency_seconds", "From arrival to the end", **times)
        self._registry.register(self)

    def ended(self, result: Result, finish: str) -> None:
        self._ended.labels(finish).inc()
        self._prompt.inc(result.prompt_tokens)
        self._new.inc(len(result.token_ids))
        if result.ttft_s is not None:
            self._ttft.observe(result.ttft_s)
        for gap_s in result.itl_s:
            self._itl.observe(gap_s)
        self._whole.observe((result.ended_ns - result.arrival_ns) / 1e9)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """What is so now; called by prometheus_client."""
        state = self._engine.controller.state
        up = GaugeMetricFamily("disagg_engine_up", "1 while the engine serves")
        up.add_metric([], float(serves(self._engine) is None))
        stages = Count(record.stage.value for record in list(state.records.values()))
        requests = GaugeMetricFamily("disagg_requests_open", "Open requests by stage", labels=["stage"])
        for stage, count in sorted(stages.items()):
            requests.add_metric([stage], count)
        blocks = GaugeMetricFamily("disagg_kv_blocks", "Blocks of K/V by memory", labels=["pool", "what"])
        for pool in state.pools():
            blocks.add_metric([pool.name, "held"], pool.held)
            blocks.add_metric([pool.name, "capacity"], pool.capacity)
        yield from (up, requests, blocks)

    def text(self) -> bytes:
        """In Prometheus' text format, version 0.0.4."""
        return generate_latest(self._registry)


def serves(engine: Engine) -> str | None:
    """None while it does; else why not."""
    return "the engine is closed" if engine.closed else engine.broken and f"the engine is broken: {engine.broken}"
