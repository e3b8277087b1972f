"""Diffusion Policy, image preset: training step and 10-step inference, ours against LeRobot's, in turn.

    python benchmarks/dp_image.py --peer-python PEER_VENV/bin/python [--rounds 5] [--threads 2]

Both sides: 96x96 image and 2-D state over 2 steps, crop 84, ResNet-18 with GroupNorm from scratch, U-Net
512/1024/2048, horizon 16, batch 64; one optimiser step of AdamW/Adam with their own defaults. Ours includes the
EMA update, which the peer does not have. Inference is one chunk for one robot with 10 DDIM steps. The peer runs
this file with its own interpreter and answers over a pipe, one measurement at a time.
"""

import argparse
import json
import subprocess
import sys
import time
from typing import Any

BATCH, STEPS, OBS, HORIZON = 64, 2, 2, 16


def ours() -> tuple[Any, Any, int]:
    """Closures that run one training step and one inference of our policy."""
    import torch

    from robopolicy.configs import to_dict
    from robopolicy.recipes import recipe
    from robopolicy.sim.pusht import PushTImage
    from robopolicy.training.checkpoint import build
    from robopolicy.training.ema import ema_update
    from robopolicy.training.trainer import make_optimizer

    config = recipe("pusht-image-diffusion")
    policy = build(to_dict(config.policy), PushTImage.features)
    average = build(to_dict(config.policy), PushTImage.features)
    for feature in PushTImage.features:
        if feature.kind != "image":
            import numpy as np

            policy.normalizer.fit(feature.key, np.zeros((1, 2)), "bounds", feature)
    average.load_state_dict(policy.state_dict())
    average.requires_grad_(False).eval()
    optimizer = make_optimizer(policy, config.optim)
    generator = torch.Generator().manual_seed(0)
    batch = {
        "observation.images.top": torch.randint(0, 256, (BATCH, OBS, 96, 96, 3), dtype=torch.uint8),
        "observation.state": torch.rand(BATCH, OBS, 2) * 512,
        "action": torch.rand(BATCH, HORIZON, 2) * 512,
        "action_is_pad": torch.zeros(BATCH, HORIZON, dtype=torch.bool),
    }

    def train() -> None:
        policy.train()
        optimizer.zero_grad(set_to_none=True)
        loss, _ = policy.loss(batch, generator)
        loss.backward()
        optimizer.step()
        ema_update(average, policy, 0.999)

    average.config.sampler.name, average.config.sampler.steps = "ddim", 10
    observation = {k: v[:1] for k, v in batch.items() if k.startswith("observation")}

    def infer() -> None:
        with torch.inference_mode():
            average.predict(observation, generator)

    return train, infer, sum(p.numel() for p in policy.parameters())


def peer() -> tuple[Any, Any, int]:
    """The same for lerobot 0.4.4's DiffusionPolicy."""
    import torch
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy

    config = DiffusionConfig(
        n_obs_steps=OBS,
        horizon=HORIZON,
        n_action_steps=8,
        crop_shape=(84, 84),
        pretrained_backbone_weights=None,
        noise_scheduler_type="DDIM",
        num_inference_steps=10,
        device="cpu",
        input_features={
            "observation.image": PolicyFeature(FeatureType.VISUAL, (3, 96, 96)),
            "observation.state": PolicyFeature(FeatureType.STATE, (2,)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (2,))},
    )
    policy = DiffusionPolicy(config)
    optimizer = config.get_optimizer_preset().build(policy.get_optim_params())
    batch = {
        "observation.image": torch.rand(BATCH, OBS, 3, 96, 96),
        "observation.state": torch.rand(BATCH, OBS, 2),
        "action": torch.rand(BATCH, HORIZON, 2),
        "action_is_pad": torch.zeros(BATCH, HORIZON, dtype=torch.bool),
    }

    def train() -> None:
        policy.train()
        loss, _ = policy.forward(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    observation = {
        "observation.images": torch.rand(1, OBS, 1, 3, 96, 96),
        "observation.state": torch.rand(1, OBS, 2),
    }

    def infer() -> None:
        policy.eval()
        with torch.inference_mode():
            policy.diffusion.generate_actions(observation)

    return train, infer, sum(p.numel() for p in policy.parameters())


def serve(side: str, threads: int) -> None:
    """Answers `train` and `infer` lines with the seconds that one took."""
    import torch

    torch.set_num_threads(threads)
    train, infer, parameters = ours() if side == "ours" else peer()
    calls = {"train": train, "infer": infer}
    for call in calls.values():
        call()
    print(f"#{parameters}", flush=True)
    for line in sys.stdin:
        begin = time.perf_counter()
        calls[line.strip()]()
        print(f"#{time.perf_counter() - begin}", flush=True)


class Side:
    """A child process that runs one side."""

    def __init__(self, python: str, side: str, threads: int) -> None:
        command = [python, __file__, "--side", side, "--threads", str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.parameters = int(self._read())

    def _read(self) -> float:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("#"):
                return float(line[1:])
        raise SystemExit("a side ended early; see its error above")

    def seconds(self, what: str) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return self._read()


def main() -> None:
    """Alternates the two sides and records the ratio of medians with a bootstrap interval over rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", choices=["ours", "peer"])
    args = parser.parse_args()
    if args.side:
        serve(args.side, args.threads)
        return
    import numpy as np
    from ledger import record

    a, b = Side(sys.executable, "ours", args.threads), Side(args.peer_python, "peer", args.threads)
    print(f"parameters: ours {a.parameters:,}, peer {b.parameters:,}")
    for what, name in (("train", "dp_image_train_step_ratio"), ("infer", "dp_image_inference_ratio")):
        pairs = []
        for i in range(args.rounds):
            order = (a, b) if i % 2 == 0 else (b, a)
            times = {id(s): s.seconds(what) for s in order}
            pairs.append((times[id(a)], times[id(b)]))
            print(f"{what}: ours {pairs[-1][0]:.3f} s, peer {pairs[-1][1]:.3f} s", flush=True)
        both = np.array(pairs)
        rng = np.random.default_rng(0)
        resampled = np.median(both[rng.integers(0, len(both), (10_000, len(both)))], axis=1)
        low, high = np.percentile(resampled[:, 0] / resampled[:, 1], [2.5, 97.5])
        medians = np.median(both, axis=0)
        record(
            name,
            f"python benchmarks/dp_image.py --peer-python PEER --rounds {args.rounds} --threads {args.threads}",
            float(medians[0] / medians[1]),
            float(low),
            float(high),
            "ours / peer, seconds",
            args.rounds,
            peer=f"lerobot 0.4.4 DiffusionPolicy, {b.parameters:,} parameters",
            note=f"Ours has {a.parameters:,} parameters. Medians: ours {medians[0]:.3f} s, peer {medians[1]:.3f} s. "
            "Ratio of medians over rounds run in turn; bootstrap over rounds. Training includes our EMA update.",
            raw_seconds=json.loads(json.dumps(pairs)),
        )


if __name__ == "__main__":
    main()
