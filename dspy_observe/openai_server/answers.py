"""Sensible answers to the prompts that DSPy's adapters write, so that any simple program parses without a real model.

Pure, and reads only what a model would read: the field structure that ``ChatAdapter`` and ``JSONAdapter`` of DSPy 3.3
and 3.4 put into the system message (``format_field_structure`` and ``translate_field_type`` in ``dspy/adapters``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from dspy_observe.openai_server.replies import ChatRequest

__all__ = ["answer_prompt"]

MAX_QUESTION_CHARS = 200
"""How much of the question an answer repeats."""

_HEADER = re.compile(r"\[\[ ## (\w+) ## \]\]")
_LISTED_FIELD = re.compile(r"^\d+\. `(\w+)`", re.MULTILINE)
_SCHEMA_NOTE = "must adhere to the JSON schema: "
_CHOICE_NOTE = re.compile(r"one of: (.*)", re.DOTALL)
_JSON_OUTPUTS = "Outputs will be a JSON object with the following fields."


def answer_prompt(request: ChatRequest) -> str:
    """Answers a prompt: each output field that it asks for, filled with a value of its type.

    Text fields get a sentence made of the field's name and the question; numbers, booleans, choices and JSON schemas
    get a valid value. A choice named in the question wins, then ``finish`` (which ends a ReAct run), then the first.
    A prompt of no DSPy adapter gets JSON for its ``response_format`` schema if it has one, else a sentence.
    """
    question = find_question(request.prompt)
    fields = json_fields(request.system)
    if fields is not None:
        values = {name: field_value(name, note, question) for name, note in fields.items()}
        return json.dumps(values, ensure_ascii=False)
    fields = chat_fields(request.system)
    if fields:
        values = {name: field_value(name, note, question) for name, note in fields.items()}
        sections = [f"[[ ## {name} ## ]]\n{_as_text(value)}" for name, value in values.items()]
        return "\n\n".join([*sections, "[[ ## completed ## ]]"])
    wanted = request.body.get("response_format")
    schema = wanted.get("json_schema") if isinstance(wanted, dict) else None
    if isinstance(schema, dict) and isinstance(schema.get("schema"), dict):
        return json.dumps(sample_schema(schema["schema"], sentence("answer", question)), ensure_ascii=False)
    return sentence("answer", question)


def chat_fields(system: str) -> dict[str, str]:
    """Output fields and the note on each that a ``ChatAdapter`` prompt asks for; empty if it is no such prompt."""
    _, _, listed = system.partition("Your output fields are:")
    listed, _, structure = listed.partition("All interactions will be structured in the following way")
    wanted = set(_LISTED_FIELD.findall(listed))
    structure, _, _ = structure.partition("[[ ## completed ## ]]")
    parts = _HEADER.split(structure)[1:]
    return {name: text for name, text in zip(parts[::2], parts[1::2], strict=True) if name in wanted}


def json_fields(system: str) -> dict[str, str] | None:
    """Output fields and the note on each that a ``JSONAdapter`` prompt asks for; None if it is no such prompt."""
    _, marker, rest = system.partition(_JSON_OUTPUTS)
    if not marker:
        return None
    try:
        fields, _ = json.JSONDecoder().raw_decode(rest.lstrip())
    except ValueError:
        return None
    return {str(name): str(note) for name, note in fields.items()} if isinstance(fields, dict) else None


def find_question(prompt: str) -> str:
    """The question: the input field ``question``, else the first input field, else the whole prompt, shortened."""
    asked = re.split(r"\n\s*Respond with (?:the corresponding output fields|a JSON object)", prompt)[0]
    parts = _HEADER.split(asked)[1:]
    inputs = dict(zip(parts[::2], parts[1::2], strict=True))
    text = inputs.get("question") or next(iter(inputs.values()), asked)
    return " ".join(text.split())[:MAX_QUESTION_CHARS]


def sentence(name: str, question: str) -> str:
    """A one-line text for a field, that tells it from other fields and other questions."""
    return f"The {name.replace('_', ' ')} to: {question}" if question else f"The {name.replace('_', ' ')}."


def field_value(name: str, note: str, question: str) -> Any:
    """A value for one field that satisfies the note DSPy puts on it; without a note, text."""
    _, marked, note = note.partition("# note: the value you produce ")
    if not marked:
        return sentence(name, question)
    if note.startswith(_SCHEMA_NOTE):
        schema, _ = json.JSONDecoder().raw_decode(note.removeprefix(_SCHEMA_NOTE))
        return sample_schema(schema, sentence(name, question))
    choices = _CHOICE_NOTE.search(note)
    if choices:
        return _choose(choices.group(1).strip().split("; "), question)
    if note.startswith("must be True or False"):
        return True
    if note.startswith("must be a single int"):
        return 1
    return 0.5 if note.startswith("must be a single float") else sentence(name, question)


def _choose(options: list[str], question: str) -> str:
    named = [each for each in options if re.search(rf"\b{re.escape(each)}\b", question, re.IGNORECASE)]
    return named[0] if named else ("finish" if "finish" in options else options[0])


def sample_schema(
    schema: Mapping[str, Any], text: str, root: Mapping[str, Any] | None = None, within: frozenset[str] = frozenset()
) -> Any:
    """A small value that a JSON schema as pydantic writes them accepts; strings are ``text``.

    Args:
        schema: The schema.
        text: What strings say.
        root: The schema that ``$ref`` points into; None if it is ``schema`` itself.
        within: References that the value stands inside; a recursive type ends at an empty array or another alternative.
    """
    root = schema if root is None else root
    if "$ref" in schema:
        reference = str(schema["$ref"])
        target = root.get("$defs", {}).get(reference.rpartition("/")[2], {})
        return sample_schema(target, text, root, within | {reference})
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    for several in ("anyOf", "oneOf", "allOf"):
        if schema.get(several):
            fresh = [each for each in schema[several] if each.get("$ref") not in within]
            return sample_schema((fresh or schema[several])[0], text, root, within)
    kind = schema.get("type", "string")
    if kind == "object":
        required, properties = schema.get("required", ()), schema.get("properties", {})
        return {name: sample_schema(properties.get(name, {}), text, root, within) for name in required}
    if kind == "array":
        items = schema.get("prefixItems") or [schema.get("items", {})] * max(1, schema.get("minItems", 1))
        return [sample_schema(each, text, root, within) for each in items if each.get("$ref") not in within]
    lowest = schema.get("minimum", schema.get("exclusiveMinimum", 0) + 1)
    return {"integer": lowest, "number": lowest, "boolean": True, "null": None}.get(kind, text)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else (str(value) if isinstance(value, bool) else json.dumps(value))
