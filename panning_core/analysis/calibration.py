"""Whether a classifier's probabilities are true: their likelihood and their calibration."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UserError

BINS = 15  #: of confidence, as in Guo et al. 2017


def log_likelihood(probabilities: Tensor, labels: Tensor) -> float:
    """Mean log probability of the labels, in nats; 0 is perfect, larger is better.

    Args:
        probabilities: [n, classes], rows that sum to 1.
        labels: [n].
    """
    chosen = probabilities.double().gather(1, labels[:, None])
    return float(chosen.clamp_min(torch.finfo(torch.double).tiny).log().mean())


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """Expected calibration error (Guo et al. 2017, equation 3), in [0, 1].

    The confidence of an answer is its probability. Answers fall into equal bins of confidence; the
    result is the mean gap between a bin's confidence and its share of right answers, weighted by
    the bin's answers.

    Raises:
        UserError: no bins.
    """
    if bins < 1:
        raise UserError(f"calibration is measured in at least 1 bin, got {bins}")
    confidence, answer = probabilities.double().max(1)
    right = (answer == labels).double()
    # Bin i holds (i / bins, (i + 1) / bins].
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gaps = torch.zeros(bins, dtype=torch.double).index_add_(0, place, confidence - right)
    return float(gaps.abs().sum() / len(labels))
