"""What models and machines cost: `prices.yaml` of this package, or the user's own file in the same form."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tunesmith.cost import Price, self_hosted
from tunesmith.errors import UserError
from tunesmith.files import sha256_file
from tunesmith.yaml_source import read_yaml

SHIPPED = Path(__file__).with_name("prices.yaml")
MILLION = 1e6

Dollars = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Closed(BaseModel):
    """A part of a prices file: closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Model(Closed):
    """A model by the token: dollars a million."""

    input: Dollars
    output: Dollars
    cache_read: Dollars | None = None
    cache_write: Dollars | None = None

    def price(self) -> Price:
        """Dollars a token; what is not named costs what input costs."""
        read = self.input if self.cache_read is None else self.cache_read
        write = self.input if self.cache_write is None else self.cache_write
        return Price(self.input / MILLION, self.output / MILLION, read / MILLION, write / MILLION)


class Machine(Closed):
    """A machine by the hour, and what it serves."""

    hour: Dollars
    read_tokens_per_s: Positive
    write_tokens_per_s: Positive
    utilisation: Annotated[float, Field(gt=0, le=1)]
    adapters: Annotated[int, Field(ge=1)] = 1

    def price(self) -> Price:
        """Dollars a token while it is busy as stated."""
        return self_hosted(self.hour, self.read_tokens_per_s, self.write_tokens_per_s, self.utilisation, self.adapters)


class Prices(Closed):
    """A prices file."""

    schema_: Literal[1] = Field(alias="schema")
    models: dict[str, Model] = {}
    machines: dict[str, Machine] = {}


class PriceList:
    """Prices by name, and the file that they stand in."""

    def __init__(self, prices: Prices, path: Path) -> None:
        self.prices = prices
        self.path = path

    @property
    def about(self) -> dict[str, str]:
        """As a file that rests on these prices names them."""
        name = "shipped" if self.path == SHIPPED else self.path.name
        return {"file": name, "sha256": sha256_file(self.path)}

    def price(self, name: str) -> Price:
        """Dollars a token of a model or of a machine.

        Raises:
            UserError: neither has that name.
        """
        known: dict[str, Model | Machine] = {**self.prices.models, **self.prices.machines}
        if name not in known:
            raise UserError(f"{self.path}: holds no price of `{name}`; there are: {', '.join(sorted(known)) or 'none'}")
        return known[name].price()


def read_prices(path: Path | None = None) -> PriceList:
    """Read a prices file; the shipped one if none is named.

    Raises:
        UserError: it is not there or not in the form of `prices.yaml`; all problems at once.
    """
    place = path or SHIPPED
    if not place.is_file():
        raise UserError(f"{place}: no such file; copy {SHIPPED.name} of the package and put your prices in")
    source = read_yaml(place, str(place))
    try:
        prices = Prices.model_validate(source.values)
    except ValidationError as error:
        problems = []
        for found in error.errors():
            keys = tuple(found["loc"])
            problems.append(f"{source.place(keys, str(place))}: {'.'.join(map(str, keys))}: {found['msg'].lower()}")
        raise UserError(problems, hint=f"the form is that of the package's {SHIPPED.name}") from None
    if both := sorted(prices.models.keys() & prices.machines.keys()):
        raise UserError(f"{place}: {', '.join(both)}: a model and a machine of one name; rename one")
    return PriceList(prices, place)
