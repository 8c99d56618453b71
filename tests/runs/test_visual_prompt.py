"""Learned scores, the frame of a visual prompt, and the two stages that use them."""

import pytest
import torch
from torch import nn

from panning_core import masks
from panning_core.errors import UserError
from panning_core.methods.learned_scores import Prompt, Scores, frame
from panning_core.runs import base
from panning_core.runs.visual_prompt import ARMS, Transfer, VisualPrompt

TINY = {
    "source": "digits", "target": "digits", "frame": 1, "source_images": 300, "images": 200,
    "source_epochs": 1, "epochs": 2, "density": 0.3,
}  # fmt: skip


def literal():
    model = nn.Sequential(nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.4, -0.1, 0.2], [0.05, -0.8, 0.3]]))
    return model


def test_scores_threshold_and_mask_of_a_literal_layer():
    scores = Scores(literal(), 0.5)
    wanted = torch.tensor([[0.707107, -0.176777, 0.353553], [0.088388, -1.414214, 0.530330]])
    assert torch.allclose(scores.values["0.weight"].detach(), wanted, atol=1e-6)
    assert float(scores.threshold()) == pytest.approx(0.353553, abs=1e-6)
    assert scores.mask()["0.weight"].int().tolist() == [[1, 0, 0], [0, 1, 1]]


def test_the_gradient_passes_straight_through_to_the_size_of_a_score():
    model, x = literal(), torch.tensor([[1.0, 2.0, -1.0]])
    scores = Scores(model, 0.5)
    out = x @ scores.masked()["0.weight"].T
    (gradient,) = torch.autograd.grad(out.sum(), [scores.values["0.weight"]])
    w = model[0].weight.detach()
    by_weight = x.expand(2, 3)
    assert torch.allclose(gradient, by_weight * w * w.sign())


def test_density_1_keeps_all_and_a_tie_with_the_threshold_goes():
    assert masks.density(Scores(literal(), 1.0).mask()) == 1
    equal = nn.Sequential(nn.Linear(4, 2, bias=False))
    nn.init.ones_(equal[0].weight)
    assert masks.count(Scores(equal, 0.5).mask()) == 0


def test_the_frame_and_what_is_added_to_it():
    f = frame((1, 6, 5), 2)
    assert f.sum() == 30 - 2 * 1 and f[0, 2, 2] == 0 and f[0, 0].all()
    prompt = Prompt((1, 6, 5), 2, -1.0, 1.0)
    x = torch.rand(3, 1, 6, 5) * 2 - 1
    assert torch.equal(prompt(x), x)
    prompt(x).square().sum().backward()
    assert not prompt.delta.grad[0, 2:4, 2].any() and prompt.delta.grad[0, 0].any()
    with torch.no_grad():
        prompt.delta.fill_(9)
    assert prompt(x).max() == 1 and torch.equal(prompt(x)[:, 0, 2, 2], x[:, 0, 2, 2])


@pytest.mark.parametrize("arm", ARMS)
def test_a_run_keeps_so_many_weights_and_is_repeated_bit_by_bit(arm):
    run = VisualPrompt(arm=arm, **TINY)
    transfer = Transfer(run)
    found = transfer.result()
    assert found["kept_weights"] == pytest.approx(0.3 * 50_200, abs=1)
    left = sum(
        int((w != 0).sum()) for w in (m.weight for m in transfer.model if hasattr(m, "weight"))
    )
    assert left <= found["kept_weights"]
    assert (found["prompt"] > 0) == ("p" in "".join(ARMS[arm]))
    assert {**run.execute(base.Context()), "train_seconds": 0} == {**found, "train_seconds": 0}


def test_no_step_on_scores_is_magnitude_of_each_layer_in_its_own_unit():
    transfer = Transfer(VisualPrompt(arm="magnitude", **TINY))
    transfer._pretrain()
    scores = Scores(transfer.model, 0.1)
    for name, w in scores.weights.items():
        ratio = scores.values[name].detach() / w
        assert torch.allclose(ratio[w != 0], ratio[w != 0].flatten()[0].expand(int((w != 0).sum())))


def test_two_updates_see_two_orders_of_images_and_one_update_the_first_of_them():
    transfer = Transfer(VisualPrompt(**TINY))
    both = [parts for _, parts in transfer._steps(1, "px")]
    one = [parts for _, parts in transfer._steps(1, "x")]
    assert [how for how, _ in both[0]] == ["p", "x"] and len(both) == len(one) == 8
    assert not torch.equal(both[0][0][1], both[0][1][1])
    assert torch.equal(both[0][0][1], one[0][0][1])


@pytest.mark.parametrize(
    "fields, says",
    [
        ({"arm": "vpm"}, "unknown arm 'vpm'; did you mean 'vpn'"),
        ({"density": 0}, "density is 0; a network needs weights"),
        ({"density": 2}, "density is 2; it is the fraction kept"),
        ({"epochs": 0}, "epochs is 0; it must be a whole number from 1"),
        ({"score_lr": -1}, "score_lr is -1; it must be a number above 0"),
        ({"target": "digit"}, "unknown data set 'digit'"),
    ],
)
def test_bad_input_is_one_sentence(fields, says):
    with pytest.raises(UserError) as error:
        VisualPrompt(**{**TINY, **fields})
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_frame_that_covers_the_picture_is_refused():
    with pytest.raises(UserError, match=r"frame is 4; pictures are \[8, 8\]"):
        VisualPrompt(**{**TINY, "frame": 4}).execute(base.Context())
