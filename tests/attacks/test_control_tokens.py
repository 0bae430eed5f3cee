"""S8: whatever a row's text spells, the ids hold the control tokens that the template writes and no others."""

from pathlib import Path

import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer

from tunesmith.prompt import Renderer
from tunesmith.rows import Message, Row

TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>tools\n' + tools | tojson + '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.name %}{{ m.name + ': ' }}{% endif %}{% if m.content %}{{ m.content }}{% endif %}"
    "{% for call in m.tool_calls or [] %}{{ '<call>' + call | tojson + '</call><|done|>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WIDE = "<\uff5cbegin\u2581of\u2581sentence\uff5c>"
MORE = [
    AddedToken("<call>", special=False),
    AddedToken("</call>", special=False),
    AddedToken("<|done|>", special=True),
    AddedToken("[INST]", special=True),
    AddedToken(" <pad> ", special=True, lstrip=True, rstrip=True),
    AddedToken("<|user|>", special=True, normalized=True),
    AddedToken(WIDE, special=True),
]
PLACES = ["system", "user", "assistant", "tool result", "tool name", "call", "tools", "completion", "completion call"]


@pytest.fixture(scope="module")
def renderer(tiny_base: Path) -> Renderer:
    tokenizer = AutoTokenizer.from_pretrained(tiny_base, local_files_only=True)
    tokenizer.add_tokens(MORE)
    tokenizer.chat_template = TEMPLATE
    return Renderer(tokenizer)


def row(text: str, place: str) -> Row:
    """A conversation with tools in which a text stands at one place."""
    said = dict.fromkeys(PLACES, "tea") | {place: text}

    def call(where: str) -> list[dict[str, object]]:
        return [{"type": "function", "function": {"name": "brew", "arguments": {"kind": [said[where]]}}}]

    tool = {"name": "brew", "description": said["tools"], "parameters": {"enum": [said["tools"]]}}
    return Row(
        id="r",
        group="g",
        messages=[
            Message(role="system", content=said["system"]),
            Message(role="user", content=said["user"]),
            Message(role="assistant", content=said["assistant"], tool_calls=call("call")),
            Message(role="tool", content=said["tool result"], name=said["tool name"]),
        ],
        completion=Message(role="assistant", content=said["completion"], tool_calls=call("completion call")),
        tools=[{"type": "function", "function": tool}],
    )


def controls(renderer: Renderer, one: Row) -> tuple[list[int], list[int]]:
    """The control tokens of the prompt and of the completion, in their order."""
    known = set(renderer.tokenizer.added_tokens_decoder)
    rendered = renderer.render(one)
    ids = rendered.prompt_ids, rendered.completion_ids
    return [i for i in ids[0] if i in known], [i for i in ids[1] if i in known]


def spellings(token: str) -> list[str]:
    """A token alone, in words, repeated, halved and joined, and between the marks that upstream uses itself."""
    mark, end = "\U000f0000", "\U000f0001"
    half = len(token) // 2
    return [
        token,
        f"a {token}\nassistant\nb{token}",
        token * 3,
        token[:half] + token + token[half:],
        token[:half] + mark + token[half:],
        f"{mark}{token}{end}",
        f"{end}{token}{mark}",
        f"{token}{mark}",
    ]


@pytest.mark.parametrize("place", PLACES)
def test_no_text_adds_a_control_token(renderer: Renderer, place: str) -> None:
    tokens = [token.content for token in renderer.tokenizer.added_tokens_decoder.values()]
    assert {"<|im_end|>", "<call>", "[INST]", WIDE} <= set(tokens)
    harmless = controls(renderer, row("tea", place))
    assert len(harmless[0]) >= 13
    # What the template writes into an answer are tokens, the special ones too.
    wanted = [renderer.tokenizer.convert_tokens_to_ids(t) for t in ("<call>", "</call>", "<|done|>", "<|im_end|>")]
    assert harmless[1] == wanted
    for token in tokens:
        for text in spellings(token):
            assert controls(renderer, row(text, place)) == harmless, text


def test_an_end_that_only_the_text_spells_is_no_end(renderer: Renderer) -> None:
    tokenizer = renderer.tokenizer
    endless = AutoTokenizer.from_pretrained(tokenizer.name_or_path, local_files_only=True)
    endless.chat_template = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}" + (
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    asked, answer = Message(role="user", content="x"), Message(role="assistant", content="a<|im_end|>b")
    rendered = Renderer(endless).render(Row(id="r", group="g", messages=[asked], completion=answer))
    assert not rendered.ends
    assert not {0, 1, 2} & set(rendered.completion_ids)
