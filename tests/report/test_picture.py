"""The picture of a document: an SVG of the region over time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.report.scene import MIB, NOTES, Scene, session
from vhostuser.trace.capture import create_capture
from vhostuser.trace.report.picture import main, picture

SVG = "{http://www.w3.org/2000/svg}"


def words(drawn: str) -> list[str]:
    return [each.text or "" for each in ElementTree.fromstring(drawn).iter(f"{SVG}text")]


def test_it_shows_mappings_refusals_and_the_reset() -> None:
    drawn = picture(session())
    assert words(drawn).count("photo.raw, read-only") == 2
    refusals = ("photo.raw: refused, it overlaps", "photo.raw: refused, it is outside")
    for text in ("notes.raw, read-write", "device reset", *refusals):
        assert text in words(drawn)
    boxes = [each for each in ElementTree.fromstring(drawn).iter(f"{SVG}rect") if (each.get("class") or "").startswith("f")]
    assert len(boxes) == 6  # the frame, and five mappings


def test_a_hostile_name_is_text() -> None:
    scene = Scene()
    scene.begin()
    scene.map(replace(NOTES, path="/srv/<script>&\x1b\udcff"), 0, MIB)
    assert "<script>&\\x1b\\udcff, read-only" in words(picture(scene.events))


def test_nothing_mapped_is_no_picture() -> None:
    with pytest.raises(ValueError, match="no file was mapped"):
        picture([])


def test_it_is_drawn_from_a_capture(tmp_path: Path) -> None:
    writer = create_capture(tmp_path / "a.pcapng")
    for event in session():
        writer.write(event)
    writer.close()
    assert main([str(tmp_path / "a.pcapng"), str(tmp_path / "a.svg")]) == 0
    assert (tmp_path / "a.svg").read_text() == picture(session())
