"""The benchmarks: a known ratio is found whatever the machine does meanwhile, both sides do the
same work, and the last line is the promised JSON.
"""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import environment, grid, roofline, size, timing, train
from panning_core import ROOT, masks, models, pruning, training
from panning_core.__main__ import main
from panning_core.agent.environment import PanningEnv
from panning_core.errors import UserError
from panning_core.experiments import studies

KEYS = [
    "train_lenet300_98",
    "train_lenet5_98",
    "train_resnet20_98",
    "train_vgg16_98",
    "panning_lenet5",
    "panning_resnet20",
    "agent_lenet5",
]


class Clock:
    """Time passes only when work is done; ``speed`` is what the machine makes of a second's
    work.
    """

    def __init__(self):
        self.now, self.speed, self.done = 0.0, 1.0, []

    def __call__(self):
        return self.now

    def work(self, name, seconds):
        def do():
            self.done.append(name)
            self.now += seconds / self.speed

        return do


def test_contenders_take_turns_and_a_known_ratio_is_found():
    clock = Clock()
    times = timing.interleave(
        {"a": clock.work("a", 4), "b": clock.work("b", 1)}, rounds=3, seconds=0, clock=clock
    )
    assert clock.done == ["a", "b"] * 4, "once to warm up, then three rounds"
    assert times.shape == (3, 2)
    assert timing.ratio(times, against="a", subject="b") == (4, 4, 4)
    assert timing.ratio(times, against="b", subject="a") == (0.25, 0.25, 0.25)


def test_a_machine_that_slows_down_changes_no_ratio():
    clock = Clock()
    work = clock.work("b", 1)

    def first_of_a_round():
        clock.speed /= 2
        work()

    times = timing.interleave(
        {"b": first_of_a_round, "a": clock.work("a", 3)}, rounds=5, seconds=0, clock=clock
    )
    assert times["a"].max() > 8 * times["a"].min()
    assert timing.ratio(times, "a", "b") == pytest.approx((3, 3, 3))


def test_a_fast_function_is_called_often_enough_and_the_rounds_last_as_long_as_asked(monkeypatch):
    monkeypatch.setattr(timing, "SAMPLE", 2.0)  # binary fractions, so that sums are exact
    clock = Clock()
    times = timing.interleave(
        {"fast": clock.work("fast", 0.25)}, rounds=2, seconds=20.25, clock=clock
    )
    assert len(times) == 11 and len(clock.done) == 1 + 1 + 8 * 10, (
        "a call to warm up, a round that tells how fast it is, ten samples"
    )
    assert times["fast"].tolist() == [0.25] * 11


def test_a_ratio_has_quartiles_over_the_rounds():
    times = pd.DataFrame({"a": [10.0, 20, 30, 40, 500], "b": [10.0, 10, 10, 10, 10]})
    assert timing.ratio(times, "a", "b") == (3, 2, 4)


# --- training -------------------------------------------------------------------------------------


@pytest.fixture
def noisy(monkeypatch):
    monkeypatch.setattr(train, "images", train.noise)


def test_a_real_measure(noisy):
    (row,) = train.measure("lenet300", 0.98, ("snip",), rounds=1, seconds=0)
    assert row["ratio_low"] == row["ratio"] == row["ratio_high"] > 0
    assert (
        row["ratio"]
        == row[f"{row['engine']}_ratio"]
        == pytest.approx(row["ours_per_second"] / row["plain_per_second"])
    )
    assert 0 < row["effective_density"] <= 0.02 <= 2 * row["live_share"]
    assert row["macs"] == round(row["effective_density"] * 266_200), (
        "in a network of Linear layers a weight is used once"
    )
    assert (
        4 * row["macs"] < row["flops"] < 6 * row["macs"]
        and row["useful_share"] == row["flops"] * row["ours_per_second"] / row["matrix_peak"]
    )


def test_plain_and_ours_train_the_same_weights(monkeypatch):
    """A ratio between two that do different things would say nothing."""
    split, recipe = train.noise((1, 28, 28)), replace(training.RECIPES["mnist"], weight_decay=0.05)
    model = models.build("lenet300", (1, 28, 28), 10, seed=0)
    mask, _ = pruning.prune(model, "snip", 0.05, (split.x[:100], split.y[:100]))
    monkeypatch.setattr(train, "RATE", 0.2)
    monkeypatch.setattr(
        train,
        "shuffled",
        lambda split, size: (
            (x, y) for x, y, _ in next(training.epochs(split, replace(recipe, batch_size=size)))
        ),
    )
    ours = train.our_step(train.ours(model, mask), split, recipe)
    plain = train.plain_step(model, mask, split, recipe)
    losses = np.array([[plain(), ours()] for _ in range(4)])
    assert np.ptp(losses[:, 0]) > 1e-3, "it must have trained"
    np.testing.assert_allclose(losses[:, 0], losses[:, 1], rtol=1e-5)


def test_a_network_without_a_path_is_named_and_has_no_ratio(noisy, monkeypatch):
    monkeypatch.setattr(
        masks,
        "effective",
        lambda model, mask: {name: torch.zeros_like(m) for name, m in mask.items()},
    )
    (row,) = train.measure("lenet300", 0.98, ("random",), rounds=1, seconds=0)
    assert (
        row["engine"] == "none, no path is left"
        and np.isnan(row["ratio"])
        and row["plain_per_second"] > 0
    )


def test_crossover_is_where_the_sparse_engine_has_won_for_good():
    frame = pd.DataFrame(
        [
            ("a", 0.5, 2, 1, 0.5),
            ("a", 0.7, 1, 2, 0.3),
            ("a", 0.9, 3, 2, 0.1),
            ("a", 0.9, 3, 1, 0.05),
            ("a", 0.98, 9, 2, 0.02),
            ("never", 0.9, 1, 2, 0.1),
            ("always", 0.9, 2, 1, 0.1),
            ("unsupported", 0.9, np.nan, 1, 0.1),
        ],
        columns=["network", "sparsity", "sparse_ratio", "dense_ratio", "live_share"],
    )
    found = train.crossover(frame).set_index("network")
    assert found.loc["a"].tolist() == [0.9, 0.1] and found.loc["always"].tolist() == [0.9, 0.1]
    assert found.loc["never"].isna().all() and "unsupported" not in found.index


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_high_water_sees_what_is_allocated_and_freed():
    lines = (
        "import numpy, pathlib",
        "from benchmarks import train",
        "pathlib.Path('/proc/self/clear_refs').write_text('5')",
        "before = train.high_water()",
        "numpy.ones(2**23)  # 64 MiB",
        "assert train.high_water() - before > 60 * 1024",
    )
    # Of its own: a process that has freed much may hand out what it still holds.
    subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=ROOT, check=True)


def test_the_grid_goes_the_way_of_a_study_and_leaves_nothing(monkeypatch):
    monkeypatch.setattr(grid, "mnist_is_here", lambda: True)
    monkeypatch.setattr(grid, "JOBS", 1)
    monkeypatch.setattr(
        grid,
        "GRID",
        {
            "dataset": "digits",
            "model": "lenet300",
            "epochs": 2,
            "method": ["random", "snip"],
            "sparsity": 0.9,
        },
    )
    (row,) = grid.grid(quick=False).to_dict("records")
    assert (row["runs"], row["epochs"], row["images"], row["workers"]) == (2, 2, 1294, 1)
    assert row["seconds"] > row["train_seconds"] > 0 and row["test_accuracy"] > 0.15
    assert not studies.folder("grid", "benchmarks").exists()


def test_the_whole_grid_has_sixty_runs():
    assert len(studies.expand([grid.GRID])) == 60


def test_the_straightforward_environment_sees_the_same():
    split = train.noise((1, 16, 16), 200)
    model, plain_model = (
        models.build("lenet5", (1, 16, 16), 10, seed=0, init="panning") for _ in range(2)
    )
    env = PanningEnv(lambda draw: (model, split), rounds=10, pool=1, per_class=2)
    env.reset(seed=0, options={"sparsity": 0.9})
    plain = environment.Straightforward(plain_model, [env.batch])
    for t, action in enumerate(np.random.default_rng(0).uniform(-1, 1, (10, 3)), start=1):
        effective = env.step(action)[0][4]
        loss, gtg, sub, sub_gtg, seen = plain.step(action, t, 0.1 ** (t / 10))
        both = {name: m & plain.mask[name] for name, m in env.mask.items()}
        assert masks.count(both) >= 0.99 * masks.count(env.mask) and seen == pytest.approx(
            effective, abs=1e-3
        )
        look = env.sight.look(plain.mask, env.batch)
        assert (loss, gtg) == (
            pytest.approx(env.dense.look.loss, rel=1e-6),
            pytest.approx(env.dense.look.gtg, rel=1e-4),
        )
        assert (sub, sub_gtg) == (
            pytest.approx(look.loss, rel=1e-6),
            pytest.approx(look.gtg, rel=1e-3),
        )


# --- size -----------------------------------------------------------------------------------------


def grown(operation, power, copies):
    """What an operation costs whose seconds grow with a power of the weights."""
    return pd.DataFrame(
        [
            {
                "network": f"wide-1e{e}",
                "weights": 10**e,
                "operation": operation,
                "seconds": 10.0 ** (power * e - 12),
                "mib": copies * 4 * 10**e / 2**20,
                "copies": copies,
            }
            # The first is below what is fitted, and must not count.
            for e, power in ((5, 0), (6, power), (7, power), (8, power))
        ]
    )


GROWN = pd.concat(
    [grown("straight", 1, 4.0), grown("squared", 2, 5.5), grown("many", 1.1, 8.0)],
    ignore_index=True,
)


def test_slopes_are_those_of_powers_and_the_verdict_names_what_is_worse():
    fitted = size.slopes(GROWN).set_index("operation")
    assert fitted.slope_of_seconds.tolist() == pytest.approx([1, 2, 1.1])
    assert fitted.slope_of_memory.tolist() == pytest.approx([1, 1, 1])
    assert fitted.copies.tolist() == [4.0, 5.5, 8.0]
    assert size.verdict(fitted.reset_index()) == (
        "Steeper than 1.15, where 1 is linear in the weights, 2 quadratic, and leaving the caches "
        "costs some: squared (2.00). "
        "More than 6 copies of the weights: many (8.0)."
    )


@pytest.mark.parametrize("weights", size.WEIGHTS[:2])
def test_a_wide_network_has_about_so_many_weights(weights):
    assert masks.size(masks.ones(size.wide(weights))) == pytest.approx(weights, rel=0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_an_operation_costs_is_measured(monkeypatch):
    monkeypatch.setattr(size, "NETWORKS", {"wide-1e6": lambda: size.wide(10**6)})
    monkeypatch.setattr(size, "OPERATIONS", {"SNIP": size.OPERATIONS["SNIP"]})
    (row,) = size.size(quick=False).to_dict("records")
    assert row["weights"] == pytest.approx(10**6, rel=0.01) and row["seconds"] > 0
    # The network, its masked weights, their gradient and the scores are four, whatever else is.
    assert 4 < row["copies"] < 20
    assert size.size(quick=True).empty


@pytest.mark.parametrize("operation", size.OPERATIONS)
def test_every_operation_can_be_called_again(operation):
    prepare, _ = size.OPERATIONS[operation]
    work = prepare(size.wide(10**4), train.noise((1, 28, 28), size.BATCH))
    work(), work()


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def faked(monkeypatch, tmp_path):
    """Every part returns a literal table; returns the function that runs the command and gives its
    last line.
    """

    def cell(network, sparsity, ratio, method="snip"):
        return {
            "network": network,
            "method": method,
            "sparsity": sparsity,
            "batch": 1,
            "effective_density": 0.1,
            "macs": 1,
            "flops": 2,
            "engine": "sparse",
            "setup_seconds": 0.1,
            "live_share": 0.1,
            "plain_per_second": 1.0,
            "ours_per_second": ratio,
            "dense_ratio": ratio / 4,
            "sparse_ratio": ratio,
            "ratio": ratio,
            "ratio_low": ratio,
            "ratio_high": ratio,
            "useful_share": 0.1,
        }

    parts = {
        "training": pd.DataFrame(
            [
                cell("lenet300", 0.9, 2.0),
                cell("lenet300", 0.98, 15.0) | {"shared_ratio": 25.0},
                cell("lenet300", 0.98, 99.0, "synflow"),
                cell("lenet5", 0.98, 8.123456),
                cell("vgg16", 0.98, np.nan),
            ]
        ),
        "memory": pd.DataFrame(),
        "agreement": pd.DataFrame(),
        "scoring": pd.DataFrame(
            [
                {"network": n, "method": m, "ratio": r, "ratio_low": r, "ratio_high": r}
                for n, m, r in [
                    ("lenet5", "snip", 1.0),
                    ("lenet5", "panning", 20.0),
                    ("resnet20", "panning", 40.0),
                ]
            ]
        ),
        "selection": pd.DataFrame(
            [{"scores": 10, "ratio": 9.0, "ratio_low": 8.0, "ratio_high": 10.0}]
        ),
        "agent": pd.DataFrame(
            [{"network": "lenet5", "ratio": 11.0, "ratio_low": 10.0, "ratio_high": 12.0}]
        ),
        "fixes": pd.DataFrame(),
        "grid": pd.DataFrame([{"runs": 60, "seconds": 30.0}]),
        "limits": pd.DataFrame(),
        "threads": pd.DataFrame(),
        "early": pd.DataFrame(),
        "size": GROWN,
    }
    assert parts.keys() == command.PARTS.keys()
    monkeypatch.setattr(
        command,
        "PARTS",
        {name: lambda quick, table=table: table for name, table in parts.items()},
    )
    monkeypatch.setenv("PANNING_RESULTS", str(tmp_path))

    def run(capsys, *arguments):
        assert main(["bench", *arguments]) == 0
        return capsys.readouterr().out.rstrip("\n").splitlines()[-1]

    return run


def test_the_last_line_is_json_with_exactly_the_keys(faked, capsys, tmp_path):
    found = json.loads(faked(capsys, "--quick"))
    assert list(found) == KEYS
    assert list(found.values()) == [25.0, 8.123, None, None, 20.0, 40.0, 11.0]
    assert not list(tmp_path.iterdir()), "the quick run writes nothing"


def test_a_part_alone_leaves_the_others_null(faked, capsys):
    found = json.loads(faked(capsys, "--quick", "--only", "scoring"))
    assert list(found) == KEYS and [key for key, value in found.items() if value] == [
        "panning_lenet5",
        "panning_resnet20",
    ]


def test_an_unknown_part_is_named(faked, capsys):
    with pytest.raises(UserError, match="scoring"):
        faked(capsys, "--only", "scorin")


def test_a_full_run_writes_what_it_measured(faked, capsys, tmp_path):
    folder = tmp_path / "benchmarks"
    faked(capsys, "--only", "selection")
    assert {path.name for path in folder.iterdir()} == {
        "selection.csv",
        "machine.json",
        "speedup.md",
    }
    faked(capsys)
    assert {path.name for path in folder.iterdir()} == {
        "training.csv",
        "scoring.csv",
        "selection.csv",
        "agent.csv",
        "grid.csv",
        "size.csv",
        "machine.json",
        "speedup.md",
        "speedup.png",
        "size.png",
    }
    assert pd.read_csv(folder / "training.csv").ratio.tolist()[:2] == [2.0, 15.0]
    machines = json.loads((folder / "machine.json").read_text())
    assert machines.keys() == {"training", "scoring", "selection", "agent", "grid", "size"}
    assert machines["grid"].keys() >= {
        "processor",
        "flags",
        "cores",
        "memory_gib",
        "versions",
        "threads",
        "date",
        "commit",
    }
    assert machines["grid"]["versions"].keys() >= {"python", "torch", "numba"}
    page = (folder / "speedup.md").read_text()
    assert "15 [15, 15]" in page and "many (8.0)" in page


def test_a_skeleton_leaves_each_unit_one_input_and_one_output():
    model = models.build("lenet5", (1, 28, 28), 10, seed=0)
    batch = train.noise((1, 28, 28), 20)
    mask = pruning.prune(model, "snip", 0.05, (batch.x, batch.y))[0]
    mask = masks.effective(model, mask)
    thin = roofline.skeleton(mask)
    assert masks.count(thin) < masks.count(mask) / 4
    for name, kept in mask.items():
        assert not (thin[name] & ~kept).any()
        for dim in (0, 1):
            others = [d for d in range(kept.dim()) if d != dim]
            assert torch.equal(thin[name].sum(others) > 0, kept.sum(others) > 0)


def test_a_step_is_told_by_its_layers_in_the_engine_and_dense():
    model, split = models.build("lenet5", (1, 28, 28), 10, seed=0), train.noise((1, 28, 28), 64)
    mask = pruning.prune(model, "snip", 0.05, (split.x, split.y))[0]
    recipe = replace(training.RECIPES["mnist"], batch_size=32)
    small = train.ours(model, masks.effective(model, mask))
    before = [p.detach().clone() for p in small.model.parameters()]
    layers = {"conv1", "conv2", "fc1", "fc2"}
    dense = roofline.dense_seconds(small.model, split.x[:32])
    assert dense.keys() == layers and min(dense.values()) > 0
    assert all(torch.equal(*pair) for pair in zip(before, small.model.parameters()))
    inside = roofline.engine_seconds(small, split, recipe)
    assert inside.keys() == layers | {roofline.IMAGES} and min(inside.values()) > 0
