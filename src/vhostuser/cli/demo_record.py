"""What passed in the demonstration, kept: a capture, and a page that shows it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from ..limited_log import printable
from ..trace.capture import CaptureError, create_capture, private
from ..trace.event import Event
from ..trace.report import write_report
from ..vm.tree import cache_folder

CAPTURE: Final = "demo.pcapng"
PAGE: Final = "demo.html"


def record_folder() -> Path:
    """Where they go, unless one says otherwise: beside what else is fetched and can be made again."""
    return cache_folder().with_name("demo")


def kept(events: list[Event], folder: Path) -> str:
    """Write both into `folder`, in place of those of the last time; how to open them, or why they are not there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_capture(events, folder / CAPTURE)
        _write_page(events, folder / PAGE)
    except (OSError, CaptureError) as error:
        return f"what passed is not kept: {printable(str(error))}; try: vhu demo --into FOLDER"
    return f"all of it again: vhu read {folder / CAPTURE}\nand as a page:   xdg-open {folder / PAGE}"


def _write_capture(events: list[Event], place: Path) -> None:
    scratch = place.with_name(f"{os.getpid()}-{place.name}")
    try:
        writer = create_capture(scratch)
        try:
            for event in events:
                writer.write(event)
        finally:
            writer.close()
        scratch.replace(place)
    finally:
        scratch.unlink(missing_ok=True)


def _write_page(events: list[Event], place: Path) -> None:
    scratch = place.with_name(f"{os.getpid()}-{place.name}")
    try:
        with open(scratch, "w", encoding="utf-8", opener=private) as page:
            write_report(events, page)
        scratch.replace(place)
    finally:
        scratch.unlink(missing_ok=True)
