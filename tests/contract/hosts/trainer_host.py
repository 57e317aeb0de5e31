"""The adapter of transformers' Trainer, written as docs/tutorials/trainer.md does."""

from __future__ import annotations

from tempfile import TemporaryDirectory

from accelerate.state import AcceleratorState, GradientState, PartialState
from contract.hosts import training
from torch.utils.data import DataLoader, default_collate
from training_pieces import Points
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from spot_plugins.transformers import SpotTrainerCallback


def collate(samples):
    return dict(zip(("number", "x", "labels"), default_collate(samples), strict=True))


class Places(TrainerCallback):
    """Tells the probe where the training is."""

    def __init__(self, probe):
        self.probe = probe

    def on_epoch_end(self, args, state, control, **kwargs):
        self.probe.come_to("epoch end")


class Probed:
    """A trainer that tells the probe what it does."""

    def __init__(self, program, probe, **kwargs):
        super().__init__(**kwargs)
        self.program = program
        self.probe = probe
        self.num_validated = 0

    def numbers_of(self, inputs):
        """Return the numbers of the samples in a batch."""
        return inputs["number"]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.probe.come_to("batch" if model.training else "validation")
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = result[0] if return_outputs else result
        epoch, step = int(self.state.epoch), self.state.global_step
        if model.training:
            self.probe.trained(epoch, step, self.numbers_of(inputs), training.rates([self.optimizer]), loss)
        else:
            self.probe.validated(epoch, step, self.num_validated, loss)
            self.num_validated += 1
        return result

    def evaluate(self, *args, **kwargs):
        self.num_validated = 0
        return super().evaluate(*args, **kwargs)


class WithLoss(Trainer):
    """A trainer with a loss of its own."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = training.loss_of(model, (inputs["number"], inputs["x"], inputs["labels"]))
        return (loss, {"loss": loss}) if return_outputs else loss


class Own(Probed, WithLoss):
    """Tells the probe what it does."""


class OwnLoader(Own):
    """A trainer that makes its loader itself, so that its batches are counted."""

    def get_train_dataloader(self):
        settings = {"batch_size": self.args.per_device_train_batch_size, "num_workers": self.program.num_workers}
        return self.accelerator.prepare(
            DataLoader(self.train_dataset, shuffle=True, collate_fn=self.data_collator, **settings)
        )


def forget_accelerators():
    """Forget what all accelerators of this process share. A new process has none."""
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()


def arguments_of(program, output, make=TrainingArguments, **more):
    """Return the arguments of *program*, of the class *make*, with those of this class alone."""
    is_plateau, by_steps = program.schedule == "plateau", isinstance(program.validate, int)
    return make(
        output,
        num_train_epochs=program.num_epochs,
        per_device_train_batch_size=program.batch_size,
        per_device_eval_batch_size=4,
        gradient_accumulation_steps=program.accumulate,
        learning_rate=program.lr,
        lr_scheduler_type="reduce_lr_on_plateau" if is_plateau else "constant",
        lr_scheduler_kwargs={"patience": 0, "threshold": 1.0, "factor": 0.5} if is_plateau else None,
        metric_for_best_model="loss",
        eval_strategy={"never": "no", "epoch": "epoch"}.get(program.validate, "steps"),
        eval_steps=program.validate if by_steps else None,
        data_seed=program.data_seed,
        dataloader_num_workers=program.num_workers,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        **more,
    )


def train(program, url, probe):
    """Train *program* at *url* and return its final state."""
    forget_accelerators()
    set_seed(1)
    spot = probe.host = SpotTrainerCallback(url, every_steps=program.every_steps, on_event=probe.on_event)
    net = training.Net(program.width)
    optimizers = training.make_optimizers(program, net)
    schedulers = training.make_schedulers(program, optimizers)
    with TemporaryDirectory() as output:
        trainer = (Own if program.loader == "elastic" else OwnLoader)(
            program,
            probe,
            model=net,
            args=arguments_of(program, output, remove_unused_columns=False, label_names=["labels"]),
            train_dataset=Points(program.num_samples, seed=program.data_seed, is_noisy=program.is_noisy),
            eval_dataset=Points(12, seed=3),
            data_collator=collate,
            optimizers=(optimizers[0], schedulers[0] if program.schedule == "step" else None),
            callbacks=[Places(probe), spot],
        )
        trainer.train()
    return training.final_state(trainer.model, [trainer.optimizer], [trainer.lr_scheduler])
