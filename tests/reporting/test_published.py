"""Twelve published claims: every verdict on one belongs to it, and the nearest part decides."""

import re

import numpy as np
import pandas as pd
import pytest

from panning_core import ROOT
from panning_core.experiments import ledger
from panning_core.reporting import front, published

PAPERS = {published.PANNING, published.GATES, published.PROSPR}
FOUND = pd.concat(
    [
        pd.read_csv(path).assign(study=path.parent.name, place="")
        for path in sorted((ROOT / "results" / "paper").glob("*/verdicts.csv"))
    ],
    ignore_index=True,
)


def verdicts(*rows):
    """Verdicts with all that the tables need: study, claim, verdict, paper."""
    made = pd.DataFrame(rows, columns=["study", "claim", "verdict", "paper"])
    return made.assign(interval=made.claim.str[-1] + " points, p = 0.02", n=5, place="", family=1)


def test_twelve_claims_each_with_its_own_name():
    assert [claim.id for claim in published.PUBLISHED] == (
        "P1 P2 P3 P4 P5 G1 G2 G3 G4 R1 R2 R3".split()
    )


def test_every_recorded_verdict_on_a_claim_of_these_papers_is_part_of_one_and_only_one():
    taken = [
        place for claim in published.PUBLISHED for place in published.parts(claim, FOUND).index
    ]
    assert len(taken) == len({*taken})
    of_papers = FOUND.index[FOUND.paper.isin(PAPERS)]
    assert {*of_papers} <= {*taken}
    rest = [place for _, part in published.others(FOUND) for place in part.index]
    assert sorted(taken + rest) == sorted(FOUND.index)


@pytest.mark.parametrize(
    "claim, study, pattern",
    [(claim, *part) for claim in published.PUBLISHED for part in claim.parts],
)
def test_every_part_that_is_named_is_there(claim, study, pattern):
    there = FOUND[FOUND.study == study].claim
    assert there.map(lambda said: bool(re.search(pattern, said))).any()


def test_the_part_that_decides_is_the_papers_own():
    for claim in published.PUBLISHED:
        first = published.parts(claim, FOUND).iloc[0]
        assert first.paper == claim.paper, claim.id


def test_the_nearest_part_decides_whatever_the_others_say():
    found = verdicts(
        ("03_sparsity_sweep", "Stress test 1", "holds", "this study"),
        ("03_sparsity_sweep", "Better than available; Panning (staged, sum), LeNet-5, far input 2",
         "holds", "Kang et al. 2022"),
        ("03_sparsity_sweep",
         "Better than available; Panning (staged, sum), LeNet-300-100, authors input 3",
         "fails", "Kang et al. 2022"),
    )  # fmt: skip
    row = published.table(found).set_index("id").loc["P1"]
    assert (row.verdict, row.measured) == ("✘ fails", "3 points")
    assert row.number == "3 points; LeNet-300-100, authors input"
    row = published.table(found[:2]).set_index("id").loc["P1"]
    assert (row.verdict, row.number) == ("✔ holds", "2 points; LeNet-5, far input")


def test_a_claim_without_a_part_is_not_run():
    table = published.table(verdicts())
    assert set(table.verdict) == {"– not run"} and set(table.measured) == {""}


@pytest.mark.parametrize(
    "interval, alone",
    [
        ("-1.0 points [-2, +1] against SNIP at 99 %, p = 0.5", "-1.0 points [-2, +1]"),
        ("94 % [93, 95]; high: 95 % or more", "94 % [93, 95]"),
        ("both in 14 of 14 (78 to 100 %)", "both in 14 of 14 (78 to 100 %)"),
        ("1.6 [1.5, 1.7] times as fast (SNIP (signed), 50 %)", "1.6 [1.5, 1.7] times as fast"),
    ],
)
def test_an_estimate_alone_keeps_its_interval(interval, alone):
    assert published.estimate(interval) == alone


def test_words_are_counted():
    words = pd.Series(["fails", "holds", "holds", "not judged", "holds in part"])
    assert published.tally(words) == "2 hold, 1 holds in part, 1 fails and 1 is not judged"
    assert published.tally(words[:1]) == "1 fails" and published.tally(words[:0]) == "none"


def accuracies(lead):
    """Panning ahead of three rivals by ``lead[sparsity]``, six seeds, and a dense network."""
    rng, rows = np.random.default_rng(0), []
    for sparsity, ahead in lead.items():
        for seed in range(6):
            for method in ("panning", *front.AVAILABLE):
                accuracy = 0.9 + ahead * (method == "panning") + 0.0001 * rng.normal()
                rows.append((method, sparsity, seed, accuracy))
    rows.append(("dense", 0.0, 0, 0.99))
    return pd.DataFrame(rows, columns=["method", "sparsity", "seed", "test_accuracy"])


def test_where_it_wins_is_told_for_each_sparsity_alone():
    told = front.where({"a net": accuracies({0.9: 0.02, 0.99: -0.03})}, ["panning", "absent"])
    assert "Of 2 cases" in told and "in 1 and surely worse than one in 1; in the other 0" in told
    better, worse = told.splitlines()[-2:]
    begin = r". Panning \(staged, sum\), a net: "
    assert re.fullmatch(begin + r"\+(2.0|1.9)\d at 90 %;", better)
    assert re.fullmatch(begin + r"-(3.0|2.9)\d at 99 %\.", worse)
    assert (better[0], worse[0]) == ("✔", "✘")
    told = front.where({"a net": accuracies({0.9: 0.0})}, ["panning"])
    assert "in the other 1 neither" in told and told.endswith("sparsities.md)).")
    few = accuracies({0.9: 0.0}).query("seed < 2")
    assert front.where({"a net": few}, ["panning"]).endswith("Too few seeds to say.")


def test_what_else_was_found_is_told_as_far_as_it_was_run():
    assert front.what_else(verdicts()) == ""
    claim = "Panning (masked product) is better than five methods; authors input 9"
    found = verdicts(("02_metric_ablations", claim, "holds", "this study")).assign(
        place="[06](there)"
    )
    told = front.what_else(found)
    assert "✔ holds: 9 points, n = 5 ([06](there))." in told and told.count("n = ") == 1
    for study, pattern in front.ELSE.values():
        assert FOUND[FOUND.study == study].claim.str.contains(pattern).sum() == 1


def test_a_cell_has_the_verdict_the_difference_and_the_rank():
    table = front.standing(accuracies({0.9: 0.02, 0.99: -0.03}), "a net", ["panning", "absent"])
    (row,) = table.to_dict("records")
    assert (row["network"], row["form"]) == ("a net", "Panning (staged, sum)")
    assert re.fullmatch(r"✔ \+(2.0|1.9)\d, rank 1.0 of 4", row["90 %"])
    assert re.fullmatch(r"✘ -(3.0|2.9)\d, rank 4.0 of 4", row["99 %"])


@pytest.mark.parametrize(
    "word, answer",
    [
        (
            "fails",
            "No. As it was published (staged, sum) against SNIP, GraSP and SynFlow, the "
            "claim fails: +1 point, n = 5.",
        ),
        ("holds", "Yes. As"),
        ("undecided", "the claim is undecided"),
        ("not judged", "not judged here"),
    ],
)
def test_whether_it_wins_follows_the_verdict(word, answer):
    claims = pd.DataFrame([{"id": "P1", "word": word, "number": "+1 point", "n": 5}])
    assert answer in front.does_it_win(claims)


def test_what_cifar_allows_to_conclude(monkeypatch):
    run = {"dataset": "cifar10-jpeg", "model": "resnet20", "recipe": "cifar-short"}
    run |= {"sparsity": 0.99}
    lines = [
        {"key": method + str(seed), "run": {**run, "method": method, "seed": seed}, "metrics": {
            "epochs": 1, "test_accuracy": 0.4 if method == "panning" else 0.1, "curve": {
            "loss": [1.0], "validation_accuracy": [0.5]}}}
        for method in ("panning", "snip") for seed in range(3)
    ]  # fmt: skip
    monkeypatch.setattr(ledger.Ledger, "rows", lambda _: lines)
    told = front.cifar("paper", verdicts())
    assert "Nothing yet" in told and "ResNet-20 for 1 epoch with 3 seeds" in told
    found = verdicts(("08_cifar10", "Panning is better.", "holds", "Kang et al. 2022"))
    for line in lines:
        line["metrics"]["epochs"] = 10
    told = front.cifar("paper", found)
    assert "✔ holds: Panning is better (" in told and "at chance: SNIP. Theirs" in told
    monkeypatch.setattr(ledger.Ledger, "rows", lambda _: [])
    assert "no run on it" in front.cifar("paper", verdicts())


def test_a_profile_that_is_not_the_published_one_says_so():
    lines = [{"provenance": {"data": {"title": "digits (8x8)"}}}]
    told = front.place("quick", accuracies({0.9: 0.0}), lines)
    assert "Smoke test, not the published results" in told and "n = " in told
    assert "digits (8x8)" in told and "results/paper/README.md" in told
