"""The bearer token of the receiver: read from a file or a variable, compared in constant time, never logged."""

from __future__ import annotations

import hmac
import logging
import os
from pathlib import Path
from typing import Final

from dspy_observe.errors import ConfigurationError

__all__ = ["TOKEN_VARIABLE", "Tokens"]

TOKEN_VARIABLE: Final = "DSPY_OBSERVE_TOKEN"  # noqa: S105 - a name, no token
_SCHEME: Final = b"bearer "

_logger = logging.getLogger("dspy_observe")


class Tokens:
    """What a request may show.

    Args:
        file: A file with one token in each line that is not empty: two of them let a token be changed without a gap.
            It is read again when it changes; one that cannot be read leaves what was read before.
        token: A token itself.

    Raises:
        ConfigurationError: The file cannot be read or holds none.
    """

    def __init__(self, file: Path | None = None, token: str | None = None) -> None:
        self._file = file
        self._stamp: tuple[int, int, int] | None = None
        self._tokens: tuple[bytes, ...] = () if not token else (token.strip().encode(),)
        if file is not None:
            try:
                self._read(file)
            except OSError as error:
                raise ConfigurationError(
                    "token_file", f"{file}: {error.strerror}", "Make it, or name another"
                ) from None
            if not self._tokens:
                raise ConfigurationError("token_file", f"{file} holds no token", "Write one into it")

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._tokens)

    def accept(self, header: str | None) -> bool:
        """Whether an ``Authorization`` header shows a token."""
        if self._file is not None:
            try:
                self._read(self._file)
            except OSError as error:
                _logger.warning("dspy_observe: the token file cannot be read (%s); the last one holds", error.strerror)
        shown = (header or "").encode("utf-8", "replace")
        if shown[: len(_SCHEME)].lower() != _SCHEME:
            return False
        shown = shown[len(_SCHEME) :].strip()
        # All are compared, so that the time tells neither how far nor with which one it agrees.
        return sum(hmac.compare_digest(shown, one) for one in self._tokens) > 0

    def _read(self, file: Path) -> None:
        found = os.stat(file)  # noqa: PTH116 - one call for three numbers
        stamp = (found.st_ino, found.st_size, found.st_mtime_ns)
        if stamp == self._stamp:
            return
        read = tuple(line.strip().encode() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
        if read or not self._tokens:
            self._tokens = read
        self._stamp = stamp
