"""Matrix products on the CPU: the fastest that are still true float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch


@cache
def _product_precision() -> str:
    """``"medium"`` if that still multiplies float32 numbers as float32 on this processor (on others
    it is bfloat16), else ``"highest"``."""
    torch.set_float32_matmul_precision("medium")
    a, b = torch.randn((2, 512, 512), generator=torch.Generator().manual_seed(0))
    exact = a.double() @ b.double()
    return "medium" if (a @ b - exact).norm() < 2e-6 * exact.norm() else "highest"


@contextmanager
def fast_products(device: torch.device) -> Iterator[None]:
    """Inside, matrix products on the CPU take PyTorch's fastest path that is true float32;
    afterwards all is as before."""
    before = torch.get_float32_matmul_precision()
    try:
        if device.type == "cpu":
            torch.set_float32_matmul_precision(_product_precision())
        yield
    finally:
        torch.set_float32_matmul_precision(before)
