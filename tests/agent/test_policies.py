"""Policy files: what they hold, and that nothing else is taken for one."""

import json
import os
import re
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from panning_core.agent import policies
from panning_core.agent.policies import Actor, Random
from panning_core.errors import UserError

CARD = {
    "trained_on": ["lenet300/digits"],
    "steps": 100,
    "seed": 3,
    "seconds": 1.5,
    "training": {"lr": 0.1},
    "versions": {"torch": "2"},
}


def layers(*widths, seed=0):
    draw = np.random.default_rng(seed)
    return tuple(
        (
            draw.normal(size=(out, inside)).astype(np.float32),
            draw.normal(size=out).astype(np.float32),
        )
        for inside, out in zip(widths, widths[1:])
    )


@pytest.fixture
def actor():
    return Actor(layers(7, 16, 8, 3), CARD)


@pytest.fixture
def observations():
    return np.random.default_rng(1).normal(size=(50, 7))


def test_a_file_gives_the_policy_back(actor, observations, tmp_path):
    actor.save(tmp_path / "one.npz")
    for path in (tmp_path / "one.npz", str(tmp_path / "one.npz")):
        again = policies.load(path)
        assert again.card == CARD and again.digest() == actor.digest()
        assert all(np.array_equal(again(seen), actor(seen)) for seen in observations)
    assert (
        re.fullmatch("[0-9a-f]{12}", actor.digest())
        and Actor(layers(7, 16, 8, 3, seed=1), CARD).digest() != actor.digest()
    )


def test_an_actor_is_a_perceptron_with_relu_and_tanh(actor, observations):
    parts = []
    for weight, bias in actor.layers:
        linear = nn.Linear(weight.shape[1], len(weight))
        linear.weight.data, linear.bias.data = torch.from_numpy(weight), torch.from_numpy(bias)
        parts += [linear, nn.ReLU()]
    network = nn.Sequential(*parts[:-1], nn.Tanh())
    for seen in observations:
        done = actor(seen)
        assert done.shape == (3,) and done.dtype == np.float32 and np.abs(done).max() <= 1
        assert done == pytest.approx(
            network(torch.from_numpy(seen).float()).detach().numpy(), abs=1e-5
        )
    single = Actor(layers(7, 3), CARD)
    assert single(observations[0]) == pytest.approx(
        np.tanh(single.layers[0][0] @ observations[0] + single.layers[0][1]), abs=1e-5
    )


class Harmful:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def saved(path, *widths, card=CARD, change=lambda arrays: None):
    """A file as ``Actor.save`` writes it, but for a change of its arrays."""
    Actor(layers(*widths), card).save(path)
    with np.load(path) as archive:
        arrays = dict(archive)
    change(arrays)
    np.savez_compressed(path, **arrays)


def with_text(arrays, text):
    arrays["card"] = np.frombuffer(text.encode(), np.uint8)


def renamed(arrays):
    arrays["weight5"] = arrays.pop("weight1")


def cut(path):
    saved(path, 7, 16, 3)
    path.write_bytes(path.read_bytes()[:-200])


def flipped(path):
    saved(path, 7, 16, 3)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def without(name):
    return lambda path: saved(
        path, 7, 16, 3, card={key: value for key, value in CARD.items() if key != name}
    )


def changed(change, *widths):
    return lambda path: saved(path, *(widths or (7, 16, 3)), change=change)


DAMAGED = {
    "missing": (lambda path: None, "No such file"),
    "a folder": (lambda path: path.mkdir(), "is not a policy"),
    "empty": (lambda path: path.write_bytes(b""), "is not a policy"),
    "text": (lambda path: path.write_text("a policy"), "is not a policy"),
    "cut off": (cut, "is not a policy"),
    "a bit flipped": (flipped, "is not a policy"),
    "a mask": (
        lambda path: np.savez(path, **{"fc1.weight": np.ones((3, 7), bool)}),
        "is not a policy",
    ),
    "one array": (lambda path: np.save(open(path, "wb"), np.ones(3)), "is not a policy"),
    "no arrays": (lambda path: np.savez(path), "is not a policy"),
    "pickle": (
        lambda path: path.write_bytes(__import__("pickle").dumps(Harmful(path.parent / "harm"))),
        "is not a policy",
    ),
    "pickled weights": (
        changed(lambda arrays: arrays.update(weight0=np.array([Harmful(HARM[0])], dtype=object))),
        "allow_pickle=False",
    ),
    "pickled card": (
        changed(lambda arrays: arrays.update(card=np.array(Harmful(HARM[0]), dtype=object))),
        "allow_pickle=False",
    ),
    "sees 6": (changed(lambda arrays: None, 6, 16, 3), r"\(16, 6\).* where 7 numbers come in"),
    "does 2": (changed(lambda arrays: None, 7, 16, 2), "it answers with 2 numbers instead of 3"),
    "chain": (
        changed(lambda arrays: arrays.update(weight1=arrays["weight1"][:, :15])),
        "where 16 numbers come in",
    ),
    "bias": (
        changed(lambda arrays: arrays.update(bias0=arrays["bias0"][:15])),
        r"\(15,\) where 7",
    ),
    "a scalar": (
        changed(lambda arrays: arrays.update(weight0=np.float32(1))),
        "where 7 numbers come in",
    ),
    "float64": (
        changed(lambda arrays: arrays.update(weight0=arrays["weight0"].astype(float))),
        "a layer is float64",
    ),
    "integers": (changed(lambda arrays: arrays.update(bias1=np.zeros(3, np.int32))), "int32"),
    "NaN": (
        changed(lambda arrays: arrays["weight1"].__setitem__((0, 0), np.nan)),
        "not all of its weights are finite",
    ),
    "infinite": (
        changed(lambda arrays: arrays["bias1"].__setitem__(0, np.inf)),
        "not all of its weights are finite",
    ),
    "another weight": (
        changed(lambda arrays: arrays["weight1"].__setitem__((0, 0), 0.5)),
        "its weights are not those of its card",
    ),
    "more": (changed(lambda arrays: arrays.update(extra=np.ones(3))), "it holds .*extra"),
    "a layer less": (
        changed(lambda arrays: (arrays.pop("weight1"), arrays.pop("bias1"))),
        "it answers with 16 numbers",
    ),
    "no bias": (changed(lambda arrays: arrays.pop("bias1")), "it holds bias0, weight0, weight1"),
    "other names": (changed(renamed), "it holds .*weight5"),
    "only a card": (
        changed(lambda arrays: [arrays.pop(name) for name in list(arrays) if name != "card"]),
        "it holds no arrays",
    ),
    "no card": (changed(lambda arrays: arrays.pop("card")), "card"),
    "card of no text": (
        changed(lambda arrays: arrays.update(card=np.array([0xFF, 0xFE], np.uint8))),
        "is not a policy",
    ),
    "card of no JSON": (changed(lambda arrays: with_text(arrays, "{")), "is not a policy"),
    "card of a list": (changed(lambda arrays: with_text(arrays, "[1]")), "is not a policy"),
    "card without digest": (
        changed(lambda arrays: with_text(arrays, json.dumps(CARD))),
        "its weights are not those of its card",
    ),
    "empty card": (
        changed(lambda arrays: with_text(arrays, "{}")),
        "its card lacks trained_on, steps, seed, seconds, training, versions",
    ),
    "steps in words": (
        lambda path: saved(path, 7, 3, card={**CARD, "steps": "many"}),
        "its card lacks steps",
    ),
    **{f"no {name}": (without(name), f"its card lacks {name};") for name in CARD},
}
HARM = []


@pytest.mark.parametrize("write, says", DAMAGED.values(), ids=DAMAGED)
def test_a_file_that_is_none_is_named(write, says, tmp_path):
    path = tmp_path / "bad.npz"
    HARM[:] = [tmp_path / "harm"]
    write(path)
    with pytest.raises(
        UserError,
        match=(
            f"(?s)^{re.escape(str(path))} is not a policy: .*; a policy is a file that Actor.save"
            " wrote"
        ),
    ) as error:
        policies.load(path)
    assert re.search(says, str(error.value)) and not (tmp_path / "harm").exists()


def test_what_is_harmful_would_have_run(tmp_path):
    HARM[:] = [tmp_path / "harm"]
    for name in ("pickled weights", "pickled card"):
        DAMAGED[name][0](tmp_path / "bad.npz")
        with np.load(tmp_path / "bad.npz", allow_pickle=True) as archive:
            dict(archive)
        assert (tmp_path / "harm").exists()
        (tmp_path / "harm").rmdir()


def test_a_file_that_is_too_large_is_not_read(monkeypatch, actor, tmp_path):
    actor.save(tmp_path / "one.npz")
    with zipfile.ZipFile(
        tmp_path / "one.npz"
    ) as archive:  # what it unpacks to: a small file can hold a lot of nothing
        size = sum(member.file_size for member in archive.infolist())
    monkeypatch.setattr(policies, "LARGEST", size)
    policies.load(tmp_path / "one.npz")
    monkeypatch.setattr(policies, "LARGEST", size - 1)
    monkeypatch.setattr(np, "load", None)
    with pytest.raises(UserError, match="one.npz is not a policy: it is too large"):
        policies.load(tmp_path / "one.npz")


def test_policies_have_names(monkeypatch, actor, tmp_path):
    monkeypatch.setenv("PANNING_RESULTS", str(tmp_path))
    folder = tmp_path / "quick" / "05_agents" / "policies"
    folder.mkdir(parents=True)
    for path in (folder / "lenet300-digits-seed0.npz", folder / f"{policies.SHIPPED}.npz"):
        actor.save(path)
    assert policies.places()["lenet300-digits-seed0"] == folder / "lenet300-digits-seed0.npz"
    assert policies.load("lenet300-digits-seed0").digest() == actor.digest()
    assert policies.places()[policies.SHIPPED].parent == policies.FOLDER  # no study can replace it
    with pytest.raises(
        UserError,
        match="unknown policy 'lenet300-digits-sed0'; did you mean 'lenet300-digits-seed0'",
    ):
        policies.load("lenet300-digits-sed0")
    with pytest.raises(UserError, match=f"unknown policy 'general1'.*{policies.SHIPPED}"):
        policies.load("general1")


def test_the_policy_that_comes_with_the_package(observations):
    shipped = policies.load(policies.SHIPPED)
    for seen in observations:
        done = shipped(seen)
        assert done.shape == (3,) and ((-1 <= done) & (done <= 1)).all()
    assert shipped.card["steps"] > 0 and shipped.card["trained_on"] and shipped.card["versions"]


def test_the_random_control_is_a_function_of_its_seed():
    one, same, other = Random(1), Random(1), Random(2)
    drawn = np.array([one(None) for _ in range(500)])
    assert np.array_equal(drawn, [same(np.zeros(7)) for _ in range(500)]) and not np.array_equal(
        drawn, [other(None) for _ in range(500)]
    )
    assert (
        drawn.shape == (500, 3)
        and -1 <= drawn.min() < -0.98
        and 0.98 < drawn.max() <= 1
        and np.abs(drawn.mean(0)).max() < 0.1
    )
