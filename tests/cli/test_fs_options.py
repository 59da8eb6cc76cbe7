"""virtiofsd's command line, as `vhu-fs` reads it."""

from __future__ import annotations

import logging

import pytest

from vhostuser.cli.fs_options import FsOptions, parse_options
from vhostuser.cli.outcome import CommandError
from vhostuser.devices.fs.idmap import IDENTITY
from vhostuser.devices.fs.options import Cache, Choice, Dax, Handles, ShareOptions
from vhostuser.sandbox.capabilities import MINIMAL, mask
from vhostuser.sandbox.confine import Mode, Plan
from vhostuser.sandbox.idmaps import IdRange, Maps
from vhostuser.sandbox.seccomp import Action

NEEDED = ("--shared-dir", "/srv", "--socket-path", "/run/s")
LIBVIRT = [
    *("--fd=31", "--shared-dir", "/srv", "--cache", "always", "--sandbox", "chroot", "--xattr", "--thread-pool-size=16"),
    *("--rlimit-nofile=50000", "--log-level", "debug", "--readonly"),
]
IDMAP = ["--uid-map=:0:100000:65535:", "--gid-map=:0:100000:65535:"]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VHU_LOG", raising=False)


def parsed(*arguments: str) -> FsOptions:
    return parse_options([*NEEDED, *arguments])


def refused(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What is said of a command line that is wrong."""
    with pytest.raises(SystemExit) as ended:
        parse_options([*NEEDED, *arguments])
    assert ended.value.code == 2
    return capfd.readouterr().err


def test_the_defaults_are_those_of_virtiofsd_and_a_copied_window() -> None:
    assert parsed() == FsOptions(
        shared_dir="/srv",
        socket_path="/run/s",
        fd=None,
        socket_group=None,
        share=ShareOptions(),
        plan=Plan(mode=Mode.NAMESPACE, capabilities=0x880000DF, maps=Maps(), open_files=None, seccomp=Action.KILL),
        log_level=logging.INFO,
        syslog=False,
        once=True,
        stats=False,
        warnings=(),
    )


def test_libvirts_command_line_is_taken() -> None:
    found = parse_options(LIBVIRT)
    assert (found.fd, found.shared_dir, found.socket_path, found.log_level) == (31, "/srv", None, logging.DEBUG)
    assert found.share == ShareOptions(cache=Cache.ALWAYS, xattr=True, thread_pool_size=16, readonly=True)
    assert found.plan == Plan(mode=Mode.CHROOT, open_files=50000)
    found = parse_options([word.replace("chroot", "namespace") for word in [*LIBVIRT, *IDMAP]])
    assert found.plan.maps == Maps((IdRange(0, 100000, 65535),), (IdRange(0, 100000, 65535),))
    assert found.warnings == ()


SHARED = [
    (("--cache", "never"), ShareOptions(cache=Cache.NEVER, readdirplus=False)),
    (("--cache=metadata", "--allow-mmap"), ShareOptions(cache=Cache.METADATA, allow_mmap=True)),
    (("--no-readdirplus",), ShareOptions(readdirplus=False)),
    (("--posix-acl",), ShareOptions(xattr=True, posix_acl=Choice.ALWAYS)),
    (("--posix-acl=auto",), ShareOptions(xattr=True, posix_acl=Choice.AUTO)),
    (("--no-announce-submounts",), ShareOptions(announce_submounts=False)),
    (("--inode-file-handles=fallback",), ShareOptions(inode_file_handles=Handles.PREFER)),
    (("--inode-file-handles=mandatory",), ShareOptions(inode_file_handles=Handles.MANDATORY)),
    (("--writeback", "--allow-direct-io"), ShareOptions(writeback=True, allow_direct_io=True)),
    (("--killpriv-v2", "--preserve-noatime"), ShareOptions(killpriv_v2=True, preserve_noatime=True)),
    (("--killpriv-v2", "--no-killpriv-v2"), ShareOptions()),
    (("--tag", "x" * 36, "--num-request-queues", "4"), ShareOptions(tag="x" * 36, num_request_queues=4)),
    (("--dax", "direct", "--dax-unsafe-peer"), ShareOptions(dax=Dax.DIRECT, dax_unsafe_peer=True)),
    (("--dax-window", "2M", "--dax-write"), ShareOptions(dax_window=2 << 20, dax_write=True)),
    (("--dax=off",), ShareOptions(dax=Dax.OFF)),
    (("--security-label=never",), ShareOptions()),
]


@pytest.mark.parametrize(("arguments", "share"), SHARED)
def test_each_option_of_the_share(arguments: tuple[str, ...], share: ShareOptions) -> None:
    assert parsed(*arguments).share == share


def test_names_and_ids_are_mapped() -> None:
    share = parsed("--xattrmap", ":map::user.virtiofs.:", "--translate-uid=squash-guest:0:107:4294967295").share
    assert share.xattrmap is not None
    assert share.xattrmap.client_to_host(b"trusted.x") == b"user.virtiofs.trusted.x"
    assert (share.uids.to_host(0), share.gids) == (107, IDENTITY)


def test_options_of_old_are_taken_with_a_warning() -> None:
    found = parse_options(
        [
            *("--socket", "/run/s", "-f", "-d", "-o", "source=/srv,cache=none,xattr,no_readdirplus,no_flock,no_posix_lock"),
            *("-o", "sandbox=chroot,modcaps=+sys_admin:-mknod,no_announce_submounts,writeback,posix_acl,no_posix_acl"),
        ]
    )
    assert (found.shared_dir, found.socket_path, found.log_level) == ("/srv", "/run/s", logging.DEBUG)
    expected = ShareOptions(cache=Cache.NEVER, xattr=True, readdirplus=False, announce_submounts=False, writeback=True)
    assert found.share == expected
    kept = MINIMAL & ~mask("mknod") | mask("sys_admin")
    assert (found.plan.mode, found.plan.capabilities) == (Mode.CHROOT, kept)
    assert [text.split()[0] for text in found.warnings] == ["-o", "-d", "-f", "--socket"]


def test_seccomp_is_kill_as_with_virtiofsd() -> None:
    assert parsed().plan.seccomp is Action.KILL
    for each in Action:
        assert parsed("--seccomp", each.value).plan.seccomp is each
    assert (parsed("--syslog").syslog, parsed().syslog) == (True, False)


def test_the_environment_says_the_log_level_if_nobody_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VHU_LOG", "error")
    assert parsed().log_level == logging.ERROR
    assert parsed("--log-level", "off").log_level > logging.CRITICAL


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--cache", "foo"), "argument --cache: 'foo' is none of auto, always, never, metadata"),
        (("-o", "foo=bar"), "argument -o: there is no 'foo=bar'; there are source, cache"),
        (("-o", "cache=foo"), "argument -o cache: 'foo' is none of auto, always, never, metadata"),
        (("-o", "xattr=yes"), "argument -o: there is no 'xattr=yes'"),
        (("-o", "security_label"), "argument --security-label: labels are not set"),
        (("--fd", "3"), "not allowed with argument --socket-path"),
        (("--tag", ""), "a tag has 1 to 36 bytes"),
        (("--tag", "ü" * 19), "a tag has 1 to 36 bytes"),
        (("--dax-window", "1M"), "1M is no power of two from 2M on"),
        (("--dax-window", "3M"), "3M is no power of two"),
        (("--modcaps=mknod",), "'mknod' is neither +CAPABILITY nor -CAPABILITY"),
        (("--modcaps=+nothing",), "'+nothing' is neither"),
        (("--uid-map", ":0:1:"), "':0:1:' is not :NAMESPACE_ID:HOST_ID:COUNT:"),
        (("--uid-map", ":0:1:0:"), "count must be above 0"),
        (("--uid-map", ":0:1:1:", "--sandbox", "none"), "only with --sandbox namespace"),
        (("--translate-uid", "foo:1"), "argument --translate-uid: 'foo:1': no type 'foo'"),
        (("--posix-acl", "--translate-gid", "map:0:1:1"), "not with --translate-uid or --translate-gid"),
        (("--security-label",), "argument --security-label: labels are not set when files are made"),
        (("--migration-mode", "find-paths"), "argument --migration-mode: a guest can't be migrated"),
        (("--migration-confirm-paths",), "argument --migration-confirm-paths: a guest can't be migrated"),
        (("--seccomp", "maybe"), "argument --seccomp: 'maybe' is none of none, kill, log, trap"),
        (("--shared-dirs", "x"), "did you mean --shared-dir?"),
        (("--rlimit-nofile", "-1"), "is no number"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    capfd: pytest.CaptureFixture[str], arguments: tuple[str, ...], problem: str
) -> None:
    said = refused(capfd, *arguments)
    assert problem in said
    assert said.count("\n") == 1


def test_a_wrong_xattrmap_is_underlined(capfd: pytest.CaptureFixture[str]) -> None:
    said = refused(capfd, "--xattrmap", ":prefix:client:trusted.:").splitlines()
    assert said[0] == 'vhu-fs: --xattrmap rule 1: ":prefix:client:trusted.:"'
    assert said[1] == " " * 52 + "^ expected the field 'prepend' and a closing ':'"
    said = refused(capfd, "--xattrmap", ":ok:all::: :ok:al\tl:::").splitlines()
    assert said[0][said[1].index("^") : said[1].rindex("^") + 1] == "al\\tl"


def test_a_socket_group_needs_a_socket(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_options(["--shared-dir", "/srv", "--fd", "3", "--socket-group", "root"])
    assert "argument --socket-group: only with --socket-path" in capfd.readouterr().err


def test_a_directory_is_needed() -> None:
    with pytest.raises(CommandError, match="--shared-dir is not given"):
        parse_options(["--socket-path", "/run/s"])
