"""The committed front page: two screens, and the papers it leads to."""

import re

from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from panning_core import ROOT
from panning_core.reporting import published, systems
from tests.browser import browser  # noqa: F401, a fixture

SCREEN = {"width": 1440, "height": 900}
#: how a code host shows it, in a column of 1012 pixels
STYLE = """
body { margin: 0; font: 16px/1.5 sans-serif; }
main { width: 948px; padding: 0 32px; margin: 0 auto; }
p, table { margin: 0 0 16px; }
h1 { font-size: 32px; line-height: 1.25; }
h2 { font-size: 24px; line-height: 1.25; margin: 24px 0 16px; }
table { border-collapse: collapse; }
td, th { padding: 6px 13px; border: 1px solid; }
img { max-width: 100%; }
sub { font-size: 12px; line-height: 0; }
"""


def test_it_fits_on_two_screens_with_five_answers_twelve_claims_and_one_figure(browser):  # noqa: F811
    page = ROOT / "results" / "paper" / "README.md"
    body = MarkdownWithMath(IPythonRenderer(escape=False)).render(page.read_text())
    tab = browser.new_context(viewport=SCREEN).new_page()
    tab.goto(page.as_uri())  # what it shows lies beside it
    tab.set_content(f"<style>{STYLE}</style><main>{body}</main>", wait_until="load")
    figure = tab.locator("img")
    assert figure.count() == 1 and figure.evaluate("i => i.naturalWidth") > 1000
    questions = tab.locator("p > strong:first-child", has_text="?").all_inner_texts()
    assert len(questions) == 6 and questions[-1] == "Where next?"
    claims = tab.locator("tbody tr td:nth-child(2)").all_inner_texts()
    assert [claim[:2] for claim in claims] == [claim.id for claim in published.PUBLISHED]
    assert tab.evaluate("document.documentElement.scrollHeight") <= 2 * SCREEN["height"]


def test_a_published_version_is_linked_beside_the_preprint():
    named = {system.arxiv: systems.addresses(system) for system in systems.SYSTEMS}
    assert named["2202.00565"] == (
        "[preprint](https://arxiv.org/abs/2202.00565), "
        "[DOI](https://doi.org/10.1073/pnas.2201854119)"
    )
    assert named["2209.13378"] == "[preprint](https://arxiv.org/abs/2209.13378)"
    given = [system.doi for system in systems.SYSTEMS if system.doi]
    assert len(given) == 3 and all(re.fullmatch(r"10\.\d{4}/\S+", doi) for doi in given)
