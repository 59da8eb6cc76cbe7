"""A plug-in of pytest: the rules of `vhu check` as tests of a back-end or a front-end of your own, a test a rule.

Load it (`-p vhostuser.testing.conformance`, in `addopts` best), say what the back-end's command is (`--vhost-user-run`, or
`vhost_user_run` among pytest's settings), or the front-end's (`--vhost-user-front-run`), and write a test file of one line:

    from vhostuser.testing.conformance import test_back_end_keeps     # or test_front_end_keeps

A back-end that no command starts is what a fixture of your own returns, of scope module or session; so is a front-end:

    @pytest.fixture(scope="module")
    def back_end_peer():
        with listening(MyDevice()) as (path, _):
            yield Listening(path)

    @pytest.fixture(scope="module")
    def front_end_peer():
        with Called(my_front_end) as peer:      # a function of a path to connect to; or Awaited(path), or Launched(CMD)
            yield peer

PYTEST_DONT_REWRITE: there is no assert here.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import pytest

from ..conformance import check_backend, check_frontend
from ..conformance.back_end.all_rules import MODULES
from ..conformance.backend_bench import BACK_END, BackendBench, Offer
from ..conformance.called_frontend import Called
from ..conformance.check_backend import TIMEOUT
from ..conformance.command import words_of
from ..conformance.front_profiles import FRONT_END_PROFILES
from ..conformance.frontend_bench import REST, FrontendBench, Reach
from ..conformance.frontend_peer import Awaited, FrontendPeer, Launched
from ..conformance.outcome import Outcome, Result, under
from ..conformance.peer import Listening, Peer, Started
from ..conformance.probes import OWN, PROBES, Probe, probe_named
from ..conformance.profiles import BACK_END_PROFILES, SPEC, STRICT
from ..conformance.report import TOLD, fails, lines_of
from ..conformance.rule import Rule
from ..errors import VhostUserError

__all__ = [
    "Awaited",
    "Called",
    "FrontendPeer",
    "Launched",
    "Listening",
    "Peer",
    "Started",
    "back_end_device",
    "back_end_peer",
    "front_end_peer",
    "test_back_end_keeps",
    "test_front_end_keeps",
]
B = TypeVar("B")
SOON = 0.02
"""Seconds of silence after which a front-end of this process is left: it need not be parted from gently."""

SECTION = "deviation"
"""The section of a report that tells of a SHOULD or an advice which is not kept."""
HEADING = f"Captured {SECTION} call"
"""What pytest makes of that."""
OPTIONS = {
    "vhost_user_run": ("CMD", "the back-end's command line, with {socket} in it: it is started when it is not there"),
    "vhost_user_device": ("KIND", f"what it is, so that rules about rings send it a request: {', '.join(PROBES)}, or {OWN}"),
    "vhost_user_profile": ("NAME", f"a peer as it is (default {SPEC}): {', '.join(BACK_END_PROFILES)}"),
    "vhost_user_timeout": ("S", f"seconds that either may take for an answer (default {TIMEOUT:g})"),
    "vhost_user_front_run": ("CMD", "the front-end's command line, with {socket} in it: it is started for each rule"),
    "vhost_user_front_profile": ("NAME", f"a front-end as it is (default {SPEC}): {', '.join(FRONT_END_PROFILES)}"),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """What was asked for, on the command line or among pytest's settings."""

    run: str
    device: str
    profile: str
    timeout: float
    front_run: str
    front_profile: str


@dataclass(slots=True)
class UnderTest(Generic[B]):
    """The peer under test; `gone` says why it is not there any more."""

    side: str
    check_one: Callable[[Rule[B]], Outcome]
    profile: str
    known: Mapping[str, str]
    """What the profile knows."""
    gone: str = ""

    def check(self, rule: Rule[B]) -> Outcome | None:
        """Run a rule; None if the peer is not there, or does not come back."""
        try:
            return under(self.known, self.check_one(rule))
        except VhostUserError as error:
            self.gone = str(error)
            return None


class _Nobody:
    """A peer that nobody has named."""

    def connect(self) -> socket.socket:
        raise VhostUserError("no back-end was named; try: --vhost-user-run CMD, or a fixture back_end_peer")

    def accept(self) -> socket.socket:
        raise VhostUserError("no front-end was named; try: --vhost-user-front-run CMD, or a fixture front_end_peer")

    def retire(self) -> bool:
        return False

    def crashed(self) -> str:
        return ""

    def renew(self) -> None:
        pass


def pytest_addoption(parser: pytest.Parser) -> None:
    """Each option is one of pytest's settings, too."""
    group = parser.getgroup("vhost-user", f"rules for vhost-user back-ends, {len(MODULES)} subjects, and for front-ends")
    for name, (value, words) in OPTIONS.items():
        group.addoption(f"--{name.replace('_', '-')}", dest=name, metavar=value, help=words)
        parser.addini(name, words, default="")


def pytest_configure(config: pytest.Config) -> None:
    """What can't be used is told before anything is tested."""
    settings_of(config)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name what is not kept, and made nothing fail."""
    passed = terminalreporter.getreports("passed")
    told = [report.nodeid for report in passed if any(name == HEADING for name, _ in report.sections)]
    if told:
        terminalreporter.section("vhost-user: not kept, and no failure (-rP tells more)")
    for name in told:
        terminalreporter.line(name)


def settings_of(config: pytest.Config) -> Settings:
    """The settings; the command line goes before what a file says. UsageError names what is wrong."""
    run, device, profile, timeout, front_run, front_profile = (_setting(config, name) for name in OPTIONS)
    _device(device)
    _one_of("vhost_user_profile", profile, BACK_END_PROFILES)
    _one_of("vhost_user_front_profile", front_profile, FRONT_END_PROFILES)
    _command("vhost_user_run", run)
    _command("vhost_user_front_run", front_run)
    return Settings(run, device, profile or SPEC, _seconds(timeout), front_run, front_profile or SPEC)


@pytest.fixture(scope="module")
def back_end_peer(pytestconfig: pytest.Config) -> Iterator[Peer]:
    """The back-end that each rule connects to. One of your own in its place returns, say, `Listening(path)`."""
    run = settings_of(pytestconfig).run
    if not run:
        yield _Nobody()
        return
    with Started(run) as peer:
        yield peer


@pytest.fixture(scope="module")
def back_end_device(pytestconfig: pytest.Config) -> str:
    """What it is, as `--vhost-user-device` says; empty if that is not said. One of your own says it for one file."""
    return settings_of(pytestconfig).device


@pytest.fixture(scope="module")
def front_end_peer(pytestconfig: pytest.Config) -> Iterator[FrontendPeer]:
    """The front-end that connects for each rule. One of your own in its place returns, say, `Called(connect)`."""
    run = settings_of(pytestconfig).front_run
    if not run:
        yield _Nobody()
        return
    with Launched(run) as peer:
        yield peer


@pytest.fixture(scope="module")
def back_end_under_test(pytestconfig: pytest.Config, back_end_peer: Peer, back_end_device: str) -> UnderTest[BackendBench]:
    """What the tests of a file share: the back-end, which is asked once what it offers."""
    settings, offers = settings_of(pytestconfig), list[Offer]()

    def check(rule: Rule[BackendBench]) -> Outcome:
        if not offers:
            offers.append(check_backend.offer_of(back_end_peer, probe=_probe(back_end_device), timeout=settings.timeout))
        return check_backend.check_one(rule, back_end_peer, offers[0], timeout=settings.timeout)

    return UnderTest("back-end", check, settings.profile, BACK_END_PROFILES[settings.profile])


@pytest.fixture(scope="module")
def front_end_under_test(pytestconfig: pytest.Config, front_end_peer: FrontendPeer) -> UnderTest[FrontendBench]:
    """The same: the front-end, of which is seen once how far it goes."""
    settings, reaches = settings_of(pytestconfig), list[Reach]()
    rest = SOON if isinstance(front_end_peer, Called) else REST

    def check(rule: Rule[FrontendBench]) -> Outcome:
        if not reaches:
            reaches.append(check_frontend.reach_of(front_end_peer, timeout=settings.timeout))
        return check_frontend.check_one(rule, front_end_peer, reaches[0], timeout=settings.timeout, rest=rest)

    return UnderTest("front-end", check, settings.front_profile, FRONT_END_PROFILES[settings.front_profile])


@pytest.mark.parametrize("rule", list(BACK_END), ids=lambda rule: rule.name)
def test_back_end_keeps(
    rule: Rule[BackendBench], back_end_under_test: UnderTest[BackendBench], request: pytest.FixtureRequest
) -> None:
    """The back-end keeps the rule; skipped if it does not offer what that is about."""
    _keeps(rule, back_end_under_test, request.node)


@pytest.mark.parametrize("rule", list(check_frontend.front_end_rules()), ids=lambda rule: rule.name)
def test_front_end_keeps(
    rule: Rule[FrontendBench], front_end_under_test: UnderTest[FrontendBench], request: pytest.FixtureRequest
) -> None:
    """The front-end keeps the rule; skipped if it does not do what that is about."""
    _keeps(rule, front_end_under_test, request.node)


def _keeps(rule: Rule[B], peer: UnderTest[B], item: pytest.Item) -> None:
    if peer.gone:
        pytest.skip(f"not run: {peer.gone}")
    outcome = peer.check(rule)
    if outcome is None:
        pytest.fail(f"the {peer.side} is not there: {peer.gone}", pytrace=False)
    _conclude(outcome, item, strict=peer.profile == STRICT)


def _conclude(outcome: Outcome, item: pytest.Item, *, strict: bool) -> None:
    """Make the end of a rule the end of its test, as the exit status of `vhu check` has it."""
    text = "\n".join([outcome.rule.section, *lines_of(outcome)])
    if outcome.result is Result.SKIPPED:
        pytest.skip(outcome.got)
    known = outcome.result is Result.KNOWN
    if known and not item.config.getoption("runxfail"):
        pytest.xfail(outcome.got)
    if known or fails(outcome, strict=strict):
        pytest.fail(text, pytrace=False)
    if outcome.result in TOLD:
        item.add_report_section("call", SECTION, text)


def _setting(config: pytest.Config, name: str) -> str:
    given = config.getoption(name)
    return str(config.getini(name) if given is None else given)


def _probe(device: str) -> Probe | None:
    try:
        return probe_named(device) if device else None
    except ValueError as error:
        raise VhostUserError(f"back_end_device {error}") from None


def _one_of(name: str, word: str, words: Collection[str]) -> None:
    if word and word not in words:
        raise pytest.UsageError(f"{name} {word!r} is none of: {', '.join(words)}")


def _device(text: str) -> None:
    try:
        _probe(text)
    except VhostUserError as error:
        raise pytest.UsageError(str(error).replace("back_end_device", "vhost_user_device", 1)) from None


def _command(name: str, line: str) -> None:
    try:
        if line:
            words_of(line)
    except ValueError as error:
        raise pytest.UsageError(f"{name} {line!r} is no command line: {error}") from None


def _seconds(text: str) -> float:
    try:
        seconds = float(text or TIMEOUT)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise pytest.UsageError(f"vhost_user_timeout {text!r} is no number of seconds above 0")
    return seconds
