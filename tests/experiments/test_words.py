"""``FIELD=VALUE`` on the command line: one run, or changed values of a profile."""

import json

import pytest

from panning_core import commands
from panning_core.errors import UserError
from panning_core.experiments import studies, words


def test_values_are_read_as_yaml_has_them():
    read = words.read(["data=digits", "model=lenet300", "sparsity=0.95", "seed=[0, 1]"])
    assert read == {"dataset": "digits", "model": "lenet300", "sparsity": 0.95, "seed": [0, 1]}


@pytest.mark.parametrize(
    "word, message",
    [
        (["sparsity"], "'sparsity' is no FIELD=VALUE, such as sparsity=0.95"),
        (["=0.95"], "is no FIELD=VALUE"),
        (["epochs="], "is no FIELD=VALUE"),
        (["data=digits", "dataset=mnist"], "dataset is there twice"),
        (["seed=[0"], "has no value that YAML reads"),
    ],
)
def test_what_is_no_field_and_value_is_refused(word, message):
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        words.read(word)


def test_an_agent_needs_a_study():
    with pytest.raises(UserError, match="an agent leaves its policy beside a ledger; name it in"):
        words.run(["kind=agent", "networks=lenet300/digits"])


def test_a_profile_carries_its_changes_in_its_name():
    assert words.parted("quick") == ("quick", {})
    assert words.parted("quick,epochs=5,seed=[0,1]") == ("quick", {"epochs": 5, "seed": [0, 1]})


def test_values_change_where_they_are_named_and_nowhere_else():
    sections = {
        "01_a": {"grid": [{"model": "lenet300", "epochs": 60}, {"model": "lenet5"}]},
        "02_b": {"parameters": {"epochs": 3, "seeds": 2}},
    }
    changed = words.change(sections, {"epochs": 1})
    assert changed == {
        "01_a": {"grid": [{"model": "lenet300", "epochs": 1}, {"model": "lenet5"}]},
        "02_b": {"parameters": {"epochs": 1, "seeds": 2}},
    }
    assert sections["01_a"]["grid"][0]["epochs"] == 60 and words.change(sections, {}) == sections
    with pytest.raises(UserError, match="unknown value of this profile 'epoch'; did you mean"):
        words.change(sections, {"epoch": 1})


def test_a_changed_profile_has_other_runs_in_another_folder():
    study = "03_sparsity_sweep"
    plain, changed = (studies.runs(study, name) for name in ("quick", "quick,epochs=1"))
    assert len(plain) == len(changed) and {run.epochs for run in changed} == {1}
    assert not {run.key() for run in plain} & {run.key() for run in changed}
    assert studies.folder(study, "quick,epochs=1") != studies.folder(study, "quick")
    with pytest.raises(UserError, match="unknown value of this profile 'epoch'"):
        studies.runs(study, "quick,epoch=1")


@pytest.mark.parametrize(
    "typed, profile, fields, single",
    [
        ([], "quick", [], False),
        (["paper"], "paper", [], False),
        (["run", "mine", "epochs=5"], "mine", ["epochs=5"], False),
        (
            ["run", "model=lenet300", "data=digits"],
            "quick",
            ["model=lenet300", "data=digits"],
            True,
        ),
    ],
)
def test_a_profile_and_fields_are_told_apart(typed, profile, fields, single):
    options = commands.read(typed)
    assert (options.profile, options.fields, options.single) == (profile, fields, single)


def test_one_run_is_a_line_as_a_ledger_holds_it(capsys):
    asked = ["data=digits", "model=lenet300", "method=snip", "sparsity=0.95", "epochs=1"]
    assert words.run(asked) == 0
    told = capsys.readouterr()
    line = json.loads(told.out)
    (run,) = studies.expand([words.read(asked)])
    assert line["key"] == run.key() and line["run"] == run.canonical()
    assert line["metrics"]["kept_weights"] == 2510 and line["provenance"]["data"]
    assert "test accuracy" in told.err and "2,510 of 50,200 weights kept" in told.err


def test_a_list_is_several_runs_and_a_wrong_run_is_one_sentence(capsys):
    words.run(["data=digits", "model=lenet300", "epochs=0", "method=snip", "sparsity=[0.5, 0.9]"])
    assert len(capsys.readouterr().out.splitlines()) == 2
    with pytest.raises(UserError, match="lacks model"):
        words.run(["data=digits"])
    with pytest.raises(UserError, match="unknown data set 'digit'"):
        words.run(["data=digit", "model=lenet300"])
