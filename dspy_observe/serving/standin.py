"""An LM that stands before others: what DSPy asks an LM is answered for those that will be called."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import dspy

__all__ = ["StandInLM"]


class StandInLM(dspy.BaseLM):
    """Base of LMs that hand each call on to one of several and make none themselves, so that no call counts twice.

    Attributes:
        lms: The models, at least one. The first one's ``model``, ``kwargs`` and ``model_type`` are those of the whole.
    """

    lms: tuple[dspy.BaseLM, ...]

    @property
    def model(self) -> str:
        """The first model's name."""
        return str(self.lms[0].model)

    @property
    def model_type(self) -> str:
        """The first model's API type."""
        return str(self.lms[0].model_type)

    @property
    def kwargs(self) -> dict[str, Any]:
        """The first model's default request parameters, the very dictionary; each model sends its own."""
        found: dict[str, Any] = self.lms[0].kwargs
        return found

    @property
    def num_retries(self) -> int:
        """The first model's retries."""
        return int(self.lms[0].num_retries)

    @property
    def cache(self) -> bool:
        """Whether DSPy's cache answers for the first model; setting it sets it for all."""
        return bool(self.lms[0].cache)

    @cache.setter
    def cache(self, on: bool) -> None:
        for lm in self.lms:
            lm.cache = on

    @property
    def supports_function_calling(self) -> bool:
        """Whether all models support it: any of them may have to answer."""
        return all(lm.supports_function_calling for lm in self.lms)

    @property
    def supports_reasoning(self) -> bool:
        """Whether all models support it."""
        return all(lm.supports_reasoning for lm in self.lms)

    @property
    def supports_response_schema(self) -> bool:
        """Whether all models support it."""
        return all(lm.supports_response_schema for lm in self.lms)

    @property
    def supported_params(self) -> set[str]:
        """The parameters that all models take."""
        return set.intersection(*(set(lm.supported_params) for lm in self.lms))

    def close(self) -> None:
        """Close the models' connections; see ``dspy.LM.close``."""
        with ExitStack() as cleanup:
            for lm in self.lms:
                if hasattr(lm, "close"):
                    cleanup.callback(lm.close)

    async def aclose(self) -> None:
        """Close the models' connections of this event loop; see ``dspy.LM.aclose``."""
        for lm in self.lms:
            if hasattr(lm, "aclose"):
                await lm.aclose()
