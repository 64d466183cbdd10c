"""The last ids of scores, so that a score that comes twice counts once."""

from __future__ import annotations

import base64
import hashlib
from typing import Final

__all__ = ["SEEN_IDS", "SeenIds"]

SEEN_IDS: Final = 10_000
"""Ids that are remembered for each program and environment; a repetition after more than that counts again."""
_BYTES: Final = 6
"""Bytes of an id's hash: with 10,000 ids one new id in 28 thousand million is taken for a known one."""


class SeenIds:
    """A bounded memory of ids.

    Args:
        text: What :meth:`to_text` gave; ``""`` for none.

    Raises:
        ValueError: It is no such text.
    """

    __slots__ = ("_known",)

    def __init__(self, text: str = "") -> None:
        raw = base64.b64decode(text, validate=True)
        if len(raw) % _BYTES:
            raise ValueError("the remembered ids are damaged")
        self._known = dict.fromkeys(raw[at : at + _BYTES] for at in range(0, len(raw), _BYTES))

    def first_time(self, score_id: str | None) -> bool:
        """Remember an id; ``False`` when it is known. ``None`` is always new."""
        if score_id is None:
            return True
        key = hashlib.blake2b(score_id.encode("utf-8", "surrogatepass"), digest_size=_BYTES).digest()
        if key in self._known:
            return False
        self._known[key] = None
        if len(self._known) > SEEN_IDS:
            del self._known[next(iter(self._known))]
        return True

    def to_text(self) -> str:
        """The ids, oldest first, as ASCII text."""
        return base64.b64encode(b"".join(self._known)).decode("ascii")
