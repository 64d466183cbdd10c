"""Counting tokens without a network: OpenAI's own encodings where their files are there, else an estimate.

LiteLLM, which DSPy depends on, brings the files of OpenAI's encodings along; tiktoken's own cache is looked at first.
A file is used only when its checksum is right, for tiktoken would fetch it otherwise.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

__all__ = ["Count", "Counter", "counter_for"]

# https://github.com/openai/tiktoken/blob/main/tiktoken_ext/openai_public.py (addresses and checksums), by encoding:
# the name of its file in a cache, which is the SHA-1 of its address, and the file's SHA-256.
_FILES: Final = {
    "cl100k_base": (
        "9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    ),
    "o200k_base": (
        "fb374d419588a4632f3f557e76b4b70aebbca790",
        "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    ),
}
_STANDARD: Final = "o200k_base"
# Chat models whose prompts OpenAI counts by the published rule; reasoning models add what they do not tell.
_EXACT: Final = re.compile(r"(?:ft:)?(?:gpt-3\.5|gpt-35|gpt-4|chatgpt-4o)")
_OPENAI: Final = frozenset({"openai", "azure"})

# https://github.com/openai/openai-cookbook/blob/main/examples/How_to_count_tokens_with_tiktoken.ipynb
_A_MESSAGE: Final = 3
_THE_REPLY: Final = 3

# Largest errors measured: first on DSPy's prompts, English, German and French prose, Python, Markdown and JSON (English
# and code stay within 0.25), second on Russian, Japanese and Chinese prose. tests/test_serving_estimate.py measures
# them again.
_OTHER_VENDOR: Final = (0.45, 1.2)  # o200k_base in place of Claude 2's own, and of cl100k_base
_NO_FILES: Final = (0.3, 0.35)  # the rule below in place of o200k_base
_FOREIGN_PART: Final = 0.05
"""Part of letters beyond ASCII from which on a text counts as one of the second kind."""

_PIECES: Final = re.compile(r"[^\W\d_]+|\d{1,3}|\n+|[^\w\s]|_")
_FIRST_GREEK, _FIRST_CJK = 0x0370, 0x2E80  # https://www.unicode.org/charts/ Cyrillic and others lie between
_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Count:
    """Tokens of one prompt."""

    tokens: int
    exact: bool
    """Whether this is the provider's own way of counting."""
    error: float
    """By what part of ``tokens`` the truth may differ, as measured; 0 when exact."""


@dataclass(frozen=True, slots=True)
class Counter:
    """How the prompts of one model are counted."""

    method: str
    """The encoding's name, or ``characters`` without one."""
    exact: bool
    _tokens: Callable[[str], int]

    def text(self, text: str) -> int:
        """Tokens of a text alone."""
        return self._tokens(text)

    def messages(self, messages: list[tuple[str, str]], besides: str = "") -> Count:
        """Tokens of a prompt.

        Args:
            messages: Role and text of each.
            besides: What is sent beside the messages as JSON, such as tools; how it is counted is not published.
        """
        tokens = _THE_REPLY + sum(_A_MESSAGE + self.text(role) + self.text(text) for role, text in messages)
        exact = self.exact and not besides
        if exact:
            return Count(tokens, exact=True, error=0.0)
        errors = _NO_FILES if self.method == "characters" else _OTHER_VENDOR
        everything = besides + "".join(text for _, text in messages)
        return Count(tokens + self.text(besides), exact=False, error=errors[_is_foreign(everything)])


def counter_for(model: str) -> Counter:
    """How to count for a model, by what there is on this machine.

    Args:
        model: As DSPy names it, such as ``openai/gpt-4o-mini``.
    """
    provider, slash, rest = model.partition("/")
    name = rest if slash else model
    by_openai = not slash or provider in _OPENAI
    wanted = _encoding_name(name) if by_openai else None
    encoding = _encoding(wanted) if wanted is not None else None
    exact = encoding is not None and _EXACT.match(name) is not None
    if encoding is None:
        wanted, encoding = _STANDARD, _encoding(_STANDARD)
    if encoding is None or wanted is None:
        return Counter("characters", exact=False, _tokens=_by_characters)
    return Counter(wanted, exact, lambda text: len(encoding.encode(text, disallowed_special=())))


def _encoding_name(model: str) -> str | None:
    try:
        from tiktoken.model import encoding_name_for_model
    except ImportError:
        return None
    try:
        found: str = encoding_name_for_model(model)
    except KeyError:
        return None
    return found if found in _FILES else None


@lru_cache(maxsize=len(_FILES))
def _encoding(name: str) -> Any:
    """An encoding of tiktoken; ``None`` when its file would have to be fetched."""
    folder = _folder_of(name)
    if folder is None:
        return None
    with _lock:
        # tiktoken takes its cache's folder from the environment only.
        before = os.environ.get("TIKTOKEN_CACHE_DIR")
        os.environ["TIKTOKEN_CACHE_DIR"] = str(folder)
        try:
            import tiktoken

            return tiktoken.get_encoding(name)
        except ImportError:
            return None
        finally:
            if before is None:
                del os.environ["TIKTOKEN_CACHE_DIR"]
            else:
                os.environ["TIKTOKEN_CACHE_DIR"] = before


def _folder_of(name: str) -> Path | None:
    file, checksum = _FILES[name]
    for folder in _folders():
        try:
            content = (folder / file).read_bytes()
        except OSError:
            continue
        if hashlib.sha256(content).hexdigest() == checksum:
            return folder
    return None


def _folders() -> list[Path]:
    named = [os.environ.get(variable) for variable in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR")]
    folders = [Path(folder) for folder in named if folder]
    folders.append(Path(tempfile.gettempdir()) / "data-gym-cache")
    litellm = find_spec("litellm")  # found, not imported, which takes seconds
    places = (litellm.submodule_search_locations or ()) if litellm is not None else ()
    return [*folders, *(Path(place) / "litellm_core_utils" / "tokenizers" for place in places)]


def _is_foreign(text: str) -> bool:
    letters = sum(map(str.isalpha, text))
    return sum(char.isalpha() and not char.isascii() for char in text) > _FOREIGN_PART * letters


def _by_characters(text: str) -> int:
    """A rule of thumb: words by their length, other scripts by the character."""
    total = 0.0
    for match in _PIECES.finditer(text):
        piece = match[0]
        first = ord(piece[0])
        if not piece[0].isalpha():
            total += 1.0 if piece[0].isdigit() else 0.8
        elif first >= _FIRST_CJK:
            total += 0.75 * len(piece)
        elif first >= _FIRST_GREEK:
            total += max(1.0, len(piece) / 3)
        else:
            total += 1.0 + max(0, len(piece) - 7) / 5
    return math.ceil(total)
