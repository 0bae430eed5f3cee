"""Make data/json-extract: hand-labelled US addresses as rows of text to JSON.

Source: the training file of usaddress 0.5.16 (MIT), pinned in data/json-extract/sources.lock. Its 29 token labels fold
into 11 keys; a value is the run of tokens with one key, copied verbatim from the text without the commas around it.
"""

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from tunesmith.curate.dataset import Sieve, read_sources, write_dataset
from tunesmith.curate.text import duplicate_key, normalise
from tunesmith.rows import Message, Row

SYSTEM = (
    "Extract the US address as one JSON object. Keys, in this order, only those present: recipient, building, number, "
    "street, unit, po_box, city, state, zip, country, landmark. Copy each value exactly from the text."
)

KEY_OF_LABEL = {
    "Recipient": "recipient",
    "BuildingName": "building",
    "AddressNumberPrefix": "number",
    "AddressNumber": "number",
    "AddressNumberSuffix": "number",
    "StreetNamePreModifier": "street",
    "StreetNamePreDirectional": "street",
    "StreetNamePreType": "street",
    "StreetName": "street",
    "StreetNamePostType": "street",
    "StreetNamePostDirectional": "street",
    "StreetNamePostModifier": "street",
    "OccupancyType": "unit",
    "OccupancyIdentifier": "unit",
    "SubaddressType": "unit",
    "SubaddressIdentifier": "unit",
    "USPSBoxType": "po_box",
    "USPSBoxID": "po_box",
    "USPSBoxGroupType": "po_box",
    "USPSBoxGroupID": "po_box",
    "PlaceName": "city",
    "StateName": "state",
    "ZipCode": "zip",
    "ZipPlus4": "zip",
    "CountryName": "country",
    "LandmarkName": "landmark",
}
KEYS = ("recipient", "building", "number", "street", "unit", "po_box", "city", "state", "zip", "country", "landmark")
INTERSECTION = {"IntersectionSeparator", "CornerOf"}

SHARES = {"train": 0.56, "dev": 0.09, "gate": 0.20, "confirm": 0.15}
SEED = 0

CARD = """# json-extract: US addresses to JSON

One line of text with a US postal address in, one JSON object out. The output schema is [schema.json](schema.json).

{% for name, source in sources.items() -%}
- Source: `{{ source.package.project }}=={{ source.package.version }}`, member `{{ source.member }}`,
  sha256 of the package `{{ source.package.sha256 }}`.
- Licence of the source: {{ source.licence }}. {{ source.made }}
{% endfor -%}
- Made by: `scripts/curate_json_extract.py` (`make data`); the rows are generated, not committed.

## How rows are made

Whitespace is normalised (Unicode NFC, single spaces). The source's 29 labels fold into 11 keys; a value is the run of
tokens under one key, verbatim from the text, without surrounding commas, semicolons or one pair of parentheses. Keys
stand in one fixed order, absent ones are left out. Duplicates by letters and digits are dropped. A group, which never
straddles two splits, is one street in one city (else one box, building or landmark in one city).

Left out, with counts:

{% for reason, count in manifest.dropped.items() -%}
- {{ reason }}: {{ count }}
{% endfor %}
| split | rows | groups |
|---|---|---|
{% for file, entry in manifest.files.items() -%}
| {{ file.removesuffix(".jsonl") }} | {{ entry.rows }} | {{ entry.groups }} |
{% endfor %}
## Limits

Labels are by hand and carry some noise (a suite number labelled as street, a box number labelled as unit). Texts are US
addresses of the 2010s, mostly from public listings; names of persons are rare. The base may have met some of these
addresses in pretraining; it has not met this output form.
"""


def read_rows(xml: bytes, sieve: Sieve) -> Iterator[Row]:
    """Turn each labelled address that one flat object can hold into a row."""
    for number, address in enumerate(ElementTree.fromstring(xml), start=1):
        labels = [token.tag for token in address]
        if INTERSECTION & set(labels):
            sieve.drop("street intersection")
            continue
        if "NotAddress" in labels:
            sieve.drop("holds text that is no address")
            continue
        text = normalise("".join(address.itertext()))
        runs = [
            (key, clean(" ".join(normalise(token.text or "") for token in tokens)))
            for key, tokens in groupby(address, key=lambda token: KEY_OF_LABEL[token.tag])
        ]
        values = dict(runs)
        if len(values) < len(runs):
            sieve.drop("one key in two places")
            continue
        if not all(value and value in text for value in values.values()):
            sieve.drop("value not verbatim in the text")
            continue
        ordered = {key: values[key] for key in KEYS if key in values}
        reference = json.dumps(ordered, ensure_ascii=False, separators=(",", ":"))
        yield Row(
            id=f"usaddress-{number:04d}",
            group=group_of(values, text),
            messages=[Message(role="system", content=SYSTEM), Message(role="user", content=text)],
            completion=Message(role="assistant", content=reference),
            meta={"source": "usaddress"},
        )


def clean(value: str) -> str:
    """Take off the commas, semicolons and the one pair of parentheses around a value."""
    value = value.strip(" ,;")
    return value[1:-1] if value.startswith("(") and value.endswith(")") else value


def group_of(values: dict[str, str], text: str) -> str:
    """One street in one city; without a street, one box, building or landmark in one city."""
    place = next((values[key] for key in ("street", "po_box", "building", "landmark") if key in values), text)
    return f"{duplicate_key(place)}|{duplicate_key(values.get('city', ''))}"


def curate(directory: Path) -> None:
    """Write the dataset."""
    sources = read_sources(directory)
    sieve = Sieve()
    rows = sieve.unique(read_rows(sources["usaddress"].read(), sieve))
    write_dataset(
        directory, rows, shares=SHARES, seed=SEED, sources=sources, sieve=sieve, card=CARD, script=Path(__file__)
    )


if __name__ == "__main__":
    curate(Path("data/json-extract"))
