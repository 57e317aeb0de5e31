"""The promises of SpotHook inside one process. Real signals and real preemptions are in tests/drills."""

from __future__ import annotations

import os
import random
import signal
import threading

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.parallelism_config import ParallelismConfig
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType
from hearing import until_idle
from torch import nn
from torch.utils.data import DataLoader, Dataset

from spot_plugins.accelerate import Progress, SpotHook
from spot_plugins.data import elastic_loader
from spot_plugins.errors import ConfigError, IncompatibleCheckpointError
from spot_plugins.events import Staged
from spot_plugins.leave.phase import Phase

BATCHES = 4


class Noisy(Dataset):
    """Sample i is [i, a number drawn from torch's stream of whoever loads it]."""

    def __len__(self):
        return 2 * BATCHES

    def __getitem__(self, index):
        return torch.tensor([index, torch.rand(()).item()])


class ProcessGroups(Dataset):
    """Sample i is the process group of whoever loads it."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return os.getpgid(0)


class StoppedError(Exception):
    """Ends a training in the middle, as a crash does."""


class Job:
    """One process life of a small training at *url*."""

    def __init__(self, url, *, accumulate=1, scaler=None, every_steps=1, prepare=True, **settings):
        for state in (AcceleratorState, PartialState, GradientState):
            state._reset_state()
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
        self.accelerator.scaler = scaler
        self.events = []
        settings |= {"every_steps": every_steps, "on_event": [self.events.append]}
        self.spot = SpotHook(self.accelerator, url, **settings)
        torch.manual_seed(1)
        self.net, self.loader = nn.Linear(2, 1), elastic_loader([torch.ones(2)] * 4 * BATCHES, batch_size=4)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)
        if prepare:
            self.net, self.optimizer, self.loader = self.accelerator.prepare(self.net, self.optimizer, self.loader)

    def train_on(self, batch, factor=1.0):
        with self.accelerator.accumulate(self.net):
            self.accelerator.backward(self.net(batch).sum() * factor)
            self.optimizer.step()
            self.optimizer.zero_grad()

    def run(self, epochs=2, stop_at=None):
        """Train, and crash behind step *stop_at* once it is stored. Return the (epoch, step) of each batch."""
        seen = []
        with self.spot as spot:
            spot.resume()
            for epoch in spot.epochs(epochs):
                for batch in spot.batches(self.loader):
                    self.train_on(batch)
                    spot.after_step()
                    seen.append((epoch, spot.progress.step))
                    self.wait_stored()
                    if spot.progress.step == stop_at:
                        raise StoppedError
        return seen

    def wait_stored(self):
        """Wait until nothing is on its way: a save that is due while another is under way is put off."""
        until_idle(self.spot._session)


@pytest.fixture
def url(tmp_path):
    return f"file://{tmp_path}/run"


def resumed_from(url, step, **settings):
    """Return a job whose run was stopped behind *step*."""
    with pytest.raises(StoppedError):
        Job(url, **settings).run(stop_at=step)
    return Job(url, **settings)


def test_a_first_run_begins_at_the_beginning(url):
    """
    resume() says so, and epochs() and batches() yield all there is.
    """
    job = Job(url)
    with job.spot as spot:
        assert spot.resume() == Progress(step=0, epoch=0, batches=0, resumed=False)
        assert [len(list(spot.batches(job.loader))) for _ in spot.epochs(2)] == [BATCHES, BATCHES]


def test_a_resumed_run_goes_on_in_the_middle_of_the_epoch(url):
    """
    It knows how far it is, and does what is left, no more and no less.
    """
    job = resumed_from(url, BATCHES + 1)

    with job.spot as spot:
        assert spot.resume() == Progress(step=BATCHES + 1, epoch=1, batches=1, resumed=True)
        assert list(spot.epochs(1)) == []
        assert [len(list(spot.batches(job.loader))) for _ in spot.epochs(2)] == [BATCHES - 1]
        assert spot.progress == Progress(step=BATCHES + 1, epoch=2, batches=0, resumed=True)


def test_an_epoch_whose_last_batch_was_saved_comes_again_without_batches(url):
    """
    The program's own code behind the batches, such as validation, may not have run.
    """
    job = resumed_from(url, BATCHES)

    with job.spot as spot:
        assert spot.resume() == Progress(step=BATCHES, epoch=0, batches=BATCHES, resumed=True)
        assert [(epoch, len(list(spot.batches(job.loader)))) for epoch in spot.epochs(2)] == [(0, 0), (1, BATCHES)]


def test_a_finished_training_has_nothing_left_to_do(url):
    """
    Its end is stored when the block is left; run again it does nothing, and with more epochs it does those.
    """
    assert len(Job(url, every_steps=100).run(epochs=2)) == 2 * BATCHES
    assert Job(url, every_steps=100).run(epochs=2) == []
    assert Job(url, every_steps=100).run(epochs=3)[0] == (2, 2 * BATCHES + 1)


def test_steps_are_counted_where_gradients_are_applied(url):
    """
    Under accumulation that is every third batch here, and the last one of the epoch.
    """
    assert [step for _, step in Job(url, accumulate=3).run(epochs=2)] == [0, 0, 1, 2, 2, 2, 3, 4]


def test_it_knows_the_last_committed_step_and_the_one_it_resumed_from(url):
    """
    Both are None where there is nothing to say, and stay when the block is left.
    """
    job = Job(url)
    assert (job.spot.last_committed_step, job.spot.resumed_from) == (None, None)
    with job.spot as spot:
        spot.resume()
        job.train_on(next(spot.batches(job.loader)))
        spot.after_step()
        job.wait_stored()
        assert (spot.last_committed_step, spot.resumed_from) == (1, None)
        next(spot.epochs(1))

    job = Job(url)
    job.run(epochs=1)
    assert (job.spot.last_committed_step, job.spot.resumed_from) == (BATCHES, 1)


def test_a_step_that_the_scaler_leaves_out_counts(url):
    """
    The scaler has changed and the data has moved on: Accelerate's own loops count it as well.
    """
    job = Job(url, scaler=torch.amp.GradScaler("cpu"))
    with job.spot as spot:
        spot.resume()
        job.train_on(next(spot.batches(job.loader)), factor=float("inf"))
        assert job.accelerator.optimizer_step_was_skipped
        spot.after_step()
        assert spot.progress.step == 1


def test_accumulation_goes_on_where_it_was(url):
    """
    Accelerate's counter of batches comes back when it does not begin anew with each epoch.
    """
    job = resumed_from(url, 1, accumulate=3)
    with job.spot as spot:
        spot.resume()
        assert job.accelerator.step == 3


def test_what_the_user_registers_comes_back(url):
    """
    By register(name, ...) and by accelerator.register_for_checkpointing(...).
    """

    class Counter:
        number = 0

        def state_dict(self):
            return {"number": self.number}

        def load_state_dict(self, state):
            self.number = state["number"]

    def job_with(one, other):
        job = Job(url)
        job.spot.register("mine", one)
        job.accelerator.register_for_checkpointing(other)
        return job

    one, other = Counter(), Counter()
    one.number, other.number = 5, 7
    job_with(one, other).run()
    one, other = Counter(), Counter()
    job_with(one, other).run()
    assert (one.number, other.number) == (5, 7)


def test_a_name_that_is_taken_is_refused(url):
    """
    Two parts under one name would be one in the checkpoint.
    """
    job = Job(url)
    job.spot.register("model-0", nn.Linear(1, 1))
    with pytest.raises(ValueError, match="registered already"), job.spot as spot:
        spot.resume()


def test_a_loader_for_validation_knows_how_often_it_was_gone_through(url):
    """
    Accelerate takes that for its epoch, and shuffles by it.
    """

    def job_with_validation():
        job = Job(url)
        val = job.accelerator.prepare(elastic_loader(list(range(8)), batch_size=2, seed=3))
        return job, val

    job, val = job_with_validation()
    with job.spot as spot:
        spot.resume()
        first = list(val)
    job, val = job_with_validation()
    with job.spot as spot:
        spot.resume()
        second = list(val)
    job, val = job_with_validation()
    whole = [list(val), list(val)]
    job.spot.__exit__(None, None, None)
    assert torch.equal(torch.stack(first + second), torch.stack(whole[0] + whole[1]))
    assert not torch.equal(torch.stack(first), torch.stack(second))


def test_workers_of_a_loader_that_is_prepared_late_are_shielded_too(url):
    """
    A signal to the process group would end them, and the training with them, before anything is saved.
    """
    job = Job(url)
    with job.spot as spot:
        spot.resume()
        loader = job.accelerator.prepare(DataLoader(ProcessGroups(), num_workers=1))
        groups = torch.cat(list(spot.batches(loader))).tolist()
        assert os.getpgid(0) not in groups


@pytest.mark.filterwarnings("ignore:the loop over spot.batches")  # the program leaves it to be stopped, and goes on
@pytest.mark.parametrize(("fast_forward", "told"), [("auto", "fetching . batches again"), ("skip", "passing over 1 ")])
def test_a_data_set_may_draw_from_the_global_stream_if_the_training_does_not(fast_forward, told, url):
    """
    Any loader, no worker, no dropout: augmentation is repeated while the loader is wound forward, and goes on then.
    """

    def train(job, num_steps):
        """Return what was seen; draws from the stream nowhere else."""
        seen = []
        with job.spot as spot:
            spot.resume()
            for _ in spot.epochs(2):
                for batch in spot.batches(job.loader):
                    job.train_on(batch)
                    spot.after_step()
                    seen.append(batch.tolist())
                    if len(seen) == num_steps:
                        job.wait_stored()
                        spot._session.save(spot.progress.step)
                        return seen
        return seen

    def noisy_job(url):
        job = Job(url, every_steps=100, fast_forward=fast_forward)
        job.loader = job.accelerator.prepare(DataLoader(Noisy(), batch_size=2, shuffle=True))
        return job

    whole = train(noisy_job(url + "-whole"), None)
    for num_steps in (3, BATCHES + 3):
        first = train(noisy_job(f"{url}-{num_steps}"), num_steps)
        with pytest.warns(UserWarning, match=told):
            rest = train(noisy_job(f"{url}-{num_steps}"), None)
        assert first + rest == whole


def test_random_numbers_in_a_pause_are_not_the_trainings(url):
    """
    Whether a validation was completed, broken off or left out makes no difference to the training.
    """

    def draw():
        return random.random(), np.random.rand(), torch.rand(()).item()

    job = Job(url)
    with job.spot as spot:
        spot.resume()
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        expected = draw()
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        with spot.pause():
            assert draw() == expected
        broken_off = spot.pause()
        broken_off.__enter__()
        draw()
        assert not broken_off.__exit__(StoppedError, StoppedError(), None)  # the error goes on,
        assert spot._session._phase.now is Phase.TRAINING  # and so does the training, if the program catches it
        assert draw() == expected


def test_a_pause_stages_the_step_behind_which_training_stands(url):
    """
    A notice in it has nothing left to copy.
    """
    job = Job(url, every_steps=100)
    with job.spot as spot:
        spot.resume()
        job.train_on(next(spot.batches(job.loader)))
        spot.after_step()
        with spot.pause():
            spot.check()
            assert [(event.step, event.trigger) for event in job.events if isinstance(event, Staged)] == [(1, "pause")]


def test_a_pause_in_the_middle_of_a_step_says_that_a_notice_has_to_wait(url):
    """
    Before after_step(), or while gradients are accumulated, the state is that of no step: it must not be staged.
    """
    job = Job(url, accumulate=2, every_steps=100)
    with job.spot as spot:
        spot.resume()
        batches = spot.batches(job.loader)
        job.train_on(next(batches))  # the first of two
        spot.after_step()
        with pytest.warns(UserWarning, match="in the middle of a step"), spot.pause():
            spot.check()
        job.train_on(next(batches))
        with pytest.warns(UserWarning, match="in the middle of a step"), spot.pause():
            spot.check()
        assert not any(isinstance(event, Staged) for event in job.events)
        spot.after_step()
        with spot.pause():
            spot.check()


def test_a_pause_at_the_head_of_the_body_does_not_count_the_batch_that_was_handed_out(url):
    """
    The batch is trained on after the pause; a resumed run must get it again.
    """
    job = Job(url, every_steps=100)
    with job.spot as spot:
        spot.resume()
        batches = spot.batches(job.loader)
        job.train_on(next(batches))
        spot.after_step()
        next(batches)

    job = Job(url, every_steps=100)
    with job.spot as spot:
        assert spot.resume().batches == 1
        assert len(list(spot.batches(job.loader))) == BATCHES - 1


def test_nothing_prepared_is_a_clear_error(url):
    """
    resume() before prepare() would restore nothing.
    """
    job = Job(url, prepare=False)
    with pytest.raises(ConfigError, match=r"call accelerator\.prepare"), job.spot as spot:
        spot.resume()


def test_what_is_prepared_after_resume_is_a_clear_error(url):
    """
    It would be neither restored nor saved.
    """
    job = Job(url)
    with job.spot as spot:
        spot.resume()
        job.accelerator.prepare(torch.optim.lr_scheduler.StepLR(job.optimizer.optimizer, 1))
        with pytest.raises(ConfigError, match="1 models, optimizers or schedulers were prepared after"):
            spot.batches(job.loader)


def test_parameters_that_are_trained_but_would_not_be_saved_are_a_clear_error(url):
    """
    A loss with parameters of its own is easily forgotten in prepare().
    """
    loss = nn.Linear(2, 2)
    job = Job(url)
    job.optimizer.add_param_group({"params": loss.parameters()})
    with pytest.raises(ConfigError, match="optimizer 0 trains 2 parameters of no prepared model"), job.spot as spot:
        spot.resume()

    job = Job(url)
    job.optimizer.add_param_group({"params": loss.parameters()})
    with job.spot as spot:
        spot.register("loss", loss)
        spot.resume()


@pytest.mark.parametrize("kind", [DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM])
def test_state_out_of_reach_is_refused_at_once(kind, url):
    """
    With what to do instead, before anything is prepared.
    """
    job = Job(url)
    job.accelerator.state.distributed_type = kind
    with pytest.raises(ConfigError, match=f"distributed_type={kind.value}.*DDP or FSDP"):
        SpotHook(job.accelerator, url, every_steps=1)
    job.spot.__exit__(None, None, None)


def test_processes_that_accelerate_does_not_know_are_refused_at_once(url, monkeypatch):
    """
    Under torchrun on CPUs each process believes that it is alone, while the session would share the state out.
    """
    job = Job(url)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ConfigError, match=r"num_processes=1, but torch.distributed has 2.*ACCELERATE_USE_CPU=true"):
        SpotHook(job.accelerator, url, every_steps=1)
    job.spot.__exit__(None, None, None)


def test_tensor_parallelism_is_refused_at_once(url):
    """
    Its ranks hold slices too, while Accelerate's type of distribution is that of DDP.
    """
    job = Job(url)
    job.accelerator.state.parallelism_config = ParallelismConfig(tp_size=2)
    with pytest.raises(ConfigError, match="tp_size=2"):
        SpotHook(job.accelerator, url, every_steps=1)
    job.accelerator.state.parallelism_config = None
    job.spot.__exit__(None, None, None)


def test_settings_are_checked_at_once(monkeypatch, url):
    """
    Not at the first save; and variables fill in what is missing.
    """
    accelerator = Job(url, prepare=False)
    accelerator.spot.__exit__(None, None, None)
    accelerator = accelerator.accelerator
    with pytest.raises(ConfigError, match="every_steps=None and every_seconds=None"):
        SpotHook(accelerator, url)
    with pytest.raises(ConfigError, match="url is missing"):
        SpotHook(accelerator, every_steps=1)
    with pytest.raises(ConfigError, match="nowhere"):
        SpotHook(accelerator, "nowhere://bucket/run", every_steps=1).__enter__()
    monkeypatch.setenv("SPOT_URL", url)
    monkeypatch.setenv("SPOT_EVERY_STEPS", "3")
    SpotHook(accelerator).__exit__(None, None, None)


def test_a_loader_that_is_not_prepared_is_a_clear_error(url):
    """
    Its place could not be saved.
    """
    job = Job(url)
    with job.spot as spot:
        spot.resume()
        with pytest.raises(ConfigError, match="DataLoader is not prepared, so its position cannot be saved"):
            spot.batches(DataLoader([1, 2]))


def test_a_loader_is_gone_through_once_per_epoch(url):
    """
    A place in the second pass would look like one in the first.
    """
    job = Job(url)
    with job.spot as spot:
        spot.resume()
        list(spot.batches(job.loader))
        with pytest.raises(RuntimeError, match=r"twice with one loader in epoch 0"):
            spot.batches(job.loader)


def test_a_loop_past_batches_is_told_so(url):
    """
    `for batch in loader` trains on the same first samples after every preemption.
    """
    job = Job(url)
    with job.spot as spot:
        spot.resume()
        batches = iter(job.loader)
        job.train_on(next(batches))
        with pytest.warns(UserWarning, match=r"no batch came from spot\.batches"):
            spot.after_step()
        job.train_on(next(batches))
        spot.after_step()  # once is enough


def test_another_number_of_loaders_is_a_clear_error(url):
    """
    The place of a loader that is gone cannot be restored.
    """
    job = Job(url)
    job.loader = job.accelerator.prepare(elastic_loader(range(8), batch_size=2))
    with job.spot as spot:
        spot.resume()
        next(spot.batches(job.loader))
        spot.after_step()

    job = Job(url)
    with pytest.raises(IncompatibleCheckpointError, match="loader 1 was trained on, and only 1 are prepared"):
        job.spot.__enter__().resume()
    job.spot.__exit__(StoppedError, StoppedError(), None)


@pytest.mark.parametrize(
    "call",
    [
        lambda job: job.spot.after_step(),
        lambda job: job.spot.pause().__enter__(),
        lambda job: next(job.spot.epochs(1)),
        lambda job: job.spot.batches(job.loader),
    ],
    ids=["after_step", "pause", "epochs", "batches"],
)
def test_nothing_works_before_resume(call, url):
    """
    Saving what was not restored would overwrite progress.
    """
    job = Job(url)
    with job.spot, pytest.raises(RuntimeError, match=r"call spot\.resume\(\) first"):
        call(job)


def test_resume_is_called_once(url):
    """
    A second one would go back in time.
    """
    with Job(url).spot as spot:
        spot.resume()
        with pytest.raises(RuntimeError, match="called already"):
            spot.resume()


def test_the_handler_of_sigterm_is_ours_within_the_block_only(url):
    """
    Also when the block is left by an error; and outside the main thread nothing is installed, nor fails.
    """
    before = signal.getsignal(signal.SIGTERM)
    spot = Job(url).spot.__enter__()
    assert signal.getsignal(signal.SIGTERM) != before
    spot.__exit__(StoppedError, StoppedError(), None)
    assert signal.getsignal(signal.SIGTERM) == before

    results = []
    thread = threading.Thread(target=lambda: results.append(Job(url).run()))
    thread.start()
    thread.join()
    assert len(results) == 1


def test_a_training_that_was_never_resumed_stores_nothing(tmp_path):
    """
    Leaving the block early, before resume(), must not commit an empty checkpoint.
    """
    with Job(f"file://{tmp_path}/run").spot:
        pass
    assert not (tmp_path / "run" / "steps").exists()
