"""Which names say that their value is a secret: ``api_key``, ``X-Auth-Token``; and which only look so."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

__all__ = ["DEFAULT_ALLOW", "DEFAULT_DENY_KEYS", "KeyNames"]

DEFAULT_DENY_KEYS: Final[frozenset[str]] = frozenset(
    {
        "password", "passwd", "passwrd", "passphrase", "passcode", "pass", "pwd", "pw", "secret", "secrets", "token",
        "access_token", "refresh_token", "id_token", "auth_token", "bearer_token", "session_token", "security_token",
        "csrf_token", "xsrf_token", "api_key", "api_keys", "api_token", "api_secret", "access_key", "secret_key",
        "private_key", "signing_key", "encryption_key", "master_key", "account_key", "storage_key", "shared_key",
        "subscription_key", "ssh_key", "service_key", "auth_key", "license_key", "app_key", "client_secret",
        "credential", "credentials", "creds", "authorization", "proxy_authorization", "authentication", "auth",
        "bearer", "jwt", "cookie", "cookies", "set_cookie", "session_cookie", "connection_string", "dsn", "otp",
        "passwords", "passphrases", "passcodes", "access_tokens", "refresh_tokens", "auth_tokens", "bearer_tokens",
        "access_keys", "secret_keys", "private_keys", "signing_keys", "encryption_keys", "ssh_keys",
        "cvv", "cvc", "pin_code", "mnemonic", "seed_phrase", "client_key", "密码", "口令", "密钥", "令牌", "私钥",
    }
)  # fmt: skip
"""Names whose value is dropped whole, as whole names or as the last words of one: ``openai_api_key``, ``X-Api-Key``."""

DEFAULT_ALLOW: Final[frozenset[str]] = frozenset(
    {
        "prompt_tokens", "completion_tokens", "total_tokens", "max_tokens", "token_count", "token_usage",
        "token_type", "token_ids", "trace_id", "span_id", "call_id", "cache_key", "primary_key", "foreign_key",
        "public_key", "sort_key", "partition_key", "idempotency_key", "next_page_token", "page_token", "next_token",
        "eos_token", "bos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token", "stop_token",
        "special_token", "per_token", "first_token", "last_token", "author", "pass_rate", "first_pass",
        "time_to_first_token", "time_per_output_token", "cost_per_token", "continuation_token",
    }
)  # fmt: skip
"""Names that stay although they look like secrets; they win over the deny-list."""

_CAMEL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[^0-9A-Za-z\u0080-\uffff]+")
_TRAILERS: Final = frozenset(
    {"value", "str", "string", "plain", "text", "raw", "hash", "old", "new", "current", "prod", "dev", "test", "b64",
     "base64", "encoded", "header", "env", "default", "1", "2", "3"}
)  # fmt: skip
_GLUED_MIN: Final = 5  # "dbpassword" and "authtoken" are secrets; "compass" is not


class KeyNames:
    """Decides by name. Safe to share between threads.

    Args:
        deny: Names of secrets, in any spelling; a name matches when it ends in their words.
        allow: Names that stay, in any spelling; these win.
    """

    def __init__(self, deny: Iterable[str], allow: Iterable[str]) -> None:
        self._deny = frozenset("".join(_words(name)) for name in deny)
        self._glued = tuple(name for name in self._deny if len(name) >= _GLUED_MIN)
        self._allow = frozenset("".join(_words(name)) for name in allow)
        self.is_secret = lru_cache(maxsize=4096)(self._decide)
        """Whether a value under this name (any string, any length) is a secret."""

    def _decide(self, name: str) -> bool:
        words = _words(name[-200:])
        while len(words) > 1 and words[-1] in _TRAILERS:
            words.pop()
        if not words:
            return False
        words[-1] = words[-1].rstrip("0123456789") or words[-1]
        tails = ["".join(words[-count:]) for count in range(1, min(len(words), 6) + 1)]
        if any(tail in self._allow for tail in tails):
            return False
        if any(tail in self._deny for tail in tails):
            return True
        return words[-1].endswith(self._glued) if self._glued else False


def _words(name: str) -> list[str]:
    return [word.lower() for word in _CAMEL.sub(" ", name).split()]
