"""Training runs for robomimic's tasks from states, one function per method, each for lift, can and square.

Every task has, for two CPU cores, `dp`, `flow`, `beso`, `carp` and `bcrnn` (these two of the published size), and with
the published hyper-parameters `dp-paper`, `dp-transformer-paper` and `bcrnn-paper`. As published, BC-RNN learns the
delta actions of robomimic's datasets and all others absolute poses, for which their tasks end in -abs.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from robopolicy.nn.vq import TokenizerConfig
from robopolicy.policies.base import NormalizationConfig, PolicyConfig
from robopolicy.policies.bc_rnn import BCRNNConfig
from robopolicy.policies.beso import BESOConfig, BESOProcessConfig, GPTConfig, GuidedSamplerConfig
from robopolicy.policies.carp import CarpConfig
from robopolicy.policies.diffusion import (
    DiffusionConfig,
    EDMConfig,
    MLPConfig,
    SamplerConfig,
    TransformerConfig,
)
from robopolicy.policies.flow import FlowConfig
from robopolicy.training.config import DataConfig, EvalConfig, OptimConfig, Recipe, TrainConfig
from robopolicy.training.ema import EMAConfig

TASKS = ("lift", "can", "square")
DATA = DataConfig(scripted_episodes=200)
"""As many as the published datasets of proficient demonstrators have."""
POSES = NormalizationConfig(state="min_max", action="pose")
"""Equal for all methods on absolute actions, so that their policies can be composed."""
PAPER_STEPS = {"lift": 200_000, "can": 450_000, "square": 600_000}
"""About 5,000 epochs of the published datasets, of 9.7, 23 and 30 thousand steps."""
MLP = MLPConfig(width=512)
SMALL_OPTIM = OptimConfig(lr=5e-4, betas=(0.9, 0.999), weight_decay=1e-6, warmup_steps=200, clip_norm=1.0)
SMALL_EMA = EMAConfig(max_decay=0.999, warmup="ratio")


def _small(policy: PolicyConfig, task: str, steps: int, batch_size: int = 256) -> TrainConfig:
    # One thread: the layers are too small to share, and a second job on the machine would slow two threads tenfold.
    return TrainConfig(
        policy,
        task,
        replace(DATA),
        replace(SMALL_OPTIM),
        replace(SMALL_EMA),
        EvalConfig(0, 20, 20),
        steps=steps,
        batch_size=batch_size,
        precision="auto",
        threads=1,
        validate_every=2000,
        save_every=2000,
    )


def _dp(task: str) -> TrainConfig:
    policy = DiffusionConfig(
        network=replace(MLP),
        process=EDMConfig(),
        sampler=SamplerConfig("euler", 10),
        normalization=replace(POSES),
        state_noise=0.01,
    )
    return _small(policy, f"robomimic-{task}-abs", steps=16_000)


def _flow(task: str) -> TrainConfig:
    policy = FlowConfig(network=replace(MLP), normalization=replace(POSES), state_noise=0.01)
    return _small(policy, f"robomimic-{task}-abs", steps=16_000)


def _beso(task: str) -> TrainConfig:
    policy = BESOConfig(
        n_obs_steps=2,
        horizon=16,
        n_action_steps=8,
        network=GPTConfig(128, 4, 4, attention_dropout=0.0, residual_dropout=0.0, causal=False),
        process=BESOProcessConfig(sigma_min=0.01, sigma_max=10.0),
        sampler=GuidedSamplerConfig(steps=10, schedule="karras"),
        normalization=replace(POSES),
        state_noise=0.01,
    )
    return _small(policy, f"robomimic-{task}-abs", steps=14_000, batch_size=64)


def _carp(task: str) -> TrainConfig:
    # Ten action dimensions are a hundred tokens: what fits into the time are small batches, and a faster tokenizer.
    policy = CarpConfig(tokenizer=TokenizerConfig(steps=3000, lr=3e-3), normalization=replace(POSES), state_noise=0.01)
    config = _small(policy, f"robomimic-{task}-abs", steps=9000, batch_size=32)
    config.optim = OptimConfig(
        1e-3, betas=(0.9, 0.95), weight_decay=0.05, decay_vectors=False, warmup_steps=200, clip_norm=2.0
    )
    return config


def _bcrnn(task: str) -> TrainConfig:
    policy = BCRNNConfig(normalization=NormalizationConfig("min_max", "identity"))
    config = _small(policy, f"robomimic-{task}", steps=15_000, batch_size=100)
    config.optim.lr = 1e-3
    # Likelihoods of deviations down to 1e-4, and recurrent networks, gain nothing from half precision.
    config.precision = "fp32"
    return config


def _dp_paper(task: str) -> TrainConfig:
    return TrainConfig(
        DiffusionConfig(normalization=replace(POSES)),
        f"robomimic-{task}-abs",
        replace(DATA),
        eval=EvalConfig(10_000, 50, 50),
        steps=PAPER_STEPS[task],
    )


def _dp_transformer_paper(task: str) -> TrainConfig:
    config = _dp_paper(task)
    config.policy = DiffusionConfig(network=TransformerConfig(dropout=0.3), normalization=replace(POSES))
    config.optim = OptimConfig(betas=(0.9, 0.95), weight_decay=1e-3, decay_vectors=False, warmup_steps=1000)
    return config


def _bcrnn_paper(task: str) -> TrainConfig:
    return TrainConfig(
        BCRNNConfig(),
        f"robomimic-{task}",
        replace(DATA),
        OptimConfig(1e-4, betas=(0.9, 0.999), weight_decay=0.0, decay="constant", warmup_steps=0),
        EMAConfig(max_decay=0.0),
        EvalConfig(5000, 50, 50),
        steps=200_000,
        batch_size=100,
    )


METHODS: dict[str, tuple[str, Callable[[str], TrainConfig]]] = {
    "dp": ("EDM denoiser with a residual MLP", _dp),
    "flow": ("flow matching with the same MLP", _flow),
    "beso": ("BESO without goals: a small GPT", _beso),
    "carp": ("CARP: coarse-to-fine tokens in four passes", _carp),
    "bcrnn": ("BC-RNN-GMM, delta actions", _bcrnn),
    "dp-paper": ("paper: Diffusion Policy U-Net (GPU)", _dp_paper),
    "dp-transformer-paper": ("paper: Diffusion Policy transformer (GPU)", _dp_transformer_paper),
    "bcrnn-paper": ("paper: BC-RNN-GMM of robomimic, delta actions (GPU)", _bcrnn_paper),
}
ROBOMIMIC = {
    f"{task}-{name}": Recipe(f"robomimic {task}, state, {about}", partial(make, task))
    for task in TASKS
    for name, (about, make) in METHODS.items()
}
