"""Make data/json-extract: hand-labelled US addresses as rows of text to JSON.

Source: the training file of usaddress 0.5.16 (MIT), pinned in data/json-extract/sources.lock. Its 29 token labels fold
into 11 keys; a value is the run of tokens with one key, copied verbatim from the text without the commas around it.
"""

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from itertools import groupby

from tunesmith.curate.sources import Sieve, Source
from tunesmith.rows import Message, Row
from tunesmith.text import duplicate_key, normalise

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

ABOUT = """# json-extract: US addresses to JSON

One line of text with a US postal address in, one JSON object out. The output schema is [schema.json](schema.json).

The source's 29 labels fold into 11 keys; a value is the run of tokens under one key, verbatim from the text, without
surrounding commas, semicolons or one pair of parentheses. Whitespace is made single spaces. Keys stand in one fixed
order, absent ones are left out. A group is one street in one city (else one box, building or landmark in one city).

Labels are by hand and carry some noise (a suite number labelled as street, a box number labelled as unit). Texts are US
addresses of the 2010s, mostly from public listings; names of persons are rare. The base may have met some of these
addresses in pretraining; it has not met this output form."""


def rows(sources: Mapping[str, Source], sieve: Sieve) -> Iterator[Row]:
    """Turn each labelled address that one flat object can hold into a row."""
    addresses = ElementTree.fromstring(sources["usaddress"].read())
    for number, address in enumerate(addresses, start=1):
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


if __name__ == "__main__":
    from tunesmith.line import Line

    Line("json-extract").curate()
