"""The program that is served. Put your own class here: the rest of the service does not know what it does."""

from __future__ import annotations

from functools import cache

import dspy
from question_answering import Passages, QuestionAnswering

from dspy_observe.registry import SignatureRegistry
from dspy_observe.serving import FallbackLM

NAME = "facts-service"
"""Its name in the registry, in metrics and on dashboards."""
STREAMED = "answer"
"""The output field that ``/ask/stream`` sends piece by piece."""
WARM_UP = "Who discovered penicillin?"


@cache
def _passages() -> Passages:
    return Passages.load()


def factory() -> QuestionAnswering:
    """The untuned program; every version is loaded into a new one."""
    return QuestionAnswering(_passages(), agent=False)


def make_lm(model: str, url: str | None, second: str | None, timeout_s: float) -> dspy.LM | FallbackLM:
    """The model, and where there is one, the second that answers when the first cannot."""
    where = {"api_base": url, "api_key": "stand-in"} if url is not None else {}
    first = dspy.LM(model, num_retries=1, timeout=timeout_s, **where)
    return first if second is None else FallbackLM(first, dspy.LM(second, num_retries=1, timeout=timeout_s, **where))


def ensure_deployed(registry: SignatureRegistry) -> None:
    """Register and deploy the program as it is where the registry holds none yet."""
    if NAME in registry.list_signatures() and registry.get_deployed_version(NAME) is not None:
        return
    version = registry.register_program(NAME, factory(), version="v1")
    registry.deploy_version(NAME, version.version, reason="first start of the service")
