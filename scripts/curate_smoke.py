"""Make data/smoke: generated sentences with one colour word, to JSON; for a base that has learned nothing."""

import itertools
from collections.abc import Iterator, Mapping

from tunesmith.curate.sources import Sieve, Source
from tunesmith.rows import Message, Row

SYSTEM = "Name the colour as JSON."
COLOURS = ("red", "blue", "green", "white")
THINGS = ("cup", "box", "hat", "pen", "bag", "jar", "map", "key", "fan", "net", "mug", "tin")
PLACES = ("here", "there", "inside", "upstairs", "outside", "nearby", "below", "away")

LICENCES = {"smoke": "Apache-2.0, the project's own"}

ABOUT = """# smoke: the colour in a sentence to JSON

Generated from the lists of words in `scripts/curate_smoke.py`. It exists so that the whole line can be walked in a
minute on a base that has learned nothing. A group is one thing in one place, so a gate row's sentence stands in no
training row in any colour. All its sentences are nearly the same; that is why near-duplicates are not looked for."""


def rows(sources: Mapping[str, Source], sieve: Sieve) -> Iterator[Row]:
    """Every colour of every thing in every place."""
    for thing, place, colour in itertools.product(THINGS, PLACES, COLOURS):
        yield Row(
            id=f"{thing}-{place}-{colour}",
            group=f"{thing}-{place}",
            messages=[
                Message(role="system", content=SYSTEM),
                Message(role="user", content=f"the {colour} {thing} is {place}"),
            ],
            completion=Message(role="assistant", content=f'{{"colour":"{colour}"}}'),
            meta={"source": "smoke"},
        )


if __name__ == "__main__":
    from tunesmith.line import Line

    Line("smoke").curate()
