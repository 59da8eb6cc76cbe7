"""Test a back-end, a front-end or a device without a VM: joined pairs, raw ends that send anything, counters of leaks.

Three lines make a test of a malformed request:

    with raw_frontend(MyDevice()) as raw:
        raw.negotiate()
        raw.refused(FrontendRequest.SET_VRING_NUM, VringState(0xFFFF, 256))

and two one of a device, without any connection:

    MyDevice().process(0, chain := chain_of(b"ping", room=[4]))
    assert answer_of(chain) == b"pong"

`MockDriver` is a driver whose requests may be wrong. Every wait has a deadline; what was not as expected is
an AssertionError.
"""

from __future__ import annotations

from .files import memory_file, message, read_only, sparse_file
from .mock_driver import MockDriver, answer_of, chain_of
from .pair import Joined, Served, ServedRawFrontend, joined, listening, raw_frontend
from .process import BackendProcess
from .raw_backend import RawBackend
from .raw_frontend import RawFrontend
from .usage import Usage, is_listened_on, leaving_nothing, region_permissions, usage, wait_until
from .wire import DEADLINE, Wire

__all__ = [
    "BackendProcess",
    "DEADLINE",
    "Joined",
    "MockDriver",
    "RawBackend",
    "RawFrontend",
    "Served",
    "ServedRawFrontend",
    "Usage",
    "Wire",
    "answer_of",
    "chain_of",
    "is_listened_on",
    "joined",
    "leaving_nothing",
    "listening",
    "memory_file",
    "message",
    "raw_frontend",
    "read_only",
    "region_permissions",
    "sparse_file",
    "usage",
    "wait_until",
]
