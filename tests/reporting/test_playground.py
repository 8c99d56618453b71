"""The playground in JupyterLab, in a real browser; and that what it shows is what the core
gives.
"""

import json
import secrets
import subprocess
import time
from contextlib import contextmanager

import psutil
import pytest
import torch

from panning_core import ROOT, masks
from tests.browser import browser  # noqa: F401, a fixture
from tests.checkout import Checkout

NOTEBOOK = ROOT / "notebooks" / "playground.ipynb"
LONG = 180_000  # milliseconds; on an idle machine everything below takes a few seconds

#: from now on: every text of the status line, and every different picture of the curve
WATCH = """() => {
    const told = window.told = [], drawn = window.drawn = new Set()
    const play = document.querySelector('.play')
    new MutationObserver(() => {
        told.push(play.querySelector('.play-status').innerText)
        drawn.add(play.querySelector('img[alt^=Test]').src)
    }).observe(play, {subtree: true, childList: true})
}"""


@contextmanager
def jupyterlab(checkout, folder):
    """The address of a JupyterLab of its own, with ``checkout`` as its root; it and its kernels are
    gone afterwards, whatever happens.
    """
    command = checkout.command(
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        "--port=0",
        f"--ServerApp.root_dir={checkout.root}",
        f"--IdentityProvider.token={secrets.token_hex()}",
        "--LabApp.extension_manager=readonly",
    )
    own = {
        name: str(folder / name)
        for name in (
            "JUPYTER_CONFIG_DIR",
            "JUPYTER_DATA_DIR",
            "JUPYTER_RUNTIME_DIR",
            "IPYTHONDIR",
        )
    }
    own |= {
        "PYTHONPATH": str(ROOT),
        "PANNING_RESULTS": str(checkout.root / "results"),
    }  # this core, whose kernels are compiled already
    with open(folder / "log.txt", "w") as log:
        server = subprocess.Popen(
            **command | {"env": command["env"] | own, "stdout": log, "stderr": log}
        )
    try:
        until = time.monotonic() + LONG / 1000
        while not (told := list((folder / "JUPYTER_RUNTIME_DIR").glob("jpserver-*.json"))):
            assert server.poll() is None and time.monotonic() < until, (
                folder / "log.txt"
            ).read_text()
            time.sleep(0.1)
        told = json.loads(told[0].read_text())
        yield f"{told['url']}lab/tree/notebooks/playground.ipynb?token={told['token']}"
    finally:
        # The kernels are sessions of their own, and know the server only as their parent.
        root = psutil.Process(server.pid) if server.poll() is None else None
        family = [root, *root.children(recursive=True)] if root else []
        for process in family:
            process.terminate()
        for process in psutil.wait_procs(family, 20)[1]:
            process.kill()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """The playground, which trains for 6 epochs here."""
    made = Checkout(tmp_path_factory.mktemp("playground") / "checkout")
    (made.root / "notebooks" / NOTEBOOK.name).write_text(
        NOTEBOOK.read_text().replace("epochs = 30", "epochs = 6")
    )
    return made


@pytest.fixture(scope="module")
def page(browser, checkout, tmp_path_factory):  # noqa: F811
    """The playground after Run All Cells, in a window of 1280 x 900."""
    with jupyterlab(checkout, tmp_path_factory.mktemp("jupyter")) as address:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(LONG)
        page.goto(address)
        page.get_by_text(
            "(ipykernel) | Idle"
        ).wait_for()  # before it, running cells asks for a kernel
        page.locator(".lm-MenuBar-itemLabel", has_text="Run").click()
        page.get_by_text("Run All Cells", exact=True).click()
        answered(page)
        page.evaluate(WATCH)
        yield page
        page.close()


def answered(page):
    """The seconds that the page says it took, once it shows what is chosen."""
    text = page.locator(".play:not(.old) .play-status", has_text="answered in").inner_text()
    return float(text.split()[2])


def seen(page):
    """The numbers, the layers' table, the pictures and the code."""
    return [
        page.locator(part).evaluate("e => e.outerHTML")
        for part in (
            ".play-numbers",
            ".play table",
            ".play img[alt^=First]",
            ".play img[alt^=Force]",
            ".play pre",
        )
    ]


def control(page, words):
    return page.locator(".widget-inline-hbox").filter(has=page.get_by_text(words, exact=True))


def test_another_sparsity_is_answered_with_other_numbers_and_pictures(page):
    before = seen(page)
    control(page, "Sparsity").locator(".noUi-handle").focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.locator("text=/1,004 of 50,200/").wait_for()
    seconds = answered(page)
    after = seen(page)
    assert "98 %" in after[0] and "sparsity=0.98" in after[-1]
    assert all(one != two for one, two in zip(before, after))
    assert 0.15 < seconds < 20  # with its pause; half a second where nothing else runs
    assert page.evaluate(
        "document.querySelector('.play').scrollWidth <= document.querySelector('.play').clientWidth"
    )


def test_training_draws_a_curve_that_grows_with_every_epoch(page):
    answered(page)
    before = page.evaluate("drawn.size")
    page.get_by_role("button", name="Train", exact=True).click()
    page.locator(".play-status", has_text="trained in").wait_for()
    assert page.evaluate("drawn.size") == before + 6
    assert page.get_by_role("button", name="Train", exact=True).is_enabled()


def test_a_change_while_it_trains_ends_the_training_and_is_answered(page):
    control(page, "Epochs").locator(".noUi-handle").focus()
    page.keyboard.press("End")
    page.get_by_role("button", name="Train", exact=True).click()
    page.locator(".play-status", has_text="of 100").wait_for()
    control(page, "Control").locator("select").select_option(label="shuffle")
    answered(page)
    assert "shuffle" in seen(page)[-1]
    assert not any("epoch 100 of" in text for text in page.evaluate("told"))
    assert page.get_by_role("button", name="Train", exact=True).is_enabled()


def test_a_user_error_is_a_sentence_in_the_page_and_the_next_choice_is_answered(page):
    control(page, "Network").locator("select").select_option(label="LeNet-5")
    assert (
        page.locator(".play-status.wrong").inner_text()
        == "lenet5 needs images of at least 16x16 pixels, got 8x8; lenet300 takes any size"
    )
    assert page.get_by_role("button", name="Train", exact=True).is_disabled()
    control(page, "Network").locator("select").select_option(label="LeNet-300-100")
    answered(page)
    assert (
        page.locator(
            ".jp-RenderedText[data-mime-type*=error], .jp-RenderedText[data-mime-type*=stderr]"
        ).count()
        == 0
    )


def test_a_saved_mask_is_the_one_that_the_three_lines_give(page, checkout):
    answered(page)
    page.get_by_role("button", name="Save mask").click()
    page.locator(".play-status", has_text="saved").wait_for()
    (path,) = (checkout.root / "results" / "playground").iterdir()
    scope = {}
    exec(page.locator(".play pre").inner_text().replace("epochs=100", "epochs=1"), scope)
    saved = masks.load(path, scope["pruned"].model)
    assert (
        all(torch.equal(saved[name], m) for name, m in scope["pruned"].mask.items())
        and len(scope["log"]) == 1
    )
