"""Syscalls on memory: windows for shared memory regions, guest memory, copies that survive a truncated file."""
