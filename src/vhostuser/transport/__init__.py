"""Syscalls on sockets: fds with one owner, messages with their fds, waiting with deadlines."""
