"""Evidence made in memory: arms of scored rows in the form the arena leaves them, and a recipe to judge them by."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tunesmith.gate.evidence import Arm, Evidence
from tunesmith.recipe import Recipe, load_recipe

MakeEvidence = Callable[..., Evidence]

SETTINGS = {"max_new_tokens": 24, "end_ids": [2], "pad_id": 0, "batch_rows": 32, "decoding": "greedy"}
SHOTS = {"few_shot": 2, "retrieval": 3}


def scored_row(index: int, group: str, right: bool) -> dict[str, Any]:
    """A row that names the colour, or names the other one that its text holds."""
    return {
        "id": f"row-{index:03}",
        "group": group,
        "prediction": json.dumps({"colour": "red" if right else "blue"}),
        "reference": '{"colour":"red"}',
        "ended": True,
        "tokens_in": 40,
        "tokens_out": 8,
        "seconds": 0.1 + (index % 10) / 10,
        "scores": {
            "exact_match": float(right),
            "field_f1": float(right),
            "json_strict": 1.0,
            "json_lenient": 1.0,
            "exact_match_lenient": float(right),
            "normalised_match": float(right),
            "schema_valid": 1.0,
            "hallucinated": 0.0,
        },
        "fields": {
            "right": ["colour"] if right else [],
            "wrong": [] if right else ["colour"],
            "missed": [] if right else ["colour"],
        },
        "values": {} if right else {"colour": "wrong_in_source"},
        "failure": None if right else "wrong_in_source",
        "labels": [] if right else ["wrong_in_source"],
    }


def scored_arm(name: str, right: Sequence[bool], groups: Sequence[str]) -> Arm:
    about = {
        "arm": name,
        "shots": name if name in SHOTS else "none",
        "k": SHOTS.get(name, 0),
        "split": "gate",
        "split_digest": "5" * 64,
        "rows": len(right),
        "weights": {"merged": "e" * 64} if name == "merged" else {"base": "b" * 64},
        "prompt_digest": "9" * 64,
        "settings": dict(SETTINGS),
        "computed_on": {"device": "cpu", "dtype": "float32"},
        "prefix_tokens": 10,
        "scorer": {"kind": "json", "digest": "3" * 64, "self_test": []},
    }
    rows = [scored_row(i, group, ok) for i, (ok, group) in enumerate(zip(right, groups, strict=True))]
    return Arm(name, about, rows)


@pytest.fixture(scope="session")
def make_evidence() -> MakeEvidence:
    """Make evidence from which rows each arm has right. `rise` is what each general document's loss rose by."""

    def make(
        adapter: Sequence[bool],
        retrieval: Sequence[bool],
        merged: Sequence[bool] | None = None,
        *,
        groups: Sequence[str] | None = None,
        rise: Sequence[float] = (0.1, 0.2, 0.0, 0.1),
        merged_rise: Sequence[float] | None = None,
    ) -> Evidence:
        groups = groups or [f"group-{i:03}" for i in range(len(adapter))]
        right = {"adapter": adapter, "merged": adapter if merged is None else merged, "retrieval": retrieval}
        base = [2.0 + i / 4 for i in range(len(rise))]
        guards = {
            "general_nll": {
                "base": base,
                "adapter": [loss + more for loss, more in zip(base, rise, strict=True)],
                "merged": [loss + more for loss, more in zip(base, merged_rise or rise, strict=True)],
            },
            "adapter_changes_logits": 0.7,
            "replayed": {"rows": 32, "same": True, "differing": []},
        }
        arms = {name: scored_arm(name, rows, groups) for name, rows in right.items()}
        selection = {
            "primary": "exact_match",
            "incumbent": "retrieval",
            "ways": [{"arm": "retrieval", "shots": "retrieval", "k": 3}],
            "dev_means": {"retrieval-3": 0.5},
        }
        again = scored_arm("retrieval", retrieval, groups)
        again.about["settings"]["batch_rows"] = 7
        return Evidence(arms, selection, guards, again=[again])

    return make


@pytest.fixture(scope="session")
def recipe(repository: Path) -> Recipe:
    """The smoke recipe: gain 0.10, margins 0.10 and 3.0 nats, at least 30 rows, alpha 0.05; form is not judged."""
    return load_recipe("smoke", root=repository, sets=["guards.format_margin=null"]).recipe
