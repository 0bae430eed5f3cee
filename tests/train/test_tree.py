"""Shared beginnings change the work, not the result: loss and gradients are those of every row on its own."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, MistralConfig, Qwen3Config

from tunesmith.prompt import Rendered
from tunesmith.train import loss as loss_module
from tunesmith.train.loss import gradient_error, nll_sum
from tunesmith.train.sampler import FamilySampler
from tunesmith.train.tree import DEEPEST, Limits, grow, lay_out, limits_for, shareable

VOCABULARY = 97
TINY = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
}
CONFIGS = {
    "llama, grouped queries": LlamaConfig(**TINY),
    "qwen3, norms on heads": Qwen3Config(**TINY),
    "mistral, sliding window": MistralConfig(**TINY, sliding_window=7),
    "gemma3, windows in some layers": Gemma3TextConfig(**TINY, sliding_window=7, final_logit_softcapping=None),
}
EVERYTHING = Limits(saving=1)


@pytest.fixture(autouse=True)
def share_every_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.train.tree.SHORTEST", 1)


class ExactNorm(nn.Module):
    """RMSNorm in the dtype of its input: transformers' own rounds to float32, which would hide an error below 1e-7."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


def with_exact_norms(model: Any) -> Any:
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                setattr(module, name, ExactNorm(child.weight.data + (1.0 if "Gemma" in type(child).__name__ else 0.0)))
    return model


def model_of(name: str, dtype: torch.dtype = torch.float64, **lora: Any) -> Any:
    torch.manual_seed(0)
    model = with_exact_norms(AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation="sdpa").to(dtype))
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", **lora))
    randomise(adapted)
    return adapted.to(dtype)


def randomise(model: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter_name, parameter in model.named_parameters():
        if "lora_" in parameter_name:
            parameter.data = (torch.randn(parameter.shape, generator=generator) * 0.2).to(parameter.dtype)


def row(prompt: list[int], completion: list[int]) -> Rendered:
    return Rendered(prompt, completion, ends=True)


def some(count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCABULARY, (count,), generator=generator).tolist()


def one_prefix() -> list[Rendered]:
    head = some(20, 1)
    return [row([*head, 90 + n, *some(3 + n, 10 + n)], some(2 + n % 3, 50 + n)) for n in range(6)]


def documents() -> list[Rendered]:
    """A system message, documents of different lengths under it, questions under each; one row stands alone."""
    system = some(9, 2)
    rows = []
    for document in range(3):
        text = system + some(5 + 6 * document, 100 + document)
        rows += [row(text + some(1 + n, 7 * n + document), some(4 + n, 300 + n)) for n in range(3)]
    return [*rows, row(some(11, 400), some(3, 401))]


BATCHES = {
    "one prefix": one_prefix(),
    "documents with questions": documents(),
    "one row": one_prefix()[:1],
    "one row twice": one_prefix()[:1] * 2,
    "same prompt, other completions": [row(some(12, 3), some(2 + n, 500 + n)) for n in range(4)],
    "a prompt that is another's beginning": [row(some(15, 4)[:n], some(3, n)) for n in (5, 10, 15)],
    "long completions": [row([*some(6, 5), n], some(60 + n, 600 + n)) for n in range(3)],
    "prompts of one token": [row([5], some(3, 1)), row([5], some(4, 2)), row([6], some(2, 3))],
    "a row without loss": [*one_prefix()[:3], row(one_prefix()[3].input_ids, [])],
}


def alone(model: Any, rows: list[Rendered]) -> torch.Tensor:
    """The reference: each row by itself, the whole of its logits, torch's own cross-entropy."""
    total = torch.zeros((), dtype=torch.float64)
    for each in rows:
        logits = model(input_ids=torch.tensor([each.input_ids]), use_cache=False).logits[0, :-1]
        labels = torch.tensor(each.labels[1:], dtype=torch.long)
        total = total + F.cross_entropy(logits.double(), labels, reduction="sum", ignore_index=-100)
    return total


def together(model: Any, rows: list[Rendered], limits: Limits | None = EVERYTHING) -> torch.Tensor:
    layout = lay_out(rows, limits)
    return nll_sum(model, layout.levels, layout.targets)


def gradients(model: Any, loss: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    loss.backward()
    found = [p.grad.flatten() for p in model.parameters() if p.requires_grad and p.grad is not None]
    return torch.cat(found)


def assert_equal(model: Any, rows: list[Rendered], limits: Limits | None, tolerance: float) -> None:
    expected = alone(model, rows)
    wanted = gradients(model, expected)
    got = together(model, rows, limits)
    assert got.item() == pytest.approx(expected.item(), rel=tolerance)
    difference = gradients(model, got) - wanted
    assert float(difference.norm() / wanted.norm()) < tolerance
    assert float(wanted.norm()) > 0.1


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("config", CONFIGS)
def test_loss_and_gradients_are_those_of_rows_alone(config: str, batch: str) -> None:
    # Under a sliding window only an unpadded beginning keeps distances; the trainer asks for no other.
    nested = "window" not in config
    assert_equal(model_of(config), BATCHES[batch], Limits(saving=1, nested=nested), 1e-9)


@pytest.mark.parametrize("batch", BATCHES)
def test_float32_agrees_as_far_as_it_can(batch: str) -> None:
    assert_equal(model_of("llama, grouped queries", torch.float32), BATCHES[batch], EVERYTHING, 2e-4)


def test_padding_inside_a_window_would_be_wrong_and_is_seen() -> None:
    """Why the trainer asks for one unpadded beginning where a window slides: nesting is not exact there."""
    model = model_of("mistral, sliding window")
    assert gradient_error(model, documents(), Limits(saving=1, nested=True)) > 1e-3
    assert gradient_error(model, one_prefix(), Limits(saving=1, nested=False)) < 1e-9


tokens = st.integers(1, 3)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.lists(tokens, min_size=1, max_size=12), st.lists(tokens, max_size=5)), min_size=1, max_size=7)
)
def test_any_rows_of_a_tiny_alphabet(pairs: list[tuple[list[int], list[int]]]) -> None:
    """Three tokens only, so that beginnings are shared, nested and equal in every way."""
    rows = [row(prompt, completion) for prompt, completion in pairs]
    model = MODEL
    expected = alone(model, rows)
    wanted = gradients(model, expected) if any(r.completion_ids for r in rows) else None
    got = together(model, rows)
    assert got.item() == pytest.approx(expected.item(), rel=1e-9, abs=1e-12)
    if wanted is not None:
        assert float((gradients(model, got) - wanted).norm()) <= 1e-9 * float(wanted.norm())


MODEL = model_of("llama, grouped queries")


def test_dora_is_exact() -> None:
    assert_equal(model_of("llama, grouped queries", use_dora=True), documents(), EVERYTHING, 1e-9)


def test_a_quantised_base_is_exact(tiny_base: Any) -> None:
    """NF4 weights are unpacked to the same values in every pass."""
    from transformers import BitsAndBytesConfig

    quantised = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(tiny_base, quantization_config=quantised, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear"))
    randomise(model)
    assert model.get_base_model().is_loaded_in_4bit
    assert_equal(model, documents(), EVERYTHING, 2e-4)


class Recorder(nn.Module):
    """Dropout that keeps its masks, or applies given ones."""

    def __init__(self) -> None:
        super().__init__()
        self.masks: list[torch.Tensor] = []
        self.given: Iterator[torch.Tensor] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = next(self.given) if self.given else F.dropout(torch.ones_like(x), 0.3)
        self.masks.append(mask)
        return x * mask


def test_with_dropout_a_row_drops_what_its_tokens_dropped_in_the_tree() -> None:
    """Rows of a batch share the masks of shared tokens; with those masks each row alone gives the same gradients."""
    model = model_of("llama, grouped queries", lora_dropout=0.3)
    recorders = []
    for module in model.modules():
        if hasattr(module, "lora_dropout"):
            recorders.append(Recorder())
            module.lora_dropout["default"] = recorders[-1]
    rows = one_prefix()
    torch.manual_seed(5)
    got = together(model, rows)
    found = gradients(model, got)
    again = gradients(model, (torch.manual_seed(5), together(model, rows))[1])
    assert torch.equal(found, again)

    levels = lay_out(rows, EVERYTHING).levels
    order = [node.rows[0] for node in grow([shareable(r) for r in rows], EVERYTHING)[0].children]
    shared = levels[0]["input_ids"].shape[1]
    for recorder in recorders:
        prefix, own = recorder.masks[:2]
        by_row = {r: torch.cat([prefix[0], own[place]])[None] for place, r in enumerate(order)}
        recorder.given = iter([by_row[r][:, : len(rows[r].input_ids)] for r in range(len(rows))])
    assert shared == 20
    expected = alone(model, rows)
    assert got.item() == pytest.approx(expected.item(), rel=1e-9)
    wanted = gradients(model, expected)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-9


def test_a_cache_that_carries_no_gradient_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama, grouped queries")
    assert gradient_error(model, one_prefix(), EVERYTHING) < 1e-9
    descend = loss_module._descend

    def severed(cache: Any, children: list[int]) -> None:
        descend(cache, children)
        for layer in cache.layers:
            layer.keys = layer.keys.detach()

    monkeypatch.setattr(loss_module, "_descend", severed)
    assert gradient_error(model, one_prefix(), EVERYTHING) > 1e-2


def test_sharing_saves_the_tokens_it_says() -> None:
    rows = one_prefix()
    layout = lay_out(rows, EVERYTHING)
    widest = max(len(r.input_ids) for r in rows) - 20
    assert layout.tokens == sum(len(r.input_ids) for r in rows)
    assert layout.computed == 20 + widest * len(rows)
    assert [tuple(level["input_ids"].shape) for level in layout.levels] == [(1, 20), (len(rows), widest)]
    plain = lay_out(rows, None)
    assert len(plain.levels) == 1
    assert plain.computed == len(rows) * (widest + 20)


def test_documents_nest_under_their_system_message() -> None:
    shapes = [len(level["input_ids"]) for level in lay_out(documents(), EVERYTHING).levels]
    assert shapes == [2, 3, 9]


def test_chance_agreement_is_not_worth_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.train.tree.SHORTEST", 16)
    few = [row([*some(15, 1), n, *some(9, n)], some(3, n)) for n in range(1, 9)]
    assert len(lay_out(few, Limits()).levels) == 1
    enough = [row([*some(16, 1), n, *some(9, n)], some(3, n)) for n in range(1, 9)]
    assert len(lay_out(enough, Limits()).levels) == 2
    assert len(lay_out(enough[:4], Limits()).levels) == 1  # saves 48 tokens


def test_what_predicts_a_loss_token_is_never_shared() -> None:
    rows = [row(some(12, 3), some(2 + n, 500 + n)) for n in range(4)]
    first = lay_out(rows, EVERYTHING).levels[0]
    assert first["input_ids"].tolist() == [some(12, 3)[:11]]
    assert first["loss_at"].numel() == 0


def test_rows_of_one_document_share_a_batch() -> None:
    rows = [row([*some(30, document), question], [1, 2]) for question in range(8) for document in range(12)]
    sampler = FamilySampler(rows, batch=8, seed=0, limits=Limits())
    for batch in sampler.batches():
        assert len({tuple(rows[i].prompt_ids[:30]) for i in batch}) == 1
    apart = FamilySampler(rows, batch=8, seed=0, limits=None)
    assert any(len({tuple(rows[i].prompt_ids[:30]) for i in batch}) > 1 for batch in apart.batches())


def test_small_families_are_joined_and_stay_whole() -> None:
    rows = [row([*some(40, document), question], [1, 2]) for question in range(4) for document in range(10)]
    sampler = FamilySampler(rows, batch=8, seed=0, limits=Limits())
    batches = sampler.batches()
    assert sorted(i for batch in batches for i in batch) == list(range(40))
    assert [len({tuple(rows[i].prompt_ids[:40]) for i in batch}) for batch in batches] == [2] * 5


def test_what_may_be_shared_follows_from_the_models_layers() -> None:
    assert limits_for(CONFIGS["llama, grouped queries"], "cpu") == Limits(saving=64, nested=True)
    assert limits_for(CONFIGS["llama, grouped queries"], "cuda") == Limits(saving=1024, nested=True)
    # However wide the window: padded places count towards it, rows' lengths do not tell how many.
    wide = MistralConfig(**TINY, sliding_window=4096)
    assert limits_for(wide, "cpu") == Limits(saving=64, nested=False)
    assert limits_for(CONFIGS["gemma3, windows in some layers"], "cpu") == Limits(saving=64, nested=False)
    recurrent = LlamaConfig(**TINY)
    recurrent.layer_types = ["full_attention", "linear_attention", "full_attention"]
    assert limits_for(recurrent, "cpu") is None


def test_gradients_of_a_nested_batch_are_the_same_bits_each_time() -> None:
    model = model_of("llama, grouped queries", torch.float32)
    first = gradients(model, together(model, documents()))
    assert all(torch.equal(first, gradients(model, together(model, documents()))) for _ in range(3))


def test_beginnings_that_grow_a_token_a_row_stop_at_some_depth() -> None:
    rows = [row([*some(30 * n, 1), 90], [1, 2]) for n in range(1, 60)]
    levels = lay_out(rows, Limits()).levels
    assert len(levels) == DEEPEST + 1
    assert sum(level["loss_at"].numel() for level in levels) == 2 * len(rows)


def test_a_row_without_a_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="a row without a prompt"):
        lay_out([row([], [1, 2])], None)


def test_a_head_that_does_more_than_multiply_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama, grouped queries")
    forward = model.get_base_model().forward

    def capped(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits = torch.tanh(output.logits)
        return output

    assert gradient_error(model, one_prefix(), None) < 1e-9
    monkeypatch.setattr(model.get_base_model(), "forward", capped)
    assert gradient_error(model, one_prefix(), None) > 1e-2
