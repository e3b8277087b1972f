"""How often a sampled CARP chunk takes one action dimension from one mode and another from a second one.

    python benchmarks/carp_bimodal.py

Two modes that differ jointly in two dimensions, one observation (toy of the CARP tests, larger). Tokens of a scale are
drawn independently, so with two even modes half of the samples are expected to mix; a diffusion policy mixes none.
"""

import numpy as np
import torch
from ledger import record

from robopolicy.configs import to_dict
from robopolicy.evaluation.statistics import wilson
from robopolicy.features import Control, Feature, FeatureSpec
from robopolicy.nn.vq import TokenizerConfig
from robopolicy.policies.base import NormalizationConfig
from robopolicy.policies.carp import CarpConfig
from robopolicy.training.checkpoint import build

SAMPLES = 2000
SPEC = FeatureSpec(
    (
        Feature("observation.state", (2,)),
        Feature("action", (2,), kind="action", control=Control("pixel_target", "absolute")),
    ),
    rate_hz=10,
)


def main() -> None:
    """Trains the toy and records the rate."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    identity = NormalizationConfig("identity", "identity")
    policy = build(
        to_dict(CarpConfig(tokenizer=TokenizerConfig(codes=64), depth=4, width=32, normalization=identity)), SPEC
    )
    for feature in SPEC:
        policy.normalizer.fit(feature.key, np.zeros((1, *feature.shape)), "identity", feature)
    generator = torch.Generator().manual_seed(0)
    policy.train()
    bow = 0.6 * torch.sin(torch.linspace(0, np.pi, 16))[:, None]
    for stage, steps in enumerate((600, 400)):
        policy.stage = stage
        optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3, weight_decay=0.0)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / steps)
            side = torch.randint(0, 2, (128, 1, 1), generator=generator) * 2.0 - 1.0
            action = side * bow + 0.01 * torch.randn(128, 16, 2, generator=generator)
            batch = {"observation.state": torch.zeros(128, 2, 2), "action": action}
            loss, _ = policy.loss(batch, generator)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    policy.eval()
    policy.config.top_k = 5  # type: ignore[attr-defined]
    with torch.inference_mode():
        chunk = policy.predict({"observation.state": torch.zeros(SAMPLES, 2, 2)}, torch.Generator().manual_seed(1))
    peaks = chunk[:, 7:9].mean(1)
    full = (peaks.abs() > 0.45).all(1)
    mixed = int((peaks[:, 0] * peaks[:, 1] < 0).sum())
    rate = wilson(mixed, SAMPLES)
    record(
        "carp_bimodal_mixing_rate",
        "python benchmarks/carp_bimodal.py",
        rate.value,
        rate.low,
        rate.high,
        "share of samples that mix two modes",
        SAMPLES,
        seeds="0",
        note=f"top_k 5; {full.float().mean():.3f} of the samples reach a full mode in both dimensions, "
        f"{(peaks > 0).float().mean():.3f} of all peaks are positive. A property of the method: tokens of one scale "
        "are drawn independently.",
    )


if __name__ == "__main__":
    main()
