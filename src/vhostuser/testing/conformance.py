"""A plug-in of pytest: the rules of `vhu check back-end` as tests of a back-end of your own, a test a rule.

Load it (`-p vhostuser.testing.conformance`, in `addopts` best), say what the back-end's command is (`--vhost-user-run`, or
`vhost_user_run` among pytest's settings), and write a test file of one line:

    from vhostuser.testing.conformance import test_back_end_keeps

A back-end that no command starts is what a fixture of your own returns, of scope module or session:

    @pytest.fixture(scope="module")
    def back_end_peer():
        with listening(MyDevice()) as (path, _):
            yield Listening(path)

PYTEST_DONT_REWRITE: there is no assert here.
"""

from __future__ import annotations

import shlex
import socket
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import pytest

from ..conformance.back_end.all_rules import MODULES
from ..conformance.backend_bench import BACK_END, BackendBench, Offer
from ..conformance.check_backend import TIMEOUT, check_one, offer_of
from ..conformance.outcome import Outcome, Result, under
from ..conformance.peer import Listening, Peer, Started
from ..conformance.probes import PROBES, Probe
from ..conformance.profiles import BACK_END_PROFILES, SPEC, STRICT
from ..conformance.report import TOLD, fails, lines_of
from ..conformance.rule import Rule
from ..errors import VhostUserError

__all__ = ["Listening", "Peer", "Started", "back_end_device", "back_end_peer", "test_back_end_keeps"]

SECTION = "deviation"
"""The section of a report that tells of a SHOULD or an advice which is not kept."""
HEADING = f"Captured {SECTION} call"
"""What pytest makes of that."""
OPTIONS = {
    "vhost_user_run": ("CMD", "the back-end's command line, with {socket} in it: it is started when it is not there"),
    "vhost_user_device": ("KIND", f"what it is, so that rules about rings send it a request: {', '.join(PROBES)}"),
    "vhost_user_profile": ("NAME", f"a peer as it is (default {SPEC}): {', '.join(BACK_END_PROFILES)}"),
    "vhost_user_timeout": ("S", f"seconds that it may take for an answer (default {TIMEOUT:g})"),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """What was asked for, on the command line or among pytest's settings."""

    run: str
    device: str
    profile: str
    timeout: float


@dataclass(slots=True)
class BackEnd:
    """The back-end under test, and what it offers; `gone` says why it is not there any more."""

    peer: Peer
    device: str
    settings: Settings
    offer: Offer | None = None
    gone: str = ""

    def check(self, rule: Rule[BackendBench]) -> Outcome | None:
        """Run a rule; None if the back-end is not there, or does not come back."""
        timeout = self.settings.timeout
        try:
            if self.offer is None:
                self.offer = offer_of(self.peer, probe=_probe(self.device), timeout=timeout)
            outcome = check_one(rule, self.peer, self.offer, timeout=timeout)
        except VhostUserError as error:
            self.gone = str(error)
            return None
        return under(BACK_END_PROFILES[self.settings.profile], outcome)


class _Nobody:
    """A Peer that nobody has named."""

    def connect(self) -> socket.socket:
        raise VhostUserError("no back-end was named; try: --vhost-user-run CMD, or a fixture back_end_peer")

    def crashed(self) -> str:
        return ""

    def renew(self) -> None:
        pass


def pytest_addoption(parser: pytest.Parser) -> None:
    """Each option is one of pytest's settings, too."""
    group = parser.getgroup("vhost-user", f"rules for vhost-user back-ends: {len(MODULES)} subjects")
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
    run, device, profile, timeout = (_setting(config, name) for name in OPTIONS)
    _one_of("vhost_user_device", device, PROBES)
    _one_of("vhost_user_profile", profile, BACK_END_PROFILES)
    try:
        shlex.split(run)
    except ValueError as error:
        raise pytest.UsageError(f"vhost_user_run {run!r} is no command line: {error}") from None
    return Settings(run, device, profile or SPEC, _seconds(timeout))


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
def back_end_under_test(pytestconfig: pytest.Config, back_end_peer: Peer, back_end_device: str) -> BackEnd:
    """What the tests of a file share."""
    return BackEnd(back_end_peer, back_end_device, settings_of(pytestconfig))


@pytest.mark.parametrize("rule", list(BACK_END), ids=lambda rule: rule.name)
def test_back_end_keeps(rule: Rule[BackendBench], back_end_under_test: BackEnd, request: pytest.FixtureRequest) -> None:
    """The back-end keeps the rule; skipped if it does not offer what that is about."""
    if back_end_under_test.gone:
        pytest.skip(f"not run: {back_end_under_test.gone}")
    outcome = back_end_under_test.check(rule)
    if outcome is None:
        pytest.fail(f"the back-end is not there: {back_end_under_test.gone}", pytrace=False)
    _conclude(outcome, request.node, strict=back_end_under_test.settings.profile == STRICT)


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
    if device and device not in PROBES:
        raise VhostUserError(f"back_end_device {device!r} is none of: {', '.join(PROBES)}")
    return PROBES[device] if device else None


def _one_of(name: str, word: str, words: Collection[str]) -> None:
    if word and word not in words:
        raise pytest.UsageError(f"{name} {word!r} is none of: {', '.join(words)}")


def _seconds(text: str) -> float:
    try:
        seconds = float(text or TIMEOUT)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise pytest.UsageError(f"vhost_user_timeout {text!r} is no number of seconds above 0")
    return seconds
