"""The recorder in the trainer: it passes on what happens, in order, and never more than that."""

from __future__ import annotations

import threading

import pytest
from hearing import DEADLINE_S, until

from spot_plugins.eventlog import recorder as recorder_module
from spot_plugins.eventlog.recorder import Recorder
from spot_plugins.events import AttemptStarted, Committed

STARTED = AttemptStarted(attempt=1, world_size=1)
COMMITTED = Committed(step=1, num_bytes=1, push_s=0.1)


class Pusher:
    """The other end, which takes records or does not."""

    def __init__(self, *, takes=True):
        self.takes = takes
        self.bodies = []
        self.fails = False

    def send(self, records):
        if self.fails:
            raise RuntimeError("a bug")
        if self.takes:
            self.bodies += records
        return self.takes

    def is_from_process(self, event):
        return event is COMMITTED

    def kinds(self):
        return [body["kind"] for body in self.bodies]


def test_what_happens_is_passed_on_in_order():
    """With the times at which it happened. The pusher process has recorded its own events."""
    pusher = Pusher()
    recorder = Recorder(pusher, lambda: 7, lambda: False)
    recorder.open()
    recorder.on_event(STARTED)
    recorder.on_event(COMMITTED)
    recorder.begin(3)
    recorder.fail(ValueError("hunter2"))
    recorder.close()
    assert pusher.kinds() == ["Started", "AttemptStarted", "TrainingBegan", "Ended"]
    assert pusher.bodies[-1]["fields"] == {"step": 7, "is_finished": False, "error": "ValueError"}
    assert "hunter2" not in str(pusher.bodies)
    times = [body["monotonic"] for body in pusher.bodies]
    assert times == sorted(times)


def beats_of(pusher):
    return [body for body in pusher.bodies if body["kind"] == "Heartbeat"]


def test_heartbeats_tell_the_step(monkeypatch):
    """They come without any event, and stop at the end. Most are brief ones, which the pusher process only keeps."""
    monkeypatch.setattr(recorder_module, "BEAT_S", 0.01)
    monkeypatch.setattr(recorder_module, "HEARTBEAT_S", 0.1)
    pusher, step = Pusher(), [None]
    recorder = Recorder(pusher, lambda: step[0], lambda: False)
    recorder.open()
    until(lambda: pusher.kinds().count("Heartbeat") > 1, "heartbeats come")
    step[0] = 5
    until(lambda: pusher.bodies[-1]["fields"].get("step") == 5, "a heartbeat tells the step")
    until(lambda: [body for body in beats_of(pusher) if "is_brief" not in body], "a heartbeat is to be put")
    assert beats_of(pusher)[0]["is_brief"]
    recorder.close()
    assert pusher.kinds()[-1] == "Ended"
    assert not recorder._thread.is_alive()


def test_records_wait_for_a_pusher_process(monkeypatch):
    """Up to a limit: more are dropped, the oldest first, and counted."""
    monkeypatch.setattr(recorder_module, "MAX_WAITING", 5)
    pusher = Pusher(takes=False)
    recorder = Recorder(pusher, lambda: 1, lambda: False)
    recorder.open()
    for _ in range(20):
        recorder.on_event(STARTED)
        until(lambda: recorder._queue.empty(), "the thread has taken it")
    pusher.takes = True
    recorder.close()
    assert pusher.kinds() == ["AttemptStarted"] * 4 + ["Ended", "Dropped"]
    assert pusher.bodies[-1]["fields"]["num_records"] == 21 - 4


def test_a_thread_that_is_held_fills_no_memory(monkeypatch):
    """The training thread never waits: what does not fit into the queue is dropped and counted."""
    monkeypatch.setattr(recorder_module, "MAX_WAITING", 5)
    held = threading.Event()

    class Held(Pusher):
        def send(self, records):
            held.wait(DEADLINE_S)
            return super().send(records)

    pusher = Held()
    recorder = Recorder(pusher, lambda: 1, lambda: False)
    recorder.open()
    until(lambda: recorder._queue.empty(), "the thread is held")
    for _ in range(100):
        recorder.on_event(STARTED)
    assert recorder._queue.qsize() == 5
    held.set()
    until(lambda: "Dropped" in pusher.kinds(), "the drop is told")
    recorder.close()
    dropped = sum(body["fields"]["num_records"] for body in pusher.bodies if body["kind"] == "Dropped")
    assert dropped + pusher.kinds().count("AttemptStarted") == 100


def test_a_bug_ends_the_log_and_nothing_else(caplog):
    """It is told once."""
    pusher = Pusher()
    pusher.fails = True
    recorder = Recorder(pusher, lambda: 1, lambda: False)
    recorder.open()
    until(lambda: not recorder._thread.is_alive(), "the thread has ended")
    recorder.on_event(STARTED)
    recorder.close()
    assert caplog.text.count("the event log of this process ends here") == 1


@pytest.mark.parametrize("number", range(2))
def test_only_the_first_session_of_a_process_has_its_age(number, monkeypatch):
    """The sessions before would count as the start of a later one otherwise."""
    monkeypatch.setattr(Recorder, "_num_started", number)
    pusher = Pusher()
    recorder = Recorder(pusher, lambda: None, lambda: False)
    recorder.open()
    recorder.close()
    age_s = pusher.bodies[0]["fields"]["process_s"]
    assert (age_s is None) == (number > 0)
    assert number > 0 or 0 < age_s < 1e6
