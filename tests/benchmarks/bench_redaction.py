"""How fast redaction is, and how it grows: ``python tests/benchmarks/bench_redaction.py``.

Prints millions of characters a second on four kinds of text, and the time of the worst inputs of 50,000 and 100,000
characters, for this package and, beside it, for one plain expression for phones and cards. Times differ between
machines; what matters is the ratio in one run and that the last column stays near 2.
"""

# ruff: noqa: RUF001, E501 - texts with Chinese punctuation stay on one line

from __future__ import annotations

import itertools
import random
import re
import time
from collections.abc import Callable

from dspy_observe.redaction import Redaction, Redactor

SIMPLE = re.compile(r"1[3-9]\d{9}|\d{4}[ -]?\d{4}[ -]?\d{4}[ -]?\d{4}")
TURN = itertools.count()
WORDS = [
    "the",
    "answer",
    "should",
    "be",
    "grounded",
    "in",
    "passages",
    "that",
    "were",
    "retrieved",
    "for",
    "a",
    "question",
    "about",
    "history",
    "or",
    "science",
]
WORST = {
    "key=": "key=", "1.2.3.4": "1.2.3.4 ", "4111": "4111 ", "?key=": "?key=a1", "mobiles": "13812345678 ", "1.": "1.",
    "phone": "phone 1234567 ", "password=": "password=", "sk-A1": "sk-A1", "cookie": "cookie=a=bbbb; ", "a@": "a@",
    "a.": "a.", "e-mails": "a@b.cc ", "Hanzi": "\u5bc6", "digits": "1", ":": ":", "eyJ": "eyJ", "eyJ.": "eyJabcdefgh.",
    "BEGIN": "-----BEGIN PRIVATE KEY-----\n", "://": "://a:a", "IBAN": "GB82 WEST ", "\\u53f7": "\\u53f7", "%41": "%41",
    "wide": "\uff11\uff13\uff18", "hex": "deadbeef12345678", "spaces": " ", "quotes": 'password="\\', "secret": "secret aA1",
}  # fmt: skip


def telemetry(rng: random.Random) -> str:
    """Lines as a telemetry backend sees them, with nothing private in them."""
    lines = []
    for turn in range(400):
        number = rng.randrange(10**6)
        lines.append(
            f'{{"trace_id": "{rng.getrandbits(128):032x}", "ts": {1732093200123 + turn}, "model": "gpt-4o-mini-2024-07-18", '
            f'"prompt_tokens": {number % 4000}, "duration_s": {rng.random():.6f}, "event": "lm.finished"}}'
        )
        lines.append(
            f"2026-11-20T17:31:05.{number:06d}Z INFO processed {number} rows, bytes={number * 997}, score={rng.random()}"
        )
    return "\n".join(lines)


def seconds(function: Callable[[str], str], text: str, turns: int = 3) -> float:
    """The best of some turns, each with another text of the same length: the redactor remembers what it has seen."""
    best = float("inf")
    for _ in range(turns):
        fresh = f"{next(TURN):06x} {text}"[: len(text)]
        begun = time.perf_counter()
        function(fresh)
        best = min(best, time.perf_counter() - begun)
    return best


def main() -> None:
    """Print both tables."""
    rng = random.Random(1)
    redactor = Redactor(Redaction(known_secrets=False, scan_limit_chars=1_000_000))

    def simple(text: str) -> str:
        return SIMPLE.sub("*", text)

    texts = {
        "telemetry": telemetry(rng),
        "prose": " ".join(rng.choice(WORDS) for _ in range(20_000)),
        "Chinese": "".join(
            rng.choice("我们今天讨论如何使用语言模型来回答问题并且评估结果的质量，。") for _ in range(100_000)
        ),
        "dense": "打13812345678或写a.b@example.com，卡号4111222233334448。" * 2_000,
    }
    print(f"{'text':12s}{'size':>9s}{'ours M chars/s':>16s}{'one expression':>16s}")
    for name, text in texts.items():
        for size in (1_000, 4_000, 100_000):
            part = (text * 3)[:size]
            print(f"{name:12s}{size:9,d}{size / seconds(redactor.redact_text, part, 9) / 1e6:16.2f}", end="")
            print(f"{size / seconds(simple, part, 9) / 1e6:16.2f}")
    print(f"\n{'worst input':12s}{'50,000 (ms)':>13s}{'100,000 (ms)':>14s}{'growth':>8s}{'one expression (ms)':>21s}")
    for name, unit in WORST.items():
        half, whole = ((unit * (size // len(unit) + 1))[:size] for size in (50_000, 100_000))
        first, second = seconds(redactor.redact_text, half), seconds(redactor.redact_text, whole)
        print(
            f"{name:12s}{first * 1e3:13.1f}{second * 1e3:14.1f}{second / first:8.2f}{seconds(simple, whole) * 1e3:21.1f}"
        )


if __name__ == "__main__":
    main()
