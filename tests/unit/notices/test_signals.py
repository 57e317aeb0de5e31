"""SIGTERM as a notice: real signals to real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
from hearing import DEADLINE_S, until

SRC = Path(__file__).parents[3] / "src"

PREAMBLE = """
import hashlib, multiprocessing, os, signal, socket, sys, threading, time
from spot_plugins.notices import SignalNotices

def say(*words):
    print(*words, flush=True)

def wait(event):
    assert event.wait(300), "it never came"

def term(pid=None):
    os.kill(pid or os.getpid(), signal.SIGTERM)

noticed = threading.Event()
received = []

def on_notice(name, at):
    received.append(at)
    noticed.set()

notices = SignalNotices(on_notice)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have pytest ignore it
"""


def start(script):
    return subprocess.Popen(
        # Python 3.12 and newer warn of every fork of a process with threads.
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PREAMBLE + dedent(script)],
        env={**os.environ, "PYTHONPATH": str(SRC)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(script):
    """Run *script* in a process of its own. Return its exit code and the lines that it said."""
    with start(script) as process:
        try:
            output, _ = process.communicate(timeout=DEADLINE_S)
        finally:
            process.kill()
    return process.returncode, output.splitlines()


def test_the_handler_only_records_and_a_thread_calls_back():
    """
    A signal that comes while the main thread holds a lock, which the callback takes too, is received at once, with its
    time. The callback waits on a thread of its own, and the main thread continues.
    """
    assert run(
        """
        lock = threading.Lock()
        called = threading.Event()
        order = []
        def on_notice(name, at):
            called.set()
            with lock:
                order.append(threading.current_thread() is not threading.main_thread())
                order.append(before <= at <= released)
                noticed.set()
        notices = SignalNotices(on_notice)
        notices.install()
        with lock:
            before = time.monotonic()
            term()
            wait(called)
            released = time.monotonic()
        wait(noticed)
        say(order)
        """
    ) == (0, ["[True, True]"])


def test_another_signal_is_one_too_where_it_was_named():
    """
    Its name is told. A forked child ignores it, and ends by SIGTERM as usual; it is given back in the end.
    """
    assert run(
        """
        told = []
        def on_notice(name, at):
            told.append(name)
            noticed.set()
        notices = SignalNotices(on_notice, [signal.SIGUSR1])
        notices.install()
        pid = os.fork()
        if pid == 0:
            time.sleep(60)
        os.kill(pid, signal.SIGUSR1)
        time.sleep(0.2)
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
        os.kill(pid, signal.SIGTERM)
        assert os.waitpid(pid, 0)[1] == signal.SIGTERM
        signal.raise_signal(signal.SIGUSR1)
        wait(noticed)
        signal.raise_signal(signal.SIGTERM)
        notices.uninstall()
        say(told, signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL)
        """
    ) == (0, ["['SIGUSR1'] True"])


def test_another_signal_stays_with_the_program_that_handles_it():
    """
    Only SIGTERM is taken from a program whatever it does with it.
    """
    assert run(
        """
        signal.signal(signal.SIGUSR1, lambda *_: say("mine"))
        notices = SignalNotices(lambda name, at: noticed.set(), [signal.SIGUSR1])
        notices.install()
        signal.raise_signal(signal.SIGUSR1)
        assert not noticed.wait(0.2)
        term()
        wait(noticed)
        """
    ) == (0, ["mine"])


def test_a_closed_terminal_is_a_notice_unless_it_is_ignored():
    """
    SIGHUP is one like SIGTERM. Under nohup it stays ignored.
    """
    assert run(
        """
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        notices.install()
        signal.raise_signal(signal.SIGHUP)
        notices.uninstall()
        say(received, signal.getsignal(signal.SIGHUP) == signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        notices.install()
        signal.raise_signal(signal.SIGHUP)
        wait(noticed)
        say("noticed")
        """
    ) == (0, ["[] True", "noticed"])


def test_ctrl_c_interrupts_until_the_process_leaves():
    """
    Alone it reaches the program's handler each time. At the same moment as a SIGTERM, and later, it does nothing but a
    call of on_again. Afterwards the program has its handler back.
    """
    assert run(
        """
        again = threading.Event()
        notices = SignalNotices(on_notice, on_again=lambda name: again.set())
        notices.install()
        for _ in range(3):
            try:
                os.kill(os.getpid(), signal.SIGINT)
                while True:  # Python does not see a signal that comes just before a long sleep
                    time.sleep(0.01)
            except KeyboardInterrupt:
                say("interrupted")
        both = [signal.SIGTERM, signal.SIGINT]  # python would call the handler of SIGINT first
        signal.pthread_sigmask(signal.SIG_BLOCK, both)
        for number in both:
            signal.pthread_kill(threading.main_thread().ident, number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, both)
        wait(noticed)
        while not again.is_set():
            os.kill(os.getpid(), signal.SIGINT)
            again.wait(0.1)
        notices.uninstall()
        say(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
        """
    ) == (0, ["interrupted"] * 3 + ["True"])


def test_ctrl_c_in_the_last_moment_interrupts_too():
    """
    The handlers are restored before the thread has seen that SIGINT comes alone. A program that leaves gets none, and
    one whose own handler was called already gets no second one.
    """
    assert run(
        """
        def last_moment(for_good=False):
            try:
                os.kill(os.getpid(), signal.SIGINT)
                notices.uninstall(for_good=for_good)
                say("not interrupted")
            except KeyboardInterrupt:
                say("interrupted", notices.installed)
        notices.install()
        last_moment()
        notices.install()
        signal.signal(signal.SIGINT, lambda *_: say("mine"))
        last_moment()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        notices.install()
        last_moment(for_good=True)
        """
    ) == (0, ["interrupted False", "mine", "not interrupted", "not interrupted"])


def test_ctrl_c_is_kept_away_while_the_caller_says_so():
    """
    By shield(), and if the process leaves because of another rank. A handler of the program is called when nothing
    keeps it away, in a forked child at once, and one that was put over ours is called once for each signal.
    """
    assert run(
        """
        said, again, leaves = threading.Event(), threading.Event(), [True]
        signal.signal(signal.SIGINT, lambda *_: said.set())
        notices = SignalNotices(on_notice, on_again=lambda name: again.set(), leaves=lambda: leaves[0])
        notices.install()
        interrupt = lambda: os.kill(os.getpid(), signal.SIGINT)
        interrupt()
        wait(again)
        leaves[0] = False
        again.clear()
        notices.shield(on=True)
        while not again.is_set():  # it is called at most once a second
            interrupt()
            again.wait(0.1)
        pid = os.fork()
        if pid == 0:
            interrupt()
            os._exit(said.is_set())
        say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said.is_set())
        notices.shield(on=False)
        interrupt()
        while not said.is_set():
            time.sleep(0.01)
        signal.signal(signal.SIGINT, lambda *_: say("later"))
        interrupt()
        notices.uninstall()
        """
    ) == (0, ["1 False", "later"])


def test_later_signals_are_harmless():
    """
    The first SIGTERM counts, with its time; a hundred more neither end the process nor call back.
    """
    assert run(
        """
        calls = []
        def on_notice(name, at):
            calls.append(at)
            noticed.set()
        notices = SignalNotices(on_notice)
        notices.install()
        before = time.monotonic()
        term()
        wait(noticed)
        after = time.monotonic()
        for _ in range(100):
            term()
        notices.uninstall()
        say(len(calls), before <= calls[0] <= after)
        """
    ) == (0, ["1 True"])


def test_a_notice_gets_through_a_long_call_into_c():
    """
    Python runs no handler while the main thread is in a C function. The notice comes nevertheless.
    """
    process = start(
        """
        notices = SignalNotices(lambda name, at: os._exit(7))
        notices.install()
        say("ready")
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # minutes, without a look at signals
        """
    )

    def cpu_ticks():
        return int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11])

    try:
        assert process.stdout.readline() == "ready\n"
        started = cpu_ticks()
        until(lambda: cpu_ticks() >= started + 10, "the main thread computes")
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 7
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_a_child_can_be_terminated_and_its_parent_is_not_noticed(start_method):
    """
    Process.terminate() ends a child as if nothing were installed, and the parent goes on to wait for its own notice.
    """
    code, said = run(
        f"""
        if __name__ == "__main__":
            notices.install()
            context = multiprocessing.get_context({start_method!r})
            child = context.Process(target=time.sleep, args=(600,))
            child.start()
            child.terminate()
            child.join()
            say(child.exitcode, noticed.is_set(), received)
            term()
            wait(noticed)
            say("own notice")
        """
    )

    assert (code, said) == (0, [f"{-signal.SIGTERM} False []", "own notice"])


def test_a_forked_child_that_cleans_up_takes_nothing_from_its_parent():
    """
    A child that runs its parent's clean-up, as after os.fork() in a with block, does not end the parent's watch.
    """
    assert run(
        """
        notices.install()
        child = os.fork()
        if child == 0:
            notices.uninstall()
            os._exit(0)
        say(os.waitpid(child, 0)[1])
        term()
        wait(noticed)
        say("noticed")
        """
    ) == (0, ["0", "noticed"])


def test_the_previous_handler_comes_back_and_is_not_called_before():
    """
    While it is installed the old handler rests; after uninstall() it gets the signal, and can be installed again.
    """
    assert run(
        """
        old = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: old.set())
        for _ in range(2):
            noticed.clear()
            notices = SignalNotices(lambda name, at: noticed.set())
            notices.install()
            term()
            wait(noticed)
            say(old.is_set(), notices.installed)
            notices.uninstall()
            notices.uninstall()
            say(notices.installed)
        term()
        wait(old)
        say("old one")
        """
    ) == (0, ["False True", "False", "False True", "False", "old one"])


def test_a_handler_of_somebody_else_is_left_in_place():
    """
    What another library installed over ours is not undone by uninstall().
    """
    assert run(
        """
        notices.install()
        theirs = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: theirs.set())
        notices.uninstall()
        term()
        wait(theirs)
        say("theirs")
        """
    ) == (0, ["theirs"])


def test_it_can_be_taken_back_from_a_host():
    """
    A host that replaced the handler no longer gets the signal after retake(); without it, both do.
    """
    assert run(
        """
        notices.install()
        host = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: host.set())
        notices.retake()
        term()
        wait(noticed)
        say(host.is_set(), len(received) == 1)
        notices.uninstall()
        notices.retake()
        say(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
        """
    ) == (0, ["False True", "True"])


def test_a_stale_handler_behaves_as_the_default():
    """
    A host that remembered our handler as the original one and brings it back after uninstall() gets the default action.
    """
    code, said = run(
        """
        notices.install()
        stale = signal.getsignal(signal.SIGTERM)
        notices.uninstall()
        signal.signal(signal.SIGTERM, stale)
        say("armed")
        term()
        say("survived")
        """
    )

    assert (code, said) == (-signal.SIGTERM, ["armed"])


def test_a_notice_that_came_is_known_when_the_handlers_are_restored():
    """
    The caller of uninstall() learns that a SIGTERM came. It does not if none came, or if a child was told to end.
    """
    assert run(
        """
        notices.install()
        say(notices.uninstall())
        notices.install()
        term()
        say(notices.uninstall(), noticed.is_set())
        notices.install()
        pid = os.fork()
        if pid == 0:
            time.sleep(20)
        term(pid)
        os.waitpid(pid, 0)
        say(notices.uninstall(), notices.uninstall())
        """
    ) == (0, ["False", "True True", "False False"])


def test_a_process_that_leaves_ignores_later_signals():
    """
    Uninstalled for good, SIGTERM does nothing any more: neither by itself, nor through a handler that a host kept.
    """
    assert run(
        """
        notices.install()
        stale = signal.getsignal(signal.SIGTERM)
        notices.uninstall(for_good=True)
        term()
        signal.signal(signal.SIGTERM, stale)
        term()
        say("survived")
        """
    ) == (0, ["survived"])


def test_an_event_loop_still_hears_its_signals():
    """
    Who had a wakeup descriptor before, as asyncio has, gets every signal passed on, and the descriptor back.
    """
    assert run(
        """
        signal.signal(signal.SIGUSR1, lambda *_: None)
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        signal.set_wakeup_fd(theirs.fileno())
        notices.install()
        os.kill(os.getpid(), signal.SIGUSR1)
        say(*ours.recv(1), noticed.is_set())
        term()
        wait(noticed)
        say(*ours.recv(1))
        notices.uninstall()
        say(signal.set_wakeup_fd(-1) == theirs.fileno())
        """
    ) == (0, [f"{int(signal.SIGUSR1)} False", f"{int(signal.SIGTERM)}", "True"])


def test_two_at_once_are_refused():
    """
    Only one session of a process can watch; the second says so instead of taking the first one's notice.
    """
    assert run(
        """
        import spot_plugins.errors
        notices.install()
        try:
            SignalNotices(print).install()
        except spot_plugins.errors.ConfigError as error:
            say(str(error).partition(",")[0])
        """
    ) == (0, ["SIGTERM is a notice to another SpotHook"])
