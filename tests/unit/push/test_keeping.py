"""Marks of kept steps in the pusher process, with a store that fails."""

from __future__ import annotations

from steps import save

from spot_plugins.errors import StoreError
from spot_plugins.events import EventBus, KeepFailed, Kept, Released
from spot_plugins.format.attempts import claim_attempt
from spot_plugins.format.kept import kept_ids
from spot_plugins.push.keeping import Marks
from spot_plugins.push.ledger import MAX_TRIES
from spot_plugins.push.messages import KeepRequest, PushSettings
from spot_plugins.push.wishes import Wishes
from spot_plugins.store import MemoryStore

KEEP = KeepRequest(step=1, owner="program", keeps=True)
RELEASE = KeepRequest(step=1, owner="program", keeps=False)


class Refusing(MemoryStore):
    """Takes no mark while it is down, and anything else."""

    is_down = True

    def put(self, key, data):
        if self.is_down and key.startswith("keep/"):
            raise StoreError("put", key, "the service is busy")
        super().put(key, data)


def marks_of(store):
    """Return the marks of an attempt that has saved step 1, and the list of its answers."""
    attempt = claim_attempt(store, b"")
    save(1, store, attempt=attempt)
    answers = []
    settings = PushSettings(
        url="", storage_options={}, local_dir=None, rank=0, world_size=1, attempt=attempt, keep_last=2, keep_every=None
    )
    return Marks(store, settings, EventBus(answers.append)), answers


def test_a_mark_that_the_store_refuses_is_tried_again():
    """Until then the step is protected by the process, and later wishes wait, so that a release is not overtaken."""
    store = Refusing()
    marks, answers = marks_of(store)
    marks.add(KEEP)
    marks.add(RELEASE)

    marks.fulfill()

    assert (answers, marks.protected, marks.is_done) == ([], {1}, False)
    store.is_down = False
    marks.fulfill()
    assert answers == [Kept(step=1, attempt=1, owner="program"), Released(step=1, owner="program")]
    assert (marks.protected, marks.is_done, kept_ids(store)) == (frozenset(), True, set())


def test_a_wish_that_ends_process_after_process_is_given_up():
    """A process that ends because of it would end again and again."""
    wishes = Wishes()
    wishes.add(KEEP)
    lost = [wishes.lose("it ended")]
    while wishes:
        assert wishes.again() == [KEEP]
        lost.append(wishes.lose("it ended"))

    assert lost == [[], [KeepFailed(step=1, owner="program", reason="it ended")]]
    assert len(lost) == MAX_TRIES


def test_an_answer_ends_the_wish_that_it_belongs_to():
    """A release after a keep is another wish."""
    wishes = Wishes()
    wishes.add(KEEP)
    wishes.add(RELEASE)

    wishes.on_event(Released(step=1, owner="program"))
    assert wishes.again() == [KEEP]
    wishes.on_event(Kept(step=1, attempt=1, owner="other"))
    assert wishes.again() == [KEEP]
    wishes.on_event(Kept(step=1, attempt=1, owner="program"))
    assert not wishes
