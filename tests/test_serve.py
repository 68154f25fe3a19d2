"""The door for clients: answers, streams, errors, clients that go away; over HTTP, on this machine."""

import json
import socket
import sys
import threading
import time
from types import SimpleNamespace

import httpx
import pytest
from engine_tools import LIMIT_S, prompt_of, tiny
from hypothesis import given
from hypothesis import strategies as st

from disagg import Config, Engine, Request
from disagg.plan.errors import EngineError, PackageError
from disagg.serve import serve

for _package in ("starlette", "uvicorn", "pydantic", "prometheus_client"):
    pytest.importorskip(_package, reason="without the extra `serve`")

from prometheus_client.parser import text_string_to_metric_families  # noqa: E402

from disagg.serve import answer, bodies, door  # noqa: E402
from disagg.serve.answer import Stops  # noqa: E402

PROMPT = prompt_of(20)


@pytest.fixture(scope="module")
def stand():
    """An engine, its server, and a client that knows the token."""
    config = Config.preset("streamed", model="tiny", decode_blocks=64)
    with Engine(config, tiny()) as engine, serve(engine) as server:
        key = {"Authorization": f"Bearer {server.token}"}
        with httpx.Client(base_url=server.url, headers=key, timeout=LIMIT_S) as client:
            yield SimpleNamespace(engine=engine, server=server, client=client)
            assert quiet(engine) and not server.door._open


def quiet(engine) -> bool:
    """Whether all requests end soon, and no block is held."""
    return comes(lambda: engine.idle and not any(pool.held for pool in engine.controller.state.pools()))


def comes(true) -> bool:
    until = time.monotonic() + LIMIT_S
    while not (found := true()) and time.monotonic() < until:
        time.sleep(0.005)
    return found


def ask(stand, path="/completions", **body):
    return stand.client.post(path, json={"prompt": PROMPT, "max_tokens": 12, "temperature": 0, **body})


def events(stand, **body) -> list:
    with stand.client.stream(
        "POST", "/completions", json={"prompt": PROMPT, "temperature": 0, **body, "stream": True}
    ) as got:
        assert got.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in got.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    return list(map(json.loads, lines))


def metrics(stand) -> dict:
    text = stand.client.get(stand.server.url.removesuffix("/v1") + "/metrics").text
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


# ---- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [PROMPT, "abc", ["abc"]], ids=str)
def test_an_answer_is_the_engines_whole_or_streamed(stand, prompt):
    text = prompt if isinstance(prompt, str) else prompt[0]
    ids = PROMPT if prompt is PROMPT else stand.engine.model.encode(text, chat=False)
    [result] = stand.engine.serve([Request(ids, 12)]).results
    whole = ask(stand, prompt=prompt).json()
    assert whole["choices"][0]["text"] == result.text and whole["object"] == "text_completion"
    counts = {"prompt_tokens": len(ids), "completion_tokens": len(result.token_ids)}
    assert whole["usage"] == {**counts, "total_tokens": sum(counts.values())}
    *pieces, last, usage = events(stand, prompt=prompt, max_tokens=12, stream_options={"include_usage": True})
    assert "".join(piece["choices"][0]["text"] for piece in pieces) == result.text
    assert {piece["choices"][0]["finish_reason"] for piece in pieces} == {None}
    assert last["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert usage["usage"] == whole["usage"] and usage["choices"] == []


def test_sampling_follows_its_seed(stand):
    def drawn(**how):
        return ask(stand, temperature=1, max_tokens=24, ignore_eos=True, **how).json()["choices"][0]["text"]

    assert drawn(seed=7) == drawn(seed=7) and len({drawn(), drawn(), drawn()}) > 1


def test_the_end_of_an_answer_has_openais_word(stand):
    assert ask(stand, max_tokens=3, ignore_eos=True).json()["choices"][0]["finish_reason"] == "length"
    text = ask(stand, max_tokens=40, ignore_eos=True).json()["choices"][0]["text"]
    stop = text[5:7]
    found = ask(stand, max_tokens=40, ignore_eos=True, stop=[stop, "never seen"]).json()
    assert found["choices"][0] == {
        "index": 0, "text": text[: text.index(stop)], "logprobs": None, "finish_reason": "stop"
    }  # fmt: skip
    streamed = events(stand, max_tokens=40, ignore_eos=True, stop=stop)
    assert "".join(piece["choices"][0]["text"] for piece in streamed) == text[: text.index(stop)]
    assert streamed[-1]["choices"][0]["finish_reason"] == "stop"


@given(st.lists(st.text("ab", max_size=4), max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=4))
def test_text_goes_out_up_to_the_first_stop_however_it_is_cut(pieces, stops):
    filtered, whole = Stops(stops), "".join(pieces)
    out = "".join([*map(filtered.push, pieces), filtered.flush()])
    found = [(whole.find(stop) + len(stop), whole.find(stop)) for stop in stops if stop in whole]
    _, cut = min(found, default=(0, len(whole)))  # the first that is complete
    assert filtered.met == bool(found) and out == whole[:cut]


def test_a_conversation_is_answered_where_the_model_has_a_template(stand):
    refused = stand.client.post("/chat/completions", json={"messages": [{"role": "user", "content": "hi"}]})
    assert refused.status_code == 400 and "template" in refused.json()["error"]["message"]
    text = stand.engine.model.text
    with pytest.MonkeyPatch.context() as patched:
        said = lambda turns: list("".join(f"{role}:{words};" for role, words in turns).encode())  # noqa: E731
        patched.setattr(type(text), "conversation", lambda self, turns: said(turns), raising=False)
        turns = [
            {"role": "developer", "content": "short"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        ]
        body = {"messages": turns, "max_completion_tokens": 6, "temperature": 0}
        whole = stand.client.post("/chat/completions", json=body).json()
        [result] = stand.engine.serve([Request(said([("system", "short"), ("user", "ab")]), 6)]).results
        assert whole["choices"][0]["message"] == {"role": "assistant", "content": result.text}
        assert whole["object"] == "chat.completion"
        with stand.client.stream("POST", "/chat/completions", json={**body, "stream": True}) as got:
            lines = [line.removeprefix("data: ") for line in got.iter_lines() if line][:-1]
        deltas = [json.loads(line)["choices"][0]["delta"] for line in lines]
        assert deltas[0] == {"role": "assistant", "content": ""}
        assert "".join(delta.get("content", "") for delta in deltas) == result.text


def test_the_client_of_openai_gets_along_with_it(stand):
    openai = pytest.importorskip("openai", reason="without OpenAI's client")
    client = openai.OpenAI(base_url=stand.server.url, api_key=stand.server.token)
    assert [card.id for card in client.models.list()] == ["tiny"]
    text = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=9, temperature=0).choices[0].text
    stream = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=9, temperature=0, stream=True)
    assert text and "".join(piece.choices[0].text for piece in stream) == text
    with pytest.raises(openai.BadRequestError, match="n is not supported"):
        client.completions.create(model="tiny", prompt=PROMPT, n=2)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=stand.server.url, api_key="other").models.list()


# ---- what can't be served --------------------------------------------------------------------------------------------

BAD = {
    "no JSON": (b"{", "JSON"),
    "no object": (b"[1]", "object"),
    "nothing": (b"", "JSON"),
    "no UTF-8": (b"\xff\xfe", ""),
    "too deep": (b'{"prompt": ' + b"[" * 100_000, ""),
    "no prompt": ({}, "prompt"),
    "empty": ({"prompt": ""}, "prompt is empty"),
    "no ids": ({"prompt": []}, "prompt is empty"),
    "ids and texts": ({"prompt": [1, "a"]}, "prompt"),
    "two texts": ({"prompt": ["a", "b"]}, "2 prompts"),
    "two lists": ({"prompt": [[1], [2]]}, "2 prompts"),
    "a list of nothing": (b'{"prompt": [' + b"{}," * 40_000 + b"{}]}", "prompt"),
    "turns of nothing": (b'{"prompt": "a", "stop": [' + b"{}," * 40_000 + b"{}]}", "stop"),
    "0.0 is not False": ({"prompt": "a", "logprobs": 0.0}, "logprobs"),
    "a call": ({"prompt": "a", "function_call": "auto"}, "function_call"),
    "a number as text": ({"prompt": "a", "max_tokens": "7"}, "max_tokens"),
    "none wanted": ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
    "too many wanted": ({"prompt": "a", "max_tokens": 10**30}, ""),
    "over the context": ({"prompt": "a", "max_tokens": 100_000}, "context"),
    "an id too high": ({"prompt": [10**6]}, ""),
    "too hot": ({"prompt": "a", "temperature": 1e9}, "temperature"),
    "NaN": (b'{"prompt": "a", "top_p": NaN}', "top_p"),
    "two answers": ({"prompt": "a", "n": 2}, "n is not supported"),
    "True is no 1": ({"prompt": "a", "n": True}, "n is not supported"),
    "tools": ({"prompt": "a", "tools": [{}]}, "tools"),
    "an empty stop": ({"prompt": "a", "stop": [""]}, "stop"),
    "many stops": ({"prompt": "a", "stop": ["a"] * 5}, "stop"),
    "half a letter": (b'{"prompt": "\\ud800"}', ""),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_body_is_refused_in_words_and_ends_nothing_else(stand, name):
    body, words = BAD[name]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    found = stand.client.post("/completions", content=content)
    assert found.status_code == 400 and words in found.json()["error"]["message"], found.text
    assert ask(stand).status_code == 200


def test_fields_without_a_meaning_are_named_and_neutral_ones_are_fine(stand):
    found = ask(stand, n=1, frequency_penalty=0.0, logit_bias={}, user="me", colour="red")
    assert found.status_code == 200 and found.headers["x-ignored-fields"] == "colour, user"


def test_odd_names_of_fields_fit_into_a_header(stand):
    odd = {"日本": 1, "a\nb": 1, "a\r\nX-Evil: 1": 1, " a ": 1, "x" * 2000: 1, "fine": 1}
    for stream in (False, True):
        with stand.client.stream("POST", "/completions", json={"prompt": "a", "stream": stream, **odd}) as found:
            assert found.status_code == 200 and found.read() and "x-evil" not in found.headers
            assert found.headers["x-ignored-fields"] == "fine, 5 more"
    many = ask(stand, **{f"field{number}": 1 for number in range(500)}).headers["x-ignored-fields"]
    assert many.endswith(", 480 more") and len(many) < 500


def test_nothing_is_what_a_field_left_out_is(stand):
    nothing = dict.fromkeys(("stream", "ignore_eos", "stop", "seed", "top_p", "model", "stream_options", "n"))
    assert ask(stand, **nothing).json()["choices"] == ask(stand).json()["choices"]
    assert ask(stand, max_tokens=None).json()["usage"]["completion_tokens"] <= 16
    assert ask(stand, prompt=[PROMPT]).json()["choices"] == ask(stand).json()["choices"]


def test_an_answer_without_a_length_fits_a_small_pool(monkeypatch):
    with Engine(Config.preset("streamed", model="tiny", decode_blocks=4), tiny()) as engine, serve(engine) as server:
        monkeypatch.setattr(bodies, "COMPLETION_TOKENS", 10_000)
        found = httpx.post(
            server.url + "/completions",
            json={"prompt": PROMPT, "ignore_eos": True, "temperature": 0},
            headers={"Authorization": f"bearer {server.token}"},
            timeout=LIMIT_S,
        )
        assert found.json()["usage"]["total_tokens"] == 4 * engine.config.block_size


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_of_100_mb_is_not_read_to_its_end(stand, declared):
    piece, sent = b"x" * (1 << 20), []

    def pieces():
        for _ in range(100):
            sent.append(1)
            yield piece

    headers = {"Content-Length": str(100 << 20)} if declared else {}
    try:
        found = stand.client.post("/completions", content=pieces(), headers=headers)
        assert found.status_code == 413 and "more than" in found.json()["error"]["message"]
    except httpx.TransportError:  # it closed the connection while the client was sending
        assert len(sent) < 100
    assert ask(stand).status_code == 200


@pytest.mark.parametrize("path", ["/completions", "/chat/completions", "/models", "/../metrics", "/../health"])
@pytest.mark.parametrize("key", ["", "Bearer", "Bearer wrong", "Basic abc", "TOKEN", "Bearer \xe9"])
def test_nobody_gets_in_without_the_token(stand, path, key):
    key = key.replace("TOKEN", stand.server.token)  # without a scheme
    headers = {"Authorization": key.encode("latin-1")} if key else {}
    method = "POST" if "completions" in path else "GET"
    found = httpx.request(method, stand.server.url + path, headers=headers, timeout=LIMIT_S)
    assert found.status_code == 401 and "token" in found.json()["error"]["message"]


def test_another_name_a_wrong_model_and_a_wrong_path_are_refused(stand):
    assert stand.client.get("/models", headers={"Host": "evil.example"}).status_code == 400
    other = ask(stand, model="gpt-9")
    assert other.status_code == 404 and "tiny" in other.json()["error"]["message"]
    assert stand.client.get("/models/tiny").json()["id"] == "tiny"
    assert stand.client.get("/models/other").status_code == 404
    assert stand.client.get("/nothing").json()["error"]["message"] == "Not Found"
    assert stand.client.get("/completions").status_code == 405


def test_too_many_open_requests_are_asked_to_come_again(stand, monkeypatch):
    monkeypatch.setattr(door, "MOST_OPEN", 2)
    seen, found = [], []

    def ask_too():
        found.append(ask(stand, max_tokens=60, ignore_eos=True))
        seen.append(len(stand.server.door._open))

    clients = [threading.Thread(target=ask_too) for _ in range(8)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    refused = [answer for answer in found if answer.status_code == 429]
    assert refused and max(seen) <= 2 and {answer.headers["retry-after"] for answer in refused} == {"1"}
    assert ask(stand).status_code == 200, "a place is given back"


def test_a_request_whose_reader_cannot_start_ends(stand, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(answer.threading, "Thread", lambda **how: 1 / 0)
        assert ask(stand, max_tokens=400).status_code == 500
    assert quiet(stand.engine) and stand.server.door._taken == 0


# ---- clients that go, engines that end -------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_ends_its_request(stand, stream):
    before, url = metrics(stand).get(("disagg_requests_total", "cancelled"), 0), httpx.URL(stand.server.url)
    body = json.dumps({"prompt": PROMPT, "max_tokens": 400, "ignore_eos": True, "stream": stream}).encode()
    with socket.create_connection((url.host, url.port)) as line:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {url.host}\r\nAuthorization: Bearer {stand.server.token}\r\n"
        line.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        if stream:
            assert line.recv(1000)
        assert comes(lambda: stand.server.door._open)
        [answer] = stand.server.door._open
        assert comes(lambda: answer.result.token_ids)
    assert quiet(stand.engine) and len(answer.result.token_ids) < 400
    assert comes(lambda: metrics(stand).get(("disagg_requests_total", "cancelled"), 0) == before + 1)


def test_metrics_count_what_was_served(stand):
    before = metrics(stand)
    usage = ask(stand).json()["usage"]
    after = metrics(stand)
    grown = {key: value - before.get(key, 0) for key, value in after.items()}
    assert grown["disagg_prompt_tokens_total",] == usage["prompt_tokens"]
    assert grown["disagg_generation_tokens_total",] == usage["completion_tokens"]
    assert grown["disagg_time_to_first_token_seconds_count",] == 1
    assert grown["disagg_inter_token_latency_seconds_count",] == usage["completion_tokens"] - 1
    assert after["disagg_engine_up",] == 1 and after["disagg_kv_blocks", "decode 0", "capacity"] == 64


def test_closing_the_server_ends_what_is_open_and_leaves_the_engine():
    with Engine(Config.preset("streamed", model="tiny"), tiny()) as engine:
        server = serve(engine, token="word")
        said = []

        def read():
            body = {"prompt": PROMPT, "max_tokens": 400, "ignore_eos": True, "stream": True}
            key = {"Authorization": "Bearer word"}
            with httpx.stream("POST", server.url + "/completions", json=body, headers=key, timeout=LIMIT_S) as got:
                said.extend(line for line in got.iter_lines() if line)

        reader = threading.Thread(target=read)
        reader.start()
        assert comes(lambda: server.door._open)
        server.close()
        reader.join(LIMIT_S)
        assert "cancelled" in said[-2] and said[-1] == "data: [DONE]"
        assert not server._thread.is_alive()
        assert quiet(engine) and engine.serve([Request(PROMPT, 4)]).results[0].token_ids
        with pytest.raises(OSError):
            socket.create_connection((httpx.URL(server.url).host, httpx.URL(server.url).port), 1)


def test_health_is_the_engines(stand, monkeypatch):
    at = stand.server.url.removesuffix("/v1") + "/health"
    assert stand.client.get(at).status_code == 200
    monkeypatch.setattr(stand.engine._core, "broken", "a test said so")
    found = stand.client.get(at)
    assert found.status_code == 503 and "a test said so" in found.json()["error"]["message"]


def test_an_engine_that_was_closed_says_so():
    with Engine(Config.preset("streamed", model="tiny"), tiny()) as engine, serve(engine, token="word") as server:
        engine.close()
        key = {"Authorization": "Bearer word"}
        found = httpx.post(server.url + "/completions", json={"prompt": PROMPT}, headers=key, timeout=LIMIT_S)
        assert found.status_code == 503 and "closed" in found.json()["error"]["message"]
        at = server.url.removesuffix("/v1")
        assert httpx.get(at + "/health", headers=key, timeout=LIMIT_S).status_code == 503
        assert "disagg_engine_up 0.0" in httpx.get(at + "/metrics", headers=key, timeout=LIMIT_S).text


def test_a_port_that_is_taken_and_a_token_that_is_none_are_refused(stand):
    with pytest.raises(EngineError, match="can't be opened"):
        serve(stand.engine, port=httpx.URL(stand.server.url).port)
    with pytest.raises(EngineError, match="can't be opened"):
        serve(stand.engine, port=10**6)
    for origins in ("https://*.x", ["*"], ["chat.example"], [""]):
        with pytest.raises(EngineError, match="origins"):
            serve(stand.engine, origins=origins)
    for token in ("", "two words", "é"):
        with pytest.raises(EngineError, match="one word"):
            serve(stand.engine, token=token)


def test_without_the_extra_it_says_how_to_get_it(stand, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "disagg.serve.server")
    with pytest.raises(PackageError, match=r"uvicorn.*\[serve\]"):
        serve(stand.engine)
