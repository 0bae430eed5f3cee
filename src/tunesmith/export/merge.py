"""Base and adapter become one set of weights.

The delta is added in float32 to the unquantised base and rounded once, to the base's own dtype. Merging into a 4-bit
base would round most of a small delta away, so it is never done: a QLoRA adapter goes into the base that its 4-bit copy
was made from, and the gate scores the result like any other arm.
"""

import shutil
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.trainable_tokens import TrainableTokensLayer
from transformers import PreTrainedModel

from tunesmith import adapters
from tunesmith.bases import Base, quiet
from tunesmith.errors import UserError
from tunesmith.files import sha256_json, sha256_tree, write_json
from tunesmith.prompt import Renderer

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


def merge(base: Base, adapter: Path, systems: list[str], out: Path) -> None:
    """Write the merged model with the base's tokenizer and template into `out`.

    Raises:
        UserError: the adapter does not belong to the base or the prompt, or it parts a head from its embeddings.
        ValueError: a merged weight is not a number (peft's safe merge).
    """
    renderer = Renderer(base.tokenizer(), base.end_ids())
    adapters.verify(adapter, base=base, prompt_digest=renderer.digest(systems))
    # On the CPU: float32 may not fit beside what a GPU holds, and a sum needs no GPU.
    model = base.model(dtype=torch.float32, device="cpu")
    tied, embeddings = is_tied(model), model.get_input_embeddings().weight
    attached = adapters.attach(model, adapter)
    if tied:
        _refuse_half_of(embeddings, attached, adapter)
    merged = attached.merge_and_unload(safe_merge=True)
    merged.to(getattr(torch, base.stored_dtype()))
    if is_tied(merged) != tied:
        raise UserError(f"{adapter}: merging it would untie the base's head from its embeddings; nothing was written")
    with quiet():
        merged.save_pretrained(out)
    # Tokenizer and template as bytes: saved again by a library they could differ. Nothing else of the base's.
    for pattern in TOKENIZER_FILES:
        for path in sorted(base.directory.glob(pattern)):
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
