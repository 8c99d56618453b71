"""Recorded networks: the same logits to the bit from JSON text, and a damaged file is one
sentence.
"""

import copy
import json

import pytest
import torch
from torch import nn

from panning_core import masks, models, training
from panning_core.__main__ import command_line as obey
from panning_core.__main__ import main
from panning_core.analysis import networks
from panning_core.errors import UserError


def half(model, density=0.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(w.shape, generator=generator) < density
        for name, w in models.prunable(model).items()
    }


def trained(name, shape, seed=3):
    """A network whose biases, BatchNorm and statistics are all its own."""
    model = models.build(name, shape, 10, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if tensor.is_floating_point() and key not in models.prunable(model):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            elif not tensor.is_floating_point():
                tensor.fill_(1234)
    return model


def card_of(name="lenet300", shape=(1, 8, 8), density=0.02):
    model = trained(name, shape)
    return json.loads(json.dumps(networks.describe(model, half(model, density), name, "digits")))


@pytest.mark.parametrize(
    "name, shape, density",
    [
        ("lenet300", (1, 8, 8), 0.02),
        ("lenet5", (1, 16, 16), 0.1),
        ("resnet20", (1, 8, 8), 0.2),
        ("lenet300", (1, 8, 8), 1.0),
        ("lenet300", (1, 8, 8), 0.0),
    ],
)
def test_a_network_comes_back_to_the_bit(name, shape, density, unchanged):
    model = trained(name, shape)
    mask, x = (
        half(model, density),
        torch.randn((50, *shape), generator=torch.Generator().manual_seed(1)),
    )
    with unchanged(model):
        text = json.dumps(networks.describe(model, mask, name, "digits"), allow_nan=False)
    found, found_mask = networks.rebuild(json.loads(text))
    pruned = copy.deepcopy(model)
    with torch.no_grad():
        for key, w in models.prunable(pruned).items():
            w.mul_(mask[key])
        assert torch.equal(found.eval()(x), pruned.eval()(x))
    assert found_mask.keys() == mask.keys() and all(
        torch.equal(found_mask[key], m) for key, m in mask.items()
    )
    assert (
        all(torch.equal(t, pruned.state_dict()[key]) for key, t in found.state_dict().items())
        and models.input_shape(found) == shape
    )
    again = json.dumps(networks.describe(found, found_mask, name, "digits"))
    assert again == text


def test_hard_numbers_survive():
    """Subnormal, huge, 1/3 and -0.0: nine digits are a float32."""
    model = models.build("lenet300", (1, 8, 8), 10, 0)
    values = torch.tensor(
        [1e-45, 1.17549435e-38, 3.4028235e38, 1 / 3, -0.0, 16777217.0, 0.1, -1e-7]
    )
    with torch.no_grad():
        model.fc1.weight.view(-1)[:8] = values
        model.fc1.bias[:8] = values
    found, _ = networks.rebuild(
        json.loads(json.dumps(networks.describe(model, masks.ones(model), "lenet300", "digits")))
    )
    assert torch.equal(
        found.fc1.weight.view(torch.int32), model.fc1.weight.view(torch.int32)
    ) and torch.equal(found.fc1.bias.view(torch.int32), model.fc1.bias.view(torch.int32))


def test_a_card_is_plain_and_lists_what_is_left():
    card = card_of()
    model = trained("lenet300", (1, 8, 8))
    assert list(card) == ["model", "dataset", "input_shape", "classes", "weights", "others"]
    assert (card["model"], card["dataset"], card["input_shape"], card["classes"]) == (
        "lenet300",
        "digits",
        [1, 8, 8],
        10,
    )
    assert list(card["weights"]) == ["fc1.weight", "fc2.weight", "fc3.weight"] and list(
        card["others"]
    ) == ["fc1.bias", "fc2.bias", "fc3.bias"]
    for name, mask in half(model, 0.02).items():
        assert card["weights"][name]["places"] == mask.flatten().nonzero().flatten().tolist()
        assert torch.equal(
            torch.tensor(card["weights"][name]["values"]),
            models.prunable(model)[name][mask].detach(),
        )


def test_a_network_that_has_diverged_can_still_be_recorded():
    """A ledger takes no NaN."""
    model = models.build("lenet300", (1, 8, 8), 10, 0)
    with torch.no_grad():
        model.fc1.weight[0, :3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    json.dumps(networks.describe(model, masks.ones(model), "lenet300", "digits"), allow_nan=False)


# --- damage ---


def first(card):
    return card["weights"]["fc2.weight"]


DAMAGE = {
    "no model": lambda card: card.pop("model"),
    "no shape": lambda card: card.pop("input_shape"),
    "no classes": lambda card: card.pop("classes"),
    "no weights": lambda card: card.pop("weights"),
    "no others": lambda card: card.pop("others"),
    "a layer is missing": lambda card: card["weights"].pop("fc2.weight"),
    "a bias is missing": lambda card: card["others"].pop("fc2.bias"),
    "no places": lambda card: first(card).pop("places"),
    "no values": lambda card: first(card).pop("values"),
    "an unknown model": lambda card: card.update(model="lenet30"),
    "another model": lambda card: card.update(model="resnet20"),
    "a number for a model": lambda card: card.update(model=7),
    "another shape": lambda card: card.update(input_shape=[1, 4, 4]),
    "a word for a shape": lambda card: card.update(input_shape="1x8x8"),
    "more classes": lambda card: card.update(classes=11),
    "negative classes": lambda card: card.update(classes=-10),
    "a word for classes": lambda card: card.update(classes="ten"),
    "a place too few": lambda card: first(card)["places"].pop(),
    "a value too few": lambda card: first(card)["values"].pop(),
    "one value for all": lambda card: first(card).update(values=first(card)["values"][:1]),
    "a number for values": lambda card: first(card).update(values=0.5),
    "a place twice": lambda card: first(card)["places"].__setitem__(1, first(card)["places"][0]),
    "a negative place": lambda card: first(card)["places"].__setitem__(0, -1),
    "a place beyond": lambda card: first(card)["places"].__setitem__(-1, 30_000),
    "a huge place": lambda card: first(card)["places"].__setitem__(-1, 10**30),
    "a half place": lambda card: first(card)["places"].__setitem__(
        0, first(card)["places"][0] + 0.5
    ),
    "a word for a place": lambda card: first(card)["places"].__setitem__(0, "3"),
    "nothing for places": lambda card: first(card).update(places=None),
    "a word for a value": lambda card: first(card)["values"].__setitem__(0, "0.5"),
    "nothing for a value": lambda card: first(card)["values"].__setitem__(0, None),
    "nested values": lambda card: first(card).update(values=[first(card)["values"]]),
    "a short bias": lambda card: card["others"]["fc1.bias"].pop(),
    "a long bias": lambda card: card["others"]["fc1.bias"].append(0.0),
    "a word in a bias": lambda card: card["others"]["fc1.bias"].__setitem__(0, "x"),
    "a list of weights": lambda card: card.update(weights=[]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_card_is_refused(damage):
    card = card_of()
    networks.rebuild(card)
    DAMAGE[damage](card)
    with pytest.raises(UserError) as error:
        networks.rebuild(card)
    assert str(error.value).startswith(
        ("this is not a network that was recorded here: ", "unknown model")
    ) and "\n" not in str(error.value)


@pytest.mark.parametrize("card", [None, [], 3, "card", {}])
def test_what_is_no_card_is_refused(card):
    with pytest.raises(UserError, match="this is not a network that was recorded here"):
        networks.rebuild(card)


@pytest.mark.parametrize(
    "content", [None, b"", b"not JSON", b'{"model": ', b"\xff\xfe\x00", b"folder"]
)
def test_what_can_not_be_read_is_named(content, tmp_path):
    path = tmp_path / "network.json"
    if content == b"folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="network.json is not a readable network"):
        networks.load(path)


# --- the command ---


def command(monkeypatch, *arguments):
    with pytest.raises(SystemExit) as exit_:
        obey(lambda: main(["network", *map(str, arguments)]))
    return exit_.value.code


@pytest.fixture
def recorded(digits, tmp_path):
    """(file, accuracy) of a sparse network that was trained on the digits."""
    model = models.build("lenet300", digits.input_shape, digits.classes, seed=0)
    mask = half(model, 0.2)
    mask["fc3.weight"][:, 0] = mask["fc2.weight"][0] = False
    mask["fc2.weight"][0, :5] = True  # five that are on no path
    log = training.train(model, mask, digits, training.Recipe(epochs=3, batch_size=64))
    path = tmp_path / "network.json"
    path.write_text(json.dumps(networks.describe(model, mask, "lenet300", "digits")))
    return path, mask, log.test_accuracy.iloc[-1]


def test_the_command_measures_a_network_again(recorded, monkeypatch, capsys):
    path, mask, accuracy = recorded
    model = models.build("lenet300", (1, 8, 8), 10, 0)
    assert command(monkeypatch, path) == 0
    told = capsys.readouterr().out
    assert (
        told == f"lenet300 on scikit-learn digits: {masks.count(mask)} of 50,200 weights kept,"
        f" {masks.count(masks.effective(model, mask))} effective; test accuracy"
        f" {100 * accuracy:.2f} % (n = 360 images)\n"
    )
    assert masks.count(mask) - masks.count(masks.effective(model, mask)) >= 5 and accuracy > 0.3
    assert (
        command(monkeypatch, path, "--dataset", "digits") == 0 and capsys.readouterr().out == told
    )


def test_a_data_set_of_another_shape_is_refused(recorded, monkeypatch, capsys, digits):
    path, *_ = recorded
    other = networks.data.from_arrays(
        *(
            torch.zeros(n, 1, 4, 4).numpy() if k % 2 == 0 else torch.arange(n).numpy() % 10
            for k, n in enumerate((40, 40, 20, 20))
        ),
        title="small ones",
    )
    fewer = networks.data.from_arrays(
        *(
            torch.zeros(n, 1, 8, 8).numpy() if k % 2 == 0 else torch.arange(n).numpy() % 3
            for k, n in enumerate((40, 40, 20, 20))
        ),
        title="three kinds",
    )
    sets = {"small": other, "three": fewer, "digits": digits}
    monkeypatch.setattr(networks.data, "load", lambda name: sets[name])
    for name, says in (
        ("small", "small ones has [1, 4, 4] of 10"),
        ("three", "three kinds has [1, 8, 8] of 3"),
    ):
        assert command(monkeypatch, path, "--dataset", name) == 2
        told = capsys.readouterr().err
        assert told == f"error: the network reads images [1, 8, 8] of 10 classes; {says}\n"


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda card: card.pop("weights"), "this is not a network that was recorded here"),
        (lambda card: card.pop("dataset"), "this is not a network that was recorded here"),
        (
            lambda card: card.update(dataset="digit"),
            "unknown data set 'digit'; did you mean 'digits'?",
        ),
        (
            lambda card: card.update(dataset=["digits"]),
            "this is not a network that was recorded here",
        ),
    ],
)
def test_bad_input_of_the_command_is_one_sentence(recorded, monkeypatch, capsys, change, says):
    path, *_ = recorded
    card = json.loads(path.read_text())
    change(card)
    path.write_text(json.dumps(card))
    assert command(monkeypatch, path) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {says}") and told.count("\n") == 1


def test_a_missing_file_and_an_unknown_data_set_are_one_sentence(
    recorded, monkeypatch, capsys, tmp_path
):
    path, *_ = recorded
    assert (
        command(monkeypatch, tmp_path / "nowhere.json") == 2
        and "nowhere.json is not a readable network" in capsys.readouterr().err
    )
    assert (
        command(monkeypatch, path, "--dataset", "digit") == 2
        and "did you mean 'digits'" in capsys.readouterr().err
    )


def test_a_network_of_your_own_is_described_by_its_own_layers():
    """The outputs of the last layer are the classes."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    model.input_shape = (1, 2, 2)
    card = networks.describe(model, masks.ones(model), "mine", "mine")
    assert (
        card["classes"] == 2
        and card["input_shape"] == [1, 2, 2]
        and len(card["weights"]["1.weight"]["values"]) == 12
    )
    with pytest.raises(UserError, match="unknown model 'mine'"):
        networks.rebuild(card)
