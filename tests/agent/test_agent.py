"""The agent: its environment against a second one written from the description, and how it
learns.
"""

import os
import random
import subprocess
import sys
import warnings
from functools import lru_cache

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env as gymnasium_check
from stable_baselines3.common.env_checker import check_env as stable_baselines_check
from torch import nn
from torch.nn import functional as F

from panning_core import ROOT, data, masks, metrics, models
from panning_core.agent import environment, learning, observations
from panning_core.agent.environment import PanningEnv
from panning_core.agent.learning import Training
from panning_core.errors import UserError
from panning_core.runs.agent import Agent
from tests.conftest import make_residual


def flat(tensors):
    return torch.cat([t.flatten() for t in tensors])


# --- the environment, written a second time from its description ---


def taps(source, target, weight, stride=1, padding=0):
    """(from, to, weight) of every use of a weight: a convolution of the units ``source`` [c, h, w]
    into ``target`` [c, h, w].
    """
    found = []
    for (o, c, down, right), w in np.ndenumerate(weight):
        for y, x in np.ndindex(target.shape[1:]):
            at, left = y * stride + down - padding, x * stride + right - padding
            if 0 <= at < source.shape[1] and 0 <= left < source.shape[2]:
                found.append((source[c, at, left], target[o, y, x], w))
    return np.array(found).T


def pooled(source, target):
    """The same of a 2x2 pooling, which has no weights: number -1, always kept."""
    return np.array(
        [
            (source[c, 2 * y + i, 2 * x + j], target[c, y, x], -1)
            for c, y, x in np.ndindex(target.shape)
            for i in (0, 1)
            for j in (0, 1)
        ]
    ).T


def units(*shapes):
    """Numbers for the units of planes of these shapes."""
    ends = np.cumsum([0] + [int(np.prod(shape)) for shape in shapes])
    return [np.arange(a, b).reshape(shape) for a, b, shape in zip(ends, ends[1:], shapes)]


def live(graph, kept):
    """Kept weights on a path from the first plane to the last one: walk from both ends."""
    planes, stages = graph
    kept, ahead, back = (
        np.append(kept, True),
        np.zeros(planes[-1].max() + 1, bool),
        np.zeros(planes[-1].max() + 1, bool),
    )
    ahead[planes[0]], back[planes[-1]] = True, True
    for a, b, w in stages:
        ahead[b[ahead[a] & kept[w]]] = True
    for a, b, w in reversed(stages):
        back[a[back[b] & kept[w]]] = True
    found = np.zeros_like(kept)
    for a, b, w in stages:
        found[w[ahead[a] & back[b] & kept[w]]] = True
    return found[:-1]


@lru_cache(maxsize=1)
def small_residual():
    model = make_residual()
    state, weights = model.state_dict(), [w.detach() for w in models.prunable(model).values()]
    numbers = [
        n.reshape(w.shape)
        for n, w in zip(
            np.split(np.arange(557), np.cumsum([w.numel() for w in weights])[:-1]), weights
        )
    ]

    def forward(w, x):
        def norm(x, name):
            return F.batch_norm(
                x, None, None, state[f"{name}.weight"], state[f"{name}.bias"], training=True
            )

        x = F.max_pool2d(torch.relu(norm(F.conv2d(x, w[0], state["0.bias"], padding=1), "1")), 2)
        inside = torch.relu(norm(F.conv2d(x, w[1], stride=2, padding=1), "4.bn1"))
        x = torch.relu(
            norm(F.conv2d(inside, w[2], padding=1), "4.bn2")
            + norm(F.conv2d(x, w[3], stride=2), "4.shortcut.1")
        )
        return F.linear(x.flatten(1), w[4], state["6.bias"])

    def positive(
        w, x
    ):  # the ReLUs stay, as in the authors' code: where nothing comes in, a weight has no score
        x = F.max_pool2d(torch.relu(F.conv2d(x, w[0], padding=1)), 2)
        x = torch.relu(
            F.conv2d(torch.relu(F.conv2d(x, w[1], stride=2, padding=1)), w[2], padding=1)
            + F.conv2d(x, w[3], stride=2)
        )
        return F.linear(x.flatten(1), w[4])

    planes = units((2, 6, 6), (4, 6, 6), (4, 3, 3), (5, 2, 2), (5, 2, 2), (3, 1, 1))
    image, wide, small, inside, out, answer = planes
    graph = (
        planes,
        [
            taps(image, wide, numbers[0], 1, 1),
            pooled(wide, small),
            taps(small, inside, numbers[1], 2, 1),
            taps(inside, out, numbers[2], 1, 1),
            taps(small, out, numbers[3], 2),
            taps(out.reshape(20, 1, 1), answer, numbers[4][:, :, None, None]),
        ],
    )
    draw = torch.Generator().manual_seed(4)
    split = data.Split(
        torch.randn((45, 2, 6, 6), generator=draw, dtype=torch.double), torch.arange(45) % 3, 3
    )
    return model, split, forward, positive, weights, graph


@lru_cache(maxsize=1)
def small_lenet():
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(4, 6, 2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(24, 20),
            nn.ReLU(),
            nn.Linear(20, 10),
        ).double()
    model.input_shape = (1, 8, 8)
    weights, biases = (
        [w.detach() for w in models.prunable(model).values()],
        [model[i].bias.detach() for i in (0, 3, 6, 8)],
    )
    numbers = [
        n.reshape(w.shape)
        for n, w in zip(
            np.split(np.arange(812), np.cumsum([w.numel() for w in weights])[:-1]), weights
        )
    ]

    def network(x, w, b):
        x = torch.relu(F.conv2d(torch.relu(F.max_pool2d(F.conv2d(x, w[0], b[0]), 2)), w[1], b[1]))
        return F.linear(torch.relu(F.linear(x.flatten(1), w[2], b[2])), w[3], b[3])

    planes = units((1, 8, 8), (4, 6, 6), (4, 3, 3), (6, 2, 2), (20, 1, 1), (10, 1, 1))
    image, wide, small, deep, hidden, answer = planes
    graph = (
        planes,
        [
            taps(image, wide, numbers[0]),
            pooled(wide, small),
            taps(small, deep, numbers[1]),
            taps(deep.reshape(24, 1, 1), hidden, numbers[2][:, :, None, None]),
            taps(hidden, answer, numbers[3][:, :, None, None]),
        ],
    )
    train = data.load("digits").train
    split = data.Split(train.x.double(), train.y, 10)
    return (
        model,
        split,
        lambda w, x: network(x, w, biases),
        lambda w, x: network(x, w, [None] * 4),
        weights,
        graph,
    )


def replay(network, pool, batches, actions, sparsity, departures):
    """(observation, reward, mask, terminated, truncated) of reset and of each step; ``batches`` are
    those that the environment drew.

    Without departures: the authors' environment. Its extremes take in every look, dense and sub,
        from the first batch on.
    """
    model, _, forward, positive, weights, graph = network
    theta, rounds, everything = (
        flat(weights),
        len(actions),
        torch.ones(sum(w.numel() for w in weights)).double(),
    )

    def layers(vector):
        return [
            part.view_as(w).clone().requires_grad_()
            for part, w in zip(vector.split([w.numel() for w in weights]), weights)
        ]

    def look(kept, batch, curvature=False):
        """Loss, gTg over what is kept, and for the dense network s_snip and s_grasp."""
        leaves = layers(theta * kept)
        loss = F.cross_entropy(forward(leaves, batch[0]) / 200, batch[1])
        g = torch.autograd.grad(loss, leaves, create_graph=curvature)
        told = loss.item() if "loss" in departures else np.float64(np.float32(loss.item()))
        counted = kept if "kept" in departures else everything
        told = told, float((flat(g).detach() * counted).square().sum())
        if not curvature:
            return told
        return (
            told,
            theta * flat(g).detach(),
            theta * flat(torch.autograd.grad(sum((part * part).sum() for part in g), leaves)),
        )

    def flow(kept):
        leaves = layers((theta * kept).abs())
        out = positive(leaves, torch.ones((1, *model.input_shape), dtype=torch.double)).sum()
        return theta * flat(torch.autograd.grad(out, leaves))

    def normal(scores):
        return (
            torch.zeros_like(scores)
            if scores.std() == 0
            else (scores - scores.mean()).abs() / scores.std()
        )

    known, kept = [look(everything, batch) for batch in pool], everything
    synflow = snip = grasp = None
    for i in range(-1, rounds):
        if i >= 0:
            a, b, c = np.clip(actions[i].astype(float), -1, 1) + 1
            if not (a or b or c) and "shares" in departures:
                a = b = c = 1.0
            score = a * normal(synflow) + b * normal(snip) + c * normal(grasp)
            order = torch.sort(score, descending=True, stable=True).indices
            kept = torch.zeros_like(theta)
            kept[order[: max(1, round((1 - sparsity) ** ((i + 1) / rounds) * len(theta)))]] = 1
        (loss, gtg), snip, grasp = look(everything, batches[i + 1], curvature=True)
        synflow = flow(kept)
        if i >= 0:
            sub_loss, sub_gtg = look(kept, batches[i + 1])
        if "extremes" not in departures:
            known += [(loss, gtg)] if i < 0 else [(loss, gtg), (sub_loss, sub_gtg)]
        low, high = np.min(known, 0), np.max(known, 0)
        observation, reward, dead = (
            [
                (loss - low[0]) / (high[0] - low[0]),
                (gtg - low[1]) / (high[1] - low[1]),
                0,
                0,
                0,
                0,
                0,
            ],
            None,
            False,
        )
        if i >= 0:
            effective = 1 - live(graph, kept.bool().numpy()).sum() / len(theta)
            scheduled, dead = 1 - (1 - sparsity) ** ((i + 1) / rounds), effective == 1
            r_loss, r_gtg = (
                abs(sub_loss - loss) / (high[0] - low[0]),
                abs(sub_gtg - gtg) / (high[1] - low[1]) / 5,
            )
            observation[2:] = r_loss, r_gtg, effective, scheduled, (i + 1) / rounds
            reward = (
                -100 * abs(scheduled - effective) - r_loss - r_gtg - (rounds - i if dead else 0)
            )
        ends, truncates = i == rounds - 1, "end" in departures
        yield (
            observation,
            reward,
            kept.bool(),
            dead or (ends and not truncates),
            ends and not dead and truncates,
        )
        if dead:
            return


@pytest.mark.parametrize(
    "departures, pool",
    [
        ((), 0),
        ((), 3),
        (observations.DEFAULT, 3),
        (observations.FIRST, 3),
        (observations.FIRST, 0),
        (("kept",), 0),
        (("extremes", "shares"), 3),
    ],
)
@pytest.mark.parametrize("network", [small_residual, small_lenet])
@pytest.mark.parametrize("case", ["lives", "dies", "zeros"])
def test_an_episode_number_for_number(case, network, departures, pool):
    network, rounds = network(), 8
    sparsity, actions = (
        0.999 if case == "dies" else 0.85,
        np.random.default_rng(3).uniform(-1.3, 1.3, (rounds, 3)).astype(np.float32),
    )
    if case == "zeros":
        actions[2:4] = -1
    env = PanningEnv(lambda draw: network[:2], rounds, 2, pool, departures)
    seen, batches, over = (
        [(env.reset(seed=1, options={"sparsity": sparsity})[0], None, env.mask, False, False)],
        [env.batch],
        False,
    )
    for action in actions:
        if not over:
            observation, reward, *ended, info = env.step(action)
            over = any(ended)
            seen.append((observation, reward, env.mask, *ended))
            batches.append(env.batch)
            assert info == {
                "target": sparsity,
                "sparsity": 1 - masks.density(env.mask),
                "effective_sparsity": observation[4],
            }

    expected = list(
        replay(
            network, [dense.batch for dense in env._pool], batches, actions, sparsity, departures
        )
    )
    assert len(seen) == len(expected) and len(env._pool) == (pool or 10)
    for (observation, reward, mask, *ended), (wanted, wanted_reward, kept, *wanted_ended) in zip(
        seen, expected
    ):
        assert observation.dtype == np.float64 and observation.tolist() == pytest.approx(
            wanted, rel=1e-6, abs=1e-9
        )
        assert reward == (None if wanted_reward is None else pytest.approx(wanted_reward, rel=1e-6))
        assert torch.equal(flat(mask.values()), kept)
        assert ended == wanted_ended
    dead = seen[-1][0][4] == 1
    assert (
        dead
        == (case == "dies" or case == "zeros" and "shares" not in departures)
        == (len(seen) < rounds + 1)
    )
    assert len({id(batch) for batch in batches}) > 2
    if not departures:
        assert all(r_loss <= 1 and r_gtg <= 0.2 for (_, _, r_loss, r_gtg, *_), *_ in seen)


# --- what an environment has to be ---


@pytest.fixture
def source(lenet300, digits):
    return lambda draw: (lenet300, digits.train)


@pytest.fixture
def env(source):
    return PanningEnv(source, rounds=5, per_class=2, pool=3)


@pytest.mark.parametrize("check", [gymnasium_check, stable_baselines_check])
def test_the_checkers_find_nothing(check, env):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        check(env, skip_render_check=True)
    assert all("infin" in str(warning.message) for warning in found)


def test_what_each_part_can_do_without(tmp_path):
    """Pruning with an agent needs neither gymnasium nor stable-baselines3, its environment not the
    latter.
    """
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            """
import sys

class Absent:
    names = ["gymnasium", "stable_baselines3"]
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ModuleNotFoundError(name + " is not installed", name=name)

sys.meta_path.insert(0, Absent())
from panning_core import data, masks, models, pruning, studies
digits = data.load("digits")
network = models.build("lenet300", digits.input_shape, digits.classes, 0)
batch = digits.train.x[:20], digits.train.y[:20]
mask, trace = pruning.prune(network, "panning-agent", 0.5, batch, rounds=2)
assert masks.count(mask) == 25100 and len(trace) == 2
try:
    from panning_core.agent import environment
    raise SystemExit("gymnasium was found")
except ModuleNotFoundError as error:
    assert error.name == "gymnasium", error

Absent.names = ["stable_baselines3"]
from panning_core.agent.environment import PanningEnv
env = PanningEnv(lambda draw: (network, digits.train), rounds=2)
env.reset(seed=0)
assert env.step([0, 0, 0])[0][6] == 0.5
print("good")
""",
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "good\n", done.stderr


# --- targets, options, seeds ---


def test_targets_become_harder_after_exploration(env):
    env.reset(seed=0)
    early = [env.reset()[1]["target"] for _ in range(100)]
    env.steps = environment.EXPLORING - 1
    early += [env.reset()[1]["target"] for _ in range(100)]
    env.steps = environment.EXPLORING
    late = [env.reset()[1]["target"] for _ in range(400)]
    assert (
        environment.EXPLORING == 10_000
        and 0.8 <= min(early) < 0.82
        and 0.98 < max(early) < 1
        and 0.88 < np.mean(early) < 0.92
    )
    assert 0.9 <= min(late) < 0.91 and max(late) < 1
    assert (
        0.53 < np.mean([target > 0.98 for target in late]) < 0.67
    )  # half of them, and a fifth of the others


def test_steps_are_counted_over_episodes(env):
    for _ in range(2):
        env.reset(seed=0, options={"sparsity": 0.5})
        for _ in range(5):
            env.step([0, 0, 0])
    assert env.steps == 10


def test_a_target_can_be_asked_for(env):
    for sparsity in (0.5, 0.123):
        info = env.reset(seed=0, options={"sparsity": sparsity})[1]
        assert info == {"target": sparsity, "sparsity": 0, "effective_sparsity": 0}
    for _ in range(5):
        observation, *_, info = env.step([0.1, 0.2, 0.3])
    assert (
        info["target"] == 0.123
        and info["sparsity"] == pytest.approx(0.123, abs=1e-4)
        and observation[5:].tolist() == pytest.approx([0.123, 1])
    )


@pytest.mark.parametrize(
    "options, says",
    [
        ({"sparsty": 0.5}, "unknown option 'sparsty'; did you mean 'sparsity'"),
        ({"sparsity": 0}, "between 0 and 1"),
        ({"sparsity": 1.0}, "sparsity is 1.0; a target is a fraction between 0 and 1"),
        ({"sparsity": -0.1}, "sparsity is -0.1"),
        ({"sparsity": 90}, "sparsity is 90"),
        ({"sparsity": float("nan")}, "sparsity is nan"),
    ],
)
def test_bad_options_are_named(options, says, env):
    with pytest.raises(UserError, match=says):
        env.reset(seed=0, options=options)


@pytest.mark.parametrize(
    "how, says",
    [
        ({"rounds": 0}, "rounds is 0; it must be a whole number from 1"),
        ({"per_class": 0}, "per_class is 0"),
        ({"pool": -3}, "pool is -3"),
    ],
)
def test_bad_numbers_are_named(how, says, source):
    with pytest.raises(UserError, match=says):
        PanningEnv(source, **how)


def test_classes_with_too_few_images_are_named(source):
    with pytest.raises(UserError, match="class 0 has .* a scoring batch needs 1000"):
        PanningEnv(source, per_class=1000).reset(seed=0)


def played(env, seed):
    found = [env.reset(seed=seed)[0].tolist(), env.target]
    for action in ([0.5, -0.2, 0.1], [0, 0, 0]):
        observation, reward, *_ = env.step(action)
        found += [observation.tolist(), reward]
    return found


@pytest.mark.parametrize("pool", [3, 0])
def test_an_episode_is_a_function_of_its_seed(pool, source):
    def fresh():
        return PanningEnv(source, rounds=5, per_class=2, pool=pool)

    torch.manual_seed(5)
    one = played(fresh(), 1)
    torch.manual_seed(6)
    assert played(fresh(), 1) == one != played(fresh(), 2)


@pytest.mark.parametrize("pool", [3, 0])
def test_the_same_seed_again_is_the_same_episode_again(pool, source):
    env = PanningEnv(source, rounds=5, per_class=2, pool=pool)
    assert played(env, 1) == played(env, 1)


def test_the_dense_network_is_looked_at_once_for_each_batch_of_a_pool(
    monkeypatch, lenet300, digits, source
):
    made, products = [], metrics.products
    monkeypatch.setattr(
        metrics,
        "products",
        lambda model, *arguments, **how: made.append(model) or products(model, *arguments, **how),
    )

    def episodes(env, steps=4):
        made.clear()
        for _ in range(3):
            env.reset(seed=None if made else 0, options={"sparsity": 0.5})
            for _ in range(steps):
                env.step([0, 0, 0])
        return len(made)

    assert episodes(PanningEnv(source, 4, 2, pool=6)) == 6
    assert episodes(PanningEnv(source, 4, 2, pool=0)) == observations.WARM_UP + 3 * (1 + 4)
    drawn = []
    another = PanningEnv(
        lambda draw: (
            drawn.append(models.build("lenet300", (1, 8, 8), 10, len(drawn)))
            or (drawn[-1], digits.train)
        ),
        4,
        2,
        pool=6,
    )
    assert episodes(another) == 3 * 6 and [
        sum(model is network for model in made) for network in drawn
    ] == [6, 6, 6]


# --- reward and observation; what each departure changes ---


def test_a_network_without_a_path_ends_the_episode_and_costs_the_rounds_left(env):
    env.reset(seed=0, options={"sparsity": 1 - 1e-9})
    for i in range(5):
        observation, reward, terminated, truncated, info = env.step([0, 0, 0])
        assert reward == pytest.approx(
            -100 * abs(observation[5] - observation[4])
            - observation[2]
            - observation[3]
            - terminated * (5 - i)
        )
        if terminated:
            break
    assert (
        terminated
        and not truncated
        and i < 4
        and info["effective_sparsity"] == observation[4] == 1
        and observation[6] == (i + 1) / 5
    )
    assert masks.count(env.mask) == max(1, round(10 ** (-9 * (i + 1) / 5) * 50_200))


def test_there_is_always_one_weight_at_least(source):
    env = PanningEnv(source, rounds=1, per_class=2, pool=1)
    env.reset(seed=0, options={"sparsity": 1 - 1e-9})
    observation, reward, terminated, truncated, _ = env.step([0, 0, 0])
    assert (
        masks.count(env.mask) == 1
        and np.isfinite(observation).all()
        and reward == pytest.approx(observations.reward(observation) - 1)
    )
    assert terminated and not truncated  # dead in the last round is dead


def test_the_first_observation_has_zeros_from_the_third_number_on(env):
    observation, info = env.reset(seed=0)
    assert (
        observation[2:].tolist() == [0] * 5
        and ((0 <= observation[:2]) & (observation[:2] <= 1)).all()
        and info["effective_sparsity"] == 0
    )


def test_the_pool_gives_units_in_which_dense_batches_lie_between_0_and_1(env):
    seen = np.array([env.reset(seed=seed or None)[0][:2] for seed in range(30)])
    assert seen.min(0).tolist() == [0, 0] and seen.max(0).tolist() == [1, 1]


def both(source, **how):
    """An environment with every departure, and the authors', both at the first step."""
    found = [
        PanningEnv(source, per_class=2, departures=departures, **{"rounds": 5, "pool": 3, **how})
        for departures in (observations.FIRST, ())
    ]
    for env in found:
        env.reset(seed=0, options={"sparsity": 0.5})
    return found


def test_losses_are_those_of_float32(source):
    ours, theirs = both(source)
    for one, two in zip(ours._pool, theirs._pool):
        assert (
            two.look.loss == float(np.float32(one.look.loss)) != one.look.loss
            and one.look.gtg == two.look.gtg
        )

    def steps_of_a_float32(env):  # each is 2^-22 between 2 and 4
        unit = (env.extremes.high.loss - env.extremes.low.loss) * 2.0**22
        return [env.step([0, 0, 0])[0][2] * unit for _ in range(5)]

    coarse, fine = steps_of_a_float32(theirs), steps_of_a_float32(ours)
    assert coarse == pytest.approx(np.round(coarse).tolist(), abs=1e-6) and max(coarse) >= 1
    assert np.abs(fine - np.round(fine)).max() > 0.01


def test_units_grow_with_every_look(source):
    ours, theirs = both(source, pool=0)
    before = [(env.extremes.low, env.extremes.high) for env in (ours, theirs)]
    for i in range(40):
        for env in (ours, theirs):
            observation = (
                env.step([0, 0, 0])[0] if i % 5 else env.reset(options={"sparsity": 0.5})[0]
            )
            if env is theirs:
                assert (observation[:3] <= 1).all() and observation[3] <= 0.2
                assert (
                    env.extremes.low.loss <= env.dense.look.loss <= env.extremes.high.loss
                    and env.extremes.low.gtg <= env.dense.look.gtg <= env.extremes.high.gtg
                )
    (low, high), (their_low, their_high) = before
    assert (ours.extremes.low, ours.extremes.high) == (low, high)
    grown = [
        *np.subtract(their_low, theirs.extremes.low),
        *np.subtract(theirs.extremes.high, their_high),
    ]
    assert min(grown) >= 0 and max(grown) > 0


def test_the_last_round_truncates_or_terminates(source):
    for env, last in zip(both(source), ([False, True], [True, False])):
        assert [env.step([0, 0, 0])[2:4] for _ in range(4)] == [(False, False)] * 4
        assert list(env.step([0, 0, 0])[2:4]) == last


def test_three_zeros_are_equal_shares_or_kill_the_network(source):
    ours, theirs = both(source)
    equal = PanningEnv(source, 5, 2, 3, observations.FIRST)
    equal.reset(seed=0, options={"sparsity": 0.5})
    for _ in range(5):
        ours.step([-1, -1, -1]), equal.step([0, 0, 0])
        assert torch.equal(flat(ours.mask.values()), flat(equal.mask.values()))
    kept = round(0.5 ** (1 / 5) * 50_200)
    observation, reward, terminated, *_ = theirs.step([-1, -1, -1])
    assert (
        flat(theirs.mask.values())[:kept].all() and masks.count(theirs.mask) == kept
    )  # nothing is left of the last layer
    assert terminated and observation[4] == 1 and reward < -5


# --- what a training is ---

TINY = {
    "networks": "lenet300/digits",
    "steps": 150,
    "rounds": 5,
    "per_class": 2,
    "pool": 10,
    "random_steps": 21,
    "width": 16,
}


@pytest.mark.parametrize(
    "change, says",
    [
        ({"networks": ()}, "networks has ''"),
        (
            {"networks": "lenet300"},
            "networks has 'lenet300'; a network is MODEL/DATA SET, such as lenet5/mnist",
        ),
        ({"networks": "lenet301/digits"}, "lenet301/digits.*of the models lenet300"),
        ({"networks": "lenet300/digitz"}, "the data sets digits"),
        ({"networks": ("lenet300/digits", "lenet5/mnist")}, "several networks need redraw"),
        ({"init": "panningg"}, "unknown initialisation 'panningg'; did you mean 'panning'"),
        ({"steps": 0}, "steps is 0; it must be from 1 to"),
        ({"steps": 1.5}, "steps is 1.5; it must be a whole number"),
        ({"steps": True}, "steps is True"),
        ({"rounds": 0}, "rounds is 0"),
        ({"per_class": 0}, "per_class is 0"),
        ({"pool": -1}, "pool is -1"),
        ({"pool": None}, "pool is None; it must be a whole number"),
        ({"seed": -1}, "seed is -1; it must be from 0 to"),
        ({"seed": "1"}, "seed is '1'"),
        ({"random_steps": -1}, "random_steps is -1"),
        ({"lr": -1e-3}, "lr is -0.001; it must be from 0 to"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"gamma": "0.9"}, "gamma is '0.9'; it must be a float"),
        ({"noise": -0.1}, "noise is -0.1"),
        ({"width": 0}, "width is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"delay": 0}, "delay is 0"),
        ({"gamma": 7.0}, "gamma is 7.0; it must be from 0 to 1"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"networks": [5]}, "networks has 5"),
        ({"init": []}, "unknown initialisation"),
        ({"normalisation": "theirs"}, "unknown normalisation 'theirs'"),
        ({"redraw": 1}, "redraw is 1; it must be a bool"),
        ({"departures": "yes"}, "unknown departure 'yes'"),
    ],
)
def test_bad_settings_are_named(change, says):
    with pytest.raises(UserError, match=says):
        Training(**{**TINY, **change})


def test_an_agent_sees_the_images_on_the_scale_that_was_asked_for():
    """The authors' is not the default, and part of the key only where it is asked for."""
    plain, authors = (
        Training("lenet300/digits", normalisation=scale) for scale in data.NORMALISATIONS
    )
    assert "normalisation" not in plain.canonical()
    assert authors.canonical() == {**plain.canonical(), "normalisation": "authors"}
    for training in (plain, authors):
        _, split = training.source()(None)
        assert split is data.load("digits", training.normalisation).train


def test_a_training_is_known_by_what_is_not_at_its_default():
    plain = Training("lenet300/digits")
    assert plain == Training(("lenet300/digits",)) and plain.canonical() == {
        "networks": ["lenet300/digits"],
        "departures": ["end", "loss", "shares"],
    }
    assert (
        plain.key() == Training("lenet300/digits", steps=50_000, gamma=0.99).key()
        and len(plain.key()) == 64
    )
    assert plain.name() == f"lenet300-digits-seed0-{plain.key()[:6]}"
    other = Training("lenet300/digits", seed=3)
    assert other.canonical() == {**plain.canonical(), "seed": 3} and other.name().startswith(
        "lenet300-digits-seed3-"
    )
    general = Training(["lenet300/digits", "lenet5/mnist"], redraw=True, seed=2)
    assert general.name().startswith("general-seed2-")
    assert (
        len(
            {
                t.key()
                for t in (
                    plain,
                    other,
                    general,
                    Training("lenet300/digits", steps=10_000),
                    Training("lenet5/mnist"),
                )
            }
        )
        == 5
    )


def test_the_networks_of_a_training(digits):
    def weights(source, draw=0):
        return flat(models.prunable(source(np.random.default_rng(draw))[0]).values())

    fixed, drawn = (
        Training("lenet300/digits", seed=4),
        Training("lenet300/digits", seed=4, redraw=True),
    )
    built = models.build("lenet300", digits.input_shape, digits.classes, 4, "panning")
    assert torch.equal(weights(fixed.source()), flat(models.prunable(built).values()))
    source = fixed.source()
    assert source(None)[0] is source(None)[0] and source(None)[1] is digits.train
    assert torch.equal(weights(drawn.source(), 1), weights(drawn.source(), 1)) and not torch.equal(
        weights(drawn.source(), 1), weights(drawn.source(), 2)
    )
    assert torch.equal(
        weights(drawn.source(7), 1), weights(fixed.source(7), 2)
    ) and not torch.equal(weights(fixed.source(7)), weights(fixed.source()))
    for departures, pool in (((), 0), (("loss", "kept"), 5)):
        env = Training(
            "lenet300/digits", rounds=7, per_class=3, pool=pool, departures=departures
        ).environment()
        assert (env.rounds, env.per_class, env.pool, env.departures) == (
            7,
            3,
            pool,
            set(departures),
        )


def test_a_recorded_training_that_names_no_departures_had_them_all():
    old = {"networks": ["lenet5/mnist"], "steps": 20_000}
    training = Agent.recorded(old)
    assert (
        training.departures == observations.FIRST
        and training.canonical() == old
        and Agent.recorded(Training("lenet5/mnist").canonical()) == Agent("lenet5/mnist")
    )
    assert (
        training.key() != Training("lenet5/mnist", steps=20_000).key()
        and Training("lenet5/mnist").departures == observations.DEFAULT
    )
    assert Training("lenet5/mnist", departures=["shares", "loss", "end"]) == Training(
        "lenet5/mnist"
    )


# --- learning ---


@pytest.fixture
def learned(monkeypatch, tmp_path_factory):
    """What the tiny training gives when nothing interrupts it, and its learner; made once. Its legs
    and its exploration are short.
    """
    monkeypatch.setattr(learning, "LEG", 50)
    monkeypatch.setattr(environment, "EXPLORING", 70)
    if not LEARNED:
        LEARNED.extend(with_learner(Training(**TINY), tmp_path_factory.mktemp("whole")))
    return LEARNED


LEARNED = []


def with_learner(training, folder):
    real, learners = learning._actor, []
    with pytest.MonkeyPatch.context() as spying:
        spying.setattr(
            learning,
            "_actor",
            lambda learner, card: learners.append(learner) or real(learner, card),
        )
        return learning.learn(training, folder), learners[-1]


def test_what_learning_gives(learned):
    (actor, told), learner = learned
    assert [w.shape for w, _ in actor.layers] == [(16, 7), (16, 16), (3, 16)]
    assert actor.card["trained_on"] == ["lenet300/digits"] and (
        actor.card["steps"],
        actor.card["seed"],
        actor.card["training"]["width"],
    ) == (150, 0, 16)
    assert {"panning_core", "torch", "gymnasium", "stable-baselines3"} == actor.card[
        "versions"
    ].keys() and actor.card["seconds"] > 0
    for observation in np.random.default_rng(0).normal(size=(20, 7)):
        assert actor(observation) == pytest.approx(
            learner.predict(observation, deterministic=True)[0], abs=1e-6
        )
    assert (
        learner.num_timesteps == 150 and learner._n_updates == 150 - 21
    )  # an odd number at the end of every leg, so that the delay is out of step
    assert [row["steps"] for row in told["evaluations"]] == [
        steps for steps in (0, 50, 100, 150) for _ in range(4)
    ]
    assert [row["sparsity"] for row in told["evaluations"][:4]] == [0.9, 0.98, 0.99, 0.999]
    for steps, target, total, effective, rounds in told["episodes"]:
        assert (
            (0.9 if steps - rounds >= 70 else 0.8) <= target <= 1
            and total < 0
            and target - 0.01 < effective <= 1
            and 1 <= rounds <= 5
            and 0 < steps <= 150
        )
    assert len(told["episodes"]) >= 28 and told["seconds"] > 0


def test_a_last_round_ends_all_unless_it_is_told_to_bootstrap(learned, tmp_path):
    """In the replay buffer a round that ends an episode is one after which nothing comes, or one
    that was cut short.
    """
    (_, told), learner = learned
    buffer = learner.replay_buffer
    assert buffer.dones.sum() >= len(told["episodes"]) and not buffer.timeouts.any()
    assert buffer.rewards.sum() <= sum(total for _, _, total, _, _ in told["episodes"]) < 0
    (_, told), learner = with_learner(Training(**{**TINY, "steps": 25}, bootstrap=True), tmp_path)
    assert (
        0
        < learner.replay_buffer.timeouts.sum()
        <= len(told["episodes"])
        == learner.replay_buffer.dones.sum()
    )


def test_every_setting_reaches_the_learner(tmp_path):
    how = {
        "steps": 5,
        "lr": 1e-3,
        "gamma": 0.9,
        "tau": 0.02,
        "batch_size": 8,
        "delay": 3,
        "noise": 0.3,
        "target_noise": 0.4,
        "noise_clip": 0.6,
        "random_steps": 2,
    }
    _, learner = with_learner(Training(**{**TINY, **how}), tmp_path)
    assert (
        learner.learning_rate,
        learner.gamma,
        learner.tau,
        learner.batch_size,
        learner.policy_delay,
    ) == (1e-3, 0.9, 0.02, 8, 3)
    assert (
        learner.target_policy_noise,
        learner.target_noise_clip,
        learner.learning_starts,
        learner._n_updates,
    ) == (0.4, 0.6, 2, 3)
    assert (
        learner.action_noise._sigma.tolist() == [0.3] * 3 and learner.replay_buffer.buffer_size == 5
    )


class Interrupted(BaseException):
    pass


def test_learning_goes_on_where_it_was_interrupted_with_the_same_bits(learned, tmp_path):
    (actor, told), _ = learned
    for at in (30, 80, 149):

        def stop(steps):
            if steps == at:
                raise Interrupted

        with pytest.raises(Interrupted):
            learning.learn(Training(**TINY), tmp_path, stop)
    (path,) = tmp_path.iterdir()
    assert path.name == f"{Training(**TINY).name()}.checkpoint"
    steps = []
    again, told_again = learning.learn(Training(**TINY), tmp_path, steps.append)
    assert steps == list(range(101, 151))
    assert (
        learning.learn(Training(**TINY), tmp_path, steps.append)[0].digest() == again.digest()
        and len(steps) == 50
    )  # what is finished is not done again
    assert (
        again.digest() == actor.digest()
        and told_again["episodes"] == told["episodes"]
        and told_again["evaluations"] == told["evaluations"]
    )


def test_learning_leaves_the_global_random_numbers_alone(learned, tmp_path):
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    actor, _ = learning.learn(Training(**{**TINY, "steps": 25}), tmp_path)
    assert (
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
    ) == before
    random.seed(4), np.random.seed(5), torch.manual_seed(6)
    assert learning.learn(Training(**{**TINY, "steps": 25}), tmp_path)[0].digest() == actor.digest()


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def interrupted(folder):
    """The bytes of a checkpoint after a leg."""

    def stop(steps):
        if steps > 50:
            raise Interrupted

    with pytest.raises(Interrupted):
        learning.learn(Training(**TINY), folder, stop)
    (path,) = folder.iterdir()
    return path


def test_a_checkpoint_that_is_none_is_named_and_nothing_in_it_runs(learned, tmp_path):
    path = interrupted(tmp_path)
    good = torch.load(path, weights_only=True)
    whole = path.read_bytes()

    def tried(write):
        write()
        with pytest.raises(
            UserError, match=f"(?s){path.name} is not a checkpoint of this training .*; delete it"
        ):
            learning.learn(Training(**TINY), tmp_path)
        assert not (tmp_path / "harm").exists()

    for content in (b"", b"text", whole[: len(whole) // 2], whole[:-100]):
        tried(lambda: path.write_bytes(content))
    for state in (
        Harmful(tmp_path / "harm"),
        {**good, "told": Harmful(tmp_path / "harm")},
        {},
        [],
        {name: part for name, part in good.items() if name != "critic"},
        {**good, "told": "not JSON"},
        {**good, "policy": {}},
    ):
        tried(lambda: torch.save(state, path))
    torch.save({"x": Harmful(tmp_path / "harm")}, path)
    torch.load(path, weights_only=False)
    assert (tmp_path / "harm").exists()  # it would have run


@pytest.mark.parametrize(
    "departures, kept", [(observations.DEFAULT, True), (observations.FIRST, False)]
)
def test_units_that_grow_go_on_with_the_policy_and_fixed_ones_do_not(
    departures, kept, tmp_path, monkeypatch
):
    monkeypatch.setattr(learning, "LEG", 50)
    training = Training(**TINY | {"steps": 60, "departures": departures})
    actor, told = learning.learn(training, tmp_path)
    assert bool(told["extremes"]) == ("network" in actor.card) == kept
    assert bool(actor.known(training.source()(None)[0])) == kept and not actor.known(
        training.source(9)(None)[0]
    )
