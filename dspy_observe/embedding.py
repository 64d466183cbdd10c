"""``dspy.Embedder`` made visible: DSPy fires no callback for embeddings and drops the usage that they report.

Use :class:`ObservedEmbedder` where you would use ``dspy.Embedder``; each call becomes a record of kind ``lm`` with the
operation ``embeddings``, under the module that asked for it, with the tokens and cost that the provider reported. A
plain ``dspy.Embedder`` stays invisible.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any, Final

import dspy
from dspy.clients._litellm import get_litellm
from dspy.clients.cache import request_cache
from dspy.utils.callback import ACTIVE_CALL_ID

from dspy_observe.facts import calls
from dspy_observe.facts.lm import report
from dspy_observe.ledger import LEDGER
from dspy_observe.readers import Recorder

__all__ = ["ObservedEmbedder"]

_NOT_IN_KEY: Final = ["api_key", "api_base", "base_url", "replies"]
Vectors = list[Any]


class ObservedEmbedder(dspy.Embedder):
    """A ``dspy.Embedder`` whose calls are observed.

    It keeps a cache of its own: the cached entries of a plain embedder hold no usage.

    Args:
        model: Name of a hosted model, a function from a list of texts to vectors, or a ``dspy.Embedder`` whose
            settings are taken over.
        batch_size: Texts a request, at least 1.
        caching: Whether DSPy's cache answers repeated batches of a hosted model.
        **kwargs: Further arguments of each request.
    """

    model_type: Final = "embeddings"

    def __init__(
        self,
        model: str | Callable[..., Any] | dspy.Embedder,
        batch_size: int = 200,
        caching: bool = True,
        **kwargs: Any,
    ) -> None:
        if isinstance(model, dspy.Embedder):
            batch_size, caching = model.batch_size, model.caching
            kwargs = {**model.default_kwargs, **kwargs}
            model = model.model
        super().__init__(model, batch_size, caching, **kwargs)
        self.kwargs = self.default_kwargs

    def __call__(
        self, inputs: str | list[str], batch_size: int | None = None, caching: bool | None = None, **kwargs: Any
    ) -> Any:
        """Embed one text or several; see ``dspy.Embedder.__call__``."""
        batches, caching, merged, single = self._preprocess(inputs, batch_size, caching, **kwargs)
        call = _ObservedCall(self, batches, merged)
        compute = _cached_embed if caching and isinstance(self.model, str) else _embed
        with call:
            vectors: Vectors = []
            for batch in batches:
                vectors.extend(compute(self.model, batch, replies=call.replies, **merged))
            return self._postprocess(vectors, single)

    async def acall(
        self, inputs: str | list[str], batch_size: int | None = None, caching: bool | None = None, **kwargs: Any
    ) -> Any:
        """Embed one text or several without blocking; see ``dspy.Embedder.acall``."""
        batches, caching, merged, single = self._preprocess(inputs, batch_size, caching, **kwargs)
        call = _ObservedCall(self, batches, merged)
        compute = _cached_aembed if caching and isinstance(self.model, str) else _aembed
        with call:
            vectors: Vectors = []
            for batch in batches:
                vectors.extend(await compute(self.model, batch, replies=call.replies, **merged))
            return self._postprocess(vectors, single)


class _ObservedCall:
    """One embedder call, told to our callbacks the way DSPy tells them of its own."""

    def __init__(self, embedder: ObservedEmbedder, batches: list[list[str]], kwargs: dict[str, Any]) -> None:
        self.replies: list[dict[str, Any]] = []
        self._embedder = embedder
        self._inputs = {"prompt": [text for batch in batches for text in batch], "messages": None, "kwargs": kwargs}
        self._call_id = uuid.uuid4().hex
        self._recorders: list[Recorder] = []
        self._parent: str | None = None

    def __enter__(self) -> None:
        callbacks = calls.active_callbacks(self._embedder)
        self._recorders = [callback for callback in callbacks if isinstance(callback, Recorder)]
        for recorder in self._recorders:
            LEDGER.open(recorder, "lm", self._call_id, self._embedder, self._inputs)
        if self._recorders:
            self._parent = ACTIVE_CALL_ID.get()
            ACTIVE_CALL_ID.set(self._call_id)

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if not self._recorders:
            return
        report(self._entry(error))
        ACTIVE_CALL_ID.set(self._parent)
        for recorder in self._recorders:
            LEDGER.close(recorder, self._call_id, None, error)

    def _entry(self, error: BaseException | None) -> dict[str, Any]:
        """What DSPy would write into the history of an LM."""
        hosted = isinstance(self._embedder.model, str)
        costs = [reply["cost"] for reply in self.replies]
        return {
            "usage": {"prompt_tokens": sum(reply["tokens"] or 0 for reply in self.replies), "completion_tokens": 0},
            "cost": sum(costs) if costs and all(cost is not None for cost in costs) else None,
            "cache_hit": hosted and error is None and not self.replies,
            "response_model": self.replies[0]["model"] if self.replies else None,
        }


def _keep(response: Any, replies: list[dict[str, Any]]) -> Vectors:
    tokens = getattr(getattr(response, "usage", None), "prompt_tokens", None)
    cost = getattr(response, "_hidden_params", {}).get("response_cost")
    # LiteLLM puts 0 tokens and $0 where the provider reported nothing.
    replies.append({"tokens": tokens, "model": getattr(response, "model", None), "cost": cost if tokens else None})
    return [item["embedding"] for item in response.data]


def _embed(model: Any, texts: list[str], *, replies: list[dict[str, Any]], **kwargs: Any) -> Vectors:
    if not isinstance(model, str):
        return list(model(texts, **kwargs))
    return _keep(get_litellm(feature="ObservedEmbedder").embedding(model=model, input=texts, **kwargs), replies)


async def _aembed(model: Any, texts: list[str], *, replies: list[dict[str, Any]], **kwargs: Any) -> Vectors:
    if not isinstance(model, str):
        return list(model(texts, **kwargs))
    response = await get_litellm(feature="ObservedEmbedder").aembedding(model=model, input=texts, **kwargs)
    return _keep(response, replies)


_cached_embed = request_cache(ignored_args_for_cache_key=_NOT_IN_KEY)(_embed)
_cached_aembed = request_cache(ignored_args_for_cache_key=_NOT_IN_KEY)(_aembed)
