"""Readers of files under random bytes: what they read was written so, or they say in a sentence
that it was not.

``FUZZ=20000 pytest tests/house/test_fuzz.py`` tries as many examples of each.
"""

import io
import json
import os
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from panning_core import masks, models
from panning_core.agent import policies
from panning_core.analysis import networks
from panning_core.errors import UserError
from panning_core.experiments import profiles, studies
from panning_core.experiments.ledger import Ledger
from tests.checkout import PARAMETERS, Checkout

pytestmark = pytest.mark.filterwarnings("ignore:.*last line is torn")
EXAMPLES = int(os.environ.get("FUZZ", 60))


def fuzz(**strategies):
    return lambda test: settings(
        max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck)
    )(given(**strategies)(test))


@st.composite
def edited(draw, whole: bytes):
    """``whole`` with a few bits flipped, or bytes removed, repeated, put elsewhere or put in."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        a, b = sorted(draw(st.tuples(st.integers(0, len(content)), st.integers(0, len(content)))))
        how = draw(st.sampled_from(["flip", "flip", "cut", "end", "repeat", "insert"]))
        if how == "flip" and a < len(content):
            content[a] ^= 1 << draw(st.integers(0, 7))
        elif how == "cut":
            del content[a : min(b, a + draw(st.sampled_from([1, 20, 10**6])))]
        elif how == "end":
            del content[b:]
        elif how == "repeat":
            content[b:b] = content[a:b]
        elif how == "insert":
            content[a:a] = draw(st.binary(max_size=20))
    return bytes(content)


# --- the ledger ---


LINES = [
    {
        "key": f"key {i}",
        "run": {"dataset": "digits", "seed": i},
        **({"error": "x" * i} if i % 3 == 2 else {"metrics": {"n": i, "name": "é"}}),
    }
    for i in range(5)
]
LEDGER = "".join(json.dumps(row) + "\n" for row in LINES).encode()
TOKENS = st.sampled_from(
    [
        b'{"key": "a"',
        b', "run": {}',
        b', "metrics": {}',
        b', "error": ""',
        b"}",
        b"\n",
        b"{",
        b"[",
        b'"',
        b"1e999",
        b"NaN",
        b"null",
        b"\r",
        b" ",
        b"\xff",
        b"\0",
        b"\xef\xbb\xbf",
    ]
)


@fuzz(content=st.one_of(st.binary(), edited(LEDGER), st.lists(TOKENS, max_size=25).map(b"".join)))
@example(content=b'{"key": "a", "run": {}, "metrics": ' + b"[" * 10_000 + b"\n\n")
@example(content=LEDGER.decode().encode("utf-16"))
def test_a_ledger_gives_rows_that_are_there_or_names_a_line(tmp_path_factory, content):
    """And what was there is still there after a line is appended."""
    ledger = Ledger(tmp_path_factory.getbasetemp() / "runs.jsonl")
    ledger.path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            rows = [*ledger.rows(), *ledger.failures()]
        except UserError as error:
            assert f"{ledger.path}, line " in str(error)
            return
    there = []
    for line in content.split(b"\n"):
        try:
            there.append(json.loads(line))
        except (ValueError, RecursionError):
            pass
    assert all(row in there and isinstance(row["run"], dict) for row in rows)
    assert len({row["key"] for row in rows}) == len(rows)
    before = ledger.rows()
    ledger.append({"key": "new, and unlike any other", "run": {}, "metrics": {}})
    assert ledger.rows()[:-1] == before and ledger.rows()[-1]["run"] == {}


# --- profiles ---


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    made = Checkout(tmp_path_factory.mktemp("checkout"))
    made.notebook("01_tiny", PARAMETERS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profiles, "ROOT", made.root)
        yield made


GRID = (
    "01_tiny:\n  parameters: {seeds: 3}\n  grid:\n  - {dataset: digits, model: lenet300, method:"
    " [snip, panning], sparsity: [0.5, 0.9], mix: null, seed: &s [0, 1], per_class: *s}\n"
)
PIECES = st.sampled_from(
    [
        "01_tiny",
        ": ",
        "{",
        "}",
        "[",
        "]",
        "grid",
        "kind",
        "toy",
        "parameters",
        "- ",
        ", ",
        "\n",
        "  ",
        "\t",
        "&a ",
        "*a ",
        "!!int ",
        "!!python/name:os.system ",
        "!!timestamp ",
        "<<",
        "? ",
        "digits",
        "lenet300",
        "dataset",
        "model",
        "seed",
        "sparsity",
        "0.5",
        ".nan",
        "~",
        "'",
        '"',
        "#",
        "|",
        ">",
        "%",
        "@",
        "2026-13-01",
        "0x",
        "1e5",
        "\0",
        "é",
        "---\n",
    ]
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(
        [
            "digits",
            "lenet300",
            "snip",
            "panning",
            "prospr",
            "panning-agent",
            "all",
            "random",
            "lenet300/digits",
            "agent",
            "toy",
        ]
    ),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(st.text(max_size=3), st.sampled_from(["steps", "lr", "a"])),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    [*studies.Run.__dataclass_fields__, "kind", "name", "networks", "steps", "budget"]
)
ENTRIES = st.dictionaries(FIELDS, VALUES, max_size=5).map(
    lambda entry: {"dataset": "digits", "model": "lenet300", **entry}
)
SECTIONS = st.dictionaries(
    st.sampled_from(["grid", "cuda", "parameters"]),
    st.one_of(VALUES, st.lists(ENTRIES, max_size=2)),
    max_size=3,
)


@fuzz(
    text=st.one_of(
        st.text(),
        st.lists(PIECES, max_size=30).map("".join),
        edited(GRID.encode()).map(lambda content: content.decode("latin-1")),
        SECTIONS.map(lambda section: json.dumps({"01_tiny": section})),
        ENTRIES.map(lambda entry: json.dumps({"01_tiny": {"grid": [entry]}})),
    )
)
@example(text="[" * 1000)
@example(text="01_tiny: {grid: &a [*a]}")
@example(text=GRID)
def test_a_profile_is_runs_or_one_sentence(checkout, text):
    (checkout.root / "notebooks" / "profiles" / "tiny.yaml").write_bytes(
        text.encode("utf-8", "surrogatepass")
    )
    try:
        runs = studies.runs("01_tiny", "tiny")
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 3000
    else:
        assert isinstance(runs, list) and all(
            type(run).recorded(json.loads(json.dumps(run.canonical()))) == run for run in runs
        )


# --- masks, policies and networks ---


SMALL = models.build("lenet300", (1, 4, 4), 3, seed=0)
MASK = masks.keep_top({name: w.detach().abs() for name, w in models.prunable(SMALL).items()}, 0.3)
ARCHIVE = io.BytesIO()
np.savez_compressed(ARCHIVE, **{name: m.numpy() for name, m in MASK.items()})
POLICY = (policies.FOLDER / f"{policies.SHIPPED}.npz").read_bytes()
CARD = networks.describe(SMALL, MASK, "lenet300", "digits")
CARD["weights"] = {
    name: {"places": part["places"][:20], "values": part["values"][:20]}
    for name, part in CARD["weights"].items()
}
NETWORK = json.dumps(CARD).encode()


@fuzz(content=st.one_of(st.binary(), edited(ARCHIVE.getvalue())))
def test_a_mask_is_the_one_that_was_saved_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "mask.npz"
    path.write_bytes(content)
    try:
        found = masks.load(path, SMALL)
    except UserError:
        return
    assert (
        all(torch.equal(found[name], m) for name, m in MASK.items()) and found.keys() == MASK.keys()
    )


@fuzz(content=st.one_of(st.binary(), edited(POLICY)))
def test_a_policy_is_the_one_that_was_saved_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "policy.npz"
    path.write_bytes(content)
    try:
        found = policies.load(path)
    except UserError:
        return
    assert (
        found.digest() == policies.load(policies.SHIPPED).digest()
        and found.card == policies.load(policies.SHIPPED).card
    )


@fuzz(
    content=st.one_of(
        st.binary(), edited(NETWORK), VALUES.map(lambda value: json.dumps(value).encode())
    )
)
def test_a_network_is_what_its_file_says_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "network.json"
    path.write_bytes(content)
    try:
        card = networks.load(path)
        model, mask = networks.rebuild(card)
    except UserError as error:
        assert "\n" not in str(error)
        return
    again = networks.describe(model, mask, card["model"], card.get("dataset"))
    assert again["weights"] == {
        name: rounded(part) for name, part in card["weights"].items() if name in again["weights"]
    }


def rounded(part):
    """Values as float32 has them, in the order of their places."""
    order = sorted(range(len(part["places"])), key=part["places"].__getitem__)
    return {
        "places": [part["places"][k] for k in order],
        "values": networks._numbers(
            torch.tensor([part["values"][k] for k in order], dtype=torch.float32)
        ),
    }
