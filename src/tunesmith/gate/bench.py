"""Where made-up pipelines are judged, many of one kind at a time, by the code that judges real ones."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
from scipy import special

from tunesmith.gate.evidence import Evidence
from tunesmith.gate.made_up import Crowd, Rows, Shape, beside
from tunesmith.gate.power import Assumed
from tunesmith.gate.terms import all_terms
from tunesmith.gate.verdict import decide, judge
from tunesmith.recipe import Recipe
from tunesmith.stats import spent

CHECKPOINTS = 20
AT_ONCE = 250


class Bench:
    """Where made-up pipelines are judged."""

    def __init__(self, recipe: Recipe, shape: Shape, assumed: Assumed, alpha: float, seed: int) -> None:
        self.recipe, self.shape, self.assumed, self.alpha, self.seed = recipe, shape, assumed, alpha, seed
        self.rows = Rows(recipe, shape)

    def crowd(self, rng: np.random.Generator, pipelines: int, icc: float | None = None) -> Crowd:
        """Gate rows as the recipe has them."""
        alike = self.assumed.icc if icc is None else icc
        return Crowd(rng, self.shape.sizes, alike, pipelines, right_or_wrong=self.assumed.right_or_wrong)

    def verdict(self, evidence: Evidence, alpha: float, *, compare: bool = False) -> str:
        """The verdict by the gate's terms; `compare` asks the whole judge too, at the level that it judges by."""
        if compare:
            whole = judge(evidence, self.recipe, {"look": 1})
            terms = all_terms(evidence, self.recipe, whole.get("alpha", self.recipe.gate.alpha))
            assert whole["verdict"] == decide(terms), "the judge differs from its terms"
        return decide(all_terms(evidence, self.recipe, alpha))

    def judged(
        self,
        place: int,
        pipelines: int,
        *,
        gain: float = 0.0,
        icc: float | None = None,
        merged: tuple[float, float] | None = None,
        rise: float = 0.0,
        fall: float = 0.0,
        discordance: float | None = None,
        replay: str | None = None,
        incumbent: float | None = None,
        compared: int = 0,
    ) -> Counter[str]:
        """Verdicts on pipelines of which this is true.

        `gain` of the adapter over the incumbent; `merged`: its true difference from the adapter and how often they
        differ; `rise` of the loss on general text, `fall` of what the right options of questions get. `replay` says
        whose answers come in place of the adapter's: `incumbent`, `majority`; or, for `base`, in place of the merged
        model's. The first `compared` pipelines are put before the whole judge too.
        """
        found: Counter[str] = Counter()
        q = self.assumed.discordance if discordance is None else discordance
        for rng, count, done in self._chunks(place, pipelines):
            crowd = self.crowd(rng, count, icc)
            mean = self.assumed.incumbent if incumbent is None else incumbent
            theirs = crowd.arm(mean)
            said = crowd.arm(self.assumed.trivial)
            ours = crowd.other(theirs, mean, gain, q)
            if replay in {"incumbent", "majority"}:
                ours = theirs if replay == "incumbent" else said
            drop, flips = merged or (0.0, self.assumed.merged_discordance)
            after = crowd.other(ours, mean + gain, drop, flips) if replay in {None, "base"} else ours
            if replay == "base":
                after = crowd.arm(self.assumed.trivial)
            around = beside(
                rng, self.recipe, self.assumed, count, rise=rise, fall=fall, merged_is_base=replay == "base"
            )
            a, m, b, t = (crowd.rows(arm) for arm in (ours, after, theirs, said))
            for i in range(count):
                evidence = self.rows.evidence(a[i], m[i], b[i], t[i], around.guards(i))
                found[self.verdict(evidence, self.alpha, compare=done + i < compared)] += 1
        return found

    def best_of_many(self, place: int, pipelines: int) -> Counter[str]:
        """Verdicts on the one of many checkpoints, none better than the incumbent, that is best on dev."""
        found: Counter[str] = Counter()
        mean, q = self.assumed.incumbent, self.assumed.discordance
        binary = self.assumed.right_or_wrong
        for rng, count, _ in self._chunks(place, pipelines):
            dev = Crowd(rng, self.shape.dev_sizes, self.assumed.icc, count, right_or_wrong=binary)
            on_dev = dev.arm(mean)
            means = [dev.rows(dev.other(on_dev, mean, 0.0, q)).mean(axis=1) for _ in range(CHECKPOINTS)]
            best = np.argmax(means, axis=0)
            crowd = self.crowd(rng, count)
            theirs, said = crowd.arm(mean), crowd.rows(crowd.arm(self.assumed.trivial))
            gate = np.stack([crowd.rows(crowd.other(theirs, mean, 0.0, q)) for _ in range(CHECKPOINTS)])
            base, around = crowd.rows(theirs), beside(rng, self.recipe, self.assumed, count)
            for i in range(count):
                ours = gate[best[i], i]
                evidence = self.rows.evidence(ours, ours, base[i], said[i], around.guards(i))
                found[self.verdict(evidence, self.alpha)] += 1
        return found

    def many_looks(self, place: int, pipelines: int) -> Counter[str]:
        """Verdicts where as many checkpoints are tried on one gate split, each look at its share of alpha."""
        found: Counter[str] = Counter()
        mean = self.assumed.incumbent
        for rng, count, _ in self._chunks(place, pipelines):
            crowd = self.crowd(rng, count)
            theirs, said = crowd.arm(mean), crowd.rows(crowd.arm(self.assumed.trivial))
            base = crowd.rows(theirs)
            tried = [crowd.rows(crowd.other(theirs, mean, 0.0, self.assumed.discordance)) for _ in range(CHECKPOINTS)]
            around = beside(rng, self.recipe, self.assumed, count)
            for i in range(count):
                best, guards = "INCONCLUSIVE", around.guards(i)
                for look, ours in enumerate(tried, start=1):
                    evidence = self.rows.evidence(ours[i], ours[i], base[i], said[i], guards)
                    if self.verdict(evidence, spent(self.recipe.gate.alpha, look)) == "SHIP":
                        best = "SHIP"
                        break
                found[best] += 1
        return found

    def other_rules(self, place: int, pipelines: int) -> dict[str, float]:
        """How often rules that people use pass adapters no better than the incumbent, on rows like the recipe's."""
        mean, q = self.assumed.incumbent, self.assumed.discordance
        passed: Counter[str] = Counter()
        for rng, count, _ in self._chunks(place, pipelines):
            crowd = self.crowd(rng, count)
            theirs = crowd.arm(mean)
            base = crowd.rows(theirs)
            tried = np.stack([crowd.rows(crowd.other(theirs, mean, 0.0, q)) for _ in range(CHECKPOINTS)])
            gains = tried.mean(axis=2) - base.mean(axis=1)
            best = np.argmax(gains, axis=0)
            first, picked = gains[0], gains[best, np.arange(count)]
            differences = tried[best, np.arange(count)] - base
            better, worse = (differences > 0).sum(axis=1), (differences < 0).sum(axis=1)
            tail = special.bdtr(worse, better + worse, 0.5)
            # Gains that are the same but for rounding are the same.
            for name, wins in (
                ("score > base", first > 1e-9),
                ("score > base, best of 20 on the same rows", picked > 1e-9),
                ("score >= base + 2 points", first >= 0.02 - 1e-9),
                ("score >= base + 2 points, best of 20 on the same rows", picked >= 0.02 - 1e-9),
                ("McNemar one-sided p < .05, best of 20 on the same rows", tail < 0.05),
            ):
                passed[name] += int(wins.sum())
        return {name: count / pipelines for name, count in passed.items()}

    def _chunks(self, place: int, pipelines: int) -> Iterator[tuple[np.random.Generator, int, int]]:
        for done in range(0, pipelines, AT_ONCE):
            yield np.random.default_rng([self.seed, place, done]), min(AT_ONCE, pipelines - done), done
