"""How the panning agent learns (Kang et al. 2022): TD3 of stable-baselines3 in ``environment``.

What the agent does and sees depends on no architecture, so one agent can serve many networks. A
policy that has learned needs neither gymnasium nor stable-baselines3 (``policies``).
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import nn

from .. import __version__, data, models, storage
from ..agent import observations
from ..agent.observations import MIXED, Look
from ..agent.policies import Actor
from ..data import Split
from ..errors import UserError, first_line, pick, unknown
from ..inspection import threads
from .environment import PanningEnv, Source, episode

LEG = 5_000  #: steps after which what was learned is evaluated and saved
TARGETS = (0.9, 0.98, 0.99, 0.999)  #: that a learner is evaluated at
HELD_OUT = 10_000  #: seed of the networks it is evaluated on


@dataclass(frozen=True)
class Training:
    """Everything that decides what an agent learns, as plain values; defaults are the published
    settings, but for the input.

    Attributes:
        networks: ``"MODEL/DATA SET"`` of each network that an episode may prune.
        seed: of the network, the batches, the targets, the exploration and the learner's weights.
        init: a key of ``models.INITS``.
        redraw: a new initialisation (and one of ``networks``) in every episode, else the same
            network all the time.
        steps: of the environment.
        rounds, per_class, pool, departures: as in ``PanningEnv``.
        bootstrap: a truncated episode has a value beyond its end. Not by default: the agent sees
            the clock and nothing follows (Pardo et al. 2018); and as every reward is negative, the
            value of going on for ever would make dying pay.
        lr, gamma, tau, batch_size, width: of TD3 (Fujimoto et al. 2018), actor and critics having
            two hidden layers.
        noise: deviation of the exploration; ``target_noise``, clipped at ``noise_clip``, that of
            the smoothed target; ``delay`` critic updates a policy update.
        random_steps: of uniform actions before learning begins.
        normalisation: of the input, one of ``data.NORMALISATIONS``; published is ``"authors"``.
    """

    networks: tuple[str, ...]
    seed: int = 0
    init: str = "panning"
    redraw: bool = False
    steps: int = 50_000
    rounds: int = 100
    per_class: int = 10
    pool: int = 32
    departures: tuple[str, ...] = observations.DEFAULT
    bootstrap: bool = False
    lr: float = 2e-4
    gamma: float = 0.99
    tau: float = 0.01
    batch_size: int = 256
    width: int = 256
    noise: float = 0.1
    target_noise: float = 0.2
    noise_clip: float = 0.5
    delay: int = 2
    random_steps: int = 2_000
    normalisation: str = "standardised"

    def __post_init__(self):
        self._settle_names()
        for field in fields(self)[1:]:
            self._check_value(field.name, type(field.default))
        if self.random_steps >= self.steps:
            raise UserError(
                f"random_steps is {self.random_steps} of {self.steps} steps; "
                "nothing would be learned"
            )
        if len(self.networks) > 1 and not self.redraw:
            raise UserError(
                "several networks need redraw: true; "
                "one network without it is the same all the time"
            )

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _settle_names(self) -> None:
        self._set("networks", _several(self.networks))
        for network in self.networks or ("",):
            model, _, dataset = str(network).partition("/")
            if model not in models.MODELS or dataset not in data.names():
                raise UserError(
                    f"networks has {network!r}; a network is MODEL/DATA SET, such as lenet5/mnist, "
                    f"of the models {', '.join(models.MODELS)} and the data sets "
                    f"{', '.join(data.names())}"
                )
            data.check_normalisation(dataset, self.normalisation)
        if self.init not in list(models.INITS):
            raise unknown("initialisation", self.init, models.INITS)
        departures = _several(self.departures)
        for name in departures:
            pick("departure", name, observations.DEPARTURES)
        self._set("departures", tuple(sorted(set(departures))))

    def _check_value(self, name: str, kind: type) -> None:
        value = getattr(self, name)
        if kind is float and type(value) is int:
            # 1 and 1.0 are one key.
            value = float(value)
            self._set(name, value)
        if type(value) is not kind:
            right = "a whole number" if kind is int else f"a {kind.__name__}"
            raise UserError(f"{name} is {value!r}; it must be {right}")
        if kind in (int, float):
            least = 0 if kind is float or name in ("seed", "random_steps", "pool") else 1
            most = 1 if name in ("gamma", "tau") else 2**31
            if not least <= value <= most:
                raise UserError(f"{name} is {value!r}; it must be from {least} to {most}")

    def canonical(self) -> dict:
        """The fields that are not at their default."""
        usual = {f.name: f.default for f in fields(self)} | {
            "departures": observations.FIRST
        }  # as before they had names
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name in usual
            if (value := getattr(self, name)) != usual[name]
        }

    def key(self) -> str:
        """SHA-256 of the canonical JSON."""
        return sha256(json.dumps(self.canonical(), sort_keys=True).encode()).hexdigest()

    def name(self) -> str:
        """Of the policy: its network or ``general``, its seed, and the beginning of the key."""
        network = "general" if self.redraw else self.networks[0].replace("/", "-")
        return f"{network}-seed{self.seed}-{self.key()[:6]}"

    def source(self, seed: int | None = None) -> Source:
        """Draws the networks of the episodes; with a seed always the first of ``networks`` with
        this one.
        """
        fixed = seed is not None or not self.redraw
        # All that are drawn from, because data.load remembers two.
        loaded = {
            network: data.load(network.partition("/")[2], self.normalisation)
            for network in self.networks[: 1 if fixed else None]
        }

        def build(network: str, seed: int) -> tuple[nn.Module, Split]:
            splits = loaded[network]
            return models.build(
                network.partition("/")[0], splits.input_shape, splits.classes, seed, self.init
            ), splits.train

        if fixed:
            same = build(self.networks[0], self.seed if seed is None else seed)
            return lambda draw: same
        return lambda draw: build(
            self.networks[draw.integers(len(self.networks))], int(draw.integers(2**31))
        )

    def environment(self, seed: int | None = None) -> PanningEnv:
        return PanningEnv(
            self.source(seed), self.rounds, self.per_class, self.pool, self.departures
        )


def checkpoint(training: Training, folder: Path) -> Path:
    """Where ``learn`` keeps what a training needs to go on."""
    return Path(folder) / f"{training.name()}.checkpoint"


def learn(
    training: Training, folder: Path, progress: Callable[[int], object] = lambda steps: None
) -> tuple[Actor, dict]:
    """Train an agent with stable-baselines3's TD3; goes on from the checkpoint in ``folder`` if
    there is one, even from a finished training's.

    Every leg of ``LEG`` steps begins with a fresh episode and random numbers of its own, so that a
    training that was interrupted ends with the same bits as one that was not.

    Args:
        folder: gets ``NAME.checkpoint``, to be deleted when the policy is safe; it is read without
            unpickling anything.
        progress: called with the number of steps done so far.

    Returns:
        The policy, and what happened: ``episodes`` (columns steps, sparsity, return,
        effective_sparsity, rounds) while it explored, ``evaluations`` (rows of ``episode`` with
        steps) of the deterministic policy on a network of another seed, seconds.
    """
    t, path = training, checkpoint(training, folder)
    # Units that never stop growing, over all legs.
    growing = not t.redraw and "extremes" not in t.departures
    told = {"episodes": [], "evaluations": [], "seconds": 0.0, "extremes": []}

    def evaluate() -> None:
        told["evaluations"] += _evaluations(learner, t.environment(HELD_OUT))

    def watch(now: dict, _) -> bool:
        for info in now["infos"]:
            if end := info.get("episode"):
                row = info["target"], end["r"], info["effective_sparsity"], end["l"]
                told["episodes"].append([learner.num_timesteps, *row])
        progress(learner.num_timesteps)
        return True

    # One thread, because a step of the learner is small work.
    with _random_numbers_of_its_own(), threads.one():
        learner = _learner(t)
        if path.exists():
            told = _restore(learner, path)
        if not told["evaluations"]:
            evaluate()
        while learner.num_timesteps < t.steps:
            start, leg = time.perf_counter(), learner.num_timesteps // LEG
            env = t.environment()
            env.steps, env.known = learner.num_timesteps, [Look(*look) for look in told["extremes"]]
            learner.set_env(env)
            learner.set_random_seed(int(np.random.SeedSequence([t.seed, leg]).generate_state(1)[0]))
            learner.learn(
                min(LEG, t.steps - learner.num_timesteps), watch, reset_num_timesteps=False
            )
            evaluate()
            told["extremes"] = [env.extremes.low, env.extremes.high] if growing else []
            told["seconds"] += time.perf_counter() - start
            _keep(learner, told, path)
    card = _card(t, told["seconds"])
    if growing:  # where it is applied to its own network, its units go on from here
        card |= {"network": models.fingerprint(t.source()(None)[0]), "extremes": told["extremes"]}
    return _actor(learner, card), told


def _learner(t: Training):
    from stable_baselines3 import TD3
    from stable_baselines3.common.noise import NormalActionNoise

    return TD3(
        "MlpPolicy",
        t.environment(),
        learning_rate=t.lr,
        buffer_size=t.steps,
        learning_starts=t.random_steps,
        batch_size=t.batch_size,
        tau=t.tau,
        gamma=t.gamma,
        policy_delay=t.delay,
        target_policy_noise=t.target_noise,
        target_noise_clip=t.noise_clip,
        action_noise=NormalActionNoise(np.zeros(len(MIXED)), np.full(len(MIXED), t.noise)),
        policy_kwargs={"net_arch": [t.width, t.width]},
        seed=t.seed,
        device="cpu",
        replay_buffer_kwargs={"handle_timeout_termination": t.bootstrap},
    )


def _evaluations(learner, held_out: PanningEnv) -> list[dict]:
    actor = _actor(learner, {})
    held_out.reset(seed=0)
    return [
        {"steps": learner.num_timesteps, **episode(held_out, actor, target)} for target in TARGETS
    ]


def _card(t: Training, seconds: float) -> dict:
    """What a policy says of where it comes from."""
    packages = "torch", "gymnasium", "stable-baselines3"
    return {
        "trained_on": list(t.networks),
        "steps": t.steps,
        "seed": t.seed,
        "seconds": round(seconds, 1),
        "training": asdict(t),
        "versions": {
            "panning_core": __version__,
            **{package: version(package) for package in packages},
        },
    }


def _actor(learner, card: dict) -> Actor:
    layers = [layer for layer in learner.actor.mu if isinstance(layer, nn.Linear)]
    return Actor(
        tuple(
            (layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy())
            for layer in layers
        ),
        card,
    )


@contextmanager
def _random_numbers_of_its_own() -> Iterator[None]:
    """stable-baselines3 seeds and draws from the global generators; afterwards they are as
    before.
    """
    plain, numbers = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(numbers)


_BUFFER = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


def _keep(learner, told: dict, path: Path) -> None:
    """Write everything that a leg begins with, whole or not at all. stable-baselines3's own files
    hold pickles.
    """
    # As long as the training; once it is full, its own ``pos`` is 0 again.
    buffer = learner.replay_buffer
    state = {
        "policy": learner.policy.state_dict(),
        "actor": learner.actor.optimizer.state_dict(),
        "critic": learner.critic.optimizer.state_dict(),
        "buffer": {
            name: torch.from_numpy(getattr(buffer, name)[: learner.num_timesteps])
            for name in _BUFFER
        },
        "steps": learner.num_timesteps,
        "updates": learner._n_updates,
        "told": json.dumps(told),
    }
    with storage.whole(path, "the agent's checkpoint") as part:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, part)


def _restore(learner, path: Path) -> dict:
    """Take over what ``_keep`` wrote; returns what it was told."""
    try:
        state = torch.load(path, weights_only=True)
        learner.policy.load_state_dict(state["policy"])
        learner.actor.optimizer.load_state_dict(state["actor"])
        learner.critic.optimizer.load_state_dict(state["critic"])
        buffer = learner.replay_buffer
        for name, part in state["buffer"].items():
            getattr(buffer, name)[: len(part)] = part.numpy()
        if not len(state["buffer"]["rewards"]) == state["steps"] <= buffer.buffer_size:
            raise ValueError(
                f"it says {state['steps']} steps and holds {len(state['buffer']['rewards'])}"
            )
        buffer.pos = learner.num_timesteps = state["steps"]
        learner._n_updates, told = int(state["updates"]), json.loads(state["told"])
    except Exception as error:  # torch, zipfile and json raise many kinds for a damaged file
        raise UserError(
            f"{path} is not a checkpoint of this training ({first_line(error)}); "
            "delete it and the training begins again"
        ) from error
    return told


def _several(value: object) -> tuple:
    return tuple(value) if isinstance(value, list | tuple) else (value,)
