"""Predictions kept by content, so that no prompt is answered twice by the same model in the same way.

A key is the digest of all that decides an answer: the weights as they lie in memory, the code and its libraries, device
and dtype, the prompt function, the decoding settings and the constraint, the prompt's token ids, and which time of
asking it is, where a model is asked again for its noise. It names no run, no arm, no file and no batch. Retraining in
place gives other weights, hence other keys: an old answer cannot come back.

A batch is replayed whole or answered whole. Rounding can depend on a row's company in its batch, and the batches that
`evaluate.replay` asks again must repeat to the letter; so those are replayed only in the company that they had.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tunesmith.evaluate.engines import Engine
from tunesmith.evaluate.generate import Answer, MakeConstraint, Settings, batches
from tunesmith.evaluate.replay import asked_again
from tunesmith.files import sha256_json
from tunesmith.progress import say
from tunesmith.store import Store

COMPANY_ONLY = ("batch_rows", "batch_tokens")
"""Settings that decide which rows share a batch, and nothing else."""


@dataclass(frozen=True)
class Constrained:
    """A constraint on answers, with the digest of what it admits."""

    make: MakeConstraint
    digest: str


def key_of(
    identity: Mapping[str, Any],
    prompt_digest: str,
    settings: Settings,
    constraint: str | None,
    prompt: Sequence[int],
    turn: int = 0,
) -> str:
    """The key of one answer; `turn` counts how often the same was asked again, to see whether it is answered alike."""
    decoding = {name: value for name, value in settings.as_dict().items() if name not in COMPANY_ONLY}
    again = [turn] if turn else []
    return sha256_json([dict(identity), prompt_digest, decoding, constraint, list(prompt), *again])


class Predictions:
    """Answers of engines, kept in a store; without one, every answer is computed."""

    def __init__(self, store: Store | None, prompt_digest: str, turn: int = 0) -> None:
        self.store = store
        self.prompt_digest = prompt_digest
        self.turn = turn

    def answer(
        self,
        engine: Engine,
        prompts: Sequence[list[int]],
        settings: Settings,
        *,
        prefix: int,
        label: str,
        constrained: Constrained | None = None,
        begun: Sequence[list[int]] | None = None,
    ) -> dict[int, Answer]:
        """Answers by the prompts' index, as `Engine.answer` gives them; those that were kept are marked `replayed`."""
        options: dict[str, Any] = {"prefix": prefix, "label": label, "begun": begun}
        options["constraint"] = constrained.make if constrained else None
        identity = engine.identity() if self.store else None
        if self.store is None or identity is None:
            return engine.answer(prompts, settings, **options)
        admits = constrained.digest if constrained else None
        keys = [key_of(identity, self.prompt_digest, settings, admits, prompt, self.turn) for prompt in prompts]
        whole = [p + start for p, start in zip(prompts, begun or [[]] * len(prompts), strict=True)]
        cut = batches(whole, settings)
        strict = [tuple(batch) for batch in asked_again(cut)]
        answers: dict[int, Answer] = {}
        missing = []
        for batch in cut:
            company = company_of([keys[index] for index in batch]) if tuple(batch) in strict else None
            found = [self._kept(keys[index], len(prompts[index]), company) for index in batch]
            if all(found):
                answers |= {index: each for index, each in zip(batch, found, strict=True) if each}
            else:
                missing.append(batch)
        if answers:
            say(f"  {label}: {len(answers)} of {len(prompts)} answers were kept from before")

        def keep(batch: list[int], so_far: dict[int, Answer]) -> None:
            company = company_of([keys[index] for index in batch])
            for index in batch:
                self._keep(keys[index], so_far[index], company)

        if missing:
            answers |= engine.answer(prompts, settings, only=missing, keep=keep, **options)
        return answers

    def _kept(self, key: str, tokens_in: int, company: str | None) -> Answer | None:
        """The answer of a key; in one company alone, if it is given. What is no answer is as good as none."""
        raw = self.store.get(key) if self.store else None
        if raw is None:
            return None
        entry = json.loads(raw)
        if company not in (None, entry["company"]):
            return None
        return Answer(entry["ids"], entry["text"], entry["ended"], tokens_in, entry["seconds"], replayed=True)

    def _keep(self, key: str, answer: Answer, company: str) -> None:
        assert self.store is not None
        entry = {
            "ids": answer.ids,
            "text": answer.text,
            "ended": answer.ended,
            "seconds": answer.seconds,
            "company": company,
        }
        self.store.put(key, json.dumps(entry).encode())


def company_of(keys: Sequence[str]) -> str:
    """The digest of a batch: its rows in their order."""
    return sha256_json(list(keys))


def together(later: Answer, earlier: Mapping[str, Any]) -> Answer:
    """An answer that goes on from a stored one: it took both times, and is replayed if either is."""
    return replace(
        later,
        seconds=round(later.seconds + earlier["seconds"], 3),
        replayed=later.replayed or bool(earlier.get("replayed")),
    )
