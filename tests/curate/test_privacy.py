import runpy
import socket
import string
import subprocess
import sys
from pathlib import Path

import pytest
from detect_secrets.plugins.base import BasePlugin
from detect_secrets.plugins.github_token import GitHubTokenDetector
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith import secrets
from tunesmith.curate.privacy import PRECEDENCE, RULES, Found, find, redact

SCRIPT = Path(__file__).parents[2] / "scripts" / "measure_privacy.py"

# Tokens are put together here, so that no scanner of secrets takes this file for a leak.
ALNUM = (string.ascii_letters + string.digits) * 3
HEX = "0123456789abcdef" * 4
UPPER = string.digits + string.ascii_uppercase
ARMOUR = "PRIVATE " + "KEY-----"
JWT = "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0NTY3OCJ9." + ALNUM[40:83]
TOKENS = {
    "AWS Access Key": "AKIA" + "IOSFODNN7EXAMPLE",
    "Artifactory Credentials": "AKC" + ALNUM[40:70],
    "Azure Storage Account access key": "AccountKey=" + ALNUM[:86] + "==",
    "Discord bot token": "M" + ALNUM[40:63] + "." + ALNUM[50:56] + "." + ALNUM[30:57],
    "GitHub token": "ghp_" + ALNUM[40:76],
    "GitLab token": "glpat-" + ALNUM[50:70],
    "Google API key": "AIza" + ALNUM[40:75],
    "Hugging Face token": "hf_" + ALNUM[40:74],
    "Mailchimp Access Key": HEX[:32] + "-us12",
    "OpenAI-style key": "sk-proj-" + ALNUM[40:88],
    "PyPI Token": "pypi-AgEI" + "cHlwaS5vcmc" + ALNUM[:80],
    "SendGrid API Key": "SG." + ALNUM[40:62] + "." + ALNUM[:43],
    "Slack Token": "xoxb-" + "123456789012-1234567890123-" + ALNUM[40:64],
    "SoftLayer Credentials": "softlayer_key=" + HEX,
    "Square OAuth Secret": "sq0csp-" + ALNUM[40:83],
    "Stripe key": "sk_live_" + ALNUM[40:90],
    "Telegram Bot Token": "123456789:AA" + ALNUM[40:73],
    "Twilio API Key": "SK" + HEX[:32],
    "npm token": "npm_" + ALNUM[40:76],
}


def unmarked(text):
    """A text without its marks, and the spans that stood between them."""
    spans, plain = [], ""
    for index, piece in enumerate(text.replace("»", "«").split("«")):
        if index % 2:
            spans.append((len(plain), len(plain) + len(piece)))
        plain += piece
    return plain, spans


def spans(text, rule):
    return [(one.start, one.end) for one in find(text) if one.rule == rule]


FOUND = [
    # e-mail
    ("email", "Write to «ada.o'neil+news@mail.lantern.co.uk», please."),
    ("email", "联系邮箱«ada@lantern.org»。"),
    ("email", r"first\n«nora@lantern.org»\nlast"),
    ("email", "Kim <«JÖRG@MÜLLER.DE»>"),
    ("email", "it is «ada@example.com» in every manual"),
    # telephone
    ("phone", "«+49 30 901820»"),
    ("phone", "Kim («+81 90-1234-5678») and Lee («(212) 423-4567»)"),
    ("phone", "«020 7946 0958» or «(212) 423-4567» or «415-423-2671»"),
    ("phone", "Tel.: «0301234567»"),
    ("phone", '{"homePhone": "«2124234567»"}'),
    ("phone", "«0612345678» (mobile)"),
    # card
    ("card", "«4111 1111 1111 1111» 12/27 123, «4111 1111 1111 1111» 123, «6212 3456 7890 0000 003»"),
    ("card", "«378282246310005» and «5555-5555-5555-4444»"),
    ("card", "Visa «4222222222222»"),
    ("card", r"first\n«4111 1111 1111 1111»\nlast"),
    # account
    ("iban", "IBAN: «DE89 3704 0044 0532 0130 00» BIC COBADEFFXXX"),
    ("iban", "IBAN«GB29NWBK60161331926819», «nl91abna0417164300»"),
    # address
    ("ip", "«84.120.3.77» - - [12/Mar/2026] and «192.168.178.20»"),
    ("ip", "ping «8.8.8.8», then http://«9.9.9.9»/ and «10.0.0.7»"),
    ("ip", "[«2001:db8::8a2e:370:7334»]:443 and «fd12:3456:789a:1:2:3:4:5»"),
    # national number
    ("national_id", "NHS number «943 476 5870»"),
    ("national_id", "bsn,name\n" + "«111222333»,Kim van der Lantern of Copper Lane, Leeds\n" * 3),
    ("national_id", "«1112.22.333» «111.444.777-35» «85.07.30-033.28» «756.9217.0769.85»"),
    ("national_id", "«RSSMRA85T10A562S» or «131052-308T» or «29029600013»"),
    ("national_id", "«X-1234567-L» «12.345.678-5» «2 55 08 14 168 025 38»"),
    # secret
    ("secret", 'password = "«correct7Horse»"'),
    ("secret", "Das Passwort lautet «Sommer2023!»"),
    ("secret", "<password>«Sommer2023»</password>"),
    ("secret", "postgres://app:«Winter7gale»@db.lantern.org/x"),
    ("secret", "client_secret: «3f2a9c1d7be84c0f9a1e5d2b»"),
    ("secret", r"{\"api_key\": \"«3f2a9c1d7be84c0f9a1e5d2b»\"}"),
    ("secret", "Authorization: Bearer «3f2a9c1d7be84c0f9a1e5d2b»"),
    ("secret", f"session=«{JWT}»; Path=/"),
    ("secret", f"key:\n«-----BEGIN RSA {ARMOUR}\n{ALNUM}\n-----END RSA {ARMOUR}»\nbye"),
    ("secret", f"«-----BEGIN {ARMOUR} {ALNUM} -----END {ARMOUR}» on one line"),
]


@pytest.mark.parametrize(("rule", "text"), FOUND)
def test_a_value_is_found_to_its_ends(rule, text):
    plain, wanted = unmarked(text)
    assert spans(plain, rule) == wanted


@pytest.mark.parametrize(("kind", "token"), TOKENS.items(), ids=TOKENS)
def test_a_token_is_found_whole_and_by_its_issuer(kind, token):
    (one,) = find(f"use {token} no more")
    assert (one.rule, one.kind) == ("secret", kind)
    assert one.end == 4 + len(token)
    assert one.start >= 4  # some hold their name, which stays


NOT_FOUND = [
    # e-mail
    "y = x@w.mT + q@k.transpose(1, 2)",
    "icon@2x.png, git@github.com:a/b, @types/node@18.0.1, Message-ID: <a1.b2@mail.lantern.org>",
    "https://user:<password>@lantern.org/",
    # telephone
    "order 415-423-2671, ISBN 978-3-16-148410-0, ZIP 94105-1234, call(2124234567)",
    "2024-03-11 12:30, 01.02.2024, [0.1234567, 0.7654321], 0800-1700",
    "2965 5177 2695 1449 0384 4970 in a column, 0305 0.0608280979649",
    "2124234567 rows",
    # card
    "4111 1111 1111 1112 fails Luhn, 1234567812345670 has no issuer, order 4111111111111111",
    "4222222222222 without a cue, 4111 1111 1111 1111 1111 1111 in a column",
    # account
    "IBAN DE89 3704 0044 0532 0130 01",
    # address
    "version 84.120.3.77, foo==84.120.3.77, 1.3.6.1.4.1.311, libfoo-84.120.3.77.tar.gz, Chrome/84.120.3.77",
    "3.2.1.4 Scope; 127.0.0.1, ::1, 0.0.0.0, 169.254.169.254, 255.255.255.0",
    "x[1::2] std::add::bad(1) 12:34:56 00:1a:2b:3c:4d:5e",
    # national number
    "NHS number 9434765871",
    "9434765870 and 111222333 without a cue, NHS England, order 9434765870",
    "RSSMRA85T10A562T",
    # secret
    "password: ********, api_key = 'YOUR_API_KEY', password=${DB_PASSWORD_1}, secret: {{ vault.secret_1 }}",
    'api_key = os.environ["API_KEY_2"]; token = generate_token(32); if password1 == password2: pass',
    f"commit {HEX[:40]}, sha256:{HEX}, password_hash: {HEX}, nextPageToken: {ALNUM[40:80]}",
    "password=changeme123, password: sha256-hashed, pwd: /srv/app2/data, secret: prod-db-lantern-v2-eu-west-1",
    "secret_name: prod-db-credentials-v2, tokenizer: bert-base-uncased-v1, Wrong password: incorrect!",
    f"-----BEGIN {ARMOUR}\n...\n-----END {ARMOUR}",
    "sk-" + "x" * 40,
]


@pytest.mark.parametrize("text", NOT_FOUND)
def test_what_only_looks_so_is_not_found(text):
    assert find(text) == []


def test_a_span_belongs_to_one_rule_whichever_are_asked_for():
    # The last is a telephone of America, too.
    text = "postgres://app:Winter7gale@db.lantern.org, 4111 1111 1111 1111, NHS 943 476 5870"
    everything = find(text)
    assert [one.rule for one in everything] == ["secret", "card", "national_id"]
    for rule in RULES:
        assert find(text, {rule}) == [one for one in everything if one.rule == rule]


def test_every_rule_has_its_place():
    assert sorted(PRECEDENCE) == sorted(RULES)


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="no such rule: mail; the rules are email, phone"):
        find("", {"mail"})


def test_a_checksum_that_breaks_on_a_number_does_not_break_the_search():
    # python-stdnum knows no county of this province and raises KeyError.
    assert find("233646198001015073") == []


def test_no_find_shows_its_value():
    for _, text in FOUND:
        plain, wanted = unmarked(text)
        shown = repr(find(plain))
        assert [plain[start:end] for start, end in wanted if plain[start:end] in shown] == []
    assert list(Found.__dataclass_fields__) == ["rule", "start", "end", "kind"]


# ---------------------------------------------------------------------- redaction


def test_a_value_has_one_placeholder_in_all_texts_of_a_row():
    texts = [
        "Kim, Kim@lantern.org, BSN 111222333, DE89 3704 0044 0532 0130 00, tel 030 901820, ssh 2001:DB8:0::1",
        "kim@lantern.org or lee@lantern.org, DE89370400440532013000, +49 30 901820, ssh 2001:db8::1",
    ]
    assert redact(texts, RULES) == [
        "Kim, [EMAIL_1], BSN [NATIONAL_ID_1], [IBAN_1], tel [PHONE_1], ssh [IP_1]",
        "[EMAIL_1] or [EMAIL_2], [IBAN_1], [PHONE_1], ssh [IP_1]",
    ]


def test_a_value_is_also_replaced_where_no_rule_fires_on_it():
    texts = [
        "password: Winter7gale, BSN 1112.22.333",
        '{"said": "Winter7gale", "number": "111222333", "other": "1112223334"}',
        "id 111-22-2333",
    ]
    assert redact(texts, RULES) == [
        "password: [SECRET_1], BSN [NATIONAL_ID_1]",
        '{"said": "[SECRET_1]", "number": "[NATIONAL_ID_1]", "other": "1112223334"}',
        "id [NATIONAL_ID_1]",
    ]


def test_a_value_within_another_does_not_tear_it():
    texts = ["mail ada@lantern.org and x.ada@lantern.org", "ada@lantern.org.x"]
    assert redact(texts, {"email"}) == ["mail [EMAIL_1] and [EMAIL_2]", "[EMAIL_1].x"]


def test_the_longer_of_two_values_is_replaced_first():
    texts = ["password: Winter7gale, pwd: Winter7gale-Harbour2", "say Winter7gale-Harbour2"]
    assert redact(texts, RULES) == ["password: [SECRET_1], pwd: [SECRET_2]", "say [SECRET_2]"]


def test_numbers_go_on_after_those_that_a_row_holds():
    assert redact(["[EMAIL_4] wrote to ada@lantern.org"], {"email"}) == ["[EMAIL_4] wrote to [EMAIL_5]"]


def test_a_placeholder_is_no_value():
    text = 'password = "[SECRET_1]", tel [PHONE_1234567], BSN [NATIONAL_ID_111222333]'
    assert find(text) == []
    assert redact([text, "[EMAIL_1], password: EMAIL_1"], RULES) == [text, "[EMAIL_1], password: [SECRET_2]"]


def test_rules_not_asked_for_leave_their_values():
    text = "ada@lantern.org, DE89 3704 0044 0532 0130 00"
    assert redact([text], {"iban"}) == ["ada@lantern.org, [IBAN_1]"]
    assert redact([text], set()) == [text]


def test_what_a_replaced_value_had_covered_is_replaced_too():
    # After a column of numbers the telephone is another one, after a placeholder it is a telephone.
    text = "4111 1111 1111 1111 030 901820"
    assert [one.rule for one in find(text)] == ["card"]
    assert redact([text], RULES) == ["[CARD_1] [PHONE_1]"]


PIECES = st.one_of(
    st.text(max_size=12),
    st.text("0123456789 .-+()/:@[]_", max_size=24),
    st.sampled_from([unmarked(text)[0] for _, text in FOUND] + NOT_FOUND + list(TOKENS.values())),
    st.sampled_from(["[EMAIL_1]", "[SECRET_2]", "BSN ", "tel ", "password: ", "\\n", " ", "«", "@", "4111"]),
)
TEXTS = st.lists(PIECES, max_size=5).map("".join)


@settings(deadline=None)
@given(text=TEXTS)
def test_spans_are_in_range_in_order_and_apart(text):
    found = find(text)
    ends = [end for one in found for end in (one.start, one.end)]
    assert all(one.start < one.end for one in found)
    assert ends == sorted(ends)
    assert not ends or (ends[0] >= 0 and ends[-1] <= len(text))


@settings(deadline=None)
@given(texts=st.lists(TEXTS, max_size=3), rules=st.sets(st.sampled_from(RULES)))
def test_redaction_leaves_nothing_to_find_and_nothing_to_redact(texts, rules):
    done = redact(texts, rules)
    assert [find(text, rules) for text in done] == [[] for _ in texts]
    assert redact(done, rules) == done
    assert redact(texts, rules) == done


@settings(deadline=None)
@given(texts=st.lists(TEXTS, max_size=3))
def test_texts_without_finds_stay_as_they_are(texts):
    if not any(map(find, texts)):
        assert redact(texts, RULES) == texts


@settings(deadline=None)
@given(text=TEXTS, value=st.sampled_from([text for text in TOKENS.values() if "=" not in text] + ["ada@lantern.org"]))
def test_the_same_value_has_the_same_placeholder_wherever_it_stands(text, value):
    rule = "email" if "@" in value else "secret"
    first, second = redact([f"{value} {text}", f"again {value} "], {rule})
    assert first.startswith(f"[{rule.upper()}_")
    assert second == f"again {first.split(']')[0]}] "


# ---------------------------------------------------------------------- secrets and the network


@pytest.fixture
def offline(monkeypatch):
    """Any look at the network, and any plugin's own check of a token, fails the test."""

    def refuse(*args, **kwargs):
        raise AssertionError("a secret went to the network")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    for plugin in [BasePlugin, *BasePlugin.__subclasses__()]:
        for name in {"verify", "analyze_line"} & set(vars(plugin)):
            monkeypatch.setattr(plugin, name, refuse)


def test_no_secret_goes_to_the_network(offline):
    for token in TOKENS.values():
        assert [one.rule for one in find(f"use {token} no more")] == ["secret"]
    assert [one.rule for one in find("https://ada:Winter7gale@lantern.org")] == ["secret"]


def test_every_plugin_is_still_where_it_was():
    for module, name, _, _ in secrets.PLUGINS:
        assert isinstance(secrets._plugin(module, name).secret_type, str)


def test_the_plugin_for_github_still_yields_no_more_than_a_prefix():
    # Once it yields the token, ours can go.
    assert list(GitHubTokenDetector().analyze_string(TOKENS["GitHub token"])) == ["ghp"]


def test_text_without_tokens_imports_no_scanner():
    program = "import sys; from tunesmith.curate.privacy import find; find('Ada, 030 901820'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert {"phonenumbers", "stdnum.luhn"} <= set(done.stdout.split())
    assert not {"detect_secrets", "requests", "torch"} & set(done.stdout.split())


# ---------------------------------------------------------------------- the measured figures


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(SCRIPT))


def test_the_stated_figures_hold(script):
    counts = script["measure"]()
    assert sum(count["planted"] for count in counts.values()) == script["ROWS"] // 2
    for rule, count in counts.items():
        for rate, least in zip(script["rates"](count), script["AT_LEAST"][rule], strict=True):
            assert rate >= least, rule


def test_figures_that_do_not_hold_are_told(script, monkeypatch, capsys):
    monkeypatch.setitem(script["AT_LEAST"], "iban", (1.1, 0.0))
    monkeypatch.setattr(sys, "argv", ["measure_privacy.py", "--rows", "280"])
    assert script["main"]() == 1
    assert "iban" in capsys.readouterr().err


def test_only_an_exact_find_counts(script, monkeypatch):
    found = [Found("email", 0, 4, "e-mail address")]
    monkeypatch.setitem(script["measure"].__globals__, "find", lambda text: found)
    counts = script["measure"](rows=140)
    assert counts["email"] == {"planted": 10, "found": 0, "false": 140}


def test_the_set_is_the_same_for_the_same_seed(script):
    def texts(seed):
        return [row.text for row in script["make_texts"](100, seed)]

    assert texts(1) == texts(1) != texts(2)
