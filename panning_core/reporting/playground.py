"""The playground: controls, and what a way to prune leaves of a network."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from html import escape
from pathlib import Path

import ipywidgets as widgets
import seaborn as sns
import torch

from .. import data, masks, models, results, training
from ..analysis import transfer
from ..errors import UserError
from ..experiments import studies
from ..methods import panning, registry
from .names import MODELS, label, method_name, percent
from .pictures import CURVES, METRICS, first_layer, layers, learning, transfers

# fmt: off
SPARSITIES = (
    0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.985, 0.99,
    0.995, 0.998, 0.999, 0.9995, 0.9998, 0.9999,
)
# fmt: on
STYLE = Path(__file__).parent / "page" / "playground.css"
#: raises ``Superseded`` where an answer is no longer wanted
Check = Callable[[], None]


class Superseded(Exception):
    """Something newer is wished for."""


def show(dataset: str, model: str, method: str, sparsity: float, epochs: int) -> None:
    """Show the playground with these choices, and wait for its first answer.

    Raises:
        Exception: whatever the first answer fails with.
    """
    from IPython.display import display

    # As a study's worker has: the same run gives the same bits.
    torch.set_num_threads(1)
    sns.set_theme(context="paper", style="whitegrid")
    playground = Playground(Controls(dataset, model, method, sparsity, epochs))
    display(playground.page)
    playground.begin(playground.answer).result()


def _control(kind: type, words: str, **values) -> widgets.Widget:
    style, layout = {"description_width": "86px"}, {"width": "auto"}
    return kind(description=words, style=style, layout=layout, **values)


class Controls:
    """What is chosen.

    Attributes:
        choice: field of a run -> its widget.
        stages, mix: of Panning: whether its shares are the paper's, and the three sliders.
        length: epochs of a training.
        train, save: the buttons.
    """

    def __init__(self, dataset: str, model: str, method: str, sparsity: float, epochs: int):
        def dropdown(words: str, known, title=str, **values) -> widgets.Widget:
            options = [(title(name), name) for name in known]
            return _control(widgets.Dropdown, words, options=options, **values)

        sparsities = [(percent(s), s) for s in sorted({*SPARSITIES, sparsity})]
        rounds = registry.method(method).rounds
        self.choice = {
            "dataset": dropdown("Data", data.names(), _data_title, value=dataset),
            "model": dropdown("Network", models.MODELS, _model_title, value=model),
            "init": dropdown("Initialisation", models.INITS),
            "seed": _control(widgets.BoundedIntText, "Seed", max=10**6),
            "method": dropdown("Method", registry.pruners(), method_name, value=method),
            "sparsity": _control(
                widgets.SelectionSlider, "Sparsity", options=sparsities, value=sparsity
            ),
            "rounds": _control(widgets.IntSlider, "Rounds", min=1, max=200, value=rounds),
            "control": dropdown("Control", studies.CONTROLS),
        }
        self.stages = _control(widgets.Checkbox, "the paper's stages", value=True, indent=False)
        self.mix = [
            _control(widgets.FloatSlider, name, max=1, step=0.05, value=share)
            for name, share in zip(METRICS.values(), panning.SUM_STAGES[0][1])
        ]
        self.length = widgets.IntSlider(description="Epochs", min=1, max=100, value=epochs)
        self.train, self.save = (
            widgets.Button(description=words, disabled=True, layout={"width": "110px"})
            for words in ("Train", "Save mask")
        )
        self.train.button_style = "primary"

    def run(self) -> studies.Run:
        """The run that the controls describe."""
        values = {name: widget.value for name, widget in self.choice.items()}
        record = registry.method(values["method"])
        if values["rounds"] == record.rounds:
            del values["rounds"]
        if "mix" in record.takes and not self.stages.value:
            values["mix"] = tuple(slider.value for slider in self.mix)
        recipe = next(
            (name for name in training.RECIPES if values["dataset"].startswith(name)), "mnist"
        )
        return studies.Run(**values, recipe=recipe, fixed_batch=True)

    def settle(self) -> None:
        """What follows from the method: its own rounds, and whether it has a mix."""
        record = registry.method(self.choice["method"].value)
        self.choice["rounds"].value = record.rounds
        for widget in (self.stages, *self.mix):
            widget.disabled = "mix" not in record.takes

    def rows(self) -> widgets.Widget:
        """The controls of a run, in three groups."""
        return _row(
            _group("Network", *(self.choice[n] for n in ("dataset", "model", "init", "seed"))),
            _group(
                "Pruning", *(self.choice[n] for n in ("method", "sparsity", "rounds", "control"))
            ),
            _group("Panning's mix", self.stages, *self.mix),
        )


def _data_title(name: str) -> str:
    return data.TITLES.get(name, name)


def _model_title(name: str) -> str:
    return MODELS.get(name, name)


def _group(title: str, *parts: widgets.Widget) -> widgets.Widget:
    layout = {"width": "32%", "min_width": "260px"}
    return widgets.VBox([widgets.HTML(f"<h4>{title}</h4>"), *parts], layout=layout)


def _row(*parts: widgets.Widget) -> widgets.Widget:
    layout = {"justify_content": "space-between", "flex_flow": "row wrap"}
    return widgets.HBox(parts, layout=layout)


def _progress(done: int, whole: int, words: str) -> str:
    return f'<progress max="{whole}" value="{done}"></progress> {words}'


class Playground:
    """What is seen, and what happens when something else is chosen.

    One thread prunes, draws and trains, one thing after the other. The newest wish counts; what is
    under way for an older one gives up.
    """

    def __init__(self, controls: Controls):
        self.controls, self.newest = controls, 0
        self.worker = ThreadPoolExecutor(1)
        self.pruned: studies.Pruned | None = None
        self.splits: data.Splits | None = None
        self.curves: list[tuple[str, list[dict]]] = []
        self.status, self.numbers, self.body, self.force, self.curve, self.lines = (
            widgets.HTML() for _ in range(6)
        )
        self.curve.value = learning([], controls.length.value)
        self.page = self._page()
        controls.settle()
        self._listen()

    def _page(self) -> widgets.Widget:
        controls = self.controls
        halves = [
            widgets.VBox([each], layout={"width": "49.5%", "min_width": "300px"})
            for each in (self.force, self.curve)
        ]
        page = widgets.VBox(
            [
                widgets.HTML(f"<style>{STYLE.read_text()}</style>"),
                controls.rows(),
                self.numbers,
                self.status,
                self.body,
                _row(*halves),
                widgets.HBox([controls.length, controls.train, controls.save]),
                self.lines,
            ],
            layout={"max_width": "1100px"},
        )
        page.add_class("play")
        for each in (self.numbers, self.body, self.force, self.lines):
            each.add_class("answer")
        return page

    def _listen(self) -> None:
        controls = self.controls
        controls.choice["method"].observe(lambda change: controls.settle(), "value")
        controls.length.observe(lambda change: self.show_lines(), "value")
        for widget in (*controls.choice.values(), controls.stages, *controls.mix):
            widget.observe(self.changed, "value")
        # Who moves a slider wants a mix of their own.
        for slider in controls.mix:
            slider.observe(lambda change: controls.stages.set_trait("value", False), "value")
        controls.train.on_click(self.pressed_train)
        controls.save.on_click(self.pressed_save)

    # --- wishes ---

    def tell(self, words: str, kind: str = "") -> None:
        self.status.value = f'<div class="play-status {kind}" role="status">{words}</div>'

    def begin(self, work: Callable[[Check, float], None], pause: float = 0.0) -> Future:
        """Have ``work(check, since)`` done, after a pause in which nothing else is wished for."""
        self.newest += 1
        mine, since = self.newest, time.perf_counter()

        def check() -> None:
            if self.newest != mine:
                raise Superseded

        def do() -> None:
            try:
                check()
                time.sleep(pause)
                check()
                work(check, since)
            except Superseded:
                pass
            except UserError as error:
                self.tell(escape(str(error)), "wrong")
            except Exception as error:
                self.tell(escape(f"{type(error).__name__}: {error}"), "wrong")
                raise  # so that the first answer fails where there is nobody to read this

        return self.worker.submit(do)

    def changed(self, change: object) -> None:
        self.controls.train.disabled = self.controls.save.disabled = True
        # Pale, until what is seen is what was chosen.
        self.page.add_class("old")
        self.begin(self.answer, pause=0.15)

    def pressed_train(self, button: object) -> None:
        if self.controls.train.description == "Train":
            self.begin(self.learn)
        else:
            self.newest += 1

    def pressed_save(self, button: object) -> None:
        run = self.pruned.run
        name = f"{run.dataset}-{run.model}-{run.method}-{run.sparsity:g}-{run.key()[:8]}.npz"
        path = results() / "playground" / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            masks.save(self.pruned.mask, path)
            self.tell(f"saved; <code>masks.load({escape(repr(str(path)))})</code> reads it")
        except UserError as error:
            self.tell(escape(str(error)), "wrong")
        except OSError as error:
            words = f"{path} can not be written ({error.strerror}); set PANNING_RESULTS to a folder"
            self.tell(escape(f"{words} that can"), "wrong")

    # --- answers ---

    def answer(self, check: Check, since: float) -> None:
        """Prune as is wished and show what is left."""
        run = self.controls.run()
        self.tell(f"{_data_title(run.dataset)} …")
        splits = data.load(run.dataset)
        pruned, moved = self._prune(run, splits, check)
        table = masks.table(pruned.model, pruned.mask)
        body = f'<div class="play-body">{layers(table, pruned.live)}{first_layer(pruned)}</div>'
        force = transfers(moved)
        check()
        same = self.pruned and (run.dataset, run.model) == (
            self.pruned.run.dataset,
            self.pruned.run.model,
        )
        if self.pruned and not same:
            # What is compared is ways to prune one network.
            self.curves.clear()
            self.curve.value = learning(self.curves, self.controls.length.value)
        self.pruned, self.splits = pruned, splits
        self.body.value, self.force.value = body, force
        self.show_numbers(table)
        self.show_lines()
        self.page.remove_class("old")
        dead = ", and <b>the network is dead</b>: no path is left from an input to an output"
        words = f"answered in <b>{time.perf_counter() - since:.2f}</b> seconds"
        self.tell(words + dead * (not table.effective.sum()))
        self.controls.train.disabled = self.controls.save.disabled = False

    def _prune(
        self, run: studies.Run, splits: data.Splits, check: Check
    ) -> tuple[studies.Pruned, list[dict]]:
        """The pruned network, and how force moved: rows of ``transfer`` of some of the rounds."""
        rounds = run.rounds or run.record().rounds
        generator = torch.Generator().manual_seed(10_000 + run.seed)
        unseen = data.balanced_batch(splits.train, run.per_class, generator)
        model = models.build(run.model, splits.input_shape, splits.classes, run.seed, run.init)
        meter, moved, told = transfer.Transfer(model, unseen), [], time.perf_counter()

        def observe(t: int, *round_) -> None:
            nonlocal told
            check()
            # Each measurement takes as long as a few rounds.
            if t == 1 or (rounds - t) % math.ceil(rounds / 12) == 0:
                meter(t, *round_)
                whole = [row for row in meter.whole() if row["layer"] == "total"]
                moved.extend({"round": t, **row} for row in whole)
            if time.perf_counter() - told > 0.2:
                told = time.perf_counter()
                self.tell(_progress(t, rounds, f"round {t} of {rounds}"))

        return studies.prune(run, splits, observe), moved

    def show_numbers(self, table) -> None:
        values = {
            "sparsity": f"{100 - 100 * masks.density(self.pruned.mask):.5g} %",
            "weights kept": f"{table.kept.sum():,} of {table.weights.sum():,}",
            "effective sparsity": f"{100 - 100 * masks.density(self.pruned.live):.5g} %",
            "kept on a path": f"{table.effective.sum():,}",
        }
        parts = [f"<div><b>{value}</b><span>{name}</span></div>" for name, value in values.items()]
        self.numbers.value = f'<div class="play-numbers">{"".join(parts)}</div>'

    def to_train(self) -> studies.Run:
        """The run that is seen, with the epochs that are wished for."""
        return dataclasses.replace(self.pruned.run, epochs=self.controls.length.value)

    def show_lines(self) -> None:
        """Lines that give what is seen, and its training."""
        if self.pruned is None:
            return
        told = self.to_train().canonical()
        arguments = ", ".join(f"{name}={value!r}" for name, value in told.items())
        lines = (
            "from panning_core import data, studies, training\n"
            f"run = studies.Run({arguments})\n"
            "pruned = studies.prune(run, splits := data.load(run.dataset))\n"
            "log = training.train(pruned.model, pruned.live, splits, run.training_recipe())"
        )
        self.lines.value = f"<pre>{escape(lines)}</pre>"

    def learn(self, check: Check, since: float) -> None:
        """Train a copy of what is seen, a point of the curve after each epoch."""
        pruned, recipe, rows = self.pruned, self.to_train().training_recipe(), []
        words, train = self._words(pruned.run), self.controls.train

        def observe(row: dict) -> None:
            if not rows:
                self.curves.append((words, rows))
                del self.curves[: -len(CURVES)]
            rows.append(row)
            self.curve.value = learning(self.curves, recipe.epochs)
            now = row["epoch"]
            self.tell(_progress(now, recipe.epochs, f"epoch {now} of {recipe.epochs}"))
            check()

        train.description = "Stop"
        try:
            self.tell(_progress(0, recipe.epochs, f"{recipe.epochs} epochs"))
            model = copy.deepcopy(pruned.model)
            training.train(model, pruned.live, self.splits, recipe, observe=observe)
            self.tell(f"trained in <b>{time.perf_counter() - since:.1f}</b> seconds")
        except Superseded:
            self.tell(f"stopped after epoch {len(rows)} of {recipe.epochs}")
        finally:
            train.description = "Train"

    @staticmethod
    def _words(run: studies.Run) -> str:
        """What a curve is called."""
        told = run.canonical()
        more = [f"{n} {told[n]}" for n in ("mix", "control", "init", "seed") if n in told]
        return ", ".join([label(dataclasses.asdict(run)), percent(run.sparsity), *more])
