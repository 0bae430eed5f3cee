"""A verdict as JUnit XML: each term a test case, so that any CI shows which one stands in the way."""

import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

from tunesmith.gate.words import headline, outcome


def junit(verdict: Mapping[str, Any]) -> str:
    """One suite. A term that fails is a failure, one that the evidence leaves open too: neither lets it ship.

    Where the comparison is broken, its facts that do not hold are errors: there is no verdict to fail.
    """
    terms = verdict["terms"]
    broken = verdict["verdict"] == "INVALID"
    unmet = [term for term in terms if not term["pass"]]
    suite = ElementTree.Element(
        "testsuite",
        {
            "name": _clean(f"tunesmith gate {verdict['name']}"),
            "tests": str(len(terms)),
            "failures": "0" if broken else str(len(unmet)),
            "errors": str(len(unmet)) if broken else "0",
        },
    )
    properties = ElementTree.SubElement(suite, "properties")
    told = {
        "verdict": verdict["verdict"],
        "exit_code": verdict["exit_code"],
        "run": verdict["run"],
        "look": verdict["look"],
    }
    for name, value in told.items():
        ElementTree.SubElement(properties, "property", {"name": name, "value": str(value)})
    for term in terms:
        case = ElementTree.SubElement(
            suite, "testcase", {"classname": f"gate.{term['kind']}", "name": _clean(term["name"])}
        )
        if term["pass"]:
            continue
        kind = "error" if broken else "failure"
        ElementTree.SubElement(case, kind, {"type": outcome(term), "message": _clean(term["says"])}).text = _clean(
            _told(term)
        )
    ElementTree.SubElement(suite, "system-out").text = _clean(headline(verdict))
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _told(term: Mapping[str, Any]) -> str:
    if term["estimate"] is None:
        return str(term["says"])
    needed = f"; about {term['n_needed']} rows would settle it" if term["n_needed"] else ""
    return (
        f"{term['says']}: {term['estimate']:+.4f}, {term['ci_low']:+.4f} to {term['ci_high']:+.4f}, "
        f"margin {term['margin']:+.4f}, n {term['n']}{needed}"
    )


def _clean(text: str) -> str:
    """Text that XML 1.0 can hold: what it cannot becomes a replacement character."""
    return re.sub(r"[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\N{REPLACEMENT CHARACTER}", text)
