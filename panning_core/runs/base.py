"""What an experiment is to the laboratory: one frozen record of plain values.

A kind of experiment is a subclass in a file of its own. ``experiments`` stores a run by its ``key``
and does it by ``execute``; it needs to know nothing else of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from .. import data
from ..errors import UserError, unknown
from ..names import Table

#: Kind -> where its class is, or the class itself. A name is looked up when it is needed, so that
#: a machine without gymnasium can prune; a plugin adds its own class.
KINDS = Table(
    __name__ + ".KINDS",
    {
        "prune": "panning_core.runs.prune.Run",
        "agent": "panning_core.runs.agent.Agent",
        "toy": "panning_core.runs.toy.Toy",
        "emergent-convolution": "panning_core.runs.emergent_convolution.EmergentConvolution",
        "mask-locality": "panning_core.runs.mask_locality.MaskLocality",
        "ball-indicator": "panning_core.runs.ball_indicator.BallIndicator",
        "gaussian-process": "panning_core.runs.gaussian_process.GaussianProcess",
        "tagi": "panning_core.runs.tagi.Tagi",
        "quantise": "panning_core.runs.quantise.Quantise",
        "forward-selection": "panning_core.runs.forward_selection.ForwardSelection",
        "signal-noise": "panning_core.runs.signal_noise.SignalNoise",
        "telescope": "panning_core.runs.telescope.Telescope",
        "checkpoint-diffusion": "panning_core.runs.checkpoint_diffusion.CheckpointDiffusion",
        "cluster-tpe": "panning_core.runs.cluster_tpe.ClusterTPE",
        "dynamic": "panning_core.runs.dynamic.Dynamic",
        "tickets": "panning_core.runs.tickets.Tickets",
        "early-structure": "panning_core.runs.early_structure.EarlyStructure",
        "visual-prompt": "panning_core.runs.visual_prompt.VisualPrompt",
        "stamp": "panning_core.runs.stamp.Stamp",
        "stochastic-gradient": "panning_core.runs.stochastic_gradient.StochasticGradient",
        "freeze": "panning_core.runs.freeze.Freeze",
        "partial-mask": "panning_core.runs.partial_mask.PartialMask",
        "differentiable-sparsification": (
            "panning_core.runs.differentiable_sparsification.DifferentiableSparsification"
        ),
    },
)

#: The kind of a ledger line or of an entry of a grid that names none: it was the first one.
FIRST = "prune"


class MissingPackage(UserError):
    """What a kind of run needs is not installed; its studies are left out, and all others run."""

    def __init__(self, kind: str, package: str | None):
        super().__init__(
            f"runs of the kind {kind} need the package {package}; requirements.txt has it"
        )


@dataclass(frozen=True)
class Context:
    """What is around a run and decides no result.

    Attributes:
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``; of a kind without ``on_cuda`` always the CPU.
        folder: of the study, for files that a run leaves beside the ledger.
    """

    device: str = "cpu"
    folder: Path | None = None


@dataclass(frozen=True)
class Run(ABC):
    """Everything that decides a result. Same run, same numbers (same device and thread count).

    A kind is a frozen dataclass of plain values with defaults, one of them ``seed``; its
    ``__post_init__`` raises a ``UserError`` for a value that can not be right. Only ``execute``
    must be written; the rest is for kinds that need it.
    """

    kind: ClassVar[str]
    version: ClassVar[int] = 1  #: of its results; a change of these takes the next number
    on_cuda: ClassVar[bool] = False  #: whether it works on the device of its context, or on the CPU
    needs: ClassVar[tuple[str, ...]] = ()  #: packages without which no run of this kind can be done

    @abstractmethod
    def execute(self, context: Context) -> dict:
        """Do it: the ``metrics`` of a ledger line, as JSON can hold them."""

    # --- what it is called ---

    def name(self) -> str:
        """How a message calls it."""
        return json.dumps(self.canonical())

    def canonical(self) -> dict:
        """The fields that are not at their default; a field added later leaves old runs alone."""
        values = {f.name: (getattr(self, f.name), f.default) for f in dataclasses.fields(self)}
        return {name: value for name, (value, default) in values.items() if value != default}

    def identity(self) -> dict:
        """What is hashed: the kind and the canonical fields, so that two kinds share no key."""
        return {self.kind: self.canonical()}

    def key(self) -> str:
        """SHA-256 of the identity as JSON."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()

    @classmethod
    def recorded(cls, run: dict) -> Run:
        """The run of a ledger line."""
        return cls(**run)

    # --- how a sweep does many ---

    @classmethod
    def axes(cls, entry: dict, named: dict[str, list[Run]]) -> dict:
        """An entry of a grid with its words replaced by values; ``named`` are the runs of earlier
        entries with a ``name``."""
        return entry

    def reads(self) -> tuple[str, ...]:
        """The data sets that it reads: by itself its ``dataset``; it is measured on the last."""
        return (self.dataset,) if hasattr(self, "dataset") else ()

    @classmethod
    def prepare(cls, runs: Sequence[Run]) -> None:
        """Raise now, as a ``UserError``, what would make all of these runs fail: by itself, data
        that can not be read."""
        for dataset in dict.fromkeys(name for run in runs for name in run.reads()):
            data.load(dataset)

    @classmethod
    def tasks(cls, runs: Sequence[Run], device: str) -> list[list[Run]]:
        """What a worker does at a time; more than one run goes to ``execute_together``."""
        return [[run] for run in runs]

    @classmethod
    def execute_together(cls, runs: Sequence[Run], context: Context) -> list[dict | Exception]:
        """``execute`` for a task of ``tasks``; a run that fails gives its error."""
        return [run.execute(context) for run in runs]

    def origin(self) -> dict:
        """What the provenance of its line says besides: by itself, the data it is measured on."""
        if not self.reads():
            return {}
        splits = data.load(self.reads()[-1])
        return {"data": {"title": splits.title, "fingerprint": splits.fingerprint}}

    def files(self, folder: Path) -> list[Path]:
        """What it leaves in the study's folder; a run whose file is missing is done again."""
        return []

    def clean(self, folder: Path) -> None:
        """Remove what only an interrupted run needs; called when its line is recorded."""


def kind(name: str) -> type[Run]:
    """The class of a kind.

    Raises:
        UserError: there is no such kind.
        MissingPackage: what it needs is not installed.
    """
    if not isinstance(name, str) or name not in KINDS:
        raise unknown("kind of run", name, KINDS)
    found = KINDS[name]
    if isinstance(found, str):
        module, _, attribute = found.rpartition(".")
        try:
            found = getattr(import_module(module), attribute)
        except ModuleNotFoundError as error:
            raise MissingPackage(name, error.name) from error
    for package in found.needs:
        if find_spec(package) is None:
            raise MissingPackage(name, package)
    return found


def read(line: dict) -> Run:
    """The run of a ledger line of any kind."""
    return kind(line.get("kind", FIRST)).recorded(line["run"])


def short(value: float) -> float | None:
    """Six significant digits, and None for what JSON has no number for."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
