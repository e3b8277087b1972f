"""Where numbers go: metrics.jsonl always, TensorBoard always, Weights & Biases when asked for."""

import json
import os
from pathlib import Path
from typing import Any

from robopolicy.errors import RobopolicyError


class MetricsLog:
    """Appends one JSON object per call to metrics.jsonl and mirrors the numbers to TensorBoard.

    On resume, entries after the resumed step are dropped, so that the file reads like an uninterrupted run.
    """

    def __init__(self, folder: Path, resume_step: int = 0, wandb_config: dict[str, Any] | None = None) -> None:
        # Imported here: it takes half a second that other commands need not spend.
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder / "metrics.jsonl"
        kept = [e for e in read_metrics(self.path) if e["step"] <= resume_step]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(e) + "\n" for e in kept))
        os.replace(temporary, self.path)
        self._file = self.path.open("a")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_step + 1)
        self._wandb = None
        if wandb_config is not None:
            try:
                import wandb
            except ImportError:
                raise RobopolicyError("--wandb: not installed; pip install 'robopolicy[wandb]'") from None
            self._wandb = wandb.init(project="robopolicy", config=wandb_config, dir=str(folder))

    def write(self, step: int, values: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step} | values) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(values, step=step)

    def close(self) -> None:
        self._file.close()
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The entries of a metrics.jsonl; a half-written last line, left by a kill, is ignored."""
    if not path.is_file():
        return []
    entries = []
    for line in path.read_text().splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries
