"""A study inside its notebook: its runs, and what it shows and concludes, saved beside the
ledger.
"""

from __future__ import annotations

import base64
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from markupsafe import Markup

from .. import storage
from ..analysis import statistics
from ..errors import pick
from ..experiments import studies
from ..runs import base
from . import image, plain, sources, tables
from .names import method_name
from .sources import Source

MIME = (  #: marks an output of a notebook that belongs into the report
    "application/vnd.panning+json"
)
VERDICTS = {
    "holds": "✔",
    "holds in part": "◐",
    "no worse": "≈",
    "fails": "✘",
    "undecided": "?",
    "not judged": "–",
}
OWN = "this study"  #: the ``paper`` of a claim that nobody has published
COLUMNS = ["paper", "claim", "verdict", "interval", "n", "rule", "family", "figure", "evidence"]


class Study:
    """A study inside its notebook: does the missing runs, reads the ledger, and saves what is
    shown.

    Attributes:
        lines: the ledger's lines of its pruning runs, in the order of the grid.
        runs: ``tables.tidy`` of them; ``of`` gives the runs of another kind.
        folder: where its ledger, tables and figures lie.
    """

    def __init__(self, name: str, profile: str, jobs: int | None = None, device: str = "cpu"):
        sns.set_theme(context="notebook", style="whitegrid")
        self.folder = studies.folder(name, profile)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lines = studies.sweep(name, profile, jobs, device)
        self._kinds = tables.by_kind(self._lines)
        self._names = studies.entry_names(name, profile)
        self.lines = self._kinds.get(base.FIRST, [])
        self.runs = tables.tidy(self.lines)
        self._verdicts: list[dict] = []
        self._shown: dict[str, str] = {}

    def of(self, kind: str) -> pd.DataFrame:
        """``tables.frame`` of its runs of one kind, with the ``name`` of the entry of the grid that
        a run comes from (None where it has none).

        Raises:
            UserError: the study has no run of this kind.
        """
        lines = pick("kind of run in this study", kind, self._kinds)
        return tables.frame(lines).assign(name=[self._names.get(line["key"]) for line in lines])

    @property
    def source(self) -> Source:
        """The study's ledger."""
        return sources.ledger(self.folder, self._lines)

    def benchmark(self, part: str) -> tuple[pd.DataFrame, dict, Source]:
        """A benchmark's table, the machine it was measured on, and both as a source.

        Raises:
            UserError: it was not measured.
        """
        return sources.benchmark(self.folder.parent.parent, part)

    def setting(self) -> None:
        """Show what was run: data, networks, seeds, epochs beside the published ones, and where."""
        caption = "What was run. Trained is the effective mask; the last epoch's test accuracy is "
        self.table(tables.setting(self.lines), "setting", caption + "the headline.")

    def table(
        self,
        frame: pd.DataFrame,
        name: str,
        caption: str,
        source: Source | None = None,
        against: str = "",
    ) -> None:
        """Show ``frame`` and save it as ``name.csv`` and ``name.md``; ``source`` where it is not
        this study's own ledgers, ``against`` the title of the method that all its rows are
        compared with: a difference stands on the runs of two. A column ``key`` has the keys of the
        runs behind each row; it is not shown, the site's links follow it.
        """
        keys = [[key[:8] for key in row] for row in frame.get("key", ())]
        frame = frame.drop(columns="key", errors="ignore")
        write(self.folder / f"{name}.csv", frame.to_csv(index=False))
        text = frame.map(plain.cell).rename(columns=plain.cell)
        text = text.to_markdown(index=False, floatfmt=".4g", disable_numparse=True)
        write(self.folder / f"{name}.md", text + "\n")
        item = self._item("table", f"{name}.md", caption, source)
        item |= {"against": against, "keys": keys}
        _display(
            item,
            {
                "text/markdown": (
                    f"{italic(plain.line(caption))}<br>\n"
                    f"<small>{plain.line(item['provenance'])}</small>\n\n{text}"
                )
            },
        )

    def figure(
        self, figure: plt.Figure, name: str, caption: str, source: Source | None = None
    ) -> None:
        """Show ``figure`` and save it as ``name.png``, which holds its source as text, and for the
        site as ``html/figures/STUDY/name.svg``; ``source`` as in ``table``.
        """
        item = self._item("figure", f"{name}.png", caption, source)
        picture = image.png(figure, item["provenance"])
        drawing = self.folder.parent / "html" / "figures" / self.folder.name / f"{name}.svg"
        drawing.parent.mkdir(parents=True, exist_ok=True)
        write(drawing, image.svg(figure))
        plt.close(figure)
        write(self.folder / f"{name}.png", picture)
        _display(item, {"image/png": base64.b64encode(picture).decode()})

    def _item(self, kind: str, file: str, caption: str, source: Source | None) -> dict:
        made_of, name = source or self.source, Path(file).stem
        self._shown[name] = file if kind == "figure" else self._shown.get(name, file)
        return {
            "kind": kind,
            "file": file,
            "caption": caption,
            "provenance": made_of.line,
            "ledgers": made_of.files,
        }

    def note(self, text: str) -> None:
        """Show a paragraph whose numbers were computed, as the report's prose.

        Args:
            text: Markdown; links start in the study's folder.
        """
        _display({"kind": "note", "text": text}, {"text/markdown": plain.text(text)})

    def keep(self, text: str, name: str) -> None:
        """Save ``text`` beside the tables, as the file ``name``."""
        write(self.folder / name, text + "\n")

    def verdict(
        self,
        claim: str,
        verdict: str,
        evidence: str,
        *,
        paper: str,
        n: int,
        interval: str,
        figure: str,
        rule: str,
        family: int = 1,
    ) -> None:
        """Record the verdict on ``claim``. All of them lie in ``verdicts.csv``.

        Args:
            verdict: a key of ``VERDICTS``; below ``statistics.LEAST`` repetitions it becomes "not
                judged".
            evidence: all that was measured, in sentences.
            paper: whose claim it is, such as "Kang et al. 2022", or ``OWN``.
            n: seeds, or whatever else was repeated.
            interval: the estimate on which the verdict hangs, with its unit: of several, the one
                least favourable to the claim.
            figure: name of the figure or table of this study that shows it; of two with this name,
                the figure.
            rule: how the numbers became the verdict.
            family: how many comparisons were adjusted together.

        Raises:
            UserError: no such verdict, or no such figure or table was shown.
        """
        verdict = verdict if n >= statistics.LEAST else "not judged"
        mark = f"{pick('verdict', verdict, VERDICTS)} {verdict}"
        file = pick("figure or table", figure, self._shown)
        item = {
            "paper": paper,
            "claim": claim,
            "verdict": verdict,
            "interval": interval,
            "n": int(n),
            "rule": rule,
            "family": int(family),
            "figure": file,
            "evidence": evidence,
        }
        self._verdicts.append(item)
        write(
            self.folder / "verdicts.csv",
            pd.DataFrame(self._verdicts)[COLUMNS].to_csv(index=False),
        )
        small = f"{rule}; family of {family}; n = {n}"
        html = Markup(
            "<blockquote><p>{} ({})</p><p><strong>{}</strong>. {}</p>"
            "<p><small>{}</small></p></blockquote>"
        ).format(claim, paper, mark, evidence, small)
        _display({"kind": "verdict", **item, "verdict": mark}, {"text/html": html})

    def judge(
        self,
        claim: str,
        cells: pd.DataFrame,
        figure: str,
        paper: str = OWN,
        kind: str = "better",
        every: bool = False,
        unit: str = "points",
        after: str = "",
    ) -> None:
        """Record what ``statistics.verdict`` says of ``claim`` in these cells of one family, and
        nothing where there are none.

        Args:
            cells: of ``statistics.compare`` or ``compare_errors``, made one family by
                ``statistics.judged``.
            kind, every: as in ``statistics.verdict``.
            unit: a key of ``tables.UNITS``.
            after: more evidence, in sentences.
        """
        if not len(cells):
            return
        worst = statistics.decisive(cells)
        self.verdict(
            claim,
            statistics.verdict(cells, kind, every),
            f"{tables.tally(cells, unit)}{after}",
            paper=paper,
            n=int(cells.n.min()),
            interval=tables.told(worst, unit),
            figure=figure,
            rule=statistics.RULE,
            family=int(worst.family),
        )

    def differences(
        self, cells: pd.DataFrame, name: str, caption: str, source: Source | None = None
    ) -> None:
        """Show cells of ``statistics.compare`` as a table: a row a rival, a column a sparsity, and
        the verdict below each.
        """
        least, most = cells.n.min(), cells.n.max()
        n = f"{least} to {most}" if least < most else most
        legend = f"Points of accuracy, paired over n = {n} seeds; positive: better. "
        legend += f"▲ better and ▼ worse, Holm over all {len(cells)}; ≈ not worse by what matters."
        subject = method_name(cells.subject.iloc[0])
        self.table(tables.differences(cells), name, f"{caption} {legend}", source, subject)


def verdicts(study: str, profile: str) -> pd.DataFrame:
    """The ``COLUMNS`` of a study's verdicts; empty where it has not run."""
    path = studies.folder(study, profile) / "verdicts.csv"
    return pd.read_csv(path) if path.exists() else pd.DataFrame(columns=COLUMNS)


def italic(text: str) -> str:
    return f"*{text.replace('*', chr(92) + '*')}*"


def _display(item: dict, data: dict) -> None:
    from IPython.display import display

    plain = next(item[name] for name in ("caption", "claim", "text") if name in item)
    display({MIME: item, "text/plain": plain, **data}, raw=True)


def write(path: Path, content: str | bytes) -> None:
    """Whole or not at all: an interruption never leaves half a file."""
    with storage.whole(path, "the result") as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
