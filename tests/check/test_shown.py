"""What a person sees of a check: every fault with its state, and rows whose loss is where the labels say."""

import re
from pathlib import Path

from tests.conftest import Tunesmith
from tunesmith.check.shown import spans
from tunesmith.files import read_json, write_json
from tunesmith.findings import FAULTS, Finding, seen, table, write
from tunesmith.line import Line
from tunesmith.prompt import Renderer


def test_spans_cover_the_row_and_carry_loss_where_the_labels_do(project: Path) -> None:
    line = Line("smoke")
    line.curate()
    row = line.dataset.rows("train")[0]
    renderer = Renderer(line.base.tokenizer(), line.base.end_ids())
    rendered, found = renderer.render(row), spans(row, renderer)
    assert "".join(span.text for span in found) == renderer.tokenizer.decode(rendered.input_ids)
    trained = "".join(span.text for span in found if span.carries_loss)
    assert trained == renderer.tokenizer.decode(rendered.completion_ids)
    assert {span.text.strip() for span in found if span.is_control} >= {"<|im_start|>", "<|im_end|>"}


def test_the_page_holds_the_rows_the_checks_and_all_thirty_faults(project: Path, tunesmith: Tunesmith) -> None:
    Line("smoke").curate()
    done = tunesmith("check", "smoke", "--show", "3")
    assert done.code == 0, done.err
    assert done.out.count("⟦") == 6  # each is announced once and stands once
    page = (project / done.out.splitlines()[-2]).read_text()
    assert page.count('<div class="row">') == 3
    assert page.count('<span class="loss ">{&#34;colour&#34;') == 3
    assert all(fault.title.replace("'", "&#39;") in page for fault in FAULTS.values())
    assert not re.search(r"<script|https?://", page)
    none = tunesmith("check", "smoke", "--show", "0")
    assert "⟦" not in none.out


def test_the_table_takes_the_gravest_finding_of_each_fault_from_every_stage(tmp_path: Path) -> None:
    assert [line["status"] for line in table(tmp_path)] == ["LATER"] * 30
    found = [
        seen("a", (1, 2), True, "wanted", "found a"),
        seen("b", (2,), False, "wanted", "found b", "mend b", grave=False),
        Finding("c", "FAIL", "wanted", faults=(3,), evidence="found c", remedy="mend c"),
    ]
    write(tmp_path, "train", found)
    write(tmp_path, "merge", [seen("d", (3,), True, "wanted", "found d")])
    terms = [{"name": "same_rows", "pass": False, "undecided": True, "says": "once"}]
    write_json(tmp_path / "verdict.json", {"terms": terms})
    lines = {line["number"]: line for line in table(tmp_path)}
    assert [lines[n]["status"] for n in (1, 2, 3, 4, 25)] == ["PASS", "WARN", "FAIL", "LATER", "WARN"]
    assert lines[2]["evidence"] == "found a; found b"
    assert lines[3]["remedy"] == "mend c"
    assert read_json(tmp_path / "train-check.json")["checks"][0]["faults"] == [1, 2]
