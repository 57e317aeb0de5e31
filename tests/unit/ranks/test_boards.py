"""The contract of every board: in the memory of one process, and over real sockets."""

from __future__ import annotations

import json
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from types import SimpleNamespace

import pytest
from hearing import DEADLINE_S, until

from spot_plugins.errors import Preempted
from spot_plugins.ranks import BoardClosedError, Job, MemoryBoard, RankLostError, frames
from spot_plugins.ranks.board_client import SocketBoard, connect
from spot_plugins.ranks.board_server import BoardServer
from spot_plugins.ranks.frames import BEAT, Limits, frame_of
from spot_plugins.testing import run_thread_ranks

SECRET = "a secret"
QUICK = Limits(beat_s=0.05, silent_s=1.0, connect_s=30.0, farewell_s=0.5)
CLOSED = "has ended (its connection was closed)"


class Served:
    """A real server, and boards that are connected to it."""

    def __init__(self, world_size, limits=None):
        self.limits = limits or Limits()
        listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self.port = listener.getsockname()[1]
        self.server = BoardServer(listener, world_size, SECRET, self.limits)
        self.boards = {0: SocketBoard(self.server.open(), self.limits, self.server)}

    def socket_of(self, rank):
        """Connect as *rank*, which then does what the test does."""
        return connect("127.0.0.1", self.port, SECRET, rank, self.limits)

    def connect(self, *ranks):
        for rank in ranks:
            self.boards[rank] = SocketBoard(self.socket_of(rank), self.limits)
        return self.boards[ranks[-1]]

    def stranger(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE_S)

    def close(self):
        for rank in sorted(self.boards, reverse=True):
            self.boards[rank].close()


@pytest.fixture
def serve():
    """Make a :class:`Served`. All that is made is closed after the test."""
    served = []

    def make(*arguments):
        served.append(Served(*arguments))
        return served[-1]

    yield make
    for each in served:
        each.close()


@pytest.fixture(params=["memory", "sockets"])
def boards(request, serve):
    """The boards of three ranks, and a way in which one is lost."""
    if request.param == "memory":
        board = MemoryBoard()
        yield [board] * 3, lambda rank: board.end(rank, CLOSED, is_lost=True), board.end
        board.close()
        return
    served = serve(3)
    served.connect(1, 2)
    # The kernel closes the connection of a process that dies in the same way.
    lose = lambda rank: served.boards[rank]._sock.shutdown(socket.SHUT_RDWR)  # noqa: E731
    yield served.boards, lose, lambda rank: served.boards[rank].close()


def in_thread(call, *arguments):
    """Start *call* on a thread. Return its future."""
    pool = ThreadPoolExecutor(1)
    try:
        return pool.submit(call, *arguments)
    finally:
        pool.shutdown(wait=False)


def lost(future):
    with pytest.raises(RankLostError) as raised:
        future.result(DEADLINE_S)
    return raised.value.rank, raised.value.how


NOTE = {"text": "äöü\n", "numbers": [1, 2.5, -1e300, None, True], "deep": [[[[{}]]]]}


def test_a_note_is_read_before_and_after_it_is_written(boards):
    """As it was written, by all ranks."""
    (zero, one, two), *_ = [boards[0][rank] for rank in range(3)], None
    early = in_thread(two.read, "note")
    one.post("note", NOTE)

    assert early.result(DEADLINE_S) == zero.read("note") == one.read("note", 0.0) == NOTE


def test_a_note_is_written_once(boards):
    """A second one is dropped, so that all ranks read the same."""
    boards[0][1].post("note", 1)
    assert boards[0][1].read("note") == 1
    boards[0][2].post("note", 2)

    assert [boards[0][rank].read("note") for rank in (2, 1, 0)] == [1, 1, 1]


def test_a_note_that_nobody_writes_is_not_waited_for_longer_than_is_said(boards):
    """The board works on."""
    for timeout_s in (0.0, 0.05):
        with pytest.raises(BoardClosedError, match=rf"nobody wrote 'note' within {timeout_s} s"):
            boards[0][1].read("note", timeout_s)
    boards[0][2].post("note", 1)
    assert boards[0][1].read("note") == 1


def test_each_number_is_taken_once(boards):
    """However many threads of all ranks take some."""
    with ThreadPoolExecutor(12) as pool:
        taken = list(pool.map(lambda i: boards[0][i % 3].take_number("n"), range(300)))

    assert sorted(taken) == [*range(1, 301)]
    assert boards[0][1].take_number("other") == 1


def test_the_notes_of_all_ranks_come_together(boards):
    """In the order of the ranks, to ranks that ask before and after the last one is written."""
    early = in_thread(boards[0][0].gather, "all", 3)
    for rank in (2, 0, 1):
        boards[0][rank].post(f"all/{rank}", {"of": rank})

    expected = ({rank: {"of": rank} for rank in range(3)}, None)
    assert early.result(DEADLINE_S) == boards[0][1].gather("all", 3) == expected


def test_every_exchange_has_its_own_answer(boards):
    """Though rank 0 makes the answer to all ranks once: of other names, of other numbers of ranks, and of one note."""
    board = boards[0][0]
    for rank in range(3):
        board.post(f"all/{rank}", rank)
        board.post(f"other/{rank}", 10 + rank)
    board.post("all", "one")

    for _ in range(2):
        for each in map(boards[0].__getitem__, range(3)):
            assert each.gather("all", 3) == ({0: 0, 1: 1, 2: 2}, None)
            assert each.gather("other", 3) == ({0: 10, 1: 11, 2: 12}, None)
            assert each.gather("other", 2) == ({0: 10, 1: 11}, None)
            assert each.gather("all", 2) == ({0: 0, 1: 1}, None)
            assert each.read("all") == "one"


def test_notes_that_are_missing_are_named(boards):
    """The notes that are there are given."""
    boards[0][2].post("all/2", None)
    boards[0][1].post("all/0", 0)
    until(lambda: len(boards[0][2].gather("all", 3, 0.0).notes) == 2, "both are there")

    notes, missing = boards[0][2].gather("all", 3, 0.05)

    assert notes == {0: 0, 2: None}
    assert str(missing) == "nobody wrote 'all/1' within 0.05 s"


def test_who_waits_for_a_rank_that_dies_learns_which(boards):
    """In both kinds of waits, begun before and after its death. What it wrote before is there."""
    boards, lose, _ = boards
    reads = [in_thread(boards[rank].read, "never") for rank in (0, 1)]
    gathers = in_thread(boards[1].gather, "all", 3)
    boards[2].post("last words", 1)
    boards[2].post("all/2", 2)
    assert boards[1].read("last words") == 1
    lose(2)

    assert [lost(read) for read in reads] == [(2, CLOSED)] * 2
    notes, missing = gathers.result(DEADLINE_S)
    assert (notes, str(missing)) == ({2: 2}, f"rank 2 {CLOSED}")
    assert lost(in_thread(boards[1].read, "never")) == (2, CLOSED)
    assert boards[1].read("last words") == 1
    assert boards[1].gather("never", 3).missing.rank == 2


def test_a_rank_that_says_farewell_is_not_lost(boards):
    """A wait for no rank in particular continues. A note that it would have to write is not waited for."""
    boards, _, leave = boards
    waits = in_thread(boards[1].read, "later")
    gathers = in_thread(boards[0].gather, "all", 3)
    boards[1].post("full/1", 1)
    boards[0].post("full/0", 0)
    boards[2].post("full/2", 2)
    leave(2)

    assert str(gathers.result(DEADLINE_S).missing) == "rank 2 has left"
    assert boards[1].gather("full", 3) == ({0: 0, 1: 1, 2: 2}, None)
    boards[0].post("later", 1)
    assert waits.result(DEADLINE_S) == 1


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("is_early", [True, False])
def test_a_rank_that_leaves_for_a_notice_before_training_takes_the_others_along(is_early, rank, boards):
    """One that waits in an exchange, and one that comes to it after the first one has left. Others say what is lost."""
    (all_boards, _, leave) = boards
    jobs = [Job(SimpleNamespace(rank=each, world_size=3), all_boards[each]) for each in range(3)]
    waiting = in_thread(jobs[2].exchange, "joining", None)
    until(lambda: waiting.running(), "the exchange has begun")
    if is_early:
        jobs[rank].leave_early()
    leave(rank)

    for found in (waiting, in_thread(jobs[(rank + 1) % 2].exchange, "joining", None)):
        with pytest.raises(Preempted if is_early else BoardClosedError, match=None if is_early else "has left"):
            found.result(DEADLINE_S)


def test_a_rank_0_that_leaves_lets_the_others_connect(serve):
    """So that they learn why it has left."""
    served = serve(2)
    Job(SimpleNamespace(rank=0, world_size=2), served.boards[0]).leave_early()
    closing_0 = in_thread(served.boards[0].close)
    until(lambda: served.server._closing, "the server ends")
    time.sleep(0.1)  # a server that does not wait has ended by then
    board = served.connect(1)
    closing_0.result(DEADLINE_S)

    with pytest.raises(Preempted):
        Job(SimpleNamespace(rank=1, world_size=2), board).exchange("joining", None)


def test_a_board_that_is_closed_takes_and_gives_nothing(boards):
    """On the rank that closes it. With rank 0, it ends for all."""
    boards = boards[0]
    waits = [in_thread(boards[rank].read, "never") for rank in range(3)]
    until(lambda: all(wait.running() for wait in waits), "all wait")
    boards[0].close()
    for wait in waits:
        with pytest.raises(BoardClosedError):
            wait.result(DEADLINE_S)
    for use in (
        lambda: boards[0].post("note", 1),
        lambda: boards[0].read("note"),
        lambda: boards[0].take_number("n"),
    ):
        with pytest.raises(BoardClosedError, match="the board was closed"):
            use()
    assert "the board was closed" in str(boards[0].gather("note", 3).missing)


def test_ranks_that_are_threads_leave_one_by_one():
    """A thread that closes its board is no longer waited for."""

    def body(ranks):
        board = ranks.open_board()
        if ranks.rank == 1:
            board.close()
            return None
        return str(board.gather("all", 2).missing)

    assert run_thread_ranks(2, body) == ["rank 1 has left", None]


# Over sockets alone.


def test_after_rank_0_has_left_every_call_says_so(serve):
    """At once, though nobody closed this rank's board."""
    served = serve(2, QUICK)
    board = served.connect(1)
    waits = in_thread(board.read, "never")
    served.boards[0].close()

    with pytest.raises(BoardClosedError, match="rank 0 has left, and the board with it"):
        waits.result(DEADLINE_S)
    for use in (lambda: board.post("note", 1), lambda: board.take_number("n"), lambda: board.read("note", 0.1)):
        with pytest.raises(BoardClosedError, match="rank 0 has left, and the board with it"):
            use()


def test_a_rank_0_that_dies_is_named(serve):
    """Its connections are closed without a word."""
    ours, theirs = socket.socketpair()
    board = SocketBoard(theirs, Limits())
    waits = in_thread(board.read, "never")
    ours.close()

    assert lost(waits) == (0, CLOSED)
    board.close()


def test_a_rank_that_is_silent_is_lost_and_told(serve):
    """Its kernel answers, but it does not beat. The others and the rank itself learn that."""
    served = serve(3, QUICK)
    board = served.connect(1)
    with served.socket_of(2) as silent:
        assert lost(in_thread(board.read, "never")) == (2, "has not been heard from for 1 s")
        silent.settimeout(DEADLINE_S)
        told = b"".join(iter(lambda: silent.recv(4096), b""))
    assert "the other ranks have given this rank up, because it has not been heard from for 1 s" in told.decode()


def test_ranks_that_only_beat_are_not_silent(serve):
    """And rank 0, which answers each beat, is not silent for them."""
    served = serve(3, Limits(beat_s=0.05, silent_s=2.0))
    served.connect(1, 2)
    time.sleep(3.0)

    served.boards[1].post("note", 1)
    assert served.boards[2].read("note") == 1


def test_a_rank_0_that_is_silent_is_lost():
    """Its kernel takes the beats, and nobody answers them. Closing waits only a little."""
    ours, theirs = socket.socketpair()
    board = SocketBoard(theirs, QUICK)

    assert lost(in_thread(board.read, "never")) == (0, "has not been heard from for 1 s")
    ours.close()


def test_a_network_that_breaks_is_a_rank_0_that_is_lost():
    """The kernel says why."""
    board = SocketBoard(socket.socket(), Limits())

    told = "cannot be reached any more (Transport endpoint is not connected)"
    with pytest.raises(RankLostError) as raised:
        in_thread(board.read, "never").result(DEADLINE_S)
    assert (raised.value.rank, raised.value.how) == (0, told)
    board.close()


def test_an_answer_that_makes_no_sense_holds_up_nobody():
    """The caller that asked learns it, too."""
    ours, theirs = socket.socketpair()
    with closing(SocketBoard(theirs, Limits(farewell_s=0.1))) as board:
        waits = in_thread(board.read, "never")
        ours.settimeout(DEADLINE_S)
        assert ours.recv(4096)
        ours.sendall(frame_of(0, "no notes"))
        with pytest.raises(BoardClosedError):
            waits.result(DEADLINE_S)
    ours.close()


def test_closing_does_not_wait_for_a_rank_0_that_hangs():
    """Not even until it counts as silent."""
    ours, theirs = socket.socketpair()
    board = SocketBoard(theirs, Limits(silent_s=3600, farewell_s=0.1))
    waits = in_thread(board.read, "never")
    in_thread(board.close).result(DEADLINE_S)

    with pytest.raises(BoardClosedError, match="the board was closed"):
        waits.result(DEADLINE_S)
    ours.close()


def test_a_rank_0_that_hangs_does_not_hold_up_a_wait_with_a_limit(monkeypatch):
    """The caller learns that there was no answer."""
    monkeypatch.setattr("spot_plugins.ranks.notes.ANSWER_S", 0.1)
    ours, theirs = socket.socketpair()
    told = "rank 0, which has the notes of all ranks, does not answer within"
    board = SocketBoard(theirs, Limits(silent_s=3600, farewell_s=0.1))
    with closing(board), pytest.raises(BoardClosedError, match=told):
        board.read("note", 0.1)
    ours.close()


def test_a_process_that_did_not_run_does_not_take_the_others_for_silent(monkeypatch):
    """Time in which it was stopped, or could not get Python's lock, does not count."""
    times = iter([0.0, 1.0, 2.0, 1002.0, 1003.0])
    monkeypatch.setattr(frames, "time", SimpleNamespace(monotonic=lambda: next(times)))
    clock = frames.AwakeClock()

    assert [clock.now() for _ in range(4)] == [1, 2, 2 + frames.MAX_GAP_S, 2 + frames.MAX_GAP_S + 1]


def test_a_rank_that_never_connects_is_lost(serve):
    """It died after the ranks had met, and before it was connected."""
    served = serve(3, Limits(connect_s=1.5))
    board = served.connect(1)

    assert lost(in_thread(board.read, "never")) == (2, "has not connected within 1.5 s")


def is_closed(sock):
    """Wait until the server closes the connection. Return what it sent before."""
    sock.settimeout(DEADLINE_S)
    with suppress(ConnectionError):
        return b"".join(iter(lambda: sock.recv(4096), b""))
    return b""


@pytest.mark.parametrize(
    "says",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" * 4096,
        BEAT,
        frame_of("post", "note", "of a stranger"),
        frame_of("ask", 1, "note", None, False),
        frame_of("another secret", 1),
        frame_of(SECRET, 7),
        frame_of(SECRET, 0),
        frame_of(SECRET, -1),
        frame_of(SECRET, "1"),
        frame_of({"no": "list"}) + frame_of("post", "note", "of a stranger"),
        struct.pack(">I", 5) + b"12345",
        struct.pack(">I", 257) + b"[" * 257,
    ],
    ids=repr,
)
def test_a_stranger_can_neither_read_nor_write(serve, says):
    """A stranger without the secret is cut off, and the ranks notice nothing."""
    served = serve(2)
    served.boards[0].post("note", "of rank 0")
    assert served.boards[0].read("note") == "of rank 0"
    with served.stranger() as stranger:
        stranger.sendall(says)
        assert is_closed(stranger) == b""

    board = served.connect(1)
    assert board.read("note") == "of rank 0"


def test_strangers_that_say_nothing_keep_no_rank_out(serve):
    """As many as like to come. They are cut off once all ranks are there."""
    served = serve(2)
    with ExitStack() as stack:
        strangers = [stack.enter_context(served.stranger()) for _ in range(100)]
        strangers[-1].sendall(b"\0\0")
        board = served.connect(1)
        board.post("note", 1)

        assert served.boards[0].read("note") == 1
        assert [is_closed(stranger) for stranger in strangers] == [b""] * 100


def test_nobody_listens_once_all_ranks_are_connected(serve):
    """So no stranger can even try."""
    served = serve(3)
    served.connect(1, 2)

    def is_refused():
        try:
            served.stranger().close()
        except ConnectionRefusedError:
            return True
        except ConnectionError:  # the port was closed before the server has taken this connection
            return False
        return False

    until(is_refused, "the port is closed")


def test_a_second_connection_does_not_take_the_place_of_a_rank(serve):
    """Even with the secret."""
    served = serve(3)
    served.connect(1)
    with pytest.raises(OSError, match="something else than rank 0 answers there, or closes the connection"):
        served.socket_of(1)

    served.boards[1].post("note", 1)
    assert served.boards[0].read("note") == 1


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        (struct.pack(">I", 2**31), "a frame of 2147483648 bytes, where 67108864 are the most"),
        (struct.pack(">I", 3) + b"{}}", "a frame is not JSON"),
        (struct.pack(">I", 100_000) + b"[" * 100_000, "a frame is not JSON"),
        (struct.pack(">I", 2) + b"{}", "a frame is no list"),
        (frame_of("dance"), "a frame that is not known"),
        (frame_of("post", 7, "note"), "a frame that is not known"),
        (frame_of("ask", 1, "name", "many", True), "a frame that is not known"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_a_rank_that_talks_nonsense_is_cut_off(serve, says, reason):
    """It is lost for the others, which are told why. The board works on."""
    served = serve(3)
    board = served.connect(1)
    with served.socket_of(2) as sock:
        sock.sendall(says)
        rank, how = lost(in_thread(board.read, "never"))
    assert rank == 2
    assert "is cut off, because it sends what is no frame of the board: " in how
    assert reason in how
    assert board.take_number("n") == 1


@pytest.mark.parametrize("says", [frame_of("dance"), struct.pack(">I", 3) + b"{}}"])
def test_a_rank_0_that_talks_nonsense_is_left(says):
    """The ranks run different versions."""
    ours, theirs = socket.socketpair()
    with closing(SocketBoard(theirs, Limits(farewell_s=0.1))) as board:
        waits = in_thread(board.read, "never")
        ours.sendall(says)
        with pytest.raises(BoardClosedError, match="rank 0 sends what is no frame of the board: "):
            waits.result(DEADLINE_S)
    ours.close()


def test_a_frame_may_come_in_pieces(serve):
    """Byte by byte, and several at once."""
    served = serve(2)
    with served.socket_of(1) as sock:
        for byte in frame_of("post", "slow", "ä" * 20):
            sock.sendall(bytes([byte]))
        assert served.boards[0].read("slow") == "ä" * 20
        sock.sendall(b"".join(frame_of("post", f"note {i}", i) for i in range(100)) + frame_of("post", "half", 1)[:-1])
        assert served.boards[0].read("note 99") == 99
    assert lost(in_thread(served.boards[0].read, "half")) == (1, CLOSED), "half a frame is no note"


def test_a_slow_rank_holds_up_no_other(serve):
    """It asks for more than fits into the buffers of its connection, and does not read the answers for a while."""
    served = serve(3)
    board = served.connect(1)
    board.post("long", long := "x" * 2**23)
    assert board.read("long") == long
    with served.socket_of(2) as slow:
        slow.sendall(b"".join(frame_of("ask", number, "long", None, True) for number in range(4)))
        slow.sendall(frame_of("post", "asked", None))
        assert board.read("asked") is None
        for number in range(1, 50):
            assert board.take_number("n") == number
        slow.settimeout(DEADLINE_S)
        with slow.makefile("rb") as file:
            for number in range(4):
                (length,) = struct.unpack(">I", file.read(4))
                assert json.loads(file.read(length)) == [number, [0], [long], None]


def test_a_note_that_is_too_long_is_refused_where_it_is_written(serve):
    """The board works on."""
    board = serve(2).connect(1)
    with pytest.raises(BoardClosedError, match=r"the note 'long' has \d+ bytes, and 67108864 are the most"):
        board.post("long", "x" * 2**26)
    assert board.take_number("n") == 1


def test_300_ranks_share_a_board(serve):
    """Each one gets the notes of all. One of them dies, and all learn it."""
    served = serve(300)
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(served.connect, range(1, 300)))
    for rank, board in served.boards.items():
        board.post(f"all/{rank}", rank)
    given = {rank: rank for rank in range(300)}
    assert all(board.gather("all", 300) == (given, None) for board in served.boards.values())

    waits = [board._ask("never", None, waits=True) for rank, board in served.boards.items() if rank != 299]
    served.boards[299]._sock.shutdown(socket.SHUT_RDWR)
    assert {wait.result(DEADLINE_S).ended for wait in waits} == {(299, CLOSED)}


def test_the_kernel_is_asked_to_look_for_machines_that_vanish(serve):
    """A machine that is gone answers no probe. Linux has a limit for data that was sent, too."""
    served = serve(2)
    with served.socket_of(1) as sock, closing(SocketBoard(sock.dup(), QUICK)) as board:
        options = [
            board._sock.getsockopt(socket.IPPROTO_TCP, option)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
        ]
        assert board._sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert board._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    assert options == [10, 5, 4, 30_000]
