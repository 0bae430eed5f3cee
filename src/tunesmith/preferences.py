"""The kinds of training, and what of trl's DPOConfig a recipe may say where it tunes by preferences.

DPO (Rafailov et al. 2023, arXiv:2305.18290) begins from an adapter, which is also the reference that it must not leave
far behind. `trainer:` then goes verbatim to `trl.DPOConfig`. What that class takes and then ignores is refused here.
"""

from collections.abc import Iterator, Mapping
from typing import Any

Keys = tuple[str, ...]

CLASSES = {"sft": "trl.SFTConfig", "dpo": "trl.DPOConfig"}
"""Each value of `trainer.kind`, with the class that takes the other keys of `trainer:`."""

SECTIONS = {"sft": "trainer", "dpo": "dpo"}
"""By what `upstream` knows the class of each kind."""

NO_REFERENCE = "the adapter named by `after` stays the reference, as it is"

# Keys that are reserved under kind `dpo`, beside those that always are.
RESERVED: dict[str, str] = {
    "disable_dropout": "dropout is off: a reference that is drawn anew each time is none",
    "neftune_noise_alpha": "noise would reach the reference too; leave it out",
    "label_smoothing_factor": "trl reads no labels here; for labels that may be wrong use `label_smoothing`",
    "precompute_ref_log_probs": "the reference is computed beside the policy, in the same batch",
    "precompute_ref_batch_size": "the reference is computed beside the policy, in the same batch",
    "sync_ref_model": NO_REFERENCE,
    "ref_model_mixup_alpha": NO_REFERENCE,
    "ref_model_sync_steps": NO_REFERENCE,
    "use_liger_kernel": "trl replaces the model's head itself",
    "liger_kernel_config": "trl replaces the model's head itself",
    "average_tokens_across_devices": "the loss counts pairs, not tokens",
}

# What trl 1.16 knows; it would say so of another only once the first step is computed.
LOSSES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
)  # fmt: skip
DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")

TOGETHER = {"aot", "aot_unpaired", "sft"}
"""Losses that take the pairs of one pass together, so that how a step is cut into passes would change them."""

READ_BY = {
    "label_smoothing": ("loss_type", {"robust", "exo_pair", "aot", "aot_unpaired"}),
    "discopop_tau": ("loss_type", {"discopop"}),
    "f_alpha_divergence_coef": ("f_divergence_type", {"alpha_divergence"}),
}
"""Keys that trl takes whatever the loss is, with the key and its values under which it reads them."""


def kind_of(values: Mapping[str, Any]) -> str:
    """The kind of training that a recipe's values ask for; what is no kind is another's to refuse."""
    trainer = values.get("trainer")
    found = trainer.get("kind") if isinstance(trainer, dict) else None
    return found if isinstance(found, str) and found in CLASSES else "sft"


def problems(values: Mapping[str, Any]) -> Iterator[tuple[Keys, str]]:
    """What is wrong with the kind of training that a recipe's values ask for, and where."""
    trainer = values.get("trainer")
    if not isinstance(trainer, dict):
        return
    kind, after = trainer.get("kind", "sft"), values.get("after")
    if not isinstance(kind, str) or kind not in CLASSES:
        yield ("trainer", "kind"), f"{kind!r} is none of {', '.join(CLASSES)}"
    elif kind == "sft" and after is not None:
        yield ("after",), "only `trainer.kind: dpo` begins from an adapter; leave it out, or state the kind"
    elif kind == "dpo":
        if after is None:
            yield ("trainer", "kind"), "dpo begins from an adapter; name the recipe or the run as `after`"
        elif after == values.get("name"):
            yield ("after",), f"{after!r} is this recipe itself; name the one whose adapter this begins from"
        yield from _in_vain(values, trainer)


def _in_vain(values: Mapping[str, Any], trainer: Mapping[str, Any]) -> Iterator[tuple[Keys, str]]:
    """What trl would take and not act on, or refuse only in the first step."""
    lora = values.get("lora")
    if isinstance(lora, dict) and lora.get("lora_dropout"):
        yield ("lora", "lora_dropout"), "does nothing under kind: dpo, where trl switches dropout off; set it to 0"
    stated = {"loss_type": trainer.get("loss_type", ["sigmoid"])}
    stated["f_divergence_type"] = [trainer.get("f_divergence_type", "reverse_kl")]
    if not all(isinstance(value, list) and value for value in stated.values()):
        # Of another type than upstream's: told already.
        return
    for key, known in (("loss_type", LOSSES), ("f_divergence_type", DIVERGENCES)):
        if unknown := [value for value in stated[key] if value not in known]:
            yield ("trainer", key), f"{unknown[0]!r} is none of {', '.join(known)}"
    for key, (by, reading) in READ_BY.items():
        if key in trainer and not reading & {value for value in stated[by] if isinstance(value, str)}:
            yield ("trainer", key), f"does nothing unless trainer.{by} holds {' or '.join(sorted(reading))}"
