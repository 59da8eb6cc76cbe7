"""Objects that back-ends share by UUID, over sockets: our two sides, and two front-ends with one table."""

from __future__ import annotations

import threading
from uuid import UUID, uuid4

import pytest

from vhostuser import Disconnected, LocalProtocolError, RequestFailed, SharedObjects, lending
from vhostuser.testing import DEADLINE, joined, memory_file

from .devices import Scripted
from .sharers import Sharer, during, sharing, waited_in

UNKNOWN = UUID(int=5)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is refused because the machine is busy."""
    monkeypatch.setattr(lending, "PATIENCE", DEADLINE)


def test_an_object_is_read_by_another_back_end() -> None:
    table = SharedObjects()
    with sharing(table) as owner, sharing(table) as other:
        uuid = owner.share(b"a picture")
        assert other.read(uuid) == b"a picture"
        assert (owner.device.asked, other.device.asked) == ([uuid], [])


def test_an_object_is_read_while_nobody_is_in_its_front_end() -> None:
    table = SharedObjects()
    with sharing(table, served=False) as owner, sharing(table) as other:
        uuid = during(lambda: owner.share(b"a picture"), owner.frontend)
        assert other.read(uuid) == b"a picture"


def test_an_object_is_read_where_one_thread_has_both_front_ends() -> None:
    table = SharedObjects()
    with sharing(table, served=False) as owner, sharing(table, served=False) as other:
        uuid = during(lambda: owner.share(b"a picture"), owner.frontend)
        assert during(lambda: other.read(uuid), other.frontend) == b"a picture"


def test_an_object_is_read_by_its_own_back_end() -> None:
    with sharing(SharedObjects()) as both:
        assert both.read(both.share(b"mine")) == b"mine"


def test_two_back_ends_read_each_others_objects_at_once() -> None:
    table = SharedObjects()
    with sharing(table) as one, sharing(table) as two:
        first, second = one.share(b"one"), two.share(b"two")
        found: list[bytes | None] = []
        ends = threading.Barrier(2)

        def read_often(reader: object, uuid: UUID) -> None:
            ends.wait(DEADLINE)
            found.extend(reader.read(uuid) for _ in range(20))  # type: ignore[attr-defined]

        threads = [threading.Thread(target=read_often, args=row) for row in ((one, second), (two, first))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(2 * DEADLINE)
        assert sorted(found, key=str) == [b"one"] * 20 + [b"two"] * 20


def test_a_lookup_of_what_nobody_has_finds_nothing() -> None:
    with sharing(SharedObjects()) as alone:
        assert alone.read(UNKNOWN) is None


def test_a_lookup_of_what_is_there_no_more_finds_nothing() -> None:
    table = SharedObjects()
    with sharing(table) as owner, sharing(table) as other:
        uuid = owner.share(b"gone soon")
        owner.device.objects.remove(uuid)
        assert other.read(uuid) is None
        assert owner.device.asked == []


def test_a_lookup_of_what_its_device_does_not_give_finds_nothing() -> None:
    table = SharedObjects()
    with sharing(table) as owner, sharing(table) as other:
        uuid = owner.share(b"kept")
        owner.device.files.pop(uuid).close()
        assert other.read(uuid) is None


def test_a_device_that_fails_at_an_object_fails_that_alone() -> None:
    table = SharedObjects()
    with sharing(table) as owner, sharing(table) as other:
        uuid, fine = owner.share(b"broken"), owner.share(b"fine")
        owner.device.files[uuid].close()
        assert other.read(uuid) is None
        for wrong in (lambda _: 1 // 0, lambda _: True):
            owner.device.give = wrong
            assert other.read(uuid) is None
        owner.device.give = None
        assert other.read(fine) == b"fine"


def test_an_object_that_is_there_is_not_added_again() -> None:
    table = SharedObjects()
    with sharing(table) as owner, sharing(table) as other:
        uuid = owner.share(b"first")
        for device in (owner.device, other.device):
            with pytest.raises(RequestFailed, match="SHARED_OBJECT_ADD"):
                device.objects.add(uuid)
        assert other.read(uuid) == b"first"


def test_an_object_is_withdrawn_by_its_owner_alone() -> None:
    table = SharedObjects()
    with sharing(table) as owner, sharing(table) as other:
        uuid = owner.share(b"first")
        for gone in (uuid, UNKNOWN):
            with pytest.raises(RequestFailed, match="SHARED_OBJECT_REMOVE"):
                other.device.objects.remove(gone)
        owner.device.objects.remove(uuid)
        with pytest.raises(RequestFailed, match="SHARED_OBJECT_REMOVE"):
            owner.device.objects.remove(uuid)
        other.device.files[uuid] = owner.device.files.pop(uuid)
        other.device.objects.add(uuid)
        assert owner.read(uuid) == b"first"


def test_the_table_has_a_quota() -> None:
    table = SharedObjects(quota=2)
    with sharing(table) as owner, sharing(table) as other:
        first = owner.share(b"1")
        other.share(b"2")
        with pytest.raises(RequestFailed, match="SHARED_OBJECT_ADD"):
            other.share(b"3")
        owner.device.objects.remove(first)
        assert owner.read(other.share(b"3")) == b"3"
        assert len(table) == 2


def test_the_objects_of_a_closed_front_end_are_gone() -> None:
    table = SharedObjects()
    with sharing(table) as other:
        with sharing(table) as owner:
            uuid = owner.share(b"short")
            assert uuid in table
        assert uuid not in table
        assert other.read(uuid) is None


def test_the_objects_of_a_back_end_that_is_gone_are_gone() -> None:
    table = SharedObjects()
    with sharing(table) as other, joined(Sharer(), shared_objects=table) as (frontend, served):
        with waited_in(frontend):
            uuid = uuid4()
            served.device.objects.add(uuid)
            served.stop()
            assert other.read(uuid) is None
        assert len(table) == 0


def test_a_user_asks_a_back_end_for_its_object() -> None:
    device = Sharer()
    with joined(device, shared_objects=SharedObjects()) as (frontend, _):
        assert frontend.shared_object(UNKNOWN) is None
        with memory_file(1) as mine:
            device.files[UNKNOWN] = mine
            fd = frontend.shared_object(UNKNOWN)
        assert fd is not None
        fd.close()
        assert device.asked == [UNKNOWN, UNKNOWN]


def test_who_calls_while_a_guest_is_there_waits_for_it() -> None:
    """A lookup may be under way in a front-end that nobody waits in: a call of its user's is no mistake then."""
    table = SharedObjects()
    begun, go_on = threading.Event(), threading.Event()
    with sharing(table, served=False) as owner, sharing(table) as other:
        uuid = during(lambda: owner.share(b"late"), owner.frontend)

        def slowly(_: UUID) -> None:
            begun.set()
            assert go_on.wait(DEADLINE)

        owner.device.give = slowly
        found: list[object] = []
        lookup = threading.Thread(target=lambda: found.append(other.read(uuid)))
        lookup.start()
        assert begun.wait(DEADLINE)
        caller = threading.Thread(target=lambda: found.append(owner.frontend.wait_for_any([], 0)))
        caller.start()
        go_on.set()
        caller.join(DEADLINE)
        lookup.join(DEADLINE)
        assert found == [None, None]


# Where it is not wanted


def test_a_front_end_without_a_table_does_not_agree_on_it() -> None:
    with joined(Sharer()) as (frontend, served):
        assert "SHARED_OBJECT" not in frontend.protocol_features
        with pytest.raises(LocalProtocolError, match="SHARED_OBJECT"):
            frontend.shared_object(UNKNOWN)
        for call in (served.device.objects.add, served.device.objects.remove, served.device.objects.lookup):
            with pytest.raises(LocalProtocolError, match="SHARED_OBJECT"):
                call(UNKNOWN)


def test_a_back_end_whose_device_has_none_does_not_offer_it() -> None:
    with joined(Scripted(), shared_objects=SharedObjects()) as (frontend, _):
        assert not frontend.offered[1] >> 18 & 1


def test_a_device_without_a_front_end_shares_nothing() -> None:
    with pytest.raises(Disconnected, match="no front-end"):
        Sharer().objects.add(UNKNOWN)
