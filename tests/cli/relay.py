"""One end of a connection: bytes from stdin to a socket, or from a socket to stdout; as little as socat would do.

python relay.py send ADDRESS PORT [BYTES]     connects; closes the connection after so many bytes, if they are given
python relay.py receive ADDRESS PORT          listens for one connection
"""

from __future__ import annotations

import socket
import sys
import time

PIECE = 1 << 14


def send(address: str, port: int, limit: int | None = None) -> int:
    """Send stdin; gives the bytes that were sent."""
    sent = 0
    with _connection(address, port) as connection:
        while piece := sys.stdin.buffer.read1(PIECE):
            piece = piece if limit is None else piece[: limit - sent]
            connection.sendall(piece)
            sent += len(piece)
            if sent == limit:
                break
    return sent


def _connection(address: str, port: int) -> socket.socket:
    deadline = time.monotonic() + 60
    while True:
        try:
            return socket.create_connection((address, port))
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def receive(address: str, port: int) -> None:
    """Write to stdout what comes."""
    with socket.create_server((address, port)) as server:
        connection, _ = server.accept()
        with connection:
            while piece := connection.recv(PIECE):
                sys.stdout.buffer.write(piece)
                sys.stdout.buffer.flush()


if __name__ == "__main__":
    action, address, *numbers = sys.argv[1:]
    if action == "send":
        print(send(address, *map(int, numbers)))
    else:
        receive(address, *map(int, numbers))
