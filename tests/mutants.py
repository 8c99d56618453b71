"""Sixty small errors of the core, made on purpose: does a test see each?

    python -m tests.mutants
    python -m tests.mutants masks agent

The second tries those alone whose file has one of these words in its path. Every mutant is made in
a copy of the tree, and the test files that should see it are run there; this checkout stays as it
is. Ten minutes on one core.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import pytest

from panning_core import ROOT, data
from panning_core.__main__ import command_line
from panning_core.errors import UserError

KERNELS = "panning_core/sparse/__pycache__"
LIMIT = 300  #: seconds after which the tests have not ended, which is a mutant seen


class Mutant(NamedTuple):
    """In ``file`` of the package ``old`` stands once, and ``new`` instead is an error that a test
    of the files ``tests`` should see, one with a word of ``only`` in its name (pytest's ``-k``)."""

    file: str
    old: str
    new: str
    tests: str
    only: str

    def __str__(self) -> str:
        return f"{self.file}: {' '.join(self.old.split())}  ->  {' '.join(self.new.split())}"


M = Mutant
MUTANTS = [
    # --- metrics
    M("metrics.py", "flow = [g.detach() * numbers(mask[name], g.dtype) for",
      "flow = [g.detach() for",
      "core/test_metrics.py", "grasp_against"),
    M("metrics.py", "cross_entropy(logits / temperature, y), leaves)",
      "cross_entropy(logits, y), leaves)",
      "methods/test_panning.py", "a_look_is"),
    M("metrics.py", "momentum * velocity[name] + g for",
      "velocity[name] + g for",
      "core/test_metrics.py", "prospr_is_the_derivative"),
    M("metrics.py", "_wide(b.clone())",
      "_wide(b)",
      "contract/test_every_metric.py", "leaves_no_trace and snip"),
    M("metrics.py", "        last.copy_(flat)\n",
      "",
      "core/test_metrics.py", "one_mask_after"),
    M("metrics.py", "noise * (w.detach() != 0) if w.any() else noise",
      "noise",
      "core/test_graph.py", "random_passes"),
    # --- masks
    M("masks.py", "np.flatnonzero(found == threshold)[:",
      "np.flatnonzero(found == threshold)[::-1][:",
      "core/test_masks.py", "keep_top and not agrees and not effective"),
    M("masks.py", "part.flatten(1).sum(1)",
      "part.flatten(1).mean(1)",
      "core/test_masks.py", "whole_units"),
    M("masks.py", '"flops_nonzero": 2 * times[name] * alive',
      '"flops_nonzero": 2 * times[name] * kept',
      "core/test_masks.py", "test_table"),
    M("masks.py", "if mask[name].dtype != torch.bool:",
      "if False:",
      "core/test_masks.py", "another_networks"),
    M("masks.py", "m & (scores[name] > -torch.inf)",
      "m",
      "core/test_masks.py", "minus_infinity"),
    # --- pruning
    M("pruning.py", "if self.revive:",
      "if self.revive or self.inverted:",
      "core/test_pruning.py", "nothing_returns"),
    M("pruning.py", '"removed": before - stayed',
      '"removed": before - len(kept)',
      "contract/test_every_method.py", "exact_count and panning"),
    M("pruning.py", "if how.effective and t == how.count:",
      "if how.effective:",
      "core/test_pruning.py", "only_the_last_round"),
    M("pruning.py", "if round(density * total) < 1:",
      "if round(density * total) <= 1:",
      "core/test_pruning.py", "single_weight"),
    # --- graph
    M("graph.py", "            inside.add(id(parameter))\n",
      "",
      "core/test_graph.py", "two_embeddings"),
    M("graph.py", 'vars(module)["training"] = not training',
      'vars(module)["training"] = True',
      "contract/test_every_metric.py", "leaves_no_trace and snip"),
    M("graph.py", "_SEEN[model] = torch.zeros_like(x[:1])",
      "_SEEN.setdefault(model, torch.zeros_like(x[:1]))",
      "core/test_graph.py", "last_batch"),
    # --- layers
    M("layers.py", "counts[turn.argmin()] += 1",
      "counts[turn.argmax()] += 1",
      "core/test_layers.py", "erk_gives or uniform_gives"),
    M("layers.py", "max(least[name], ceil(round(fraction * sizes[name], 9)))",
      "ceil(round(fraction * sizes[name], 9))",
      "core/test_layers.py", "limits"),
    M("layers.py", "if (taken := sum(least.values())) > round",
      "if (taken := sum(least.values())) >= round",
      "core/test_layers.py", "counts_are_exact"),
    # --- compaction
    M("compaction.py", "small[name] - self._shifts[name]",
      "small[name] + self._shifts[name]",
      "core/test_compaction.py", "way_back"),
    M("compaction.py", "    graph.inherit(small, model)\n",
      "",
      "core/test_compaction.py", "has_read_its"),
    # --- cutting
    M("cutting/units.py", "chosen if chosen.any() else among & (among.cumsum(0) == 1)",
      "chosen if chosen.any() else among",
      "core/test_compaction.py", "empty_mask"),
    M("cutting/units.py", "live[source] = live[source] | _each(read, len(live[source]))",
      "live[source] = _each(read, len(live[source]))",
      "core/test_compaction.py", "residual_stream"),
    # --- data
    M("data.py", "scale or moments(images[0][kept])",
      "scale or moments(images[0])",
      "core/test_data.py", "standardised_with"),
    M("data.py", "(inside == 0) & (sizes > 1)",
      "(inside == 0)",
      "core/test_data.py", "trained_on"),
    M("data.py", "torch.randperm(len(members), generator=generator)[:per_class]",
      "torch.randint(len(members), (per_class,), generator=generator)",
      "core/test_data.py", "balanced_batch"),
    # --- datasets
    M("datasets/augment.py", "torch.randint(-pad, pad + 1,",
      "torch.randint(-pad, pad,",
      "core/test_data.py", "crop_and_flip"),
    # --- models
    M("models.py", 'mode="fan_out"',
      'mode="fan_in"',
      "core/test_models.py", "panning_initialisation"),
    M("models.py", "with torch.random.fork_rng(devices=[]):",
      "if True:",
      "core/test_models.py", "a_seed_is_all"),
    # --- paths
    M("paths/rules.py", "(b, alpha=abs(alpha))",
      "(b, alpha=alpha)",
      "core/test_graph.py", "times_minus_one"),
    M("paths/rules.py", "stride = stride or kernel_size",
      "stride = stride or 1",
      "core/test_graph.py", "without_a_stride"),
    M("paths/visible.py", "return not (pools and pads) and all(",
      "return not (pools and pads) or all(",
      "core/test_metrics.py", "sees_every or not_see_every"),
    # --- sparse
    M("sparse/kernels.py", "(gradient + momentum * step if",
      "(step + momentum * step if",
      "sparse/test_sparse.py", "nesterov"),
    M("sparse/normalisation.py", "variance * count / max(count - 1, 1)",
      "variance",
      "sparse/test_sparse.py", "residual_blocks"),
    M("sparse/network.py", "                weight[gone] = 0.0",
      "                pass",
      "inspection/test_faithful.py", "not_called"),
    M("sparse/together.py", "read = np.unique(np.concatenate([net.inlet.read for net in nets]))",
      "read = nets[0].inlet.read",
      "sparse/test_sparse.py", "together"),
    # --- training
    M("training/moving.py", "tensor.masked_fill_(changed, 0.0)",
      "tensor.masked_fill_(changed & ~gone, 0.0)",
      "training/test_open_trainer.py", "enter_or_leave"),
    M("training/recipe.py", "(t >= steps * 3 // 4)",
      "(t > steps * 3 // 4)",
      "training/test_training.py", "decays or follows_the_decay"),
    M("training/recipe.py", "(step + 1) / (per_epoch * recipe.warm_up)",
      "step / (per_epoch * recipe.warm_up)",
      "training/test_training.py", "rises_in_a_line"),
    M("training/cost.py", "return weight.numel() if dense_gradients else count",
      "return count",
      "training/test_open_trainer.py", "flops"),
    M("training/loop.py", '"noise": self.noise.get_state(),',
      '"noise": self.order.get_state(),',
      "training/test_open_trainer.py", "interrupted"),
    # --- methods
    M("methods/panning.py", "if 1 - asked > self.table[self.stage][0]:",
      "if 1 - asked >= self.table[self.stage][0]:",
      "core/test_pruning.py", "stage_advances or stage_tables"),
    M("methods/panning.py", "carried(old)[0].abs() * masks.numbers(masks.flatten(old))",
      "carried(old)[0].abs()",
      "methods/test_panning.py", "guard_acts or stays_pruned"),
    M("methods/dynamic.py", "step % self.every == 0 and step < self.steps",
      "step % self.every == 0 and step <= self.steps",
      "runs/test_dynamic.py", "updates_come"),
    M("methods/phew.py", "2 - np.arange(count) / count",
      "1 + (np.arange(count) + 1) / count",
      "methods/test_topologies.py", "reached_first"),
    M("methods/smart_ratio.py", "count // 2)",
      "count)",
      "methods/test_topologies.py", "smart_ratio_of_lenet300"),
    # --- agent
    M("agent/observations.py", "max(len(scores) - 1, 1)",
      "len(scores)",
      "core/test_pruning.py", "deviations"),
    M("agent/environment.py", "(self.rounds - i if dead else 0)",
      "(self.rounds - self.t if dead else 0)",
      "agent/test_agent.py", "without_a_path"),
    M("agent/policies.py", 'if card.get("digest") != actor.digest():',
      "if False:",
      "agent/test_policies.py", "is_none"),
    # --- analysis
    M("analysis/statistics.py", "values.std(ddof=1)",
      "values.std(ddof=0)",
      "analysis/test_statistics.py", "intervals_known"),
    M("analysis/transfer.py", "float(b @ back)",
      "float(a @ back)",
      "analysis/test_transfer.py", "comes_back"),
    M("analysis/calibration.py", "(confidence * bins).ceil().long().clamp(1, bins) - 1",
      "(confidence * bins).long().clamp(0, bins - 1)",
      "analysis/test_calibration.py", "calibration or edge"),
    # --- storage
    M("storage/__init__.py", "            part.unlink(missing_ok=True)",
      "            pass",
      "storage/test_storage.py", "disk or whole"),
    # --- experiments
    M("experiments/ledger.py", 'and (kind == "error" or row["key"] not in rows)',
      "",
      "experiments/test_ledger.py", "first_of_equal"),
    # --- runs
    M("runs/prune.py", "20_000 + run.seed",
      "run.seed",
      "experiments/test_studies.py", "a_control_changes"),
    M("runs/prune.py", "seed = run.seed if run.scoring is None else run.scoring",
      "seed = run.scoring or run.seed",
      "experiments/test_studies.py", "scoring_may_be_0"),
    # --- inspection
    M("inspection/faithful.py", "SWITCHED * max(norms[part], least)",
      "SWITCHED * norms[part]",
      "inspection/test_faithful.py", "rounding_and_what_is_not"),
    M("inspection/batches.py", "<= int(y.max()) < classes:",
      "<= int(y.max()) <= classes:",
      "contract/test_bad_input.py", "one_sentence and labels and 1"),
]  # fmt: skip


def misplaced(mutants: list[Mutant]) -> list[str]:
    """A sentence for each mutant whose old text does not stand once where it should."""
    said = []
    for mutant in mutants:
        times = (ROOT / "panning_core" / mutant.file).read_text().count(mutant.old)
        if times != 1:
            said.append(
                f"panning_core/{mutant.file} has {mutant.old!r} {times} times and a mutant needs "
                "it once; give another text"
            )
    return said


def run(tree: Path, mutants: list[Mutant]) -> None:
    """In a process of its own: their tests, in a copy of the checkout. The exit code is 0, or the
    number of the first mutant, from 1, whose tests do not all pass."""
    for stream in (sys.stdout, sys.stderr):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    # What the runner has imported is of this checkout, and not of the copy.
    for name in [*sys.modules]:
        if name.partition(".")[0] in ("panning_core", "benchmarks", "tests"):
            del sys.modules[name]
    os.chdir(tree)
    os.environ["PYTHONPATH"] = sys.path[0] = str(tree)
    for number, mutant in enumerate(mutants, 1):
        files = [f"tests/{name}" for name in mutant.tests.split()]
        if pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-k", mutant.only, *files]):
            os._exit(number)
    os._exit(0)


def failing(tree: Path, mutants: list[Mutant]) -> Mutant | None:
    """The first of these mutants whose tests do not pass in ``tree``, or do not end."""
    process = get_context("fork").Process(target=run, args=(tree, mutants))
    process.start()
    process.join(LIMIT * len(mutants))
    if process.is_alive():
        process.kill()
        return mutants[0]
    return mutants[process.exitcode - 1] if process.exitcode else None


def survives(mutant: Mutant, tree: Path) -> bool:
    """Whether its tests pass with it, in a copy of the checkout that is then as before."""
    file = tree / "panning_core" / mutant.file
    file.write_text(file.read_text().replace(mutant.old, mutant.new))
    try:
        return failing(tree, [mutant]) is None
    finally:
        shutil.copy2(ROOT / "panning_core" / mutant.file, file)


def copied(tree: Path) -> None:
    """The files of the checkout, as they are now."""
    for name in subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name)
    (tree / KERNELS).mkdir()
    for compiled in (ROOT / KERNELS).glob("*.nb?"):  # as old as the sources: good for the copy
        shutil.copy2(compiled, tree / KERNELS)


def main(words: list[str] | None = None) -> int:
    words = sys.argv[1:] if words is None else words
    chosen = [m for m in MUTANTS if not words or any(word in m.file for word in words)]
    if said := misplaced(MUTANTS):
        raise UserError("; ".join(said))
    if not chosen:
        raise UserError(f"no mutant is of a file like {' or '.join(words)}")
    data.load("digits")  # a fork then has PyTorch, scikit-learn and others already
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        copied(tree := Path(folder))
        if early := failing(tree, chosen):
            raise UserError(f"tests/{early.tests} -k '{early.only}' fails without a mutant too")
        for number, mutant in enumerate(chosen, 1):
            start = time.perf_counter()
            survivors += [mutant] * survives(mutant, tree)
            word = "SURVIVED" if mutant in survivors else "killed"
            print(f"{number:3} {word:9}{time.perf_counter() - start:5.0f} s  {mutant}", flush=True)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} killed")
    return int(bool(survivors))


if __name__ == "__main__":
    command_line(main)
