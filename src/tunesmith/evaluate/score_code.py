"""Score one answer that is Python: whether it parses, keeps rules of ruff, and passes its row's tests.

The tests are run only where the recipe says `run_tests: true`, in a child process (`tunesmith.evaluate.box`). Strict is
the whole answer as code; code in a fence counts in `parses_lenient` alone.
"""

import ast
import json
import re
import subprocess
import sys
import warnings
from importlib.util import find_spec
from typing import Any

from tunesmith.errors import EnvironmentFault
from tunesmith.evaluate.box import run_tests
from tunesmith.evaluate.score_form import NOTHING, Validator, read_field, reference_text, transport
from tunesmith.rows import Row
from tunesmith.scoring import CodeScore

FENCE = re.compile(r"^(?P<fence>`{3,}|~{3,})[^\n`]*\n(?P<code>.*?)^(?P=fence)[ \t]*$", re.DOTALL | re.MULTILINE)
"""A fenced block: its fences stand on lines of their own. Nothing is stripped by its characters."""
LONGEST = 100_000
"""Characters of code that are parsed; more is no answer."""


def score(text: str, ended: bool, row: Row, settings: CodeScore, validator: Validator | None) -> dict[str, Any]:
    """Score an answer by its code.

    Raises:
        ValueError: the reference holds no text, or the row no `meta.tests` where they are to be run.
    """
    reference_text(row.reference, settings.field)
    if settings.field is None:
        code, labels = text if text.strip() else None, transport(text, ended)
        lenient = text
    else:
        form = read_field(text, ended, settings.field, validator)
        code = form.strict if isinstance(form.strict, str) and form.strict.strip() else None
        lenient, labels = form.lenient, set(form.labels)
        if code is None and form.strict is not NOTHING:
            labels.add("empty" if isinstance(form.strict, str) else "wrong_type")
    ok = code is not None and parses(code)
    fenced = FENCE.search(lenient) if isinstance(lenient, str) else None
    unwrapped = fenced is not None and parses(fenced["code"])
    scores = {"parses": float(ok), "parses_lenient": float(ok or unwrapped)}
    if not ok and code is not None:
        labels.add("wrapped" if unwrapped else "unparseable")
    faults: set[str] = set()
    if settings.rules:
        broken = lint(code, settings.rules) if ok and code is not None else []
        scores["lint_clean"] = float(ok and not broken)
        faults |= {"lint"} if broken else set()
    if settings.run_tests:
        tests = (row.meta or {}).get("tests")
        if not isinstance(tests, str) or not tests.strip():
            raise ValueError("has no `meta.tests`, a text of Python that checks the code")
        outcome = run_tests(code, tests, settings.cpu_seconds, settings.memory_mib) if ok and code is not None else ""
        scores["tests_pass"] = float(outcome == "passed")
        faults |= {outcome} - {"passed", ""}
    return {"scores": scores, "labels": labels | faults if not ok or faults else set()}


def parses(code: str) -> bool:
    """Whether a text is Python of this interpreter's version."""
    if len(code) > LONGEST:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(code)
    # Null bytes, half surrogate pairs, and nesting beyond the parser's stack.
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def lint(code: str, rules: list[str]) -> list[str]:
    """The rules of ruff that code breaks, by code; none of the machine's own settings count.

    Raises:
        EnvironmentFault: ruff is not installed, or does not know a rule.
    """
    if find_spec("ruff") is None:
        raise EnvironmentFault("score.rules: ruff is not installed; `pip install ruff`")
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--quiet", "--output-format=json"]
    command += ["--select", ",".join(rules), "--ignore-noqa", "-"]
    done = subprocess.run(command, input=code.encode(), capture_output=True, check=False, timeout=60)
    if done.returncode not in (0, 1):
        raise EnvironmentFault(f"score.rules: ruff: {done.stderr.decode(errors='replace').strip()[:300]}")
    return [str(found["code"]) for found in json.loads(done.stdout or b"[]")]
