"""Wherever the work is done, the same bytes come out."""

import importlib.util

import pytest

from tests.curate.conftest import pair
from tests.curate.test_stage import digests, sentences
from tunesmith.curate import engine
from tunesmith.errors import UserError


@pytest.fixture
def pile(project, monkeypatch):
    """Rows in many small chunks, with copies, and one that is left out."""
    monkeypatch.setattr("tunesmith.curate.chunks.CHUNK_BYTES", 2048)
    texts = sentences(120)
    project.write(
        [
            *(pair(text, f"answer {i}") for i, text in enumerate(texts)),
            pair(texts[3].upper(), "answer 3"),
            pair("?", "!"),
        ]
    )
    return project


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (pip install -e '.[ray]')")
def test_two_workers_of_ray_write_the_same_bytes(pile):
    import ray

    pile.curate(workers=1)
    alone, dropped = digests(pile), (pile.data / "dropped.jsonl").read_bytes()
    try:
        pile.curate(engine="ray", workers=2, recut=True)
    finally:
        ray.shutdown()
    assert digests(pile) == alone
    assert (pile.data / "dropped.jsonl").read_bytes() == dropped


def test_two_processes_write_the_same_bytes(pile):
    pile.curate(workers=1)
    alone, dropped = digests(pile), (pile.data / "dropped.jsonl").read_bytes()
    pile.curate(workers=2, recut=True)
    assert digests(pile) == alone
    assert (pile.data / "dropped.jsonl").read_bytes() == dropped


def test_a_problem_in_a_worker_is_told_like_one_at_home(pile):
    with (pile.root / "pile.jsonl").open("a") as stream:
        stream.write("{cut\n")
    for workers in (1, 2):
        with pytest.raises(UserError, match=r"pile.jsonl:123: not JSON"):
            pile.curate(workers=workers)


def test_ray_that_is_not_installed_is_named(pile, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(UserError, match=r"tunesmith\[ray\]"):
        pile.curate(engine="ray")


def test_no_more_chunks_are_under_way_than_memory_has_room_for(monkeypatch):
    """The chunks are taken as they are worked on, not all at once."""
    taken = []

    class Pool:
        def __init__(self, *_, **__):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def submit(self, function, chunk, job):
            from concurrent.futures import Future

            future = Future()
            future.set_result(chunk)
            return future

    monkeypatch.setattr(engine, "ProcessPoolExecutor", Pool)

    def chunks():
        for number in range(100):
            taken.append(number)
            yield number

    found = engine.parts(chunks(), None, workers=2)
    assert next(found) == 0
    assert len(taken) <= 2 * engine.UNDER_WAY + 2
    assert list(found) == list(range(1, 100))
