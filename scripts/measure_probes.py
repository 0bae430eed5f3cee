"""Measure how much a trained adapter's answers to questions with options scatter about its base's, set by set.

    python scripts/measure_probes.py --recipe json-extract --adapter runs/<run>/adapter --rows 80

For each set: the base's mean share of the right option, how it changes, the standard deviation of the change by
question and the margin that so many questions certify at 0.05; the same for right-or-wrong accuracy, by discordance.
"""

import argparse
import math
from pathlib import Path
from statistics import fmean

from tunesmith import adapters
from tunesmith.evaluate.guards import SEED
from tunesmith.evaluate.probes import in_order, pinned, read_questions
from tunesmith.evaluate.probes_score import choose
from tunesmith.evaluate.stage import load_base
from tunesmith.gate.guards import certifiable
from tunesmith.line import Line

ALPHA = 0.05


def main() -> None:
    """Ask base and adapter the same questions, and print one line a set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="json-extract")
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=list(pinned()))
    parser.add_argument("--rows", type=int, default=80)
    options = parser.parse_args()
    arena = Line(options.recipe).arena
    adapters.verify(options.adapter, base=arena.base, prompt_digest=arena.prompt_digest)
    questions = [q for name in options.sets for q in in_order(read_questions(name), SEED)[: options.rows]]
    model = load_base(arena)
    base = choose(model, arena.renderer, questions, arena.settings, "base")
    ours = choose(adapters.attach(model, options.adapter), arena.renderer, questions, arena.settings, "adapter")
    print("set | n | base | change | deviation | certifies | accuracy | its change | discordance | certifies")
    for name in (*options.sets, "pooled"):
        places = [place for place, q in enumerate(questions) if name in (q.probe, "pooled")]
        shares = [ours[p].weights[ours[p].right] - base[p].weights[base[p].right] for p in places]
        right = [ours[p].correct - base[p].correct for p in places]
        mean = fmean(shares)
        deviation = math.sqrt(fmean([(each - mean) ** 2 for each in shares]))
        told = [
            fmean(base[p].weights[base[p].right] for p in places),
            mean,
            deviation,
            certifiable(shares, ALPHA),
            fmean(base[p].correct for p in places),
            fmean(right),
            fmean(each != 0 for each in right),
            certifiable(right, ALPHA),
        ]
        print(" | ".join([name, str(len(places)), *(f"{value:.3f}" for value in told)]))


if __name__ == "__main__":
    main()
