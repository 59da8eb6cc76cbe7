"""Any event that a capture may hold."""

from __future__ import annotations

import os

from hypothesis import strategies as st

from vhostuser.protocol.rules import Channel
from vhostuser.protocol.state import Role
from vhostuser.trace.event import Buffer, Event, FdNote, Message, Offered, Remark, Remarkable, Used
from vhostuser.trace.records import LARGEST

sizes = st.integers(0, LARGEST)
connections = st.integers(0, (1 << 32) - 1)
octets = st.binary(max_size=80)
paths = st.binary(max_size=40).map(os.fsdecode)
"""As /proc shows them: whatever bytes a file's name has."""
fds = st.builds(
    FdNote,
    sizes,
    st.text(),
    paths,
    sizes,
    sizes,
    sizes,
    st.sampled_from(["r", "w", "rw", ""]),
    st.lists(st.text()).map(tuple),
)
messages = st.builds(
    Message,
    *(sizes, connections, st.sampled_from(Channel), st.sampled_from(Role), octets),
    *(st.lists(fds, max_size=3).map(tuple), st.booleans(), st.text()),
)
buffers = st.builds(Buffer, sizes, sizes, st.booleans())
offers = st.builds(Offered, sizes, connections, sizes, sizes, st.lists(buffers, max_size=5).map(tuple), octets)
uses = st.builds(Used, sizes, connections, sizes, sizes, sizes, octets, octets, st.integers(-1, LARGEST))
remarks = st.builds(Remark, sizes, connections, st.sampled_from(Remarkable), st.text())
events: st.SearchStrategy[Event] = st.one_of(messages, offers, uses, remarks)
