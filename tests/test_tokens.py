"""Token ids on disk are those of the rows, or they are not read."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.line import Line
from tunesmith.prompt import Rendered, Renderer
from tunesmith.tokens import key_of, read_tokens, rendered_rows, write_tokens

ids = st.lists(st.integers(0, 2**31 - 1), max_size=9)


@given(rows=st.lists(st.builds(Rendered, ids, ids, st.booleans()), max_size=9))
def test_rows_come_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, rows: list[Rendered]) -> None:
    path = tmp_path_factory.mktemp("tokens") / "rows.safetensors"
    write_tokens(path, rows, "a key")
    assert read_tokens(path, "a key") == rows
    assert read_tokens(path, "another key") is None


def test_a_missing_or_damaged_file_is_as_good_as_none(tmp_path: Path) -> None:
    path = tmp_path / "rows.safetensors"
    assert read_tokens(path, "key") is None
    path.write_bytes(b"not safetensors")
    assert read_tokens(path, "key") is None


def test_what_check_wrote_is_what_training_would_render(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line("smoke")
    line.curate()
    line.check()
    renderer = Renderer(line.base.tokenizer(), line.base.end_ids())
    expected = [renderer.render(row) for row in line.dataset.rows("train")]
    path = line.run.path("tokens/train.safetensors")
    assert read_tokens(path, key_of(renderer, line.dataset, "train")) == expected

    def refuse(self: Renderer, row: object) -> Rendered:
        raise AssertionError("rendered again")

    monkeypatch.setattr(Renderer, "render", refuse)
    assert rendered_rows(renderer, line.dataset, "train", path) == expected
    with pytest.raises(AssertionError, match="rendered again"):
        rendered_rows(renderer, line.dataset, "train", path.with_name("elsewhere"))


def test_another_template_is_another_key(project: Path) -> None:
    line = Line("smoke")
    line.curate()
    renderer = Renderer(line.base.tokenizer(), line.base.end_ids())
    before = key_of(renderer, line.dataset, "train")
    renderer.tokenizer.chat_template += " "
    assert key_of(renderer, line.dataset, "train") != before
    assert key_of(renderer, line.dataset, "dev") != before
