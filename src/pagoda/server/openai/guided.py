"""Reads vLLM's fields for the form of an output: `structured_outputs`, and `guided_json` and others of old versions."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from pagoda.errors import HttpError, StructuredOutputError
from pagoda.sampling_params import StructuredOutputs
from pagoda.server.asked.body import Body, Items
from pagoda.server.asked.forms import json_form
from pagoda.structured.source import read_schema


class StructuredOutputsBody(Body):
    """As in Python: exactly one of these."""

    json_: dict[str, Any] | str | None = Field(None, alias="json")
    json_object: bool | None = None
    regex: str | None = None
    choice: Items[str] | None = None
    grammar: str | None = None


class Guided(Body):
    """Of bodies that may ask for a form so."""

    structured_outputs: StructuredOutputsBody | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: Items[str] | None = None
    guided_grammar: str | None = None


def guided_param(body: Guided) -> str | None:
    """The field that asks for a form."""
    return next(iter(_wanted(body)), None)


def guided_form(body: Guided) -> StructuredOutputs | None:
    """The form that is asked for, if there is one. Raises HttpError for one that cannot be, or several."""
    wanted = _wanted(body)
    if len(wanted) > 1:
        raise HttpError(400, f"{' and '.join(wanted)} contradict; give one of them.", param=next(iter(wanted)))
    for field, given in wanted.items():
        try:
            form = StructuredOutputs(**given)
            return form if form.json is None else json_form(read_schema(form.json))
        except StructuredOutputError as error:
            raise HttpError(400, str(error), param=field, code=type(error).__name__) from error
    return None


def _wanted(body: Guided) -> dict[str, dict[str, Any]]:
    """By field, what `StructuredOutputs` takes."""
    given: dict[str, dict[str, Any]] = {
        "guided_json": {"json": body.guided_json},
        "guided_regex": {"regex": body.guided_regex},
        "guided_choice": {"choice": body.guided_choice},
        "guided_grammar": {"grammar": body.guided_grammar},
    }
    wanted = {field: form for field, form in given.items() if None not in form.values()}
    if body.structured_outputs is not None:
        wanted["structured_outputs"] = body.structured_outputs.model_dump(by_alias=True, exclude_none=True)
    return wanted
