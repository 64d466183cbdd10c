"""The bearer token of the receiver: read from a file or a variable, compared in constant time, never logged."""

from __future__ import annotations

import hmac
import logging
import os
from pathlib import Path
from typing import Final

from dspy_observe.errors import ConfigurationError

__all__ = ["TOKEN_VARIABLE", "Tokens", "check_token"]

TOKEN_VARIABLE: Final = "DSPY_OBSERVE_TOKEN"  # noqa: S105 - a name, no token
_SCHEME: Final = b"bearer "

_logger = logging.getLogger("dspy_observe")


class Tokens:
    """What a request may show.

    Args:
        file: A file with one token in each line that is not empty: two of them let a token be changed without a gap.
            It is read again when it changes; one that cannot be read leaves what was read before.
        token: A token itself, with or without white space around it.

    Raises:
        ConfigurationError: The file cannot be read or holds none, or the token is white space only.
    """

    def __init__(self, file: Path | None = None, token: str | None = None) -> None:
        self._file = file
        self._stamp: tuple[int, int, int] | None = None
        check_token(token)
        self._tokens: tuple[bytes, ...] = () if not token else (token.strip().encode(),)
        if file is not None:
            try:
                self._read(file)
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigurationError("token_file", f"{file}: {_why(error)}", "Make it, or name another") from None
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
            except (OSError, UnicodeDecodeError) as error:
                _logger.warning("dspy_observe: the token file cannot be read (%s); the last one holds", _why(error))
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
        lines = file.read_text(encoding="utf-8-sig").splitlines()  # some editors begin a file with a mark
        read = tuple(line.strip().encode() for line in lines if line.strip())
        if read or not self._tokens:
            self._tokens = read
        self._stamp = stamp


def check_token(token: str | None) -> None:
    """See that a token that is given shows something: an empty one would be shown by everybody, or by nobody.

    Raises:
        ConfigurationError: It is white space only.
    """
    if token and not token.strip():
        raise ConfigurationError("token", "it is white space only", f"Set {TOKEN_VARIABLE} to the token, or unset it")


def _why(error: OSError | UnicodeDecodeError) -> str:
    """Without the bytes that could not be read: they are next to a token, or part of one."""
    return "it is no text in UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror or type(error).__name__
