"""From judged rows to diagnosis.json: shares of causes, what interventions brought beside placebos, what to do."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.diagnose.causes import Case, Cause
from tunesmith.diagnose.rules import ALPHA, Found, prescribe
from tunesmith.diagnose.shares import share, weighted_mean
from tunesmith.errors import ExitCode, UserError
from tunesmith.files import sha256_json
from tunesmith.stats import Interval, mcnemar, paired_interval

SCHEMA = 2
SHOWN_TO_A_PERSON = 100
"""Rows that a person is asked to read: so many tell whether the rules and a person agree."""

EFFECTS = {"source": ("y10", "p10"), "aid": ("y01", "p01"), "both": ("y11", "p01"), "shots": ("shots", "p01")}
"""Each intervention with its placebo."""


def diagnose(
    cases: Sequence[Case], *, passages: bool, suspected: Mapping[str, str], about: Mapping[str, Any]
) -> dict[str, Any]:
    """What diagnosis.json holds.

    `cases` are all judged rows, those that are right among them; where interventions were tried, failing rows that none
    was tried on have no cause and count for the rate of failures alone. `suspected` names rows whose reference is.

    Raises:
        UserError: there is no row, or all rows are of one group.
    """
    if not cases:
        raise UserError("diagnose: no row has a reference; without one nothing says which rows fail")
    if len({case.group for case in cases}) < 2:
        raise UserError("diagnose: all rows ask the same, so nothing tells their spread; take more of the log")
    failing = [case for case in cases if case.cause is not None]
    fail_rate = _share([not case.right for case in cases], cases)
    causes = {cause: _share([case.cause is cause for case in failing], failing) for cause in Cause} if failing else {}
    needs = {cause: _share([case.need is cause for case in failing], failing) for cause in Cause} if failing else {}
    measured = any(case.cells for case in failing)
    closed = closure(failing, measured)
    found = Found(len(cases), fail_rate, needs, closed, measured, passages)
    prescription = prescribe(found)
    told: dict[str, Any] = {
        "schema": SCHEMA,
        "decided": prescription.decided,
        "exit_code": int(ExitCode.DONE if prescription.decided else ExitCode.INCONCLUSIVE),
        "prescription": prescription.as_dict(),
        "level": 1 - 2 * ALPHA,
        "rows": len(cases),
        "failing": sum(not case.right for case in cases),
        "examined": len(failing),
        "fail_rate": _numbers(fail_rate),
        "causes": {cause.value: _numbers(each) for cause, each in causes.items()},
        "needs": {cause.value: _numbers(each) for cause, each in needs.items()},
        "closed_without_training": _numbers(closed) if closed else None,
        "measured": measured,
        "labels": dict(Counter(label for case in failing for label in case.labels).most_common()),
        "first_labels": dict(Counter(case.labels[0] for case in failing if case.labels).most_common()),
        "suspected_labels": dict(Counter(suspected.values())),
        "suspected_rows": dict(sorted(suspected.items())),
        "audit": audit(failing),
        **about,
    }
    if measured:
        tried = [case for case in cases if case.cells]
        told["interventions"] = effects(tried)
        told["shapley"] = shapley(tried, cases)
    return told


def closure(failing: Sequence[Case], measured: bool) -> Interval | None:
    """Part of the failures of shape that close without training; where it was tried, beyond what the placebo closes."""
    shaped = [case for case in failing if case.need is Cause.SHAPE]
    if len({case.group for case in shaped}) < 2:
        return None
    if measured:
        aided = [float(case.cells["y01"]) for case in shaped]
        placebo = [float(case.cells["p01"]) for case in shaped]
        return paired_interval(aided, placebo, [case.group for case in shaped], ALPHA)
    return _share([bool(case.closed) for case in shaped], shaped)


def effects(tried: Sequence[Case]) -> dict[str, Any]:
    """Of failing rows, how many each intervention repairs beyond its placebo; of right ones, how many it breaks."""
    told: dict[str, Any] = {}
    for name, (cell, placebo) in EFFECTS.items():
        if cell == "y11" and not any("p10" in case.cells for case in tried):
            continue  # all had their facts: it is y01
        rows = [case for case in tried if cell in case.cells and placebo in case.cells]
        wrong, right = ([case for case in rows if case.right is state] for state in (False, True))
        if len({case.group for case in wrong}) < 2:
            continue
        ours, theirs = ([float(case.cells[key]) for case in wrong] for key in (cell, placebo))
        net = paired_interval(ours, theirs, [case.group for case in wrong], ALPHA)
        better = sum(a > b for a, b in zip(ours, theirs, strict=True))
        worse = sum(a < b for a, b in zip(ours, theirs, strict=True))
        told[name] = {
            "cell": cell,
            "placebo": placebo,
            "repaired": sum(ours) / len(ours),
            "repaired_by_placebo": sum(theirs) / len(theirs),
            "net": _numbers(net),
            "mcnemar_p": mcnemar(better, worse),
            "broken": _numbers(_share([not case.cells[cell] for case in right], right)) if right else None,
        }
    return told


def shapley(tried: Sequence[Case], cases: Sequence[Case]) -> dict[str, Any] | None:
    """The gain of source and aid together, split between them, over all rows that the tried ones stand for.

    Each part is half of what it brings alone and half of what it adds to the other. Failing and right rows were tried
    in other proportions than they occur, so each stands for as many as its kind has. Source: Shapley 1953, for two
    players.
    """
    if len({case.group for case in tried}) < 2:
        return None
    whole = {state: math.fsum(case.weight for case in cases if case.right is state) for state in (False, True)}
    drawn = {state: math.fsum(case.weight for case in tried if case.right is state) for state in (False, True)}
    weights = [case.weight * whole[case.right] / drawn[case.right] for case in tried]
    groups = [case.group for case in tried]

    def part(case: Case, ours: str, other: str) -> float:
        cells = case.cells
        return 0.5 * ((cells[ours] - cells["y00"]) + (cells["y11"] - cells[other]))

    def mean(values: list[float]) -> dict[str, float]:
        return _numbers(weighted_mean(values, weights, groups, ALPHA))

    return {
        "source": mean([part(case, "y10", "y01") for case in tried]),
        "aid": mean([part(case, "y01", "y10") for case in tried]),
        "right": {
            cell: math.fsum(w for case, w in zip(tried, weights, strict=True) if case.cells[cell]) / math.fsum(weights)
            for cell in ("y00", "y10", "y01", "y11")
        },
    }


def audit(failing: Sequence[Case]) -> dict[str, list[str]]:
    """Rows for a person to read, by cause: drawn by a hash of their ids, of each cause in its proportion."""
    drawn = sorted(failing, key=lambda case: sha256_json(["audit", case.id]))[:SHOWN_TO_A_PERSON]
    return {cause.value: sorted(case.id for case in drawn if case.cause is cause) for cause in Cause}


def _share(hits: Sequence[bool], cases: Sequence[Case]) -> Interval:
    return share(hits, [case.weight for case in cases], [case.group for case in cases], ALPHA)


def _numbers(found: Interval) -> dict[str, float]:
    return {"estimate": found.estimate, "low": found.low, "high": found.high, "n": found.n}
