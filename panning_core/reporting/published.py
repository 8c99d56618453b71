"""The published claims that are tested here, and which verdicts of the studies are parts of each.

The rule: the parts of a claim stand in order, nearest to the published setting first, and the
first that was run gives the claim its verdict, whatever the others say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from .study import OWN, VERDICTS

NOT_RUN = "not run"
RULE = "the part nearest to the published setting decides"


@dataclass(frozen=True)
class Claim:
    """A claim of a paper, in its own words.

    Attributes:
        id: such as ``P1``.
        paper: as verdicts name it.
        brief: what is claimed, for a table.
        words: the same in full; what stands in quotation marks is from the paper's abstract.
        parts: study and a pattern of what its verdicts' claims say, nearest to the published
            setting first; a group of the pattern says where the part was tested.
        missing: what the paper has and no part tests.
    """

    id: str
    paper: str
    brief: str
    words: str
    parts: tuple[tuple[str, str], ...]
    missing: str


PANNING, GATES, PROSPR = "Kang et al. 2022", "Zhang, Tao & Zhang 2023", "Alizadeh et al. 2022"
PAPERS = (
    ("P", f"Panning, {PANNING}", "2209.13378"),
    ("G", f"Gumbel-Softmax gates, {GATES}", "2311.12526"),
    ("R", f"ProsPr, {PROSPR}", "2202.08132"),
)
SWEEP, ABLATIONS, AGENT = "03_sparsity_sweep", "02_metric_ablations", "04_panning_agent"
SPEED, RIVALS, TRANSFER = (
    "07_training_acceleration", "05_prospr", "01_expressive_force_transfer"
)  # fmt: skip
PUBLISHED = (
    Claim(
        "P1", PANNING, 'Panning "performs better" than others.',
        'Panning "performs better than various available pruning before training methods".',
        (
            (SWEEP, r"^Better than available.*staged, sum\), (LeNet-300-100, authors input)"),
            (SWEEP, r"^Better than available.*staged, sum\), (LeNet-5, .*input)"),
            (SWEEP, r"^Better than available.*staged, sum\), (LeNet-300-100, .*input)"),
            ("08_cifar10", "^Panning .* is better than SNIP|^Stress test"),
            (SWEEP, "^Better than available|^Fewer errors|^Stress test"),
            (ABLATIONS, "is better than five methods"),
        ),
        "VGG and ResNet on CIFAR-10 for the published number of epochs, CIFAR-100, Tiny-ImageNet.",
    ),
    Claim(
        "P2", PANNING, 'Weights "take on the expressive force".',
        'In pruning "the reserved weights will take on the expressive force from the removed '
        'ones".',
        ((TRANSFER, "^Pruning transfers"), (TRANSFER, "predicts its accuracy")),
        "Convolutional networks.",
    ),
    Claim(
        "P3", PANNING, '"Multi-index and multi-process steps" help.',
        '"Multi-index and multi-process steps": metrics mixed by stages are better than each '
        "alone.",
        (
            (ABLATIONS, "better than each of them alone"),
            (ABLATIONS, "better than every constant mix"),
            (ABLATIONS, "^A hundred rounds|^Letting removed|^The product|gradients of the sub-"),
            (ABLATIONS, "inverting it hurts"),
        ),
        "Convolutional networks trained to the end.",
    ),
    Claim(
        "P4", PANNING, 'A "panning agent" beats the table of stages.',
        'A "panning agent based on reinforcement learning" prunes better than the table of '
        "stages.",
        ((AGENT, "than the table of stages, on its own network"), (AGENT, "")),
        "the paper's networks on CIFAR-10.",
    ),
    Claim(
        "P5", PANNING, 'It "accelerates the network training phase".',
        'Pruning before training "accelerates the network training phase".',
        ((SPEED, "^Pruning before .*(LeNet-5)"), (SPEED, "")),
        "a GPU, and the published 80 epochs (4 here, in which finding the mask weighs more).",
    ),
    Claim(
        "G1", GATES, '"High accuracy" with "only 0.15%".',
        '"High accuracy on the MNIST dataset with only 0.15% of the original network '
        'parameters".',
        (
            ("06_gumbel_softmax", "^High accuracy.*(paper's penalty)"),
            ("06_gumbel_softmax", "^High accuracy|^Learning weights and topology"),
        ),
        "the paper's own schedule and network, which could not be read.",
    ),
    Claim(
        "G2", GATES, '"Easy extraction of feature importance".',
        '"Easy extraction of feature importance directly from the pruned network".',
        (("06_gumbel_softmax", "^The importance of every pixel"),),
        "Other data than MNIST.",
    ),
    Claim(
        "G3", GATES, 'A network shows "feature symmetry".',
        'The pruned network shows "feature symmetry".',
        (
            ("06_gumbel_softmax", r"^The signs.*(published)"),
            ("06_gumbel_softmax", "^The signs"),
        ),
        "Other tasks than the paper's toy.",
    ),
    Claim(
        "G4", GATES, 'It shows "the pathways of information".',
        'The pruned network shows "the pathways of information propagation from features to '
        'outcomes".',
        (
            ("06_gumbel_softmax", r"^On the toy task the gates.*(published)"),
            ("06_gumbel_softmax", "^On the toy task the gates|^Deleting the pathway"),
        ),
        "Other tasks than the paper's toy, and MNIST by deletion.",
    ),
    Claim(
        "R1", PROSPR, 'ProsPr is "state-of-the-art".',
        'ProsPr "achieves state-of-the-art pruning performance".',
        (
            (RIVALS, "^ProsPr achieves state-of-the-art"),
            (RIVALS, "^Stress test: ProsPr|^ProsPr's scores for whole units"),
            (RIVALS, "^Looking ahead helps|^The gradient must go back"),
        ),
        "Its convolutional networks on CIFAR-10, CIFAR-100 and Tiny-ImageNet.",
    ),
    Claim(
        "R2", PROSPR, 'It is so "with less data".',
        'ProsPr does so "with less data".',
        ((RIVALS, "^ProsPr needs less data"),),
        "As for R1.",
    ),
    Claim(
        "R3", PROSPR, 'It is so "in a single shot".',
        'ProsPr does so "in a single shot".',
        ((RIVALS, "^A single shot of ProsPr"),),
        "As for R1.",
    ),
)  # fmt: skip


def papers() -> str:
    """``"P: [Panning](address), ..."``: what the letters of the claims mean."""
    return "; ".join(
        f"{letter}: [{name}](https://arxiv.org/abs/{arxiv})" for letter, name, arxiv in PAPERS
    )


def parts(claim: Claim, verdicts: pd.DataFrame) -> pd.DataFrame:
    """The verdicts that are parts of ``claim``, the one that decides first; ``where`` says where
    each was tested, as far as its pattern tells.
    """
    found: dict[int, str] = {}
    for study, pattern in claim.parts:
        for place, said in verdicts.claim[verdicts.study == study].items():
            if match := re.search(pattern, said):
                found.setdefault(place, "".join(match.groups()))
    return verdicts.loc[list(found)].assign(where=list(found.values()))


def table(verdicts: pd.DataFrame) -> pd.DataFrame:
    """One row a published claim: ``id, paper, claim, word, verdict, interval, n, where, place,
    number`` (the interval without its p, and where it was measured) and ``measured`` (the estimate
    alone); the verdict and its number are those of the part that decides.

    Args:
        verdicts: of all studies, with the ``study`` of each and the ``place`` where it is shown.
    """
    rows = []
    for claim in PUBLISHED:
        found = parts(claim, verdicts)
        row = {"id": claim.id, "paper": claim.paper, "claim": claim.brief}
        row |= {"word": NOT_RUN, "interval": "", "n": "", "where": "", "place": ""}
        if len(found):
            row |= found.iloc[0][["interval", "n", "where", "place"]].to_dict()
            row["word"] = found.iloc[0].verdict
        mark = VERDICTS.get(row["word"], VERDICTS["not judged"])
        row |= {"verdict": f"{mark} {row['word']}", "measured": estimate(row["interval"])}
        row["number"] = short(row["interval"]) + f"; {row['where']}" * bool(row["where"])
        rows.append(row)
    return pd.DataFrame(rows)


def short(interval: str) -> str:
    """An estimate without its p or the remark on n, which the parts have."""
    return re.sub(r", (p = \S+|n = \d+ has no interval)$", "", interval)


def estimate(interval: str) -> str:
    """An estimate alone, without what it was compared with and where."""
    return re.split(r" against|; | \((?!\d)", short(interval))[0]


def others(verdicts: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Paper and verdicts of all that is part of no published claim above; own questions last."""
    taken = {place for claim in PUBLISHED for place in parts(claim, verdicts).index}
    rest = verdicts[~verdicts.index.isin(taken)]
    named = sorted(set(rest.paper) - {OWN}, key=str.casefold)
    for paper in [*named, OWN]:
        if len(found := rest[rest.paper == paper]):
            yield paper, found


def tally(words: pd.Series) -> str:
    """``"2 hold, 3 fail and 1 is not judged"``: how many verdicts say what, in the order of
    ``VERDICTS``."""
    said = {
        "holds": ("holds", "hold"),
        "holds in part": ("holds in part", "hold in part"),
        "no worse": ("is no worse", "are no worse"),
        "fails": ("fails", "fail"),
        "undecided": ("is undecided", "are undecided"),
        "not judged": ("is not judged", "are not judged"),
        NOT_RUN: ("is not run", "are not run"),
    }
    counts = words.value_counts()
    told = [
        f"{counts[word]} {forms[int(counts[word] > 1)]}"
        for word, forms in said.items()
        if word in counts
    ]
    return " and ".join([", ".join(told[:-1]), told[-1]] if told[1:] else told) or "none"
