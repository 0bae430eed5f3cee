"""Keys, tokens and passwords in text.

Three things are found: tokens that their issuer made to be recognised, by prefix and length; private keys between their
armour; and values that the text itself calls a password, a secret or a key, if they look like one.

Of detect-secrets we take the plugins whose patterns hold a whole token, and call `analyze_string` alone. Its
`analyze_line` and its scan may ask the issuer over the network whether a token is alive; `analyze_string` matches and
nothing else. Left out are its plugins for GitHub, GitLab and private keys (they yield a token's prefix or a key's head,
so the rest would stay), npm (runs to the line's end), IBM (any 44 letters after `key`), and, by measured precision, the
keyword and both high-entropy plugins: `scripts/measure_privacy.py --others` shows how they do.
"""

import importlib
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from tunesmith.text import END, START, Hit

# detect-secrets' modules and classes, the shortest that they match, and what it holds.
PLUGINS = (
    ("artifactory", "ArtifactoryDetector", 13, ("AKC",)),
    ("aws", "AWSKeyDetector", 20, ("AKIA", "ASIA", "ABIA", "ACCA", "A3T", "aws", "AWS")),
    ("azure_storage_key", "AzureStorageKeyDetector", 99, ("AccountKey=",)),
    ("basic_auth", "BasicAuthDetector", 16, ("://",)),
    ("cloudant", "CloudantDetector", 24, ("cloudant",)),
    ("mailchimp", "MailchimpDetector", 36, ("-us",)),
    ("pypi_token", "PypiTokenDetector", 90, ("pypi-",)),
    ("sendgrid", "SendGridDetector", 69, ("SG.",)),
    ("slack", "SlackDetector", 16, ("xox", "hooks.slack.com")),
    ("softlayer", "SoftlayerDetector", 64, ("softlayer", "SOFTLAYER")),
    ("square_oauth", "SquareOAuthDetector", 50, ("sq0csp-",)),
    ("telegram_token", "TelegramBotTokenDetector", 44, (":AA",)),
    ("twilio", "TwilioKeyDetector", 34, ("AC", "SK")),
)

# Tokens that detect-secrets does not know, or not to their end: kind, the shortest, what it holds, and the whole.
TOKENS = tuple(
    (kind, shortest, hint, re.compile(f"(?a:{START}(?:{whole}){END})"))
    for kind, shortest, hint, whole in (
        ("GitHub token", 40, "gh", r"gh[pousr]_[0-9A-Za-z]{36,251}"),
        ("GitHub token", 93, "github_pat_", r"github_pat_[0-9A-Za-z]{22}_[0-9A-Za-z]{59}"),
        ("GitLab token", 24, "gl", r"gl(?:pat|dt|ft|soat|rt|cbt|ptt|agent)-[\w-]{20,}(?:\.[\w.-]+)?"),
        ("Hugging Face token", 33, "hf_", r"hf_[0-9A-Za-z]{30,40}"),
        ("OpenAI-style key", 26, "sk-", r"sk-(?:(?:proj|svcacct|admin|ant|or|lf)-[\w-]{20,}|[0-9A-Za-z]{32,64})"),
        ("Google API key", 39, "AIza", r"AIza[\w-]{35}"),
        ("Google OAuth secret", 35, "GOCSPX-", r"GOCSPX-[\w-]{28}"),
        ("Google OAuth token", 25, "ya29.", r"ya29\.[\w-]{20,}"),
        ("Slack token", 20, "xapp-", r"xapp-[0-9]-[0-9A-Z]+-[0-9]+-[0-9a-f]+"),
        ("Stripe key", 32, "k_live_", r"[rs]k_live_[0-9A-Za-z]{24,247}"),
        ("webhook secret", 38, "whsec_", r"whsec_[0-9A-Za-z+/]{32,}=*"),
        ("npm token", 40, "npm_", r"npm_[0-9A-Za-z]{36}"),
        ("Discord bot token", 58, ".", r"[MNO][\w-]{23,25}\.[\w-]{6}\.[\w-]{27,38}"),
        ("DigitalOcean token", 71, "_v1_", r"do[opr]_v1_[0-9a-f]{64}"),
        ("Shopify token", 38, "shp", r"shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}"),
        ("Databricks token", 36, "dapi", r"dapi[0-9a-f]{32}(?:-[0-9])?"),
        ("age secret key", 74, "AGE-SECRET-KEY-", r"AGE-SECRET-KEY-1[0-9A-Z]{58}"),
    )
)
JWT = re.compile(rf"(?a){START}eyJ[\w-]+\.eyJ[\w-]+\.[\w-]*")
BEARER = re.compile(r"(?a)(?i:authorization\\?[\"']?\s*[:=]\s*\\?[\"']?(?:bearer|basic|token)\s+)([\w.~+/-]{16,}=*)")

ARMOUR = r"[A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----"
PRIVATE_KEY = re.compile(
    rf"-----BEGIN {ARMOUR}(?:(?:(?!-----)[\s\S]){{32,20000}}?-----END {ARMOUR}|(?:\\[nr]|\s|[0-9A-Za-z+/=]{{32,}})+)"
)

# ---------------------------------------------------------------------- what the text calls a secret

KEY = (
    "(?P<password>pass(?:word|wd|phrase|code|wort)|pwd|(?<![a-z])pw(?![a-z])|contraseña|mot[ _]de[ _]passe|kennwort)"
    "|secret|token|credential|api[_-]?key|(?:access|auth|private|account|signing|encryption|service)[_-]?key"
)
CALLED = re.compile(KEY)
ASSIGNED = re.compile(
    rf"(?ai)(?:{KEY})"
    r"(?P<rest>s?(?:[_-][\w-]{1,30}|(?-i:[A-Z])\w{0,30}|[0-9]{0,2}))"
    r"(?:(?:\\?[\"'`\]]){0,2}\s{0,3}(?::=|=>|={1,3}|:|>)\s{0,3}|\s(?:is|ist|lautet|est|es)\s:?\s?|\s(?=[\"'`]))"
    r"(?:\\?(?P<quote>[\"'`])(?P<quoted>(?:(?!(?P=quote))[^\s\\]){6,200}+)\\?(?P=quote)"
    r"|(?P<plain>[^\s\"'`\\,;<>(){}\[\]|]{6,200}+)(?![(\[{]))"
)
HINTS = ("pass", "pw", "secret", "token", "key", "credential", "contrase", "kennwort")
# Unlike `str.lower`, this never changes a length.
LOWER = str.maketrans({letter: letter.lower() for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"})
# `token_type`, `password_hash` and `secret_name` hold no secret, nor does a `next_page_token`.
ABOUT = re.compile(
    r"(?i)hash|digest|salt|len|size|policy|rule|field|name|_?ids?$|file|path|dir|ur[il]|endpoint|type|count|limit|version"
    r"|expir|ttl|arn|ref|alg|format|regex|pattern|hint|env|var|label|title|text|error|message|status|prefix|manager|store"
)
OTHER_TOKEN = re.compile(
    r"(?i)(?:page|next|csrf|xsrf|sync|continuation|pad|eos|bos|unk|mask|public|cache|sort|max)[_ -]?$"
)
# What stands where a secret would: masks, templates, and names of where it comes from.
NO_SECRET = re.compile(
    r"(?i)x{4}|\*{3}|\.{3}|•|…|[<>{}]|^[$%@&]\w+%?$|your|my[-_]|required|change.?me|placeholder|redacted|hidden|removed|"
    r"dummy|todo|^(?:os|env|process|config|settings|self|this|args|vault|secrets|var|data|request|req|ctx|app)\."
)
# And what a value of six characters or more may be beside a password.
PLAIN_VALUE = re.compile(
    r"(?i)(?:sha|md|aes|rsa|hmac|utf|base|bcrypt|argon|pbkdf|scrypt|oauth|http|ed|hs|rs|es)[-_]?[0-9]{1,4}\S*"
    r"|(?:[.~]{1,2}/|/[\w.-]+/)\S*|[a-z]:[\\/]\S*|0x[0-9a-f]{40}|\S*://\S*|arn:\S*|[^@\s]+@[^@\s]+\.[a-z]+|[0-9.,:/+TZ-]+"
)
# Words and numbers: `prod-db-credentials-2`.
WORDS = re.compile(
    r"(?:[A-Za-z]{2,}[0-9]{0,4}|[0-9]{1,4}|v[0-9]+)(?:[-_.:/](?:[A-Za-z]{2,}[0-9]{0,4}|[0-9]{1,4}|v[0-9]+))*"
)


def secrets(text: str) -> Iterator[Hit]:
    """Every key, token and password in a text, each to its end."""
    if "PRIVATE KEY" in text:
        for match in PRIVATE_KEY.finditer(text):
            if re.search(r"[0-9A-Za-z+/]{32}", match[0]):
                yield match.start(), match.end(), "private key", match[0]
    yield from _tokens(text)
    yield from _assigned(text)


def _tokens(text: str) -> Iterator[Hit]:
    # Few texts hold a word as long as a token, and then few patterns are tried.
    longest = max(map(len, text.split()), default=0)
    if longest < 13:
        return
    for kind, shortest, hint, whole in TOKENS:
        if longest >= shortest and hint in text:
            yield from ((m.start(), m.end(), kind, m[0]) for m in whole.finditer(text) if _random(m[0]))
    if "eyJ" in text:
        for match in JWT.finditer(text):
            if _plugin("jwt", "JwtTokenDetector").is_formally_valid(match[0]):
                yield match.start(), match.end(), "JSON Web Token", match[0]
    for module, name, shortest, hints in PLUGINS:
        if longest < shortest or not any(hint in text for hint in hints):
            continue
        plugin = _plugin(module, name)
        for value in {found.lstrip(' \t\r\n"=:').rstrip(' \t\r\n"') for found in plugin.analyze_string(text)}:
            if value and (_is_password(value) if name == "BasicAuthDetector" else _random(value)):
                for match in re.finditer(START + re.escape(value) + END, text):
                    yield match.start(), match.end(), plugin.secret_type, value


@cache
def _plugin(module: str, name: str) -> Any:
    # Imported when first needed: detect-secrets imports requests, which takes longer than all the rest.
    return getattr(importlib.import_module(f"detect_secrets.plugins.{module}"), name)()


def _assigned(text: str) -> Iterator[Hit]:
    lowered = text.translate(LOWER)
    if "authorization" in lowered:
        yield from ((m.start(1), m.end(1), "credential", m[1]) for m in BEARER.finditer(text) if _is_key(m[1]))
    for called in CALLED.finditer(lowered) if any(word in lowered for word in HINTS) else ():
        match = ASSIGNED.match(text, called.start())
        if (
            not match
            or ABOUT.search(match["rest"])
            or OTHER_TOKEN.search(text[max(0, match.start() - 14) : match.start()])
        ):
            continue
        quoted = match["quoted"]
        start, value = match.start("quoted" if quoted else "plain"), quoted or match["plain"].rstrip(".:")
        if not quoted and CALLED.search(value.lower()):
            continue  # a variable, such as `password2`
        if text[start - 1] == ">" and not text.startswith("</", start + len(value)):
            continue
        if _is_password(value) if match["password"] else _is_key(value):
            yield start, start + len(value), "password" if match["password"] else "secret value", value


def _random(token: str) -> bool:
    """Whether a token is no mask, no template and no word: a digit in it, and nine or more different characters."""
    masked = re.search(r"(?i)x{6}|\*{3}|\.{3}|your|_here", token)
    return not masked and len({*token}) > 8 and re.search(r"[0-9]", token) is not None


def _is_password(value: str) -> bool:
    # What only ends in a mark is a word in a sentence.
    mixed = re.search(r"[A-Za-z]", value) and re.search(r"[0-9!@#$%^&*?~+=]", value.rstrip("!?"))
    return bool(mixed) and not NO_SECRET.search(value) and not PLAIN_VALUE.fullmatch(value)


def _is_key(value: str) -> bool:
    return len(value) >= 16 and _random(value) and _is_password(value) and not WORDS.fullmatch(value)
