"""
The cost of the board for rank 0 while nothing happens but beats, and while all ranks exchange a note.

Real sockets connect as many simulated ranks as asked for, in a process of their own, to a real server. Each rank beats
as often as a real one. *Share of a core* is the CPU time of the server's thread over the seconds of the measurement.
*Exchange* is the time until every rank has the notes of all ranks, and the CPU time of the server's thread for that.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import selectors
import socket
import struct
import time

from spot_plugins.ranks.board_client import connect
from spot_plugins.ranks.board_server import BoardServer
from spot_plugins.ranks.frames import BEAT, Limits, frame_of, prepare

from .report import Column, Report

SECRET = "benchmark"
COLUMNS = [
    Column("share_of_core", "share of a core", ".5f"),
    Column("exchange_s", "exchange s", ".3f"),
    Column("exchange_cpu_s", "its CPU s", ".3f"),
]


class TimedServer(BoardServer):
    """A server that knows the clock of its thread."""

    def cpu_s(self):
        return time.clock_gettime(time.pthread_getcpuclockid(self._thread.ident))


def receive(sock, length):
    return sock.recv(length, socket.MSG_WAITALL)


def simulate(port, world_size, pipe):
    """Be all ranks but 0: beat, exchange when told to, and beat again until the pipe closes."""
    limits = Limits()
    socks = [connect("127.0.0.1", port, SECRET, rank, limits) for rank in range(1, world_size)]
    pipe.send("connected")
    pipe.recv()
    for rank, sock in enumerate(socks, 1):
        sock.sendall(frame_of("post", f"all/{rank}", {"rank": rank, "step": 1000}))
        sock.sendall(frame_of("ask", 1, "all", world_size, True))
    for sock in socks:
        (length,) = struct.unpack(">I", receive(sock, 4))
        assert len(json.loads(receive(sock, length))[2]) == world_size
    pipe.send("exchanged")
    selector = selectors.DefaultSelector()
    for sock in socks:
        selector.register(prepare(sock), selectors.EVENT_READ)
    started, sent = time.monotonic(), 0
    while not pipe.poll():
        due = int((time.monotonic() - started) / limits.beat_s * len(socks))
        for number in range(sent, due):
            socks[number % len(socks)].send(BEAT)
        sent = due
        for key, _ in selector.select(0.005):
            key.fileobj.recv(4096)


def measure(world_size, seconds):
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    server = TimedServer(listener, world_size, SECRET, Limits())
    rank_0 = server.open()
    pipe, theirs = multiprocessing.Pipe()
    ranks = multiprocessing.get_context("fork").Process(
        target=simulate, args=(listener.getsockname()[1], world_size, theirs), daemon=True
    )
    ranks.start()
    pipe.recv()
    started, before = time.monotonic(), server.cpu_s()
    rank_0.sendall(frame_of("post", "all/0", {"rank": 0, "step": 1000}))
    pipe.send("exchange")
    pipe.recv()
    row = {"exchange_s": time.monotonic() - started, "exchange_cpu_s": server.cpu_s() - before}
    time.sleep(1.0)
    started, before = time.monotonic(), server.cpu_s()
    time.sleep(seconds)
    row["share_of_core"] = (server.cpu_s() - before) / (time.monotonic() - started)
    pipe.send("end")
    ranks.join()
    rank_0.close()
    server.close()
    return row


def add_arguments(parser):
    parser.add_argument("--ranks", type=int, nargs="+", default=[64, 1024], help="numbers of ranks")
    parser.add_argument("--seconds", type=float, default=20.0, help="seconds of beats")


def run(arguments):
    report = Report("board", {"ranks": arguments.ranks, "seconds": arguments.seconds}, COLUMNS)
    for world_size in arguments.ranks:
        report.rows.append({"way": f"{world_size} ranks", "ranks": world_size} | measure(world_size, arguments.seconds))
    return report
