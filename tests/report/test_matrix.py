"""docs/matrix.md and docs/findings are what the stored results make, and speak of what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conformance import specification
from tests.matrix.causes import causes
from tests.matrix.page import made, ours
from tests.matrix.peers import OF_DRIVERS, PEERS
from tests.matrix.run import run as run_peer
from tests.matrix.store import FINDINGS, LARGEST, TOP, Run, Verdict, load, verdict_of, without_paths
from vhostuser.conformance.back_end.all_rules import MODULES
from vhostuser.conformance.backend_bench import BACK_END
from vhostuser.conformance.check_frontend import front_end_rules
from vhostuser.trace.capture import open_capture

DOCS = TOP / "docs"
FUZZED = FINDINGS / "vhu-fuzz"
"""What vhu fuzz found is told by hand."""
LINK = re.compile(r"\]\(([^)#]+)")
NAMES = {rule.name for rule in BACK_END} | {rule.name for rule in front_end_rules()}
MACHINE = re.compile(r"/(?:work|root|home)/|/tmp/")


def runs() -> list[tuple[str, Run]]:
    return [(peer.name, run) for peer in PEERS if (run := load(peer.name))]


def test_there_are_results_of_the_peers_that_are_fetched_with_the_vm() -> None:
    names = {name for name, run in runs() if run.verdicts}
    assert MODULES
    assert {"qemu", "libblkio", "qemu-storage-daemon", "virtiofsd", "vhost-device-vsock"} <= names


def test_the_pages_are_what_the_results_make() -> None:
    texts = made()
    there = {"matrix.md", *(f"findings/{path.relative_to(FINDINGS)}" for path in ours("*.md"))}
    assert there == texts.keys()
    assert [path for path, text in texts.items() if (DOCS / path).read_text() != text] == []


@pytest.mark.parametrize(("name", "run"), runs(), ids=[name for name, _ in runs()])
def test_rules_that_results_name_exist(name: str, run: Run) -> None:
    assert {verdict.rule for verdict in run.verdicts} - NAMES == set()


def test_each_must_that_is_not_kept_has_a_finding_that_names_it() -> None:
    texts = made()
    for name, run in runs():
        of_peer = "".join(text for path, text in texts.items() if path.startswith(f"findings/{name}/"))
        assert [each.rule for each in run.bad if f"`{each.rule}`" not in of_peer] == []


def test_every_link_leads_somewhere() -> None:
    pages = [FUZZED / "README.md", *(DOCS / path for path in made())]
    missing = [
        (page.name, link) for page in pages for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()
    ]
    assert missing == []


def test_each_capture_is_small_and_belongs_to_a_finding() -> None:
    for path in FINDINGS.rglob("*.pcapng"):
        assert path.stat().st_size <= (LARGEST if FUZZED not in path.parents else 8 * LARGEST)
        named, pages = (path.name, path.parent) if FUZZED not in path.parents else (path.relative_to(FUZZED), FUZZED)
        assert any(f"]({named})" in report.read_text() for report in pages.glob("*.md")), path.name


def test_captures_can_be_read() -> None:
    for path in sorted(FINDINGS.rglob("*.pcapng"))[::8]:
        assert list(open_capture(path)), path.name


def test_nothing_speaks_of_the_machine_that_it_was_made_on() -> None:
    texts = [
        path.read_bytes() for path in (*DOCS.glob("matrix*"), *FINDINGS.rglob("*"), *DOCS.glob("matrix/*")) if path.is_file()
    ]
    assert [text[:80] for text in texts if MACHINE.search(text.decode(errors="replace"))] == []


def test_causes_are_patterns_with_an_effect() -> None:
    for cause in causes():
        re.compile(cause.rules)
        assert cause.effect
        assert cause.title
        assert cause.text
        assert set(cause.peers) <= {peer.name for peer in PEERS}


def test_what_causes_quote_are_words_of_the_specification() -> None:
    page = specification.text()
    if page is None:
        pytest.skip(f"no text of the specification in {specification.folder()}: run `{specification.COMMAND}`")
    said = specification.words(page)
    assert [quoted for cause in causes() for quoted in re.findall('"([^"]+)"', cause.text) if quoted not in said] == []


def test_each_pattern_of_the_rules_for_a_guest_is_of_some_rule() -> None:
    assert [pattern for pattern in OF_DRIVERS if not any(re.search(pattern, rule.name) for rule in front_end_rules())] == []


def test_a_peer_that_can_not_be_built_is_not_run_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VHOSTUSER_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("tests.matrix.store.RESULTS", tmp_path)
    found = run_peer(next(peer for peer in PEERS if peer.name == "rust-back-end"))
    assert found.over == "not run: cargo is not installed: programs on rust-vmm can't be built here"
    assert load("rust-back-end") == found


def test_a_package_whose_name_has_its_version_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"linux-binary-7.3.4-cloud-amd64": "7.3.4-1", "qemu-system-x86": "11.1", "qemu-system-x86-data": "11.1"}
    monkeypatch.setattr("tests.matrix.peers.versions", lambda _: there)
    guest = next(peer for peer in PEERS if peer.name == "qemu-guest")
    assert guest.versions() == {"qemu-system-x86": "11.1", "linux-binary-7.3.4-cloud-amd64": "7.3.4-1"}


def test_a_verdict_that_is_kept_is_stored_without_words() -> None:
    fields = {
        "rule": "r",
        "section": "s",
        "level": "MUST",
        "result": "kept",
        "text": "t",
        "expected": "",
        "got": "",
        "sent": [],
    }
    assert verdict_of(fields) == Verdict("r", "s", "MUST", "kept")


def test_paths_go_without_a_change_of_length() -> None:
    capture = b'"path": "/tmp/#12345 (deleted)", "path": "/memfd:a"'
    assert without_paths(capture) == b'"path": "/file------ (deleted)", "path": "/memfd:a"'


def test_a_result_that_is_changed_by_hand_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = made()["matrix.md"]
    text = (DOCS / "matrix/virtiofsd.json").read_text()
    (tmp_path / "virtiofsd.json").write_text(text.replace('"result": "kept"', '"result": "broken"', 1))
    monkeypatch.setattr("tests.matrix.store.RESULTS", tmp_path)
    assert made()["matrix.md"] != before
