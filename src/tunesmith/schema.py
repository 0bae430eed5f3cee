"""The JSON Schema that a task's answers satisfy."""

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import jsonschema
from jsonschema.exceptions import UnknownType
from referencing import Registry
from referencing.exceptions import Unresolvable

from tunesmith.errors import UserError

FAULTS = (jsonschema.SchemaError, UnknownType, Unresolvable, re.error)
"""What a schema that is wrong in itself may raise: where it is checked, or only where it is used."""


def validator_of(schema: dict[str, Any]) -> jsonschema.Draft202012Validator:
    """A validator that knows no schema but this one: a `$ref` elsewhere is unresolvable, and nothing is fetched.

    Raises:
        jsonschema.SchemaError: it is not a JSON Schema.
    """
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema, registry=Registry())


@lru_cache(maxsize=64)
def validator_of_text(text: str) -> jsonschema.Draft202012Validator:
    """The validator of a schema as JSON text: one for all rows of a log that carry the same.

    Raises:
        jsonschema.SchemaError: it is not a JSON Schema.
    """
    return validator_of(json.loads(text))


def read_schema(path: Path) -> dict[str, Any]:
    """Read a JSON Schema (draft 2020-12) of an object.

    Raises:
        UserError: the file is not JSON, or not a JSON Schema of an object.
    """
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
        validator_of(schema)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; it holds the JSON Schema of the answers") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start}); save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    except jsonschema.SchemaError as error:
        raise UserError(f"{path}: not a JSON Schema: {error.message}") from None
    if not isinstance(schema, dict) or schema.get("type") != "object":
        raise UserError(f'{path}: must describe one object (`"type": "object"`)')
    return schema
