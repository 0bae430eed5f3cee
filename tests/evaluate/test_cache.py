"""A kept answer comes back for the same question to the same model in the same way, and for nothing else."""

import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from tunesmith.bases import load_model
from tunesmith.evaluate.cache import COMPANY_ONLY, Predictions, company_of, key_of
from tunesmith.evaluate.engines import TransformersEngine, code, fingerprint
from tunesmith.evaluate.generate import Answer, Settings, shared_prefix
from tunesmith.evaluate.replay import FEWEST_ROWS
from tunesmith.evaluate.ways import Way
from tunesmith.files import read_json, read_jsonl
from tunesmith.line import Line
from tunesmith.store import Store

SETTINGS = Settings(max_new_tokens=8, end_ids=[2, 5], pad_id=0)
IDENTITY = {
    "engine": "transformers",
    "model": "m" * 64,
    "computed_on": {"device": "cpu", "dtype": "float32"},
    "attention": "sdpa",
    "threads": 2,
    "code": {"generate.py": "c" * 64},
    "versions": {"torch": "2.13.0"},
}
PROMPT = [1, 5, 9]


def key(**changes: Any) -> str:
    parts: dict[str, Any] = {
        "identity": IDENTITY,
        "prompt_digest": "p" * 64,
        "settings": SETTINGS,
        "constraint": None,
        "prompt": PROMPT,
    }
    return key_of(**{**parts, **changes})


# ---------------------------------------------------------------------- the key

OTHER: dict[str, dict[str, Any]] = {
    "other weights": {"identity": IDENTITY | {"model": "n" * 64}},
    "another engine": {"identity": IDENTITY | {"engine": "other"}},
    "another device": {"identity": IDENTITY | {"computed_on": {"device": "cuda", "dtype": "float32"}}},
    "another dtype": {"identity": IDENTITY | {"computed_on": {"device": "cpu", "dtype": "bfloat16"}}},
    "another attention": {"identity": IDENTITY | {"attention": "eager"}},
    "another number of threads": {"identity": IDENTITY | {"threads": 4}},
    "other code": {"identity": IDENTITY | {"code": {"generate.py": "d" * 64}}},
    "another version of a library": {"identity": IDENTITY | {"versions": {"torch": "2.13.1"}}},
    "another prompt function": {"prompt_digest": "q" * 64},
    "a constraint": {"constraint": "s" * 64},
    "a longer prompt": {"prompt": [*PROMPT, 1]},
    "a prompt in another order": {"prompt": PROMPT[::-1]},
    "a longer answer": {"settings": replace(SETTINGS, max_new_tokens=9)},
    "another end": {"settings": replace(SETTINGS, end_ids=[2])},
    "another pad": {"settings": replace(SETTINGS, pad_id=1)},
    "other decoding": {"settings": replace(SETTINGS, decoding="sampled")},
}


@pytest.mark.parametrize("change", OTHER)
def test_each_part_changes_the_key(change: str) -> None:
    assert key(**OTHER[change]) != key()


def test_every_setting_is_in_the_key_but_what_says_who_shares_a_batch() -> None:
    other: dict[str, Any] = {"end_ids": [9], "decoding": "x", "engine": "x"}
    for field in fields(Settings):
        changed = replace(SETTINGS, **{field.name: other.get(field.name, 77)})
        assert (key(settings=changed) == key()) == (field.name in COMPANY_ONLY), field.name


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.lists(st.integers(0, 99), max_size=4)),
        min_size=2,
        max_size=2,
    )
)
def test_no_two_questions_share_a_key(questions: list[tuple[str, list[int]]]) -> None:
    (digest, prompt), (other_digest, other_prompt) = questions
    ours, theirs = key(prompt_digest=digest, prompt=prompt), key(prompt_digest=other_digest, prompt=other_prompt)
    assert (ours == theirs) == ((digest, prompt) == (other_digest, other_prompt))


def test_the_code_that_answers_is_in_an_engines_identity() -> None:
    assert set(code()["code"]) == {"generate.py", "attention.py", "constrain.py", "engines.py"}
    assert {"torch", "transformers", "peft", "tokenizers", "llguidance"} <= set(code()["versions"])


# ---------------------------------------------------------------------- replaying


class Told:
    """An engine that answers with what its weights say, and remembers what it was asked."""

    def __init__(self, says: str = "yes") -> None:
        self.weights = {"base": "the same name"}
        self.says = says
        self.asked: list[int] = []

    def identity(self) -> dict[str, Any] | None:
        return IDENTITY | {"model": self.says}

    def answer(
        self, prompts: Any, settings: Settings, *, only: Any = None, keep: Any = None, **_: Any
    ) -> dict[int, Answer]:
        answers: dict[int, Answer] = {}
        for batch in only if only is not None else [list(range(len(prompts)))]:
            self.asked += batch
            answers |= {i: Answer([len(prompts[i]), 2], self.says, True, len(prompts[i]), 1.5) for i in batch}
            if keep:
                keep(batch, answers)
        return answers


PROMPTS = [[1] * length + [7] for length in range(1, 120)]
SMALL = replace(SETTINGS, batch_rows=10)


def ask(
    engine: Any, store: Store | None, prompts: list[list[int]] = PROMPTS, settings: Settings = SMALL
) -> dict[int, Answer]:
    return Predictions(store, "p").answer(engine, prompts, settings, prefix=0, label="")


def test_the_second_time_nothing_is_asked_and_the_same_is_told(tmp_path: Path) -> None:
    store, first, second = Store(tmp_path), Told(), Told()
    once, twice = ask(first, store), ask(second, store)
    assert sorted(first.asked) == list(range(len(PROMPTS)))
    assert second.asked == []
    assert not any(answer.replayed for answer in once.values())
    assert all(answer.replayed for answer in twice.values())
    assert {i: replace(a, replayed=False) for i, a in twice.items()} == once


def test_retraining_in_place_is_never_answered_by_the_old_weights(tmp_path: Path) -> None:
    store = Store(tmp_path)
    ask(Told("old"), store)
    assert {answer.text for answer in ask(Told("new"), store).values()} == {"new"}


def test_an_engine_that_cannot_say_what_it_is_is_always_asked(tmp_path: Path) -> None:
    engine = Told()
    engine.identity = lambda: None  # type: ignore[method-assign]
    ask(engine, Store(tmp_path))
    ask(engine, Store(tmp_path))
    assert len(engine.asked) == 2 * len(PROMPTS)
    assert list(tmp_path.iterdir()) == []


def test_without_a_store_everything_is_asked() -> None:
    engine = Told()
    ask(engine, None)
    ask(engine, None)
    assert len(engine.asked) == 2 * len(PROMPTS)


def test_what_is_asked_for_its_noise_is_not_the_first_answer_and_is_kept_too(tmp_path: Path) -> None:
    store, first, second, later = Store(tmp_path), Told(), Told(), Told()
    ask(first, store)
    for engine in (second, later):
        Predictions(store, "p", turn=1).answer(engine, PROMPTS, SMALL, prefix=0, label="")
    assert sorted(second.asked) == sorted(first.asked)
    assert later.asked == []
    Predictions(store, "p", turn=2).answer(later, PROMPTS, SMALL, prefix=0, label="")
    assert sorted(later.asked) == sorted(first.asked)


def test_a_damaged_entry_costs_its_batch_and_no_more(tmp_path: Path) -> None:
    store = Store(tmp_path)
    ask(Told(), store)
    longest = key_of(Told().identity(), "p", SMALL, None, PROMPTS[-1])
    path = tmp_path / longest[:2] / longest
    path.write_bytes(path.read_bytes()[:-3])
    engine = Told()
    answers = ask(engine, store)
    assert sorted(engine.asked) == list(range(len(PROMPTS) - 10, len(PROMPTS)))
    assert all(answers[i].replayed == (i not in engine.asked) for i in answers)
    assert ask(again := Told(), store)
    assert again.asked == []


def test_other_batches_replay_but_for_those_that_are_asked_again_in_their_company(tmp_path: Path) -> None:
    store = Store(tmp_path)
    ask(Told(), store)
    engine = Told()
    ask(engine, store, settings=replace(SMALL, batch_rows=7))
    # The last batches, of the shortest prompts, until they hold as many rows as `replay` asks for.
    assert FEWEST_ROWS <= len(engine.asked) < FEWEST_ROWS + 7
    assert set(engine.asked) == set(range(len(engine.asked)))


def test_a_stopped_arm_goes_on_where_it_stopped(tmp_path: Path) -> None:
    class Stopped(Told):
        def answer(self, prompts: Any, settings: Settings, *, only: Any = None, **more: Any) -> dict[int, Answer]:
            super().answer(prompts, settings, only=only[:3], **more)
            raise KeyboardInterrupt

    store, engine = Store(tmp_path), Told()
    with pytest.raises(KeyboardInterrupt):
        ask(Stopped(), store)
    ask(engine, store)
    assert len(engine.asked) == len(PROMPTS) - 30


def test_company_is_who_and_in_which_order() -> None:
    assert len({company_of(keys) for keys in (["a", "b"], ["b", "a"], ["a"], ["ab"])}) == 4


# ---------------------------------------------------------------------- real weights


@pytest.fixture
def line(project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Line:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    line = Line("smoke")
    line.curate()
    return line


def swap(layers: Any) -> None:
    layers[0], layers[1] = layers[1], layers[0]


CHANGES: dict[str, Callable[[Any], None]] = {
    "one number": lambda model: model.model.layers[1].mlp.down_proj.weight.data[3].view(-1)[:1].add_(1e-3),
    "a vector of a norm": lambda model: model.model.norm.weight.data.mul_(1.001),
    "a tensor's place": lambda model: swap(model.model.layers),
    "the config": lambda model: setattr(model.config, "rms_norm_eps", 1e-3),
    "the dtype": lambda model: model.to(torch.bfloat16),
}


def test_other_weights_have_another_fingerprint(line: Line) -> None:
    before = fingerprint(line.base_model)
    assert fingerprint(line.base.model(dtype=torch.float32)) == before
    seen = {before}
    for change in CHANGES.values():
        model = line.base.model(dtype=torch.float32)
        with torch.no_grad():
            change(model)
        seen.add(fingerprint(model))
    assert len(seen) == 1 + len(CHANGES)


def test_where_a_model_lies_is_not_in_its_fingerprint(line: Line, tmp_path: Path) -> None:
    shutil.copytree(line.base.directory, tmp_path / "elsewhere")
    there = load_model(tmp_path / "elsewhere", dtype=torch.float32)
    assert fingerprint(there) == fingerprint(line.base_model)


def test_an_adapter_its_scale_and_its_switch_are_in_the_fingerprint(line: Line) -> None:
    torch.manual_seed(0)
    base = fingerprint(line.base_model)
    attached = get_peft_model(line.base_model, LoraConfig(r=2, lora_alpha=4, init_lora_weights=False))
    seen = {base, fingerprint(attached)}
    with attached.disable_adapter():
        seen.add(fingerprint(attached))
    for module in attached.modules():
        if hasattr(module, "lora_A"):
            module.scaling["default"] *= 2
    seen.add(fingerprint(attached))
    assert len(seen) == 4


def test_an_arm_that_is_answered_twice_is_replayed_to_the_letter(line: Line, tmp_path: Path) -> None:
    def arm(name: str, way: Way, free: Path | None = None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        engine = line.arena.engine(line.base_model, {"base": line.base.digest})
        line.arena.run(engine, way, "dev", tmp_path / name, free=free)
        path = tmp_path / name / way.file("dev")
        return read_jsonl(path.with_suffix(".jsonl")), read_json(path.with_suffix(".json"))

    few, bound = Way("few_shot", "few_shot", 2), Way("constrained", "few_shot", 2)
    first, about = arm("first", few)
    free = tmp_path / "first" / "dev" / "few_shot-2.jsonl"
    first_bound, _ = arm("first", bound, free)
    again, about_again = arm("again", few)
    again_bound, _ = arm("again", bound, free)
    assert about["replayed"] == 0
    assert about_again["replayed"] == len(again) == about_again["rows"]
    for ours, theirs in ((first, again), (first_bound, again_bound)):
        assert [{**row, "replayed": None} for row in ours] == [{**row, "replayed": None} for row in theirs]
    assert all(row["replayed"] for row in again)
    # Constrained from free answers that were computed: what was answered anew is replayed, and says so.
    assert {row["replayed"] for row in again_bound} == {True}

    line.base_model.get_input_embeddings().weight.data.mul_(-1)
    other, about_other = arm("other", few)
    assert about_other["replayed"] == 0
    assert [row["prediction_ids"] for row in other] != [row["prediction_ids"] for row in first]


def test_the_order_of_a_schemas_keys_is_in_the_key(line: Line, tmp_path: Path) -> None:
    """The grammar writes keys in the schema's order: two orders give two answers."""
    arena, engine = line.arena, line.arena.engine(line.base_model, {"base": "b"})
    prompts = arena.prompts(arena.dataset.rows("dev")[:2], Way("zero_shot"))
    free = [{"prediction_ids": [arena.renderer.pad_id], "prediction": "", "ended": False, "seconds": 0.0}] * 2
    texts = []
    for names in (("a", "b"), ("b", "a")):
        properties = {name: {"enum": [1]} for name in names}
        arena.schema = {
            "type": "object",
            "properties": properties,
            "required": ["a", "b"],
            "additionalProperties": False,
        }
        made = arena._constrain(engine, prompts, free, label="", prefix=shared_prefix(prompts))
        texts.append(made[0].text)
    assert texts == ['{"a":1,"b":1}', '{"b":1,"a":1}']


def test_an_engine_of_an_adapter_never_answers_as_its_base(line: Line, tmp_path: Path) -> None:
    rows = line.dataset.rows("dev")[:6]
    prompts = line.arena.prompts(rows, Way("zero_shot"))

    def answers(model: Any) -> list[Answer]:
        engine = TransformersEngine(model, line.arena.renderer, {"base": "one name"}, line.arena.computed_on)
        found = line.arena.predictions.answer(engine, prompts, line.arena.settings, prefix=0, label="")
        return [found[i] for i in range(len(rows))]

    base = answers(line.base_model)
    torch.manual_seed(1)
    attached = get_peft_model(line.base_model, LoraConfig(r=4, lora_alpha=64, init_lora_weights=False))
    adapted = answers(attached)
    assert not any(answer.replayed for answer in adapted)
    assert [a.ids for a in adapted] != [b.ids for b in base]
    with attached.disable_adapter():
        off = answers(attached)
    assert [a.ids for a in off] == [b.ids for b in base]
