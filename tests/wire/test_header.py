"""W01-W03, W05, W20-W22, W50, W51: a header that can't be trusted ends the channel that it came on, and nothing else."""

from __future__ import annotations

import os
import random
import resource
import socket
import struct

import pytest

from vhostuser import Disconnected, RemoteProtocolError
from vhostuser.protocol.numbers import NEED_REPLY, REPLY, VERSION, BackendRequest, FrontendRequest
from vhostuser.protocol.payloads import U64, Mmap
from vhostuser.testing import ServedRawFrontend, memory_file, message, raw_frontend
from vhostuser.testing.wire import ACK

from .conftest import Attacked
from .devices import Scripted

Q, B = FrontendRequest, BackendRequest
MAP = Mmap(0, 0, 0, 4096)
RANDOM = random.Random(50).randbytes(1 << 16)
WRONG = {
    **{f"w01_version_{flags}": message(Q.GET_STATUS, flags=flags) for flags in (0, 2, 3)},
    **{f"w02_bit_{bit}": message(Q.GET_STATUS, flags=VERSION | 1 << bit) for bit in range(4, 32)},
    **{f"w03_size_{size}": message(Q.GET_STATUS, size=size) for size in (4097, 1 << 16, 1 << 31, (1 << 32) - 1)},
    "w20_reply_flag": message(Q.SET_OWNER, flags=VERSION | REPLY),
    "w21_unsolicited": message(Q.GET_FEATURES, U64(0), flags=ACK),
    "w50_random": RANDOM,
    "w50_http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "w51_big_endian": struct.pack(">III", Q.GET_STATUS, VERSION, 0),
}
# The same on the back-end channel; W50's traffic of the other role is a well-formed request there, which W25 covers.
WRONG_REQUESTS = {**WRONG, "w20_reply_flag": message(B.SHMEM_MAP, MAP, flags=VERSION | REPLY)}


@pytest.mark.parametrize("data", WRONG.values(), ids=WRONG)
def test_backend_closes(raw: ServedRawFrontend, data: bytes) -> None:
    with memory_file() as file:
        raw.closes(data, fds=[file])
    raw.served.join()
    assert isinstance(raw.served.error, RemoteProtocolError)
    assert raw.served.backend.counters.closed == 1


@pytest.mark.parametrize("data", WRONG_REQUESTS.values(), ids=WRONG_REQUESTS)
def test_frontend_closes_the_backend_channel(attacked: Attacked, data: bytes) -> None:
    with memory_file() as file:
        attacked.raw.channel.closes(data, fds=[file])
    attacked.frontend.request(Q.GET_STATUS)
    assert attacked.frontend.counters.closed == 1
    assert not attacked.frontend.shm[0].mappings


REPLIES = {
    **{f"w01_version_{flags}": message(Q.GET_STATUS, U64(0), flags=flags | REPLY) for flags in (0, 2, 3)},
    **{f"w02_bit_{bit}": message(Q.GET_STATUS, U64(0), flags=ACK | 1 << bit) for bit in range(4, 32)},
    "w03_size": message(Q.GET_STATUS, flags=ACK, size=1 << 31),
    "w22_other_request": message(Q.GET_FEATURES, U64(0), flags=ACK),
    "w22_no_reply_flag": message(Q.GET_STATUS, U64(0)),
    "w22_need_reply": message(Q.GET_STATUS, U64(0), flags=ACK | NEED_REPLY),
    **{f"w22_size_{size}": message(Q.GET_STATUS, bytes(size), flags=ACK) for size in (0, 4, 7, 9, 16)},
    "w50_random": RANDOM,
    "w50_other_role": message(B.SHMEM_MAP, MAP),
    "w51_big_endian": struct.pack(">IIIQ", Q.GET_STATUS, ACK, 8, 0),
}


@pytest.mark.parametrize("data", REPLIES.values(), ids=REPLIES)
def test_frontend_takes_no_wrong_reply(attacked: Attacked, data: bytes) -> None:
    attacked.raw.raw_answers[Q.GET_STATUS] = data
    with pytest.raises(RemoteProtocolError):
        attacked.frontend.request(Q.GET_STATUS)
    with pytest.raises(Disconnected):
        attacked.frontend.request(Q.GET_STATUS)


@pytest.mark.parametrize("flags", [VERSION, ACK], ids=["request", "reply"])
def test_w21_frontend_ends_at_a_message_nobody_asked_for(attacked: Attacked, flags: int) -> None:
    attacked.raw.main.send(message(Q.GET_STATUS, U64(0), flags=flags))
    with pytest.raises(RemoteProtocolError):
        attacked.frontend.serve(5)


ANSWERS = {
    "other_request": message(B.SHMEM_UNMAP, U64(0), flags=ACK),
    "no_reply_flag": message(B.SHMEM_MAP, U64(0)),
    "need_reply": message(B.SHMEM_MAP, U64(0), flags=ACK | NEED_REPLY),
    **{f"size_{size}": message(B.SHMEM_MAP, bytes(size), flags=ACK) for size in (0, 4, 7, 9, 16)},
    "random": RANDOM[:4096],
}


@pytest.mark.parametrize("data", ANSWERS.values(), ids=ANSWERS)
def test_w22_backend_takes_no_wrong_acknowledgement(data: bytes) -> None:
    device = Scripted()
    with raw_frontend(device) as raw, memory_file() as file:
        requests = raw.start()
        requests.send(data)
        with pytest.raises((RemoteProtocolError, Disconnected)):
            device.shm[0].map(file, shm_offset=0, len=4096)
        with pytest.raises(Disconnected):
            device.shm[0].map(file, shm_offset=0, len=4096)
        assert not device.shm[0].mappings
        raw.alive()
        raw.open_requests()
        requests.close()


@pytest.mark.parametrize("size", [4097, (1 << 32) - 1])
def test_w03_allocates_nothing_for_a_size_that_is_only_said(raw: ServedRawFrontend, size: int) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    raw.closes(message(Q.GET_FEATURES, size=size))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1024


@pytest.mark.parametrize("count", range(1, 20))
def test_w05_backend_counts_a_message_that_ends_half_way(raw: ServedRawFrontend, count: int) -> None:
    raw.send(message(Q.SET_VRING_CALL, U64(0))[:count], fds=[raw.eventfd()])
    raw.end()
    raw.closes()
    raw.served.join()
    assert isinstance(raw.served.error, RemoteProtocolError)


def test_w05_backend_ends_in_peace_between_two_messages(raw: ServedRawFrontend) -> None:
    raw.end()
    raw.closes()
    raw.served.join()
    assert raw.served.error is None


@pytest.mark.parametrize("count", range(20))
def test_w05_frontend_lives_when_a_request_ends_half_way(attacked: Attacked, count: int) -> None:
    channel = attacked.raw.channel
    with memory_file() as file:
        if count:
            channel.socket.sendmsg(
                [message(B.SHMEM_MAP, MAP)[:count]],
                [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", file.fileno()))],
            )
        channel.end()
    channel.closes()
    attacked.frontend.request(Q.GET_STATUS)


@pytest.mark.parametrize("count", range(20))
def test_w05_frontend_raises_when_a_reply_ends_half_way(attacked: Attacked, count: int) -> None:
    def cut(frame: object) -> bytes:
        attacked.raw.main.socket.send(message(Q.GET_STATUS, U64(0), flags=ACK)[:count])
        attacked.raw.main.socket.shutdown(socket.SHUT_RDWR)
        return b""

    attacked.raw.raw_answers[Q.GET_STATUS] = cut
    with pytest.raises(RemoteProtocolError if count else Disconnected):
        attacked.frontend.request(Q.GET_STATUS)


def test_w50_backend_takes_no_requests_of_the_other_role(raw: ServedRawFrontend) -> None:
    with memory_file() as file:
        raw.refused(B.SHMEM_MAP, MAP, fds=[file])
        raw.refused(B.SHMEM_UNMAP, MAP)
    raw.alive()


def test_w50_no_traceback_is_logged(raw: ServedRawFrontend, caplog: pytest.LogCaptureFixture) -> None:
    raw.closes(os.urandom(65536))
    raw.served.join()
    assert not any(record.exc_info for record in caplog.records)
    assert "Traceback" not in caplog.text
