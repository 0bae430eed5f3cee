"""Which messages each way to answer puts before the model."""

import random

import pytest

from tunesmith.evaluate.arms import Retriever, few_shots, with_shots
from tunesmith.rows import Message, Row


def row(row_id: str, text: str = "", *, system: str | None = "Answer as JSON.") -> Row:
    messages = [Message(role="system", content=system)] if system is not None else []
    messages.append(Message(role="user", content=text or f"question {row_id}"))
    answer = Message(role="assistant", content=f"answer {row_id}")
    return Row(id=row_id, group=row_id, messages=messages, completion=answer)


def turns(messages: list[Message]) -> list[tuple[str, str | None]]:
    return [(message.role, message.content) for message in messages]


def ids(rows: list[Row]) -> list[str]:
    return [row.id for row in rows]


# ---------------------------------------------------------------------- shots


def test_shots_stand_between_the_system_message_and_the_question() -> None:
    assert turns(with_shots(row("q"), [row("a"), row("b")])) == [
        ("system", "Answer as JSON."),
        ("user", "question a"),
        ("assistant", "answer a"),
        ("user", "question b"),
        ("assistant", "answer b"),
        ("user", "question q"),
    ]


def test_the_system_message_is_the_questions_own() -> None:  # a shot brings its turns, not its instructions
    messages = with_shots(row("q", system="Mine."), [row("a", system="Another."), row("b", system=None)])
    assert [message.content for message in messages if message.role == "system"] == ["Mine."]
    assert messages[0].role == "system"


def test_without_shots_the_messages_stay_as_they_are() -> None:
    assert with_shots(row("q"), []) == row("q").messages


def test_a_question_without_a_system_message_gets_none() -> None:
    assert [m.role for m in with_shots(row("q", system=None), [row("a")])] == ["user", "assistant", "user"]


def test_a_shot_of_several_turns_keeps_its_roles_and_order() -> None:
    call = Message(role="assistant", tool_calls=[{"type": "function", "function": {"name": "f", "arguments": {}}}])
    result = Message(role="tool", content="42", tool_call_id="1")
    shot = row("a").model_copy(update={"messages": [*row("a").messages, call, result]})
    messages = with_shots(row("q"), [shot])
    assert [m.role for m in messages] == ["system", "user", "assistant", "tool", "assistant", "user"]
    assert messages[2:4] == [call, result]


def test_the_answer_to_the_question_is_never_shown() -> None:
    assert "answer q" not in [message.content for message in with_shots(row("q"), [row("a")])]


# ---------------------------------------------------------------------- few shots

TRAIN = [row(f"row-{i}") for i in range(30)]


def test_few_shots_are_the_same_for_any_order_of_the_training_rows() -> None:
    shuffled = TRAIN.copy()
    random.Random(1).shuffle(shuffled)
    assert ids(few_shots(shuffled, 5, seed=0)) == ids(few_shots(TRAIN, 5, seed=0))


def test_the_seed_picks_the_few_shots() -> None:
    drawn = {tuple(ids(few_shots(TRAIN, 3, seed=seed))) for seed in range(10)}
    assert len(drawn) == 10


def test_more_shots_begin_with_the_fewer() -> None:  # so that comparing k on dev compares k and not luck
    assert ids(few_shots(TRAIN, 8, seed=3))[:3] == ids(few_shots(TRAIN, 3, seed=3))


def test_few_shots_do_not_change_when_other_rows_come_or_go() -> None:
    chosen = ids(few_shots(TRAIN, 3, seed=0))
    fewer = [row for row in TRAIN if row.id in chosen or int(row.id[4:]) % 2]
    assert ids(few_shots(fewer, 3, seed=0)) == chosen


def test_few_shots_are_no_more_than_there_are_rows() -> None:
    assert len(few_shots(TRAIN[:2], 5, seed=0)) == 2


# ---------------------------------------------------------------------- retrieval

SHELF = [
    row("colour", "the red box is here"),
    row("place", "the box is on the table by the window"),
    row("trade", "Miller sells ten tons of copper"),
    row("metal", "copper and tin make bronze"),
]


def test_the_nearest_row_stands_last_beside_the_question() -> None:
    nearest = Retriever(SHELF).nearest(row("q", "who sells copper?"), 2)
    assert ids(nearest) == ["metal", "trade"]


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_retrieval_gives_as_many_rows_as_asked_for_each_once(k: int) -> None:
    found = ids(Retriever(SHELF).nearest(row("q", "the copper box"), k))
    assert len(found) == len(set(found)) == k


def test_fewer_rows_are_the_last_of_more() -> None:
    retriever, question = Retriever(SHELF), row("q", "a box of bronze by the window")
    assert ids(retriever.nearest(question, 4))[-2:] == ids(retriever.nearest(question, 2))


def test_retrieval_gives_no_more_than_there_are_rows() -> None:
    assert len(Retriever(SHELF).nearest(row("q", "copper"), 9)) == 4


def test_ties_go_to_the_earlier_row_every_time() -> None:
    twins = [row(f"twin-{i}", "the red box") for i in range(20)]
    retriever = Retriever([*twins, row("other", "something else")])
    for _ in range(3):
        assert ids(retriever.nearest(row("q", "red"), 3)) == ["twin-2", "twin-1", "twin-0"]


@pytest.mark.parametrize("question", ["zzz qqq", "?!", "☃", " "])
def test_a_question_that_shares_no_word_gets_the_first_rows(question: str) -> None:
    assert ids(Retriever(SHELF).nearest(row("q", question), 2)) == ["place", "colour"]


def test_case_and_punctuation_do_not_hide_a_word() -> None:
    assert ids(Retriever(SHELF).nearest(row("q", "«COPPER», TONS!"), 1)) == ["trade"]


def test_a_single_letter_and_a_number_are_words() -> None:  # bm25s drops both by default
    shelf = [row("a", "Apt B 7"), row("b", "Apt C 7"), row("c", "Apt C 12")]
    assert ids(Retriever(shelf).nearest(row("q", "B"), 1)) == ["a"]
    assert ids(Retriever(shelf).nearest(row("q", "12"), 1)) == ["c"]


def test_only_the_question_counts_and_not_the_system_message() -> None:
    shelf = [row("a", "apples"), row("b", "json")]
    question = row("q", "apples", system="json json json")
    assert ids(Retriever(shelf).nearest(question, 1)) == ["a"]


def test_the_answers_of_training_rows_are_not_searched() -> None:  # what is like the question is, not what answers it
    shelf = [row("1", "apples"), row("2", "pears")]
    assert ids(Retriever(shelf).nearest(row("q", "answer 2"), 1)) == ["1"]
