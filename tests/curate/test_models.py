"""The two models that curation may ask: MiniLM for meaning, the base for what it knows already."""

import numpy as np
import pytest
import torch

from tests.curate.conftest import pair
from tests.curate.test_stage import sentences
from tunesmith import bases
from tunesmith.curate.difficulty import difficulty
from tunesmith.prompt import IGNORE, Renderer
from tunesmith.rows import Message, Row


def row(number):
    prompt, answer = f"question {'x' * (number % 7)} {number}", '{"n":1}' if number % 2 else '{"name":"zebra"}'
    completion = Message(role="assistant", content=answer)
    return Row(
        id=str(number), group=str(number), messages=[Message(role="user", content=prompt)], completion=completion
    )


def test_difficulty_is_the_loss_of_each_row_alone(tiny_base, repository):
    rows = [row(number) for number in range(12)]
    found = difficulty(rows, str(tiny_base), repository)
    base = bases.resolve(str(tiny_base), repository)
    renderer, model = Renderer(base.tokenizer(), base.end_ids()), base.model(dtype=torch.float32)
    for one, loss in zip(rows, found, strict=True):
        rendered = renderer.render(one)
        with torch.no_grad():
            logits = model(torch.tensor([rendered.input_ids])).logits[0, :-1]
        labels = torch.tensor(rendered.labels[1:])
        alone = torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE)
        assert loss == pytest.approx(float(alone), rel=1e-4)


def test_the_hardest_rows_are_left_out_of_the_choice(project, monkeypatch):
    """The choice itself, with vectors and losses that say which rows must go."""
    project.write([pair(text, id=f"r{i}") for i, text in enumerate(sentences(40))])
    project.section["split"] = {"shares": {"train": 1.0, "dev": 0.0, "gate": 0.0, "confirm": 0.0}}
    project.section["select"] = {"rows": 10, "leave_hardest": 0.25}
    seen = []

    def losses(rows, base, root):
        seen.extend(one.id for one in rows)
        return np.array([float(one.id in {"r1", "r2", "r3"}) for one in rows])

    monkeypatch.setattr("tunesmith.curate.difficulty.difficulty", losses)
    monkeypatch.setattr("tunesmith.embedder.embed", lambda texts: np.eye(len(texts), dtype=np.float32))
    chosen = {one.id for one in project.curate()["train"]}
    assert len(chosen) == 10
    assert not chosen & {"r1", "r2", "r3"}
    assert len(seen) == 40
    assert project.manifest()["dropped"]["select"] == {
        "not chosen: others cover it, or it is among the easiest or hardest": 30
    }


@pytest.mark.package_index
def test_minilm_knows_what_means_the_same():
    from tunesmith.embedder import embed

    same = ["How do I open an account?", "What are the steps to open an account?"]
    vectors = embed([*same, "The cat sleeps on the sofa.", "x " * 900])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(4), abs=1e-5)
    assert vectors[0] @ vectors[1] > 0.8 > 0.2 > vectors[0] @ vectors[2]
    # Whatever stands beside a text in its batch.
    assert embed(same[:1])[0] == pytest.approx(vectors[0], abs=1e-5)


THINGS = [
    "a cat",
    "the moon",
    "wet paint",
    "taxes",
    "a violin",
    "rye bread",
    "an old bus",
    "snow",
    "algebra",
    "a mayor",
]


@pytest.mark.package_index
def test_rows_that_mean_the_same_become_one_group(project):
    alike = ["How do I open an account?", "What are the steps to open an account?"]
    project.section["duplicates"] = {"near": 0.8, "semantic": 0.85}
    project.section["split"] = {"shares": {"train": 0.5, "dev": 0.0, "gate": 0.5, "confirm": 0.0}}
    project.write([pair(text) for text in [*(f"Tell me all about {thing}." for thing in THINGS), *alike]])
    groups = {one.source: one.group for rows in project.curate().values() for one in rows}
    assert groups[alike[0]] == groups[alike[1]]
    assert len(set(groups.values())) == len(THINGS) + 1
