"""The JSON Schema of `report.json`, made from the records themselves so that it cannot drift.

`python -m peregrine.report.schema` publishes it as `peregrine/data/report.schema.json`.
"""

from __future__ import annotations

import ast
import inspect
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from peregrine import results, types
from peregrine.results import NOT_ALWAYS_FINITE, REPORT_FORMAT, Report

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def report_schema() -> dict[str, Any]:
    """The schema of what `store.write_json` writes. Every field is written, so all are required."""
    import msgspec

    schema = msgspec.json.schema(Report)
    definitions = schema["$defs"]
    documented = _documentation()
    for name, definition in definitions.items():
        if "description" in definition:
            definition["description"] = inspect.cleandoc(definition["description"])
        fields = definition.get("properties")
        if fields is None:  # an enum
            continue
        definition["required"] = list(fields)
        for field, shape in fields.items():
            shape.pop("default", None)
            if field in NOT_ALWAYS_FINITE:
                fields[field] = shape = {"type": ["number", "null"]}
            if text := documented.get((name, field)):
                shape["description"] = text
    # Infinite, that is no limit, is null as well.
    definitions["Validation"]["properties"]["thresholds"]["additionalProperties"] = {
        "type": ["number", "null"]
    }
    definitions["Report"]["properties"]["format"] = {"const": REPORT_FORMAT}
    head = {
        "$schema": _DIALECT,
        "title": f"Peregrine report, format {REPORT_FORMAT}",
        "description": (
            "What one race found. Times are milliseconds where the name ends in _ms, seconds in "
            "_s; memory is MiB in _mb. null is a figure that was not taken, or is not finite."
        ),
    }
    return head | schema


def published() -> dict[str, Any]:
    """The schema that ships with the package."""
    text = files("peregrine").joinpath("data", "report.schema.json").read_text("utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def _documentation() -> dict[tuple[str, str], str]:
    """(class, field) -> the string below the field in the source, where there is one."""
    found: dict[tuple[str, str], str] = {}
    records = (value for value in vars(results).values() if isinstance(value, type))
    for module in (types, *{inspect.getmodule(record) for record in records}):
        assert module is not None  # a class of ours has one
        for node in ast.parse(inspect.getsource(module)).body:
            if not isinstance(node, ast.ClassDef):
                continue
            for field, text in zip(node.body, node.body[1:], strict=False):
                if (
                    isinstance(field, ast.AnnAssign)
                    and isinstance(field.target, ast.Name)
                    and isinstance(text, ast.Expr)
                    and isinstance(text.value, ast.Constant)
                    and isinstance(text.value.value, str)
                ):
                    found[node.name, field.target.id] = inspect.cleandoc(text.value.value)
    return found


def main() -> None:
    """Publish the schema beside the package's other data."""
    path = Path(__file__).parents[1] / "data" / "report.schema.json"
    path.write_text(json.dumps(report_schema(), indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
