"""The baseline and evaluate stages: run arms in the arena, and measure what guards and integrity need.

`baseline` picks, on dev, the shots and the incumbent, then answers the gate rows without training. `evaluate` answers
them with the adapter and with the merged model, measures loss on general text with each, and has the base beside the
adapter repeat answers that it gave in `baseline`, so that both are known to have run under the same conditions.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from tunesmith import adapters, findings, hardware
from tunesmith.bases import Base, load_model
from tunesmith.errors import EnvironmentFault
from tunesmith.evaluate.arena import Arena
from tunesmith.evaluate.engines import ServerEngine
from tunesmith.evaluate.general import nll_by_document
from tunesmith.evaluate.generate import BATCH_TOKENS, read_prompts
from tunesmith.evaluate.guards import Guards
from tunesmith.evaluate.replay import replay
from tunesmith.evaluate.ways import STARTED_FROM, ZERO_SHOT, Way, adapter_ways, best, untrained_ways
from tunesmith.files import read_json, read_jsonl, sha256_json, write_json
from tunesmith.findings import Finding, seen
from tunesmith.progress import say
from tunesmith.recipe import LoadedRecipe
from tunesmith.rows import Dataset, Row, Split

PROBED = 64
"""Gate prompts among which the shortest and the longest are compared."""
CACHE_SHARE = 0.2
"""The part of the memory that keys and values of a batch may take: weights, copies and the rest need theirs."""


def open_arena(loaded: LoadedRecipe, dataset: Dataset, base: Base) -> Arena:
    """The arena of a recipe on this machine."""
    found = hardware.look()
    profile = hardware.choose(found, loaded.recipe, longest_row=loaded.recipe.data.max_tokens, base_gib_fp32=0.0)
    computed_on = {"device": found.name, "dtype": profile.dtype}
    itemsize = 4 if profile.dtype == "float32" else 2
    fits = CACHE_SHARE * found.memory_gib * hardware.GIB / (base.cached_numbers_per_token() * itemsize)
    batch_tokens = int(min(BATCH_TOKENS, fits))
    return Arena(loaded.recipe, dataset, base, loaded.schema(), computed_on, batch_tokens, loaded.knowledge_path)


def scoring_dtype(arena: Arena) -> torch.dtype:
    """The dtype that answers are computed in."""
    dtype: torch.dtype = getattr(torch, arena.computed_on["dtype"])
    return dtype


def load_base(arena: Arena, quantization: str = "none") -> PreTrainedModel:
    """The base as arms use it."""
    return arena.base.model(dtype=scoring_dtype(arena), quantization=quantization)


def select(arena: Arena, dev: Path, out: Path) -> None:
    """Choose the number of shots, and the incumbent, by the arms' means on dev; write selection.json."""
    recipe = arena.recipe
    primary = recipe.score.primary
    tried = untrained_ways(recipe)
    chosen = [ZERO_SHOT]
    for arm in ("few_shot", "retrieval", "documents"):
        if of_arm := [way for way in tried if way.arm == arm]:
            chosen.append(best(of_arm, dev, recipe.score))
    if recipe.arms.constrained:
        tried.append(constrained_way(arena, dev))
        chosen.append(tried[-1])
    incumbent = best(chosen, dev, recipe.score)
    if recipe.arms.knowledge and any(arena.library.gold(row) for row in arena.dataset.rows("gate")):
        chosen.append(Way("gold_context", "gold_context"))
    selection = {
        "primary": primary,
        "incumbent": incumbent.arm,
        "ways": [way.as_dict() for way in chosen],
        "trivial": recipe.arms.trivial,
        "servers": list(recipe.arms.servers),
        "dev_means": {way.label: read_json(dev / f"{way.label}.json")["means"][primary] for way in tried},
    }
    selection["adapter_ways"] = [way.arm for way in adapter_ways(recipe, selection)]
    write_json(out / "selection.json", selection)


def constrained_way(arena: Arena, dev: Path) -> Way:
    """Constrained decoding on top of what stood best beside the question on dev.

    Where no free answer has anything right, it is the form that stands in the way, and free answers cannot say what
    helps: then on top of documents, if there are any.
    """
    tried = untrained_ways(arena.recipe)
    shots = best(tried, dev, arena.recipe.score)
    documents = [way for way in tried if way.shots == "documents"]
    means = read_json(dev / f"{shots.label}.json")["means"]
    if documents and not means[arena.recipe.score.primary] and not means[arena.recipe.score.tie_break]:
        shots = documents[0]
    return Way("constrained", shots.shots, shots.k)


def dev_scorer(arena: Arena) -> Callable[[PreTrainedModel], dict[str, float]]:
    """Scores a model on the dev rows that the recipe's `dev.rows` asks for, as every arm is scored."""
    wanted = arena.recipe.dev.rows
    rows = drawn(arena.dataset.rows("dev"), wanted, arena.recipe.seed)
    if len(rows) < wanted:
        say(f"  dev.rows = {wanted}: the dev split holds {len(rows)}; all are answered at each look")
    return lambda model: {"rows": len(rows), **arena.score(model, rows)}


def drawn(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """So many of the rows, in their order: those whose ids a seeded hash puts first, whatever other rows there are."""
    first = sorted(rows, key=lambda row: sha256_json([seed, row.id]))[:count]
    ids = {row.id for row in first}
    return [row for row in rows if row.id in ids]


def run_on_dev(arena: Arena, adapter: Path, out: Path) -> None:
    """Answer all dev rows with the adapter on its base; writes `dev/adapter.jsonl` and `.json`."""
    manifest = adapters.verify(adapter, base=arena.base, prompt_digest=arena.prompt_digest)
    attached = adapters.attach(load_base(arena, manifest["quantization"]), adapter)
    weights = {"base": arena.base.digest, "adapter": adapters.digest(adapter)}
    arena.run(arena.engine(attached, weights), Way("adapter"), "dev", out)


def run_started_from(arena: Arena, adapter: Path, out: Path) -> None:
    """Answer dev and gate rows with the adapter that training begins from, as the arm `started_from`."""
    manifest = adapters.verify(adapter, base=arena.base, prompt_digest=arena.prompt_digest)
    attached = adapters.attach(load_base(arena, manifest["quantization"]), adapter)
    weights = {"base": arena.base.digest, "adapter": adapters.digest(adapter)}
    splits: tuple[Split, ...] = ("dev", "gate")
    for split in splits:
        arena.run(arena.engine(attached, weights), STARTED_FROM, split, out)


def run_adapter(arena: Arena, adapter: Path, ways: Sequence[Way], arms: Path, out: Path) -> None:
    """Answer the gate rows with the adapter on its base, in each of some ways; write what guards need of both."""
    dataset = arena.dataset
    manifest = adapters.verify(adapter, base=arena.base, prompt_digest=arena.prompt_digest)
    model = load_base(arena)
    general = {"base": nll_by_document(model, arena.renderer)}
    guards = Guards(arena, arms / "zero_shot")
    of_base = guards.of_base(model)
    logprobs = guards.base_logprobs(model, of_base)
    replayed = replay(model, arena.renderer, dataset.rows("gate"), arms / "zero_shot")
    if manifest["quantization"] != "none":
        del model
        model = load_base(arena, manifest["quantization"])
    attached = adapters.attach(model, adapter)
    general["adapter"] = nll_by_document(attached, arena.renderer)
    models = {"base": of_base, "adapter": guards.of(attached, "adapter", of_base, logprobs)}
    weights = {"base": arena.base.digest, "adapter": adapters.digest(adapter)}
    engine = arena.engine(attached, weights)
    for way in ways:
        arena.run(engine, way, "gate", out / "arms")
    change = logit_change(attached, arena)
    write_json(
        out / "guards-adapter.json",
        {
            "schema": 2,
            "general_nll": general,
            "adapter_changes_logits": change,
            "replayed": replayed,
            "asked": guards.asked.as_dict(),
            "sensitivity": guards.sensitivity(of_base),
            "models": models,
        },
    )
    found = [
        seen(
            "adapter at work",
            (13,),
            change > 0,
            "what is loaded is the adapter that was trained, and it changes what the base computes",
            f"every tensor is the file's, logits change by up to {change:.2e}",
            "train again",
            # Not a stop: the gate calls such a run INVALID by `adapter_at_work`, beside all that was measured of it.
            grave=False,
        ),
        seen(
            "the base of the adapter",
            (28,),
            manifest["base"]["digest"] == arena.base.digest,
            "the adapter stands on the base that it was trained on",
            f"trained on {manifest['base']['digest'][:12]}, stands on {arena.base.name}, {arena.base.digest[:12]}",
            "train on this base, or name the other one",
        ),
        padding(attached, arena),
        answers_end(arena, out / "arms" / "adapter.jsonl"),
    ]
    findings.write(out, "evaluate", found)
    findings.refuse(found, "evaluate", EnvironmentFault)


PADDED = {"float32": 1e-3, "bfloat16": 0.5, "float16": 0.1}
"""Largest change of a logit by the company of longer prompts: far above each dtype's rounding, far below a mistake."""
UNENDED = 0.01
"""Part of the answers that may run into their limit before it is told."""


def padding(model: Any, arena: Arena) -> Finding:
    """Whether a prompt beside a longer one is answered as it is alone, by the logits of its first token."""
    prompts = sorted(arena.prompts(arena.dataset.rows("gate")[:PROBED], ZERO_SHOT), key=len)
    pair = [prompts[0], prompts[-1]]
    model.eval()
    with torch.inference_mode():
        slots = read_prompts(model, pair, None, arena.settings)
        with slots.in_use(model):
            together = model(
                input_ids=slots.ids,
                attention_mask=slots.mask,
                position_ids=slots.positions,
                past_key_values=slots.cache,
                use_cache=True,
            ).logits[:, -1]
        alone = [model(input_ids=torch.tensor([ids], device=model.device)).logits[0, -1] for ids in pair]
    change = max(float((a - b).abs().max()) for a, b in zip(together, alone, strict=True))
    return seen(
        "padding",
        (20,),
        change <= PADDED[arena.computed_on["dtype"]],
        "a prompt in company is answered as it is alone",
        f"beside a prompt of {len(pair[1]) - len(pair[0])} tokens more, logits change by up to {change:.1e}",
        "this model's attention reads padding: hold its version back, and report it",
    )


def answers_end(arena: Arena, answers: Path) -> Finding:
    """How many answers ran into `arms.max_new_tokens`; no generation setting of the base's own is read."""
    lines = read_jsonl(answers)
    open_ended = [line["id"] for line in lines if not line["ended"]]
    return Finding(
        "answers end",
        "WARN" if len(open_ended) > UNENDED * len(lines) else "PASS",
        "answers end by themselves, under settings that are all stated",
        open_ended,
        (21,),
        f"{len(open_ended)} of {len(lines)} answers are cut at {arena.settings.max_new_tokens} tokens, greedy",
        "raise arms.max_new_tokens; or the model has not learned to stop: look at the end token in check.html",
    )


def run_merged(arena: Arena, merged: Path, adapter_guards: Path, arms: Path, out: Path) -> None:
    """Answer the gate rows with the merged model as exported, and write guards.json.

    The base is loaded once more, before it: the distance to it is over all its log-probabilities, which no file holds.
    """
    found = read_json(adapter_guards)
    models = found["models"]
    guards = Guards(arena, arms / "zero_shot")
    logprobs = guards.base_logprobs(load_base(arena), models["base"])
    model = load_model(merged, dtype=scoring_dtype(arena))
    found["general_nll"]["merged"] = nll_by_document(model, arena.renderer)
    models["merged"] = guards.of(model, "merged", models["base"], logprobs)
    found["told"] = guards.told(models)
    found["reference_tokens"] = guards.reference_tokens()
    weights = {"merged": read_json(merged / "manifest.json")["digest"]}
    arena.run(arena.engine(model, weights), Way("merged"), "gate", out / "arms")
    write_json(out / "guards.json", found)


def run_server(arena: Arena, name: str, told: str, out: Path) -> None:
    """Answer the gate rows with what a server holds; `told` is `model@url`, as `arms.servers` names it."""
    model, _, url = told.rpartition("@")
    arena.run(ServerEngine(url, model, arena.renderer), Way(name), "gate", out / "arms")


def logit_change(model: Any, arena: Arena) -> float:
    """Largest change that the adapter makes to the logits of one gate prompt: 0 means that it is not at work."""
    prompt = arena.prompts(arena.dataset.rows("gate")[:1], ZERO_SHOT)[0]
    ids = torch.tensor([prompt], device=model.device)
    with torch.inference_mode():
        ours = model(input_ids=ids, use_cache=False).logits
        with model.disable_adapter():
            base = model(input_ids=ids, use_cache=False).logits
    return float((ours - base).abs().max())
