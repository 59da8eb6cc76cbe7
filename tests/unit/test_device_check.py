"""A device's mistakes are found by the back-end that gets it, and named."""

from __future__ import annotations

import logging
import mmap
import re
from array import array
from types import MappingProxyType
from typing import Any

import pytest

from vhostuser import Backend, DescriptorChain, Device, LocalProtocolError
from vhostuser.aio import AsyncBackend, AsyncDevice


class Plain(Device):
    """A device that nothing is wrong with."""

    queue_sizes = (16,)

    def process(self, queue: int, chain: DescriptorChain) -> None:
        """Nothing is done."""


class Waiting(AsyncDevice):
    """The same, of coroutines."""

    queue_sizes = (16,)


def kinds(attribute: str, value: object) -> tuple[Any, Any]:
    """A device of either kind with that attribute in its class."""
    return type("Gallery", (Plain,), {attribute: value})(), type("Gallery", (Waiting,), {attribute: value})()


WRONG_TYPES = [
    ("queue_sizes", 16),
    ("queue_sizes", None),
    ("queue_sizes", "16"),
    ("queue_sizes", (16, "16")),
    ("queue_sizes", (16.0,)),
    ("features", "VERSION_1"),
    ("features", (1, 2)),
    ("features", None),
    ("shared_memory", 4096),
    ("shared_memory", [(0, 4096)]),
    ("shared_memory", {"0": 4096}),
    ("shared_memory", {0: "4096"}),
    ("shared_memory", {0: 4096.0}),
    ("config", "text"),
    ("config", 16),
    ("config", [0, 1]),
    ("config", None),
    ("drain_timeout", "1"),
    ("in_order", "yes"),
    ("shared_objects", None),
]


@pytest.mark.parametrize(("attribute", "value"), WRONG_TYPES, ids=str)
def test_a_value_of_another_type_is_refused_by_name(attribute: str, value: object) -> None:
    text = rf"^Gallery\.{attribute} is {re.escape(repr(value))}, must be "
    device, waiting = kinds(attribute, value)
    with pytest.raises(TypeError, match=text):
        Backend(device)
    with pytest.raises(TypeError, match=text):
        AsyncBackend(waiting)


def test_spin_is_a_number() -> None:
    with pytest.raises(TypeError, match=r"^Gallery\.spin is '50', must be a number of microseconds"):
        Backend(kinds("spin", "50")[0])


@pytest.mark.parametrize("value", [(0,), (16, -1), (32769,), (16,) * 257, [1 << 20]], ids=lambda value: str(value)[:12])
def test_queues_that_can_not_be_are_refused_by_name(value: object) -> None:
    for make, device in zip((Backend, AsyncBackend), kinds("queue_sizes", value), strict=True):
        with pytest.raises(LocalProtocolError, match=r"^Gallery\.queue_sizes has -?\d+, must be ") as caught:
            make(device)
        assert caught.value.field == "queue_sizes"


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_features_that_no_mask_has_are_refused_by_name(value: int) -> None:
    with pytest.raises(LocalProtocolError, match=rf"^Gallery\.features has {value}, must be a mask of 64 bits"):
        Backend(kinds("features", value)[0])


@pytest.mark.parametrize("value", [{256: 4096}, {-1: 4096}, {0: 0}], ids=str)
def test_regions_that_can_not_be_are_refused_by_name(value: dict[int, int]) -> None:
    with pytest.raises(LocalProtocolError, match=r"^Gallery\.shared_memory has region "):
        Backend(kinds("shared_memory", value)[0])


def test_regions_that_a_property_gives_are_looked_at() -> None:
    with pytest.raises(TypeError, match=r"^Gallery\.shared_memory is 5, must be a mapping"):
        Backend(kinds("shared_memory", property(lambda device: 5))[0])


RIGHT = [
    ("queue_sizes", ()),
    ("queue_sizes", [1, 3, 100, 32768]),
    ("queue_sizes", (16,) * 256),
    ("features", 1 << 32 | 1 << 63),
    ("features", True),
    ("shared_memory", MappingProxyType({255: 4096})),
    ("config", bytearray(16)),
    ("config", memoryview(bytes(16))),
    ("config", array("B", bytes(16))),
    ("config", mmap.mmap(-1, 4096)),
    ("config", bytes(4096)),
    ("drain_timeout", 1),
    ("in_order", 1),
]


@pytest.mark.parametrize(
    ("attribute", "value"), RIGHT, ids=lambda value: value if isinstance(value, str) else type(value).__name__
)
def test_what_can_be_served_is_not_refused(attribute: str, value: object) -> None:
    device, waiting = kinds(attribute, value)
    Backend(device)
    AsyncBackend(waiting)


@pytest.mark.parametrize("attribute", ["config", "features", "queue_sizes"])
def test_a_property_is_not_asked_before_a_front_end_does(attribute: str) -> None:
    def raising(device: object) -> object:
        raise AssertionError("too early")

    Backend(kinds(attribute, property(raising))[0])


def test_what_an_object_says_counts_before_its_class() -> None:
    device = kinds("queue_sizes", 16)[0]
    device.queue_sizes = (16,)
    Backend(device)
    device.config = "text"
    with pytest.raises(TypeError, match=r"^Gallery\.config is 'text', must be bytes"):
        Backend(device)


# What is no device


@pytest.mark.parametrize(("make", "device"), [(Backend, Plain), (AsyncBackend, Waiting)], ids=["plain", "coroutines"])
def test_a_class_is_no_device(make: Any, device: type) -> None:
    name = device.__name__
    with pytest.raises(TypeError, match=rf"^{name} is a class, not a device: {name}\(\.\.\.\) makes one"):
        make(device)


@pytest.mark.parametrize(
    ("make", "device", "text"),
    [
        (Backend, Waiting(), "Waiting is no Device"),
        (AsyncBackend, Plain(), "Plain is no AsyncDevice"),
        (Backend, "gallery.sock", "str is no Device"),
        (AsyncBackend, None, "NoneType is no AsyncDevice"),
    ],
)
def test_another_kind_of_device_is_refused(make: Any, device: object, text: str) -> None:
    with pytest.raises(TypeError, match=f"^{text}, which this back-end serves"):
        make(device)


@pytest.mark.parametrize("method", ["process", "process_batch", "driver_ready", "write_config", "reset"])
def test_a_coroutine_of_a_plain_device_is_refused(method: str) -> None:
    async def coroutine(*_: object) -> None:
        """Nobody would await it."""

    text = rf"^Gallery\.{method} is a coroutine: use vhostuser\.aio\.AsyncDevice and AsyncBackend"
    with pytest.raises(TypeError, match=text):
        Backend(kinds(method, coroutine)[0])


# Names that are nearly right


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("queue_size", "queue_sizes"), ("feature", "features"), ("shared_memories", "shared_memory"), ("conifg", "config")],
)
def test_a_name_that_is_nearly_one_is_warned_of(caplog: pytest.LogCaptureFixture, wrong: str, meant: str) -> None:
    for kind, make in ((Device, Backend), (AsyncDevice, AsyncBackend)):
        caplog.clear()
        make(type("Gallery", (kind,), {wrong: ()})())
        assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
            f"Gallery.{wrong} means nothing: is {meant} meant?"
        ]


def test_a_name_beside_the_right_one_is_its_authors(caplog: pytest.LogCaptureFixture) -> None:
    members = {"queue_size": 16, "feature": 1, "features": 1, "queues_of": (), "configure": lambda device: None}
    Backend(type("Gallery", (Plain,), members)())
    assert not caplog.records
