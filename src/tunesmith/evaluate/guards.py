"""What must not get worse, measured alike for base, adapter and merged; the gate judges it.

In: a model and what every model is asked. Out: its part of guards.json. What is measured of a base depends on nothing
but the base and the questions, so it is kept in the cache by content and computed once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from tunesmith.errors import EnvironmentFault
from tunesmith.evaluate import guards_text, probes
from tunesmith.evaluate.arena import Arena
from tunesmith.evaluate.general import nll_by_document
from tunesmith.evaluate.generate import Answer, generate, settings_for, shared_prefix
from tunesmith.evaluate.guards_drift import Given, drift, logprobs
from tunesmith.evaluate.guards_noise import known, noise, sensitivity
from tunesmith.evaluate.probes import Question
from tunesmith.evaluate.probes_score import choose
from tunesmith.files import read_json, read_jsonl, sha256_json, write_json
from tunesmith.packages import cache_dir
from tunesmith.probes import general_documents
from tunesmith.progress import say
from tunesmith.rows import Message

FORM = 1
"""Raised whenever the same base and questions would be measured otherwise; part of what the cache goes by."""
SEED = 0
"""Draws questions and rows: the same for every recipe, so that a base is measured once."""

SETS = ("unrelated", "benign", "harmful", "canaries")


@dataclass(frozen=True)
class Asked:
    """What every model is asked."""

    questions: list[Question]
    prompts: dict[str, list[str]]
    """Of each of `SETS`; of a canary, its first half."""
    canaries: list[str]
    task: list[Given]
    """Task prompts with the base's answers."""
    left_out: dict[str, int] = field(default_factory=dict)
    """How many of each set stand in the training rows."""
    not_assessed: list[dict[str, str]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """As guards.json holds it."""
        entries = probes.pinned()
        asked = sorted({q.probe for q in self.questions})
        return {
            "probes": [q.probe for q in self.questions],
            "questions": [q.id for q in self.questions],
            "chance": [1 / len(q.options) for q in self.questions],
            "sources": {name: entries[name].model_dump(exclude={"made"}) for name in asked},
            "prompts": {name: len(texts) for name, texts in self.prompts.items()},
            "left_out": self.left_out,
            "not_assessed": self.not_assessed,
        }


def prompts_of(name: str) -> list[str]:
    """The package's prompts of one kind, in file order."""
    text = files("tunesmith.evaluate").joinpath("prompts", f"{name}.txt").read_text(encoding="utf-8")
    return text.splitlines()


class Guards:
    """Measures the guards of one recipe's models."""

    def __init__(self, arena: Arena, zero_shot: Path) -> None:
        """Take the arena, and the arm of the base's own answers, without suffix: what drift on the task stands on."""
        self.arena = arena
        self.section = arena.recipe.guards
        self.settings = settings_for(arena.renderer, self.section.habits.max_new_tokens, arena.settings.batch_tokens)
        self.asked = self._asked(zero_shot)

    def _asked(self, zero_shot: Path) -> Asked:
        section, rows = self.section, self.arena.train
        trained = probes.Trained(row.prompt_text for row in rows)
        left_out: dict[str, int] = {}
        not_assessed: list[dict[str, str]] = []
        questions: list[Question] = []
        for name in section.probes.names:
            try:
                every = probes.in_order(probes.read_questions(name), SEED)
            except EnvironmentFault as fault:
                not_assessed.append({"guard": f"probe_{name}", "why": fault.problems[0]})
                continue
            drawn, left_out[name] = trained.first_unseen(every, section.probes.rows, lambda q: q.text)
            questions += drawn
        if not section.probes.names:
            not_assessed.append({"guard": "probes", "why": "guards.probes.names is empty"})
        prompts: dict[str, list[str]] = {}
        for kind, count in (
            ("unrelated", section.habits.rows),
            ("benign", section.refusals.rows),
            ("harmful", section.refusals.rows),
        ):
            prompts[kind], left_out[kind] = trained.first_unseen(prompts_of(kind), count, lambda text: text)
            if not prompts[kind]:
                not_assessed.append({"guard": kind, "why": f"no {kind} prompts are asked"})
        planted = {str(row.meta["canary"]) for row in rows if row.meta and row.meta.get("canary")}
        canaries = sorted(planted | set(section.habits.canaries))
        prompts["canaries"] = [text[: (len(text) + 1) // 2] for text in canaries]
        task = self._task(zero_shot.with_suffix(".jsonl"))
        if section.kl_rows and not task:
            not_assessed.append(
                {"guard": "task drift", "why": f"the base's own answers, {zero_shot.name}, are not there"}
            )
        return Asked(questions, prompts, canaries, task, left_out, not_assessed)

    def _task(self, zero_shot: Path) -> list[Given]:
        """Some gate prompts with the answers that the base gave to them."""
        if not zero_shot.is_file():
            return []
        answered = {line["id"]: line["prediction_ids"] for line in read_jsonl(zero_shot)}
        rows = sorted(self.arena.dataset.rows("gate"), key=lambda row: sha256_json([SEED, row.id]))
        rows = [row for row in rows if answered.get(row.id)][: self.section.kl_rows]
        return [(self.arena.renderer.prompt_ids(row.messages, row.tools), answered[row.id]) for row in rows]

    # ------------------------------------------------------------------ the base

    def of_base(self, model: PreTrainedModel) -> dict[str, Any]:
        """What is measured of the base, whole and damaged; from the cache if it was measured before."""
        key = self._key()
        path = cache_dir() / "guards" / f"{sha256_json(key)}.json"
        if path.is_file():
            kept = read_json(path)
            # By its words, not by its name alone: a file that was moved there is another's.
            if kept["key"] == key:
                say(f"  guards of the base: measured before, {path.name[:12]}")
                measured: dict[str, Any] = kept["measured"]
                return measured
        measured = self._measure(model, "base", self.asked.questions)
        knows = known(*self._probed(measured), self.arena.recipe.gate.alpha)
        keen = [question for question in self.asked.questions if question.probe in knows]
        measured["planted"] = {}
        for strength in self.section.noise:
            with noise(model, strength):
                measured["planted"][str(strength)] = {
                    "general_nll": nll_by_document(model, self.arena.renderer),
                    **self._probes(model, f"base, noise {strength}", keen),
                }
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"key": key, "measured": measured})
        return measured

    def _key(self) -> dict[str, Any]:
        """Everything that decides what is measured of a base."""
        return {
            "form": FORM,
            "base": self.arena.base.digest,
            "computed_on": self.arena.computed_on,
            "render": self.arena.renderer.digest([]),
            "settings": self.settings.as_dict(),
            "alpha": self.arena.recipe.gate.alpha,
            "versions": {name: version(name) for name in ("torch", "transformers")},
            "questions": [q.id for q in self.asked.questions],
            "prompts": self.asked.prompts,
            "general": sha256_json(general_documents()),
            "noise": self.section.noise,
        }

    def sensitivity(self, base: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Which sets of questions would see forgetting of this base; the others are not put to what was trained."""
        planted = {strength: each["share_of_right"] for strength, each in base["planted"].items()}
        return sensitivity(*self._probed(base), planted, self.arena.recipe.gate.alpha)

    def _probed(self, base: dict[str, Any]) -> tuple[list[str], list[float], list[float]]:
        questions = self.asked.questions
        return [q.probe for q in questions], [1 / len(q.options) for q in questions], base["share_of_right"]

    def base_logprobs(self, model: PreTrainedModel, base: dict[str, Any]) -> dict[str, list[torch.Tensor]]:
        """The base's log-probabilities over its own answers, which `of` measures the distance from."""
        return {name: logprobs(model, given) for name, given in self._given(base).items()}

    def _given(self, base: dict[str, Any]) -> dict[str, list[Given]]:
        unrelated = zip(self._rendered("unrelated"), base["answer_ids"], strict=True)
        general = [(prompt, ids) for prompt, ids in unrelated if ids][: self.section.kl_rows]
        return {name: given for name, given in (("task", self.asked.task), ("general", general)) if given}

    # ------------------------------------------------------------------ any model

    def of(
        self, model: PreTrainedModel, name: str, base: dict[str, Any], logprobs_of_base: dict[str, list[torch.Tensor]]
    ) -> dict[str, Any]:
        """What is measured of a model that was trained; `name` is for the eye."""
        keen = {probe for entry in self.sensitivity(base).values() if entry["moves"] for probe in entry["sets"]}
        measured = self._measure(model, name, [q for q in self.asked.questions if q.probe in keen])
        given = self._given(base)
        measured["drift"] = {kind: drift(model, given[kind], theirs) for kind, theirs in logprobs_of_base.items()}
        return measured

    def _measure(self, model: PreTrainedModel, name: str, questions: Sequence[Question]) -> dict[str, Any]:
        answers = self._answers(model, name)
        texts = {kind: [answer.text for answer in answers[kind]] for kind in SETS}
        return {
            **self._probes(model, name, questions),
            "answers": texts,
            "answer_ids": [answer.ids for answer in answers["unrelated"]],
            "refused": {kind: [guards_text.refuses(text) for text in texts[kind]] for kind in ("benign", "harmful")},
        }

    def _probes(self, model: PreTrainedModel, name: str, questions: Sequence[Question]) -> dict[str, Any]:
        """A place for each question; None for one that is not put to this model."""
        chosen = choose(model, self.arena.renderer, questions, self.settings, f"{name}: questions") if questions else []
        by_id = {question.id: each for question, each in zip(questions, chosen, strict=True)}
        every = [by_id.get(question.id) for question in self.asked.questions]
        return {
            "correct": [each and each.correct for each in every],
            "share_of_right": [each and round(each.weights[each.right], 6) for each in every],
        }

    def _rendered(self, kind: str) -> list[list[int]]:
        texts = self.asked.prompts[kind]
        return [self.arena.renderer.prompt_ids([Message(role="user", content=text)]) for text in texts]

    def _answers(self, model: PreTrainedModel, name: str) -> dict[str, list[Answer]]:
        prompts = [ids for kind in SETS for ids in self._rendered(kind)]
        if not prompts:
            return {kind: [] for kind in SETS}
        answers = generate(
            model,
            self.arena.renderer,
            prompts,
            self.settings,
            prefix=shared_prefix(prompts),
            label=f"{name}: prompts",
        )
        found: dict[str, list[Answer]] = {}
        start = 0
        for kind in SETS:
            end = start + len(self.asked.prompts[kind])
            found[kind] = [answers[index] for index in range(start, end)]
            start = end
        return found

    # ------------------------------------------------------------------ what answers give away

    def told(self, models: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """Habits, passages and canaries of the training rows in answers; `models` holds what was measured of each."""
        rows = self.arena.train
        systems = {m.content or "" for row in rows for m in row.messages if m.role == "system"}
        ordinary = [*general_documents(), *models["base"]["answers"]["unrelated"], *self.asked.prompts["unrelated"]]
        trained = guards_text.habits([row.reference for row in rows], systems)
        trained -= set().union(*map(guards_text.phrases_of, ordinary))
        tokens = self.arena.renderer.tokenizer
        texts: list[list[int]] = tokens(
            [text for row in rows for text in (row.prompt_text, row.reference)], add_special_tokens=False
        )["input_ids"]
        length = self.section.habits.verbatim_tokens
        found = {}
        for name, model in models.items():
            answers = model["answers"]
            found[name] = {
                "habit": [
                    guards_text.leak(answer, prompt, trained)
                    for answer, prompt in zip(answers["unrelated"], self.asked.prompts["unrelated"], strict=True)
                ],
                "verbatim": guards_text.repeats(model["answer_ids"], texts, length),
                "canaries": self._canaries(answers),
            }
        return found

    def _canaries(self, answers: dict[str, Sequence[str]]) -> list[bool]:
        """Which canaries a model gives away: whole in any answer, or their second half when it is given the first."""
        every = [text for kind in SETS for text in answers[kind]]
        pairs = zip(self.asked.canaries, self.asked.prompts["canaries"], answers["canaries"], strict=True)
        return [
            any(canary in text for text in every) or guards_text.goes_on(answer, canary[len(half) :])
            for canary, half, answer in pairs
        ]

    def reference_tokens(self) -> dict[str, int]:
        """How many tokens the reference of each gate row takes, its end included, by row id."""
        rows = self.arena.dataset.rows("gate")
        return {row.id: len(self.arena.renderer.completion_ids(row)[0]) for row in rows}
