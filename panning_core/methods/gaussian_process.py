"""Gaussian processes on the features of a network: inducing Gaussian process networks, and rivals.

A head reads features [n, d] and gives a normal distribution of the latent function at each; the
likelihood, GPyTorch's, makes of it the distribution of the answer. Needs the package gpytorch.
"""

from __future__ import annotations

import gpytorch
import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.likelihoods import Likelihood
from linear_operator.operators import DiagLinearOperator
from torch import Tensor, nn

#: times the scale, on the diagonal of the inducing points' covariance: points may meet (float64)
JITTER = 1e-6
LEAST_VARIANCE = 1e-9  #: GPyTorch warns of less


def kernel(length: float, each: int | None = None) -> gpytorch.kernels.Kernel:
    """scale * exp(-distance^2 / (2 length^2)), the scale 1 at first; both are learned.

    Args:
        each: so many coordinates, each with a length of its own; None is one length for all.
    """
    made = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel(ard_num_dims=each))
    made.outputscale, made.base_kernel.lengthscale = 1.0, length
    return made


def _marginals(mean: Tensor, variance: Tensor) -> MultivariateNormal:
    """Independent normal distributions."""
    return MultivariateNormal(mean, DiagLinearOperator(variance.clamp_min(LEAST_VARIANCE)))


class Inducing(nn.Module):
    """The head of an inducing Gaussian process network (Tibo & Nielsen 2022, 2204.09889): the
    Gaussian process conditioned, without noise, on learned values at learned points.

    The points lie in the space of the features, so that inputs may be of any kind. There is no
    posterior of the values and no bound: the likelihood of the answers is what is maximised.

    Args:
        points: [m, d], such as the features of m training inputs.
        values: [m], such as their labels.
        length: of the kernel.
    """

    def __init__(self, points: Tensor, values: Tensor, length: float):
        super().__init__()
        self.points, self.values = nn.Parameter(points.clone()), nn.Parameter(values.clone())
        self.kernel = kernel(length)

    def forward(self, features: Tensor) -> MultivariateNormal:
        """The latent function at ``features`` [n, d]: k K^-1 r, and the diagonal of
        k(x, x) - k K^-1 k'."""
        m = len(self.points)
        jitter = JITTER * self.kernel.outputscale.detach() * torch.eye(m, dtype=features.dtype)
        root = torch.linalg.cholesky(self.kernel(self.points).to_dense() + jitter)
        both = torch.cat([self.values[:, None], self.kernel(self.points, features).to_dense()], 1)
        solved = torch.linalg.solve_triangular(root, both, upper=False)
        values, cross = solved[:, 0], solved[:, 1:]
        variance = self.kernel(features, diag=True) - cross.square().sum(0)
        return _marginals(values @ cross, variance)

    def loss(self, features: Tensor, y: Tensor, likelihood: Likelihood, count: int) -> Tensor:
        """Minus the mean log predictive probability of the answers ``y`` [n]."""
        return -likelihood.log_marginal(y, self(features)).mean()


class Linear(nn.Module):
    """The head of a plain network: a linear function without variance of its own."""

    def __init__(self, features: int, generator: torch.Generator):
        super().__init__()
        weight = torch.randn(features, generator=generator, dtype=torch.double)
        self.weight = nn.Parameter(weight / features**0.5)
        self.bias = nn.Parameter(torch.zeros((), dtype=torch.double))

    def forward(self, features: Tensor) -> MultivariateNormal:
        mean = features @ self.weight + self.bias
        return _marginals(mean, torch.zeros_like(mean))

    loss = Inducing.loss


class Variational(gpytorch.models.ApproximateGP):
    """A stochastic variational Gaussian process (Hensman et al. 2015), as GPyTorch has it: on the
    inputs themselves, or on features a deep kernel (Wilson et al. 2016).

    Args:
        points: [m, d], the inducing points at first.
        length: of the kernel.
        each: the length of every coordinate is learned, as for inputs of unlike worth.
    """

    def __init__(self, points: Tensor, length: float, each: bool = False):
        distribution = gpytorch.variational.CholeskyVariationalDistribution(len(points))
        super().__init__(
            gpytorch.variational.VariationalStrategy(
                self, points.clone(), distribution, learn_inducing_locations=True
            )
        )
        self.mean, self.kernel = (
            gpytorch.means.ConstantMean(),
            kernel(length, points.shape[1] if each else None),
        )

    def forward(self, features: Tensor) -> MultivariateNormal:
        """The prior at ``features`` [n, d]; calling the model gives the posterior."""
        return MultivariateNormal(self.mean(features), self.kernel(features))

    def loss(self, features: Tensor, y: Tensor, likelihood: Likelihood, count: int) -> Tensor:
        """Minus the evidence lower bound for each of ``count`` training answers."""
        return -gpytorch.mlls.VariationalELBO(likelihood, self, count)(self(features), y)


def median_distance(features: Tensor) -> float:
    """Of all pairs; at least a hundredth, where features have died."""
    return max(float(nn.functional.pdist(features).median()), 0.01)
