"""How well CARP's tokenizer reconstructs held-out chunks: error after each scale, and how many codes are used."""

import io
import json
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from robopolicy.policies.base import Batch
from robopolicy.policies.carp import CarpPolicy

FORMAT, VERSION = "robopolicy-tokenizer", 1


@dataclass
class TokenizerReport:
    """What `measure` found."""

    checkpoint: str
    scales: tuple[int, ...]
    names: list[str]
    """One per action dimension, with its unit."""
    windows: int
    codes: int
    """Size of a codebook."""
    rmse: np.ndarray
    """[K, D_a] root-mean-square error after the first 1..K scales, in the action's units."""
    spread: np.ndarray
    """[D_a] standard deviation of the actions, in the same units."""
    used: np.ndarray
    """[K + 1, D_a] distinct codes used by each scale, and by all of them together."""
    chunk: np.ndarray
    """[H, D_a] the window whose actions move most."""
    decoded: np.ndarray
    """[K, H, D_a] that window after the first 1..K scales."""

    def table(self) -> str:
        """Errors and codes per dimension as text."""
        width = max(9, *map(len, self.names))
        heads = " ".join(f"{'+' if k else ''}{n:>9}" for k, n in enumerate(self.scales))
        lines = [
            f"{self.checkpoint}: {self.windows} held-out windows; error (rms) after each scale, codes of {self.codes} "
            "used by each scale and by all",
            f"{'dimension':<{width}} {'spread':>9} {heads}   codes",
        ]
        for d, name in enumerate(self.names):
            errors = " ".join(f"{'' if k == 0 else ' '}{e:>9.4g}" for k, e in enumerate(self.rmse[:, d]))
            used = " ".join(map(str, self.used[:-1, d]))
            lines.append(f"{name:<{width}} {self.spread[d]:>9.4g} {errors}   {used} / {self.used[-1, d]}")
        return "\n".join(lines)

    def to_json(self) -> str:
        """Plain JSON with every number but the example."""
        data = {
            "checkpoint": self.checkpoint,
            "scales": self.scales,
            "windows": self.windows,
            "codes": self.codes,
            "dimensions": [
                {"name": n, "spread": s, "rmse": r, "codes_used": u[:-1], "codes_used_by_all": u[-1]}
                for n, s, r, u in zip(
                    self.names, self.spread.tolist(), self.rmse.T.tolist(), self.used.T.tolist(), strict=True
                )
            ],
        }
        return json.dumps({"format": FORMAT, "version": VERSION} | data, indent=1) + "\n"

    def picture(self) -> bytes:
        """PNG: error against scales, codes used, and one chunk as each further scale refines it."""
        figure = Figure(figsize=(13.0, 4.0), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        errors, usage, example = figure.subplots(1, 3)
        ticks, labels = np.arange(len(self.scales)), [f"{'+' if k else ''}{n}" for k, n in enumerate(self.scales)]
        for d, name in enumerate(self.names):
            # A dimension that never moves has no spread to compare with.
            errors.plot(ticks, self.rmse[:, d] / (self.spread[d] or 1.0), color=f"C{d % 10}", marker="o", label=name)
        errors.set(
            xticks=ticks, xticklabels=labels, yscale="log", xlabel="scales decoded", ylabel="rms error / spread"
        )
        errors.set_title("reconstruction of held-out chunks", fontsize=10)
        errors.legend(frameon=False, fontsize=8)
        bar = 0.8 / len(self.names)
        for d in range(len(self.names)):
            usage.bar(
                np.arange(len(ticks) + 1) + bar * d - 0.4, self.used[:, d], bar, color=f"C{d % 10}", align="edge"
            )
        usage.axhline(self.codes, color="0.4", lw=1, ls=":")
        usage.set(xticks=range(len(ticks) + 1), xticklabels=[*map(str, self.scales), "all"])
        usage.set(xlabel="scale (positions)", ylabel="distinct codes")
        usage.set_title(f"codes used, of {self.codes}", fontsize=10)
        # The dimension that the tokenizer has most to say about.
        d = int(np.argmax(np.ptp(self.chunk, axis=0) / np.where(self.spread > 0, self.spread, 1.0)))
        for k, label in enumerate(labels):
            shade = str(0.8 - 0.6 * k / max(len(labels) - 1, 1))
            example.plot(self.decoded[k, :, d], color=shade, lw=1.5, label=f"scale {label}")
        example.plot(self.chunk[:, d], color=f"C{d % 10}", marker="o", ms=4, ls="", label="demonstrated")
        example.set(xlabel="step of the chunk", ylabel=self.names[d])
        example.set_title("one held-out chunk", fontsize=10)
        example.legend(frameon=False, fontsize=8)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()


@torch.inference_mode()
def measure(policy: CarpPolicy, batch: Batch, checkpoint: str) -> TokenizerReport:
    """Encodes and decodes the actions [N, H, D_a] of windows, in their units."""
    actions = batch["action"]
    tokenizer, feature = policy.tokenizer, policy.features.action
    ids, totals, _ = tokenizer.quantise(tokenizer.latent(policy.scale(actions, batch)))
    decoded = torch.stack([policy.unscale(tokenizer.decode(t), batch) for t in totals])
    flat = [i.flatten(1) for i in ids]
    used = [[len(torch.unique(row)) for row in i] for i in [*flat, torch.cat(flat, dim=1)]]
    example = int((actions.diff(dim=1).abs() / actions.std(dim=(0, 1)).clamp(min=1e-6)).sum(dim=(1, 2)).argmax())
    names = feature.names or tuple(f"action {d}" for d in range(policy.action_dim))
    units = feature.units or ("",) * len(names)
    return TokenizerReport(
        checkpoint,
        tuple(tokenizer.scales),
        [f"{n} ({u})" if u else n for n, u in zip(names, units, strict=True)],
        len(actions),
        tokenizer.config.codes,
        (decoded - actions).square().mean(dim=(1, 2)).sqrt().cpu().numpy(),
        actions.std(dim=(0, 1)).cpu().numpy(),
        np.array(used),
        actions[example].cpu().numpy(),
        decoded[:, example].cpu().numpy(),
    )
