"""The small networks of the battery of architectures; ``python -m benchmarks.architectures`` asks
all.
"""

import pytest

from benchmarks import architectures
from panning_core import metrics


@pytest.mark.parametrize("name", architectures.SMALL)
@pytest.mark.filterwarnings("ignore")
def test_a_network_of_others_is_scored_pruned_and_trained_right_or_refused(name):
    found = architectures.row(name)
    wrong = {check: told for check, told in found.items() if str(told).startswith("WRONG")}
    assert not wrong
    assert found["SNIP"] == found["prune"] == "right"


@pytest.mark.filterwarnings("ignore")
def test_a_wrong_score_is_seen(monkeypatch):
    def doubled(*args, real=metrics.snip):
        return {name: 2 * score for name, score in real(*args).items()}

    monkeypatch.setattr(metrics, "snip", doubled)
    case = architectures.case("U-Net")
    assert architectures.snip(case).startswith("WRONG")
