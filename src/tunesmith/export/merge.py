"""Base and adapter become one set of weights.

The delta is added in float32 to the unquantised base and rounded once, to the base's own dtype. Merging into a 4-bit
base would round most of a small delta away, so it is never done: a QLoRA adapter goes into the base that its 4-bit copy
was made from, and the gate scores the result like any other arm.
"""

import shutil
from pathlib import Path

import torch

from tunesmith import adapters
from tunesmith.bases import Base, quiet
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
        UserError: the adapter does not belong to the base or the prompt.
        ValueError: a merged weight is not a number (peft's safe merge).
    """
    renderer = Renderer(base.tokenizer(), base.end_ids())
    adapters.verify(adapter, base=base, prompt_digest=renderer.digest(systems))
    # On the CPU: float32 may not fit beside what a GPU holds, and a sum needs no GPU.
    model = base.model(dtype=torch.float32, device="cpu")
    merged = adapters.attach(model, adapter).merge_and_unload(safe_merge=True)
    merged.to(getattr(torch, base.stored_dtype()))
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
