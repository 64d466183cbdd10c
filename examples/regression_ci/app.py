"""The program that is checked, and how its answers are judged. Replace both with yours; see ``gate.sh``.

Without ``OPENAI_API_KEY`` a stand-in for the model answers on 127.0.0.1, so that the check can be tried without a key:
it knows what a ticket is about, and takes a department's name from the instructions, or makes one up.
"""

from __future__ import annotations

import os
import re

import dspy

from dspy_observe.openai_server import ChatRequest, OpenAIServer

MODEL = "openai/gpt-4o-mini"
INSTRUCTIONS = "Name the department that can answer the ticket: billing, technical or delivery."


class Router(dspy.Module):
    """Sends a ticket to a department."""

    def __init__(self) -> None:
        super().__init__()
        self.route = dspy.Predict(dspy.Signature("ticket -> department", INSTRUCTIONS))

    def forward(self, ticket: str) -> dspy.Prediction:
        """Choose the department."""
        return self.route(ticket=ticket)


def right(example: dspy.Example, prediction: dspy.Prediction) -> bool:
    """Whether the ticket went to the right department."""
    return bool(example.department == prediction.department)


def stand_in(request: ChatRequest) -> str:
    """The stand-in's reply."""
    words = {"billing": r"invoice|refund|charge", "technical": r"crash|error|login", "delivery": r"parcel|courier"}
    department = next((name for name, about in words.items() if re.search(about, request.prompt)), "billing")
    if department not in request.system:
        department = "front desk"
    return f"[[ ## department ## ]]\n{department}\n\n[[ ## completed ## ]]"


if os.environ.get("OPENAI_API_KEY"):
    dspy.configure(lm=dspy.LM(MODEL, temperature=0.0))
else:
    server = OpenAIServer(stand_in).start()  # for as long as the check runs
    dspy.configure(lm=dspy.LM(MODEL, api_base=server.base_url, api_key="none", cache=False))
