"""Answers kept in Redis under the version that gave them: a rollback or a deployment makes them unreachable at once.

A cache by question alone goes on serving the bad version's answers after it was rolled back. Redis may be gone: then
nothing is kept, nothing fails, and it is tried again some seconds later.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from typing import Any

import redis.asyncio
from redis.exceptions import RedisError

_logger = logging.getLogger("service.answers")
_LEFT_ALONE_S = 5.0
_TIMEOUT_S = 0.2
"""A cache that takes longer than this is none."""


class Answers:
    """Finds and keeps answers.

    Args:
        url: Redis; ``None`` keeps nothing.
        ttl_s: How long an answer is kept, in seconds.
    """

    def __init__(self, url: str | None, ttl_s: int) -> None:
        self._redis = (
            redis.asyncio.from_url(url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S)
            if url is not None
            else None
        )
        self._ttl_s = ttl_s
        self._left_alone_until = 0.0

    async def find(self, version: str | None, question: str) -> dict[str, Any] | None:
        """The answer of this version to this question."""
        if not self._usable:
            return None
        try:
            kept = await self._redis.get(_key(version, question))
        except (RedisError, OSError) as error:
            self._leave_alone(error)
            return None
        return None if kept is None else dict(json.loads(kept))

    async def keep(self, version: str | None, question: str, answer: dict[str, Any]) -> None:
        """Keep an answer."""
        if not self._usable:
            return
        try:
            await self._redis.set(_key(version, question), json.dumps(answer), ex=self._ttl_s)
        except (RedisError, OSError) as error:
            self._leave_alone(error)

    async def close(self) -> None:
        """Give up the connections."""
        if self._redis is not None:
            await self._redis.aclose()

    @property
    def _usable(self) -> bool:
        return self._redis is not None and time.monotonic() >= self._left_alone_until

    def _leave_alone(self, error: Exception) -> None:
        self._left_alone_until = time.monotonic() + _LEFT_ALONE_S
        _logger.warning("no answers are kept for %g s: %s", _LEFT_ALONE_S, type(error).__name__)


def _key(version: str | None, question: str) -> str:
    return f"answer:{version}:{hashlib.sha256(question.encode()).hexdigest()}"
