"""Which modules of a base an adapter would change: found on a copy without weights, before anything is loaded."""

import re
import warnings
from dataclasses import dataclass
from typing import Any

from tunesmith.bases import Base
from tunesmith.methods import put_on


@dataclass(frozen=True)
class Modules:
    """What an adapter changes of a model."""

    by_layer: dict[int, frozenset[str]]
    """Of each decoder layer the adapted modules, named within it."""
    embeddings: list[str]
    """Input or output embeddings that are adapted or copied."""
    tied: bool
    """Whether the base reads and writes tokens by one matrix."""
    vocabulary: int
    """Rows of the input embedding."""
    trained: int
    """Weights that are trained."""
    frozen: int

    @property
    def number(self) -> int:
        """Of adapted modules in layers."""
        return sum(map(len, self.by_layer.values()))

    @property
    def bare(self) -> list[int]:
        """Layers without an adapted module."""
        return [layer for layer, names in self.by_layer.items() if not names]

    @property
    def kinds(self) -> set[frozenset[str]]:
        """The sets of modules that are adapted in one layer or another."""
        return {names for names in self.by_layer.values() if names}


def adapted_modules(base: Base, lora: dict[str, Any]) -> Modules:
    """Put an adapter on a base that has shapes but no weights, and look what it changes.

    Raises:
        UserError: peft refuses the settings for this base.
    """
    from peft.tuners.lora import LoraLayer

    model = base.hollow()
    embeddings = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    names = {name: id(module) for name, module in model.named_modules()}
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    with warnings.catch_warnings():
        # What peft warns of here is what the check says.
        warnings.simplefilter("ignore")
        adapted = put_on(model, lora)
    text = model.config.get_text_config()
    layers = int(text.num_hidden_layers)
    by_layer: dict[int, set[str]] = {layer: set() for layer in range(layers)}
    changed = []
    for name, module in adapted.get_base_model().named_modules():
        copied = hasattr(module, "modules_to_save") and not hasattr(module, "trainable_tokens_delta")
        if not isinstance(module, LoraLayer) and not copied:
            continue
        if names.get(name) in embeddings:
            changed.append(name)
        elif match := re.search(r"\.(\d+)\.(.+)", name):
            by_layer.setdefault(int(match[1]), set()).add(match[2])
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    every = sum(p.numel() for p in adapted.parameters())
    return Modules(
        {layer: frozenset(found) for layer, found in by_layer.items()},
        sorted(changed),
        bool(text.tie_word_embeddings),
        vocabulary,
        trained,
        every - trained,
    )
