"""Where a run may also report to: the trackers that a recipe can name in `trainer.report_to`.

None is told anything unless a recipe names it. Naming one of the last three is how a user lets training use the
network.
"""

import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

TRACKERS = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "trackio": ("trackio",),
}
"""Each with the packages of which one must be installed."""

OF_TRACKIO = frozenset({"project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"})
"""Keys of trl.SFTConfig that only trackio reads."""
KEYS = frozenset({"report_to"}) | OF_TRACKIO
"""Keys of `trainer:` that say who is told of a run, and nothing of what it computes."""

QUIET = {
    # transformers, trl, datasets, accelerate and trackio send theirs through huggingface_hub.
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    # mlflow 3.17 takes no other DO_NOT_TRACK than `true`.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "RAY_USAGE_STATS_ENABLED": "0",
    # wandb is named for a run's numbers: not for its own crash reports, the code, the git state or the terminal.
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_DISABLE_CODE": "true",
    "WANDB_DISABLE_GIT": "true",
    "WANDB_CONSOLE": "off",
}
"""What keeps libraries from telling their makers, and trackers from telling more than they were named for."""

UPLOADS = {"WANDB_LOG_MODEL": "wandb", "HF_MLFLOW_LOG_ARTIFACTS": "mlflow"}
"""Variables by which transformers' callbacks upload weights while training is under way."""
OFF = {"", "false", "0", "no", "off"}


def named(report_to: Any) -> list[str]:
    """The trackers that a value of `trainer.report_to` names."""
    names = report_to if isinstance(report_to, list) else [report_to] if isinstance(report_to, str) else []
    return [name for name in names if name != "none"]


def problem(key: str, trainer: Mapping[str, Any]) -> str | None:
    """What is wrong with a key that has to do with trackers, if anything is; `trainer` is the section it stands in."""
    names = named(trainer.get("report_to"))
    if key in OF_TRACKIO and "trackio" not in names:
        return "is read by trackio alone; put trackio into `trainer.report_to`, or leave it out"
    if key != "report_to":
        return None
    unknown = [name for name in names if name not in TRACKERS]
    if unknown:
        return f"no such tracker: {', '.join(map(str, unknown))}; there are: {', '.join(TRACKERS)}, or none"
    missing = [name for name in names if not any(find_spec(package) for package in TRACKERS[name])]
    if missing:
        packages = " ".join(TRACKERS[name][0] for name in missing)
        return f"not installed: {', '.join(missing)}; run `pip install {packages}`"
    return None


def uploads(names: list[str]) -> list[str]:
    """Variables of the environment that would have a named tracker upload weights that nothing has judged."""
    return [
        f"{variable}: would upload weights to {tracker} before they are judged; unset it, the bundle is what ships"
        for variable, tracker in UPLOADS.items()
        if tracker in names and os.environ.get(variable, "").lower() not in OFF
    ]
