"""Likelihood and calibration of probabilities: by hand."""

import math

import pytest
import torch

from panning_core.analysis import calibration
from panning_core.errors import UserError


def binary(*first):
    """Probabilities of two classes from those of class 0."""
    return torch.tensor([[p, 1 - p] for p in first], dtype=torch.double)


def test_likelihood_is_the_mean_log_probability_of_the_labels():
    got = calibration.log_likelihood(binary(0.5, 0.9), torch.tensor([1, 0]))
    assert got == pytest.approx((math.log(0.5) + math.log(0.9)) / 2)
    assert math.isfinite(calibration.log_likelihood(binary(1.0), torch.tensor([1])))


def test_calibration_error_by_hand():
    # Two bins, up to .5 and above; all confidences fall into the second.
    probabilities, labels = binary(0.9, 0.8, 0.3, 0.6), torch.tensor([0, 1, 1, 0])
    gap = abs((0.9 + 0.8 + 0.7 + 0.6) / 4 - 3 / 4)
    assert calibration.calibration_error(probabilities, labels, bins=2) == pytest.approx(gap)
    # Ten bins: .9, .8, .7 and .6 close one each.
    wanted = (0.1 + 0.8 + 0.3 + 0.4) / 4
    assert calibration.calibration_error(probabilities, labels, bins=10) == pytest.approx(wanted)


def test_a_confidence_at_the_edge_of_two_bins_is_in_the_lower_one():
    """The first is right with .5 and the second wrong with .4: one bin, and half a tenth off."""
    probabilities = torch.tensor([[0.5, 0.25, 0.25], [0.4, 0.3, 0.3]])
    found = calibration.calibration_error(probabilities, torch.tensor([0, 1]), bins=2)
    assert found == pytest.approx(0.05)


def test_calibration_error_agrees_with_the_loop():
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(500, 4, generator=generator).double().softmax(1)
    labels, wanted = torch.randint(4, (500,), generator=generator), 0.0
    confidence, answer = probabilities.max(1)
    for i in range(15):
        inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        if inside.any():
            right = (answer[inside] == labels[inside]).double().mean()
            wanted += float(inside.double().mean() * (confidence[inside].mean() - right).abs())
    assert calibration.calibration_error(probabilities, labels) == pytest.approx(wanted)


def test_sure_and_right_is_calibrated_and_sure_and_wrong_is_not():
    assert calibration.calibration_error(binary(1.0, 0.0), torch.tensor([0, 1])) == 0
    assert calibration.calibration_error(binary(1.0, 0.0), torch.tensor([1, 0])) == 1
    with pytest.raises(UserError, match="at least 1 bin"):
        calibration.calibration_error(binary(1.0), torch.tensor([0]), bins=0)
