"""A private apt: signed packages from the machine's own mirror, with nothing installed and no root."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final

from .tree import FetchError, OutOfReach

KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
SECONDS: Final = 300
"""For one run of apt-get; all other programs need far less."""


class Apt:
    """A private apt: its own lists, cache and (empty) state, but the machine's mirror, proxies and keyring."""

    def __init__(self, folder: Path, *suites: str) -> None:
        if re.search(r'["\\\n]', str(folder)):
            raise FetchError(f"apt can't be given the path {folder}: choose another folder with --into")
        self.folder, self.suites = folder, suites
        self.lists = folder / "lists"
        self.archives = folder / "cache/archives"
        for place in (self.lists, self.archives):
            (place / "partial").mkdir(parents=True)
        (folder / "status").touch()
        (folder / "apt.conf").write_text(_machine_settings() + self._settings())

    def _settings(self) -> str:
        settings = {
            "Dir::Etc::main": "/dev/null",
            "Dir::Etc::parts": "/dev/null",
            "Dir::Etc::sourcelist": self.folder / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::State::lists": self.lists,
            "Dir::State::status": self.folder / "status",
            "Dir::Cache": self.folder / "cache",
            "APT::Architecture": "amd64",
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "root",
            "APT::Update::Error-Mode": "any",
            "Acquire::AllowInsecureRepositories": "false",
            "Acquire::Check-Valid-Until": "false",  # warn_of_old_lists says so instead
            "Acquire::Languages": "none",
            "Acquire::Retries": "2",
            "Acquire::http::Timeout": "20",
            "Acquire::https::Timeout": "20",
        }
        return "".join(f'{name} "{value}";\n' for name, value in settings.items())

    def run(self, *words: str, cwd: Path | None = None) -> str:
        """What a program of apt prints."""
        return run(list(words), cwd=cwd, environment={"APT_CONFIG": str(self.folder / "apt.conf")})

    def update(self) -> None:
        """Read the package lists from the first of the machine's mirrors that has them."""
        if not KEYRING.exists():
            raise OutOfReach(f"{KEYRING} is missing: install debian-archive-keyring")
        failures = []
        for site in _sites():
            lines = [f"deb [signed-by={KEYRING}] {site} {suite} main\n" for suite in self.suites]
            (self.folder / "sources.list").write_text("".join(lines))
            try:
                self.run("apt-get", "-qq", "update")
            except FetchError as failure:
                failures.append(str(failure))
                continue
            return warn_of_old_lists(self.lists)
        reason = failures[0] if failures else "apt has no mirror configured"
        raise OutOfReach(f"no package lists of {self.suites[-1]}: {reason}; is there a network, and a Debian mirror in apt?")

    def download(self, *packages: str, suite: str) -> None:
        """Packages with all they depend on, from `suite` where it has them."""
        self.run("apt-get", "-qq", "-y", "--download-only", "-t", suite, "install", *packages)

    def download_alone(self, *packages: str) -> None:
        """These packages without what they depend on."""
        self.run("apt-get", "-qq", "download", *packages, cwd=self.archives)

    def debs(self) -> list[Path]:
        """All that was downloaded."""
        return sorted(self.archives.glob("*.deb"))


def warn_of_old_lists(lists: Path) -> None:
    """An old list is used all the same (its signature was checked), but never silently."""
    for release in lists.glob("*Release"):
        until = re.search(r"^Valid-Until: (.+)$", release.read_text(errors="replace"), re.MULTILINE)
        if until and parsedate_to_datetime(until[1].replace("UTC", "GMT")) < datetime.now(UTC):
            print(f"warning: {release.name} was valid until {until[1]} only: the mirror lags behind", file=sys.stderr)


def _sites() -> list[str]:
    """The mirrors apt is configured with; those whose lists are here and say Debian come first."""
    listed = "$(LABEL) $(SITE)"
    known = run(["apt-get", "indextargets", "--format", listed, "Created-By: Packages"])
    configured = run(["apt-get", "indextargets", "--no-release-info", "--format", listed, "Created-By: Packages"])
    debian = [line for line in known.splitlines() if line.startswith("Debian ")]
    lines = [*debian, *configured.splitlines()]
    return list(dict.fromkeys(line.rpartition(" ")[2] for line in lines if "/" in line))[:4]


def _machine_settings() -> str:
    """How the machine's apt acquires things (proxies, above all), without its hooks and its extra indexes."""
    lines = run(["apt-config", "dump", "Acquire"]).splitlines()
    return "".join(line + "\n" for line in lines if not line.startswith("Acquire::IndexTargets"))


def run(
    words: list[str], *, cwd: Path | None = None, environment: dict[str, str] | None = None, seconds: int = SECONDS
) -> str:
    """What the program prints, or a FetchError of one line."""
    settings = {**os.environ, "LC_ALL": "C.UTF-8", **(environment or {})}
    try:
        done = subprocess.run(
            words, cwd=cwd, env=settings, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False
        )
    except FileNotFoundError:
        raise OutOfReach(f"{words[0]} is not here: use a Debian machine or container") from None
    except subprocess.TimeoutExpired:
        raise FetchError(f"{words[0]} took more than {seconds} s: is the network slow?") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").splitlines()
        reason = next((line for line in said if line.startswith("E:")), said[-1] if said else "no reason given")
        raise FetchError(f"{Path(words[0]).name} failed: {reason.removeprefix('E:').strip()}")
    return done.stdout.decode(errors="replace")
