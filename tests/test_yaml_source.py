import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from tunesmith.errors import UserError
from tunesmith.yaml_source import MAX_BYTES, YamlSource, leaves, read_yaml

BROKEN = {
    "anchor": (b"a: 1\nb: &x 1\n", "r.yaml:2: an anchor (&) is not allowed; write the value out"),
    "alias": (b"a: 1\n\nb: *x\n", "r.yaml:3: an alias (*) is not allowed; write the value out"),
    "tag": (b"a: !!python/name:os.system 1\n", "r.yaml:1: a tag (!) is not allowed; write the value out"),
    "merge key": (b"a:\n  <<: {b: 1}\n", "r.yaml:2: a merge key (<<) is not allowed; write the value out"),
    "directive": (b"# c\n%YAML 1.1\n---\na: no\n", "r.yaml:2: a directive (%) is not allowed; write the value out"),
    "duplicate key": (
        b"a: 1\nb: 2\na: 3\n",
        'r.yaml:3: not YAML: found duplicate key "a" with value "3" (original value: "1")',
    ),
    "duplicate key inside": (
        b"a:\n  b: 1\n  b: 2\n",
        'r.yaml:3: not YAML: found duplicate key "b" with value "2" (original value: "1")',
    ),
    "key that is a number": (b"a: 1\n1: 2\n", "r.yaml:2: key 1 is not text; quote it"),
    "list": (b"- a\n- b\n", "r.yaml: must hold a mapping of keys to values"),
    "scalar": (b"just words\n", "r.yaml: must hold a mapping of keys to values"),
    "empty": (b"", "r.yaml: must hold a mapping of keys to values"),
    "not UTF-8": ("a: é\n".encode("latin-1"), "r.yaml: not UTF-8 (byte 3); save the file as UTF-8"),
    "too large": (b"a: " + b"x" * (MAX_BYTES - 2), "r.yaml: larger than 256 KiB; a recipe is a page"),
    "open bracket": (b"a: [1\n", "r.yaml:2: not YAML: expected ',' or ']', but got '<stream end>'"),
    "tab": (b"a:\n\tb: 1\n", "r.yaml:2: not YAML: found character '\\t' that cannot start any token"),
    "two colons": (b"a: b: c\n", "r.yaml:1: not YAML: mapping values are not allowed here"),
    "two documents": (b"a: 1\n---\nb: 2\n", "r.yaml:2: not YAML: but found another document"),
    "control character": (
        b"a: \x00\n",
        "r.yaml: not YAML: unacceptable character #x0000: special characters are not allowed",
    ),
    "impossible date": (b"a: 2024-99-99\n", "r.yaml: a value cannot be read: month must be in 1..12"),
    "nested too deep": (b"a: " + b"[" * 500, "r.yaml:1: nested deeper than 32; a recipe is flat"),
}


@pytest.mark.parametrize(("content", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_what_is_not_a_plain_mapping_is_refused_with_its_line(tmp_path, content, message):
    path = tmp_path / "some.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as refused:
        read_yaml(path, "r.yaml")
    assert refused.value.text == message


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError) as refused:
        read_yaml(tmp_path / "absent.yaml", "recipes/absent.yaml")
    assert refused.value.text == "recipes/absent.yaml: no such file"


def test_a_file_of_exactly_the_limit_is_read(tmp_path):
    path = tmp_path / "some.yaml"
    path.write_bytes(b"a: " + b"x" * (MAX_BYTES - 3))
    assert len(read_yaml(path, "r.yaml").values["a"]) == MAX_BYTES - 3


def test_each_value_has_the_line_it_stands_on(tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text(
        "# first\n\na: 1 # why\nb:\n  c: x\n\n  d: [1,\n      2]\ne:\n- f: 1\n  g: 2\nh: {i: 1,\n    j: 2}\n"
    )
    source = read_yaml(path, "r.yaml")
    assert source.values == {"a": 1, "b": {"c": "x", "d": [1, 2]}, "e": [{"f": 1, "g": 2}], "h": {"i": 1, "j": 2}}
    assert source.places == {
        ("a",): "r.yaml:3",
        ("b",): "r.yaml:4",
        ("b", "c"): "r.yaml:5",
        ("b", "d"): "r.yaml:7",
        ("b", "d", 0): "r.yaml:7",
        ("b", "d", 1): "r.yaml:8",
        ("e",): "r.yaml:9",
        ("e", 0): "r.yaml:10",
        ("e", 0, "f"): "r.yaml:10",
        ("e", 0, "g"): "r.yaml:11",
        ("h",): "r.yaml:12",
        ("h", "i"): "r.yaml:12",
        ("h", "j"): "r.yaml:13",
    }


def test_a_value_without_a_place_takes_that_of_the_section_around_it(tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text("a:\n  b: 1\n")
    source = read_yaml(path, "r.yaml")
    assert source.place(("a", "b", "c"), "r.yaml") == "r.yaml:2"
    assert source.place(("a", "x"), "r.yaml") == "r.yaml:1"
    assert source.place(("y",), "r.yaml") == "r.yaml"


def test_scalars_are_those_of_yaml_1_2(tmp_path):
    path = tmp_path / "some.yaml"
    text = "a: 2e-4\nb: no\nc: 12:30\nd: 2024-01-31\ne: 1e5\nf: ~\ng:\nh: true\ni: 0o17\nj: '1'\nk: 010\n"
    path.write_text(text)
    expected = [2e-4, "no", "12:30", "2024-01-31", 1e5, None, None, True, 15, "1", 10]
    values = list(read_yaml(path, "r.yaml").values.values())
    assert values == expected
    # ruamel's round-trip loader gives subclasses of its own, which pydantic's strict mode would refuse.
    assert [type(value) for value in values] == [type(value) for value in expected]


# Lone surrogates have no UTF-8 form.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=10
)


def as_ruamel_reads(text):
    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        return None


@settings(deadline=None)
@given(values=st.dictionaries(TEXT, VALUES, max_size=4))
def test_plain_values_that_ruamel_writes_read_back_equal(tmp_path_factory, values):
    path = tmp_path_factory.getbasetemp() / "some.yaml"
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        writer.dump(values, stream)
    # ruamel writes a few odd strings, such as U+0085 or a key `?0`, so that it cannot read them itself.
    assume(as_ruamel_reads(path.read_text(encoding="utf-8")) == values)
    source = read_yaml(path, "r.yaml")
    assert source.values == values
    assert [keys for keys, _ in leaves(source.values) if keys and keys not in source.places] == []


def test_a_child_merges_sections_and_replaces_everything_else(tmp_path):
    (tmp_path / "parent.yaml").write_text("a:\n  b: 1\n  c: [1, 2, 3]\nd: {e: 1}\n")
    (tmp_path / "child.yaml").write_text("a:\n  c: [9]\n\nd: 5\n")
    merged = read_yaml(tmp_path / "child.yaml", "child").over(read_yaml(tmp_path / "parent.yaml", "parent"))
    assert merged.values == {"a": {"b": 1, "c": [9]}, "d": 5}
    assert merged.places == {
        ("a",): "child:1",
        ("a", "b"): "parent:2",
        ("a", "c"): "child:2",
        ("a", "c", 0): "child:2",
        ("d",): "child:4",
    }


def test_a_value_can_be_set_where_there_is_none_yet():
    source = YamlSource({"a": {"b": 1}}, {("a",): "r:1", ("a", "b"): "r:2"})
    source.set("a.c", "2e-4", "--set")
    source.set("d.e", "[1, x]", "--set")
    assert source.values == {"a": {"b": 1, "c": 2e-4}, "d": {"e": [1, "x"]}}
    assert source.places == {("a",): "r:1", ("a", "b"): "r:2", ("a", "c"): "--set", ("d", "e"): "--set"}


def test_a_set_section_forgets_the_places_of_what_it_replaces():
    source = YamlSource({"a": {"b": 1}}, {("a",): "r:1", ("a", "b"): "r:2"})
    source.set("a", "{c: 3}", "--set")
    assert source.values == {"a": {"c": 3}}
    assert source.places == {("a",): "--set", ("a", "c"): "--set"}


REFUSED_SETS = {
    "open bracket": ("a.c", "[1", "--set a.c=[1: the value is not YAML; quote it"),
    "impossible date": ("a.c", "2024-99-99", "--set a.c=2024-99-99: the value is not YAML; quote it"),
    "through a value": ("a.b.c", "1", "--set a.b.c: `b` is not a section"),
    "tag": ("a.c", "!x 1", "--set a.c:1: a tag (!) is not allowed; write the value out"),
    "merge key": ("a.c", "{<<: {d: 1}}", "--set a.c:1: a merge key (<<) is not allowed; write the value out"),
}


@pytest.mark.parametrize(("dotted", "text", "message"), REFUSED_SETS.values(), ids=REFUSED_SETS.keys())
def test_what_cannot_be_set_is_refused(dotted, text, message):
    source = YamlSource({"a": {"b": 1}}, {("a",): "r:1", ("a", "b"): "r:2"})
    with pytest.raises(UserError) as refused:
        source.set(dotted, text, "--set")
    assert refused.value.text == message
