"""The callback finds its trainer, or says that it has none."""

from __future__ import annotations

import signal

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from spot_plugins.errors import ConfigError
from spot_plugins.transformers import SpotTrainerCallback
from spot_plugins.transformers.overrides import Overrides


class Subclass(Trainer):
    """A trainer whose ``__init__`` does something after that of ``Trainer``."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.more = True


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, x):
        return {"loss": self.layer(x).sum()}


def make(tmp_path, kind=Trainer, callbacks=(), data=None, **settings):
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "output"), use_cpu=True, report_to=[], disable_tqdm=True, max_steps=1, **settings
    )
    data = [{"x": torch.ones(1)}] * 4 if data is None else data
    return kind(model=Net(), args=arguments, train_dataset=data, callbacks=[*callbacks])


def spot(tmp_path, **settings):
    return SpotTrainerCallback(str(tmp_path / "run"), every_steps=1, **settings)


@pytest.mark.parametrize("kind", [Trainer, Subclass])
def test_a_trainer_made_with_the_callback_has_it(kind, tmp_path):
    """The trainer keeps the name of its class, and is one of that class."""
    trainer = make(tmp_path, kind, [spot(tmp_path)])

    assert isinstance(trainer, Overrides)
    assert isinstance(trainer, kind)
    assert type(trainer).__name__ == kind.__name__


def test_attach(tmp_path):
    """A trainer that exists gets the callback too."""
    trainer, callback = make(tmp_path), spot(tmp_path)
    callback.attach(trainer)

    assert isinstance(trainer, Overrides)
    assert callback in trainer.callback_handler.callbacks


def test_without_a_trainer_it_is_refused(tmp_path):
    """add_callback() does not say which trainer it is."""
    trainer = make(tmp_path)
    trainer.add_callback(spot(tmp_path))

    with pytest.raises(ConfigError, match=r"this SpotTrainerCallback has no trainer, .* callback\.attach\(trainer\)"):
        trainer.train()


def test_one_callback_for_one_trainer(tmp_path):
    """Neither may have two of the other."""
    trainer = make(tmp_path, callbacks=[spot(tmp_path)])
    with pytest.raises(ConfigError, match="one SpotTrainerCallback belongs to one trainer"):
        spot(tmp_path).attach(trainer)

    callback = spot(tmp_path)
    callback.attach(make(tmp_path))
    with pytest.raises(ConfigError, match="one SpotTrainerCallback belongs to one trainer"):
        callback.attach(make(tmp_path))


class OwnEpoch(Trainer):
    def _run_epoch(self, **kwargs): ...


class Generating(Trainer):
    """A trainer with the attributes by which those of TRL that generate are known."""

    _buffered_inputs = None
    use_vllm = _is_vlm = False


class OfTRL(Trainer):
    __module__ = "trl.experimental.orpo.orpo_trainer"


class GeneratingOfTRL(Generating):
    __module__ = "trl.experimental.gmpo.gmpo_trainer"


class OwnLoader(Trainer):
    def get_train_dataloader(self):
        return torch.utils.data.DataLoader(self.train_dataset)


REFUSED = {
    "auto_find_batch_size": ({"auto_find_batch_size": True}, "auto_find_batch_size=True begins the training again"),
    "enable_jit_checkpoint": ({"enable_jit_checkpoint": True}, "enable_jit_checkpoint=True takes SIGTERM as well"),
    "ignore_data_skip": ({"ignore_data_skip": True}, "ignore_data_skip=True trains on samples twice"),
    "split_batches": (
        {"accelerator_config": {"split_batches": True}},
        "split_batches=True makes the batches of a rank depend on the number of ranks",
    ),
    "batch_rebalance": (
        {"train_sampling_strategy": "batch_rebalance"},
        "train_sampling_strategy='batch_rebalance' is not supported yet, because its order depends on the batches",
    ),
    "own loop": ({"kind": OwnEpoch}, r"OwnEpoch\._run_epoch\(\) replaces the training loop of Trainer"),
    "experimental": ({"kind": GeneratingOfTRL}, "GeneratingOfTRL trains on what it generates, and is one of the exp"),
    "own loader": ({"kind": OwnLoader}, "this DataLoader is not prepared, so its position cannot be saved"),
}


@pytest.mark.parametrize(("settings", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_supported_is_refused(settings, words, tmp_path, monkeypatch):
    """In words, before a step is trained."""
    trainer = make(tmp_path, callbacks=[spot(tmp_path)], **settings)

    with pytest.raises(ConfigError, match=words):
        trainer.train()

    assert trainer.state.global_step == 0


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("is_deepspeed_enabled", True, "DeepSpeed has copies of weights and optimizer that are not saved"),
        ("is_fsdp_enabled", True, "FSDP1 under a Trainer is not supported"),
        ("hp_search_backend", "optuna", r"hyperparameter_search\(\) trains several models"),
    ],
)
def test_packages_that_are_not_supported_are_refused(name, value, words, tmp_path):
    """The trainer says by these attributes that it uses one, and that package need not be here."""
    trainer = make(tmp_path, callbacks=[spot(tmp_path)])
    setattr(trainer, name, value)

    with pytest.raises(ConfigError, match=words):
        trainer.train()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("use_vllm", "use_vllm=True generates with random numbers of vLLM"),
        ("args.use_transformers_continuous_batching", "puts together batches by the time that they take"),
        ("_is_vlm", "Generating with a processor of images is not supported yet"),
        ("tools", "Generating with tools is not supported yet, because their state is not saved"),
        ("environment_factories", "Generating with environment_factories is not supported yet"),
        ("rollout_func", "Generating with rollout_func is not supported yet"),
    ],
)
def test_generations_that_cannot_be_repeated_are_refused(name, words, tmp_path):
    """In words, before a step is trained."""
    trainer = make(tmp_path, Generating, [spot(tmp_path)])
    setattr(trainer.args if name.startswith("args.") else trainer, name.removeprefix("args."), True)

    with pytest.raises(ConfigError, match=words):
        trainer.train()

    assert trainer.state.global_step == 0


def test_an_experimental_trainer_of_trl_is_named(tmp_path):
    """It may keep figures of its own, and is trained."""
    trainer = make(tmp_path, OfTRL, [spot(tmp_path)])

    with pytest.warns(UserWarning, match="OfTRL is one of the experimental trainers of TRL"):
        trainer.train()

    assert trainer.state.global_step == 1


def test_several_gpus_in_one_process_are_refused(tmp_path):
    """The arguments count the GPUs."""
    trainer = make(tmp_path, callbacks=[spot(tmp_path)])
    trainer.args._n_gpu = 2

    with pytest.raises(ConfigError, match="n_gpu=2: one process with several GPUs"):
        trainer.train()


def test_scaling_batches_are_refused(tmp_path):
    """The schedule of a trainer counts in steps."""
    with pytest.raises(ConfigError, match="elastic_batch='scale' is not supported under a Trainer"):
        spot(tmp_path, elastic_batch="scale")


def test_to_train_on_alone_is_refused(tmp_path):
    """A rank that stays would wait in a collective for those that have left."""
    with pytest.raises(ConfigError, match="on_notice='continue' is not supported under a Trainer, whose ranks make"):
        spot(tmp_path, on_notice="continue")


def test_signals_are_the_programs_until_training_begins(tmp_path):
    """A SIGTERM while data and model are loaded ends the process at once, because nothing would act on it."""
    before = signal.getsignal(signal.SIGTERM)
    make(tmp_path, callbacks=[spot(tmp_path)])

    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.set_wakeup_fd(-1) == -1
