"""What every kind of run has in common."""

from dataclasses import dataclass
from typing import ClassVar

import pytest

from panning_core.errors import UserError
from panning_core.runs import base


@dataclass(frozen=True)
class Coin(base.Run):
    kind: ClassVar[str] = "coin"
    seed: int = 0
    tosses: int = 10

    def execute(self, context):
        return {"heads": self.tosses // 2}


@dataclass(frozen=True)
class Die(Coin):
    kind: ClassVar[str] = "die"


def test_two_kinds_share_no_key_and_defaults_are_not_hashed():
    assert Coin(seed=1).key() != Die(seed=1).key()
    assert Coin(tosses=10).key() == Coin().key()
    assert Coin(tosses=3).canonical() == {"tosses": 3}


def test_a_kind_is_found_by_its_name(monkeypatch):
    monkeypatch.setitem(base.KINDS, "coin", Coin)
    assert base.kind("coin") is Coin
    for name in ("prune", "toy"):
        assert base.kind(name).kind == name
    with pytest.raises(UserError, match="unknown kind of run 'prunes'; did you mean 'prune'"):
        base.kind("prunes")
