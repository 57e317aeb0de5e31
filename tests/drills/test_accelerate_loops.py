"""Training loops as people write them: interrupted and resumed, each is the one that was left alone."""

from __future__ import annotations

import warnings

import pytest
import torch
from loops import Life, Numbers, assert_exact, live
from torch.utils.data import DataLoader

from spot_plugins.data import elastic_loader
from spot_plugins.errors import ConfigError

pytestmark = pytest.mark.sampled

ENDS = [("kill", 6), ("term", 6), ("term", 10)]
each_end = pytest.mark.parametrize("end", ENDS, ids=lambda end: f"{end[0]}-{end[1]}")


def numbers(length=20, batch_size=2, seed=3, first=0):
    return elastic_loader(Numbers(length, first), batch_size=batch_size, seed=seed)


def train_on(life, net, optimizer, x, *, steps=True):
    """Go forward and backward, and step. Return the loss."""
    loss = net(x).square().mean()
    life.accelerator.backward(loss)
    if steps:
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


# Accumulation by hand


def by_hand(life, window=4, epochs=2):
    """Accumulate gradients without Accelerate's help, and call after_step() for every batch."""
    with life.hook() as spot:
        net = life.net()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
        net, optimizer, loader = life.accelerator.prepare(net, optimizer, numbers())
        spot.resume()
        for epoch in spot.epochs(epochs):
            batches = spot.batches(loader)
            for number, (index, x) in enumerate(batches, batches.start):
                is_last = (number + 1) % window == 0 or number + 1 == batches.start + len(batches)
                loss = train_on(life, net, optimizer, x, steps=is_last)
                life.point(index.tolist(), loss, key=(epoch, number))
                spot.after_step()
                life.stored()


@pytest.mark.parametrize("end", [("kill", 6), ("term", 6), ("term", 7), ("kill", 10), ("term", 12)], ids=str)
def test_accumulation_by_hand_is_saved_where_an_optimizer_steps(end, tmp_path):
    """
    after_step() for every batch counts windows, and a resume repeats the batches whose gradients were waiting.
    """
    assert_exact(by_hand, tmp_path, end)
    life = Life(f"file://{tmp_path}/steps", by_hand)
    life.run()
    assert life.spot.progress.step == 6  # windows of 4, 4 and 2 in each of two epochs


# after_step() forgotten


def forgetful(life, epochs=2):
    with life.hook() as spot:
        net = life.net()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
        net, optimizer, loader = life.accelerator.prepare(net, optimizer, numbers(40))
        spot.resume()
        for epoch in spot.epochs(epochs):
            for index, x in spot.batches(loader):
                loss = train_on(life, net, optimizer, x)
                life.point(index.tolist(), loss, key=(epoch, tuple(index.tolist())))
                life.stored()


@pytest.mark.filterwarnings("ignore:optimizers have stepped on")
@pytest.mark.parametrize("end", [("kill", 12), ("term", 12), ("term", 20), ("kill", 29)], ids=str)
def test_a_loop_that_forgets_after_step_is_saved_all_the_same(end, tmp_path):
    """
    A step ends where the loop asks for its next batch. A notice is obeyed there.
    """
    assert_exact(forgetful, tmp_path, end)


def test_a_loop_that_forgets_after_step_is_told_so_and_counted(tmp_path):
    """
    Within the first batches; and the end of the training is stored under the number of its steps.
    """
    life = Life(f"file://{tmp_path}/run", forgetful)
    with pytest.warns(UserWarning, match=r"stepped on 8 batches, and spot.after_step\(\) was not called"):
        life.run()
    assert life.spot.progress.step == 40


def test_a_short_training_that_forgets_after_step_is_told_so_at_its_end(tmp_path):
    """
    Its weights are not stored as those of step 0.
    """

    def short(life):
        with life.hook() as spot:
            net = life.net()
            optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
            net, optimizer, loader = life.accelerator.prepare(net, optimizer, numbers(6))
            spot.resume()
            for _ in spot.epochs(1):
                for _, x in spot.batches(loader):
                    train_on(life, net, optimizer, x)

    life = Life(f"file://{tmp_path}/run", short)
    with pytest.warns(UserWarning, match=r"stepped on 3 batches, and spot.after_step\(\) was not called"):
        life.run()
    assert life.spot.progress.step == life.spot.last_committed_step == 3


# Several optimizers, inner loops, skipped batches


def gan(life, epochs=2, critics=2):
    """Three optimizers: two critics that step on every batch, and a generator that steps on every third."""
    with life.hook() as spot:
        nets = [life.net() for _ in range(3)]
        optimizers = [torch.optim.Adam(net.parameters(), lr=0.02, betas=(0.5, 0.9)) for net in nets]
        prepared = life.accelerator.prepare(*nets, *optimizers, numbers(24))
        nets, optimizers, loader = prepared[:3], prepared[3:6], prepared[6]
        spot.resume()
        for epoch in spot.epochs(epochs):
            for index, x in spot.batches(loader):
                losses = []
                for net, optimizer in zip(nets[:critics], optimizers[:critics], strict=True):
                    optimizer.zero_grad()
                    loss = net(x + torch.randn_like(x)).mean() + nets[2](x).square().mean()  # no detach(), as often
                    life.accelerator.backward(loss)
                    optimizer.step()
                    losses.append(loss.item())
                if (spot.progress.step + 1) % 3 == 0:
                    optimizers[2].zero_grad()
                    losses.append(train_on(life, nets[2], optimizers[2], x))
                life.point(epoch, index.tolist(), losses)
                spot.after_step()
                life.stored()


@each_end
def test_a_gan_with_three_optimizers_is_exact(end, tmp_path):
    """
    A batch is one step, however many optimizers step on it.
    """
    assert_exact(gan, tmp_path, end)


def inner_loops(life, epochs=2):
    """Train several times on each batch, as PPO does, and report it once."""
    with life.hook() as spot:
        net = life.net()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
        net, optimizer, loader = life.accelerator.prepare(net, optimizer, numbers())
        spot.resume()
        for epoch in spot.epochs(epochs):
            for index, x in spot.batches(loader):
                losses = [train_on(life, net, optimizer, x + torch.rand(())) for _ in range(3)]
                life.point(epoch, index.tolist(), losses)
                spot.after_step()
                life.stored()


@each_end
def test_several_steps_on_one_batch_are_exact(end, tmp_path):
    """
    The inner loop is over at after_step().
    """
    assert_exact(inner_loops, tmp_path, end)


def skipping(life, epochs=2):
    """Skip the step of a batch whose loss is not finite, and validate at the end of an epoch."""
    with life.hook() as spot:
        net = life.net()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
        net, optimizer, loader = life.accelerator.prepare(net, optimizer, numbers())
        spot.resume()
        for epoch in spot.epochs(epochs):
            batches = spot.batches(loader)
            for number, (index, x) in enumerate(batches, batches.start):
                loss = net(x).square().mean()
                life.accelerator.backward(loss)
                if number % 3 < 2:
                    optimizer.step()
                optimizer.zero_grad()
                life.point(index.tolist(), loss.item(), key=(epoch, number))
                spot.after_step()
                life.stored()
            with spot.pause():
                spot.check()


@pytest.mark.parametrize("end", [("kill", 6), ("term", 7), ("term", 9)], ids=str)
def test_a_batch_without_a_step_is_no_step(end, tmp_path):
    """
    A loss that is not finite is often skipped.
    """
    assert_exact(skipping, tmp_path, end)


# limit=, max_steps=, break


def limited(life, epochs=3):
    with life.hook() as spot:
        net = life.net()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
        net, optimizer, loader = life.accelerator.prepare(net, optimizer, numbers())
        spot.resume()
        for epoch in spot.epochs(epochs):
            for index, x in spot.batches(loader, limit=5):
                with life.accelerator.accumulate(net):
                    loss = train_on(life, net, optimizer, x)
                life.point(epoch, index.tolist(), loss, life.accelerator.sync_gradients)
                spot.after_step()
                life.stored()


@each_end
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_limit_counts_from_the_head_of_the_epoch(end, accumulation, tmp_path):
    """
    And a window of accumulation ends with it, as with the last batch of a loader.
    """
    assert_exact(limited, tmp_path, end, gradient_accumulation_steps=accumulation)
    life = Life(f"file://{tmp_path}/whole", limited, gradient_accumulation_steps=accumulation)
    life.run()
    assert len(life.trace) == 15
    assert life.spot.progress.step == {1: 15, 2: 9}[accumulation]


def stepped(max_steps):
    def program(life):
        with life.hook() as spot:
            net = life.net()
            optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
            net, optimizer, loader = life.accelerator.prepare(net, optimizer, numbers())
            spot.resume()
            for epoch in spot.epochs(max_steps=max_steps):
                for index, x in spot.batches(loader):
                    loss = train_on(life, net, optimizer, x)
                    life.point(epoch, index.tolist(), loss)
                    spot.after_step()
                    life.stored()

    return program


@each_end
def test_max_steps_ends_exactly(end, tmp_path):
    """
    In the middle of an epoch, with or without a resume.
    """
    assert_exact(stepped(14), tmp_path, end)


@pytest.mark.parametrize("every_steps", [1, 5, 100])
def test_a_finished_training_trains_no_further_step(every_steps, tmp_path):
    """
    However often it is started. With a larger max_steps it is the training that was planned so long.
    """
    url = f"file://{tmp_path}/run"
    first, _ = live(url, stepped(14), every_steps=every_steps)
    for _ in range(3):
        again, weights = live(url, stepped(14), every_steps=every_steps)
        assert again == {}
    longer, weights = live(url, stepped(24), every_steps=every_steps)
    whole = live(f"file://{tmp_path}/whole", stepped(24), every_steps=every_steps)
    assert (first | longer, weights) == whole


def breaking(where):
    def program(life):
        """Leave the first loader early, then train on the second, and validate."""
        with life.hook() as spot:
            net = life.net()
            optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
            net, optimizer, one, other = life.accelerator.prepare(net, optimizer, numbers(), numbers(12, first=100))
            spot.resume()
            for epoch in spot.epochs(2):
                for index, x in spot.batches(one):
                    if where == "head" and spot.progress.step >= 4 + 10 * epoch:
                        break
                    loss = train_on(life, net, optimizer, x)
                    life.point(epoch, index.tolist(), loss)
                    spot.after_step()
                    life.stored()
                    if where == "foot" and spot.progress.step >= 4 + 10 * epoch:
                        break
                for index, x in spot.batches(other):
                    loss = train_on(life, net, optimizer, x)
                    life.point(epoch, index.tolist(), loss)
                    spot.after_step()
                    life.stored()
                with spot.pause():
                    spot.check()

    return program


@pytest.mark.filterwarnings("ignore:the loop over spot.batches")
@pytest.mark.parametrize(
    "end", [("kill", 3), ("term", 3), ("kill", 7), ("term", 7), ("term", 10), ("kill", 13)], ids=str
)
@pytest.mark.parametrize("where", ["head", "foot"])
def test_a_loader_that_was_left_by_break_does_not_come_again(where, end, tmp_path):
    """
    Training has moved on to other data in the same epoch.
    """
    assert_exact(breaking(where), tmp_path, end)


def test_a_break_at_the_foot_of_the_body_is_told(tmp_path):
    """
    A resume from that very step would train on one batch more.
    """
    with pytest.warns(UserWarning, match=r"left by `break` after after_step\(\).*max_steps="):
        live(f"file://{tmp_path}/run", breaking("foot"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        live(f"file://{tmp_path}/other", breaking("head"))


# Two loaders


def semi_supervised(order):
    def program(life):
        with life.hook() as spot:
            net = life.net()
            optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
            long, short = numbers(), numbers(6, first=100)
            net, optimizer, long, short = life.accelerator.prepare(net, optimizer, long, short)
            spot.resume()
            for epoch in spot.epochs(2):
                pairs = [spot.batches(long), spot.batches(short, repeat=True)]
                for pair in zip(*pairs[::order], strict=False):
                    (index, x), (other, y) = pair[::order]
                    with life.accelerator.accumulate(net):
                        loss = train_on(life, net, optimizer, torch.cat([x, y]))
                    life.point(epoch, index.tolist(), other.tolist(), loss, life.accelerator.sync_gradients)
                    spot.after_step()
                    life.stored()

    return program


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("order", [1, -1], ids=["long first", "short first"])
@pytest.mark.parametrize("end", [*ENDS, ("term", 13), ("kill", 15)], ids=str)
def test_a_repeated_loader_has_a_position_of_its_own(end, order, accumulation, tmp_path):
    """
    Across its passes and the epochs of the other. Only the other loader ends a window of accumulation.
    """
    assert_exact(semi_supervised(order), tmp_path, end, gradient_accumulation_steps=accumulation)


def test_all_samples_of_a_repeated_loader_come_equally_often(tmp_path):
    """
    10 steps of 2 epochs with 3 batches per pass: 6 passes and 2 batches.
    """
    trace, _ = live(f"file://{tmp_path}/run", semi_supervised(1))
    seen = [number for record in trace.values() for number in record[2]]
    assert [sorted(seen[start : start + 6]) for start in range(0, 36, 6)] == [list(range(100, 106))] * 6
    assert len({tuple(seen[start : start + 6]) for start in range(0, 36, 6)}) > 1  # each pass in its own order


def plain_repeated(life):
    with life.hook() as spot:
        net = life.net()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
        loader = DataLoader(Numbers(10), batch_size=2, shuffle=True)
        net, optimizer, loader = life.accelerator.prepare(net, optimizer, loader)
        spot.resume()
        for epoch in spot.epochs(max_steps=17):
            for index, x in spot.batches(loader, repeat=True):
                loss = train_on(life, net, optimizer, x)
                life.point(epoch, index.tolist(), loss)
                spot.after_step()
                life.stored()


@each_end
@pytest.mark.filterwarnings("ignore:fetching")
def test_a_plain_loader_is_repeated_exactly_too(end, tmp_path):
    """
    A training that knows steps alone.
    """
    assert_exact(plain_repeated, tmp_path, end)


def test_a_loader_is_repeated_or_not(tmp_path):
    """
    Its position means another thing. This holds from one process to the next as well.
    """

    def program(repeat):
        def run(life):
            with life.hook() as spot:
                net = life.net()
                optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
                net, optimizer, loader = life.accelerator.prepare(net, optimizer, numbers())
                spot.resume()
                for index, x in spot.batches(loader, repeat=repeat):
                    train_on(life, net, optimizer, x)
                    life.point(index.tolist())
                    spot.after_step()
                    life.stored()

        return run

    live(f"file://{tmp_path}/run", program(True), ("kill", 3))
    with pytest.raises(
        ConfigError, match="repeat=False differs from repeat=True, with which this loader was used before"
    ):
        live(f"file://{tmp_path}/run", program(False))
