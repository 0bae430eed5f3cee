"""Which LoRA methods a recipe may ask for, what each needs, and what is refused instead of half-working in silence.

A method is named by peft's own keys under `lora:`. peft takes more than it carries through: an `eva` that nobody
computes starts like plain LoRA, so does a `lora_ga`, and `use_qalora` is not read at all on most bases. This is the
list of what works here from the first step to the merged model; docs/METHODS.md has a line on each.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.errors import UserError

Problem = tuple[tuple[str, ...], str]
"""Where in a recipe something is wrong, and what."""


@dataclass(frozen=True)
class Init:
    """A way to choose the first weights of an adapter: what it needs before training and at saving."""

    paper: str | None = None
    """Its arXiv id."""
    reads: str | None = None
    """What its first weights are computed from beside the weight each adapts: `rows`, or the unquantised `base`."""
    differs: bool = False
    """Whether its first weights are taken away again at saving, so that the adapter fits the base as it is: rank 2r.

    They were taken out of the base (PiSSA, OLoRA), or stand for what quantisation took (LoftQ).
    """
    quantizations: tuple[str, ...] = ("none", "nf4")
    """The `quantization` that it can be trained with."""


INITS: dict[str, Init] = {
    "default": Init("2106.09685"),
    "gaussian": Init(),
    "orthogonal": Init(quantizations=("none",)),
    "mica": Init("2604.01694", quantizations=("none",)),
    "eva": Init("2410.07170", reads="rows"),
    "pissa": Init("2404.02948", differs=True, quantizations=("none",)),
    "olora": Init("2406.01775", differs=True, quantizations=("none",)),
    "loftq": Init("2310.08659", reads="base", differs=True, quantizations=("nf4",)),
}

NOT_CARRIED = {
    "corda": "peft needs covariances of activations, which the toolkit does not collect; `eva` reads rows",
    "lora_ga": "without gradients collected first peft falls back to plain LoRA in silence; `eva` reads rows",
}

# Keys of peft.LoraConfig whose method does not get from here to the merged model.
REFUSED: dict[str, str] = {
    "alora_invocation_tokens": "an activated adapter works on some tokens only and cannot be merged",
    "arrow_config": "routing needs several trained adapters; a run trains one",
    "bias": "only adapters are published, not the base's biases",
    "corda_config": NOT_CARRIED["corda"],
    "kasa_config": "KaSA truncates the base for good and needs a loss of its own; its adapter fits no untouched base",
    "layer_replication": "the merged model would have other layers than its base",
    "loftq_config": "LoftQ is one step at the base's own 4 bits here; there is nothing to set",
    "lora_bias": "layers without a bias have no place to merge it into",
    "lora_ga_config": NOT_CARRIED["lora_ga"],
    "megatron_config": "the toolkit trains transformers' models",
    "megatron_core": "the toolkit trains transformers' models",
    "modules_to_save": "only adapters are published, not copies of the base's modules; see `trainable_token_indices`",
    "monteclora_config": "its sampling needs a loss of its own, which training does not add",
    "qalora_group_size": "peft has QALoRA for GPTQ bases only and ignores it elsewhere",
    "runtime_config": "it has no effect on what is trained",
    "use_bdlora": "block-diagonal weights are for servers that split layers; a merged model has no use for them",
    "use_qalora": "peft has QALoRA for GPTQ bases only and ignores it elsewhere",
    "velora_config": "its gradients are approximate on purpose; the toolkit checks that gradients are exact",
}

NEUTRAL: tuple[Any, ...] = (None, False, "none", [], {})
"""Values with which a key of `REFUSED` asks for nothing."""

# Optimizers that are built by layer or from parameters of their own choice, for which groups by matrix make no sense.
UNGROUPED = ("apollo", "galore", "lomo", "layerwise")


def init_name(lora: Mapping[str, Any]) -> str | None:
    """The name in `INITS` of what a recipe's `lora:` asks for; None if it is none of them."""
    value = lora.get("init_lora_weights", True)
    if value is True:
        return "default"
    if isinstance(value, str) and re.fullmatch(r"pissa_niter_[0-9]+", value):
        return "pissa"
    return value if isinstance(value, str) and value in INITS and value != "default" else None


def init_of(lora: Mapping[str, Any]) -> Init:
    """How a valid recipe's adapter starts."""
    return INITS[init_name(lora) or "default"]


# What decides how weights begin, and needs weights or rows to do so; which modules are adapted does not depend on it.
BEGINNINGS = re.compile(r"init_lora_weights|(eva|loftq|corda|lora_ga|kasa)_config")


def without_beginning(lora: Mapping[str, Any]) -> dict[str, Any]:
    """What puts an adapter of the same shapes on a base that has no weights."""
    return {key: value for key, value in lora.items() if not BEGINNINGS.fullmatch(key)}


def put_on(model: Any, lora: Mapping[str, Any]) -> Any:
    """Put an adapter of the same shapes on a model without weights (`Base.hollow`); returns peft's model.

    Raises:
        UserError: peft refuses the settings for this base.
    """
    from peft import LoraConfig, get_peft_model

    try:
        asked = LoraConfig(task_type="CAUSAL_LM", **without_beginning(lora))
        return get_peft_model(model, asked, low_cpu_mem_usage=True)
    except (TypeError, ValueError) as error:
        raise UserError(f"lora: peft refuses it for this base: {str(error).splitlines()[0]}") from None


def method_problems(recipe: Mapping[str, Any]) -> list[Problem]:
    """What of a recipe's values asks for a method that would not work, or for two that do not go together."""
    lora = recipe.get("lora")
    if not isinstance(lora, dict):
        return []
    problems: list[Problem] = [
        (("lora", key), f"not supported: {reason}")
        for key, reason in REFUSED.items()
        if key in lora and lora[key] not in NEUTRAL
    ]
    problems += _init_problems(lora, recipe.get("quantization", "none"))
    problems += _pattern_problems(lora)
    problems += _token_problems(lora)
    if recipe.get("lora_plus_ratio") is not None:
        problems += _lora_plus_problems(lora, recipe.get("trainer"))
    return problems


def _init_problems(lora: Mapping[str, Any], quantization: Any) -> Iterator[Problem]:
    where, value = ("lora", "init_lora_weights"), lora.get("init_lora_weights", True)
    if not isinstance(lora.get("eva_config", {}), dict):
        yield ("lora", "eva_config"), "must be a section with the keys of peft.EvaConfig"
    if "eva_config" in lora and value != "eva":
        yield ("lora", "eva_config"), "has no effect without `init_lora_weights: eva`"
    name = init_name(lora)
    if name is None:
        known = ", ".join(["true", *(key for key in INITS if key != "default"), "pissa_niter_<iterations>"])
        if value is False:
            yield where, "an adapter that starts at random changes the base before it has learned; leave the key out"
        elif value in NOT_CARRIED:
            yield where, f"not supported: {NOT_CARRIED[value]}"
        else:
            yield where, f"{value!r} is none of {known}"
        return
    if quantization not in INITS[name].quantizations and quantization in ("none", "nf4"):
        allowed = " or ".join(INITS[name].quantizations)
        why = "it makes up for a 4-bit base's error" if name == "loftq" else "it needs the base's weights unquantised"
        yield where, f"{value!r} goes with `quantization: {allowed}` only: {why}"
    if lora.get("use_dora") is True and name in ("mica", "loftq"):
        yield (
            ("lora", "use_dora"),
            f"does not go with `init_lora_weights: {value}`: both set what the other starts from",
        )
    if lora.get("target_parameters") and name not in ("default", "gaussian"):
        yield where, f"{value!r} knows modules only; it does not go with `target_parameters`"
    ranks = [lora.get("r"), *_values(lora.get("rank_pattern"))]
    if name == "orthogonal" and any(isinstance(rank, int) and rank % 2 for rank in ranks):
        yield where, "'orthogonal' needs even ranks, in `r` and in `rank_pattern`"


def _pattern_problems(lora: Mapping[str, Any]) -> Iterator[Problem]:
    for rank in _values(lora.get("rank_pattern")):
        if type(rank) is not int or not 1 <= rank <= 512:
            yield ("lora", "rank_pattern"), f"{rank!r} is no rank; must be a whole number, at least 1, at most 512"
    for alpha in _values(lora.get("alpha_pattern")):
        if type(alpha) not in (int, float) or not 0 < alpha <= 4096:
            yield ("lora", "alpha_pattern"), f"{alpha!r} is no alpha; must be a number above 0, at most 4096"


def _token_problems(lora: Mapping[str, Any]) -> Iterator[Problem]:
    where, tokens = ("lora", "trainable_token_indices"), lora.get("trainable_token_indices")
    if lora.get("ensure_weight_tying") and not tokens:
        yield ("lora", "ensure_weight_tying"), "has no effect without `trainable_token_indices`"
    for indices in tokens.values() if isinstance(tokens, dict) else [tokens] if tokens is not None else []:
        if not isinstance(indices, list) or not indices or any(type(i) is not int or i < 0 for i in indices):
            yield where, f"{indices!r} is no list of token ids"
        elif len(set(indices)) < len(indices):
            yield where, "names a token twice"


def _lora_plus_problems(lora: Mapping[str, Any], trainer: Any) -> Iterator[Problem]:
    if init_name(lora) == "mica":
        yield ("lora_plus_ratio",), "has no effect with `init_lora_weights: mica`, which does not train lora_B"
    optim = str(trainer.get("optim", "")) if isinstance(trainer, dict) else ""
    if any(name in optim for name in UNGROUPED):
        yield ("lora_plus_ratio",), f"does not go with `trainer.optim: {optim}`, which groups weights itself"


def _values(pattern: Any) -> list[Any]:
    return list(pattern.values()) if isinstance(pattern, dict) else []
