"""A verdict as text.

The golden text is made again by `UPDATE_GOLDEN=1 python -m pytest tests/gate/test_report.py`; read its diff.
"""

import io
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tunesmith.gate.evidence import Evidence
from tunesmith.gate.report import print_report
from tunesmith.gate.verdict import judge
from tunesmith.recipe import Recipe

MakeEvidence = Callable[..., Evidence]

GOLDEN = Path(__file__).parent.parent / "golden" / "report.txt"
ABOUT: dict[str, Any] = {"name": "smoke", "set": [], "look": 1}


@pytest.fixture(autouse=True)
def no_forced_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


def printed(verdict: dict[str, Any], evidence: Evidence, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_report(verdict, evidence, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture
def evidence(make_evidence: MakeEvidence) -> Evidence:
    adapter = [True] * 30 + [False] * 10
    retrieval = [False] * 8 + [True] * 22 + [True] * 2 + [False] * 8
    return make_evidence(adapter, retrieval)


def test_the_report_reads_as_the_golden_text(evidence: Evidence, recipe: Recipe) -> None:
    verdict = judge(evidence, recipe, ABOUT | {"set": ["seed"]})
    verdict["arms"]["retrieval"]["k"] = 3
    text = printed(verdict, evidence)
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(text, encoding="utf-8", newline="\n")
    assert text == GOLDEN.read_text(encoding="utf-8")


def test_the_report_needs_no_colour(evidence: Evidence, recipe: Recipe) -> None:
    text = printed(judge(evidence, recipe, ABOUT), evidence)
    assert "\x1b" not in text
    for word in ("retrieval*", "gain_adapter", "pass", "SHIP", "row-000", "look 1"):
        assert word in text


def test_a_narrow_terminal_folds_names_and_numbers_and_cuts_none(evidence: Evidence, recipe: Recipe) -> None:
    text = printed(judge(evidence, recipe, ABOUT), evidence, width=72)
    assert "…" not in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("better", "worse", "verdict", "words"),
    [
        (20, 0, "SHIP", ["smoke ships: it beats", "20 rows, the first:"]),
        (
            0,
            20,
            "BLOCK",
            ["smoke does not ship: a condition is shown", "not met: exact_match of adapter over retrieval"],
        ),
        (9, 4, "INCONCLUSIVE", ["does not ship yet: the evidence does not settle it", "rows would settle it", "open"]),
    ],
)
def test_the_report_says_the_verdict_and_why(
    better: int, worse: int, verdict: str, words: list[str], make_evidence: MakeEvidence, recipe: Recipe
) -> None:
    ours = [True] * better + [False] * worse + [True] * (40 - better - worse)
    theirs = [False] * better + [True] * (40 - better)
    evidence = make_evidence(ours, theirs)
    text = printed(judge(evidence, recipe, ABOUT), evidence)
    for word in [f"\n{verdict}: ", *words]:
        assert word in text


def test_a_broken_comparison_is_reported_without_its_arms(evidence: Evidence, recipe: Recipe) -> None:
    broken = replace(evidence, guards=evidence.guards | {"adapter_changes_logits": 0.0})
    verdict = judge(broken, recipe, ABOUT)
    assert verdict["arms"] == {}
    text = printed(verdict, broken)
    assert "\nINVALID: smoke has no verdict: the comparison is broken.\n" in text
    assert "  - not met: the adapter changes what the base computes\n" in text
    assert "Arms on the gate rows" not in text
    assert "Fixed" not in text


def test_arms_without_rows_are_reported(make_evidence: MakeEvidence, recipe: Recipe) -> None:
    evidence = make_evidence([], [])
    assert "not met: at least 30 gate rows" in printed(judge(evidence, recipe, ABOUT), evidence)


def test_only_the_first_rows_are_shown_of_many(evidence: Evidence, recipe: Recipe) -> None:
    text = printed(judge(evidence, recipe, ABOUT), evidence)
    assert "Fixed by the adapter: 8 rows, the first:" in text
    assert "row-004" in text
    assert "row-005" not in text


# It may not close a tag of ours, colour the screen, move the cursor, or turn the direction of reading.
@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("[/bold] [red]x", "[/bold] [red]x"),
        ("[link=x]y", "[link=x]y"),
        ("\x1b[2J\x1b[31mgone", "\N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}[31mgone"),
        ("a\r\nb\x08\x07c", "a b\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}c"),
        ("\N{RIGHT-TO-LEFT OVERRIDE}der", "\N{REPLACEMENT CHARACTER}der"),
    ],
)
def test_what_a_model_wrote_cannot_steer_the_terminal(
    hostile: str, shown: str, evidence: Evidence, recipe: Recipe
) -> None:
    evidence.arms["adapter"].rows[0]["prediction"] = hostile
    text = printed(judge(evidence, recipe, ABOUT), evidence)
    assert f"    adapter     {shown}\n" in text


def test_a_long_answer_is_cut_and_says_so(evidence: Evidence, recipe: Recipe) -> None:
    evidence.arms["adapter"].rows[0]["prediction"] = "x" * 1000
    assert f"    adapter     {'x' * 160} …\n" in printed(judge(evidence, recipe, ABOUT), evidence)
