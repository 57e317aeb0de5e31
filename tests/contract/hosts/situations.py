"""The list of situations that every host has to pass. A new fault of any host becomes a row here."""

from __future__ import annotations

from contract.hosts.situation import Interruption, Program, Situation


def notice(place="batch", number=1, **more):
    return Interruption(kind="notice", place=place, number=number, **more)


def crash(place="batch", number=1, kind="crash", **more):
    return Interruption(kind=kind, place=place, number=number, **more)


def situation(name, *interruptions, **settings):
    about = ("expected", "says", "changed", "unknown_to", "leaves_within_accumulation")
    own = {key: settings.pop(key) for key in about if key in settings}
    return Situation(name=name, program=Program(**settings), interruptions=interruptions, **own)


PLACES = [
    situation("notice before the first batch", notice(number=1)),
    situation("notice in the middle of an epoch", notice(number=3)),
    situation("notice before the last batch of an epoch", notice(number=6)),
    situation("notice before the first batch of the second epoch", notice(number=7)),
    situation("notice before the last batch of all", notice(number=12)),
    situation("notice at the end of an epoch", notice("epoch end", 1)),
    situation("notice at the end of the last epoch", notice("epoch end", 2)),
    situation("two notices", Interruption(kind="two notices", number=4)),
    situation("crash before the first batch", crash(number=1)),
    situation("crash before anything is saved", crash(number=3)),
    situation("crash right after a save", crash(number=5)),
    situation("crash in the second epoch", crash(number=9)),
    situation("crash at the end of an epoch", crash("epoch end", 1)),
    situation("crash at the end of the last epoch", crash("epoch end", 2)),
    situation("crash with a save at every step", crash(number=8), every_steps=1),
    situation("crash with a save at the last batch of the epoch", crash("epoch end", 1), every_steps=6),
]

VALIDATIONS = [
    situation("notice in the validation of an epoch", notice("validation", 2), validate="epoch"),
    situation("notice in the first batch of a validation", notice("validation", 4), validate="epoch"),
    situation("notice in the validation of the last epoch", notice("validation", 5), validate="epoch"),
    situation("notice in a validation in the middle of an epoch", notice("validation", 2), validate=3),
    situation("notice in a later validation in the middle", notice("validation", 8), validate=2),
    situation("notice after a validation in the middle", notice(number=5), validate=3),
    situation("crash in the validation of an epoch", crash("validation", 2), validate="epoch"),
    situation("crash in a validation in the middle", crash("validation", 2), validate=3, every_steps=1),
    situation("notice at the end of a validated epoch", notice("epoch end", 1), validate="epoch"),
    situation("notice in a validation with a plateau", notice("validation", 2), validate="epoch", schedule="plateau"),
    situation(
        "notice in a validation within an accumulation",
        notice("validation", 2),
        validate=3,
        accumulate=2,
        leaves_within_accumulation=True,
    ),
]

ACCUMULATIONS = [
    situation("notice at the begin of an accumulation", notice(number=3), accumulate=2),
    situation("notice within an accumulation", notice(number=4), accumulate=2),
    situation("notice within an accumulation of three", notice(number=8), accumulate=3, schedule="step"),
    situation("notice in the rest of an accumulation", notice(number=6), accumulate=4),
    situation("notice before the rest of an accumulation", notice(number=5), accumulate=4),
    situation("notice at an epoch end after a rest", notice("epoch end", 1), accumulate=4, validate="epoch"),
    situation("crash within an accumulation", crash(number=8), accumulate=2, every_steps=1),
    situation("crash in the rest of an accumulation", crash(number=12), accumulate=4, every_steps=1),
    situation("accumulation over two optimizers", notice(number=4), accumulate=2, optimizers=("adam", "sgd")),
    situation("accumulation of noisy samples", notice(number=4), accumulate=2, is_noisy=True),
]

LOADERS = [
    situation("elastic, noisy", notice(number=4), is_noisy=True),
    situation("elastic, noisy, workers", notice(number=4), is_noisy=True, num_workers=2),
    situation("elastic, an incomplete last batch", notice(number=6), num_samples=22),
    situation("elastic, batches of one", notice(number=20), batch_size=2, num_samples=22, every_steps=7),
    situation("elastic, one batch in an epoch", notice(number=2), num_samples=4, num_epochs=4, validate="epoch"),
    situation("counted", notice(number=4), loader="counted"),
    situation("counted, in the second epoch", notice(number=9), loader="counted"),
    situation("counted, before the last batch", notice(number=6), loader="counted"),
    situation("counted, at an epoch end", notice("epoch end", 1), loader="counted", validate="epoch"),
    situation("counted, workers", notice(number=9), loader="counted", num_workers=2, is_noisy=True),
    situation("counted, crash", crash(number=9), loader="counted"),
    situation("stateful", notice(number=4), loader="stateful"),
    situation("stateful, in the second epoch", notice(number=9), loader="stateful"),
    situation("stateful, before the last batch", notice(number=6), loader="stateful"),
    situation("stateful, at an epoch end", notice("epoch end", 1), loader="stateful", validate="epoch"),
    situation("stateful, workers", notice(number=9), loader="stateful", num_workers=2),
    situation("stateful, crash", crash(number=9), loader="stateful", every_steps=2),
    situation("two loaders", notice(number=4), num_loaders=2),
    situation("two loaders, in the second epoch", notice(number=9), num_loaders=2, is_noisy=True),
    situation("two loaders, before the last batch", notice(number=6), num_loaders=2),
    situation("two loaders, at an epoch end", notice("epoch end", 1), num_loaders=2, validate="epoch"),
    situation("two loaders, counted", notice(number=9), num_loaders=2, loader="counted"),
    situation("two loaders, stateful", notice(number=9), num_loaders=2, loader="stateful"),
    situation("three loaders, crash", crash(number=9), num_loaders=3),
]

OPTIMIZERS = [
    situation("two optimizers", notice(number=4), optimizers=("adam", "sgd")),
    situation("two optimizers, crash", crash(number=9), optimizers=("adam", "sgd"), every_steps=2),
    situation("two optimizers of a kind, at an epoch end", notice("epoch end", 1), optimizers=("adam", "adam")),
    situation("two optimizers, schedules by step", notice(number=8), optimizers=("adam", "sgd"), schedule="step"),
    situation("two optimizers, schedules by epoch", notice(number=8), optimizers=("adam", "sgd"), schedule="epoch"),
    situation("sgd with momentum", notice(number=8), optimizers=("sgd",)),
    situation("a schedule by step", notice(number=3), schedule="step"),
    situation("a schedule by step, right after its drop", notice(number=4), schedule="step"),
    situation("a schedule by epoch", notice(number=8), schedule="epoch"),
    situation("a schedule by epoch, before the last batch", notice(number=6), schedule="epoch"),
    situation("a schedule by epoch, at an epoch end", notice("epoch end", 1), schedule="epoch"),
    situation("a schedule by epoch, crash", crash("epoch end", 1), schedule="epoch", every_steps=3),
    situation("a plateau", notice(number=15), schedule="plateau", validate="epoch", num_epochs=4),
    situation("a plateau, at an epoch end", notice("epoch end", 2), schedule="plateau", validate="epoch", num_epochs=3),
    situation("a plateau, crash", crash(number=15), schedule="plateau", validate="epoch", num_epochs=3),
]

SEVERAL_LIVES = [
    situation("two notices in two lives", notice(number=3), notice(number=3)),
    situation("three notices in one epoch", *(notice(number=2),) * 3),
    situation("a notice in each life, counted", *(notice(number=3),) * 3, loader="counted"),
    situation("a notice in each life, stateful", *(notice(number=3),) * 3, loader="stateful"),
    situation("a notice and a crash", notice(number=3), crash(number=3)),
    situation("a crash and a notice", crash(number=8), notice(number=2)),
    situation("a crash loop before anything is saved", crash(number=1), crash(number=1), crash(number=1)),
    situation(
        "notices in training, in a validation, at an end",
        notice(number=3),
        notice("validation", 2),
        notice("epoch end", 1),
        validate="epoch",
        schedule="epoch",
    ),
    situation("the same validation twice", notice("validation", 2), notice("validation", 2), validate="epoch"),
    situation("a notice in each accumulation", *(notice(number=2),) * 3, accumulate=2, num_loaders=2),
]

CHANGES = [
    situation("more epochs after the end", changed={"num_epochs": 3}),
    situation("more epochs after the end, schedule by epoch", schedule="epoch", changed={"num_epochs": 3}),
    situation("more epochs after the end, validated", schedule="epoch", validate="epoch", changed={"num_epochs": 4}),
    situation("more epochs after the end, counted", loader="counted", changed={"num_epochs": 3}),
    situation("more epochs after the end, stateful", loader="stateful", changed={"num_epochs": 3}),
    situation("more epochs after the end, accumulated", accumulate=4, changed={"num_epochs": 3}),
    situation("more epochs after a notice", notice(number=4), changed={"num_epochs": 3}),
    situation("more epochs after a notice at the end", notice("epoch end", 2), changed={"num_epochs": 3}),
    situation("fewer epochs than trained", changed={"num_epochs": 1}, expected="told", says="epoch"),
    situation("saves at other steps", notice(number=4), changed={"every_steps": 1}),
    situation(
        "other validations", notice(number=4), validate="epoch", changed={"validate": "never"}, expected="samples"
    ),
    situation(
        "larger batches",
        notice(number=3),
        changed={"batch_size": 8},
        num_samples=32,
        expected="samples",
        unknown_to=("trainer", "sft"),  # they keep the samples per step, so they refuse: see test_another_batch_size
    ),
    situation(
        "larger batches in the second epoch",
        notice(number=11),
        changed={"batch_size": 8},
        num_samples=32,
        expected="samples",
        unknown_to=("trainer", "sft"),
    ),
    situation("smaller batches", notice(number=3), changed={"batch_size": 2}, expected="samples"),
    situation(
        "larger batches, counted",
        notice(number=3),
        loader="counted",
        changed={"batch_size": 8},
        expected="told",
        says="batch.size|are trained on twice",
    ),
    situation("more workers, elastic", notice(number=4), is_noisy=True, changed={"num_workers": 2}),
    situation("no workers, elastic", notice(number=4), is_noisy=True, num_workers=2, changed={"num_workers": 0}),
    situation(
        "more workers, stateful",
        notice(number=4),
        loader="stateful",
        changed={"num_workers": 2},
        expected="refused",
        says="num_workers",
    ),
    situation("another learning rate", notice(number=4), changed={"lr": 0.02}, expected="told", says=r"\blr\b"),
    situation(
        "another optimizer", notice(number=4), changed={"optimizers": ("sgd",)}, expected="refused", says="optimizer"
    ),
    situation(
        "one optimizer more",
        notice(number=4),
        changed={"optimizers": ("adam", "sgd")},
        expected="refused",
        says="optimizer",
    ),
    situation(
        "one optimizer fewer",
        notice(number=4),
        optimizers=("adam", "sgd"),
        changed={"optimizers": ("adam",)},
        expected="refused",
        says="optimizer",
    ),
    situation("a schedule more", notice(number=4), changed={"schedule": "step"}, expected="refused", says="schedule"),
    situation(
        "a schedule fewer",
        notice(number=4),
        schedule="step",
        changed={"schedule": "none"},
        expected="refused",
        says="schedule",
    ),
    situation(
        "another kind of schedule",
        notice(number=4),
        schedule="step",
        changed={"schedule": "epoch"},
        expected="told",
        says="schedule|StepLR",
    ),
    situation("a wider model", notice(number=4), changed={"width": 20}, expected="refused", says="16"),
    situation(
        "another kind of loader", notice(number=4), changed={"loader": "counted"}, expected="refused", says="kind"
    ),
    situation("another seed of the data", notice(number=4), changed={"data_seed": 8}, expected="refused", says="seed"),
    situation(
        "more samples, elastic", notice(number=4), changed={"num_samples": 32}, expected="refused", says="samples"
    ),
    situation(
        "more samples, counted",
        notice(number=4),
        loader="counted",
        changed={"num_samples": 32},
        expected="told",
        says=r"num_samples|\d samples|length",
    ),
    situation(
        "other accumulation",
        notice(number=4),
        changed={"accumulate": 2},
        expected="told",
        says="accumulat",
    ),
    situation("one loader more", notice(number=4), changed={"num_loaders": 2}, expected="told", says="loader|place"),
    situation(
        "one loader fewer",
        notice(number=4),
        num_loaders=2,
        changed={"num_loaders": 1},
        expected="told",
        says="loader|place",
    ),
]

SITUATIONS = [*PLACES, *VALIDATIONS, *ACCUMULATIONS, *LOADERS, *OPTIMIZERS, *SEVERAL_LIVES, *CHANGES]

KILLED_FOR_REAL = [
    situation("SIGKILL in the middle", crash(number=8, kind="SIGKILL"), every_steps=1),
    situation("SIGKILL within an accumulation", crash(number=8, kind="SIGKILL"), accumulate=2, every_steps=1),
    situation("SIGKILL in a validation", crash("validation", 2, kind="SIGKILL"), validate="epoch", schedule="plateau"),
]

TWO_RANKS = [
    situation("a notice on rank 1", notice(number=4, rank=1), num_ranks=2, num_samples=48),
    situation("a notice on rank 0 within an accumulation", notice(number=4), num_ranks=2, num_samples=48, accumulate=2),
    situation(
        "a notice on rank 1 in a validation",
        notice("validation", 2, rank=1),
        num_ranks=2,
        num_samples=48,
        validate="epoch",
        schedule="step",
    ),
    situation("a notice on rank 1, counted", notice(number=8, rank=1), num_ranks=2, num_samples=48, loader="counted"),
]
