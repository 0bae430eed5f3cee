"""Python: whether it parses, keeps rules, and passes tests; and what the box holds off."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluate.answers import SECTION, row, scorer
from tunesmith.errors import EnvironmentFault, UserError
from tunesmith.evaluate.box import isolation, run_tests
from tunesmith.evaluate.score_code import lint, parses

GOLD = "def add(a, b):\n    return a + b\n"
TESTS = "assert add(1, 2) == 3\nassert add(-1, 1) == 0\n"
RUN: dict[str, Any] = {"kind": "code", "run_tests": True, "primary": "tests_pass", "cpu_seconds": 1}


def scored(text: str, **more: Any) -> dict[str, Any]:
    found = scorer(None, **({"kind": "code"} | more)).score(text, True, row(GOLD, meta={"tests": TESTS}))
    return {**found, **found["scores"]}


def test_code_that_parses_does() -> None:
    assert scored(GOLD)["scores"] == {"parses": 1.0, "parses_lenient": 1.0}


def test_code_may_be_the_only_field_of_an_object() -> None:
    one = scorer(None, kind="code", field="code")
    gold = row(json.dumps({"code": GOLD}))
    assert one.score(gold.reference, True, gold)["scores"]["parses"] == 1.0
    for text, failure in ((GOLD, "unparseable"), ('{"code": 1}', "wrong_type"), ('{"code": " "}', "empty")):
        assert one.score(text, True, gold)["failure"] == failure


def test_a_fence_is_no_python_and_is_told_apart() -> None:
    result = scored(f"Here it is:\n```python\n{GOLD}```\n")
    assert (result["parses"], result["parses_lenient"], result["failure"]) == (0.0, 1.0, "wrapped")


@pytest.mark.parametrize("text", ["python x = (", "```\nx = (\n```", "def f(:\n", "x = 1 ```", "nohtyp\nx = ("])
def test_nothing_is_stripped_by_its_characters(text: str) -> None:
    result = scored(text)
    assert (result["parses"], result["parses_lenient"], result["failure"]) == (0.0, 0.0, "unparseable")


@pytest.mark.parametrize(
    "code", ["x = '\ud800'", "x = 1\0", "(" * 5000 + ")" * 5000, "-" * 100_000 + "1", "x" * 100_001, "9" * 5000]
)
def test_code_that_breaks_parsers_breaks_none_of_ours(code: str) -> None:
    assert parses(code) in (True, False)


def test_the_answer_itself_keeps_its_indentation() -> None:
    assert scored("    x = 1\n")["parses"] == 0.0


def test_rules_of_ruff_are_kept_or_told() -> None:
    result = scored("import os\n", rules=["F"], primary="lint_clean")
    assert (result["parses"], result["lint_clean"], result["failure"]) == (1.0, 0.0, "lint")
    assert scored(GOLD, rules=["F"], primary="lint_clean")["failure"] is None
    assert lint("import os  # noqa\n", ["F401"]) == ["F401"]  # an answer cannot excuse itself
    with pytest.raises(EnvironmentFault, match=r"score\.rules: ruff"):
        lint("x = 1\n", ["ZZZ9"])


# ---------------------------------------------------------------------- tests are run only where the recipe says so


def test_nothing_is_run_by_default(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    scored(f"open({str(mark)!r}, 'w').close()\n")
    assert not mark.exists()


def test_code_that_passes_its_tests_passes() -> None:
    assert (scored(GOLD, **RUN)["tests_pass"], scored(GOLD, **RUN)["failure"]) == (1.0, None)
    wrong = scored("def add(a, b):\n    return a - b\n", **RUN)
    assert (wrong["parses"], wrong["tests_pass"], wrong["failure"]) == (1.0, 0.0, "tests_failed")


def test_a_row_without_tests_is_the_users_fault() -> None:
    with pytest.raises(UserError, match=r"row 1: its reference has no `meta\.tests`"):
        scorer(None, **RUN).score(GOLD, True, row(GOLD))


LEAVES = {
    "sys.exit": "import sys\nsys.exit(0)\n",
    "os._exit": "import os\nos._exit(0)\n",
    "raise SystemExit": "raise SystemExit\n",
    "prints what tests print": "print('passed')\nimport os\nos._exit(0)\n",
    "a thread of its own": "import threading\nthreading.Thread(target=print).start()\nimport os\nos._exit(0)\n",
}


@pytest.mark.parametrize("code", LEAVES.values(), ids=LEAVES.keys())
def test_to_leave_early_is_not_to_pass(code: str) -> None:
    assert run_tests(code, "assert False\n", 1, 256) == "tests_failed"


def test_an_endless_loop_is_ended() -> None:
    began = time.monotonic()
    assert run_tests("while True: pass\n", "", 1, 256) == "tests_timeout"
    assert time.monotonic() - began < 20


def test_memory_is_limited() -> None:
    if sys.platform != "linux":
        pytest.skip("macOS sets no such limit")
    assert run_tests("x = bytearray(1 << 30)\n", "", 2, 128) == "tests_failed"


def test_a_large_file_is_not_written() -> None:
    assert run_tests("open('x', 'wb').write(b'0' * (1 << 22))\n", "", 2, 256) == "tests_failed"


def test_the_child_sees_no_variables_and_no_files_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOP_SECRET", "x")
    looks = "import os\nassert 'TOP_SECRET' not in os.environ\nassert os.listdir('.') == []\n"
    assert run_tests("", looks, 2, 256) == "passed"
    assert run_tests("", looks.replace("== []", "!= []"), 2, 256) == "tests_failed"


def test_there_is_no_network_where_namespaces_can_be_made() -> None:
    if not isolation():
        pytest.skip("this system lets no user make namespaces")
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        dial = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), timeout=1)\n"
        assert run_tests(dial, "", 2, 256) == "tests_failed"


# ---------------------------------------------------------------------- settings


def test_only_what_is_measured_can_be_primary() -> None:
    for primary, needs in (("lint_clean", "rules"), ("tests_pass", "run_tests: true")):
        with pytest.raises(ValueError, match=f"{primary} is not measured; state `{needs}`"):
            SECTION.validate_python({"kind": "code", "primary": primary})


@settings(deadline=None)
@given(st.text(max_size=60))
def test_no_text_raises(text: str) -> None:
    result = scored(text)
    assert (result["failure"] is None) == (result["parses"] == 1.0)
    assert result["parses"] <= result["parses_lenient"]
