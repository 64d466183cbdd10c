"""Who gets which version: the same user the same one, in every process and on every host, without shared state.

A key is hashed, with the experiment's salt before it, into one of 10,000 buckets. The canary has the buckets from 0
upwards, the control arm those from the top down, and stable the rest: growing the canary from 5 to 25 % keeps all of
its users, and dropping an arm moves only that arm's. Pure.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, Literal

__all__ = ["BUCKETS", "Assignment", "Draw", "Role", "Split", "draw"]

BUCKETS: Final = 10_000
Role = Literal["stable", "canary", "control"]
_RANDOM: Final = random.SystemRandom()


@dataclass(frozen=True, slots=True)
class Draw:
    """Where a key falls."""

    bucket: int
    """From 0 to 9,999."""
    mark: str
    """8 hexadecimal digits that say nothing of the bucket, to sample keys by."""
    sticky: bool
    """Whether the same key falls there again; not so for calls without one."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """Which version answers a key now."""

    version: str | None
    role: Role
    sticky: bool
    bucket: int


def draw(salt: str, key: str | int | None) -> Draw:
    """Where a key falls; a call without key falls anywhere, each time anew.

    Args:
        salt: Of the experiment.
        key: The user, session or tenant; ``None`` and ``""`` are none.
    """
    if key is None or key == "":
        return Draw(_RANDOM.randrange(BUCKETS), f"{_RANDOM.getrandbits(32):08x}", sticky=False)
    # The zero keeps the salt "a" with the key "1x" apart from "a1" with "x".
    digest = blake2b(f"{salt}\0{key}".encode("utf-8", "surrogatepass"), digest_size=12).digest()
    return Draw(int.from_bytes(digest[:8], "big") % BUCKETS, digest[8:].hex(), sticky=True)


@dataclass(frozen=True, slots=True)
class Split:
    """How the buckets are given out.

    Raises:
        ValueError: A number of buckets is not from 0 to 10,000.
    """

    salt: str
    canary: int = 0
    """Buckets of the candidate."""
    control: int = 0
    """Buckets of the control arm, as far as the canary leaves them."""

    def __post_init__(self) -> None:
        if not (0 <= self.canary <= BUCKETS and 0 <= self.control <= BUCKETS):
            raise ValueError(f"shares are from 0 to {BUCKETS} buckets: {self}")

    def role(self, bucket: int) -> Role:
        """Who has a bucket."""
        if bucket < self.canary:
            return "canary"
        return "control" if bucket >= BUCKETS - self.control else "stable"

    def buckets(self) -> dict[Role, int]:
        """How many each arm has."""
        control = min(self.control, BUCKETS - self.canary)
        return {"stable": BUCKETS - self.canary - control, "canary": self.canary, "control": control}
