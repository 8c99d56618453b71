"""``python -m benchmarks``; see the package."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import pandas as pd
import torch

from panning_core import commands, results
from panning_core.__main__ import command_line
from panning_core.errors import pick

from . import (
    agreement,
    early,
    environment,
    grid,
    roofline,
    scoring,
    show,
    size,
    threads,
    timing,
    train,
)

#: name -> a function of ``quick`` that returns a table, empty where there is nothing to measure
PARTS: dict[str, Callable[[bool], pd.DataFrame]] = {
    "training": train.speed,
    "memory": train.memory,
    "agreement": agreement.agreement,
    "scoring": scoring.scoring,
    "selection": scoring.selection,
    "agent": environment.speed,
    "fixes": environment.fixes,
    "grid": grid.grid,
    "limits": roofline.limits,
    "threads": threads.speed,
    "early": early.early,
    "size": size.size,
}


def headline(parts: dict[str, pd.DataFrame]) -> dict[str, float | None]:
    """The ratios of the last line: key -> how many times faster, null where nothing was measured.

    ``train_NETWORK_98``: a training step under SNIP's mask of 98 % sparsity, against plain PyTorch;
    LeNet-300-100 as a sweep trains it, eight networks on the same batches, each counted once.
    ``panning_NETWORK``, ``agent_NETWORK``: 100 rounds of staged Panning, a step of the agent's
    environment, against the straightforward implementation.
    """
    method, sparsity = train.HEADLINE
    measured = {"train_lenet300_98": "shared_ratio"}
    wanted = {
        **{
            f"train_{name}_98": (
                "training",
                {"network": name, "method": method, "sparsity": sparsity},
            )
            for name in train.NETWORKS
        },
        **{
            f"panning_{name}": ("scoring", {"network": name, "method": "panning"})
            for name in ("lenet5", "resnet20")
        },
        "agent_lenet5": ("agent", {"network": "lenet5"}),
    }
    found = {}
    for key, (part, cell) in wanted.items():
        table = parts.get(part, pd.DataFrame(columns=list(cell)))
        rows = (
            table.loc[(table[list(cell)] == pd.Series(cell)).all(axis=1)]
            .get(measured.get(key, "ratio"), pd.Series())
            .dropna()
            if len(table)
            else []
        )
        found[key] = float(f"{rows.iloc[0]:.4g}") if len(rows) else None
    return found


def measure(quick: bool = False, only: str | None = None) -> int:
    """Measure every part, or ``only`` one, and show it; the last line is JSON (``headline``).

    Args:
        quick: the headline ratios alone; writes nothing.

    Raises:
        UserError: there is no such part.
    """
    chosen = PARTS if only is None else {only: pick("part", only, PARTS)}
    torch.set_num_threads(1)
    parts = {}
    for name, part in chosen.items():
        print(f"{name} ...", file=sys.stderr)
        if len(table := part(quick)):
            parts[name] = table
            if not quick:
                save(name, table)
    print(show.tables(parts))
    print(json.dumps(headline(parts)))
    return 0


def save(part: str, table: pd.DataFrame) -> None:
    """Write a part and the machine it was measured on, and the pages made of all parts there
    are.
    """
    folder = results() / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / f"{part}.csv", index=False, float_format="%.6g")
    note = folder / "machine.json"
    machines = json.loads(note.read_text()) if note.exists() else {}
    note.write_text(json.dumps({**machines, part: timing.machine()}, indent=2) + "\n")
    every = {
        name: pd.read_csv(folder / f"{name}.csv")
        for name in PARTS
        if (folder / f"{name}.csv").exists()
    }
    (folder / "speedup.md").write_text(show.tables(every))
    if "training" in every:
        show.figure(every["training"], folder / "speedup.png")
    if "size" in every:
        show.size_figure(every["size"], folder / "size.png")
    print(f"written: {folder / part}.csv", file=sys.stderr)


def main() -> int:
    options = commands.read(["bench", *sys.argv[1:]])
    return measure(options.quick, options.only)


if __name__ == "__main__":
    command_line(main)
