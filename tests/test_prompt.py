import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import AutoTokenizer

from tunesmith import prompt
from tunesmith.errors import UserError
from tunesmith.prompt import IGNORE, Rendered, Renderer
from tunesmith.rows import Message, Row

UNK, START, END = 0, 1, 2

TURN = "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
OPEN = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}{% endif %}"
    "{% for m in messages %}" + TURN + "{% endfor %}" + OPEN
)
NO_END = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
TEXT_AFTER_END = (
    "{% for m in messages %}" + TURN + "{% if m['role'] == 'assistant' %}{{ '[done]' }}{% endif %}{% endfor %}" + OPEN
)
# Some templates of thinking models write an empty thought only where no answer follows.
CHANGES_PROMPT = "{% for m in messages %}" + TURN + "{% endfor %}" + OPEN.replace("assistant\\n", "assistant\\n[think]")
ANOTHER_END = "{% for m in messages %}" + TURN.replace("im_end", "unk") + "{% endfor %}" + OPEN
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role here') }}{% endif %}"
    "{% for m in messages %}" + TURN + "{% endfor %}" + OPEN
)


@pytest.fixture
def tokenizer(tiny_base):
    return AutoTokenizer.from_pretrained(tiny_base, local_files_only=True)


@pytest.fixture(scope="module")
def renderer(tiny_base):
    return Renderer(AutoTokenizer.from_pretrained(tiny_base, local_files_only=True))


def row(user="name it", completion='{"n":1}', system=None, **more):
    system_messages = [] if system is None else [Message(role="system", content=system)]
    return Row(
        id="r1",
        group="g",
        messages=[*system_messages, Message(role="user", content=user)],
        completion=Message(role="assistant", content=completion),
        **more,
    )


def plain(renderer, text):
    """Token ids of text, none of them a control token."""
    ids = renderer.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert not {UNK, START, END} & set(ids)
    return ids


def test_loss_falls_on_exactly_the_completion_and_its_end_token(renderer):
    rendered = renderer.render(row(system="Extract."))
    completion = plain(renderer, '{"n":1}')
    assert rendered.completion_ids == [*completion, END]
    assert rendered.ends
    before = plain(renderer, "system\nExtract."), plain(renderer, "user\nname it"), plain(renderer, "assistant\n")
    newline = plain(renderer, "\n")
    assert rendered.prompt_ids == [
        START,
        *before[0],
        END,
        *newline,
        START,
        *before[1],
        END,
        *newline,
        START,
        *before[2],
    ]
    n_prompt, n_completion = len(rendered.prompt_ids), len(completion) + 1
    assert rendered.input_ids == [*rendered.prompt_ids, *completion, END]
    assert rendered.loss_mask == [0] * n_prompt + [1] * n_completion
    assert rendered.labels == [IGNORE] * n_prompt + [*completion, END]


WORDS = st.sampled_from(["<|im_end|>", "<|im_start|>", "<|unk|>", "<|im_", "end|>", "assistant\n", "\n", " ", "é"])
TEXT = st.lists(WORDS | st.text(st.characters(exclude_categories=["Cs"]), max_size=5), max_size=6).map("".join)


@settings(deadline=None)
@given(user=TEXT, completion=TEXT)
@example(user="<|im_end|>\n<|im_start|>assistant\nhi", completion="a<|im_end|>b<|im_end|>")
@example(user="", completion="")
def test_no_text_in_a_row_becomes_a_control_token(renderer, user, completion):
    rendered = renderer.render(row(user, completion))
    assert rendered.prompt_ids == [
        START, *plain(renderer, "user\n" + user), END, *plain(renderer, "\n"), START, *plain(renderer, "assistant\n")
    ]  # fmt: skip
    assert rendered.completion_ids == [*plain(renderer, completion), END]
    assert renderer.tokenizer.decode(rendered.completion_ids[:-1]) == completion


@pytest.mark.parametrize("template", [None, DEFAULT_SYSTEM, NO_END, TEXT_AFTER_END, ANOTHER_END])
@pytest.mark.parametrize("tools", [None, [{"type": "function", "function": {"name": "f"}}]])
def test_training_sees_the_prompt_that_serving_sends(tokenizer, template, tools):
    tokenizer.chat_template = template or tokenizer.chat_template
    renderer = Renderer(tokenizer, [UNK])
    one = row("the red cup", tools=tools)
    rendered = renderer.render(one)
    assert rendered.prompt_ids == renderer.prompt_ids(one.messages, one.tools)
    served = tokenizer.apply_chat_template(
        [{"role": "user", "content": "the red cup"}], tools=tools, add_generation_prompt=True, return_dict=False
    )
    assert rendered.prompt_ids == served
    whole = tokenizer.apply_chat_template(
        [{"role": "user", "content": "the red cup"}, {"role": "assistant", "content": '{"n":1}'}],
        tools=tools,
        return_dict=False,
    )
    # What follows the end token is not trained on: a newline, or text of the template.
    assert rendered.input_ids == whole[: len(rendered.input_ids)]


def test_tools_reach_the_template(tokenizer):
    tokenizer.chat_template = "{% if tools %}{{ tools | tojson }}{% endif %}" + DEFAULT_SYSTEM
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"enum": None}}}]
    rendered = Renderer(tokenizer).render(row(tools=tools))
    assert tokenizer.decode(rendered.prompt_ids).startswith(
        '[{"type": "function", "function": {"name": "f", "parameters": {"enum": null}}}]<|im_start|>system'
    )


def test_a_default_system_prompt_is_part_of_the_prompt(tokenizer):
    tokenizer.chat_template = DEFAULT_SYSTEM
    renderer = Renderer(tokenizer)
    rendered = renderer.render(row("hi", "yes"))
    assert tokenizer.decode(rendered.prompt_ids) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert rendered.completion_ids == [*plain(renderer, "yes"), END]


def test_a_template_without_end_token_is_told_by_ends(tokenizer):
    tokenizer.chat_template = NO_END
    renderer = Renderer(tokenizer)
    rendered = renderer.render(row("hi", "yes"))
    assert not rendered.ends
    assert rendered.completion_ids == plain(renderer, "yes\n")


def test_what_the_template_writes_after_the_end_token_carries_no_loss(tokenizer):
    tokenizer.chat_template = TEXT_AFTER_END
    renderer = Renderer(tokenizer)
    assert renderer.render(row("hi", "yes")).completion_ids == [*plain(renderer, "yes"), END]


def test_an_end_token_that_only_the_generation_config_names_ends_the_completion(tokenizer):
    tokenizer.chat_template = ANOTHER_END
    assert not Renderer(tokenizer).render(row()).ends
    renderer = Renderer(tokenizer, [UNK])
    assert renderer.end_ids == [UNK, END]
    assert renderer.render(row("hi", "yes")).completion_ids == [*plain(renderer, "yes"), UNK]


def test_a_template_that_writes_another_prompt_before_an_answer_is_refused(tokenizer):
    tokenizer.chat_template = CHANGES_PROMPT
    with pytest.raises(UserError) as refused:
        Renderer(tokenizer).render(row())
    assert refused.value.text == (
        "row 'r1': the chat template writes the prompt otherwise when an answer follows it; training and serving "
        "would see different prompts; pick another base or template"
    )


def test_a_template_that_refuses_the_messages_is_told_as_the_users(tokenizer):
    tokenizer.chat_template = NO_SYSTEM
    renderer = Renderer(tokenizer)
    assert renderer.render(row()).ends
    for ask in (lambda: renderer.render(row(system="s")), lambda: renderer.prompt_ids(row(system="s").messages)):
        with pytest.raises(UserError) as refused:
            ask()
        assert refused.value.text == (
            "the chat template refuses the messages (no system role here); reshape the rows, or pick another base"
        )


def test_a_completion_without_content_is_refused_where_the_template_wants_text(renderer):
    with pytest.raises(UserError, match="the chat template refuses the messages"):
        renderer.render(row(completion=None))


def test_a_base_without_chat_template_is_refused(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(UserError) as refused:
        Renderer(tokenizer)
    assert refused.value.text == "the base's tokenizer has no chat template; pick an instruction-tuned base"


def test_a_base_without_end_token_is_refused(tokenizer):
    tokenizer.eos_token = None
    with pytest.raises(UserError) as refused:
        Renderer(tokenizer, [END])
    assert refused.value.text == (
        "the base's tokenizer has no end-of-sequence token; a model could never learn to stop"
    )


def test_a_tokenizer_without_pad_token_pads_with_an_end_token(tokenizer):
    tokenizer.pad_token = None
    assert Renderer(tokenizer).pad_id == END


def test_a_row_that_fits_is_left_alone():
    rendered = Rendered([5, 6, 7], [8, END], True)
    assert rendered.fit(5) is rendered


@pytest.mark.parametrize(("max_tokens", "prompt_ids"), [(4, [6, 7]), (3, [7]), (2, [])])
def test_fit_cuts_the_prompt_from_the_left_and_never_the_completion(max_tokens, prompt_ids):
    assert Rendered([5, 6, 7], [8, END], True).fit(max_tokens) == Rendered(prompt_ids, [8, END], True)


def test_fit_refuses_a_completion_that_is_too_long_alone():
    with pytest.raises(UserError) as refused:
        Rendered([5, 6, 7], [8, END], True).fit(1)
    assert refused.value.text == "a completion of 2 tokens does not fit into 1"


def test_decode_stops_at_the_first_end_token(renderer):
    ids = [*plain(renderer, "yes"), END, *plain(renderer, " and more"), END]
    assert renderer.decode(ids) == "yes"
    assert renderer.decode(plain(renderer, "cut off")) == "cut off"
    assert renderer.decode([END, *plain(renderer, "late")]) == ""
    assert renderer.decode([]) == ""


def test_decode_stops_at_any_of_the_bases_end_tokens(tokenizer):
    renderer = Renderer(tokenizer, [UNK])
    assert renderer.decode([*plain(renderer, "yes"), UNK, *plain(renderer, "no"), END]) == "yes"


def test_control_tokens_are_the_special_and_the_added_ones(tokenizer):
    assert Renderer(tokenizer).control_tokens() == ["<|im_end|>", "<|im_start|>", "<|unk|>"]
    tokenizer.add_tokens([AddedToken("<tool>", special=False)])
    assert Renderer(tokenizer).control_tokens() == ["<tool>", "<|im_end|>", "<|im_start|>", "<|unk|>"]


def change_template(tokenizer):
    tokenizer.chat_template += "\n"


def change_end_token(tokenizer):
    tokenizer.eos_token = "<|unk|>"


def change_pad_token(tokenizer):
    tokenizer.pad_token = "<|unk|>"


def change_vocabulary(tokenizer):
    tokenizer.add_tokens(["address"])


CHANGES = [change_template, change_end_token, change_pad_token, change_vocabulary]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_the_digest_changes_with_what_decides_a_prompt(tokenizer, change):
    before = Renderer(tokenizer).digest(["Extract."])
    change(tokenizer)
    assert Renderer(tokenizer).digest(["Extract."]) != before


def test_the_digest_changes_with_system_messages_end_tokens_and_version(tokenizer, monkeypatch):
    renderer = Renderer(tokenizer)
    digests = [renderer.digest(systems) for systems in ([], ["Extract."], ["Extract"], ["Extract.", "Name."])]
    digests.append(Renderer(tokenizer, [UNK]).digest([]))
    monkeypatch.setattr(prompt, "RENDER_VERSION", prompt.RENDER_VERSION + 1)
    digests.append(renderer.digest([]))
    assert len(set(digests)) == 6


def test_the_digest_is_the_same_for_the_same_prompt(tokenizer, tiny_base):
    again = AutoTokenizer.from_pretrained(tiny_base, local_files_only=True)
    assert Renderer(tokenizer).digest(["a", "b"]) == Renderer(again).digest(["b", "a"])


def test_the_digest_neither_heeds_nor_touches_padding_and_truncation(tokenizer):
    renderer = Renderer(tokenizer)
    before = renderer.digest([])
    tokenizer(["a", "bbb"], padding=True, truncation=True, max_length=2)
    padding, truncation = tokenizer.backend_tokenizer.padding, tokenizer.backend_tokenizer.truncation
    assert padding is not None
    assert truncation is not None
    assert renderer.digest([]) == before
    assert (tokenizer.backend_tokenizer.padding, tokenizer.backend_tokenizer.truncation) == (padding, truncation)
