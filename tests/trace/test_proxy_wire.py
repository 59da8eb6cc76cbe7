"""W01-W38 through the proxy: the whole of those tests, with a proxy in each of their connections.

What they expect of each side is what they expect without one, so it is as if it were not there; and it lives to the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import FunctionType

import pytest

from tests.wire import test_agreement, test_every_request, test_header, test_pieces
from tests.wire.conftest import attacked, nothing_stays, raw
from vhostuser.trace.event import Message, Remark, Remarkable

from .between import Between, kit_through_proxies

__all__ = ["attacked", "nothing_stays", "raw"]
IN_THIS_THREAD = {"test_w12_an_fd_behind_the_first_byte_of_a_message_ends_the_channel"}
"""Serves what it has just sent, with no time for it to pass: test_proxy_messages has the case."""

MOST = 6
"""Values of a parameter that are tried with a proxy, from the first to the last: to it many of them are alike."""


def with_fewer_values(test: Callable[..., None]) -> Callable[..., None]:
    """The same test with fewer values of each parameter."""
    twin = FunctionType(test.__code__, test.__globals__, test.__name__, test.__defaults__, test.__closure__)
    twin.__dict__["pytestmark"] = [thinned(mark) for mark in getattr(test, "pytestmark", [])]
    return twin


def thinned(mark: pytest.Mark) -> pytest.Mark:
    if mark.name != "parametrize":
        return mark
    names, values, *_ = mark.args
    values = [*values]
    kept = sorted({round(at * (len(values) - 1) / (MOST - 1)) for at in range(MOST)})
    ids = mark.kwargs.get("ids")
    chosen = ids if ids is None or callable(ids) else [[*ids][at] for at in kept]
    return pytest.mark.parametrize(names, [values[at] for at in kept], ids=chosen).mark


globals().update(
    {
        name: with_fewer_values(test)
        for module in (test_agreement, test_every_request, test_header, test_pieces)
        for name, test in vars(module).items()
        if name.startswith("test_w") or (name.startswith("test_") and module is test_header)
        if name not in IN_THIS_THREAD
    }
)


@pytest.fixture(autouse=True)
def through_proxies(nothing_stays: None) -> Iterator[None]:
    """Each connection goes through a proxy, which tells all of it and ends by itself."""
    with kit_through_proxies() as made:
        yield
    for between in made:
        check(between)


def check(between: Between) -> None:
    """What was told begins and ends as it should, and is not more than came."""
    first, *_, last = between.events
    assert isinstance(first, Remark)
    assert first.about is Remarkable.OPENED
    assert isinstance(last, Remark)
    assert last.about is Remarkable.CLOSED
    assert between.remarks(Remarkable.LOST) == [] or "back-end channel is not seen" in between.remarks(Remarkable.LOST)[0]
    whole = [event for event in between.events if isinstance(event, Message) and event.whole]
    assert between.proxy.messages == len(whole)
