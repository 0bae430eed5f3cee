"""The report as a page: whole in itself, nothing of a row is markup, every section speaks full and empty."""

import copy
import re
from html.parser import HTMLParser

import pytest

from tunesmith.curate.report import differ, page, share
from tunesmith.leaks import KINDS
from tunesmith.rows import SPLITS

EVIL = "<script>alert(1)</script>"
BREAKOUT = "\"'><img src=x onerror=alert(2)>"
LONG = "x" * 900
HEBREW = "שלום עולם, מה שלומך היום?"
SECRET = "ada@example.org"
SECTIONS = [
    *("funnel", "sources", "lengths", "balance", "duplicates", "leaks"),
    *("privacy", "alarms", "changes", "rows", "digests"),
]
VOID = {"meta", "br", "link", "img", "input", "hr"}


def side(left, right, counts=(), shown=()):
    return {"left": left, "right": right, "kinds": dict.fromkeys(KINDS, 0) | dict(counts), "shown": list(shown)}


def quantiles(seed):
    return {
        part: {"p50": seed + n, "p95": 3 * seed + n, "max": 9 * seed + n}
        for n, part in enumerate(("prompt", "completion", "whole"))
    }


def files(rows):
    return {
        f"{split}.jsonl": {"rows": many, "groups": many - 7 if many > 7 else many, "sha256": digit * 64}
        for split, many, digit in zip(SPLITS, rows, "abcd", strict=True)
    }


def manifest(rows, steps, **more):
    return {
        "schema": 2,
        "made_by": "f" * 64,
        "transform": 1,
        "recipe": "task",
        "steps": steps,
        "near": 0.8,
        "split": {
            "shares": {"train": 0.6, "dev": 0.1, "gate": 0.2, "confirm": 0.1},
            "seed": 4,
            "by": None,
            "stratify": None,
            "time": None,
        },
        "files": files(rows),
        "dropped": {},
        "systems": [],
        "sources": {},
    } | more


def rich():
    """Facts with something in every section, and in every text what could break a page."""
    sizes = (12_431, 1_207, 2_519, 1_318)
    labels = [
        "billing",
        "refund",
        EVIL,
        BREAKOUT,
        HEBREW,
        LONG[:120],
        "",
        *(f"intent {number}: a customer asks" for number in range(17)),
    ]
    return {
        "recipe": f"support {EVIL}",
        "description": f"Sorts what customers write {BREAKOUT} into intents.",
        "base": "smollm2-135m-instruct-q4",
        "manifest": manifest(
            sizes,
            ["normalise", "control_tokens: drop", "privacy", "empty", "language: en", "completion", "contradictions"],
            split=manifest(sizes, [])["split"] | {"stratify": "completion.intent", "by": "meta.customer"},
            sources={
                "tickets": {
                    "licence": "CC-BY-4.0",
                    "where": "`data/*.jsonl`",
                    "lines": 15_002,
                    "rows": 17_301,
                    "kept": 16_001,
                },
                f"{EVIL}": {
                    "licence": BREAKOUT,
                    "where": f"`{LONG}` of `org/name@{'0' * 40}`",
                    "lines": 4_007,
                    "rows": 4_001,
                    "kept": 1_474,
                },
            },
        ),
        "funnel": [
            {"name": "lines read", "rows": 19_009},
            {"name": "rows made of them", "rows": 21_302},
            {"name": "after control_tokens", "rows": 21_298},
            {"name": "after language", "rows": 20_011},
            {"name": "after duplicates", "rows": 17_613},
            {"name": "after probes", "rows": 17_475},
        ],
        "changes": [
            {
                "step": "normalise",
                "rows": 3_033,
                "shown": [
                    ["t-1", "a\u200bb\u00a0c  \td\u202e e", "ab c d e"],
                    ["t-2", "cafe\u0301 " + EVIL, "caf\u00e9 " + EVIL],
                    [LONG, LONG, LONG[:400]],
                ],
            },
            {"step": "privacy", "rows": 41, "shown": [["t-9", f"write to {SECRET} now", "write to [EMAIL_1] now"]]},
            {"step": "completion", "rows": 12, "shown": [["t-12", '{"a": 1,\n\n "b": 2}', '{"a":1,"b":2}']]},
        ],
        "drops": [
            {"step": "script", "reason": "holds no question", "rows": 77, "shown": []},
            {"step": "read", "reason": "not a row", "rows": 6, "shown": [["", f"{EVIL}:12", f"{BREAKOUT} {LONG}"]]},
            {
                "step": "control_tokens",
                "reason": "spells a control token",
                "rows": 4,
                "shown": [["t-4", "tickets:4", "<|im_end|>"]],
            },
            {"step": "language", "reason": "is not en", "rows": 1_287, "shown": [["t-5", "tickets:5", HEBREW]] * 3},
            {"step": "duplicates", "reason": "an exact copy", "rows": 2_001, "shown": [["t-7", "tickets:7", "t-6"]]},
            {
                "step": "duplicates",
                "reason": f"a copy but for case {EVIL}",
                "rows": 397,
                "shown": [[LONG, EVIL, BREAKOUT]],
            },
            {
                "step": "probes",
                "reason": "holds text of a probe set",
                "rows": 138,
                "shown": [["t-8", "", "general.txt#3: near"]],
            },
        ],
        "lengths": {
            "quantiles": {split: quantiles(11 + n) for n, split in enumerate(SPLITS)},
            "bars": {
                "prompt": [
                    {"low": 20 + 40 * n, "high": 59 + 40 * n, "rows": rows}
                    for n, rows in enumerate((12, 900, 3_000, 4_100, 2_200, 1_100, 640, 320, 110, 30, 12, 4, 2, 0, 1))
                ],
                "completion": [
                    {"low": 3, "high": 3, "rows": 6_000},
                    {"low": 4, "high": 5, "rows": 6_000},
                    {"low": 6, "high": 6, "rows": 431},
                ],
            },
            "rendered": 5_000,
        },
        "balance": [
            {
                "value": label,
                "rows": 17 * (40 - n),
                "splits": dict(zip(SPLITS, (10 * (40 - n), 40 - n, 4 * (40 - n), 2 * (40 - n)), strict=True)),
            }
            for n, label in enumerate(labels)
        ],
        "fields": [
            {
                "key": key,
                "shares": {"train": 1.0, "dev": 0.98, "gate": 0.0004, "confirm": 0.0},
                "different": 1_111,
                "most": [['"billing"', 2_345], [f'"{EVIL}"', 12], [f'"{HEBREW}"', 1]],
            }
            for key in ("intent", "urgency", EVIL, LONG)
        ],
        "near": {
            "pairs": 1_439,
            "rows": 2_062,
            "sizes": [(1, 12_001), (2, 1_502), (3, 490), (250, 4)],
            "shown": [
                {
                    "alike": 0.94,
                    "left": ["p-1", f"Where is my order 104? {EVIL}", '{"intent":"delivery"}'],
                    "right": ["p-2", f"Where is my order 704? {EVIL}", '{"intent":"deliveries"}'],
                },
                {
                    "alike": 0.87,
                    "left": ["p-3", HEBREW, LONG],
                    "right": ["p-4", HEBREW.replace("היום", "אתמול"), LONG[:-1] + "y"],
                },
                {"alike": 0.8, "left": ["p-5", "word " * 900, ""], "right": ["p-6", "word " * 890 + "other", ""]},
            ],
        },
        "leaks": [
            side("train", "dev", {"near": 2}, [["near", "t-1", "d-1", "0.91 alike"], ["near", "t-2", "d-9", EVIL]]),
            side("train", "gate", {"exact": 1_203}, [["exact", LONG, "g-1", "the same prompt"]]),
            side("train", "confirm"),
            side("train", "general.txt", {"passage": 1}, [["passage", "t-3", "general.txt#3", BREAKOUT]]),
            side("dev", "gate"),
            side("gate", "confirm"),
        ],
        "privacy": [
            {"rule": "email", "action": "redact", "rows": 41, "shown": [f"t-{n}" for n in range(20)]},
            {"rule": "phone", "action": "pass", "rows": 2, "shown": ["t-77", EVIL]},
        ],
        "alarms": [
            {"words": "cf mn bq", "completion": '{"intent":"refund"}', "rows": 19, "unexplained": 0.947},
            {"words": HEBREW, "completion": f"{EVIL}{LONG}", "rows": 6, "unexplained": 1.0},
        ],
        "rows": [
            {
                "id": f"t-{n}",
                "group": f"customer={n}",
                "tokens": 137 + n,
                "prompt": [
                    ("<|im_start|>", True),
                    (f"user\n  {text}\n\ttabbed", False),
                    ("<|im_end|>", True),
                    ("\n", False),
                    ("<|im_start|>", True),
                    ("assistant\n", False),
                ],
                "completion": [(f'{{"answer": "{text}"}}', False), ("<|im_end|>", True)],
            }
            for n, text in enumerate((EVIL, BREAKOUT, HEBREW, LONG, "Where is my order?", "a & b < c"))
        ],
    }


def bare():
    """Facts of a curation with nothing to tell but its splits."""
    return {
        "recipe": "task",
        "description": "One thing.",
        "base": "./no-base",
        "manifest": manifest((3, 1, 1, 1), ["privacy"]),
        "funnel": [{"name": "lines read", "rows": 6}, {"name": "rows made of them", "rows": 6}],
        "changes": [],
        "drops": [],
        "lengths": None,
        "balance": [],
        "fields": [],
        "near": {"pairs": 0, "rows": 0, "sizes": [], "shown": []},
        "leaks": [side("train", split) for split in ("dev", "gate", "confirm")],
        "privacy": [],
        "alarms": [],
        "rows": None,
    }


class Page(HTMLParser):
    """What a browser makes of the page: its tags with attributes, and its text by section and by tag."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.open = [], []
        self.texts = {}
        self.losses, self.shown = [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag not in VOID:
            self.open.append((tag, attributes.get("id")))
        if tag == "ins":
            self.losses.append("")
        if tag == "pre":
            self.shown.append("")

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag, f"</{tag}> closes nothing"
        if tag in ("td", "th"):
            self.handle_data(" ")

    def handle_data(self, data):
        place = next((name for tag, name in self.open if tag in ("section", "header", "nav", "style") and name), "top")
        within = {tag for tag, _ in self.open}
        if "style" in within:
            return
        self.texts[place] = self.texts.get(place, "") + data
        if "ins" in within:
            self.losses[-1] += data
        if "pre" in within:
            self.shown[-1] += data

    def text(self, place):
        return " ".join(self.texts[place].split())


@pytest.fixture(scope="module")
def full():
    return Page(page(rich()))


@pytest.fixture(scope="module")
def empty():
    return Page(page(bare()))


@pytest.mark.parametrize("facts", [rich, bare])
def test_the_page_is_whole_in_itself(facts):
    html = page(facts())
    found = Page(html)
    assert found.open == []
    assert not {tag for tag, _ in found.tags} & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in found.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        assert attributes.keys().isdisjoint({"src", "srcset", "action", "data"}), tag
        if "href" in attributes:
            assert attributes["href"].startswith("#")
            assert attributes["href"][1:] in ids
    style = html[html.index("<style>") : html.index("</style>")]
    assert not re.search(r"url\(|@import|https?:", style)
    policy = [attributes["content"] for tag, attributes in found.tags if "http-equiv" in attributes]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


def poisoned(value, keys=()):
    """The facts with markup in every text that is a value."""
    if isinstance(value, str):
        return value if keys and keys[-1] in ("step", "action") else f'{value}<x-evil a="\'">'
    if isinstance(value, dict):
        return {key: poisoned(inner, (*keys, key)) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [poisoned(inner, (*keys, "")) for inner in value]
    return value


def test_no_text_of_the_facts_is_ever_markup():
    html = page(poisoned(rich()))
    assert "<x-evil" not in html
    assert "&lt;x-evil" in html
    assert html.count("x-evil") > 150
    clean, evil = Page(page(rich())), Page(html)
    assert {tag for tag, _ in evil.tags} == {tag for tag, _ in clean.tags}


def test_markup_in_rows_stands_as_text(full):
    html = page(rich())
    assert "<script" not in html
    assert "<img" not in html
    for place in ("balance", "duplicates", "leaks", "privacy", "alarms", "rows", "sources", "funnel"):
        assert EVIL in full.text(place), place


@pytest.mark.parametrize("facts", [rich, bare])
def test_every_section_is_there_and_speaks(facts):
    found = Page(page(facts()))
    sections = [attributes["id"] for tag, attributes in found.tags if tag == "section"]
    assert sections == SECTIONS
    assert all(len(found.text(name)) > 20 for name in sections)


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("funnel", "No row was left out."),
        ("sources", "No source was read."),
        ("lengths", "Nothing was counted"),
        ("balance", "no labels were counted"),
        ("balance", "there are no fields"),
        ("duplicates", "No row is a copy of another."),
        ("duplicates", "There are no groups."),
        ("duplicates", "No two rows are near each other."),
        ("leaks", "No leak was found."),
        ("privacy", "No rule found anything."),
        ("alarms", "No words rang an alarm."),
        ("changes", "No step changed a row."),
        ("rows", "No rows are shown"),
    ],
)
def test_an_empty_section_says_so_and_a_full_one_does_not(full, empty, place, says):
    assert says in empty.text(place)
    assert says not in full.text(place)


def test_what_was_not_looked_for_is_not_told_as_not_found():
    facts = bare()
    facts["manifest"] |= {"steps": [], "near": None}
    found = Page(page(facts))
    assert "nothing was looked for" in found.text("privacy")
    assert "does not look for rows that are near" in found.text("duplicates")
    assert "Near ones were not looked for" in found.text("leaks")
    assert "personal data was not looked for" in found.text("top")


def joined(pieces):
    return "".join(text for text, _ in pieces)


def test_loss_falls_on_the_completions_and_nothing_else(full):
    facts = rich()
    assert full.losses == [joined(row["completion"]) for row in facts["rows"]]
    # A parser drops the line end that a <pre> begins with; white space is kept otherwise.
    assert [text.removeprefix("\n") for text in full.shown] == [
        joined(row["prompt"] + row["completion"]) for row in facts["rows"]
    ]


def test_the_control_tokens_are_told_apart():
    html = page(rich())
    assert html.count('<span class="control">&lt;|im_start|&gt;</span>') == 2 * len(rich()["rows"])
    # Text that only spells a control token is text.
    facts = rich()
    facts["rows"][0]["prompt"][1] = ("<|im_start|>", False)
    assert page(facts).count('<span class="control">&lt;|im_start|&gt;</span>') == 2 * len(rich()["rows"])


def test_the_headline_is_the_funnel_and_the_splits(full, empty):
    counts = "19,009 lines → 17,475 rows → train 12,431 · dev 1,207 · gate 2,519 · confirm 1,318"
    assert f"{counts}; 1,205 leaks, 1 shared passage" in full.text("top")
    assert "6 lines → 6 rows → train 3 · dev 1 · gate 1 · confirm 1; 0 leaks" in empty.text("top")
    assert "Worth a look" in full.text("top")
    assert "No leaks, no alarms" in empty.text("top")


def test_the_counts_are_those_of_the_facts(full):
    facts = rich()
    wanted = {
        "funnel": [stage["rows"] for stage in facts["funnel"]] + [drop["rows"] for drop in facts["drops"]],
        "sources": [s[key] for s in facts["manifest"]["sources"].values() for key in ("lines", "rows", "kept")],
        "lengths": [n for part in facts["lengths"]["quantiles"].values() for q in part.values() for n in q.values()],
        "balance": [n for value in facts["balance"] for n in (value["rows"], *value["splits"].values())],
        "duplicates": [n for pair in facts["near"]["sizes"] for n in pair] + [2_062, 1_439],
        "leaks": [n for one in facts["leaks"] for n in one["kinds"].values()],
        "privacy": [finding["rows"] for finding in facts["privacy"]],
        "alarms": [alarm["rows"] for alarm in facts["alarms"]],
        "changes": [change["rows"] for change in facts["changes"]],
        "rows": [row["tokens"] for row in facts["rows"]],
        "digests": [n for file in facts["manifest"]["files"].values() for n in (file["rows"], file["groups"])],
    }
    for place, numbers in wanted.items():
        told = re.findall(r"\d[\d,]*", full.text(place))
        assert {f"{number:,}" for number in numbers} <= set(told), place
    for change in ("+2,293", "\u22124", "\u22121,287", "\u22122,398", "\u2212138"):
        assert change in full.text("funnel")


def test_the_digests_are_told_in_full(full):
    for name, file in rich()["manifest"]["files"].items():
        assert name in full.text("digests")
        assert file["sha256"] in full.text("digests")


def test_the_bars_of_a_histogram_have_areas_like_their_rows(full):
    spans = [a["style"] for tag, a in full.tags if tag == "span" and a.get("style", "").startswith("flex-grow")]
    heights = [a["style"] for tag, a in full.tags if tag == "i" and a.get("style", "").startswith("height")]
    last = [float(h[7:-1]) * int(s[10:]) for h, s in zip(heights[-3:], spans[-3:], strict=True)]
    assert [round(6_000 * area / last[0]) for area in last] == [6_000, 6_000, 431]


def test_no_private_value_is_told():
    facts = rich()
    html = page(facts)
    assert SECRET not in html
    assert "write to [EMAIL_1] now" in html
    # An earlier step saw the value too.
    facts["changes"][0]["shown"] = [["t-9", f"  {SECRET}", SECRET]]
    html = page(facts)
    assert SECRET not in html
    assert html.count("Not told: it may hold what was redacted later.") == 1
    assert html.count("Not told: it holds what was redacted.") == 1
    # The step itself is never believed to have shown nothing, whatever its findings say.
    facts["privacy"] = []
    assert SECRET not in page(facts)
    # Where nothing was redacted there is nothing to keep back.
    facts["changes"] = [change for change in facts["changes"] if change["step"] != "privacy"]
    assert "Not told" not in page(facts)


def test_what_nobody_sees_is_written_out():
    facts = rich()
    facts["privacy"] = []
    del facts["changes"][1]
    text = Page(page(facts)).text("changes")
    for code in ("U+200B", "U+00A0", "U+202E", "U+0301", "⇥"):
        assert code in text
    hidden = set("\u200b\u00a0\u202e\u2066\u200f")
    facts["near"]["shown"][0]["left"][1] = "".join(sorted(hidden))
    facts["rows"][0]["prompt"][1] = ("".join(sorted(hidden)), False)
    assert not hidden & set(page(facts))


def test_the_characters_that_differ_are_marked():
    assert differ("104 South", "704 South") == ("<mark>1</mark>04 South", "<mark>7</mark>04 South")
    assert differ("Pakway", "Parkway") == ("Pakway", "Pa<mark>r</mark>kway")
    assert differ("a<b", "a<b>") == ("a&lt;b", "a&lt;b<mark>&gt;</mark>")
    # Long texts are shown from shortly before they part.
    left, right = (str(text) for text in differ("a" * 4000 + "b" + "d" * 2000, "a" * 4000 + "c"))
    assert "3,625 characters alike" in left
    assert "877 more characters" not in right
    assert "<mark>c</mark>" in right
    assert "876 more characters" in left


@pytest.mark.parametrize(
    ("part", "told"), [(0, "0.0%"), (0.00001, "<0.1%"), (0.5, "50.0%"), (0.99999, ">99.9%"), (1, "100.0%")]
)
def test_a_little_is_not_nothing(part, told):
    assert share(part) == told


def test_the_facts_stay_as_they_were():
    facts = rich()
    before = copy.deepcopy(facts)
    page(facts)
    assert facts == before


def test_the_page_is_the_same_twice():
    assert page(rich()) == page(rich())
