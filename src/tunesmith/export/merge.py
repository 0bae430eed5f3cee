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
from tunesmith.files import read_json, sha256_json, sha256_tree, write_json
from tunesmith.prompt import Renderer


def merge(base: Base, adapter: Path, systems: list[str], out: Path) -> None:
    """Write the merged model with the base's tokenizer and template into `out`.

    Raises:
        UserError: the adapter does not belong to the base or the prompt.
        ValueError: a merged weight is not a number (peft's safe merge).
    """
    renderer = Renderer(base.tokenizer(), base.end_ids())
    adapters.verify(adapter, base=base, prompt_digest=renderer.digest(systems))
    model = base.model(dtype=torch.float32)
    merged = adapters.attach(model, adapter).merge_and_unload(safe_merge=True)
    merged.to(getattr(torch, stored_dtype(base)))
    with quiet():
        merged.save_pretrained(out)
    for path in sorted(base.directory.iterdir()):
        # Tokenizer and template as bytes: saved again by a library they could differ.
        if path.is_file() and path.suffix != ".safetensors" and not (out / path.name).exists():
            shutil.copyfile(path, out / path.name)
    (out / "manifest.json").unlink(missing_ok=True)
    if (out / "model.safetensors").exists():
        # The base's index names shards that the merged model may not have.
        (out / "model.safetensors.index.json").unlink(missing_ok=True)
    files = sha256_tree(out)
    write_json(
        out / "manifest.json",
        {
            "base": base.digest,
            "adapter": adapters.digest(adapter),
            "method": "float32 sum with the unquantised base, rounded once",
            "dtype": stored_dtype(base),
            "digest": sha256_json(files),
            "files": files,
        },
    )


def stored_dtype(base: Base) -> str:
    """The dtype that the base's weights are stored in."""
    dtype: str = read_json(base.directory / "config.json").get("dtype", "float32")
    return dtype
