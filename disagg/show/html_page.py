"""A run as one HTML file that needs neither Python nor a network: timeline, receipts, blocks over time, texts, config.
Text from outside is escaped; a policy in the page forbids all requests and all scripts but the page's own.
"""

import base64
import dataclasses
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from disagg.plan.errors import EngineError
from disagg.show.columns import flow_columns, look
from disagg.show.plots.palette import COLOURS
from disagg.show.plots.summaries import milliseconds, sentence
from disagg.show.scene import spans_of
from disagg.trace.files import whole
from disagg.trace.receipts import NAMES, WORKS, Receipt
from disagg.trace.results import Result, Run

HERE = Path(__file__).parent
#: The colour of a receipt's line: that of its work, or of the work it waits for.
COLOUR_OF_LINE = {
    **dict.fromkeys(("prefill", "recompute", "queue"), "prefill"),
    **dict.fromkeys(("transfer", "link-busy", "ring-full"), "link"),
    **dict.fromkeys(("decode", "step-boundary", "device-busy", "batch-slot", "no-block"), "decode"),
    **dict.fromkeys(("spill", "fetch", "spilled", "parked"), "paging"),
}
OTHER = "#888888"


def to_html(run: Run, path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    with whole(path) as file:
        file.write(page(run).encode("utf-8", "replace"))
    return path


def page(run: Run) -> str:
    style = (HERE / "page.css").read_text("utf-8")
    script = joined("canvas.js", "flow.js", "page.js")
    policy = (
        f"default-src 'none'; script-src '{_checksum(script)}'; style-src '{_checksum(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    how = "conditional" if run.config.conditional else "colocated" if run.config.colocated else run.config.route
    title = f"disagg: {len(run.results)} requests, {how}" if run.results else "disagg: a run"
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{style}</style></head><body>",
        f"<h1>{escape(title)}</h1><p>{escape(sentence(run))} {escape(sentence(run, times=False))}</p>",
        '<h2>The system, moving</h2><div id="flow"></div>',
        "<h2>Timeline</h2><noscript><p>The timeline and the blocks need JavaScript; the rest does not.</p></noscript>"
        '<div id="timeline"></div>',
        "<h2>Blocks over time</h2><p>Full: used; half: in flight; crossed: quarantined; empty: free. The number is the "
        "request. Memories that were never used are left out, and so are blocks that never were.</p>"
        '<input id="scrub" type="range" min="0" step="any" value="0" aria-label="time in ms"><div id="pages"></div>',
        *_receipts(run),
        *_texts(run),
        *_config(run),
        *_data(run),
        f'<script type="module">{script}</script></body></html>',
    ]
    return "\n".join(parts)


def joined(*names: str) -> str:
    """Modules of this folder as one, in which the names that they import from each other are known."""
    texts = ((HERE / name).read_text("utf-8") for name in names)
    return "\n".join(re.sub(r"^import .* from \"\./.*;\n", "", text, flags=re.MULTILINE) for text in texts)


def _checksum(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _data(run: Run) -> Iterable[str]:
    header, columns = spans_of(run)
    flow, (flows, moves) = flow_columns(run)
    data = json.dumps({"look": look(), "header": header, "flow": flow}).replace("<", "\\u003c")
    yield f'<script type="application/json" id="data">{data}</script>'
    for name, packed in (("columns", columns), ("flows", flows), ("moves", moves)):
        yield f'<script type="text/plain" id="{name}">{base64.b64encode(packed).decode()}</script>'


def _receipt(result: Result) -> Receipt | None:
    try:
        return result.receipt
    except EngineError:  # nothing was recorded: the table says so
        return None


def _receipts(run: Run) -> Iterable[str]:
    receipts = [_receipt(result) for result in run.results]
    known = [receipt.totals() for receipt in receipts if receipt]
    names = [name for name in NAMES if any(name in totals for totals in known)]
    yield "<h2>Receipts: where the milliseconds went</h2>"
    if known:
        sums = sum(map(Counter, known), Counter())
        yield _bar({name: sums[name] / len(known) for name in names if sums[name]})
    heads = ["request", "prompt tokens", "new tokens", "ended", "TTFT", "second-token gap"]
    heads += [*names, "unaccounted", "total"]
    rows = []
    for index, (result, receipt) in enumerate(zip(run.results, receipts, strict=True)):
        counts = str(index), str(result.prompt_tokens), str(len(result.token_ids)), result.finish_reason
        totals = receipt.totals() if receipt else {}
        times = _ms(result.ttft_s), _ms(result.second_token_gap_s), *(_ms(totals.get(name)) for name in names)
        ends = ("not recorded", "") if receipt is None else (_ms(receipt.unaccounted_s), _ms(receipt.total_s))
        rows.append([*counts, *times, *ends])
    yield f'<div class="wide">{_table(heads, rows)}</div><p>Times in ms; an empty cell is none.</p>'


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.1f}"


def _table(heads: list[str], rows: Iterable[list[str]]) -> str:
    head = "".join(f"<th scope=col>{escape(text)}</th>" for text in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _bar(means: dict[str, float]) -> str:
    """Works are solid, waits pale with a frame in their colour; the policy forbids inline styles, so attributes."""
    whole, x, boxes = sum(means.values()), 0.0, []
    for name, seconds in means.items():
        width, colour = 100 * seconds / whole, COLOURS.get(COLOUR_OF_LINE.get(name, ""), OTHER)
        opacity = 1 if name in WORKS else 0.3
        boxes.append(
            f'<rect x="{x:.3f}%" width="{width:.3f}%" y="2" height="30" fill="{colour}" fill-opacity="{opacity}" '
            f'stroke="{colour}"><title>{name} {milliseconds(seconds)}</title></rect>'
        )
        if width > 9:
            ink = "#ffffff" if name in ("prefill", "recompute") else "#111111" if name in WORKS else "currentColor"
            boxes.append(f'<text x="{x + 0.6:.3f}%" y="21" fill="{ink}">{name}</text>')
        x += width
    words = ", ".join(f"{name} {milliseconds(s)} ({s / whole:.0%})" for name, s in means.items())
    text = f"Mean of a request, {milliseconds(whole)}: {words}. Full: work; pale: waiting."
    return f'<svg class="bar" role="img" aria-label="{escape(text)}">{"".join(boxes)}</svg><p>{escape(text)}</p>'


def _texts(run: Run) -> Iterable[str]:
    yield "<h2>Prompts and answers</h2>"
    for index, result in enumerate(run.results):
        prompt = result.prompt or "the prompt was given as token ids"
        answer = result.text or _ids(result.token_ids)
        failed = f"<p>{escape(result.error)}</p>" if result.error else ""
        yield (
            f"<details{' open' * (index == 0)}><summary>request {index}: {result.prompt_tokens} prompt tokens, "
            f"{len(result.token_ids)} new, {escape(result.finish_reason)}</summary>"
            f"<pre>{escape(prompt)}</pre><pre>{escape(answer)}</pre>{failed}</details>"
        )


def _ids(ids: Sequence[int], most: int = 64) -> str:
    shown = " ".join(map(str, ids[:most]))
    return f"token ids {shown}{f' … ({len(ids)})' if len(ids) > most else ''}" if len(ids) else "no tokens"


def _config(run: Run) -> Iterable[str]:
    """A model's folder by its last name: the page must not show its path."""
    values = {field.name: getattr(run.config, field.name) for field in dataclasses.fields(run.config)}
    fields = {name: "–" if value is None else str(value) for name, value in values.items()}
    fields["model"] = fields["model"].replace("\\", "/").rstrip("/").rpartition("/")[2]
    yield f"<h2>Config and machine</h2><p>{escape(run.machine or 'machine not recorded')}</p>"
    yield _table(["field", "value"], [[name, value] for name, value in fields.items()])
