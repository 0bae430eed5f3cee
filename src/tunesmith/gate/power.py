"""What a recipe's gate can show on its rows: for each term its power, the rows it needs, and the smallest true effect.

Before training nobody knows the adapter, so some things are assumed, or measured by a pilot on dev: how often two arms
differ on a row, how alike rows of one group are. Right-or-wrong terms are computed exactly: every count of better and
worse rows that can come about, weighed by its chance, is put to the rule that the term applies. Rows in groups count as
the fewer independent ones that they are worth. `tunesmith gate selftest` holds these figures against the gate itself.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from scipy import special, stats

from tunesmith.design import design_effect, smallest_margin
from tunesmith.probes import general_documents
from tunesmith.recipe import Recipe
from tunesmith.stats import tango_parts, unseen

TERM_POWER = 0.95
"""The power that rows of a single term are counted for: all terms have to pass."""
PLANNED_GAINS = 2.0
"""The true gain that is planned for, in `gate.min_gain`: an adapter that gains no more than that is asked for is
measured to gain less half the time, on however many rows."""
RIGHT_OR_WRONG = {"exact_match", "exact_match_lenient", "json_strict", "json_lenient", "schema_valid"}
"""Metrics that are 0 or 1 for a row; others are taken for means of parts."""
DRAWS = 200_000
MOST_ROWS = 100_000


@dataclass(frozen=True)
class Assumed:
    """What is taken to be true of arms that nobody has seen yet."""

    gain: float
    """True gain of the adapter over the incumbent that is planned for."""
    discordance: float
    """Mean squared difference of adapter and incumbent on a row; of right and wrong, how often they differ."""
    right_or_wrong: bool = True
    icc: float = 0.1
    """How alike the differences of rows of one group are."""
    incumbent: float = 0.45
    """The incumbent's mean score."""
    trivial: float = 0.2
    """The mean score of what is said without a model."""
    merged_discordance: float = 0.002
    """The same of merged and adapter: half a row of the 249 of docs/LOG.md, of which none differed."""
    general_sd: float = 0.11
    """Standard deviation over documents of the rise in loss on general text, in nats per token; docs/LOG.md."""
    general_documents: int = 40
    probe_sd: float = 0.16
    """Standard deviation over questions of the change in what the right option gets; docs/GUARDS.md."""
    measured: tuple[str, ...] = ()
    """Which of these a pilot measured."""


def assume(recipe: Recipe, pilot: Mapping[str, Any] | None = None) -> Assumed:
    """What a recipe's plan takes to be true; `pilot` says what was measured on dev: `discordance`, `icc`, `noise`.

    `noise` is how much an arm differs from itself in batches of another size: two forms of one adapter differ as much.
    """
    binary = recipe.score.primary in RIGHT_OR_WRONG
    gain = min(0.98, PLANNED_GAINS * recipe.gate.min_gain)
    usual = Assumed(
        gain=gain,
        discordance=0.2 if binary else 0.05,
        right_or_wrong=binary,
        # Where both gains and losses have the most room.
        incumbent=(1 - gain) / 2,
        general_documents=len(general_documents()),
    )
    pilot = {key: value for key, value in (pilot or {}).items() if value is not None}
    known = {name: float(pilot[key]) for name, key in _MEASURED.items() if key in pilot}
    if "merged_discordance" in known:
        # Where no row differed, half a row.
        known["merged_discordance"] = max(known["merged_discordance"], 0.5 / pilot["rows"])
    found = replace(usual, **known, measured=tuple(known))  # type: ignore[arg-type]
    # Who gains so much differs on that share of the rows at least.
    return replace(found, discordance=max(found.discordance, gain if binary else gain**2))


_MEASURED = {"discordance": "discordance", "icc": "icc", "merged_discordance": "noise"}


@dataclass(frozen=True)
class TermPlan:
    """What one term can be expected to show."""

    name: str
    kind: Literal["superiority", "non_inferiority"]
    effect: float
    """The true value that is planned for: `PLANNED_GAINS` of min_gain, or no harm at all."""
    margin: float
    """What the term's bound must clear."""
    n: int
    """Rows, or documents."""
    power: float
    n_needed: int | None
    """Rows in groups of these sizes of which the term has `TERM_POWER`; None if no number of rows gives it."""
    mde: float | None
    """Smallest true gain, or smallest margin, that n rows show with that power; None if there is none."""
    tied_to: str | None = None
    """The term that looks at nearly the same numbers."""
    tie: float = 0.0
    """The correlation with it."""


def plan_terms(recipe: Recipe, sizes: Sequence[int], assumed: Assumed, alpha: float) -> list[TermPlan]:
    """The terms whose power depends on numbers; `sizes` are those of the gate rows' groups, alpha is the look's."""
    gate, n = recipe.gate, sum(sizes)
    effect = design_effect(sizes, assumed.icc)
    grouped = sum(size * size for size in sizes) / n
    alike = assumed.merged_discordance

    def chance(rows: int, difference: float, above: float, at_least: float, square: float) -> float:
        worth, freedom = rows / effect, rows / grouped - 1
        if assumed.right_or_wrong:
            return chance_to_show(difference, above, at_least, square, worth, freedom, alpha, each=effect)
        return chance_by_t(difference, above, at_least, square, worth, freedom, alpha)

    def gains(rows: int, gain: float) -> float:
        square = max(assumed.discordance, gain if assumed.right_or_wrong else gain**2)
        return chance(rows, gain, 0.0, gate.min_gain, square)

    def beats(rows: int, gain: float) -> float:
        # As often as two arms differ that have nothing to do with each other.
        right, said = min(1.0, assumed.trivial + gain), assumed.trivial
        square = right * (1 - said) + said * (1 - right)
        return chance(rows, right - said, 0.0, -math.inf, square if assumed.right_or_wrong else square / 4)

    def merges(rows: int, margin: float) -> float:
        power = chance(rows, 0.0, -margin, -math.inf, alike)
        if assumed.right_or_wrong or unseen(max(2, round(rows / grouped)), alpha) < margin:
            return power
        # Where no row differs the bound is what so many groups leave unseen; so many rows differ at least.
        return power * (1 - math.exp(-rows * alike))

    def forgets(documents: int, margin: float) -> float:
        square = assumed.general_sd**2
        return chance_by_t(0.0, -margin, -math.inf, square, documents, documents - 1, alpha)

    documents = assumed.general_documents
    over_trivial = assumed.incumbent + assumed.gain - assumed.trivial
    gain = TermPlan(
        "gain_adapter",
        "superiority",
        assumed.gain,
        gate.min_gain,
        n,
        gains(n, assumed.gain),
        _fewest(lambda rows: gains(rows, assumed.gain)) if assumed.gain > gate.min_gain else None,
        _smallest(lambda gain: gains(n, gain)),
    )
    trivial = TermPlan(
        "beats_trivial",
        "superiority",
        over_trivial,
        0.0,
        n,
        beats(n, over_trivial),
        _fewest(lambda rows: beats(rows, over_trivial)) if over_trivial > 0 else None,
        _smallest(lambda gain: beats(n, gain)),
    )
    merged = TermPlan(
        "merged_no_worse",
        "non_inferiority",
        0.0,
        -gate.merged_margin,
        n,
        merges(n, gate.merged_margin),
        _fewest(lambda rows: merges(rows, gate.merged_margin)),
        _smallest(lambda margin: merges(n, margin)),
    )
    general = TermPlan(
        "general_nll_adapter",
        "non_inferiority",
        0.0,
        gate.general_nll_margin,
        documents,
        forgets(documents, gate.general_nll_margin),
        _fewest(lambda rows: forgets(rows, gate.general_nll_margin)),
        smallest_margin(documents, assumed.general_sd**2, alpha, TERM_POWER),
    )
    tie = math.sqrt(assumed.discordance / (assumed.discordance + alike))
    return [
        gain,
        # Their differences from the incumbent are the same but for the rows that merging flips.
        replace(gain, name="gain_merged", tied_to=gain.name, tie=tie),
        trivial,
        merged,
        general,
        replace(general, name="general_nll_merged", tied_to=general.name, tie=0.99),
        *_probes(recipe, assumed, alpha),
    ]


def _probes(recipe: Recipe, assumed: Assumed, alpha: float) -> list[TermPlan]:
    """The terms over questions with options, those of all sets and those of each together, for both models.

    Every set is taken to be one on which this base could show harm.
    """
    section, sets = recipe.guards.probes, len(recipe.guards.probes.names)
    if not sets:
        return []
    means = np.random.default_rng(0).standard_normal((DRAWS // 4, sets)) * assumed.probe_sd

    def reach(questions: int) -> float:
        return float(special.stdtrit(questions - 1, 1 - alpha)) * assumed.probe_sd / math.sqrt(questions)

    def keeps(rows: int, margin: float) -> float:
        reach = [
            float(special.stdtrit(n - 1, 1 - alpha)) * assumed.probe_sd / math.sqrt(n) for n in (rows, rows * sets)
        ]
        drawn = means / math.sqrt(rows)
        each = (drawn - reach[0] > -section.each_margin).all(axis=1)
        return float((each & (drawn.mean(axis=1) - reach[1] > -margin)).mean())

    rows = _fewest(lambda rows: keeps(rows, section.pooled_margin))
    probes = TermPlan(
        "probes_adapter",
        "non_inferiority",
        0.0,
        -section.pooled_margin,
        section.rows * sets,
        keeps(section.rows, section.pooled_margin),
        rows and rows * sets,
        _smallest(lambda margin: keeps(section.rows, margin)),
    )
    return [probes, replace(probes, name="probes_merged", tied_to=probes.name, tie=0.99)]


def _fewest(power: Callable[[int], float]) -> int | None:
    """Rows from which a term has `TERM_POWER`, to one in a hundred; None beyond MOST_ROWS."""
    high = 4
    while power(high) < TERM_POWER:
        high *= 2
        if high > MOST_ROWS:
            return None
    low = high // 2
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= TERM_POWER else (middle, high)
    return high


def _smallest(power: Callable[[float], float]) -> float | None:
    """The smallest effect or margin of which a term has `TERM_POWER`, to three places; None if even 0.999 is not."""
    low, high = 0.0, 0.999
    if power(high) < TERM_POWER:
        return None
    while high - low > 0.0005:
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle) >= TERM_POWER else (middle, high)
    return high


def power_of_all(plans: Sequence[TermPlan], *, draws: int = DRAWS, seed: int = 0) -> float:
    """How likely all terms pass: simulated with normal terms of these powers and ties."""
    ties = np.eye(len(plans))
    places = {plan.name: place for place, plan in enumerate(plans)}
    for place, plan in enumerate(plans):
        if plan.tied_to is not None:
            ties[place, places[plan.tied_to]] = ties[places[plan.tied_to], place] = plan.tie
    return all_pass([plan.power for plan in plans], ties, draws=draws, seed=seed)


def all_pass(powers: Sequence[float], ties: Any, *, draws: int = DRAWS, seed: int = 0) -> float:
    """The chance that terms of these powers pass together; `ties` are the correlations of what they measure.

    A Gaussian copula: term i passes where the i-th of some correlated standard normals lies below the quantile of its
    power.
    """
    lines = special.ndtri(np.asarray(powers, dtype=float))
    drawn = np.random.default_rng(seed).multivariate_normal(np.zeros(len(lines)), np.asarray(ties), size=draws)
    return float((drawn < lines).all(axis=1).mean())


def chance_to_show(
    difference: float,
    above: float,
    at_least: float,
    discordance: float,
    n: float,
    freedom: float,
    alpha: float,
    *,
    each: float = 1.0,
) -> float:
    """The chance that n independent pairs show a right-or-wrong difference to be above a threshold.

    Tango's bound and the t bound must both lie above it, as `stats.paired_interval` has it, and the estimate must be
    `at_least` so much. Rows in groups are as many independent pairs as they are worth, `each` of which stands for so
    many: Tango's bound counts the rows. Exact: the sum over all counts of better and worse of their trinomial chances.
    """
    rows = max(2, round(n))
    chances = ((discordance + difference) / 2, (discordance - difference) / 2)
    better, worse = (np.arange(*_likely(chance, rows), dtype=float) for chance in chances)
    b, c = (grid.ravel() for grid in np.meshgrid(better, worse))
    kept = b + c <= rows
    b, c = b[kept], c[kept]
    rest = 1 - sum(chances)
    log = (
        special.gammaln(rows + 1) - special.gammaln(b + 1) - special.gammaln(c + 1) - special.gammaln(rows - b - c + 1)
    )
    log += special.xlogy(b, chances[0]) + special.xlogy(c, chances[1]) + special.xlogy(rows - b - c, rest)
    estimate = (b - c) / rows
    distance, deviation = tango_parts(b * each, c * each, rows * each, above, np.sqrt)
    error = np.sqrt(((b + c) / rows - estimate**2).clip(0) / (rows - 1))
    shown = (distance > -float(special.ndtri(alpha)) * deviation) & (
        estimate - float(special.stdtrit(freedom, 1 - alpha)) * error > above
    )
    return min(1.0, float(np.exp(log)[shown & (estimate >= at_least - 1e-12)].sum()))


def _likely(chance: float, n: int) -> tuple[int, int]:
    """Counts of so frequent an event in n rows, but for one in some billions."""
    reach = 7 * math.sqrt(n * chance * (1 - chance)) + 10
    return max(0, math.floor(n * chance - reach)), min(n, math.ceil(n * chance + reach)) + 1


def chance_by_t(
    difference: float, above: float, at_least: float, square: float, n: float, freedom: float, alpha: float
) -> float:
    """The same for means, whose t bound must lie above the threshold: by the noncentral t distribution."""
    error = math.sqrt(max(square - difference**2, 1e-12) / n)
    reach = float(special.stdtrit(freedom, 1 - alpha))
    shown = float(stats.nct.sf(reach, freedom, (difference - above) / error))
    # Both conditions hold from some estimate on, so the rarer one decides.
    return shown if at_least == -math.inf else min(shown, float(special.ndtr((difference - at_least) / error)))
