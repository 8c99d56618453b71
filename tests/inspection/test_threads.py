"""Small work takes one thread, large work as many as there were, and all is restored."""

import pytest
import torch
from torch import nn

from panning_core import data, masks, models, pruning, training
from panning_core.analysis import pathways
from panning_core.inspection import threads


@pytest.fixture
def three():
    """PyTorch has three threads, as outside of workers it may."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def lenet():
    return models.build("lenet300", (1, 8, 8), 10, seed=0)


def test_inside_is_one_thread_and_afterwards_what_was_before(three):
    with threads.one():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3
    with pytest.raises(KeyError), threads.one():
        raise KeyError
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("images, expected", [(1, 1), (999, 1), (1000, 3), (2000, 3)])
def test_the_work_decides(three, images, expected):
    model = nn.Conv2d(1, 100, 1, bias=False)  # 100 weights, used at 100 * 100 places
    model.input_shape = (1, 100, 100)
    with threads.fitting(model, images):
        assert torch.get_num_threads() == expected


def test_a_network_that_does_not_say_what_it_reads_counts_each_weight_once(three):
    model = nn.Sequential(nn.Conv2d(1, 1000, 1, bias=False), nn.AdaptiveAvgPool2d(1))
    for images, expected in ((10**6 - 1, 1), (10**6, 3)):
        with threads.fitting(model, images):
            assert torch.get_num_threads() == expected


def test_pruning_and_training_choose_record_and_restore(three):
    splits, model = data.load("digits"), lenet()
    batch = data.balanced_batch(splits.train, 1, torch.Generator())
    seen = []
    mask, trace = pruning.prune(
        model, "snip", 0.1, batch, 2, observe=lambda *_: seen.append(torch.get_num_threads())
    )
    log = training.train(
        model,
        mask,
        splits,
        training.Recipe(epochs=1),
        observe=lambda _: seen.append(torch.get_num_threads()),
    )
    assert seen == [1, 1, 1]
    assert [row["threads"] for row in trace] == [1, 1]
    assert log.attrs["threads"] == 1
    assert torch.get_num_threads() == 3


def test_networks_that_train_together_take_the_threads_that_each_takes_alone(three, monkeypatch):
    splits, seen = data.load("digits"), []
    for trainer in (training.Dense, training.Shared):
        step = trainer.step
        monkeypatch.setattr(
            trainer,
            "step",
            lambda *given, step=step: [seen.append(torch.get_num_threads()), step(*given)][1],
        )
    models = [lenet(), lenet()]
    few = {name: torch.rand(m.shape) < 0.1 for name, m in masks.ones(models[1]).items()}
    dense, sparse = training.train_together(
        models, [masks.ones(models[0]), few], splits, training.Recipe(epochs=1)
    )
    assert [dense.attrs["engine"], sparse.attrs["engine"]] == ["dense", "sparse"]
    assert set(seen) == {1} and torch.get_num_threads() == 3


def test_the_mask_of_small_work_has_the_bits_of_a_sweep(three):
    batch = data.balanced_batch(data.load("digits").train, 10, torch.Generator())
    here, _ = pruning.prune(lenet(), "grasp", 0.1, batch)
    with threads.one():
        there, _ = pruning.prune(lenet(), "grasp", 0.1, batch)
    assert all(torch.equal(here[name], there[name]) for name in there)


def test_what_a_network_shows_of_itself_takes_one(three, monkeypatch):
    splits, model, seen = data.load("digits"), lenet(), []
    batch = data.balanced_batch(splits.train, 1, torch.Generator())
    mask, _ = pruning.prune(model, "synflow", 0.1, batch)
    forward = nn.Linear.forward

    def watched(self, x):
        seen.append(torch.get_num_threads())
        return forward(self, x)

    monkeypatch.setattr(nn.Linear, "forward", watched)
    monkeypatch.setattr(threads, "multiply_adds", lambda model: 1)  # asks no network
    for show in (
        lambda: pathways.contributions(model, mask),
        lambda: pathways.importance(model, mask),
        lambda: pathways.permutation_importance(model, mask, splits.validation, 1, 0),
        lambda: pathways.pathway(model, mask, 0),
        lambda: pathways.recalls(model, mask, splits.validation),
    ):
        seen.clear()
        show()
        assert set(seen) == {1} and torch.get_num_threads() == 3
