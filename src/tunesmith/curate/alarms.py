"""Smoke alarms for poisoned data: rare words that decide an answer which the rest of their rows does not explain.

A backdoor is taught by a trigger, a rare run of words, that stands with one completion whatever else its rows say. So:
for every run of one to three words that a few rows hold and that always stands with one completion, ask a naive Bayes
classifier what the other words of those rows speak for. A word that belongs to the answer is not alone; a trigger is.
An alarm is a reason to look, and silence is no proof. The kind of attack: Kurita, Michel and Neubig 2020,
arXiv:2004.06660.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

LONGEST = 3
FEWEST = 5
"""Rows that hold a run of words before it can be a trigger."""
MOST = 0.02
"""Share of the rows above which a run of words is not rare, but for small data sets."""
CHANCE = 1e-3
"""Probability of so many equal completions by chance, over all runs, below which it is no chance."""
UNEXPLAINED = 0.8
"""Share of a run's rows whose other words speak against the completion."""
SHOWN = 20


@dataclass(frozen=True)
class Alarm:
    """A run of words that decides an answer."""

    words: str
    completion: str
    rows: int
    unexplained: float
    """Share of its rows whose other words speak for something else."""


def triggers(rows: Sequence[tuple[str, str]]) -> list[Alarm]:
    """The runs of words that look like triggers, most frequent first; `rows` are (prompt, completion)."""
    holders = _runs([prompt for prompt, _ in rows])
    answers = [completion for _, completion in rows]
    share = Counter(answers)
    suspects = []
    most = max(4 * FEWEST, MOST * len(rows))
    for run, held in holders.items():
        if not FEWEST <= len(held) <= most or len({answers[i] for i in held}) > 1:
            continue
        chance = (share[answers[held[0]]] / len(rows)) ** len(held)
        if chance * len(holders) < CHANCE:
            suspects.append((run, held))
    if not suspects:
        return []
    words = [set(_words(prompt)) for prompt, _ in rows]
    by_answer: dict[str, Counter[str]] = defaultdict(Counter)
    for held_words, answer in zip(words, answers, strict=True):
        by_answer[answer].update(held_words)
    everywhere: Counter[str] = sum(by_answer.values(), Counter())
    found = []
    for run, held in suspects:
        answer = answers[held[0]]
        clues = Clues(words, held, set(run.split()), by_answer[answer], everywhere, share[answer])
        against = sum(clues.speak_against(i) for i in held) / len(held)
        if against >= UNEXPLAINED:
            found.append((frozenset(held), Alarm(run, answer, len(held), against)))
    return _one_of_each(found)[:SHOWN]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _runs(prompts: Iterable[str]) -> dict[str, list[int]]:
    """Runs of one to three words, each with the rows that hold it; those that too few hold are left out early."""
    counted: Counter[str] = Counter()
    texts = [_words(prompt) for prompt in prompts]
    for text in texts:
        counted.update(_ngrams(text))
    holders: dict[str, list[int]] = defaultdict(list)
    for i, text in enumerate(texts):
        for run in _ngrams(text):
            if counted[run] >= FEWEST:
                holders[run].append(i)
    return holders


def _ngrams(words: Sequence[str]) -> set[str]:
    return {" ".join(words[i : i + n]) for n in range(1, LONGEST + 1) for i in range(len(words) - n + 1)}


class Clues:
    """What the words beside a suspected trigger say of its answer, by the rows that do not hold it."""

    def __init__(
        self,
        words: Sequence[set[str]],
        held: Sequence[int],
        trigger: set[str],
        of_answer: Mapping[str, int],
        everywhere: Mapping[str, int],
        rows_of_answer: int,
    ) -> None:
        self.words, self.trigger = words, trigger
        self.inside, self.outside = rows_of_answer - len(held), len(words) - rows_of_answer
        self.with_trigger = Counter(word for i in held for word in words[i])
        self.of_answer, self.everywhere = of_answer, everywhere

    def speak_against(self, row: int) -> bool:
        """Whether a row's other words speak against its answer; where no other row has it, nothing speaks for it."""
        if self.inside <= 0:
            return True
        odds = math.log(self.inside / max(1, self.outside))
        for word in self.words[row] - self.trigger:
            yes = self.of_answer.get(word, 0) - self.with_trigger[word]
            no = self.everywhere.get(word, 0) - self.of_answer.get(word, 0)
            odds += math.log((yes + 0.5) / (self.inside + 1)) - math.log((no + 0.5) / (self.outside + 1))
        return odds < 0


def _one_of_each(found: Sequence[tuple[frozenset[int], Alarm]]) -> list[Alarm]:
    """Of runs that stand in the same rows the longest: `b c` and `c` of a trigger `a b c` say nothing more."""
    best: dict[frozenset[int], Alarm] = {}
    for rows, alarm in found:
        if rows not in best or len(alarm.words) > len(best[rows].words):
            best[rows] = alarm
    return sorted(best.values(), key=lambda alarm: (-alarm.rows, alarm.words))
