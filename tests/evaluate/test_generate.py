"""Answers do not depend on the company they are generated in. Padding tests compare scores: text can hide a fault."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, MistralConfig

from tunesmith.evaluate.constrain import admitted, json_constraint
from tunesmith.evaluate.generate import (
    Settings,
    batches,
    generate,
    read_beginning,
    read_prompts,
    settings_for,
    shared_prefix,
)
from tunesmith.evaluate.score_form import parse_strict
from tunesmith.line import Line
from tunesmith.schema import read_schema


def prompts_of(line: Line, count: int) -> list[list[int]]:
    rows = line.dataset.rows("gate")[:count]
    return [line.arena.renderer.prompt_ids(row.messages) for row in rows]


def next_scores(model: Any, prompts: list[list[int]], prefix: int, pad_id: int = 0) -> torch.Tensor:
    """Log-probabilities of the next token, as generation computes them: read in pieces over the shared prefix."""
    settings = Settings(max_new_tokens=4, end_ids=[0], pad_id=pad_id)
    with torch.inference_mode():
        shared = read_beginning(model, prompts[0][:prefix]) if prefix else None
        slots = read_prompts(model, prompts, shared, settings)
        with slots.in_use(model):
            output = model(
                input_ids=slots.ids,
                attention_mask=slots.mask,
                position_ids=slots.positions,
                past_key_values=slots.cache,
            )
        scores: torch.Tensor = output.logits[:, -1].log_softmax(-1)
    return scores


def scores_alone(model: Any, prompts: list[list[int]]) -> torch.Tensor:
    """The reference: each whole prompt by itself, without a cache."""
    with torch.inference_mode():
        each = [model(input_ids=torch.tensor([p]), use_cache=False).logits[0, -1].log_softmax(-1) for p in prompts]
    return torch.stack(each)


def test_a_batch_gives_the_scores_of_each_prompt_alone(line: Line) -> None:
    prompts = prompts_of(line, 5)
    assert len({len(p) for p in prompts}) > 1
    together = next_scores(line.base_model, prompts, prefix=0)
    assert torch.allclose(together, scores_alone(line.base_model, prompts), atol=1e-5)


def test_reading_in_pieces_gives_the_same_scores(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = sorted(prompts_of(line, 7), key=len, reverse=True)
    monkeypatch.setattr("tunesmith.evaluate.generate.READ_TOKENS", 2 * len(prompts[0]))
    pieces = next_scores(line.base_model, prompts, prefix=10)
    assert torch.allclose(pieces, scores_alone(line.base_model, prompts), atol=1e-5)


@pytest.mark.parametrize(("held_once", "most_scores"), [(1, 2**26), (1, 1), (10_000, 2**26)])
def test_a_beginning_held_once_gives_the_scores_of_the_whole_prompt(
    line: Line, monkeypatch: pytest.MonkeyPatch, held_once: int, most_scores: int
) -> None:
    """Read through it, read over copies that are then left out, and never held once."""
    monkeypatch.setattr("tunesmith.evaluate.generate.HELD_ONCE", held_once)
    monkeypatch.setattr("tunesmith.evaluate.generate.MOST_SCORES", most_scores)
    model, prompts = line.base_model, prompts_of(line, 9)
    prefix = shared_prefix(prompts)
    with torch.inference_mode():
        shared = read_beginning(model, prompts[0][:prefix])
        slots = read_prompts(model, prompts, shared, line.arena.settings)
    assert (slots.once is not None) == (held_once == 1)
    places = max(map(len, prompts)) - (prefix if held_once == 1 else 0)
    assert slots.mask.shape == (9, places)
    assert torch.allclose(next_scores(model, prompts, prefix), scores_alone(model, prompts), atol=1e-5)
    assert model.config._attn_implementation == "sdpa"


def test_answers_are_the_same_where_the_beginning_is_held_once(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    arena, prompts = line.arena, prompts_of(line, 9)
    prefix = shared_prefix(prompts)
    written = []
    for held_once in (1, 10_000):
        monkeypatch.setattr("tunesmith.evaluate.generate.HELD_ONCE", held_once)
        found = generate(line.base_model, arena.renderer, prompts, arena.settings, prefix=prefix, label="test")
        written.append([found[i].ids for i in range(9)])
    assert written[0] == written[1]


WINDOW = 7


@pytest.mark.parametrize("config", [LlamaConfig, MistralConfig, Gemma3TextConfig])
@pytest.mark.parametrize("prefix", [0, 5, 20])
def test_sliding_windows_see_true_distances(config: Any, prefix: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of different lengths end at one place, so that a window counts no padding."""
    monkeypatch.setattr("tunesmith.evaluate.generate.HELD_ONCE", 1)
    torch.manual_seed(0)
    window = {} if config is LlamaConfig else {"sliding_window": WINDOW}
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = AutoModelForCausalLM.from_config(config(**sizes, **heads, **window), dtype=torch.float32).eval()
    head = torch.randint(1, 97, (20,)).tolist()
    prompts = [head + torch.randint(1, 97, (3 + 5 * n,)).tolist() for n in range(5)]
    assert torch.allclose(next_scores(model, prompts, prefix), scores_alone(model, prompts), atol=1e-4)


def test_padding_on_the_right_would_be_noticed(line: Line) -> None:
    """The test above can fail: the same comparison with the other side padded does."""
    prompts = prompts_of(line, 5)
    width = max(map(len, prompts))
    pad = line.arena.renderer.pad_id
    ids = torch.tensor([p + [pad] * (width - len(p)) for p in prompts])
    mask = torch.tensor([[1] * len(p) + [0] * (width - len(p)) for p in prompts])
    with torch.inference_mode():
        wrong = line.base_model(input_ids=ids, attention_mask=mask).logits[:, -1].log_softmax(-1)
    assert not torch.allclose(wrong, scores_alone(line.base_model, prompts), atol=1e-2)


def test_a_shared_prefix_gives_the_scores_of_the_whole_prompt(line: Line) -> None:
    prompts = prompts_of(line, 5)
    prefix = shared_prefix(prompts)
    assert prefix > 10
    assert torch.allclose(
        next_scores(line.base_model, prompts, prefix), scores_alone(line.base_model, prompts), atol=1e-5
    )


def test_generation_with_and_without_shared_prefix_writes_the_same(line: Line) -> None:
    arena, prompts = line.arena, prompts_of(line, 9)
    runs = [
        generate(line.base_model, arena.renderer, prompts, arena.settings, prefix=prefix, label="test")
        for prefix in (0, shared_prefix(prompts))
    ]
    assert [a.text for _, a in sorted(runs[0].items())] == [a.text for _, a in sorted(runs[1].items())]


def test_answers_carry_their_tokens_and_whether_they_ended(line: Line) -> None:
    arena, prompts = line.arena, prompts_of(line, 3)
    answers = generate(line.base_model, arena.renderer, prompts, arena.settings, prefix=0, label="test")
    for index, prompt in enumerate(prompts):
        assert answers[index].tokens_in == len(prompt)
        assert 1 <= answers[index].tokens_out <= arena.settings.max_new_tokens
        assert answers[index].ended or answers[index].tokens_out == arena.settings.max_new_tokens


def test_defaults_in_a_models_files_do_not_change_an_arm(line: Line) -> None:
    arena, prompts = line.arena, prompts_of(line, 4)
    plain = generate(line.base_model, arena.renderer, prompts, arena.settings, prefix=0, label="test")
    config = line.base_model.generation_config
    config.do_sample, config.temperature, config.repetition_penalty = True, 3.0, 5.0
    swayed = generate(line.base_model, arena.renderer, prompts, arena.settings, prefix=0, label="test")
    assert [plain[i].text for i in range(4)] == [swayed[i].text for i in range(4)]


def test_constrained_answers_satisfy_the_schema(line: Line) -> None:
    arena, prompts = line.arena, prompts_of(line, 12)
    schema = read_schema(line.loaded.schema_path)
    constraint = json_constraint(arena.renderer, schema, line.base_model.config.vocab_size)
    free = generate(line.base_model, arena.renderer, prompts, arena.settings, prefix=0, label="free")
    bound = generate(
        line.base_model, arena.renderer, prompts, arena.settings, prefix=0, label="bound", constraint=constraint
    )
    assert all(arena.scorer.validator.is_valid(parse_strict(answer.text)) for answer in bound.values())
    assert all(answer.ended for answer in bound.values())
    assert not any(answer.text.startswith("{") for answer in free.values())


def test_constrained_answers_made_from_free_ones_are_those_made_from_nothing(line: Line) -> None:
    """The grammar forbids most of what this base writes, at different places once an answer has been begun well."""
    arena, prompts = line.arena, prompts_of(line, 12)
    schema = read_schema(line.loaded.schema_path)
    constraint = json_constraint(arena.renderer, schema, line.base_model.config.vocab_size)
    bound = generate(
        line.base_model, arena.renderer, prompts, arena.settings, prefix=0, label="bound", constraint=constraint
    )
    free = []
    for index in range(12):
        # A free answer that agrees for some tokens, then leaves the grammar; some agree to the end.
        ids = bound[index].ids
        agreed = ids if index % 4 == 0 else [*ids[: index * len(ids) // 12], arena.renderer.pad_id, 5]
        free.append(
            {"prediction_ids": agreed, "prediction": arena.renderer.decode(agreed), "ended": True, "seconds": 1}
        )
    made = arena._constrain(
        arena.engine(line.base_model, {"base": line.base.digest}),
        prompts,
        free,
        label="made",
        prefix=shared_prefix(prompts),
    )
    assert [made[i].ids for i in range(12)] == [bound[i].ids for i in range(12)]
    assert [made[i].text for i in range(12)] == [bound[i].text for i in range(12)]
    assert all(made[i].ended for i in range(12))


def test_free_answers_that_all_pass_are_taken_as_they_are(line: Line) -> None:
    arena, prompts = line.arena, prompts_of(line, 3)
    ids = [
        *arena.renderer.tokenizer('{"colour":"red"}', add_special_tokens=False)["input_ids"],
        *arena.settings.end_ids,
    ]
    free = [{"prediction_ids": ids, "prediction": '{"colour":"red"}', "ended": True, "seconds": 1.0}] * 3
    made = arena._constrain(
        arena.engine(line.base_model, {"base": line.base.digest}),
        prompts,
        free,
        label="made",
        prefix=shared_prefix(prompts),
    )
    assert [made[i].ids for i in range(3)] == [ids] * 3


def test_each_end_token_may_end_a_constrained_answer(line: Line) -> None:
    renderer = line.arena.renderer
    schema = read_schema(line.loaded.schema_path)
    other = renderer.tokenizer("x", add_special_tokens=False)["input_ids"][0]
    renderer.end_ids = sorted({*renderer.end_ids, other})
    ids = renderer.tokenizer('{"colour":"red"}', add_special_tokens=False)["input_ids"]
    for end in renderer.end_ids:
        constraint = json_constraint(renderer, schema, line.base_model.config.vocab_size)(1)
        assert admitted(constraint, [*ids, end]) == len(ids) + 1


def test_an_answer_that_has_begun_goes_on_as_it_would_have(line: Line) -> None:
    arena, prompts = line.arena, prompts_of(line, 6)
    whole = generate(line.base_model, arena.renderer, prompts, arena.settings, prefix=0, label="whole")
    begun = [whole[i].ids[: i + 1] for i in range(6)]
    on = generate(line.base_model, arena.renderer, prompts, arena.settings, prefix=0, label="on", begun=begun)
    assert [on[i].ids for i in range(6)] == [whole[i].ids for i in range(6)]


def test_every_prompt_is_in_one_batch_longest_first() -> None:
    prompts = [[0] * length for length in (3, 9, 4, 9, 1)]
    settings = Settings(max_new_tokens=1, end_ids=[0], pad_id=0, batch_rows=2)
    assert batches(prompts, settings) == [[1, 3], [2, 0], [4]]


def test_long_prompts_make_small_batches() -> None:
    prompts = [[0] * length for length in (9, 9, 4, 4, 4, 99)]
    settings = Settings(max_new_tokens=1, end_ids=[0], pad_id=0, batch_tokens=20)
    assert batches(prompts, settings) == [[5], [0, 1], [2, 3, 4]]


def test_the_shared_prefix_leaves_each_prompt_a_token_of_its_own() -> None:
    assert shared_prefix([[1, 2, 3], [1, 2, 4]]) == 2
    assert shared_prefix([[1, 2], [1, 2, 4]]) == 1
    assert shared_prefix([[1, 2, 3]]) == 0
    assert shared_prefix([[5], [6]]) == 0


def test_settings_survive_their_file(line: Line) -> None:
    settings = settings_for(line.arena.renderer, 24)
    assert Settings(**settings.as_dict()) == settings


def test_rows_that_leave_the_batch_early_change_nothing(line: Line) -> None:
    """Against transformers' own `generate`, on a model that ends some rows early and some late."""
    from transformers import GenerationConfig

    arena, prompts = line.arena, prompts_of(line, 24)
    model = line.base_model
    probe = generate(model, arena.renderer, prompts, arena.settings, prefix=0, label="probe")
    # Let tokens that this base likes to write end a turn, so that rows end at many different places.
    likely = sorted({i for a in probe.values() for i in arena.renderer.tokenizer(a.text)["input_ids"]})[::4]
    settings = Settings(arena.settings.max_new_tokens, likely, arena.settings.pad_id)
    ours = generate(model, arena.renderer, prompts, settings, prefix=0, label="ours")
    lengths = {answer.tokens_out for answer in ours.values()}
    assert len(lengths) > 3
    config = GenerationConfig(
        do_sample=False, max_new_tokens=settings.max_new_tokens, eos_token_id=likely, pad_token_id=settings.pad_id
    )
    for index, prompt in enumerate(prompts):
        ids = torch.tensor([prompt])
        # Without a mask `generate` would guess one from the pad token, which ends turns here and stands in the prompt.
        output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
        alone = output[0, len(prompt) :].tolist()
        assert len(alone) == ours[index].tokens_out
        assert arena.renderer.decode(alone) == ours[index].text
