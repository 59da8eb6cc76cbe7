"""`vhu vm` without a VM: what it prints for one's own, and what it refuses."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from xml.etree import ElementTree as Tree

import pytest

from vhostuser.cli.vm_run import back_ends_of, parser_of_run
from vhostuser.vm.domain import NAMESPACE
from vhostuser.vm.errand import Terminal, script
from vhostuser.vm.machine import Kind

from .programs import VHU, one_line, run

GENERIC_FS = "vhost-user-test-device-pci,virtio-id=26,num_vqs=2,vq_size=128,config_size=40,chardev=vhu-share"
GENERIC_PMEM = "vhost-user-test-device-pci,virtio-id=27,num_vqs=1,vq_size=128,config_size=16,chardev=vhu-pmem"
QUIET = ["--log-level", "warn"]
SOCKETS = ("--share", "/run/fs", "--pmem", "/run/pmem", "--blk", "/run/blk")


def args(*options: str) -> list[str]:
    done = run(VHU, "vm", "args", *options)
    assert (done.returncode, done.stderr) == (0, "")
    return shlex.split(done.stdout.replace("\\\n", ""))


def values(words: list[str], option: str) -> list[str]:
    return [value for name, value in zip(words[::2], words[1::2], strict=True) if name == option]


def test_args_name_shared_memory_and_every_device() -> None:
    words = args(*SOCKETS, "--memory", "1G", "--cpus", "3", "--accel", "tcg")
    assert values(words, "-object") == ["memory-backend-memfd,id=mem,size=1073741824,share=on"]
    assert (values(words, "-m"), values(words, "-smp")) == (["1024M"], ["3"])
    assert values(words, "-device") == [GENERIC_FS, GENERIC_PMEM, "vhost-user-blk-pci,chardev=vhu-blk"]
    assert values(words, "-chardev") == [
        f"socket,id=vhu-{name},path=/run/{end}" for name, end in (("share", "fs"), ("pmem", "pmem"), ("blk", "blk"))
    ]


def test_args_without_dax_name_the_stock_device() -> None:
    words = args("--share", "/run/fs", "--dax", "off")
    assert values(words, "-device") == ["vhost-user-fs-pci,tag=myfs,num-request-queues=1,queue-size=128,chardev=vhu-share"]


def test_a_comma_in_a_path_ends_no_value() -> None:
    assert values(args("--blk", "/run/a,b c"), "-chardev") == ["socket,id=vhu-blk,path=/run/a,,b c"]


def test_args_as_json_are_the_same_words() -> None:
    assert json.loads(run(VHU, "vm", "args", *SOCKETS, "--json").stdout) == args(*SOCKETS)


def test_a_relative_path_is_one_from_here(place: Path) -> None:
    done = run(VHU, "vm", "args", "--blk", "s", "--json", cwd=place)
    assert values(json.loads(done.stdout), "-chardev") == [f"socket,id=vhu-blk,path={place / 's'}"]


def xml(*options: str) -> Tree.Element:
    done = run(VHU, "vm", "xml", *options)
    assert (done.returncode, done.stderr) == (0, "")
    return Tree.fromstring(done.stdout)


def test_xml_has_shared_memory_and_qemus_words_for_what_libvirt_has_no_element_for() -> None:
    root = xml(*SOCKETS)
    assert [(each.tag, each.attrib) for each in root.iterfind("memoryBacking/*")] == [
        ("source", {"type": "memfd"}),
        ("access", {"mode": "shared"}),
    ]
    words = [each.attrib["value"] for each in root.iterfind(f"{{{NAMESPACE}}}commandline/{{{NAMESPACE}}}arg")]
    assert values(words, "-device") == [GENERIC_FS, GENERIC_PMEM]
    assert [each.tag for each in root.iterfind("devices/*")] == ["disk"]
    source = root.find("devices/disk/source")
    assert source is not None
    assert source.attrib == {"type": "unix", "path": "/run/blk"}


def test_xml_without_dax_needs_none_of_them() -> None:
    root = xml("--share", "/run/<fs>", "--dax", "off")
    assert root.find(f"{{{NAMESPACE}}}commandline") is None
    source, target = root.find("devices/filesystem/source"), root.find("devices/filesystem/target")
    assert source is not None
    assert target is not None
    assert (source.attrib, target.attrib) == ({"socket": "/run/<fs>"}, {"dir": "myfs"})


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("args",), 2, "vhu vm: no socket is given; try: vhu vm args --share /tmp/fs.sock"),
        (("xml",), 2, "vhu vm: no socket is given; try: vhu vm xml --share /tmp/fs.sock"),
        (("rum",), 2, "vhu vm: vhu vm does not do 'rum'; did you mean run?"),
        (("run",), 2, "vhu vm: standard input is no terminal for a shell; try: give a command after --"),
        (("run", "--dax-window", "3M", "--", "ls"), 2,
         "vhu vm run: argument --dax-window: 3M is no power of two of at least 2M; try: vhu vm run --help"),
        (("run", "--readonly", "--dax-write", "--", "ls"), 2,
         "vhu vm run: argument --dax-write: not allowed with argument --readonly; try: vhu vm run --help"),
        (("run", "--memory", "1M", "--", "ls"), 2,
         "vhu vm run: argument --memory: 1M is no multiple of 1M of at least 128M; try: vhu vm run --help"),
        (("run", "--share", "/nonexistent", "--", "ls"), 1,
         "vhu vm: --share /nonexistent: it is no directory; try: a directory that exists"),
        (("run", "--blk", "/nonexistent", "--", "ls"), 1,
         "vhu vm: --blk /nonexistent: it does not exist; try: truncate -s 64M /nonexistent"),
    ],
)  # fmt: skip
def test_what_can_not_be_done_is_one_line(words: tuple[str, ...], code: int, said: str) -> None:
    done = run(VHU, "vm", *words)
    assert (done.returncode, done.stdout, one_line(done.stderr)) == (code, "", said)


@pytest.mark.parametrize(("dax", "option"), [("copy", "-o dax=inode "), ("direct", "-o dax=always "), ("off", "")])
def test_the_guest_mounts_the_share_as_the_window_wants_it(dax: str, option: str) -> None:
    text = script([Kind.SHARE], ["ls"], dax=dax)
    assert f"$(mount -t virtiofs {option}myfs /mnt 2>&1) || end failed" in text
    assert text.index("mount -t virtiofs") < text.index("echo ready") < text.index("cd /mnt")


def test_a_command_is_no_shell_code_and_neither_is_the_name_of_a_terminal() -> None:
    assert "\n{ echo '$(reboot)' 2>" in script([], ["echo", "$(reboot)"], dax="off")
    assert "export TERM='a b' " in script([], Terminal(term="a b"), dax="off")


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ((), ["--dax", "copy", *QUIET]),
        (("--dax-window", "64M"), ["--dax", "copy", "--dax-window", "67108864", *QUIET]),
        (("--dax", "direct"), ["--dax", "direct", "--dax-unsafe-peer", *QUIET]),
        (("--dax", "off", "--dax-window", "64M"), ["--dax", "off", *QUIET]),
        (("--readonly",), ["--dax", "copy", "--readonly", *QUIET]),
        (("--dax-write",), ["--dax", "copy", "--dax-write", *QUIET]),
        (("--stats",), ["--dax", "copy", "--stats"]),
    ],
)
def test_the_back_end_of_a_share_has_the_window_that_was_asked_for(
    options: tuple[str, ...], wanted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VHU_LOG", raising=False)
    found = back_ends_of(parser_of_run().parse_args(["--share", "/srv", *options]))
    assert found == [(Kind.SHARE, ["vhostuser.cli.fs", "--shared-dir", "/srv", "--tag", "myfs", *wanted])]


def test_a_share_may_be_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/srv")
    ((_, words),) = back_ends_of(parser_of_run().parse_args(["--share", str(tmp_path / "link")]))
    assert words[1:3] == ["--shared-dir", "/srv"]


def test_each_device_has_a_back_end_of_its_own() -> None:
    found = back_ends_of(parser_of_run().parse_args(["--blk", "disk", "--pmem", "image"]))
    assert found == [
        (Kind.PMEM, ["vhostuser.cli.pmem", "--image", "image"]),
        (Kind.BLK, ["vhostuser.cli.blk", "--blk-file", "disk"]),
    ]
