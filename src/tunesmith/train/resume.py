"""Where a training run begins: anew, or after the newest whole checkpoint that was made as this run is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import UserError
from tunesmith.findings import Finding, seen
from tunesmith.hardware import Profile
from tunesmith.progress import say
from tunesmith.train.checkpoints import Checkpoint, Checkpoints, drift, read


@dataclass(frozen=True)
class Resumption:
    """Where a run may go on from, and what it must agree with."""

    directory: Path
    """Of this run's checkpoints."""
    identity: Mapping[str, Any]
    """Everything that decides what is trained on what."""
    source: Path | None = None
    """A checkpoint, or a run that holds some, to begin from where this run has none of its own."""
    allow_drift: bool = False
    """Go on from a checkpoint that was made otherwise; what differs is recorded."""

    @property
    def run(self) -> Path:
        """The run's directory, for what is written while it goes on."""
        return self.directory.parent


def where_to_begin(checkpoints: Checkpoints, resumption: Resumption) -> tuple[str | None, list[str]]:
    """The path of the checkpoint to go on from, if there is one, and where it was made otherwise than this run.

    Raises:
        UserError: it was made otherwise, and that was not allowed; or the one that was named is none.
    """
    found = checkpoints.newest()
    if found is None and resumption.source is not None:
        found = named_checkpoint(resumption.source)
    elif resumption.source is not None:
        say(f"  --resume {resumption.source} is not needed: this run has a checkpoint of its own")
    if found is None:
        return None, []
    differences = drift(found.binding, checkpoints.binding)
    if differences and not resumption.allow_drift:
        raise UserError(
            [f"{found.path}: was made otherwise: {difference}" for difference in differences],
            hint="undo the difference; or give `--allow-drift` to go on all the same, which is recorded; "
            "or begin anew: delete the checkpoints, or give no `--resume`",
        )
    for difference in differences:
        say(f"  drift, allowed and recorded: {difference}")
    say(f"  goes on after step {found.step}, from {found.path}")
    return str(found.path), differences


def named_checkpoint(source: Path) -> Checkpoint:
    """The checkpoint at a path, or the newest one of the run that lies there.

    Raises:
        UserError: there is none, or it is not whole.
    """
    if (source / "checkpoints").is_dir():
        found = Checkpoints(source / "checkpoints", {}).newest()
        if found is None:
            raise UserError(f"{source / 'checkpoints'}: holds no whole checkpoint")
        return found
    return read(source)


def machine(profile: Profile, processes: int = 1, kind: str = "ddp") -> dict[str, Any]:
    """What of a machine, and of `processes` on such machines, decides the last bits of what is computed."""
    import torch

    cuda = profile.device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else f"cpu, {torch.backends.cpu.get_cpu_capability()}",
        "threads": None if cuda else torch.get_num_threads(),
        "processes": 1 if processes == 1 else f"{processes}, {kind}",
        "dtype": profile.dtype,
        "gradient_checkpointing": profile.gradient_checkpointing,
        "rows_per_pass": profile.rows_per_pass,
        "accumulation": profile.accumulation,
        "share_prefixes": profile.share_prefixes,
    }


def how_it_began(checkpoint: str | None, drifted: Sequence[str]) -> Finding:
    """What there is to say of a run's beginning."""
    if checkpoint is None:
        evidence = "begun anew"
    else:
        agrees = f"made otherwise: {', '.join(drifted)}" if drifted else "nothing differs"
        evidence = f"gone on from {Path(checkpoint).name}, {agrees}"
    return seen(
        "resumed as begun",
        (18,),
        not drifted,
        "a run goes on with the settings, rows, base and versions it began with",
        evidence,
        "the manifest records it; train anew to be sure",
        grave=False,
    )
