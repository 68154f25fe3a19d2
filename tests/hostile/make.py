"""Files that someone hostile or unlucky may hand over, each with the words that its refusal must hold.

python tests/hostile/make.py FOLDER writes all of them; tests/test_hostile.py makes them on the fly. The same each time.
"""

import gzip
import json
import struct
import sys
from pathlib import Path

MARKUP = ("<img src=x onerror=alert(1)>", "</script><script>alert(1)</script>", "$\\frac$", "[bold]x[/bold]", "\u202ex")
PICKLE = (
    b"\x80\x04\x95\x1b\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x04true\x94\x85R."
)
Files = dict[str, tuple[bytes, str]]  # name → content, and a pattern of the refusal

HEADER = {
    "disagg": "recording", "version": 1, "holds": "run", "start_ns": 0,
    "devices": {"prefill 0": "cpu", "decode 0": "cpu", "direct 0": "link", "host": "host memory"},
    "sizes": {"decode 0": 8}, "config": {"model": "tiny"}, "machine": "made up", "counts": {}, "padding": [1, 1],
    "peak_blocks": {}, "interrupted": False,
}  # fmt: skip
SPAN = {"span": "prefill", "place": "prefill 0", "start_ns": 1, "end_ns": 9, "requests": [0], "firsts": [0]}
MARK = {"mark": "prefill 0 queue", "at_ns": 1, "value": 1}
RESULT = {"result": 0, "prompt_tokens": 3, "arrival_ns": 1, "token_ids": [5], "token_times_ns": [9], "text": "x",
          "finish_reason": "length", "ended_ns": 9, "recorded": True}  # fmt: skip
MANY = (json.dumps(RESULT | {"text": "x" * 30_000}).encode() + b"\n") * 64
END = {"end": {"span": 1, "mark": 1, "move": 0, "choice": 0, "result": 1}}


def line(row: dict, **changes) -> bytes:
    return json.dumps(row | changes).encode() + b"\n"


def recording(header=HEADER, span=SPAN, mark=MARK, result=RESULT, end=END) -> bytes:
    """A small recording, right unless a part of it is not; a part may be bytes as they are to stand there."""
    return b"".join(part if isinstance(part, bytes) else line(part) for part in (header, span, mark, result, end))


def packed(piece: bytes, times: int) -> bytes:
    """So many pieces as one gzip file of as many members: quick to make, as large as one likes to unpack."""
    return gzip.compress(piece, 9, mtime=0) * times


def recordings() -> Files:
    good, cut = recording(), "cut off"
    return {
        "empty.jsonl": (b"", "is empty"),
        "empty.jsonl.gz": (b"", "is empty"),
        "one_newline.jsonl": (b"\n", "line 1: it is not JSON"),
        "truncated.jsonl": (good[:-20], f"line 5: .*{cut}"),
        "truncated_at_a_line.jsonl": (good[: good.rindex(b'{"end"')], f"after line 4: it is {cut}"),
        "truncated.jsonl.gz": (gzip.compress(good, mtime=0)[:-12], cut),
        "garbage_after.jsonl.gz": (gzip.compress(good, mtime=0) + b"garbage", "not packed by gzip|not the last"),
        "plain_named.jsonl.gz": (good, "not packed by gzip"),
        "packed_named.jsonl": (gzip.compress(good, mtime=0), "line 1: .*(not UTF-8|cut off)"),
        "deep.jsonl": (recording(span=b"[" * 200_000 + b"\n"), "line 2: brackets stand more than 8 deep"),
        "deep_objects.jsonl": (recording(span=b'{"span":' * 100_000 + b"\n"), "line 2: brackets stand"),
        "deep_in_a_field.jsonl": (recording(result=RESULT | {"text": [[[[[[[[["x"]]]]]]]]]}), "line 4: brackets stand"),
        "huge_int.jsonl": (recording(span=SPAN | {"end_ns": 10**400}), "line 2: end_ns must be"),
        "endless_int.jsonl": (recording(mark=b'{"mark":"x","at_ns":' + b"9" * 5000 + b"}\n"), "line 3: a number is"),
        "nan.jsonl": (recording(mark=b'{"mark":"x","at_ns":NaN,"value":1}\n'), "line 3: NaN is not a finite"),
        "infinity.jsonl": (recording(mark=b'{"mark":"x","at_ns":-Infinity,"value":1}\n'), "line 3: -Infinity is not"),
        "overflow.jsonl": (recording(mark=b'{"mark":"x","at_ns":1e999,"value":1}\n'), "line 3: 1e999 is not a finite"),
        "twice.jsonl": (recording(mark=b'{"mark":"x","at_ns":1,"at_ns":2,"value":1}\n'), "'at_ns' stands twice"),
        "latin1.jsonl": (recording(result=line(RESULT).replace(b'"x"', b'"\xe9"')), "line 4: it is not UTF-8"),
        "utf16.jsonl": (good.decode().encode("utf-16"), "line 1: .*(not UTF-8|cut off)"),
        "utf32.jsonl": (good.decode().encode("utf-32"), "line 1: "),
        "bom.jsonl": (b"\xef\xbb\xbf" + good, "line 1: it is not JSON"),
        "null_bytes.jsonl": (recording(mark=b"\0" * 99 + b"\n"), "line 3: it is not JSON"),
        "null_in_a_name.jsonl": (recording(mark=MARK | {"mark": "a\0b"}), "line 3: name must be the name of"),
        "half_a_pair.jsonl": (recording(result=RESULT | {"text": "\ud800"}), "line 4: text must be text"),
        "half_a_pair_in_config.jsonl": (recording(HEADER | {"config": {"model": "\ud800"}}), "line 1: config: model"),
        "long_line.jsonl": (recording(mark=b" " * 2**20 + b"\n"), "line 3 is longer than"),
        "bomb_of_zeros.jsonl.gz": (packed(b"\0" * 2**24, 64), "line 1 is longer than"),
        "bomb_of_lines.jsonl.gz": (packed(line(HEADER), 1) + packed(MANY, 512), "are not taken in"),
        "bomb_of_brackets.jsonl.gz": (packed(b"[" * 2**24, 64), "line 1 is longer than"),
        "pickle.jsonl": (PICKLE + b"\n", "line 1: it is not UTF-8"),
        "html.jsonl": (b"<!doctype html><script>alert(1)</script>\n", "line 1: it is not JSON"),
        "a_list.jsonl": (recording(span=b"[1]\n"), "line 2: it does not hold one JSON object"),
        "two_objects.jsonl": (recording(span=b"{}{}\n"), "line 2: it does not hold one JSON object"),
        "path_as_a_place.jsonl": (recording(span=SPAN | {"place": "../../etc"}), "line 2: place must be"),
        "place_of_nobody.jsonl": (recording(span=SPAN | {"place": "prefill 7"}), "line 2: place 'prefill 7' is not"),
        "memory_as_a_place.jsonl": (recording(span=SPAN | {"place": "host"}), "line 2: place must be"),
        "nobody.jsonl": (recording(span=SPAN | {"requests": [], "firsts": []}), "line 2: a span has no requests"),
        "named_count.jsonl": (recording(mark=MARK | {"value": "many"}), "line 3: .* is 'many'"),
        "unknown_counter.jsonl": (recording(mark=MARK | {"mark": MARKUP[2]}), "line 3: name must be the name of"),
        "unknown_memory.jsonl": (recording(HEADER | {"sizes": {MARKUP[2]: 9}}), "line 1: sizes must be"),
        "counted_gate.jsonl": (recording(mark=MARK | {"mark": "gate wanting"}), "line 3: 'gate wanting' is 1"),
        "tall.jsonl": (recording(HEADER | {"devices": {f"up {i}": "x" for i in range(999)}}), "line 1: devices must"),
        "many_memories.jsonl": (recording(HEADER | {"sizes": {f"decode {i}": 10**7 for i in range(9)}}), "sizes must"),
        "unknown_config.jsonl": (recording(HEADER | {"config": {MARKUP[0]: 1}}), "line 1: config: field '<img"),
        "styled_config.jsonl": (recording(HEADER | {"config": {MARKUP[3]: 1}}), r"config: field '\[bold]x\[/bold]' is"),
        "link_of_letters.jsonl": (recording(HEADER | {"config": {"link": {"x" * 5000: 1}}}), "line 1: config: .*xx"),
        "huge_link.jsonl": (recording(HEADER | {"config": {"link": 10**400}}), "config: link bandwidth"),
        "huge_config.jsonl": (recording(HEADER | {"config": {"max_batch": 10**400}}), "config: max_batch must"),
        "other_version.jsonl": (recording(HEADER | {"version": 10**400}), "line 1: version 1000.* is unknown here"),
    }  # fmt: skip


def with_markup() -> bytes:
    """A recording that is right, and full of markup wherever text may stand."""
    text = " ".join(MARKUP)
    names = MARKUP[0]
    return recording(
        HEADER | {"machine": names, "devices": {"prefill 0": names, "decode 0": MARKUP[1]},
                  "sizes": {"decode 0": 4}, "counts": {names: 1}, "config": {"model": text}},
        mark={"mark": "gate wanting", "at_ns": 1, "value": MARKUP[2]},
        result=RESULT | {"text": text, "prompt": text, "error": text, "finish_reason": "failed"},
    )  # fmt: skip


def largest() -> bytes:
    """About as much as the limits let in, in the form that takes most memory for its bytes: ids of three digits."""
    count, each = 60, 131_000
    results = line(RESULT | {"token_ids": [999] * each, "token_times_ns": [999] * each}).replace(b", ", b",") * count
    return line(HEADER) + results + line({"end": {**END["end"], "span": 0, "mark": 0, "result": count}})


# ---- traces of arrivals ----------------------------------------------------------------------------------------------

COLUMNS, CALLED = b"TIMESTAMP,ContextTokens,GeneratedTokens\n", b"2023-11-16 18:17:03.5,480,10\n"
WIDE = CALLED[:-1] + b"," + b"x" * 60_000 + b"\n"
ARRIVAL = {"timestamp": 5, "input_length": 480, "output_length": 10, "hash_ids": [1]}


def traces() -> Files:
    csv, jsonl = COLUMNS + CALLED * 2, line(ARRIVAL) * 2
    no_dates = ("2023-13-01 00:00:00", "2023-00-01 00:00:00", "0000-01-01 00:00:00", "2023-02-31 00:00:00",
                "2023-02-00 00:00:00", "2023-02-01 24:00:00", "2023-02-01 00:00:61")  # fmt: skip
    dated = {at: COLUMNS + f"{at},1,1\n".encode() for at in no_dates}
    return {
        **{f"{at}.csv": (content, f"line 2: TIMESTAMP '{at[:10]} .* is no date") for at, content in dated.items()},
        "empty.csv": (b"", "holds no arrival"),
        "empty.jsonl": (b"", "is empty"),
        "columns_only.csv": (COLUMNS, "holds no arrival"),
        "no_columns.csv": (CALLED, "line 1: the column TIMESTAMP is missing"),
        "a_column_lacks.csv": (COLUMNS.replace(b",Gen", b";Gen"), "line 1: the column ContextTokens is missing"),
        "a_column_twice.csv": (COLUMNS[:-1] + b",ContextTokens\n" + CALLED, "line 1: the column Cont.* stands twice"),
        "columns_of_markup.csv": (MARKUP[0].encode() + b"\n", "line 1: the column TIMESTAMP is missing; found '<img"),
        "a_cell_lacks.csv": (csv + b"2023-11-16 18:17:03.5,1\n", "line 4: 2 cells are fewer"),
        "negative.csv": (csv + CALLED.replace(b"480", b"-1"), "line 4: ContextTokens must be tokens, .*; got '-1'"),
        "nan.csv": (csv + CALLED.replace(b"480", b"nan"), "line 4: ContextTokens must be tokens, .*; got 'nan'"),
        "fraction.csv": (csv + CALLED.replace(b"10\n", b"1.5\n"), "line 4: GeneratedTokens must be tokens"),
        "huge.csv": (csv + CALLED.replace(b"480", b"99999999"), "line 4: ContextTokens must be tokens"),
        "endless.csv": (csv + CALLED.replace(b"480", b"9" * 5000), "line 4: ContextTokens must be tokens"),
        "other_digits.csv": (csv + CALLED.replace(b"480", "٤٨".encode()), "line 4: ContextTokens must be tokens"),
        "sum.csv": (csv + CALLED.replace(b"480", b"=1+1"), "line 4: ContextTokens must be tokens, .*; got '=1.1'"),
        "unsorted.csv": (csv + CALLED.replace(b"03.5", b"03.4"), "line 4: it came 0.0999.* s before the line above"),
        "unsorted_zones.csv": (csv + CALLED.replace(b"03.5", b"04+01:00"), "line 4: it came 3599.5 s before the line"),
        "long_line.csv": (csv + CALLED[:-1] + b" " * 2**16 + b"\n", "line 4 is longer than 65536 bytes"),
        "long_line.jsonl": (jsonl + line(ARRIVAL | {"hash_ids": [1] * 2**15}), "line 3 is longer than 65536 bytes"),
        "quote_without_end.csv": (csv + b'2023-11-16 18:17:03.5,"1,1\n', "line 4: it is not CSV"),
        "old_line_ends.csv": (csv.replace(b"\n", b"\r"), "line 1: it is not CSV"),
        "latin1.csv": (csv + CALLED.replace(b"480", b"\xe9"), "line 4: it is not UTF-8"),
        "utf16.csv": (csv.decode().encode("utf-16"), "line 1: it is not UTF-8"),
        "null_bytes.csv": (csv + b"\0" * 99 + b"\n", "line 4: 1 cells are fewer"),
        "pickle.csv": (PICKLE, "line 1: "),
        "pickle.jsonl": (PICKLE, "line 1: "),
        "zip.csv": (b"PK\3\4\n" + csv, "line 1: the column TIMESTAMP is missing"),
        "packed_named.csv": (gzip.compress(csv, mtime=0), "line 1: "),
        "packed_twice.csv.gz": (gzip.compress(gzip.compress(csv, mtime=0), mtime=0), "line 1: "),
        "plain_named.csv.gz": (csv, "not packed by gzip"),
        "truncated.csv.gz": (gzip.compress(csv, mtime=0)[:-12], "cut off"),
        "truncated.jsonl": (jsonl[:-9], "line 2: the file is cut off"),
        "archive.zip": (csv, "is no trace: take"),
        "archive.tar.gz": (csv, "is no trace: take"),
        "bomb_of_zeros.csv.gz": (packed(b"\0" * 2**24, 64), "line 1 is longer than"),
        "bomb_of_brackets.jsonl.gz": (packed(b"[" * 2**24, 64), "line 1 is longer than"),
        "bomb_of_rows.csv.gz": (packed(COLUMNS, 1) + packed(WIDE * 64, 32), "line 1119: more than .* are not taken"),
        "bomb_of_rows.jsonl.gz": (packed(line(ARRIVAL | {"who": "x" * 60_000}) * 64, 32), "are not taken in"),
        "deep.jsonl": (jsonl + b"[" * 60_000 + b"\n", "line 3: brackets stand more than 8 deep"),
        "nan.jsonl": (jsonl + b'{"timestamp":NaN}\n', "line 3: NaN is not a finite"),
        "twice.jsonl": (jsonl + b'{"timestamp":5,"timestamp":6}\n', "line 3: the field 'timestamp' stands twice"),
        "a_list.jsonl": (jsonl + b"[1]\n", "line 3: it does not hold one JSON object"),
        "no_length.jsonl": (jsonl + b'{"timestamp":5,"output_length":1}\n', "line 3: input_length must be tokens"),
        "length_of_text.jsonl": (line(ARRIVAL | {"input_length": "480"}), "line 1: input_length must be tokens"),
        "length_of_true.jsonl": (line(ARRIVAL | {"input_length": True}), "line 1: input_length must be tokens"),
        "huge.jsonl": (line(ARRIVAL | {"output_length": 10**400}), "line 1: output_length must be tokens"),
        "negative.jsonl": (line(ARRIVAL | {"timestamp": -1}), "line 1: timestamp must be in ms"),
        "late.jsonl": (line(ARRIVAL | {"timestamp": 10**400}), "line 1: timestamp must be in ms"),
        "unsorted.jsonl": (jsonl + line(ARRIVAL | {"timestamp": 4}), "line 3: it came 0.001 s before the line above"),
        "blocks_of_markup.jsonl": (line(ARRIVAL | {"hash_ids": [MARKUP[2]]}), "line 1: hash_ids must be a list"),
        "blocks_of_nobody.jsonl": (line(ARRIVAL | {"hash_ids": None}), "line 1: hash_ids must be a list"),
        "blocks_negative.jsonl": (line(ARRIVAL | {"hash_ids": [-1]}), "line 1: hash_ids must be a list"),
        "blocks_huge.jsonl": (line(ARRIVAL | {"hash_ids": [10**4000]}), "line 1: hash_ids must be a list"),
    }  # fmt: skip


def largest_trace() -> bytes:
    """About as much as the limits let in, in the form that takes most memory for its bytes: blocks of three digits."""
    blocks = line(ARRIVAL | {"input_length": 16_000 * 512, "hash_ids": [999] * 16_000}).replace(b", ", b",")
    return blocks * (64 * 2**20 // len(blocks))


# ---- times of steps --------------------------------------------------------------------------------------------------

STEP = {"rung": "eager", "rows": 1, "seconds": 0.1, "gap_s": 0.1, "nbytes": 9, "context": 3.0, "count": 2}
STEPS = {"recording": "steps", "version": 1, "machine": "m", "model": "x", "copy": 1e9, "matmul": 1e12, "down": 1e9,
         "up": 1e9, "times": [STEP | {"rung": rung} for rung in ("eager", "compiled", "graph", "joined")]}  # fmt: skip


def steps() -> Files:
    plain = {name: entry for name, entry in recordings().items() if not name.startswith(("one", "trunc"))}
    plain = {name: (content, "line|empty|gzip|cut off") for name, (content, _) in plain.items()}
    many = [STEP | {"rows": index} for index in range(9000)]
    return plain | {
        "two_lines.json": (line(STEPS) * 2, "line 1: one line holds the times"),
        "zero.json": (line(STEPS, copy=0), "line 1: copy must be a number above 0, from 1e-30 to 1e30; got 0"),
        "next_to_zero.json": (line(STEPS, times=[STEP | {"nbytes": 5e-324}]), "line 1: nbytes must be a number above"),
        "true.json": (line(STEPS, copy=True), "line 1: copy must be"),
        "huge.json": (line(STEPS, copy=10**400), "line 1: copy must be"),
        "no_times.json": (line(STEPS, times=[]), "line 1: times must be a list of objects"),
        "times_of_numbers.json": (line(STEPS, times=[1]), "line 1: times must be a list of objects"),
        "a_rung_lacks.json": (line(STEPS, times=STEPS["times"][1:]), "times must hold each of eager, comp"),
        "too_many.json": (line(STEPS, times=many), "line 1: (times must hold each|.*longer)"),
        "unknown_rung.json": (line(STEPS, times=[STEP | {"rung": MARKUP[0]}]), "line 1: times must hold each"),
        "unknown_field.json": (line(STEPS, times=[STEP | {MARKUP[1]: 1}]), "line 1: field .* is unknown"),
    }


# ---- models ----------------------------------------------------------------------------------------------------------

TENSOR = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


def tensors(header, data: bytes = b"\0" * 32, length: int | None = None) -> bytes:
    """A safetensors file, whose stated length may lie."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def safetensors() -> Files:
    many = {f"t{index}": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for index in range(5000)}
    after = {"dtype": "F32", "shape": [2], "data_offsets": [12, 20]}
    return {
        "empty": (b"", "header of -1 bytes"),
        "half_a_length": (b"\1\0\0", "header of -1 bytes"),
        "no_header": (tensors(b""), "header of 0 bytes"),
        "header_beyond_the_file": (tensors({}, length=10**6), "header of 1,000,000 bytes in a file of"),
        "header_of_2_to_64": (tensors({}, length=2**64 - 1), "at most 16,777,216 are read"),
        "header_over_the_limit": (tensors(b"{" + b" " * 2**24 + b"}"), "at most 16,777,216 are read"),
        "pickle": (PICKLE + b"\0" * 100, "header of .* bytes"),
        "zip": (b"PK\3\4" + b"\0" * 100, "not a table of tensors|header of"),
        "a_list": (tensors([]), "not a table of tensors"),
        "deep": (tensors(b"[" * 100_000), "not a table of tensors"),
        "not_json": (tensors(b"{'a':1}"), "not a table of tensors"),
        "utf16": (tensors('{"ä":1}'.encode("utf-16")), "not a table of tensors|tensor ä"),
        "endless_int": (tensors(b'{"a":' + b"9" * 5000 + b"}"), "not a table of tensors"),
        "twice": (tensors(b'{"a":{},"a":{}}'), "holds 'a' twice"),
        "entry_of_text": (tensors({"a": "x"}), "tensor a has 'x'"),
        "entry_lacks": (tensors({"a": {"dtype": "F32"}}), "tensor a has {'dtype': 'F32'}, not dtype, shape"),
        "dtype_unknown": (tensors({"a": TENSOR | {"dtype": "F31"}}), "tensor a has dtype 'F31'"),
        "dtype_of_a_list": (tensors({"a": TENSOR | {"dtype": ["F32"]}}), r"tensor a has dtype \['F32'\]"),
        "quantised": (tensors({"a": TENSOR | {"dtype": "F8_E4M3"}}), "quantised formats are not read"),
        "offset_out_of_range": (tensors({"a": TENSOR | {"data_offsets": [32, 48]}}), "tensor a .* lies at 32..48"),
        "offset_negative": (tensors({"a": TENSOR | {"data_offsets": [-16, 0]}}), "tensor a .* lies at -16..0"),
        "offset_backwards": (tensors({"a": TENSOR | {"data_offsets": [16, 0]}}), "tensor a .* lies at 16..0"),
        "offset_of_text": (tensors({"a": TENSOR | {"data_offsets": ["0", "16"]}}), "tensor a has data_offsets"),
        "offset_of_a_fraction": (tensors({"a": TENSOR | {"data_offsets": [0.0, 16.0]}}), "tensor a has data_offsets"),
        "offset_of_three": (tensors({"a": TENSOR | {"data_offsets": [0, 8, 16]}}), "tensor a has data_offsets"),
        "offset_huge": (tensors({"a": TENSOR | {"data_offsets": [0, 10**400]}}), "tensor a .* lies at 0..1000"),
        "overlap": (tensors({"a": TENSOR, "b": after}), "tensor 'b' begins inside of tensor 'a'"),
        "all_in_one_place": (tensors(many), "begins inside of tensor"),
        "shape_negative": (tensors({"a": TENSOR | {"shape": [-2, -2]}}), r"tensor a has shape \[-2, -2\]"),
        "shape_of_true": (tensors({"a": TENSOR | {"shape": [True, 4]}}), r"tensor a has shape \[True, 4\]"),
        "shape_of_text": (tensors({"a": TENSOR | {"shape": "22"}}), "tensor a has shape '22'"),
        "shape_exceeds": (tensors({"a": TENSOR | {"shape": [4, 4]}}), r"tensor a \[4, 4\] F32 lies at 0..16"),
        "shape_overflows": (tensors({"a": TENSOR | {"shape": [2**32, 2**32, 4]}}), "tensor a .* lies at 0..16"),
        "shape_to_64_bits": (tensors({"a": TENSOR | {"shape": [2**62, 4, 4]}}), "tensor a .* lies at 0..16"),
        "shape_of_endless_product": (tensors({"a": TENSOR | {"shape": [10**4000] * 1000}}), "tensor a .* lies at"),
        "shape_of_ones": (tensors({"a": TENSOR | {"shape": [1] * 300_000}}), "tensor a .* lies at"),
        "long_name": (tensors({"a" * 10_000: TENSOR | {"shape": [3]}}), "tensor 'aaaa"),
        "name_of_two_lines": (tensors({"a\nb": TENSOR | {"shape": [3]}}), r"tensor 'a\\nb'"),
        "path_as_a_name": (tensors({"../../../etc/passwd": TENSOR | {"shape": [3]}}), "tensor ../../../etc/passwd"),
        "markup_as_a_name": (tensors({MARKUP[0]: TENSOR | {"shape": [3]}}), "tensor <img"),
    }  # fmt: skip


def folder_files() -> dict[str, tuple[str, bytes, str]]:
    """Name → (file of a model's folder, content, pattern): refused before anything is loaded."""
    config, tokenizer, index = "config.json", "tokenizer_config.json", "model.safetensors.index.json"
    code = {"auto_map": {"AutoConfig": "evil.Evil"}}
    return {
        "empty": (config, b"", "config.json is not readable JSON"),
        "truncated": (config, b'{"model_type": "lla', "config.json is not readable JSON"),
        "a_list": (config, b"[]", "config.json holds a list"),
        "utf16": (config, '{"a":1}'.encode("utf-16"), "config.json is not readable JSON"),
        "deep": (config, b"[" * 100_000, "config.json is not readable JSON: maximum recursion"),
        "endless_int": (config, b'{"a":' + b"9" * 5000 + b"}", "config.json is not readable JSON"),
        "large": (config, b'{"a":"' + b"x" * 2**23 + b'"}', "config.json holds more than"),
        "code": (config, json.dumps(code).encode(), "config.json has auto_map"),
        "code_inside": (config, json.dumps({"text_config": code}).encode(), "config.json has auto_map"),
        "code_in_a_list": (config, json.dumps({"parts": [code]}).encode(), "config.json has auto_map"),
        "code_of_the_tokenizer": (tokenizer, json.dumps(code).encode(), "tokenizer_config.json has auto_map"),
        "code_of_generation": ("generation_config.json", json.dumps(code).encode(), "has auto_map"),
        "kernels": (config, b'{"_attn_implementation": "who/knows"}', "_attn_implementation 'who/knows'"),
        "kernels_inside": (config, b'{"t": {"attn_implementation": "a/b:c"}}', "attn_implementation 'a/b:c'"),
        "kernels_by_part": (config, b'{"attn_implementation": {"": "a/b"}}', "attn_implementation"),
        "other_weights": (config, b'{"transformers_weights": "../x.safetensors"}', "transformers_weights"),
        "many_layers": (config, b'{"num_hidden_layers": 1000000000}', "num_hidden_layers 1000000000"),
        "many_experts": (config, b'{"t": {"num_experts": 1000000}}', "num_experts 1000000"),
        "file_elsewhere": (tokenizer, b'{"vocab_file": "/etc/passwd"}', "vocab_file '/etc/passwd', which leads out"),
        "file_above": (tokenizer, b'{"tokenizer_file": "../x.json"}', "tokenizer_file '../x.json', which leads out"),
        "index_above": (index, b'{"weight_map": {"a": "../x.safetensors"}}', "tensor 'a' is sent to '../x.safe"),
        "index_to_a_pickle": (index, b'{"weight_map": {"a": "pytorch_model.bin"}}', "sent to 'pytorch_model.bin'"),
        "index_of_numbers": (index, b'{"weight_map": {"a": 3}}', "tensor 'a' is sent to 3"),
        "index_of_a_list": (index, b'{"weight_map": []}', "has no weight_map"),
        "index_deep": (index, b"[" * 100_000, "index.json is not readable JSON"),
        "adapter": ("adapter_config.json", b"{}", "adapter_config.json: adapters"),
    }  # fmt: skip


def tokenizers() -> dict[str, tuple[str, bytes]]:
    """Name → (file, content): what only loading shows to be broken."""
    file = "tokenizer.json"
    return {
        "empty": (file, b""),
        "deep": (file, b"[" * 100_000),
        "no_model": (file, b'{"version": "1.0"}'),
        "model_of_text": (file, b'{"version": "1.0", "model": "BPE"}'),
        "merges_of_nobody": (file, b'{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": ["a b"]}}'),
        "bad_pattern": (file, b'{"version":"1.0","pre_tokenizer":{"type":"Split","pattern":{"Regex":"(("},'
                        b'"behavior":"Isolated","invert":false},"model":{"type":"BPE","vocab":{},"merges":[]}}'),
        "utf16": (file, "{}".encode("utf-16")),
        "length_of_text": ("tokenizer_config.json", b'{"tokenizer_class":"TokenizersBackend","model_max_length":"x"}'),
        "class_of_nobody": ("tokenizer_config.json", b'{"tokenizer_class": "os.system"}'),
        "end_of_text": ("generation_config.json", b'{"eos_token_id": ["a", 3]}'),
    }  # fmt: skip


def receipts() -> dict[str, bytes]:
    return {
        "empty": b"", "list": b"[]", "text": b'"x"', "deep": b"[" * 100_000, "utf16": "{}".encode("utf-16"),
        "number": b'{"bytes": ' + b"9" * 5000 + b"}", "other": b'{"bytes": 1, "header_sha256": "x"}', "bare": b"{}",
    }  # fmt: skip


def ggufs() -> dict[str, bytes]:
    head = b"GGUF" + struct.pack("<I", 3)
    return {
        "empty": b"",
        "tensors_without_end": head + struct.pack("<QQ", 2**64 - 1, 0),
        "fields_without_end": head + struct.pack("<QQ", 0, 2**64 - 1),
        "name_beyond_the_file": head + struct.pack("<QQQ", 1, 1, 2**63) + b"x",
        "shape_overflows": head + struct.pack("<QQQ1sIQQIQ", 1, 0, 1, b"a", 2, 2**33, 2**33, 0, 0),
        "pickle": PICKLE,
    }


def progress() -> dict[str, bytes]:
    """Each counts as nothing solved."""
    return {
        "empty": b"", "text": b'"bubble"', "number": b"1", "null": b"null", "object": b'{"a": 1}', "deep": b"[" * 10**5,
        "deep_in_bounds": b"[" * 90_000 + b"]" * 9_000, "nan": b"[NaN]", "numbers": b"[1, 2.5, true, null, [], {}]",
        "utf16": '["a"]'.encode("utf-16"), "latin1": b'["\xe9"]', "null_bytes": b"\0" * 100, "pickle": PICKLE,
        "strangers": json.dumps(["nobody", *MARKUP, "../../x", "\ud800"]).encode(), "endless_int": b"9" * 5000,
        "large": b"[" + b'"x",' * 10**6 + b'"x"]',
    }  # fmt: skip


def main(folder: Path):
    """Writes the corpus: a folder a reader."""
    groups = {
        "recordings": {name: content for name, (content, _) in recordings().items()},
        "steps": {name: content for name, (content, _) in steps().items()},
        "traces": {name: content for name, (content, _) in traces().items()},
        "safetensors": {f"{name}.safetensors": content for name, (content, _) in safetensors().items()},
        "folders": {f"{name}/{file}": content for name, (file, content, _) in folder_files().items()},
        "tokenizers": {f"{name}/{file}": content for name, (file, content) in tokenizers().items()},
        "receipts": receipts(), "ggufs": ggufs(), "progress": progress(),
    }  # fmt: skip
    for group, files in groups.items():
        for name, content in files.items():
            path = folder / group / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        print(f"{group}: {len(files)} files")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
