"""Options that several verbs share, said once: a dataclass that a command takes as a whole."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, get_type_hints


def unfolded(verb: Callable[..., None]) -> Callable[..., None]:
    """A command with one option a field, where `verb` takes a dataclass.

    typer makes a command's options from its signature, and has no word for a group of them.
    So the command gets a signature in which each parameter of a dataclass's type is replaced by
    that dataclass's fields, in order, with their `Annotated` metadata and defaults; when it is
    called, the dataclass is put together again. Every parameter is passed by keyword.
    """
    annotations = get_type_hints(verb, include_extras=True)
    groups: dict[str, type[Any]] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(verb).parameters.values():
        kind = annotations[parameter.name]
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            groups[parameter.name] = kind
            parameters += _options(kind)
        else:
            keyword_only = inspect.Parameter.KEYWORD_ONLY
            parameters.append(parameter.replace(kind=keyword_only, annotation=kind))

    @functools.wraps(verb)
    def command(**values: Any) -> None:
        for name, kind in groups.items():
            fields = dataclasses.fields(kind)
            values[name] = kind(**{field.name: values.pop(field.name) for field in fields})
        verb(**values)

    vars(command)["__signature__"] = inspect.Signature(parameters)
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _options(kind: type[Any]) -> list[inspect.Parameter]:
    annotations = get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=annotations[field.name],
        )
        for field in dataclasses.fields(kind)
    ]
