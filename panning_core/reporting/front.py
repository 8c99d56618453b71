"""The sentences and the table of a front page: what Panning is, whether it wins, where, by how
much, and what may be concluded about CIFAR-10. Every number in them is computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from ..analysis import statistics
from ..commands import PROFILE as QUICK
from ..experiments import studies
from ..experiments.ledger import Ledger
from ..runs import base
from . import published, tables
from .names import MODELS, method_name, percent
from .study import VERDICTS
from .sweeps import AVAILABLE, short

CIFAR = "08_cifar10"
MOVING = "09_dynamic_sparsity"  #: masks that move while the network trains
MARKS = {"better": "✔", "worse": "✘"}  #: of an outcome
CHANCE = 0.12  #: an accuracy below it is a tenth of ten classes, or hardly more
EPOCHS = 10  #: below so many epochs of training study 08 judges nothing
PANNING = (
    "**What is Panning?** A way to choose, before any training, which weights stay: each is scored "
    "by SNIP, GraSP and SynFlow, the three are mixed, the best are kept, and again, a hundred "
    "times; a removed weight may return. The shares of the mix, a *sum* or a *product*, come from "
    "a table of stages or from a trained *agent*. The *masked product*, of scores of the pruned "
    "network, is ours."
)
#: question -> study and what the claim says on which the answer hangs
ELSE = {
    "Is the masked product better than five methods at 99 and 99.9 %?": (
        "02_metric_ablations",
        r"masked product\) is better than five methods.*authors input",
    ),
}
SAYS = {"no worse": "does not hold", "undecided": "is undecided"}
ANSWERS = {
    "holds": "Yes",
    "holds in part": "In part",
    "no worse": "No, but it is no worse",
    "fails": "No",
    "undecided": "Undecided",
}


def place(profile: str, runs: pd.DataFrame, lines: Sequence[dict]) -> str:
    """What a front page of another profile than ``paper`` must say first."""
    data = ", ".join(sorted({line["provenance"]["data"]["title"] for line in lines}))
    kind = "smoke test" if profile.startswith(QUICK) else "profile of your own"
    return (
        f"> **{kind.capitalize()}, not the published results.** The profile `{profile}` is of "
        f"{data}, n = {tables.seeds(runs)} in the sparsity sweep: it shows that the laboratory "
        "works, and says nothing about the networks and data of the papers. Their verdicts: "
        "[results/paper/README.md](../../paper/README.md)."
    )


def does_it_win(claims: pd.DataFrame) -> str:
    """The verdict on the published claim, from ``published.table``."""
    row = claims.set_index("id").loc["P1"]
    if row.word not in ANSWERS:
        return f"**Does it win?** That is {row.word} here."
    said = SAYS.get(row.word, row.word)
    return (
        f"**Does it win?** {ANSWERS[row.word]}. As it was published (staged, sum) against SNIP, "
        f"GraSP and SynFlow, the claim {said}: {row.number}, n = {row.n}."
    )


def where(
    panels: Mapping[str, pd.DataFrame], subjects: Sequence[str], rivals: Sequence[str] = AVAILABLE
) -> str:
    """On which networks and at which sparsities a form of Panning surely beats all rivals, and
    where it is surely worse than one of them: a line for each form, network and input, with the
    points to the rival that is least favourable.

    Args:
        panels: runs of one network and input each, by the name of both.
    """
    found: dict[tuple, list[str]] = {}
    count = few = 0
    for name, runs in panels.items():
        for subject in subjects:
            cells = statistics.compare(runs, subject, rivals)
            for sparsity, part in cells.groupby("sparsity") if len(cells) else ():
                worst, count = statistics.decisive(part), count + 1
                few += worst.outcome == "few"
                if mark := MARKS.get(worst.outcome):  # the least favourable of all
                    case = f"{100 * worst.difference:+.2f} at {percent(sparsity)}"
                    found.setdefault((mark, subject, name), []).append(case)
    if few == count:
        return "**Where, and by how much?** Too few seeds to say."
    return _told(found, count)


def _told(found: dict[tuple, list[str]], count: int) -> str:
    """The answer of ``where``, of the cases (mark, subject, name) -> differences."""
    won, lost = (
        sum(len(cases) for (mark, *_), cases in found.items() if mark == sign) for sign in "✔✘"
    )
    lines = [
        f"{mark} {method_name(subject)}, {name}: {', '.join(cases)}"
        for (mark, subject, name), cases in sorted(found.items(), key=lambda item: item[0][0])
    ]
    told = (
        f"**Where, and by how much?** Of {count} cases it is surely better than each of the three "
        f"in {won} and surely worse than one in {lost}; in the other {count - won - lost} neither "
        f"is sure ([each of them](../sparsities.md))"
    )
    listed = "; in points to the nearest:\n" + ";\n".join(lines)
    return told + (f"{listed}." if lines else ".")


def is_it_worth_it(profile: str, verdicts: pd.DataFrame) -> str:
    """What masks that stay lose against one that moves, at equal cost, by study 09's table."""
    table = studies.folder(MOVING, profile) / "loss.csv"
    here = verdicts[(verdicts.study == MOVING) & verdicts.claim.str.contains("equal FLOPs")]
    if not table.exists() or here.empty:
        return ""
    rows = pd.read_csv(table).itertuples(index=False)
    told = "; ".join(f"{behind} ({network})" for network, _, behind, *_ in rows)
    return (
        " At equal weights and training FLOPs, search not counted, GraNet's moving mask leads the "
        f"best fixed one by {told.replace('5,000 images of ', '')} points ({here.place.iloc[0]})."
    )


def what_else(verdicts: pd.DataFrame) -> str:
    """The answers to ``ELSE``, as far as they have been run."""
    told = []
    for question, (study, pattern) in ELSE.items():
        here = verdicts[(verdicts.study == study) & verdicts.claim.str.contains(pattern)]
        for row in here.head(1).itertuples():
            number = published.short(row.interval).partition("; ")[0]
            answer = f"{VERDICTS[row.verdict]} {row.verdict}: {number}, n = {row.n}"
            told.append(f"{question} {answer} ({row.place}).")
    return f"**What else was found?** {' '.join(told)}" if told else ""


def standing(
    runs: pd.DataFrame, name: str, subjects: Sequence[str], rivals: Sequence[str] = AVAILABLE
) -> pd.DataFrame:
    """One row a form of Panning, a column a sparsity, and in each cell three things that no mean
    over sparsities can hide: the verdict against all rivals, the difference to the rival that is
    least favourable, and the mean rank among all methods of ``runs``.
    """
    pruned = runs[runs.method != "dense"]
    accuracy = pruned.pivot_table(
        index=["sparsity", "seed"], columns="method", values="test_accuracy"
    )
    ranks = accuracy.rank(axis=1, ascending=False).groupby("sparsity").mean()
    methods = accuracy.groupby("sparsity").count().gt(0).sum(axis=1)
    rows = []
    for subject in subjects:
        row = {"network": name, "form": method_name(subject)}
        cells = statistics.compare(pruned, subject, rivals)
        for sparsity, part in cells.groupby("sparsity") if len(cells) else ():
            mark = VERDICTS[statistics.verdict(part, every=True)]
            difference = 100 * statistics.decisive(part).difference
            row[percent(sparsity)] = (
                f"{mark} {difference:+.2f}, rank {ranks[subject][sparsity]:.1f} of "
                f"{methods[sparsity]}"
            )
        rows += [row] if len(cells) else []
    return pd.DataFrame(rows)


def cifar(profile: str, verdicts: pd.DataFrame) -> str:
    """What the runs on CIFAR-10 allow to conclude."""
    begin = "**What may I conclude about CIFAR-10?** "
    there = f"([study 08](../{CIFAR}/README.md))."
    rows = Ledger(studies.folder(CIFAR, profile) / "runs.jsonl").rows()
    rows = [row for row in rows if row.get("kind", base.FIRST) == base.FIRST]
    runs = tables.tidy(rows) if rows else pd.DataFrame(columns=["dataset"], dtype=str)
    runs = runs[runs.dataset.str.startswith("cifar10")]
    if runs.empty:
        return f"{begin}Nothing: this profile has no run on it."
    about = verdicts[(verdicts.study == CIFAR) & (verdicts.paper == published.PANNING)]
    if len(judged := about[about.verdict != "not judged"]):
        told = "; ".join(
            f"{VERDICTS[row.verdict]} {row.verdict}: {row.claim.removesuffix('.')} "
            f"({published.estimate(row.interval)}, n = {row.n})"
            for row in judged.itertuples()
        )
        found = runs[(runs.epochs >= EPOCHS) & runs.method.isin(["panning", *AVAILABLE])]
        found = found[found.sparsity.isin(found[found.method == "panning"].sparsity)]
        means = found.groupby("method").test_accuracy.mean()
        lost = ", ".join(short(method) for method in means[means < CHANCE].index)
        lost = f"; at chance: {lost}" if lost else ""
        return f"{begin}{told}{lost}. Theirs: 180, no JPEG {there}"
    done = [
        f"{MODELS.get(model, model)} for {epochs} epoch{'s' * (epochs > 1)} with "
        f"{part.seed.nunique()} seeds"
        for (model, epochs), part in runs.groupby(["model", "epochs"])
    ]
    return (
        f"{begin}Nothing yet about who is better. We trained {', '.join(done)}; a verdict needs "
        f"{EPOCHS} epochs and {statistics.LEAST} seeds, the authors' code has 180 epochs {there}"
    )
