"""What is said without a model is said from train alone."""

import json
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from tunesmith.evaluate.trivial import majority, skeleton, trivial_answers
from tunesmith.rows import Message, Row

NAMES = ["majority", "skeleton", "copy_input", "nearest_train"]


def row(row_id: str, asked: str, answer: object) -> Row:
    text = answer if isinstance(answer, str) else json.dumps(answer, separators=(",", ":"))
    messages = [Message(role="system", content="Answer."), Message(role="user", content=asked)]
    return Row(id=row_id, group=row_id, messages=messages, completion=Message(role="assistant", content=text))


TRAIN = [
    row("a", "red box", {"kind": "box", "size": {"w": 1, "h": 2}}),
    row("b", "red cup", {"kind": "cup", "size": {"w": 1, "h": 3}, "rare": 1}),
    row("c", "blue cup", {"kind": "cup", "size": {"w": 2, "h": 3}}),
    row("d", "blue cup please", {"kind": "cup", "size": {"w": 2, "h": 3}}),
]


def test_each_arm_says_its_own() -> None:
    asked = [row("q", "one red box", "hidden"), row("r", "a cup that is blue", "hidden")]
    assert trivial_answers(NAMES, TRAIN, asked) == {
        "majority": ['{"kind":"cup","size":{"w":2,"h":3}}'] * 2,
        # Of equals, here of the widths, the first in the order of text; what few rows hold is left out.
        "skeleton": ['{"kind":"cup","size":{"w":1,"h":3}}'] * 2,
        "copy_input": ["one red box", "a cup that is blue"],
        "nearest_train": ['{"kind":"box","size":{"w":1,"h":2}}', '{"kind":"cup","size":{"w":2,"h":3}}'],
    }
    assert list(trivial_answers(NAMES[2:3], TRAIN, asked)) == ["copy_input"]


def test_the_skeleton_of_labels_is_the_commonest_label() -> None:
    assert skeleton([row(str(i), "", {"label": label}) for i, label in enumerate("abbbc")]) == '{"label":"b"}'


def test_without_json_or_common_fields_the_skeleton_is_the_commonest_completion() -> None:
    assert skeleton([row("1", "", "yes"), row("2", "", "no"), row("3", "", "yes")]) == "yes"
    assert skeleton([row("1", "", {"a": 1}), row("2", "", {"b": 1}), row("3", "", {"c": 1})]) == '{"a":1}'
    assert skeleton([row("1", "", "[1]"), row("2", "", "[1]"), row("3", "", "[2]")]) == "[1]"


@given(st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=9))
def test_the_commonest_is_the_first_of_the_commonest(answers: list[str]) -> None:
    said = majority([row(str(i), "", text) for i, text in enumerate(answers)])
    assert said == sorted(answers, key=lambda text: (-answers.count(text), text))[0]


@given(st.permutations(TRAIN))
def test_the_order_of_train_changes_nothing(train: list[Row]) -> None:
    assert majority(train) == majority(TRAIN)
    assert json.loads(skeleton(train)) == json.loads(skeleton(TRAIN))


@given(st.text(), st.text())
def test_the_completion_of_a_held_out_row_is_never_looked_at(one: str, other: str) -> None:
    said = [trivial_answers(NAMES, TRAIN, [row("q", "red cup", text)]) for text in (one, other)]
    assert said[0] == said[1]


def test_no_model_and_no_torch_is_needed() -> None:
    program = "import sys, tunesmith.evaluate.trivial; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
