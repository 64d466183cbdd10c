"""Whether traffic was split as it was meant to be. If not, the arms differ in more than their version."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

__all__ = ["MISMATCH", "sample_ratio_mismatch", "sample_ratio_p"]

MISMATCH: Final = 1e-3
"""A smaller p-value means that the split is not the intended one."""
_LEAST_EXPECTED: Final = 5.0
"""Scores that each arm has to expect before the approximation by chi square holds."""


def sample_ratio_p(counts: Sequence[int], shares: Sequence[float]) -> float | None:
    """p-value of Pearson's chi-square test that counts follow the intended shares.

    Args:
        counts: By arm.
        shares: By arm, in the same order; any positive numbers, as 10 and 90.

    Returns:
        ``None`` when fewer than two arms are meant to get anything, or too few scores are there to tell. An arm with
        share 0 that got something has a p-value of 0.
    """
    whole = math.fsum(shares)
    if any(count and share <= 0 for count, share in zip(counts, shares, strict=True)):
        return 0.0
    pairs = [(count, share / whole) for count, share in zip(counts, shares, strict=True) if share > 0]
    total = sum(count for count, _ in pairs)
    if len(pairs) < 2 or min(total * share for _, share in pairs) < _LEAST_EXPECTED:  # noqa: PLR2004 - two arms
        return None
    square = math.fsum((count - total * share) ** 2 / (total * share) for count, share in pairs)
    return _upper_tail(square, len(pairs) - 1)


def sample_ratio_mismatch(counts: Sequence[int], shares: Sequence[float]) -> bool:
    """Whether the split is surely another one than intended."""
    p = sample_ratio_p(counts, shares)
    return p is not None and p < MISMATCH


def _upper_tail(square: float, freedom: int) -> float:
    """Chance that chi square with these degrees of freedom is larger.

    https://dlmf.nist.gov/8.4#E10 and https://dlmf.nist.gov/8.8#E2: the incomplete gamma function at whole and half
    numbers has a closed form.
    """
    half = square / 2
    if freedom % 2 == 0:
        term = total = math.exp(-half)
        for k in range(1, freedom // 2):
            term *= half / k
            total += term
        return min(total, 1.0)
    total = math.erfc(math.sqrt(half))
    term = math.sqrt(half) * math.exp(-half) / math.gamma(1.5)
    for k in range(1, freedom // 2 + 1):
        total += term
        term *= half / (k + 0.5)
    return min(total, 1.0)
