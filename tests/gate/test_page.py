"""A verdict as a page, as JUnit and as Markdown: it says what verdict.json says, and text of rows stays text."""

import html
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tests.gate.conftest import scored_arm
from tunesmith.gate.drawn import axis, difference
from tunesmith.gate.evidence import Evidence
from tunesmith.gate.junit import junit
from tunesmith.gate.page import write_page
from tunesmith.gate.summary import summary
from tunesmith.gate.verdict import judge
from tunesmith.recipe import Recipe

MakeEvidence = Callable[..., Evidence]
HOSTILE = '<script>alert(1)</script> & "it\'s"'


@pytest.fixture
def evidence(make_evidence: MakeEvidence) -> Evidence:
    return make_evidence([True] * 30 + [False] * 10, [False] * 8 + [True] * 24 + [False] * 8)


def judged(evidence: Evidence, recipe: Recipe) -> dict[str, Any]:
    about = {
        "name": "smoke",
        "run": "smoke-0123",
        "set": ["description=it's"],
        "look": 1,
        "recipe": recipe.as_dict(),
        "digests": {"base": "b" * 64},
        "versions": {"tunesmith": "0.1.0"},
    }
    return judge(evidence, recipe, about)


def written(path: Path, verdict: dict[str, Any], evidence: Evidence) -> str:
    write_page(path, verdict, evidence, {"row-000": HOSTILE}, "recipes/smoke.yaml")
    return path.read_text(encoding="utf-8")


def test_the_page_says_what_the_verdict_says(evidence: Evidence, recipe: Recipe, tmp_path: Path) -> None:
    verdict = judged(evidence, recipe) | {"trivial": {"majority": 0.25}}
    page = written(tmp_path / "report.html", verdict, evidence)
    for arm in verdict["arms"]:
        assert f">{arm}" in page
    for term in verdict["terms"]:
        assert term["says"].replace("'", "&#39;") in page
    assert page.count('class="row"') == len(verdict["fixed"]) + len(verdict["broken"])
    assert "25.0 %" in page
    assert shlex.join(["tunesmith", "run", "recipes/smoke.yaml", "--set", "description=it's"]) in html.unescape(page)


def test_the_page_is_whole_in_itself_and_runs_nothing(evidence: Evidence, recipe: Recipe, tmp_path: Path) -> None:
    rows = [{**row, "prediction": HOSTILE} for row in evidence.arms["adapter"].rows]
    hostile = replace(evidence, arms=evidence.arms | {"adapter": replace(evidence.arms["adapter"], rows=rows)})
    page = written(tmp_path / "report.html", judged(evidence, recipe) | {"name": HOSTILE}, hostile)
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert not re.search(r"""(src|href)=["'](?!#)|url\(|@import""", page)


def test_a_broken_comparison_has_a_page_too(evidence: Evidence, recipe: Recipe, tmp_path: Path) -> None:
    broken = replace(evidence, guards=evidence.guards | {"adapter_changes_logits": 0.0})
    verdict = judged(broken, recipe)
    page = written(tmp_path / "report.html", verdict, broken)
    assert "INVALID" in page
    assert 'id="arms"' not in page
    told = ElementTree.fromstring(junit(verdict).encode())
    assert (told.get("errors"), told.get("failures")) == ("1", "0")
    assert "INVALID" in summary(verdict)


def test_junit_holds_each_term(evidence: Evidence, recipe: Recipe) -> None:
    verdict = judged(evidence, recipe) | {"name": "a\x00\ud800b"}
    suite = ElementTree.fromstring(junit(verdict).encode())
    cases = suite.findall("testcase")
    assert [case.get("name") for case in cases] == [term["name"] for term in verdict["terms"]]
    failed = [case.get("name") for case in cases if case.find("failure") is not None]
    assert failed == [term["name"] for term in verdict["terms"] if not term["pass"]]
    assert suite.get("failures") == str(len(failed))
    assert suite.get("tests") == str(len(cases))


def test_the_summary_is_a_table_that_row_text_cannot_break(evidence: Evidence, recipe: Recipe) -> None:
    verdict = judged(evidence, recipe)
    text = summary(verdict | {"name": "a|b\n# c"})
    assert text.startswith(f"### {verdict['verdict']}: a\\|b \\# c ")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") - line.count("\\|") for line in lines} == {5, 7}
    assert len(lines) == 2 * 2 + len(verdict["arms"]) + sum(term["estimate"] is not None for term in verdict["terms"])


@given(st.text(), st.text())
def test_a_difference_holds_both_texts(reference: str, answer: str) -> None:
    pieces = difference(reference, answer)
    assert "".join(piece.text for piece in pieces if piece.kind != "missing") == answer
    assert "".join(piece.text for piece in pieces if piece.kind != "extra") == reference


@given(st.lists(st.floats(-1, 1), min_size=1))
def test_an_axis_holds_its_values(values: list[float]) -> None:
    scale = axis(values)
    assert all(0 <= scale.at(value) <= 100 for value in values)
    assert scale.at(min(values)) <= scale.at(max(values))
    ticks = scale.ticks()
    assert 2 <= len(ticks) <= 8
    assert all(scale.low - 1e-9 <= tick <= scale.high + 1e-9 for tick in ticks)


def test_what_was_seen_and_not_judged_is_told_beside_the_verdict(
    evidence: Evidence, recipe: Recipe, tmp_path: Path
) -> None:
    seen = {"guard": "habit", "why": "22 of 40 unrelated prompts are answered like training rows"}
    verdict = judged(evidence, recipe) | {"not_assessed": [seen, {"guard": "latency", "why": "shared"}]}
    page, told = written(tmp_path / "report.html", verdict, evidence), summary(verdict)
    assert page.index(seen["why"]) < page.index('id="arms"')
    assert told.index(seen["why"]) < told.index("| arm |")
    assert "shared" not in told


@pytest.mark.parametrize(("verdict", "told"), [("INCONCLUSIVE", True), ("BLOCK", False)])
def test_rows_that_would_settle_it_are_told_where_they_would(
    verdict: str, told: bool, evidence: Evidence, recipe: Recipe, tmp_path: Path
) -> None:
    """A BLOCK says that more rows would not change it."""
    open_ = [{"term": "format_adapter", "n_needed": 5387}]
    found = judged(evidence, recipe) | {"verdict": verdict, "next_evidence": open_}
    assert ("To settle it: " in written(tmp_path / "report.html", found, evidence)) == told
    assert ("To settle it: " in summary(found)) == told


def test_the_page_names_the_lock_and_the_ledger_it_rests_on(evidence: Evidence, recipe: Recipe, tmp_path: Path) -> None:
    bound = {"lock": {"digest": "cafe12", "written_at": "2026-01-02T03:04:05Z"}, "ledger": "beef34"}
    page = written(tmp_path / "report.html", judged(evidence, recipe) | bound, evidence)
    assert "<code>cafe12</code>, written 2026-01-02T03:04:05Z" in page
    assert "<code>beef34</code>, look 1" in page


def test_what_tuning_and_retrieval_do_together_has_bounds(
    make_evidence: MakeEvidence, recipe: Recipe, tmp_path: Path
) -> None:
    """By hand: ten rows that only both have right are 10 of 100 beyond the sum of each."""
    tuned, found = [n < 80 for n in range(100)], [60 <= n < 90 for n in range(100)]
    evidence = make_evidence(tuned, found)
    assert judged(evidence, recipe)["tuning_by_retrieval"] is None
    groups = evidence.arms["adapter"].groups
    evidence.arms["zero_shot"] = scored_arm("zero_shot", [60 <= n < 80 for n in range(100)], groups)
    evidence.arms["adapter_retrieval"] = scored_arm("adapter_retrieval", [True] * 100, groups)
    verdict = judged(evidence, recipe)
    told = verdict["tuning_by_retrieval"]
    assert told["means"] == pytest.approx({"plain": 0.2, "retrieval": 0.3, "tuned": 0.8, "both": 1.0})
    more = told["interaction"]
    assert more["estimate"] == pytest.approx(0.1)
    spread = float(stats.t.ppf(1 - verdict["alpha"], 99)) * 0.3 / 99**0.5
    assert (more["ci_low"], more["ci_high"]) == pytest.approx((0.1 - spread, 0.1 + spread), abs=1e-4)
    page = written(tmp_path / "report.html", verdict, evidence)
    assert f"10.0 points more than the sum of what each does alone (+{100 * more['ci_low']:.1f}" in page
