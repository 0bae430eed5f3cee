"""Which ways there are, and which of them dev chooses."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tunesmith.evaluate.stage import constrained_way
from tunesmith.evaluate.ways import Way, adapter_ways, best, untrained_ways
from tunesmith.files import write_json
from tunesmith.recipe import Recipe, load_recipe
from tunesmith.scoring import JsonScore

KNOWLEDGE = ("arms.knowledge={path: data/smoke, k: [2, 4]}",)


def recipe(repository: Path, *sets: str) -> Recipe:
    return load_recipe("smoke", root=repository, sets=sets).recipe


def on_dev(directory: Path, ways: list[Way], scores: dict[str, float]) -> None:
    for tokens, way in enumerate(ways):
        score = scores.get(way.label, 0.0)
        about = {"means": {"exact_match": score, "field_f1": score}, "tokens_in": tokens}
        write_json(directory / f"{way.label}.json", about)


def test_documents_are_ways_of_their_own_where_a_recipe_has_them(repository: Path) -> None:
    plain = ["zero_shot", "few_shot-2", "retrieval-2"]
    assert [way.label for way in untrained_ways(recipe(repository))] == plain
    both = untrained_ways(recipe(repository, *KNOWLEDGE))
    assert [way.label for way in both] == [*plain, "documents-2", "documents-4"]


def test_an_oracle_is_never_the_best(tmp_path: Path) -> None:
    ways = [Way("zero_shot"), Way("gold_context", "gold_context")]
    on_dev(tmp_path, ways, {"gold_context": 1.0})
    assert best(ways, tmp_path, JsonScore()).arm == "zero_shot"


@pytest.mark.parametrize(
    ("scores", "shots", "k"),
    [
        ({"few_shot-2": 0.2, "documents-4": 0.1}, "few_shot", 2),
        ({"few_shot-2": 0.2, "documents-4": 0.3}, "documents", 4),
        # Nothing right anywhere says nothing of what helps: documents hold what the base cannot know.
        ({}, "documents", 2),
    ],
)
def test_the_constraint_stands_on_what_helped_on_dev(
    scores: dict[str, float], shots: str, k: int, repository: Path, tmp_path: Path
) -> None:
    made = recipe(repository, *KNOWLEDGE)
    on_dev(tmp_path, untrained_ways(made), scores)
    arena: Any = SimpleNamespace(recipe=made)
    way = constrained_way(arena, tmp_path)
    assert (way.arm, way.shots, way.k) == ("constrained", shots, k)
    assert way.free == Way(shots, shots, k)


def test_without_documents_nothing_right_leaves_the_shortest_prompt(repository: Path, tmp_path: Path) -> None:
    made = recipe(repository)
    on_dev(tmp_path, untrained_ways(made), {})
    arena: Any = SimpleNamespace(recipe=made)
    assert constrained_way(arena, tmp_path).shots == "none"


def test_the_adapter_is_given_what_retrieval_gave_the_base(repository: Path) -> None:
    found = [Way("retrieval", "retrieval", 3), Way("documents", "documents", 2)]

    def arms(made: Recipe, ways: list[Way]) -> list[tuple[str, str, int]]:
        selection = {"ways": [way.as_dict() for way in ways]}
        return [(way.arm, way.shots, way.k) for way in adapter_ways(made, selection)]

    made, alone = recipe(repository), ("adapter", "none", 0)
    assert arms(made, found) == [alone, ("adapter_retrieval", "documents", 2)]
    assert arms(made, found[:1]) == [alone, ("adapter_retrieval", "retrieval", 3)]
    assert arms(made, []) == [alone]
    assert arms(recipe(repository, "arms.adapter_retrieval=false"), found) == [alone]
