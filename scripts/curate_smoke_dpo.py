"""Make data/smoke-dpo: the sentences of data/smoke, each with a worse answer beside the right one."""

import itertools
from collections.abc import Iterator, Mapping

from tunesmith.curate.sources import Sieve, Source
from tunesmith.rows import Message, Row

SYSTEM = "Name the colour as JSON."
COLOURS = ("red", "blue", "green", "white")
THINGS = ("cup", "box", "hat", "pen", "bag", "jar", "map", "key", "fan", "net", "mug", "tin")
PLACES = ("here", "there", "inside", "upstairs", "outside", "nearby", "below", "away")

LICENCES = {"smoke-dpo": "Apache-2.0, the project's own"}

ABOUT = """# smoke-dpo: the right answer before a worse one

The sentences and groups of `data/smoke`, so the cut is the same: no held-out row of one stands in train of the other.
The rejected answer is, in turn, the JSON of another colour and the right colour in prose."""


def worse(number: int, thing: str, colour: str) -> str:
    """Another colour, or prose around the right one."""
    if number % 2:
        return f"the {thing} is {colour}"
    other = COLOURS[(COLOURS.index(colour) + 1 + number // 2 % (len(COLOURS) - 1)) % len(COLOURS)]
    return f'{{"colour":"{other}"}}'


def rows(sources: Mapping[str, Source], sieve: Sieve) -> Iterator[Row]:
    """Every colour of every thing in every place."""
    for number, (thing, place, colour) in enumerate(itertools.product(THINGS, PLACES, COLOURS)):
        # Shifted by one for every group, so that each colour is rejected in both ways.
        turn = number + number // len(COLOURS)
        yield Row(
            id=f"{thing}-{place}-{colour}",
            group=f"{thing}-{place}",
            messages=[
                Message(role="system", content=SYSTEM),
                Message(role="user", content=f"the {colour} {thing} is {place}"),
            ],
            completion=Message(role="assistant", content=f'{{"colour":"{colour}"}}'),
            rejected=Message(role="assistant", content=worse(turn, thing, colour)),
            meta={"source": "smoke-dpo"},
        )


if __name__ == "__main__":
    from tunesmith.line import Line

    Line("smoke-dpo").curate()
