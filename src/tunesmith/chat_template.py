"""A base's chat template, which is a program by the base's author: tried out in a box before anything renders with it.

transformers renders templates in jinja's sandbox, so that they reach no Python; but the sandbox bounds neither time nor
memory. A template is first rendered in a process of its own, with little of both, and one that is stopped there is
refused. What it then does with a row that it was not tried with is bounded in time.
"""

import json
import os
import re
import resource
import select
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

from tunesmith.errors import UserError

LARGEST = 64 * 1024
"""Bytes of a template; the longest of those in use hold about 20 Ki."""
LONGEST_OUTPUT = 1 << 20
"""Characters of a short conversation, once rendered."""
MEMORY = 1 << 30
"""Bytes that trying a template may take beyond what the process holds."""
TRIAL_SECONDS = 5
"""Of computing, to try a template."""
ROW_SECONDS = 20
"""Of computing, to render one row."""

INSIDES = re.compile(
    r"__(?:class|globals|init|subclasses|mro|bases?|builtins|import|dict|code|getattribute|reduce)\w*__"
)
"""Of Python's objects: the sandbox refuses them or gives nothing, and no conversation needs them."""

QUESTION = {"role": "user", "content": "What is 2 + 3?"}
ANSWER = {"role": "assistant", "content": "5"}
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    },
}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
CONVERSATIONS: list[dict[str, Any]] = [
    {"messages": [QUESTION]},
    {"messages": [QUESTION, ANSWER]},
    {"messages": [{"role": "system", "content": "Be brief."}, *[QUESTION, ANSWER] * 12, QUESTION]},
    {"messages": [QUESTION], "tools": [TOOL]},
    {
        "messages": [
            QUESTION,
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "name": "add", "content": "5"},
            ANSWER,
        ],
        "tools": [TOOL],
    },
]
"""What a template is tried with. It may refuse some of them, as many refuse a system message or tools."""


def refuse_unfit(template: str | Mapping[str, str]) -> None:
    """Refuse a chat template, or several by name, that could not be rendered in the box.

    Raises:
        UserError: it is too large, cannot be parsed, reaches for Python, or takes more than its time, memory or output.
    """
    texts = {"": template} if isinstance(template, str) else dict(template)
    problems = [
        f"the base's chat template{f' {name!r}' if name else ''} {problem}"
        for name, text in texts.items()
        if (problem := _problem(text))
    ]
    if problems:
        raise UserError(problems, hint="a chat template is a program: take the base from its maker, or pick another")


@contextmanager
def bounded() -> Iterator[None]:
    """Bound the computing inside, which renders one row: in a process's main thread, where alone a signal arrives.

    Raises:
        UserError: it took longer than `ROW_SECONDS`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise UserError(f"the base's chat template computed for {ROW_SECONDS} s on one row; pick another base")

    # Computing and not waiting is counted: a machine that sleeps or is busy refuses nothing.
    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, ROW_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@cache
def _problem(template: str) -> str | None:
    """What is wrong with a template, if anything is."""
    size = len(template.encode())
    if size > LARGEST:
        return f"holds {size} bytes; at most {LARGEST // 1024} KiB are read"
    if found := INSIDES.search(template):
        return f"reaches for Python's insides ({found[0]})"
    # Imported here, for both processes.
    import transformers.utils.chat_template_utils  # noqa: F401

    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        # No cleaning up: it is the parent's.
        try:
            os.close(reading)
            _confine()
            os.write(writing, json.dumps({"problem": _tried(template)}).encode())
        finally:
            os._exit(0)
    os.close(writing)
    # The child's own limit is on computing; it could also sleep.
    ready, _, _ = select.select([reading], [], [], 10 * TRIAL_SECONDS)
    told = os.read(reading, 4096) if ready else b""
    os.close(reading)
    if not ready:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if told:
        problem: str | None = json.loads(told)["problem"]
        return problem
    killed = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else "without a word"
    return f"did not come to an end within {TRIAL_SECONDS} s on a short conversation ({killed})"


def _confine() -> None:
    """Give this process little time and memory, and nothing to write to."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGVTALRM):
        signal.signal(number, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CPU, (TRIAL_SECONDS, TRIAL_SECONDS))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        with open("/proc/self/statm", encoding="ascii") as stream:
            held = int(stream.read().split()[0]) * resource.getpagesize()
    except OSError:
        return  # No Linux: memory is not bounded, time is.
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))


def _tried(template: str) -> str | None:
    """Render every conversation, and say what is wrong if something is."""
    from jinja2 import TemplateError, TemplateSyntaxError
    from jinja2.exceptions import SecurityError
    from transformers.utils.chat_template_utils import render_jinja_template

    for conversation in CONVERSATIONS:
        for add_generation_prompt in (True, False):
            try:
                (text,), _ = render_jinja_template(
                    [conversation["messages"]],
                    tools=conversation.get("tools"),
                    chat_template=template,
                    add_generation_prompt=add_generation_prompt,
                    bos_token="<s>",
                    eos_token="</s>",
                )
            except SecurityError as error:
                return f"reaches for what the sandbox forbids ({_short(error)})"
            except TemplateSyntaxError as error:
                return f"cannot be parsed (line {error.lineno}: {_short(error)})"
            except (RecursionError, MemoryError, SyntaxError, OverflowError) as error:
                return f"cannot be rendered ({type(error).__name__}: {_short(error)})"
            except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError):
                # What the template refuses, or was not written for: told at the row that brings it.
                continue
            if len(text) > LONGEST_OUTPUT:
                return f"writes {len(text)} characters for a short conversation"
    return None


def _short(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0][:160] if lines else "no details"
