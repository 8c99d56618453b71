"""Every system named by the pages of the two papers, where it is studied, and what came of it."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pandas as pd

from ..experiments import studies
from ..experiments.ledger import Ledger
from ..runs import base


@dataclass(frozen=True)
class System:
    """A system and its place in this laboratory.

    Attributes:
        arxiv: number of its paper.
        name: of the system.
        study: where it is studied; one that is not there yet shows as not run.
        papers: pattern of the ``paper`` of the verdicts on its claims.
        kinds: of its runs.
        methods: of its pruning runs, a pattern; "" is every one.
        doi: of the published version, where it has one that could be confirmed.
    """

    arxiv: str
    name: str
    study: str
    papers: str
    kinds: tuple[str, ...]
    methods: str = ""
    doi: str = ""


SYSTEMS = (
    System(
        "2209.13378", "Neural Network Panning", "03_sparsity_sweep", "Kang", ("prune",), "panning",
    ),
    System(
        "2311.12526", "Pruning by gradient descent with Gumbel-Softmax", "06_gumbel_softmax",
        "Zhang, Tao", ("prune", "toy"), "gumbel-softmax",
    ),
    System("2202.08132", "ProsPr", "05_prospr", "Alizadeh", ("prune",), "prospr"),
    System("2106.10404", "GraNet", "09_dynamic_sparsity", "Liu.*2021|GraNet", ("dynamic",)),
    System("2106.14568", "FreeTickets", "10_ensembles", "Liu|FreeTickets", ("tickets",)),
    System(
        "2110.12007", "When to prune? (EPI)", "11_early_structure", "Shen", ("early-structure",),
        doi="10.1109/CVPR52688.2022.01193",
    ),
    System(
        "2110.08271", "Joint quantisation and pruning", "12_precision", "Zhang et al. 2021",
        ("quantise",),
    ),
    System("2308.06422", "Cluster-based TPE", "12_precision", "Azizi", ("cluster-tpe",)),
    System(
        "2108.00259", "How much pre-training?", "13_two_layer_theory", "Wolfe",
        ("forward-selection",)
    ),
    System(
        "2301.00335", "Pruning and generalisation", "13_two_layer_theory", "Yang", ("signal-noise",)
    ),
    System(
        "2205.08099", "Prune or freeze", "14_freezing_and_cores", "Wojcik|Wimmer", ("freeze",),
        doi="10.1007/s10462-023-10489-1",
    ),
    System(
        "2106.08895", "Partially masked training", "14_freezing_and_cores", "Mohtashami",
        ("partial-mask",),
    ),
    System(
        "2312.16020", "StochGradAdam", "15_optimisers_and_gates", "Yun", ("stochastic-gradient",),
    ),
    System(
        "1910.03201", "Differentiable sparsification", "15_optimisers_and_gates", "Lee",
        ("differentiable-sparsification",),
    ),
    System("2006.12139", "STAMP", "16_masks_for_tasks", "Song", ("stamp",)),
    System("2312.01397", "VPNs", "16_masks_for_tasks", "Jin", ("visual-prompt",)),
    System("2411.00247", "Telescoping lens", "17_training_paths", "Jeffares", ("telescope",)),
    System("2209.12892", "G.pt", "17_training_paths", "Peebles", ("checkpoint-diffusion",)),
    System(
        "2204.09889", "Inducing Gaussian process networks", "18_bayesian_networks", "Tibo",
        ("gaussian-process",),
    ),
    System("2103.05461", "TAGI", "18_bayesian_networks", "Nguyen", ("tagi",)),
    System(
        "2202.00565", "Emergent convolution", "19_structure_from_data",
        "Ingrosso|Pellegrini|Redman", ("emergent-convolution", "mask-locality"),
        doi="10.1073/pnas.2201854119",
    ),
    System(
        "2112.02393", "Optimization-based separations", "19_structure_from_data", "Safran",
        ("ball-indicator",),
    ),
)  # fmt: skip


def table(verdicts: pd.DataFrame, profile: str) -> pd.DataFrame:
    """One row a system: ``arxiv, system, paper, study, runs, verdict``; paper and study are links.

    Args:
        verdicts: of all studies, with the ``study`` of each.
    """
    ledgers = {
        study: Ledger(studies.folder(study, profile) / "runs.jsonl").rows()
        for study in {system.study for system in SYSTEMS}
    }
    rows = []
    for system in SYSTEMS:
        here = verdicts[
            (verdicts.study == system.study) & verdicts.paper.str.contains(system.papers)
        ]
        runs = sum(_is_of(line, system) for line in ledgers[system.study])
        rows.append(
            {
                "arxiv": system.arxiv,
                "system": system.name,
                "paper": addresses(system),
                "study": f"[study {system.study[:2]}](../{system.study}/README.md)",
                "runs": runs,
                "verdict": _told(here.verdict) if runs else "not run",
            }
        )
    return pd.DataFrame(rows)


def addresses(system: System) -> str:
    """Links to a system's paper: the preprint, and the published version."""
    preprint = f"[preprint](https://arxiv.org/abs/{system.arxiv})"
    return preprint + f", [DOI](https://doi.org/{system.doi})" * bool(system.doi)


def _is_of(line: dict, system: System) -> bool:
    kind = line.get("kind", base.FIRST)
    named = kind != base.FIRST or re.search(system.methods, line["run"].get("method", "dense"))
    return kind in system.kinds and bool(named)


def _told(words: pd.Series) -> str:
    """``"holds (2), fails (1)"``: each verdict and how many claims have it."""
    counts = words.value_counts()
    return ", ".join(f"{word} ({count})" for word, count in counts.items()) or "not judged"
