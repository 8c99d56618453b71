"""Networks that write where others only read: into their images, their buffers, their modes."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from panning_core import data, masks, metrics, models, training
from panning_core.analysis import pathways
from panning_core.methods import gumbel_softmax
from panning_core.runs import base, dynamic, freeze, prune, stochastic_gradient, tickets

IMAGES, LABELS = np.random.default_rng(0).random((160, 6, 6)), np.arange(160) % 4


@pytest.fixture
def splits():
    return data.from_arrays(IMAGES, LABELS, IMAGES[:40], LABELS[:40])


class Centred(nn.Module):
    """Keeps a running mean, as DINO's centre or a memory bank: assigned anew, or written into."""

    input_shape = (1, 6, 6)

    def __init__(self, assigned=True, persistent=True):
        super().__init__()
        self.a, self.out, self.assigned = nn.Linear(36, 16), nn.Linear(16, 4), assigned
        self.register_buffer("centre", torch.zeros(16), persistent=persistent)

    def forward(self, x):
        h = self.a(torch.flatten(x, 1))
        if self.training and self.assigned:
            self.centre = 0.9 * self.centre + 0.1 * h.detach().mean(0)
        elif self.training:
            self.centre.mul_(0.9).add_(h.detach().mean(0), alpha=0.1)
        return self.out(torch.relu(h - self.centre))


class Frozen(nn.Module):
    """Its BatchNorm stays in eval mode, as in detection."""

    input_shape = (1, 6, 6)

    def __init__(self):
        super().__init__()
        self.c, self.b, self.out = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(64, 4)
        self.b.running_mean.fill_(0.3), self.b.running_var.fill_(4.0)

    def train(self, mode=True):
        super().train(mode)
        self.b.eval()
        return self

    def forward(self, x):
        return self.out(torch.relu(self.b(self.c(x))).flatten(1))


class Spare(nn.Module):
    """A layer that forward does not call."""

    input_shape = (1, 6, 6)

    def __init__(self):
        super().__init__()
        self.a, self.spare, self.out = nn.Linear(36, 16), nn.Linear(16, 7), nn.Linear(16, 4)

    def forward(self, x):
        return self.out(torch.relu(self.a(x.flatten(1))))


def interrupted(model, splits, recipe, path):
    """The losses of a training that is stopped in its last epoch and goes on."""

    def stop(row):
        if row["epoch"] == 3:
            raise KeyboardInterrupt

    again = copy.deepcopy(model)
    with pytest.raises(KeyboardInterrupt):
        training.train(model, masks.ones(model), splits, recipe, observe=stop, checkpoint=path)
    log = training.train(again, masks.ones(again), splits, recipe, checkpoint=path)
    return log.loss.tolist()


def test_a_network_that_writes_into_its_images_leaves_the_data_alone(monkeypatch):
    def inplace(shape, classes):
        layers = (nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, classes))
        return nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), *layers)

    monkeypatch.setitem(models.MODELS, "inplace", inplace)
    splits, where = data.load("digits"), base.Context()
    before = [part.x.clone() for part in (splits.train, splits.validation, splits.test)]
    short = {"images": 200, "model": "inplace"}
    dynamic.Dynamic(**short, method="set", epochs=4, updates=4).execute(where)
    tickets.Tickets(**short, tickets=1).execute(where)
    stochastic_gradient.StochasticGradient(**short, epochs=1).execute(where)
    model = models.build("inplace", splits.input_shape, splits.classes, seed=0)
    freeze.train(model, masks.ones(model), splits, training.Recipe(1, 500), "frozen")
    training.tested(model, splits.test)
    pathways.recalls(model, masks.ones(model), splits.test)
    for x, part in zip(before, (splits.train, splits.validation, splits.test)):
        assert torch.equal(part.x, x)


def test_a_rate_of_numpys_does_not_spoil_the_checkpoint(splits, tmp_path):
    rate = np.logspace(-2, -1, 3)[1]
    recipe = training.Recipe(epochs=4, batch_size=32, lr=rate)
    model = Spare()
    whole = training.train(copy.deepcopy(model), masks.ones(model), splits, recipe)
    assert interrupted(model, splits, recipe, tmp_path / "c.pt") == whole.loss.tolist()


@pytest.mark.parametrize("persistent", [True, False])
def test_buffers_outside_of_the_state_dict_are_resumed_too(splits, persistent, tmp_path):
    recipe = training.Recipe(epochs=4, batch_size=32)
    model = Centred(assigned=False, persistent=persistent)
    whole = training.train(copy.deepcopy(model), masks.ones(model), splits, recipe)
    assert interrupted(model, splits, recipe, tmp_path / "c.pt") == whole.loss.tolist()


def test_a_network_that_assigns_to_its_buffers_is_trained_and_stays_whole(splits):
    model = Centred()
    log = training.train(model, masks.ones(model), splits, training.Recipe(2, 32))
    assert type(model.centre) is torch.Tensor and np.isfinite(log.loss).all()
    assert model(splits.test.x).shape == (40, 4)


def test_a_networks_own_train_decides_what_is_in_which_mode():
    model, x, y = Frozen(), torch.randn(16, 1, 6, 6), torch.arange(16) % 4
    model.train()
    loss = F.cross_entropy(model(x), y)
    assert metrics.loss(model, masks.ones(model), (x, y)) == pytest.approx(float(loss), abs=1e-6)
    loss.backward()
    scores = metrics.snip(model, masks.ones(model), (x, y))
    for name, weight in models.prunable(model).items():
        assert torch.allclose(scores[name], (weight * weight.grad).abs(), atol=1e-6)
    assert model.training and not model.b.training


def test_gates_leave_out_a_layer_that_is_not_called(splits):
    mask, _ = gumbel_softmax.learn(Spare(), splits, 0.3, 0, epochs=1)
    assert masks.count(mask)


def test_a_network_without_the_usual_layers_can_be_swept(monkeypatch):
    class OneDimensional(nn.Sequential):
        also_prunable = (nn.Conv1d,)

    def made(shape, classes):
        layers = nn.Conv1d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv1d(8, classes, 8), nn.Flatten()
        return OneDimensional(nn.Flatten(1, 2), *layers)

    monkeypatch.setitem(models.MODELS, "one-dimensional", made)
    run = prune.Run("digits", "one-dimensional", "snip", 0.5, epochs=1)
    assert prune.tasks([run], "cpu") == [[run]]
