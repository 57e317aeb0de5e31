"""The judge of a situation: compares the lives of a program with the program left alone."""

from __future__ import annotations

import re

from contract.hosts.lives import STUCK, differences


def judge(situation, control, lives):
    """Check all lives of one rank against *control*, the outcome of the last program left alone."""
    assert lives[0].resumed_from is None
    for number, (life, due) in enumerate(zip(lives, situation.interruptions, strict=False)):
        _check_interrupted(number, life, due)
    last = lives[-1]
    if situation.expected == "refused":
        assert last.end == "refused", (last.end, last.told)
        assert last.names_remedy, f"not an error of ours: {last.message}"
        assert re.search(situation.says, last.message), last.message
        assert last.rows == [], "it has trained before it was refused"
        return
    if situation.expected == "told":
        assert any(re.search(situation.says, line) for line in [*last.told, last.message]), last.told
        assert last.end == "finished" or last.names_remedy, last.message
        return
    assert last.end == "finished", (last.end, last.message)
    if situation.expected == "samples":
        assert _samples_by_epoch(_kept_rows(lives)) == _samples_by_epoch(control.rows)
        return
    _check_rows(situation, control, lives)
    _check_validations(control, lives)
    found = differences(last.final, control.final)
    assert found == [], found
    _check_told(situation, lives)


def judge_rest(control, lives):
    """Check the last of *lives* against *control*, if the first left no record because it was killed."""
    killed, last = lives
    assert (killed.end, killed.exit_code) == ("killed", -9)
    assert last.resumed_from is not None
    judge_continued(control, last)


def judge_continued(control, last):
    """Check that *last* is what follows in *control* after the step that it has resumed from, to its end."""
    assert last.end == "finished", (last.end, last.message)
    assert last.rows == control.rows[_row_after(control.rows, last.resumed_from) :]
    assert differences(last.final, control.final) == []


def _check_interrupted(number, life, due):
    expected = "preempted" if due.is_notice else "killed"
    assert life.end == expected, (f"life {number}", life.end, life.message)
    assert life.exit_code == {"preempted": 143, "killed": -9 if due.kind == "SIGKILL" else 1}[life.end]
    if due.is_notice:
        if not life.rows:  # nothing was trained, so the life may have ended before it has joined
            return
        stored = (life.resumed_from, life.last_committed_step)  # a step that is stored is not stored twice
        assert stored != (None, None)
        names = [type(event).__name__ for event in life.events]
        assert names[0] == "AttemptStarted"
        assert names.count("Leaving") == 1
        assert names.count("NoticeReceived") <= 1  # of several ranks, one has received it


def _check_rows(situation, control, lives):
    """Check that each life trains a stretch of the control's rows, and that no stretch is missing between two."""
    reached = 0
    for number, life in enumerate(lives):
        begin = _row_after(control.rows, life.resumed_from)
        stretch = control.rows[begin : begin + len(life.rows)]
        assert life.rows == stretch, (f"life {number} from row {begin}", first_difference(life.rows, stretch))
        if number > 0:
            due = situation.interruptions[number - 1] if number <= len(situation.interruptions) else None
            assert begin <= reached, f"life {number} leaves rows {reached} to {begin} out"
            if due is None or (due.is_notice and not situation.leaves_within_accumulation):
                assert begin == reached, f"life {number} trains rows {begin} to {reached} again after a notice"
        reached = begin + len(life.rows)
    assert reached == len(control.rows), f"{reached} of {len(control.rows)} rows were trained"


def _check_validations(control, lives):
    done = {}
    for life in lives:
        for *key, loss in life.validations:
            assert done.setdefault(tuple(key), loss) == loss, f"validation {key} saw another loss the second time"
    assert done == {tuple(key): loss for *key, loss in control.validations}


def _check_told(situation, lives):
    """Check that nothing is said where nothing is wrong. After a crash there may be something to say."""
    expected = [r"WARNING: notice by SIGTERM: step \d+ is stored", "^INFO"]
    if situation.program.loader == "counted":
        expected.append("fetching .* batches again")
    if situation.program.loader == "stateful" and situation.program.num_workers:
        expected.append(
            "the workers of the training loader begin anew"
        )  # nobody sees whether their samples depend on it
    if situation.program.num_ranks > 1:
        expected.append(STUCK)
    for number, life in enumerate(lives):
        if any(not due.is_notice for due in situation.interruptions[max(number - 1, 0) : number + 1]):
            continue
        said = [line for line in life.told if not any(re.search(words, line) for words in expected)]
        assert said == [], f"life {number} says {said}"


def _kept_rows(lives):
    """Return the rows of all lives, each cut at the step that the next one resumed from."""
    kept = []
    for life in lives:
        kept = kept[: _row_after(kept, life.resumed_from)] + life.rows
    return kept


def _row_after(rows, step):
    """Return the number of the first row that follows optimizer step *step*."""
    if step is None:
        return 0
    return next((number for number, row in enumerate(rows) if row[1] >= step), len(rows))


def _samples_by_epoch(rows):
    epochs = {}
    for epoch, _, samples, *_ in rows:
        epochs.setdefault(epoch, []).extend(samples)
    return epochs


def first_difference(one, other):
    """Return the first pair of rows that differ, for a message."""
    pairs = zip(one, other, strict=False)
    return next((pair for pair in pairs if pair[0] != pair[1]), (len(one), len(other)))
