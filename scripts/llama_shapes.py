"""Models with the widths of published ones and random weights, for benchmarks."""

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

# Hidden and feed-forward width, layers, heads, key and value heads, vocabulary.
SHAPES = {
    "tiny": (128, 256, 2, 4, 2, 512),
    "llama-0.5b": (896, 4864, 24, 14, 2, 151936),
    "llama-1b": (2048, 8192, 16, 32, 8, 128256),
    "llama-8b": (4096, 14336, 32, 32, 8, 128256),
}


def llama(shape: str, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """A model of such a shape; the same weights each time."""
    hidden, mlp, layers, heads, kv_heads, vocabulary = SHAPES[shape]
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        tie_word_embeddings=hidden < 4096,
        max_position_embeddings=8192,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model
