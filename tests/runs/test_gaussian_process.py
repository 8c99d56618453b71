"""Inducing Gaussian process networks: the head against closed forms, the trainings, the tasks."""

import json
import sys

import numpy as np
import pytest
import torch
from scipy.stats import norm

from panning_core.errors import UserError
from panning_core.runs import base
from panning_core.runs import gaussian_process as task
from panning_core.runs.gaussian_process import GaussianProcess

gpytorch = pytest.importorskip("gpytorch")
heads = pytest.importorskip("panning_core.methods.gaussian_process")


def column(*values):
    return torch.tensor(values, dtype=torch.double)[:, None]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def head(points, values, length=1.0):
    return heads.Inducing(points, torch.tensor(values, dtype=torch.double), length).double()


def test_mean_and_variance_are_those_of_the_table():
    """Points 0 and 1 with the values 1 and -1, length and scale 1: k K^-1 r by hand."""
    got = head(column(0, 1), [1, -1])(column(0.5, 0, 3))
    torch.testing.assert_close(
        got.mean, torch.tensor([0.0, 1.0, -0.315720]).double(), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        got.variance, torch.tensor([0.030456, 0.0, 0.973715]).double(), atol=1e-5, rtol=0
    )


def test_with_all_inputs_as_points_it_is_the_exact_process():
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF

    x, new = (torch.randn(n, 3, generator=seeded(n)).double() for n in (12, 7))
    y = torch.sin(x.sum(1))
    exact = GaussianProcessRegressor(RBF(1.7), alpha=heads.JITTER, optimizer=None)
    mean, deviation = exact.fit(x.numpy(), y.numpy()).predict(new.numpy(), return_std=True)
    got = head(x, y.tolist(), 1.7)(new)
    np.testing.assert_allclose(got.mean.detach(), mean, atol=1e-6)
    np.testing.assert_allclose(got.variance.detach().sqrt(), deviation, atol=1e-6)


def test_far_from_all_points_it_is_the_prior():
    one = head(column(0, 1), [5, -5])
    one.kernel.outputscale = 2.5
    far = one(column(60.0))
    assert far.mean.item() == pytest.approx(0, abs=1e-9)
    assert far.variance.item() == pytest.approx(2.5)


def test_the_order_of_the_points_does_not_matter():
    points, x = torch.randn(6, 2, generator=seeded(0)).double(), column(0.3, 2).expand(2, 2)
    values, order = torch.arange(6.0), [3, 1, 5, 0, 2, 4]
    one, other = head(points, values.tolist()), head(points[order], values[order].tolist())
    torch.testing.assert_close(one(x).mean, other(x).mean)
    torch.testing.assert_close(one(x).variance, other(x).variance)


def test_the_loss_is_the_predictive_likelihood_with_the_noise():
    one, x, y = head(column(0, 1), [1, -1]), column(0.5, 3), torch.tensor([0.4, -1.0]).double()
    mean, variance = (t.detach().numpy() for t in (one(x).mean, one(x).variance))
    likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
    likelihood.noise = 0.3
    wanted = -norm.logpdf(y.numpy(), mean, (variance + 0.3) ** 0.5).mean()
    assert one.loss(x, y, likelihood, 2).item() == pytest.approx(wanted, rel=1e-6)
    bernoulli, classes = gpytorch.likelihoods.BernoulliLikelihood(), torch.tensor([1.0, 0.0])
    scores = mean / (1 + variance) ** 0.5 * [1, -1]
    got = one.loss(x, classes.double(), bernoulli, 2).item()
    assert got == pytest.approx(-norm.logcdf(scores).mean(), rel=1e-6)


def test_the_deep_kernel_with_a_sure_posterior_is_the_inducing_process():
    """GPyTorch's own sparse process, with a posterior of the values that has no variance."""
    points, values = column(0, 1, 2.5), [1.0, -1.0, 0.5]
    x = column(-0.4, 0.6, 4)
    rival = heads.Variational(points, 1.0).double()
    root = torch.linalg.cholesky(rival.kernel(points).to_dense())
    rival(x)
    with torch.no_grad():
        state = rival.variational_strategy._variational_distribution
        whitened = torch.linalg.solve_triangular(root, column(*values), upper=False)
        state.variational_mean.copy_(whitened[:, 0])
        state.chol_variational_covar.zero_()
    rival.eval()
    got, wanted = rival(x), head(points, values)(x)
    torch.testing.assert_close(got.mean, wanted.mean, atol=2e-3, rtol=0)
    torch.testing.assert_close(got.variance, wanted.variance, atol=2e-3, rtol=0)


# --- The run ---


@pytest.mark.parametrize("model", task.MODELS)
@pytest.mark.parametrize("name", ["diabetes", "digits-3-5"])
def test_a_run_is_better_than_a_constant_and_repeats_itself(name, model):
    run = GaussianProcess(task=name, model=model, epochs=8, points=20, width=20, lr=0.02)
    state = torch.random.get_rng_state()
    found = run.execute(base.Context())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    again = run.execute(base.Context())
    assert {**found, "train_seconds": 0} == {**again, "train_seconds": 0}
    assert found["test_log_likelihood"] > found["constant_log_likelihood"]
    assert (
        len(found["curve"]) == 8
        and found["curve"].index(max(found["curve"])) + 1 == (found["best_epoch"])
    )
    assert found["validation_log_likelihood"] == pytest.approx(max(found["curve"]), rel=1e-5)
    assert (found["test_calibration_error"] is None) == (name == "diabetes")


@pytest.mark.parametrize("density", [0.1, 0.02])
def test_what_is_pruned_stays_zero(density):
    run = GaussianProcess(task="digits-3-5", density=density, width=30)
    problem = task.TASKS[run.task](seeded(0))
    model, mask = task.build(run, problem, seeded(0))
    total = 16 * 30 + 30 * 30 + 30 * 8
    assert sum(int(m.sum()) for m in mask.values()) == round(density * total)
    gone = [(model.trunk.get_parameter(name), ~m) for name, m in mask.items()]
    before = [weight.detach().clone() for weight, _ in gone]
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(3):
        task._epoch(model, problem.train, 50, optimiser, gone, seeded(0))
    for (weight, removed), old in zip(gone, before):
        assert not weight[removed].any() and not torch.equal(weight, old)


def test_models_of_one_seed_start_from_the_same_network_and_mask():
    built = []
    for model in ("network", "ign", "deep-kernel"):
        run = GaussianProcess(task="digits-3-5", model=model, density=0.1)
        generator = seeded(0)
        built.append(task.build(run, task.TASKS[run.task](generator), generator))
    (first, mask), *others = built
    for other, its in others:
        assert all(torch.equal(its[name], mask[name]) for name in mask)
        assert torch.equal(other.trunk[0].weight, first.trunk[0].weight)


def test_numbers_are_standardised_and_parts_apart():
    for name, sizes in (("friedman", (1600, 400, 2000)), ("diabetes", (300, 50, 92))):
        problem = task.TASKS[name](seeded(0))
        assert tuple(len(part.y) for part in problem[:3]) == sizes and not problem.binary
        for t in problem.train:
            torch.testing.assert_close(t.mean(0), torch.zeros_like(t.mean(0)), atol=1e-6, rtol=0)
            torch.testing.assert_close(t.std(0), torch.ones_like(t.std(0)))
        rows = torch.cat([part.x for part in problem[:3]])
        assert len(rows.unique(dim=0)) == len(rows)
        assert not torch.equal(task.TASKS[name](seeded(1)).train.x, problem.train.x)


def test_classes_are_the_two_asked_for():
    from panning_core import data

    problem, splits = task.TASKS["digits-3-5"](seeded(0)), data.load("digits")
    wanted = [int((splits.test.y == label).sum()) for label in (3, 5)]
    assert [int((problem.test.y == label).sum()) for label in (0, 1)] == wanted
    assert problem.binary and problem.train.x.shape[1] == 16


def test_the_constant_is_the_best_answer_without_input():
    problem = task.TASKS["diabetes"](seeded(0))
    y = problem.test.y.numpy()
    assert task.constant(problem) == pytest.approx(norm.logpdf(y).mean(), rel=1e-6)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"task": "mnist-3-6"}, "unknown task 'mnist-3-6'"),
        ({"model": "igns"}, "unknown model of a Gaussian process 'igns'"),
        ({"points": 1}, "points of a Gaussian process is 1"),
        ({"density": 0.0}, "density of a Gaussian process is 0.0; .* 1 at most"),
        ({"lr": 0}, "lr of a Gaussian process is 0"),
        ({"density": 0.1}, "ign on friedman is not pruned"),
        ({"density": 0.1, "model": "svgp", "task": "digits-3-5"}, "svgp on digits-3-5 is not"),
    ],
)
def test_bad_input_is_named(wrong, message):
    with pytest.raises(UserError, match=message):
        GaussianProcess(**wrong)


def test_more_points_than_inputs():
    with pytest.raises(UserError, match="points are 301; diabetes has 300 training inputs"):
        GaussianProcess(task="diabetes", points=301).execute(base.Context())


def test_without_the_package_it_says_so(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "gpytorch"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gpytorch", None)
    with pytest.raises(UserError, match="the kind gaussian-process need the package gpytorch"):
        GaussianProcess(task="diabetes").execute(base.Context())


def test_only_the_process_on_the_inputs_has_a_length_for_each():
    for model, lengths in (("svgp", 16), ("deep-kernel", 1), ("ign", 1)):
        run = GaussianProcess(task="digits-3-5", model=model)
        made, _ = task.build(run, task.TASKS[run.task](seeded(0)), seeded(0))
        assert made.head.kernel.base_kernel.lengthscale.numel() == lengths
