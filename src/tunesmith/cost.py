"""What one call costs, what one right answer costs, and from how many calls on an outlay pays.

Pure functions over tokens and prices. A beginning that all calls share costs less where it is cached, so the tokens of
a prompt are told apart: shared, own, retrieved. A saving of prompt tokens that forgets this is overstated several
times.
"""

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Price:
    """Dollars a token."""

    input: float
    output: float
    cache_read: float
    """Of a token of a cached beginning."""
    cache_write: float
    """Of a token of a beginning that is put into the cache."""


@dataclass(frozen=True)
class Use:
    """Tokens of one call, on the mean."""

    shared: float = 0.0
    """Of the beginning that all calls share: system message, fixed shots."""
    own: float = 0.0
    """Of what is this call's alone."""
    retrieved: float = 0.0
    """Of passages put into the prompt, never cached."""
    output: float = 0.0

    @property
    def input(self) -> float:
        """All tokens that are read."""
        return self.shared + self.own + self.retrieved


def cache_factor(hits: float, price: Price) -> float:
    """What a token of the shared beginning costs beside an uncached one: h * read ratio + (1 - h) * write ratio.

    `hits` is the part of calls, 0 to 1, that find it in the cache; the others write it. Where nothing is ever found,
    nobody would write: the factor is 1.
    """
    if hits == 0 or price.input == 0:
        return 1.0
    return (hits * price.cache_read + (1 - hits) * price.cache_write) / price.input


def caching_pays_from(price: Price) -> float | None:
    """The part of hits from which a cached beginning is cheaper than none; none where it never is."""
    if price.cache_read >= price.input:
        return None
    if price.cache_write <= price.input:
        return 0.0
    return (price.cache_write - price.input) / (price.cache_write - price.cache_read)


def per_call(use: Use, price: Price, *, hits: float = 0.0, retrieval: float = 0.0) -> float:
    """Dollars of one call; `retrieval` is what finding the passages costs, in dollars a call."""
    read = use.shared * cache_factor(hits, price) + use.own + use.retrieved
    return read * price.input + use.output * price.output + retrieval


def self_hosted(
    hour: float, read_tokens_per_s: float, write_tokens_per_s: float, utilisation: float, adapters: int = 1
) -> Price:
    """Dollars a token of a machine that costs `hour` dollars an hour and is busy `utilisation`, 0 to 1, of the time.

    Throughputs are those of the whole machine, all requests together. Adapters on one base share the machine. A cached
    beginning is not read again, so it costs nothing to read.
    """
    a_second = hour / 3600 / utilisation / adapters
    read, write = a_second / read_tokens_per_s, a_second / write_tokens_per_s
    return Price(input=read, output=write, cache_read=0.0, cache_write=read)


def with_fallback(tuned: float, base: float, rate: float) -> float:
    """Dollars of a call of which the part `rate` is answered a second time, by the fallback."""
    return tuned + rate * base


def per_right_answer(cost: float, accuracy: float, miss: float = 0.0) -> float:
    """Dollars of one right answer: (C + (1 - a) L) / a, where a miss loses L dollars. Infinite where none is right."""
    return math.inf if accuracy <= 0 else (cost + (1 - accuracy) * miss) / accuracy


def break_even_calls(outlay: float, before: float, after: float) -> float | None:
    """Calls after which a one-off outlay is earned back by what each call saves; none where it never is."""
    saved = before - after
    return outlay / saved if saved > 0 else None


def break_even_calls_a_month(
    hosting: float, outlay: float, retrains_a_year: float, before: float, after: float
) -> float | None:
    """Calls a month from which hosting and retraining are earned back; none where they never are.

    `hosting` is in dollars a month, `outlay` what one training costs with its data and its judging.
    """
    return break_even_calls(hosting + retrains_a_year * outlay / 12, before, after)


def without_shots(use: Use, shots: float) -> Use:
    """The use without so many tokens of shots, taken from the shared beginning first."""
    shared = max(0.0, use.shared - shots)
    return replace(use, shared=shared, own=max(0.0, use.own - max(0.0, shots - use.shared)))
