"""What the hosts are to each other: clocks, interfaces, ports, a shared folder.

Sent like probe_machine; standard library only. A probe listens on ports that the caller asks for
and connects to those of the other hosts, in threads, all hosts at the same time.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import threading
import time
from typing import Any

BIG = 1 << 17
"""Bytes sent there and back: more than any packet, so that a path that loses big ones shows."""
_SIOCGIFMTU, _SIOCGIFADDR = 0x8921, 0x8915
_listeners: list[socket.socket] = []


def clock() -> Any:
    """Seconds since 1970 as this machine sees it."""
    return {"now": time.time()}


def interfaces() -> Any:
    """Name -> MTU and IPv4 address of every interface."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            found[name] = {
                "mtu": _ask(
                    any_socket, _SIOCGIFMTU, name, lambda b: struct.unpack("i", b[16:20])[0]
                ),
                "address": _ask(
                    any_socket, _SIOCGIFADDR, name, lambda b: socket.inet_ntoa(b[20:24])
                ),
            }
    return found


def _ask(any_socket: Any, request: Any, name: Any, read: Any) -> Any:
    try:
        packed = struct.pack("256s", name.encode()[:15])
        return read(fcntl.ioctl(any_socket.fileno(), request, packed))
    except OSError:
        return None


def route(address: Any) -> Any:
    """This machine's own address on the way to another one: what decides the interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            any_socket.connect((address, 9))  # sends nothing
            return {"address": any_socket.getsockname()[0]}
        except OSError as error:
            return {"address": None, "error": error.strerror}


def listen(port: Any = 0) -> Any:
    """Answer connections with what they send; the port, or why it can't be had."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("", port))
    except OSError as error:
        listener.close()
        return {"port": None, "error": error.strerror}
    listener.listen(128)
    _listeners.append(listener)
    threading.Thread(target=_accept, args=(listener,), daemon=True).start()
    return {"port": listener.getsockname()[1], "error": None}


def _accept(listener: Any) -> Any:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_echo, args=(connection,), daemon=True).start()


def _echo(connection: Any) -> Any:
    with connection:
        while data := connection.recv(1 << 16):
            connection.sendall(data)


def connect(targets: Any, seconds: Any = 3.0) -> Any:
    """Try every target [name, address, port] at once.

    name -> microseconds of a small message there and back, or the error and its stage.
    """
    results: dict[str, Any] = {}
    threads = [
        threading.Thread(target=_try, args=(*target, seconds, results), daemon=True)
        for target in targets
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 2.5 * seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    silent = {"error": "no answer", "stage": "connect"}
    return {name: results.get(name, silent) for name, _, _ in targets}


def _try(name: Any, address: Any, port: Any, seconds: Any, results: Any) -> Any:
    stage = "connect"
    try:
        with socket.create_connection((address, port), timeout=seconds) as connection:
            stage = "small"
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            times = []
            for _ in range(5):
                began = time.perf_counter()
                connection.sendall(b"x")
                connection.recv(1)
                times.append(time.perf_counter() - began)
            stage = "big"
            sender = threading.Thread(target=_send_big, args=(connection,), daemon=True)
            sender.start()
            left = BIG
            while left:
                data = connection.recv(left)
                if not data:
                    raise OSError("closed by the other side")
                left -= len(data)
            results[name] = {"microseconds": 1e6 * min(times)}
    except OSError as error:
        text = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        results[name] = {"error": text, "stage": stage}


def _send_big(connection: Any) -> Any:
    try:
        connection.sendall(b"x" * BIG)
    except OSError:
        pass  # the reader has the error too


def write_token(folder: Any, name: Any) -> Any:
    """A file that the other hosts look for; why it can't be written, or None."""
    try:
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, name), "w") as file:
            file.write(name)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return {"error": error.strerror}
    return {"error": None}


def read_tokens(folder: Any, names: Any, seconds: Any = 2.0) -> Any:
    """Those of the files that are not seen here, after a while (NFS remembers for seconds)."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            there = set(os.listdir(folder))  # asks the server; opening a name may ask a cache
        except OSError:
            there = set()
        missing = [name for name in names if name not in there]
        if not missing or time.monotonic() > deadline:
            return {"missing": missing}
        time.sleep(0.25)


def remove_tokens(folder: Any, names: Any, made: Any) -> Any:
    """Leave nothing behind, not the folder either where it was made for this."""
    for name in names:
        try:
            os.unlink(os.path.join(folder, name))
        except OSError:
            pass
    if made:
        try:
            os.rmdir(folder)
        except OSError:
            pass
    return {}
