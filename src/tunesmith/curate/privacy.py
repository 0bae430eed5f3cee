"""Personal data and secrets in text: what is found, and what stands for it after redaction.

No rule goes by looks alone: each asks for what chance seldom gives, such as a checksum, an issuer, a numbering plan,
the prefix of a token or a cue word close by. National numbers count only where they carry a checksum. What is made up
but has the form (`@example.com`, the test cards, `2001:db8::`) is found like the rest. Names, street addresses and
dates of birth are not looked for. `scripts/measure_privacy.py` measures precision and recall.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import phonenumbers

from tunesmith.curate.numbers import cards, digits, ibans, national_ids, phones
from tunesmith.secrets import secrets
from tunesmith.text import END, START, Hit

RULES: tuple[str, ...] = ("email", "phone", "card", "iban", "ip", "national_id", "secret")

# Where two overlap, the rule that asks for more keeps the span.
PRECEDENCE = ("secret", "iban", "card", "national_id", "email", "ip", "phone")

PLACEHOLDER = re.compile(rf"\[({'|'.join(map(str.upper, RULES))})_([0-9]+)\]")


@dataclass(frozen=True)
class Found:
    """One find: characters `start` to `end` of the text. The value itself is never in here."""

    rule: str
    start: int
    end: int
    kind: str


def find(text: str, rules: Collection[str] = RULES) -> list[Found]:
    """What the rules find in one text, in order and without overlap.

    A span belongs to one rule whichever rules are asked for: a card number is no phone number where only phones are.

    Raises:
        ValueError: a rule is not one of `RULES`.
    """
    return [found for found, _ in _find(text, rules)]


def redact(texts: Sequence[str], rules: Collection[str]) -> list[str]:
    """All texts of one row with a placeholder such as `[EMAIL_1]` for every value.

    Numbers count from the row's first text on, or from the highest number that it holds already. A value has one
    placeholder in all texts, however it is spaced, and also where no rule fires on it: an answer that repeats a number
    of the prompt without its cue still agrees with the prompt.

    Raises:
        ValueError: a rule is not one of `RULES`.
    """
    done = list(texts)
    last: Counter[str] = Counter()
    for rule, number in (match.groups() for text in done for match in PLACEHOLDER.finditer(text)):
        last[rule] = max(last[rule], int(number))
    names: dict[tuple[str, str], str] = {}
    elsewhere: dict[str, str] = {}
    # What is replaced may uncover what it overlapped. Each turn leaves less text outside placeholders, so it ends.
    while any(found := [_find(text, rules) for text in done]):
        for index, finds in enumerate(found):
            text, pieces, at = done[index], [], 0
            for one, value in finds:
                rule = one.rule.upper()
                if (rule, value) not in names:
                    last[rule] += 1
                    names[rule, value] = f"[{rule}_{last[rule]}]"
                elsewhere[_anywhere(one.rule, text[one.start : one.end])] = names[rule, value]
                pieces += [text[at : one.start], names[rule, value]]
                at = one.end
            done[index] = "".join([*pieces, text[at:]])
        done = [_replace(text, elsewhere) for text in done]
    return done


def _replace(text: str, elsewhere: Mapping[str, str]) -> str:
    """The text with the placeholder of each pattern in its place; placeholders that it holds stay as they are."""
    # Longest first: a value may be part of another one.
    patterns = sorted(elsewhere, key=lambda pattern: (-len(pattern), pattern))
    anywhere = re.compile(f"{START}(?:({')|('.join(patterns)})){END}|{PLACEHOLDER.pattern}")

    def placeholder(match: re.Match[str]) -> str:
        which = (match.lastindex or 0) - 1
        return elsewhere[patterns[which]] if which < len(patterns) else match[0]

    return anywhere.sub(placeholder, text)


def _anywhere(rule: str, written: str) -> str:
    """A pattern for a value as another text may hold it; numbers may be spaced otherwise there."""
    if rule in ("email", "ip"):
        return f"(?i:{re.escape(written)})"
    if rule == "secret":
        return re.escape(written)
    return ("\\+?" if rule == "phone" else "") + r"[ \xa0().\-/]{0,3}".join(re.findall(r"[0-9A-Za-z]", written))


def _find(text: str, rules: Collection[str]) -> list[tuple[Found, str]]:
    if unknown := set(rules) - set(RULES):
        raise ValueError(f"no such rule: {', '.join(sorted(unknown))}; the rules are {', '.join(RULES)}")
    taken = bytearray(len(text))
    if "[" in text:
        for match in PLACEHOLDER.finditer(text):
            taken[match.start() : match.end()] = b"\1" * len(match[0])
    wanted = max((PRECEDENCE.index(rule) + 1 for rule in rules), default=0)
    found = []
    for rule in PRECEDENCE[:wanted]:
        for start, end, kind, value in sorted(FINDERS[rule](text), key=lambda hit: (hit[0], -hit[1])):
            if 1 not in taken[start:end]:
                taken[start:end] = b"\1" * (end - start)
                if rule in rules:
                    found.append((Found(rule, start, end, kind), value))
    return sorted(found, key=lambda pair: pair[0].start)


# ---------------------------------------------------------------------- e-mail

# Two letters are a country's. The longer ones that see most use: a list keeps `q@k.transpose` and `icon@2x.png` out.
TOP_LEVEL = re.compile(
    "com|org|net|edu|gov|mil|int|info|biz|name|pro|aero|coop|museum|jobs|mobi|travel|asia|cat|tel|post|example|test|app|"
    "dev|xyz|online|site|website|web|space|store|shop|tech|cloud|email|club|live|life|world|today|news|media|blog|design|"
    "studio|art|photo|photography|digital|software|systems|network|host|hosting|page|link|click|one|top|vip|work|works|"
    "zone|center|social|events|agency|consulting|solutions|services|group|company|ltd|llc|inc|gmbh|law|legal|health|care|"
    "clinic|doctor|dental|bank|insurance|finance|fund|capital|ventures|university|academy|school|college|education|"
    "institute|foundation|charity|ngo|church|team|global|international|london|berlin|hamburg|koeln|bayern|wien|paris|nyc|"
    "swiss|amsterdam|tokyo|istanbul|energy|solar|green|eco|farm|garden|house|estate|land|city|build|engineering|science|"
    "expert|guru|chat|games|fun|ninja|rocks|pub|cafe|restaurant|hotel|tours|support|help|local|internal|corp|lan|home"
)
COUNTRIES = frozenset(code.lower() for code in phonenumbers.SUPPORTED_REGIONS) | {"eu", "uk", "su"}

# A login of everybody's, labels of Kotlin, and `package@3.11.app`.
NOBODY = re.compile(r"(?:git|return|this|super|break|continue)@|[^@]+@(?:v[0-9]+|[0-9]+\.[0-9]+)\.")
# A URL's user and password, and the ids of messages.
NO_ADDRESS = re.compile(r"://[^\s/]*$|(?i:message-id|in-reply-to|references)\W{1,4}$")

LETTER = "0-9A-Za-z\u00c0-\u024f"
EMAIL = re.compile(
    rf"(?:(?<=\\[nrt])|(?<![{LETTER}_.%+@-])(?!(?<=\\)[nrt]))"
    rf"[{LETTER}_](?:[{LETTER}_.%+'-]{{0,62}}[{LETTER}_+-])?@"
    rf"(?:[{LETTER}](?:[{LETTER}-]{{0,61}}[{LETTER}])?\.)+([A-Za-z]{{2,24}}|xn--[0-9a-z-]{{2,59}})(?![{LETTER}_(-])"
)


def _emails(text: str) -> Iterator[Hit]:
    if "@" not in text:
        return
    for match in EMAIL.finditer(text):
        suffix = match[1].lower()
        written = match[0]
        if not (suffix in COUNTRIES or TOP_LEVEL.fullmatch(suffix) or suffix.startswith("xn--")):
            continue
        # `x@w.mT` is a product of matrices.
        if match[1] not in (suffix, suffix.upper()) or ".." in written or NOBODY.match(written):
            continue
        if not NO_ADDRESS.search(text[max(0, match.start() - 200) : match.start()]):
            yield match.start(), match.end(), "e-mail address", written.casefold()


# ---------------------------------------------------------------------- internet addresses

IPV4 = re.compile(
    rf"{START}(?<![0-9A-Za-z]\.)(?<!-)(?<![^/:]/)(?:[0-9]{{1,3}}\.){{3}}[0-9]{{1,3}}(?![0-9A-Za-z_]|[.-][0-9A-Za-z])"
)
IPV6 = re.compile(
    rf"{START}(?<![:.])(?=[0-9A-Fa-f]{{1,4}}:)[0-9A-Fa-f]{{1,4}}(?:::?[0-9A-Fa-f]{{1,4}}){{0,7}}(?:::)?"
    r"(?![:.0-9A-Za-z_])"
)
VERSION = re.compile(
    r"(?i)(?:versions?|\b(?:v|ver|releases?|release notes|build|firmware|driver|section|chapter|clause|figure|table|"
    r"appendix|step|level|oid|tag|package|(?:up|down)(?:dat|grad)\w* (?:from(?: [0-9.]+ to)?|to))\b|§|[=~<>]=)"
    r"[^0-9\n]{0,12}$"
)
HOST = re.compile(
    r"(?i)(?<![a-z])(?:ip|ipv4|addr|address|hosts?|hostname|servers?|client|remote|peer|gateway|dns|ping|ssh|from|via|"
    r"blocked|log(?:ged|in)|node|x-forwarded-for)(?![a-z])[^\n]{0,20}$|//$|@$"
)
SMALL = re.compile(r"(?:[1-5]?[0-9]\.){3}[1-5]?[0-9]")
PORT = re.compile(r":[0-9]{2,5}\b|/[0-9]{1,2}\b| - - \[")
THIS_NETWORK = ipaddress.IPv4Network("0.0.0.0/8")
SPACES_V6 = tuple(map(ipaddress.IPv6Network, ("2000::/3", "fc00::/7")))


def _ips(text: str) -> Iterator[Hit]:
    """Public and private addresses. Loopback, unspecified, link-local, multicast and reserved ones mean nobody.

    Four numbers after a word such as `version` or `section` are none, nor are four below 60, as versions have them,
    without a sign of a host: `server`, `//`, a port. Networks 10 are known without.
    """
    if text.count(".") >= 3 and digits(text) >= 4:
        for match in IPV4.finditer(text):
            before = text[max(0, match.start() - 40) : match.start()]
            try:
                v4 = ipaddress.IPv4Address(match[0])
            except ValueError:
                continue
            nobody = (v4.is_loopback, v4.is_link_local, v4.is_multicast, v4.is_reserved, v4 in THIS_NETWORK)
            host = match[0].startswith("10.") or HOST.search(before) or PORT.match(text, match.end())
            if not any(nobody) and not VERSION.search(before) and (host or not SMALL.fullmatch(match[0])):
                yield match.start(), match.end(), "IPv4 address", match[0]
    if "::" in text or text.count(":") >= 7:
        for match in IPV6.finditer(text):
            try:
                v6 = ipaddress.IPv6Address(match[0])
            except ValueError:
                continue
            # Outside of these spaces are the slices `x[1::2]` and words such as `add::bad`.
            if any(v6 in space for space in SPACES_V6):
                yield match.start(), match.end(), "IPv6 address", str(v6)


FINDERS: Mapping[str, Callable[[str], Iterator[Hit]]] = {
    "email": _emails,
    "phone": phones,
    "card": cards,
    "iban": ibans,
    "ip": _ips,
    "national_id": national_ids,
    "secret": secrets,
}
