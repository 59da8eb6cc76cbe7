"""Back-ends that are wrong on purpose, in a process of their own: `python wrong.py FAULT SOCKET`. They need no package."""

from __future__ import annotations

import os
import signal
import socket
import struct
import sys
import time

HEADER = struct.Struct("=III")
GET_FEATURES, SET_VRING_NUM, SET_VRING_BASE, GET_VRING_BASE = 1, 8, 10, 11
GET_PROTOCOL_FEATURES, GET_QUEUE_NUM, SET_VRING_ENABLE = 15, 17, 18
ANSWERS = {
    GET_FEATURES: struct.pack("=Q", 1 << 32 | 1 << 30),
    GET_PROTOCOL_FEATURES: struct.pack("=Q", 0b1001),  # MQ, REPLY_ACK
    GET_QUEUE_NUM: struct.pack("=Q", 2),
    GET_VRING_BASE: struct.pack("=II", 0, 0),
}
LIMIT = 1024
kept: list[int] = []


def main(fault: str, path: str) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(4)
    while True:
        connection = listener.accept()[0]
        with connection:
            if fault == "leak":
                kept.append(os.open("/dev/null", os.O_RDONLY))
            try:
                serve(fault, connection)
            except (ConnectionError, BrokenPipeError):
                continue


def serve(fault: str, connection: socket.socket) -> None:
    while header := whole(connection, HEADER.size):
        request, flags, size = HEADER.unpack(header)
        if flags & 7 != 1 or size > 4096:
            return
        payload = whole(connection, size)
        if len(payload) < size:
            return
        misbehave(fault, request, payload)
        body = ANSWERS.get(request, struct.pack("=Q", 0) if flags & 8 else b"")
        if fault == "size" and request == GET_VRING_BASE:
            body = bytes(12)
        if body:
            connection.sendall(HEADER.pack(request, 5, len(body)) + body)


def misbehave(fault: str, request: int, payload: bytes) -> None:
    if len(payload) != 8:
        return
    number = struct.unpack("=II", payload)[1]
    if fault == "crash" and request == SET_VRING_NUM and number > LIMIT:
        os.kill(os.getpid(), signal.SIGSEGV)
    if fault == "panic" and request == SET_VRING_BASE and number > 0xFFFF:
        sys.exit(101)
    while fault in ("hang", "spin") and request == SET_VRING_ENABLE and number > 1:
        time.sleep(3600 if fault == "hang" else 0)


def whole(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece, fds, _, _ = socket.recv_fds(connection, size - len(data), 253)
        for fd in fds:
            os.close(fd)
        if not piece:
            return b""
        data += piece
    return data


if __name__ == "__main__":
    main(*sys.argv[1:3])
