import pytest

from tunesmith.errors import UserError
from tunesmith.schema import read_schema

BROKEN = {
    "not JSON": (b'{\n"type": object}', "{path}:2: not JSON: Expecting value"),
    "not UTF-8": (b'{"title": "\xff"}', "{path}: not UTF-8 (byte 11); save the file as UTF-8"),
    "not a schema": (
        b'{"type": "objekt"}',
        "{path}: not a JSON Schema: 'objekt' is not valid under any of the given schemas",
    ),
    "of an array": (b'{"type": "array"}', '{path}: must describe one object (`"type": "object"`)'),
    "of anything": (b"true", '{path}: must describe one object (`"type": "object"`)'),
}


@pytest.mark.parametrize(("content", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_what_is_not_the_schema_of_an_object_is_refused(tmp_path, content, message):
    path = tmp_path / "schema.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as refused:
        read_schema(path)
    assert refused.value.text == message.format(path=path)


def test_a_missing_schema_is_named(tmp_path):
    with pytest.raises(UserError) as refused:
        read_schema(tmp_path / "schema.json")
    assert refused.value.text == f"{tmp_path}/schema.json: no such file; it holds the JSON Schema of the answers"


def test_every_shipped_schema_is_read(repository):
    found = sorted((repository / "data").glob("*/schema.json"))
    assert found
    assert {read_schema(path)["type"] for path in found} == {"object"}
