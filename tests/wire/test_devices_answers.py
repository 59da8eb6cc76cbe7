"""What a device makes of a request, and what its author is told of that."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from vhostuser import DescriptorChain, Device, Frontend, RequestFailed
from vhostuser.protocol.numbers import FrontendRequest as Q
from vhostuser.protocol.payloads import Config
from vhostuser.testing import joined, raw_frontend

from .devices import MIB, Scripted


class Answering(Device):
    """Writes a byte, and returns what its class says."""

    queue_sizes = (16,)
    answer: Any = None

    def process(self, queue: int, chain: DescriptorChain) -> Any:
        chain.write(b"x")
        return self.answer


def ask(frontend: Frontend, times: int) -> bytes:
    """What so many requests come to."""
    frontend.share_memory(MIB)
    queue = frontend.start_queue(0, size=16)
    return b"".join(queue.exchange(b"", 1) for _ in range(times))


@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("answer", [True, False, 0, "keep"])
def test_an_answer_that_means_nothing_is_told_once_and_the_request_given_back(
    answer: object, in_order: bool, caplog: pytest.LogCaptureFixture
) -> None:
    device = Answering()
    device.answer = answer
    with joined(device, in_order=in_order) as (frontend, _):
        assert ask(frontend, 3) == b"xxx"
    text = f"Answering.process returned {answer!r}, neither None nor KEEP: the request is given back"
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [text]


def test_none_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    with joined(Answering()) as (frontend, _):
        assert ask(frontend, 3) == b"xxx"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_look_for_the_end_of_the_configuration_space_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with joined(Scripted()) as (frontend, served):
        for size in range(17, 40):
            with pytest.raises(RequestFailed):
                frontend.config(0, size)
        assert served.backend.counters.refused == 23
    heard = [record.getMessage() for record in caplog.records if record.levelno >= logging.INFO]
    assert not [line for line in heard if "GET_CONFIG" in line]
    assert "refused: GET_CONFIG offset 0 + size 17 passes the configuration space's end 16" in caplog.messages


def test_what_is_not_logged_leaves_room_for_what_is(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with raw_frontend(Scripted()) as raw:
        raw.negotiate()
        for size in range(17, 40):
            raw.reply(Q.GET_CONFIG, Config(0, size, 0, bytes(size)))
        raw.refused(Q.SET_CONFIG, Config(0, 17, 0, bytes(17)))
        raw.reply(Q.GET_CONFIG, Config(0, 0, 0, b""))
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert [line.partition(" offset")[0] for line in said] == ["refused: SET_CONFIG", "refused: GET_CONFIG"]
