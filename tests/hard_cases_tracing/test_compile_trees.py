"""Case 23, compile: an optimizer's run is one trace under one root, across its threads and nested optimizers."""

from __future__ import annotations

from typing import Any

import dspy
import pytest

from dspy_observe.testing import offline_lm

TRAINSET = [dspy.Example(question=f"q{number}", answer="42").with_inputs("question") for number in range(6)]


class QA(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.predict = dspy.Predict("question -> answer")

    def forward(self, question: str) -> Any:
        return self.predict(question=question)


def exact(example: Any, answer: Any, trace: Any = None) -> bool:
    """A metric."""
    return bool(example.answer == answer.answer)


def test_bootstrap_few_shot(observed: Any, answering: Any) -> None:
    """Case 23: LabeledFewShot compiles under BootstrapFewShot, which is the root of every run of its teacher."""
    optimizer = dspy.BootstrapFewShot(metric=exact, max_bootstrapped_demos=2, max_labeled_demos=2)
    with dspy.context(lm=answering(), callbacks=observed.callbacks):
        compiled = optimizer.compile(QA(), trainset=TRAINSET)
        assert len(compiled.predict.demos) == 2
    observed.check_tree()
    assert len({span.context.trace_id for span in observed.spans}) == 1
    outline = observed.outline()
    assert outline["compile QA"] == 1
    assert outline["compile QA > compile QA"] == 1
    assert outline["compile QA > invoke_workflow QA > Predict > chat model"] == 2
    compiles = [record for record in observed.records if record.kind == "compile"]
    assert [record.name for record in compiles] == ["LabeledFewShot", "BootstrapFewShot"]
    assert {record.role for record in observed.records} == {"eval"}


def test_a_compile_that_fails_is_an_error_span(observed: Any, answering: Any) -> None:
    """Case 23: an optimizer that raises ends its span with an error and leaves nothing open."""

    def broken(*_: Any) -> bool:
        raise ZeroDivisionError

    optimizer = dspy.BootstrapFewShot(metric=broken, max_errors=1)
    with dspy.context(lm=answering(), callbacks=observed.callbacks), pytest.raises(ZeroDivisionError):
        optimizer.compile(QA(), trainset=TRAINSET)
    observed.check_tree()
    (root,) = (span for span in observed.spans if span.parent is None)
    assert not root.status.is_ok
    assert root.attributes["error.type"] == "ZeroDivisionError"


def test_mipro_v2(observed: Any) -> None:
    """Case 23: MIPROv2's proposals, its minibatches in threads and its nested optimizers are one trace."""
    pytest.importorskip("optuna", reason="MIPROv2 needs optuna, which DSPy does not install")
    replies = {
        "observations": "COMPLETE",
        "summary": "s",
        "program_description": "p",
        "module_description": "m",
        "proposed_instruction": "Answer.",
        "reasoning": "because",
        "answer": "42",
    }
    asked: list[str] = []

    def reply(request: Any) -> dict[str, str]:
        asked.append(request.model)
        return replies

    lm = offline_lm(reply)
    optimizer = dspy.MIPROv2(
        metric=exact, auto=None, num_candidates=2, max_bootstrapped_demos=1, max_labeled_demos=1, num_threads=4,
        prompt_model=lm, task_model=lm, verbose=False,
    )  # fmt: skip
    with dspy.context(lm=lm, callbacks=observed.callbacks):
        optimizer.compile(QA(), trainset=TRAINSET, valset=TRAINSET, num_trials=2, minibatch=False)
    observed.check_tree()
    assert len({span.context.trace_id for span in observed.spans}) == 1
    roots = [span for span in observed.spans if span.parent is None]
    assert [span.name for span in roots] == ["compile QA"]
    outline = observed.outline()
    assert outline["compile QA > evaluate QA > invoke_workflow QA > Predict > chat model"] >= 2 * len(TRAINSET)
    calls = [record for record in observed.records if record.kind == "lm"]
    assert len(observed.named("chat model")) == len(calls) == len(asked) > 2 * len(TRAINSET)
