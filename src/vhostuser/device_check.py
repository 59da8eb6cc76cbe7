"""What is wrong with a device is said when a back-end gets it, by class, attribute and value.

A property is not looked at: a device may know only later what to say.
"""

from __future__ import annotations

import difflib
import inspect
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Final

from .device import Device
from .errors import LocalProtocolError
from .protocol.numbers import MAX_QUEUE_SIZE, MAX_QUEUES, MAX_SHMIDS
from .protocol.payloads import ShmemConfig
from .protocol.regions import check_sizes

CALLED: Final = ("process", "process_batch", "compiled", "takes", "driver_ready", "reset", "shared_object", "write_config")
"""The methods of a Device that nobody would await."""
FEATURE_BITS: Final = 64
LIKE_ENOUGH: Final = 0.8
NOTHING: Final = object()
STATED: Final = ("virtio_id", "queue_sizes", "features", "shared_memory", "config", "drain_timeout", "in_order")
"""What an author says of a device, and may mistype."""


def check_device(device: Device) -> None:
    """TypeError or LocalProtocolError for what can't be served."""
    check_kind(device, Device)
    for name in CALLED:
        if inspect.iscoroutinefunction(getattr(device, name)):
            text = f"{_name(device)}.{name} is a coroutine: use vhostuser.aio.AsyncDevice and AsyncBackend"
            raise TypeError(text)
    check_attributes(device)


def check_kind(device: object, kind: type) -> None:
    """TypeError for a class in place of its object, and for another kind of device."""
    if isinstance(device, type):
        raise TypeError(f"{device.__name__} is a class, not a device: {device.__name__}(...) makes one")
    if not isinstance(device, kind):
        raise TypeError(f"{_name(device)} is no {kind.__name__}, which this back-end serves")


def check_attributes(device: object) -> None:
    """TypeError or LocalProtocolError for what a device says of itself and can't be."""
    for attribute, (holds, wanted) in _TYPES.items():
        value = inspect.getattr_static(device, attribute, NOTHING)
        if value is not NOTHING and not hasattr(value, "__get__") and not holds(value):
            raise TypeError(f"{_name(device)}.{attribute} is {reprlib.repr(value)}, must be {wanted}")
    features, sizes = (inspect.getattr_static(device, attribute, NOTHING) for attribute in ("features", "queue_sizes"))
    if isinstance(features, int) and not 0 <= features < 1 << FEATURE_BITS:
        raise _wrong(device, "features", features, f"a mask of {FEATURE_BITS} bits", FEATURE_BITS)
    if isinstance(sizes, Sequence):
        _check_queues(device, sizes)


def checked_regions(device: Device) -> dict[int, int]:
    """The device's regions; LocalProtocolError if the protocol can't describe them."""
    regions = device.shared_memory
    if not _is_regions(regions):
        raise TypeError(f"{_name(device)}.shared_memory is {reprlib.repr(regions)}, must be {_TYPES['shared_memory'][1]}")
    for shmid, size in regions.items():
        if not 0 <= shmid < MAX_SHMIDS or size <= 0:
            text = f"region {shmid} of {size} bytes: a shmid is below {MAX_SHMIDS}, a size above 0"
            text = f"{_name(device)}.shared_memory has {text}"
            raise LocalProtocolError(text, request="GET_SHMEM_CONFIG", field="shmid", value=shmid, limit=MAX_SHMIDS)
    config = ShmemConfig(dict(regions))
    check_sizes(config, LocalProtocolError)
    return config.sizes


def mistyped(device: object, kind: type) -> Iterator[str]:
    """A warning for each attribute of a device's class that has nearly the name of one that nothing is said of."""
    silent = [name for name in STATED if inspect.getattr_static(device, name) is inspect.getattr_static(kind, name)]
    for owner in takewhile(lambda owner: owner is not kind, type(device).__mro__):
        for name, value in vars(owner).items():
            if name not in vars(kind) and not callable(value) and not hasattr(value, "__get__"):
                for meant in difflib.get_close_matches(name, silent, 1, LIKE_ENOUGH):
                    yield f"{owner.__name__}.{name} means nothing: is {meant} meant?"


def _check_queues(device: object, sizes: Sequence[int]) -> None:
    if len(sizes) > MAX_QUEUES:
        raise _wrong(device, "queue_sizes", len(sizes), f"at most {MAX_QUEUES} queues", MAX_QUEUES)
    for size in sizes:
        if not 0 < size <= MAX_QUEUE_SIZE:
            raise _wrong(device, "queue_sizes", size, f"sizes between 1 and {MAX_QUEUE_SIZE}", MAX_QUEUE_SIZE)


def _wrong(device: object, attribute: str, value: int, wanted: str, limit: int) -> LocalProtocolError:
    text = f"{_name(device)}.{attribute} has {value}, must be {wanted}"
    return LocalProtocolError(text, field=attribute, value=value, limit=limit)


def _name(device: object) -> str:
    return type(device).__name__


def _is_int(value: object) -> bool:
    return isinstance(value, int)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _is_sizes(value: object) -> bool:
    return isinstance(value, Sequence) and all(map(_is_int, value))


def _is_regions(value: object) -> bool:
    return isinstance(value, Mapping) and all(map(_is_int, (*value.keys(), *value.values())))


def _is_bytes(value: object) -> bool:
    try:
        memoryview(value).release()  # type: ignore[arg-type]  # whether it is a buffer is the question
    except TypeError:
        return False
    return True


_TYPES: Final[dict[str, tuple[Callable[[object], bool], str]]] = {
    "queue_sizes": (_is_sizes, "a sequence of ints, one a queue"),
    "features": (_is_int, "an int, a mask of bits"),
    "shared_memory": (_is_regions, "a mapping of shmids to sizes, both ints"),
    "config": (_is_bytes, "bytes"),
    "drain_timeout": (_is_number, "a number of seconds"),
    "spin": (_is_number, "a number of microseconds"),
    "in_order": (_is_int, "a bool"),
    "shared_objects": (_is_int, "a bool"),
}
"""What each attribute must be."""
