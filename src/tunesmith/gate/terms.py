"""The conditions of the gate, each a statement with its numbers.

Integrity terms say that the comparison is one: same rows, same prompts, same settings, the adapter at work. The
superiority term says that the adapter beats the incumbent by more than noise and by enough. Non-inferiority terms say
that nothing guarded got worse; "no significant drop" is not such a statement, a bound within a margin is.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tunesmith.gate.evidence import Arm, Evidence
from tunesmith.gate.slices import slices
from tunesmith.recipe import Recipe
from tunesmith.stats import Interval, clustered_t, non_inferior, paired_interval, rows_needed

Kind = Literal["superiority", "non_inferiority", "integrity", "parity"]
Outcome = Literal["pass", "fail", "open"]


@dataclass(frozen=True)
class Term:
    """One condition.

    `fail` is shown to be unmet; `open` is neither shown to be met nor to be unmet.
    """

    name: str
    kind: Kind
    outcome: Outcome
    says: str
    estimate: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    margin: float | None = None
    n: int | None = None
    clusters: int | None = None
    n_needed: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """As verdict.json holds it."""
        values = asdict(self)
        values["pass"] = values.pop("outcome") == "pass"
        values["undecided"] = self.outcome == "open"
        return values


def fact(name: str, holds: bool, says: str) -> Term:
    """An integrity term: it holds, or there is no verdict."""
    return Term(name, "integrity", "pass" if holds else "fail", says)


def bounded(
    name: str, kind: Kind, outcome: Outcome, says: str, interval: Interval, *, margin: float, n_needed: int | None
) -> Term:
    """A term over a quantity: its estimate and bounds, and the margin that they are held against."""
    return Term(
        name=name,
        kind=kind,
        outcome=outcome,
        says=says,
        estimate=interval.estimate,
        ci_low=interval.low,
        ci_high=interval.high,
        margin=margin,
        n=interval.n,
        clusters=interval.clusters,
        n_needed=n_needed,
    )


def all_terms(evidence: Evidence, recipe: Recipe, alpha: float, bound: Sequence[Term] = ()) -> list[Term]:
    """Every term of the gate at the level of this look, integrity first.

    `bound` are the integrity terms of lock and ledger. After a fault of integrity nothing else is weighed.
    """
    terms = [*bound, *integrity(evidence, recipe)]
    if any(term.outcome == "fail" for term in terms):
        return terms
    if evidence.again:
        terms.append(same_arm_ships_nothing(evidence, recipe, alpha))
        if terms[-1].outcome == "fail":
            return terms
    adapter, merged = evidence.arms["adapter"], evidence.arms["merged"]
    terms += [gain(arm, evidence.incumbent, recipe, alpha) for arm in (adapter, merged)]
    if evidence.trivial:
        terms.append(beats_trivial((adapter, merged), evidence.trivial, recipe, alpha))
    terms.append(no_worse("merged_no_worse", merged, adapter, recipe, recipe.gate.merged_margin, alpha))
    if start := evidence.arms.get("started_from"):
        margin = recipe.gate.started_from_margin
        for arm in (adapter, merged):
            terms.append(no_worse(f"{arm.name}_no_worse_than_start", arm, start, recipe, margin, alpha))
    terms += [general_loss(evidence.guards, arm, recipe, alpha) for arm in ("adapter", "merged")]
    # Here, for it takes its words from this module.
    from tunesmith.gate.guards import arm_guard_terms, guard_terms

    terms += guard_terms(evidence.guards, recipe, alpha)
    terms += arm_guard_terms(evidence, recipe, alpha)
    if recipe.gate.slices:
        terms.append(unharmed(evidence, recipe, alpha))
    return terms


def integrity(evidence: Evidence, recipe: Recipe) -> list[Term]:
    """Facts without which scores cannot be compared."""
    adapter = evidence.arms["adapter"]
    arms = list(evidence.arms.values())
    every = [*arms, *evidence.trivial.values(), *evidence.again]
    facts: list[tuple[str, bool, str]] = [
        (
            "same_rows",
            all(arm.ids == adapter.ids and len(set(arm.ids)) == len(arm.ids) for arm in every),
            "every arm answered every gate row once",
        ),
        (
            "same_split",
            len({arm.about["split_digest"] for arm in every}) == 1,
            "every arm answered the same bytes of the gate split",
        ),
        (
            "same_prompt",
            len({arm.about["prompt_digest"] for arm in arms}) == 1,
            "one prompt function rendered all arms",
        ),
        (
            "same_settings",
            all(arm.about[key] == adapter.about[key] for arm in arms for key in ("settings", "computed_on")),
            "one generation config on one device and dtype made all answers",
        ),
        (
            "same_scorer",
            len({arm.scorer.get("digest") for arm in arms}) == 1 and adapter.scorer.get("kind") == recipe.score.kind,
            "one scorer, by its source, settings and schema, scored all arms",
        ),
        (
            "scorer_self_test",
            all(arm.scorer.get("self_test") == [] for arm in arms),
            f"the scorer gives gold 1, nothing 0 and another row's answer less (found: {_faults(arms)})",
        ),
        (
            "enough_rows",
            len(adapter.rows) >= recipe.gate.min_rows and len(set(adapter.groups)) >= 2,
            f"at least {recipe.gate.min_rows} gate rows",
        ),
        (
            "no_leaks",
            not any(count for kind, count in evidence.leaks.items() if kind != "passage"),
            f"no gate row, or one near it, stands in train (found: {_counted(evidence.leaks)})",
        ),
        (
            "adapter_at_work",
            evidence.guards["adapter_changes_logits"] > 0,
            "the adapter changes what the base computes",
        ),
        (
            "baseline_replays",
            evidence.guards["replayed"]["same"] and evidence.guards["replayed"]["rows"] > 0,
            f"the base repeats its {evidence.guards['replayed']['rows']} stored answers beside the adapter",
        ),
        (
            "general_loss_is_a_number",
            all(loss is not None for losses in evidence.guards["general_nll"].values() for loss in losses),
            "base, adapter and merged have a finite loss on every general document",
        ),
    ]
    if start := evidence.arms.get("started_from"):
        began = start.about["weights"].get("adapter")
        facts.append(
            (
                "started_from_is_where_it_began",
                began == evidence.after,
                "the arm started_from answered with the adapter that training began from",
            )
        )
    return [fact(*each) for each in facts]


def same_arm_ships_nothing(evidence: Evidence, recipe: Recipe, alpha: float) -> Term:
    """The incumbent, answering again in batches of another size, does not pass for a better one twice in a row."""
    gains = [gain(again, evidence.incumbent, recipe, alpha) for again in evidence.again]
    return fact(
        "same_arm_ships_nothing",
        len(gains) < 2 or not all(term.outcome == "pass" for term in gains),
        "the incumbent against itself, in batches of another size, does not ship twice in a row "
        f"(noise floor {noise(evidence, recipe)['discordance']:.3f})",
    )


def noise(evidence: Evidence, recipe: Recipe) -> dict[str, Any]:
    """What the same arm's two answers to the same row differ by: the noise floor, as verdict.json holds it."""
    metric, incumbent = recipe.score.primary, evidence.incumbent
    last = evidence.again[-1] if evidence.again else None
    if last is None or not last.rows:
        return {}
    squares = [(a - b) ** 2 for a, b in zip(last.scores(metric), incumbent.scores(metric), strict=False)]
    texts = [a["prediction"] != b["prediction"] for a, b in zip(last.rows, incumbent.rows, strict=False)]
    return {
        "arm": incumbent.name,
        "repeats": len(evidence.again),
        "rows": len(squares),
        "discordance": sum(squares) / len(squares),
        "answers_that_differ": sum(texts) / len(texts),
    }


def _faults(arms: Sequence[Arm]) -> str:
    found = {fault: None for arm in arms for fault in arm.scorer.get("self_test", ["no self-test"])}
    return "; ".join(found) or "none wrong"


def _counted(leaks: Mapping[str, int]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in sorted(leaks.items()) if count) or "none"


def gain(arm: Arm, incumbent: Arm, recipe: Recipe, alpha: float) -> Term:
    """What ships beats the incumbent: lower bound above 0, and a gain of at least `gate.min_gain`."""
    return paired_gain(f"gain_{arm.name}", arm, incumbent, recipe.score.primary, recipe.gate.min_gain, alpha)


def paired_gain(name: str, arm: Arm, incumbent: Arm, metric: str, wanted: float, alpha: float) -> Term:
    """An arm beats another on the same rows: lower bound above 0, and a gain of at least `wanted`."""
    interval = paired_interval(arm.scores(metric), incumbent.scores(metric), arm.groups, alpha)
    if interval.low > 0 and interval.estimate >= wanted:
        outcome: Outcome = "pass"
    else:
        # The upper bound may be at `wanted` at least, or at 0 where nothing is wanted but more than noise.
        outcome = "fail" if interval.high < wanted or interval.high <= 0 else "open"
    # If the estimate stays, more rows settle it: for good above 0 where it is enough, below `wanted` where it is not.
    enough = interval.estimate >= wanted
    needed = rows_needed(interval, 0.0 if enough else wanted)
    return bounded(
        name,
        "superiority",
        outcome,
        f"{metric} of {arm.name} over {incumbent.name}: above 0 by more than noise, and at least {wanted:+.3f}",
        interval,
        margin=wanted,
        n_needed=needed if outcome == "open" else None,
    )


def beats_trivial(arms: Iterable[Arm], trivial: Mapping[str, Arm], recipe: Recipe, alpha: float) -> Term:
    """What ships is better than anything said without a model: every lower bound is above 0; the lowest is told.

    Tested against each trivial arm at the same level, so which of them is best need not be chosen.
    """
    metric = recipe.score.primary
    found = []
    for arm in arms:
        for other in trivial.values():
            interval = paired_interval(arm.scores(metric), other.scores(metric), arm.groups, alpha)
            found.append((interval.low, f"{arm.name} over {other.name}", interval))
    _, pair, interval = min(found, key=lambda each: each[:2])
    outcome: Outcome = "pass" if interval.low > 0 else "open"
    if any(each.high < 0 for _, _, each in found):
        _, pair, interval = min(found, key=lambda each: (each[2].high, each[1]))
        outcome = "fail"
    return bounded(
        "beats_trivial",
        "superiority",
        outcome,
        f"{metric} of {pair}, which needs no model: above 0 by more than noise",
        interval,
        margin=0.0,
        n_needed=rows_needed(interval, 0.0) if outcome == "open" else None,
    )


def no_worse(name: str, arm: Arm, other: Arm, recipe: Recipe, margin: float, alpha: float) -> Term:
    """One arm is not worse than another by a margin."""
    metric = recipe.score.primary
    interval = paired_interval(arm.scores(metric), other.scores(metric), arm.groups, alpha)
    outcome: Outcome = "pass" if non_inferior(interval, margin) else "fail" if interval.high < -margin else "open"
    return bounded(
        name,
        "non_inferiority",
        outcome,
        f"{metric} of {arm.name} against {other.name}: not worse by {margin:.3f}",
        interval,
        margin=-margin,
        n_needed=rows_needed(interval, -margin) if outcome == "open" else None,
    )


def general_loss(guards: dict[str, Any], arm: str, recipe: Recipe, alpha: float) -> Term:
    """Loss on general text rose by less than `gate.general_nll_margin` nats per token, over documents."""
    margin = recipe.gate.general_nll_margin
    nll = guards["general_nll"]
    rise = [after - before for after, before in zip(nll[arm], nll["base"], strict=True)]
    interval = clustered_t(rise, [str(i) for i in range(len(rise))], alpha)
    outcome: Outcome = "pass" if interval.high < margin else "fail" if interval.low > margin else "open"
    return bounded(
        f"general_nll_{arm}",
        "non_inferiority",
        outcome,
        f"loss of {arm} on general text, nats per token above the base: less than {margin:.3f}",
        interval,
        margin=margin,
        # The documents are the package's: there are no more of them to ask for.
        n_needed=None,
    )


def unharmed(evidence: Evidence, recipe: Recipe, alpha: float) -> Term:
    """No slice that the recipe names is shown to be harmed; that none is shown to be is no proof that none is."""
    found = slices(evidence, recipe, alpha)
    harmed = [f"{one['by']} = {one['value']}: {one['estimate']:+.3f}, n {one['n']}" for one in found if one["harmed"]]
    assessed = sum(one["assessed"] for one in found)
    return Term(
        "no_slice_harmed",
        "non_inferiority",
        "fail" if harmed else "pass",
        f"none of {assessed} slices is shown to be harmed, after Holm's correction"
        + (f" (harmed: {'; '.join(harmed)})" if harmed else ""),
    )
