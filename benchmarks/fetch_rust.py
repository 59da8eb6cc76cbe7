"""Build programs on rust-vmm from Debian sid's crate packages: private apt configuration, nothing installed, no root.

Without words these are the peers that are measured, and what is printed is the path of rust-pair. `FOLDER NAME` builds the
Cargo package in that folder instead and prints the path of that binary of it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import unquote

HERE = Path(__file__).resolve().parent
PEERS = ("vhost", "virtio-queue", "vhost-user-backend")
"""The crates that programs are made of; others come with them."""
PAIR, RING = "rust-pair", "rust-ring"
"""The binaries that are measured."""
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
REGISTRY = Path("usr/share/cargo/registry")

VERSIONS = "versions.json"
"""Beside the crates: their packages, and the versions of these."""

APT_CONF = """\
Dir::Etc::sourcelist "{apt}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State::Lists "{apt}/lists";
Dir::State::status "{apt}/status";
Dir::Cache "{apt}/cache";
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Check-Valid-Until "false";
"""

CARGO_CONFIG = """\
[source.crates-io]
replace-with = "debian"

[source.debian]
directory = "{registry}"
"""


class Unavailable(RuntimeError):
    """This machine lacks something the build needs; the message is one line for its user."""


def cache() -> Path:
    """The directory for what is fetched or built: VHOSTUSER_CACHE, else `.cache` at the repository root."""
    return Path(os.environ.get("VHOSTUSER_CACHE") or HERE.parent / ".cache").absolute()


@dataclass(frozen=True, slots=True)
class Programs:
    """A Cargo package: where its source is, its folder in the cache, the crates it is made of, its binaries."""

    source: Path
    place: str
    crates: Sequence[str]
    names: Sequence[str]

    def binary(self, name: str) -> Path:
        """Where a binary of it is, once it is built."""
        return cache() / "rust" / self.place / "target" / "release" / name


MEASURED = Programs(HERE / "rust_pair", "", PEERS[:2], (PAIR, RING))


def built(name: str = PAIR, programs: Programs = MEASURED) -> Path | None:
    """A binary, if it is there and not older than its source."""
    binary = programs.binary(name)
    sources = [programs.source / "Cargo.toml", *programs.source.rglob("src/**/*.rs")]
    if binary.exists() and binary.stat().st_mtime >= max(source.stat().st_mtime for source in sources):
        return binary
    return None


def build(name: str = PAIR, programs: Programs = MEASURED) -> Path:
    """Fetch the crates once, then build without a network; the path of that binary."""
    done = built(name, programs)
    if done:
        return done
    cargo = _program("cargo")
    root = cache() / "rust"
    if not all(list((root / "root" / REGISTRY).glob(f"{crate}-[0-9]*")) for crate in programs.crates):
        _unpack(_fetch(root), root / "root")
    config = root / "cargo.toml"
    config.write_text(CARGO_CONFIG.format(registry=root / "root" / REGISTRY))
    work = root / programs.place / "source"  # a copy: cargo writes its lock file beside the manifest
    shutil.copytree(programs.source, work, dirs_exist_ok=True, ignore=shutil.ignore_patterns("target", "Cargo.lock"))
    manifest = ["--manifest-path", str(work / "Cargo.toml"), "--target-dir", str(root / programs.place / "target")]
    _run([cargo, "--config", str(config), "build", "--quiet", "--offline", "--release", *manifest])
    for each in programs.names:
        programs.binary(each).touch()
    return programs.binary(name)


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise Unavailable(f"{name} is not installed: programs on rust-vmm can't be built here")
    return path


def _run(command: list[str], *, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    """Run a command; its standard output. What it complains about goes to our standard error."""
    done = subprocess.run(command, check=False, env=env, cwd=cwd, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise Unavailable(f"{' '.join(command[:3])} ... failed with code {done.returncode}")
    return done.stdout


def _fetch(root: Path) -> Path:
    """Download the crate packages with a private apt; the directory they are in."""
    apt = root / "apt"
    env = _configure(apt)
    _run(["apt-get", "-qq", "update"], env=env)
    _warn_if_expired(apt / "lists")
    planned = _run(["apt-get", "--simulate", "install", *(f"librust-{crate}-dev" for crate in PEERS)], env=env)
    crates = re.findall(r"^Inst (librust-\S+)", planned, re.MULTILINE)
    archives = apt / "cache" / "archives"
    _run(["apt-get", "-qq", "download", *crates], env=env, cwd=archives)
    return archives


def _configure(apt: Path) -> dict[str, str]:
    """Write the private apt configuration; the environment that makes apt use it."""
    for program in ("apt-get", "dpkg-deb"):
        _program(program)
    if not KEYRING.exists():
        raise Unavailable(f"{KEYRING} is not there: install debian-archive-keyring")
    mirror = _mirror()
    for folder in ("lists/partial", "cache/archives/partial"):
        (apt / folder).mkdir(parents=True, exist_ok=True)
    (apt / "status").touch()
    (apt / "sources.list").write_text(f"deb [signed-by={KEYRING}] {mirror} sid main\n")
    (apt / "apt.conf").write_text(APT_CONF.format(apt=apt))
    return {**os.environ, "APT_CONFIG": str(apt / "apt.conf"), "LC_ALL": "C"}


def _mirror() -> str:
    """The Debian mirror that this machine's own apt is configured with."""
    for uri in _run(["apt-get", "indextargets", "--format", "$(REPO_URI)"]).split():
        if uri.rstrip("/").endswith("/debian"):
            return uri
    raise Unavailable("this machine's apt knows no Debian mirror: the rust-vmm crates can't be fetched")


def _warn_if_expired(lists: Path) -> None:
    """Apt is told to take an expired list (its signature is still checked); say so when it happens."""
    for release in lists.glob("*InRelease"):
        until = re.search(r"^Valid-Until: (.+)$", release.read_text(), re.MULTILINE)
        if until and parsedate_to_datetime(until[1]) < datetime.now(UTC):
            print(f"fetch_rust: sid's package list expired on {until[1]}: used all the same", file=sys.stderr)


def _unpack(archives: Path, into: Path) -> None:
    """Unpack into a directory of another name first: a directory that is there is complete."""
    partial = into.with_name(into.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    packages = sorted(archives.glob("*.deb"))
    for package in packages:
        _run(["dpkg-deb", "--extract", str(package), str(partial)])
    versions = dict(package.name.split("_")[:2] for package in packages)
    (partial / VERSIONS).write_text(json.dumps({name: unquote(version) for name, version in versions.items()}, indent=1))
    shutil.rmtree(into, ignore_errors=True)
    partial.rename(into)


def main(words: Sequence[str]) -> int:
    try:
        print(build(words[1], _package(Path(words[0]), words[1])) if words else build())
    except Unavailable as reason:
        print(f"fetch_rust: {reason}", file=sys.stderr)
        return 3
    return 0


def _package(folder: Path, name: str) -> Programs:
    """The Cargo package in a folder, of which one binary is wanted."""
    return Programs(folder.absolute(), folder.parent.name, PEERS, (name,))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
