"""The redactor: options made ready, secrets known so far, failures counted."""

from __future__ import annotations

import marshal
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import lru_cache
from json import dumps
from typing import Any, Final

from dspy_observe import safety
from dspy_observe.records import Finding
from dspy_observe.redaction import secrets, validators, walk
from dspy_observe.redaction.detectors import CREDENTIAL_DETECTORS, DEFAULT_DETECTORS, Detector, Finder
from dspy_observe.redaction.errors import RedactionConfigError
from dspy_observe.redaction.keynames import KeyNames
from dspy_observe.redaction.memory import Memory
from dspy_observe.redaction.operators import Fixed, Label, Mask, replacer
from dspy_observe.redaction.options import Redaction, known_entities
from dspy_observe.redaction.process import environment_secrets
from dspy_observe.redaction.scan import Hit, Scanner, cut, entity_of
from dspy_observe.redaction.shape import Lowered

__all__ = ["Redactor", "credentials_only", "redact"]

_GUARD_HOOK: Final = safety.guard("redaction.on_failure")
_MIN_SECRET: Final = 8  # characters; shorter values are placeholders and would blank out ordinary words
_MAX_SECRETS: Final = 1_000
_MAX_PASSING: Final = 64  # calls under way together; each secret costs every text about a microsecond
_SHORTEST: Final = 5  # characters; no built-in detector finds less: the shortest e-mail address has six
_NEVER_SECRET: Final = frozenset(
    {"development", "production", "changeme", "password", "disabled", "undefined", "required", "localhost", "keychain",
     "no-key-required"}
)  # fmt: skip
_MAY_BE_JSON: Final = "[{ \t\r\n"
_HASHED: Final = re.compile(r"<[A-Z][A-Z0-9_]{0,63}:[a-p]{8,32}>")
_LONGEST_HASHED: Final = 99
_LONGEST_NAME: Final = 100  # characters of an error's type
_OWN_WORDS: Final = ("TRUNCATED", "REDACTION_ERROR", "KNOWN_SECRET", "CHARS")

_Redacted = tuple[Any, tuple[Finding, ...]]
_Key = bytes | tuple[Any, ...]
FailureHook = Callable[[str, int], None]
"""Called with the error's type name and the length of what was dropped."""


class Redactor:
    """Removes what is private from texts and nested values. Never changes its input; safe to share between threads.

    Fails closed: when a detector raises, the value becomes ``[REDACTION_ERROR:TypeName len=n]`` and is counted.

    Args:
        options: What to remove and what to put in its place; ``None`` takes the defaults.
        on_failure: Called after each failure with the error's type name and the length of the dropped value.

    Raises:
        RedactionConfigError: The options are none, or a replacement itself looks private, so that redacting twice
            would change it again.
    """

    def __init__(self, options: Redaction | None = None, on_failure: FailureHook | None = None) -> None:
        if options is not None and not isinstance(options, Redaction):
            raise RedactionConfigError(
                "Redactor.options", f"a {type(options).__name__} is none", "Pass Redaction(...) or None"
            )
        self.options = options or Redaction()
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self._failures = 0
        self._secrets: OrderedDict[str, None] = OrderedDict()
        self._passing: OrderedDict[str, None] = OrderedDict()
        self._known: tuple[str, ...] = ()
        self._memory: Memory[str, tuple[str, tuple[str, ...]]] = Memory()
        self._values: Memory[_Key, tuple[_Redacted, tuple[Any, ...] | None]] = Memory()
        self._ordinary: set[str] = set()
        self._names = KeyNames(self.options.deny_keys, self.options.allow)
        self._replacers: dict[str, Callable[[str], str]] = {}
        self._outputs: set[str] = set()
        self._masks = {op.char * 3 for op in self.options.operators.values() if isinstance(op, Mask)}
        detectors = [self._prepared(detector) for detector in self.options.detectors]
        for detector in detectors:
            self._add_replacer(detector.name if isinstance(detector, Detector) else entity_of(detector))
        for entity in ("KNOWN_SECRET", "SECRET", *self.options.operators):
            self._add_replacer(entity)
        self._scanner = Scanner(detectors, self._replacement, self._keeps)
        added = [detector for detector in self.options.detectors if detector not in DEFAULT_DETECTORS]
        self._shortest = 1 if added else _SHORTEST
        words = [word for detector in added if isinstance(detector, Detector) for word in detector.context]
        self._rules = walk.Rules(
            self.failed, self._names.is_secret, self.drop_value, self._is_output, walk.telling(words), bool(added)
        )
        self._first_chars = "".join({"<", *(output[0] for output in self._outputs)})
        self._longest = max(_LONGEST_HASHED, *map(len, self._outputs))
        self._check_replacements()
        if self.options.known_secrets:
            self.add_secrets(environment_secrets(self._names))

    @property
    def failures(self) -> int:
        """Values dropped so far because redaction failed on them."""
        return self._failures

    def redact_text(self, text: str) -> str:
        """The text without what is private."""
        return self.scan_text(text)[0]

    def scan_text(self, text: str) -> tuple[str, list[str]]:
        """The text without what is private, and the entity of each replacement."""
        if len(text) < self._shortest:
            return text, []
        memory = self._memory
        known = memory.get(text)
        if known is not None:
            return known[0], list(known[1])
        try:
            out, entities = self._scanner.redact(text, self._known, self.options.scan_limit_chars)
            limit = self.options.max_chars
            if limit is not None and len(out) > limit:
                out, more = self._scanner.redact(cut(out, limit), self._known, limit)
                entities += more
            memory.keep(text, (out, tuple(entities)), len(text) + len(out))
            return out, entities  # noqa: TRY300 - the way without an error
        except Exception as error:  # noqa: BLE001 - whatever a detector raises, the value must not leave
            return self.failed(error, len(text)), []

    def redact(self, value: Any) -> tuple[Any, tuple[Finding, ...]]:
        """A redacted copy of any value, as plain data, and what was removed from where.

        Mappings become dicts; dataclasses, named tuples and pydantic models become dicts of their fields; exceptions
        become ``TypeName: message``; bytes become their length; other objects become their redacted ``repr``. Cycles
        and what lies deeper than 64 levels are named, not followed; what comes after 100,000 texts and containers is
        left out.

        Args:
            value: Anything; it is only read.

        Returns:
            The copy, and one finding for each place, which names the entity and the path, never the value. Equal
            values may get the very same copy; it is to be read, not changed.
        """
        if type(value) is str and value[:1] not in _MAY_BE_JSON:
            out, entities = self.scan_text(value)
            return out, tuple(Finding(entity, "") for entity in entities)
        memory, (key, held) = self._values, _value_key(value)
        if key is not None and (known := memory.get(key)) is not None:
            return known[0]
        walker = walk.Walker(self.scan_text, self._rules, self._ordinary)
        failures = self._failures
        try:
            found = walker.copy(value), tuple(walker.findings)
            if key is not None and failures == self._failures:
                memory.keep(key, (found, held), 2 * (len(key) if held is None else _characters(held)))
            return found  # noqa: TRY300 - the way without an error
        except Exception as error:  # noqa: BLE001 - a hostile object must not reach the program, nor its content leave
            return self.failed(error, None), ()

    def find(self, text: str) -> list[Hit]:
        """The places of a text that one pass would replace, in order, without the values.

        Raises:
            Exception: Whatever a detector raises.
        """
        return self._scanner.hits(text[: self.options.scan_limit_chars], self._known)

    def add_secrets(self, values: Iterable[str]) -> None:
        """Replace these texts literally from now on, also as JSON, URLs, forms and ``repr`` write them.

        Args:
            values: Secrets such as an LM's ``api_key``. Those under 8 characters, or that are part of a replacement,
                are left out: they would blank out ordinary words. The thousand latest are kept.
        """
        if not self.options.known_secrets:
            return
        new = [value for value in values if value not in self._secrets and self._can_be_secret(value)]
        if not new:
            return
        with self._lock:
            for value in new:
                self._secrets[value] = None
            while len(self._secrets) > _MAX_SECRETS:
                self._secrets.popitem(last=False)
            forms = {form for value in self._secrets for form in _forms(value)}
            self._known = tuple(sorted(forms, key=lambda form: (-len(form), form)))
            self._values = Memory()
            self._ordinary = set()
            self._memory = Memory()  # what was clean before may hold one of the new secrets

    def add_passing_secrets(self, values: Iterable[str]) -> None:
        """Replace these texts, too, as long as they are among the 64 that were told last: secrets of single calls.

        Args:
            values: Secrets such as a user's token that a tool is given: of these, a service sees new ones without end.
        """
        if not self.options.known_secrets:
            return
        with self._lock:
            own = [value for value in values if value in self._passing or value not in self._secrets]
            for value in filter(self._can_be_secret, own):
                self._passing[value] = None
                self._passing.move_to_end(value)
            while len(self._passing) > _MAX_PASSING:
                self._secrets.pop(self._passing.popitem(last=False)[0], None)
        self.add_secrets(own)

    def drop_value(self, text: str) -> str:
        """What replaces a whole value under a secret's name."""
        return self._replacement("SECRET", text)

    def operator_of(self, entity: str) -> Any:
        """The operator that applies to an entity."""
        return self.options.operators.get(entity, Label())

    def failed(self, error: BaseException, length: int | None) -> str:
        """Count a failure and give what stands in the value's place.

        Args:
            error: What was raised.
            length: Characters of the value; ``None`` when unknown.
        """
        kind = self._kind(error)
        with self._lock:
            self._failures += 1
        safety.swallowed("redaction.detector", error)
        if self._on_failure is not None:
            with _GUARD_HOOK:
                self._on_failure(kind, length or 0)
        return f"[REDACTION_ERROR:{kind}{'' if length is None else f' len={length}'}]"

    def _kind(self, error: BaseException) -> str:
        """The name of an error's type, or ``Exception`` where the name itself may hold something private."""
        kind = type(error).__name__
        try:
            clean = len(kind) <= _LONGEST_NAME and kind.isidentifier() and not _names_scanner().hits(kind, self._known)
        except Exception:  # noqa: BLE001 - it is asked while an error is handled
            clean = False
        return kind if clean else "Exception"

    def _prepared(self, detector: Detector | Finder) -> Detector | Finder:
        if not isinstance(detector, Detector):
            return detector
        if detector.name == "IP" and detector.scan is not None:
            scope, scan = self.options.ip_scope, detector.scan

            def scoped(text: str, lowered: Lowered) -> Iterable[tuple[int, int]]:
                return [s for s in scan(text, lowered) if validators.ip_scope_includes(text[s[0] : s[1]], scope)]

            return replace(detector, scan=scoped)
        if detector.name == "SECRET" and detector.scan is not None:
            return replace(detector, scan=secrets.secrets_for(self._names))
        return detector

    def _add_replacer(self, entity: str) -> None:
        operator = self.operator_of(entity)
        self._replacers[entity] = replacer(operator, entity, self.options.replacement)
        if isinstance(operator, Label | Fixed):
            self._outputs.add(self._replacers[entity](""))

    def _replacement(self, entity: str, value: str) -> str:
        return self._replacers[entity](value)

    def _keeps(self, text: str, start: int, end: int) -> bool:
        """Whether a stretch is, or lies in, a replacement made before: what keeps redacting twice the same as once."""
        if text[start : start + 3] in self._masks:
            return True
        size, near = end - start, text[max(0, start - self._longest) : start + 1]
        if not any(char in near for char in self._first_chars):
            return False
        for output in self._outputs:
            room = len(output)
            if size <= room and text.find(output, max(0, end - room), start + room) >= 0:
                return True
        around = _HASHED.search(text, max(0, start - _LONGEST_HASHED), min(len(text), end + _LONGEST_HASHED))
        return around is not None and around.start() <= start and end <= around.end()

    def _is_output(self, text: str) -> bool:
        """Whether a text as a whole is a replacement of this redactor."""
        return text in self._outputs or _HASHED.fullmatch(text) is not None

    def _check_replacements(self) -> None:
        own = [detector for detector in self.options.detectors if isinstance(detector, Detector)]
        bare = Scanner(own, self._replacement, lambda *_: False)
        for output in self._outputs:
            for text in (output, f"a {output} b"):
                if bare.hits(text, ()):
                    raise RedactionConfigError(
                        "Redaction.replacement",
                        "a replacement is itself found by a detector, so redacting twice would change the text again",
                        "Use a form such as '<{entity}>'",
                    )

    def _can_be_secret(self, value: object) -> bool:
        if (
            not isinstance(value, str)
            or len(value) < _MIN_SECRET
            or value.lower() in _NEVER_SECRET
            or not value.strip()
        ):
            return False
        return not any(value in text for text in (*self._outputs, *_OWN_WORDS))


def _forms(value: str) -> Iterable[str]:
    """A secret and how it looks once written: mostly the same few characters, so that few of these differ."""
    yield value
    for ascii_only in (True, False):
        escaped = dumps(value, ensure_ascii=ascii_only)[1:-1]
        yield from (escaped, escaped.replace("/", "\\/"))
    quoted = _percent_encoded(value)
    yield from (quoted, quoted.replace("%2F", "/"), quoted.replace("%20", "+"), repr(value)[1:-1])


def _percent_encoded(value: str) -> str:
    return "".join(
        char if char.isascii() and (char.isalnum() or char in "-._~") else "".join(f"%{byte:02X}" for byte in raw)
        for char in value
        for raw in (char.encode("utf-8", "surrogatepass"),)
    )


_PLAIN_TYPES: Final = frozenset({str, int, float, bool, type(None)})
_NAMES_ONLY: Final = frozenset({str})


def _value_key(value: Any) -> tuple[_Key | None, tuple[Any, ...] | None]:
    """What tells plain values apart, types included, and what must be kept for it to stay so.

    Of a dict without containers, these are its names and which very objects stand under them: nested modules pass
    them on, and while they are kept no other object has their identity. The key is ``None`` for values that hold other
    objects or a cycle.
    """
    if type(value) is not dict:
        return None, None
    held = tuple(value.values())
    if _PLAIN_TYPES.issuperset(map(type, held)) and _NAMES_ONLY.issuperset(map(type, value)):
        return (*value, *map(id, held)), held
    if "messages" in value:  # of an LM: no other call has the same, and its texts are remembered one by one
        return None, None
    try:
        return marshal.dumps(value, 2), None  # from version 3 on the bytes depend on who else refers to the parts
    except ValueError:
        return None, None


def _characters(values: tuple[Any, ...]) -> int:
    return sum(len(item) if type(item) is str else 8 for item in values)


def credentials_only(options: Redaction | None = None) -> Redactor:
    """A redactor for content that its owner wants raw: credentials are removed, personal data stays.

    Args:
        options: What to keep: operators, names, limits, and its detectors of the kind ``credential``; the built-in ones
            are added to them. ``None`` takes the defaults.
    """
    options = options or Redaction()
    own = [each for each in options.detectors if isinstance(each, Detector) and each.kind == "credential"]
    built_in = [each for each in CREDENTIAL_DETECTORS if each not in own]
    detectors = (*own, *built_in)
    known = known_entities(detectors)
    operators = {entity: operator for entity, operator in options.operators.items() if entity in known}
    return Redactor(replace(options, detectors=detectors, operators=operators))


@lru_cache(maxsize=1)
def _names_scanner() -> Scanner:
    """The built-in detectors as they are: those of a redactor may be what has just failed."""
    return Scanner(DEFAULT_DETECTORS, lambda *_: "", lambda *_: False)


_default: Redactor | None = None
_default_lock = threading.Lock()


def redact(text: str) -> str:
    """The text without what is private, by the default detectors: ``mail <EMAIL> or call <PHONE>``.

    Environment variables named like secrets are read once, at the first call. Never raises.
    """
    global _default  # noqa: PLW0603 - built at the first use, so that importing costs nothing
    if _default is None:
        with _default_lock:
            if _default is None:
                _default = Redactor()
    return _default.redact_text(text)


safety.clean_names_with(redact)
