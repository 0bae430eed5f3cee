"""One trap, one test: what counts as the right JSON object, and what a wrong answer is called."""

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tunesmith.evaluate.score_form import leaves, loops, parse_lenient, parse_strict
from tunesmith.evaluate.scorers import Scorer
from tunesmith.failures import FAILURES
from tunesmith.files import write_jsonl
from tunesmith.rows import Message, Row
from tunesmith.scoring import JsonScore

METRICS = [metric for metric in JsonScore().metrics if metric not in JsonScore.lower_is_better]
SOURCE = "Zoë Miller moved from 12 Elm Street to 3 Oak Lane, Salem"
GOLD = {"name": "Zoë Miller", "city": "Salem"}
RIGHT = '{"name": "Zoë Miller", "city": "Salem"}'
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "city": {"type": "string"}, "street": {"type": "string"}},
    "required": ["name"],
    "additionalProperties": False,
}
OBJECT = {"type": "object"}


def row_of(reference: Any, source: str = SOURCE) -> Row:
    completion = Message(role="assistant", content=json.dumps(reference, ensure_ascii=False))
    return Row(id="1", group="1", messages=[Message(role="user", content=source)], completion=completion)


def scored(
    text: str,
    reference: Any = None,
    *,
    ended: bool = True,
    schema: Any = None,
    source: str = SOURCE,
    row: Row | None = None,
) -> dict[str, Any]:
    """What the scorer says, with the metrics beside it."""
    scorer = Scorer(JsonScore(), schema or (SCHEMA if reference is None else OBJECT))
    found = scorer.score(text, ended, row or row_of(GOLD if reference is None else reference, source))
    return {**found, **found["scores"]}


def test_gold_is_right_by_every_metric() -> None:
    result = scored(RIGHT)
    assert [result[metric] for metric in METRICS] == [1.0] * len(METRICS)
    assert (result["hallucinated"], result["failure"]) == (0.0, None)
    assert result["fields"] == {"right": ["city", "name"], "wrong": [], "missed": []}


def test_a_fence_is_a_fault_of_form_only() -> None:  # a program would not read it, the content is right
    result = scored(f"```json\n{RIGHT}\n```")
    assert (result["exact_match"], result["json_strict"], result["field_f1"]) == (0.0, 0.0, 0.0)
    assert (result["exact_match_lenient"], result["json_lenient"]) == (1.0, 1.0)
    assert result["failure"] == "wrapped"


def test_trailing_prose_is_not_strict() -> None:  # json.loads refuses "extra data"
    result = scored(f"{RIGHT} I hope this helps!")
    assert (result["json_strict"], result["exact_match_lenient"], result["failure"]) == (0.0, 1.0, "wrapped")


def test_leading_prose_is_not_strict() -> None:
    result = scored(f"Here is the JSON: {RIGHT}")
    assert (result["json_strict"], result["exact_match_lenient"], result["failure"]) == (0.0, 1.0, "wrapped")


def test_a_brace_in_the_prose_does_not_hide_the_object() -> None:  # the first brace need not open it
    assert scored(f"As {{asked}}: {RIGHT}")["exact_match_lenient"] == 1.0


def test_whitespace_around_and_inside_does_not_matter() -> None:
    assert scored('\n { "name" :\t"Zoë Miller",\n"city":"Salem" }\n')["exact_match"] == 1.0


def test_whitespace_inside_a_value_matters() -> None:  # "Zoë  Miller" is another string
    assert scored('{"name": "Zoë Miller ", "city": "Salem"}')["exact_match"] == 0.0


def test_the_order_of_keys_does_not_matter() -> None:
    assert scored('{"city": "Salem", "name": "Zoë Miller"}')["exact_match"] == 1.0


def test_the_order_of_a_list_matters() -> None:
    result = scored('{"n": [2, 1]}', {"n": [1, 2]})
    assert (result["exact_match"], result["fields"]["wrong"]) == (0.0, ["n[0]", "n[1]"])


@pytest.mark.parametrize("reference", ["1", "1.0", '"1"', "true", "null", "[1]", '{"1": 1}'])
@pytest.mark.parametrize("answer", ["1", "1.0", '"1"', "true", "null", "[1]", '{"1": 1}'])
def test_values_that_python_or_a_reader_might_call_equal_are_not(reference: str, answer: str) -> None:
    # In Python 1 == 1.0 == True.
    result = scored(f'{{"n": {answer}}}', {"n": json.loads(reference)}, source="1")
    assert result["exact_match"] == float(reference == answer)


def test_spellings_of_one_number_are_equal() -> None:
    assert scored('{"n": 1.50}', {"n": 1.5})["exact_match"] == 1.0


def test_duplicate_keys_are_not_json_to_us() -> None:  # a reader would keep one of them, and nobody says which
    result = scored('{"name": "Zoë Miller", "name": "Zoë Miller", "city": "Salem"}')
    assert (result["exact_match"], result["json_strict"]) == (0.0, 0.0)


def test_duplicate_keys_deep_inside_are_found_too() -> None:
    assert scored('{"a": [{"b": 1, "b": 1}]}', {"a": [{"b": 1}]})["json_strict"] == 0.0


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_python_constants_are_not_json(constant: str) -> None:  # json.loads takes them
    assert scored(f'{{"n": {constant}}}', {"n": 1})["json_strict"] == 0.0


@pytest.mark.parametrize("text", ["", " \n\t "])
def test_an_empty_answer_is_called_empty(text: str) -> None:
    result = scored(text, ended=False)
    assert (result["exact_match"], result["field_f1"], result["failure"]) == (0.0, 0.0, "empty")
    assert result["labels"] == ["empty", "truncated", "unparseable"]


def test_an_answer_cut_off_is_called_truncated() -> None:
    result = scored('{"name": "Zoë Mil', ended=False)
    assert (result["exact_match"], result["json_lenient"], result["failure"]) == (0.0, 0.0, "truncated")


def test_the_same_half_object_that_ended_is_unparseable() -> None:
    assert scored('{"name": "Zoë Mil')["failure"] == "unparseable"


def test_an_answer_that_is_right_counts_even_without_an_end_token() -> None:
    assert scored(RIGHT, ended=False)["failure"] is None


def test_a_unicode_escape_equals_the_letter() -> None:
    result = scored('{"name": "Zo\\u00eb Miller", "city": "Salem"}')
    assert (result["exact_match"], result["hallucinated"]) == (1.0, 0.0)


def test_an_escaped_pair_of_surrogates_equals_the_emoji() -> None:
    assert scored('{"x": "\\ud83d\\ude00"}', {"x": "😀"}, source="😀")["exact_match"] == 1.0


def test_letters_that_look_alike_are_not_equal() -> None:  # e + combining diaeresis
    assert scored('{"name": "Zoe\\u0308 Miller", "city": "Salem"}')["exact_match"] == 0.0


def test_half_a_surrogate_pair_is_not_text(tmp_path: Any) -> None:  # json.loads takes it, UTF-8 cannot hold it
    result = scored('{"\\ud83d": "Salem"}')
    assert (result["json_strict"], result["failure"]) == (0.0, "unparseable")
    write_jsonl(tmp_path / "arm.jsonl", [result])


def test_nested_objects_and_lists_are_compared_leaf_by_leaf() -> None:
    reference = {"a": {"b": [1, {"c": 2}], "d": None}}
    result = scored('{"a": {"b": [1, {"c": 3}], "d": null}}', reference)
    assert result["fields"] == {"right": ["a.b[0]", "a.d"], "wrong": ["a.b[1].c"], "missed": ["a.b[1].c"]}
    assert result["field_f1"] == pytest.approx(4 / 6)


def test_an_empty_list_and_an_empty_object_are_values() -> None:  # no leaf inside would speak for them
    assert scored('{"a": []}', {"a": {}})["exact_match"] == 0.0
    assert scored("{}", {"a": []})["exact_match"] == 0.0
    assert scored('{"a": []}', {"a": []})["exact_match"] == 1.0
    assert scored("{}", {})["field_f1"] == 1.0
    assert scored("", {})["field_f1"] == 0.0  # nothing written is not the empty object


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ('{"a.b": 1}', {"a": {"b": 1}}),
        ('{"a[0]": 1}', {"a": [1]}),
        ('{"": {"a": 1}}', {"a": 1}),
        ('{"": 1}', {'[""]': 1}),
        ('{"a": {"": 1}}', {"a": 1}),
        ('{"a": {"0": 1}}', {"a": [1]}),
    ],
)
def test_a_key_that_looks_like_a_path_is_another_key(answer: str, reference: dict[str, Any]) -> None:
    result = scored(answer, reference)
    assert (result["exact_match"], result["field_f1"]) == (0.0, 0.0)


def test_an_array_at_top_level_is_not_the_object_asked_for() -> None:
    result = scored(f"[{RIGHT}]")
    assert (result["json_strict"], result["exact_match"], result["failure"]) == (0.0, 0.0, "wrapped")


@pytest.mark.parametrize("text", ["1", "null", '"Salem"', "[]"])
def test_json_that_is_no_object_and_holds_none_is_unparseable(text: str) -> None:
    result = scored(text)
    assert (result["json_strict"], result["json_lenient"], result["failure"]) == (0.0, 0.0, "unparseable")


def test_an_extra_field_costs_precision() -> None:
    result = scored('{"name": "Zoë Miller", "city": "Salem", "street": "Elm Street"}')
    assert (result["exact_match"], result["failure"]) == (0.0, "extra_field")
    assert result["field_f1"] == pytest.approx(4 / 5)
    assert result["fields"] == {"right": ["city", "name"], "wrong": ["street"], "missed": []}


def test_a_missing_field_costs_recall() -> None:
    result = scored('{"name": "Zoë Miller"}')
    assert (result["exact_match"], result["failure"]) == (0.0, "missing_available")
    assert result["field_f1"] == pytest.approx(2 / 3)
    assert result["fields"] == {"right": ["name"], "wrong": [], "missed": ["city"]}


def test_a_wrong_value_from_the_text_is_wrong_and_not_invented() -> None:
    result = scored('{"name": "Zoë Miller", "city": "Oak Lane"}')
    assert (result["hallucinated"], result["failure"]) == (0.0, "wrong_in_source")
    assert result["field_f1"] == pytest.approx(1 / 2)


def test_a_value_that_stands_nowhere_in_the_text_is_invented() -> None:
    result = scored('{"name": "Zoë Miller", "city": "Portland"}')
    assert (result["hallucinated"], result["failure"]) == (1.0, "hallucinated")


def test_a_value_in_other_case_is_a_fault_of_form_and_not_invented() -> None:
    result = scored('{"name": "Zoë Miller", "city": "SALEM"}')
    assert (result["exact_match"], result["hallucinated"], result["normalised_match"]) == (0.0, 0.0, 1.0)
    assert result["values"] == {"city": "normalisation_only"}


def test_a_value_from_a_shot_and_not_from_the_question_is_invented() -> None:  # only the last user turn is the text
    shot = [Message(role="user", content="Ann, Boston"), Message(role="assistant", content='{"city":"Boston"}')]
    row = row_of(GOLD).model_copy(update={"messages": [*shot, Message(role="user", content=SOURCE)]})
    answer = '{"name": "Zoë Miller", "city": "Boston"}'
    assert scored(answer, row=row)["hallucinated"] == 1.0


def test_a_number_is_never_called_invented() -> None:  # it may be counted or computed
    assert scored('{"n": 77}', {"n": 78})["hallucinated"] == 0.0


def test_an_answer_off_the_schema_is_called_that_before_its_content() -> None:
    result = scored('{"name": "Zoë Miller", "town": "Portland"}')
    assert (result["schema_valid"], result["failure"]) == (0.0, "unexpected_key")


@pytest.mark.parametrize("number", ["1e999", "1" + "0" * 400, "-1e999"])
def test_a_number_too_large_to_divide_is_off_the_schema(number: str) -> None:  # jsonschema raises OverflowError
    cents = {"type": "object", "properties": {"n": {"multipleOf": 0.01}}}
    result = scored(f'{{"n": {number}}}', {"n": 1}, schema=cents)
    assert (result["schema_valid"], result["failure"]) == (0.0, "constraint")


def test_an_integer_longer_than_python_reads_is_unparseable() -> None:
    assert scored('{"n": ' + "9" * 5000 + "}", {"n": 1})["failure"] == "unparseable"


@pytest.mark.parametrize("depth", [300, 900, 940, 970, 980, 990, 5000])
def test_deep_nesting_is_wrong_and_no_crash(depth: int) -> None:
    recursive = {"type": "object", "properties": {"a": {"anyOf": [{"$ref": "#"}, {"type": "integer"}]}}}
    for text in ('{"a":' * depth + "1" + "}" * depth, '{"a":' + "[" * depth + "]" * depth + "}"):
        result = scored(text, {"a": 1}, schema=recursive)
        assert result["exact_match"] == 0.0


ONE_OF_EACH = {
    "empty": ("", True),
    "truncated": ('{"name": "Zo', False),
    "unparseable": ("I cannot do that.", True),
    "wrapped": (f"```\n{RIGHT}\n```", True),
    "loop": (RIGHT + " and on" * 9, True),
    "missing_required": ('{"city": "Salem"}', True),
    "unexpected_key": ('{"name": "Zoë Miller", "town": "Salem"}', True),
    "wrong_type": ('{"name": 1, "city": "Salem"}', True),
    "hallucinated": ('{"name": "Ann"}', True),
    "missing_available": ('{"name": "Zoë Miller"}', True),
    "extra_field": ('{"name": "Zoë Miller", "city": "Salem", "street": "Oak Lane"}', True),
    "wrong_in_source": ('{"name": "Miller", "city": "Salem"}', True),
    "normalisation_only": ('{"name": "zoë miller", "city": "Salem."}', True),
}


@pytest.mark.parametrize("failure", ONE_OF_EACH)
def test_every_failure_class_has_an_answer_that_is_called_so(failure: str) -> None:
    text, ended = ONE_OF_EACH[failure]
    assert scored(text, ended=ended)["failure"] == failure


# ---------------------------------------------------------------------- what a wrong value is called


def value_of(answer: str, reference: Any, source: str = SOURCE, **meta: Any) -> str:
    row = row_of({"x": reference}, source).model_copy(update={"meta": meta})
    return str(scored(f'{{"x": {answer}}}', {"x": reference}, row=row)["values"]["x"])


@pytest.mark.parametrize(
    ("answer", "reference", "name"),
    [
        ('"1,200"', "1200", "normalisation_only"),
        ("1200.0", 1200, "normalisation_only"),
        ('"1200"', 1200, "normalisation_only"),
        ('"\uff33alem"', "Salem", "normalisation_only"),  # a full-width letter
        ('"true"', True, "normalisation_only"),
        ('"007"', "7", "hallucinated"),  # an id that begins with zeros is another id
        ('"02134"', 2134, "hallucinated"),
        ("1", True, "wrong_value"),  # in Python they are equal
        ("12", 13, "wrong_in_source"),
        ("44", 13, "wrong_value"),  # may have been counted
        ('"Oak Lane"', "Elm Street", "wrong_in_source"),
        ('"OAK  LANE"', "Elm Street", "wrong_in_source"),
        ('"ak La"', "Elm Street", "hallucinated"),  # half a word is no word of the text
        ('"2"', "3", "hallucinated"),  # nor is half of 12
        ("null", "Salem", "missing_available"),
        ('""', "Salem", "missing_available"),
        ("null", "Portland", "missing_unavailable"),
    ],
)
def test_a_wrong_value_is_called_by_where_it_stands(answer: str, reference: Any, name: str) -> None:
    assert value_of(answer, reference) == name


def test_an_earlier_version_of_a_fact_is_stale_and_not_invented() -> None:
    assert value_of('"Boston"', "Salem", earlier={"x": ["Boston"]}) == "stale"
    assert value_of('"Boston"', "Salem", earlier={"y": ["Boston"]}) == "hallucinated"


def test_a_value_of_no_ascii_is_found_between_its_neighbours() -> None:  # no spaces stand between its words
    assert value_of('"北京"', "上海", source="我住在北京市") == "wrong_in_source"


def test_case_alone_of_an_enum_is_a_fault_of_its_surface() -> None:
    enum = {"type": "object", "properties": {"x": {"enum": ["red", "blue"]}}}
    assert scored('{"x": "RED"}', {"x": "red"}, schema=enum)["failure"] == "label_surface"
    assert scored('{"x": "crimson"}', {"x": "red"}, schema=enum)["failure"] == "out_of_set"


def test_of_alternatives_the_breach_of_the_nearest_is_named() -> None:
    both = [{"properties": {"x": {"type": kind}}, "required": ["x"]} for kind in ("string", "null")]
    assert "wrong_type" in scored('{"x": 3}', {"x": None}, schema={"type": "object", "anyOf": both})["labels"]


@pytest.mark.parametrize("text", ["ab" * 30, RIGHT + " x" * 40, "no " * 20 + "\n", "a b c d e f " * 8])
def test_an_answer_that_goes_round_is_called_so(text: str) -> None:
    assert loops(text)


@pytest.mark.parametrize("text", ["", RIGHT, "}" * 12, "ha ha ha ha", "the cat sat on the mat, the cat sat on the rug"])
def test_an_answer_that_repeats_little_is_not(text: str) -> None:
    assert not loops(text)


# ---------------------------------------------------------------------- whatever the answer

keys = st.text(alphabet='ab.[]"0\\', max_size=5) | st.text(max_size=3)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)
objects = st.dictionaries(keys, values, max_size=4)
near_json = st.text(alphabet='{}[]":,. \\\nueE+-019truefalsn', max_size=60)
fenced = objects.map(lambda value: f"```json\n{json.dumps(value)}\n```")
answers = st.text() | near_json | objects.map(json.dumps) | fenced


def check_ranges(result: dict[str, Any]) -> None:
    for metric in (*METRICS, "hallucinated"):
        assert 0.0 <= result[metric] <= 1.0
    assert (result["failure"] is None) == (result["exact_match"] == 1.0)
    assert result["failure"] in (None, *FAILURES)
    assert result["labels"] == [name for name in FAILURES if name in result["labels"]]
    if result["exact_match"]:
        assert result["field_f1"] == result["json_strict"] == result["exact_match_lenient"] == 1.0
    if result["json_strict"]:
        assert result["json_lenient"] == 1.0
    json.dumps(result, allow_nan=False, ensure_ascii=False).encode()


@settings(deadline=None)
@given(answers, objects, st.booleans())
@example('{"a":1}{', {"a": 1}, True)
@example('{"a":-0}', {"a": 0}, True)
@example("{" * 2000, {}, False)
def test_no_answer_raises_and_every_metric_stays_in_range(text: str, reference: dict[str, Any], ended: bool) -> None:
    check_ranges(scored(text, reference, ended=ended))


@settings(deadline=None)
@given(objects, st.booleans(), st.sampled_from([None, 2]))
def test_gold_is_right_however_it_is_written(reference: dict[str, Any], escaped: bool, indent: int | None) -> None:
    text = json.dumps(reference, ensure_ascii=escaped, indent=indent, sort_keys=True)
    result = scored(text, reference)
    check_ranges(result)
    assert result["exact_match"] == 1.0
    assert (result["fields"]["wrong"], result["fields"]["missed"]) == ([], [])


@settings(deadline=None)
@given(objects, objects)
def test_only_gold_matches_exactly(answer: dict[str, Any], reference: dict[str, Any]) -> None:
    same = json.dumps(answer, sort_keys=True) == json.dumps(reference, sort_keys=True)
    result = scored(json.dumps(answer), reference)
    assert result["exact_match"] == float(same)
    assert (result["field_f1"] == 1.0) == same


@settings(deadline=None)
@given(objects)
def test_no_two_leaves_share_a_path(value: dict[str, Any]) -> None:
    paths = [path for path, _ in leaves(value)]
    assert len(set(paths)) == len(paths)


@settings(deadline=None)
@given(answers)
def test_strict_and_lenient_agree_on_what_both_read_as_an_object(text: str) -> None:
    try:
        strict = parse_strict(text)
    except ValueError:
        return
    if isinstance(strict, dict):
        assert parse_lenient(text) == strict
