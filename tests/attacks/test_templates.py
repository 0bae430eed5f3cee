"""S4: a chat template is a program by whoever made the base. It reaches nothing, and it comes to an end."""

import contextlib
import time

import jinja2
import pytest
from transformers import AutoTokenizer

from tests.attacks.conftest import Canary, Spoiled
from tunesmith import chat_template
from tunesmith.errors import UserError
from tunesmith.prompt import Renderer
from tunesmith.rows import Message, Row

LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
TURNS = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"

REACHING = {
    "globals of a function": "{{{{ lipsum.__globals__[{quoted}] }}}}",
    "globals by a filter": "{{{{ (lipsum|attr('__globals__'))['os'].popen('touch {path}').read() }}}}",
    "globals in pieces": "{{{{ (lipsum|attr('__glo' ~ 'bals__'))['os'].popen('touch {path}').read() }}}}",
    "globals by a key": "{{{{ cycler['__in' ~ 'it__']['__glo' ~ 'bals__'].os.popen('touch {path}').read() }}}}",
    "all classes": "{{{{ ''.__class__.__mro__[1].__subclasses__() }}}}",
    "a format": "{{{{ '{{0.__class__.__init__.__globals__}}'.format(lipsum) }}}}",
    "another file": "{{% include '/etc/hostname' %}}",
    "another template": "{{% import '/etc/passwd' as p %}}{{{{ p }}}}",
}

ENDLESS = {
    "loops in loops": (LOOPS, "did not come to an end within 1 s"),
    "a range": ("{% for i in range(10**9) %}x{% endfor %}", "Range too big"),
    "a power": ("{{ 10**(10**9) }}", "did not come to an end within 1 s"),
    "a long text": ("{{ 'a' * 10**11 }}", "MemoryError"),
    "a wide text": ("{{ 'x'|center(10**10) }}", "MemoryError"),
    "a long list": ("{{ ([0] * 10**10)|length }}", "MemoryError"),
    "much that is written": ("{% for i in range(9999) %}" + "y" * 500 + "{% endfor %}", "writes 4999500 characters"),
    "a macro that calls itself": ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "RecursionError"),
    "nested parentheses": ("{{ " + "(" * 6000 + "1" + ")" * 6000 + " }}", "RecursionError"),
    "nested blocks": ("{% if 1 %}" * 3000 + "{% endif %}" * 3000, "RecursionError"),
    "more than 64 KiB": (TURNS + "x" * 65_536, "at most 64 KiB are read"),
    "no template": ("{% for m in messages %}", "cannot be parsed"),
}


@pytest.fixture
def tokenizer(tiny_base):
    return AutoTokenizer.from_pretrained(tiny_base, local_files_only=True)


@pytest.mark.parametrize("template", REACHING.values(), ids=REACHING.keys())
def test_a_template_reaches_neither_python_nor_files(tokenizer, canary: Canary, template: str) -> None:
    tokenizer.chat_template = template.format(path=canary.path, quoted=repr("os")) + TURNS
    asked = [Message(role="user", content="x")]
    with contextlib.suppress(UserError):
        # Where it is not refused, the sandbox gave nothing for what was reached for.
        assert tokenizer.decode(Renderer(tokenizer).prompt_ids(asked)) == "<|im_start|>user\nx<|im_end|>\n"
    # And where nobody looks beforehand, the sandbox alone holds.
    with contextlib.suppress(jinja2.TemplateError, TypeError):
        text = str(tokenizer.apply_chat_template([asked[0].as_dict()], tokenize=False))
        assert text == "<|im_start|>user\nx<|im_end|>\n"


@pytest.mark.parametrize(("template", "says"), ENDLESS.values(), ids=ENDLESS.keys())
def test_a_template_without_end_is_refused_before_a_row_meets_it(
    tokenizer, monkeypatch: pytest.MonkeyPatch, template: str, says: str
) -> None:
    monkeypatch.setattr(chat_template, "TRIAL_SECONDS", 1)
    monkeypatch.setattr(chat_template, "MEMORY", 1 << 28)
    tokenizer.chat_template = template
    with pytest.raises(UserError) as refused:
        Renderer(tokenizer)
    assert says in refused.value.text
    chat_template._problem.cache_clear()


def test_one_of_several_templates_is_enough_to_refuse_a_base(tokenizer) -> None:
    tokenizer.chat_template = {"default": TURNS, "tool_use": "{{ lipsum.__globals__ }}"}
    with pytest.raises(UserError, match="chat template 'tool_use' reaches for Python's insides"):
        Renderer(tokenizer)


def test_a_template_that_waits_for_a_certain_row_is_stopped_there(tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "ROW_SECONDS", 0.5)
    tokenizer.chat_template = "{% if 'bomb' in messages[0].content %}" + LOOPS + "{% endif %}" + TURNS
    renderer = Renderer(tokenizer)
    harmless, bomb = (
        Row(
            id="r",
            group="g",
            messages=[Message(role="user", content=text)],
            completion=Message(role="assistant", content="y"),
        )
        for text in ("tea", "bomb")
    )
    assert renderer.render(harmless).ends
    began = time.process_time()
    with pytest.raises(UserError, match=r"computed for 0\.5 s on one row"):
        renderer.render(bomb)
    assert time.process_time() - began < 5
    # The clock is off again.
    assert renderer.render(harmless).ends


def test_the_command_tells_it_as_the_bases_fault(spoiled: Spoiled) -> None:
    (spoiled.root / ".cache" / "tiny-base" / "chat_template.jinja").write_text(LOOPS)
    said = spoiled.refuses("check", "chat template did not come to an end within 5 s on a short conversation")
    assert "a chat template is a program: take the base from its maker" in said
