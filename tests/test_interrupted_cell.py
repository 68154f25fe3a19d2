"""Interrupting a cell that serves: it says so, keeps its run, and the cells behind it do not run."""

import threading
import time

import pytest
from jupyter_client.manager import start_new_kernel

from disagg import Config, Engine, Request
from disagg.show import live

START = """
from disagg import Config, Engine, Request
from disagg.show import watch
engine = Engine(Config.preset("streamed", model="tiny", link=3000))
"""
ASKED = "[Request([5] * 20, 9)] * 3"


@pytest.fixture
def kernel():
    manager, client = start_new_kernel()
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def printed(client, number: str, until: str) -> str:
    """What a cell prints, up to some words of it."""
    said = ""
    while until not in said:
        message = client.get_iopub_msg(timeout=60)
        if message["parent_header"].get("msg_id") == number and message["msg_type"] == "stream":
            said += message["content"]["text"]
    return said


def replied(client, number: str) -> dict:
    """The answer to this request: on a slow start the kernel is asked more than once who it is, and answers all."""
    while (message := client.get_shell_msg(timeout=60))["parent_header"].get("msg_id") != number:
        assert message["msg_type"] == "kernel_info_reply", message
    return message["content"]


@pytest.mark.parametrize("call", [f"engine.serve({ASKED})", f"watch(engine, {ASKED})"])
def test_an_interrupted_serve_says_so_keeps_its_run_and_stops_run_all(kernel, call):
    manager, client = kernel
    client.kernel_info()  # one answer more than anybody waits for, as on a slow start
    start = client.execute(START)
    first = client.execute(f"print('begun')\nrun = {call}\nprint('rest of the cell', run.interrupted)")
    behind = client.execute("print('the next cell')")
    printed(client, first, "begun")
    time.sleep(1.5)  # the first copy takes longer
    manager.interrupt_kernel()
    said = printed(client, first, "rest of the cell True")
    assert "Interrupted: 3 of 3 requests were cancelled; the run holds what there was." in said
    answers = [replied(client, number) for number in (start, first, behind)]
    assert [answer["status"] for answer in answers] == ["ok", "error", "aborted"]
    assert answers[1]["ename"] == "KeyboardInterrupt"
    again = client.execute("print(engine.serve([Request([5], 2)], record=False))")
    assert replied(client, again)["status"] == "ok"


def test_an_interrupt_before_the_view_is_ready_begins_nothing(monkeypatch):
    def interrupted(words):
        raise KeyboardInterrupt

    monkeypatch.setattr(live, "Screen", interrupted)
    with Engine(Config.preset("streamed", model="tiny", link=3000)) as engine:
        with pytest.raises(KeyboardInterrupt):
            live.watch(engine, [Request([5] * 20, 9)])
        assert "disagg serving" not in {thread.name for thread in threading.enumerate()}
