"""Base and adapter become one set of weights.

The delta is added in float32 to the unquantised base and rounded once, to the base's own dtype. Merging into a 4-bit
base would round most of a small delta away, so it is never done: a QLoRA adapter goes into the base that its 4-bit copy
was made from, and the gate scores the result like any other arm.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.trainable_tokens import TrainableTokensLayer
from transformers import PreTrainedModel

from tunesmith import adapters
from tunesmith.bases import Base, quiet
from tunesmith.errors import Diverged, UserError
from tunesmith.files import sha256_file, sha256_json, sha256_tree, write_json
from tunesmith.findings import Finding, refuse, seen
from tunesmith.prompt import Rendered, Renderer

TOKENIZER_FILES = (
    "tokenizer*.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
    "LICENSE*",
)


KEPT = 0.5
"""Least part of the adapter's effect that rounding must leave, else the merged model is the base again."""
KEPT_WELL = 0.99
PROBES = 8
"""Rows on which the effect is measured."""


def merge(base: Base, adapter: Path, systems: list[str], probes: Sequence[Rendered], out: Path) -> list[Finding]:
    """Write the merged model with the base's tokenizer and template into `out`, and say what the merge has kept.

    `probes` are rows of dev, on whose completions base, adapter and merged model are compared.

    Raises:
        UserError: the adapter does not belong to the base or the prompt, or it parts a head from its embeddings.
        Diverged: the base was loaded quantised.
        ValueError: a merged weight is not a number (peft's safe merge).
    """
    renderer = Renderer(base.tokenizer(), base.end_ids())
    adapters.verify(adapter, base=base, prompt_digest=renderer.digest(systems))
    # On the CPU: float32 may not fit beside what a GPU holds, and a sum needs no GPU.
    model = base.model(dtype=torch.float32, device="cpu")
    into = _merged_into(base, model)
    refuse([into], "merge", Diverged)
    tied, embeddings = is_tied(model), model.get_input_embeddings().weight
    attached = adapters.attach(model, adapter)
    if tied:
        _refuse_half_of(embeddings, attached, adapter)
    with_adapter = log_probabilities(attached, probes[:PROBES])
    with attached.disable_adapter():
        without = log_probabilities(attached, probes[:PROBES])
    merged = attached.merge_and_unload(safe_merge=True)
    merged.to(getattr(torch, base.stored_dtype()))
    # As it is stored, but computed in float32: what is left of the difference is the rounding of the weights.
    rounded = log_probabilities(merged.float(), probes[:PROBES])
    merged.to(getattr(torch, base.stored_dtype()))
    if is_tied(merged) != tied:
        raise UserError(f"{adapter}: merging it would untie the base's head from its embeddings; nothing was written")
    with quiet():
        merged.save_pretrained(out)
    # Tokenizer and template as bytes: saved again by a library they could differ. Nothing else of the base's.
    for path in _tokenizer_files(base):
        shutil.copyfile(path, out / path.name)
    files = sha256_tree(out)
    write_json(
        out / "manifest.json",
        {
            "base": base.digest,
            "adapter": adapters.digest(adapter),
            "method": "float32 sum with the unquantised base, rounded once",
            "dtype": base.stored_dtype(),
            "digest": sha256_json(files),
            "files": files,
        },
    )
    return [
        into,
        *effect_kept(with_adapter, without, rounded, base.stored_dtype()),
        seen(
            "tie kept",
            (11,),
            is_tied(merged) == tied,
            "what the base holds as one matrix, the merged model holds as one",
            f"embedding and head are {'one' if is_tied(merged) else 'two'}, in the base {'one' if tied else 'two'}",
            "leave embeddings out of lora.target_modules and lora.modules_to_save",
        ),
        seen(
            "template and tokenizer",
            (9,),
            all(files.get(path.name) == sha256_file(path) for path in _tokenizer_files(base)),
            "the merged model carries the base's tokenizer and template, byte for byte",
            f"{len(_tokenizer_files(base))} files, prompt {renderer.digest(systems)[:12]}",
            "merge again",
        ),
    ]


def _merged_into(base: Base, model: Any) -> Finding:
    """Whether the model that takes the sum is unquantised; looked at first: a sum into 4 bits is lost, or crashes."""
    quantised = bool(getattr(model, "is_quantized", False))
    return seen(
        "merged into",
        (15,),
        not quantised,
        "the sum is taken with the unquantised base, in float32",
        "a quantised base" if quantised else f"base of {base.stored_dtype()}, widened to float32, rounded once",
        "merge into the base that the quantised copy was made from",
    )


def log_probabilities(model: Any, rows: Sequence[Rendered]) -> list[torch.Tensor]:
    """Of each row's completion tokens the log-probabilities of every token, (completion tokens, vocabulary)."""
    found = []
    with torch.inference_mode():
        for row in rows:
            logits = model(input_ids=torch.tensor([row.input_ids]), use_cache=False).logits[0]
            found.append(logits[len(row.prompt_ids) - 1 : -1].float().log_softmax(-1))
    return found


def effect_kept(
    adapter: Sequence[torch.Tensor], base: Sequence[torch.Tensor], merged: Sequence[torch.Tensor], dtype: str
) -> list[Finding]:
    """What the merged model has kept of the adapter's effect: 1 less the divergence left over the whole effect.

    Divergence is Kullback and Leibler's, in nats a token, from the adapter's distribution.
    """
    whole, left = divergence(adapter, base), divergence(adapter, merged)
    kept = max(0.0, 1 - left / whole) if whole > 0 else 0.0
    pairs = [(a.argmax(-1) == m.argmax(-1)) for a, m in zip(adapter, merged, strict=True)]
    agree = float(torch.cat(pairs).float().mean())
    told = f"{kept:.2%} of the adapter's effect ({whole:.2e} nats a token) kept, first choices agree in {agree:.2%}"
    remedy = f"its deltas are as small as {dtype} rounds: raise trainer.learning_rate, or take a base in a wider dtype"
    wants = "rounding leaves the adapter's effect"
    if whole == 0:
        told, remedy = "the adapter changes nothing: there is nothing to keep", "train again"
    return [
        # An adapter without effect is not the merge's fault; the gate calls its run INVALID.
        seen("adapter not erased", (16,), kept >= KEPT, wants, told, remedy, grave=whole > 0),
        seen("adapter kept whole", (16,), kept >= KEPT_WELL, wants, f"{kept:.2%} kept", remedy, grave=False),
    ]


def divergence(from_: Sequence[torch.Tensor], to: Sequence[torch.Tensor]) -> float:
    """Mean Kullback-Leibler divergence in nats a token, of log-probabilities."""
    each = [(a.exp() * (a - b)).sum(-1) for a, b in zip(from_, to, strict=True)]
    return float(torch.cat(each).mean())


def _tokenizer_files(base: Base) -> list[Path]:
    return [path for pattern in TOKENIZER_FILES for path in sorted(base.directory.glob(pattern))]


def is_tied(model: PreTrainedModel) -> bool:
    """Whether head and embeddings are one matrix: by what the model says of itself and by where the weights lie."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    one = head is not None and embeddings.weight.data_ptr() == head.weight.data_ptr()
    return one and bool(model.config.get_text_config().tie_word_embeddings)


def _refuse_half_of(embeddings: torch.Tensor, attached: PeftModel, adapter: Path) -> None:
    """Refuse an adapter on one use of a matrix that has two: merged, it would change the other as well.

    Raises:
        UserError: there is one.
    """
    on_it = [
        name
        for name, module in attached.named_modules()
        if isinstance(module, LoraLayer | TrainableTokensLayer)
        and module.get_base_layer().weight.data_ptr() == embeddings.data_ptr()
    ]
    # Trained tokens of a tied matrix lie on both of its uses, as one and the same weights.
    if on_it and not (len(on_it) == 2 and all(name.endswith(".token_adapter") for name in on_it)):
        raise UserError(f"{adapter}: adapts {on_it[0]} alone, whose weights are the base's head and embeddings at once")
