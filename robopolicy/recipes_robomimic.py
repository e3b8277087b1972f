"""Training runs for robomimic's tasks, one function per method, each for lift, can and square.

From states every task has, for two CPU cores, `dp`, `flow`, `beso`, `carp` and `bcrnn` (these two of the published
size), and with the published hyper-parameters `dp-paper`, `dp-transformer-paper` and `bcrnn-paper`. From images it has
`image-small` for a patient CPU, and of the published sizes `image-dp`, `image-dp-transformer`, `image-flow`,
`image-beso`, `image-carp` and `image-bcrnn`. As published, BC-RNN learns the delta actions of robomimic's datasets and
all others absolute poses, for which their tasks end in -abs.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from robopolicy.nn.vision import VisionConfig
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
    UnetConfig,
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
IMAGE_EPOCH = {"lift": 127, "can": 334, "square": 440}
"""Steps of 64 windows in an epoch of the published datasets: 200 demonstrations, together of 9666, 23,207 and 30,154
steps, 2 % of them held out, each with 7 windows fewer than steps."""
CROP = 76
"""Of 84 pixels, in Diffusion Policy, CARP and robomimic."""
IMAGE_UNET = UnetConfig(down_dims=(512, 1024, 2048), time_dim=128)
"""The published U-Net for images."""
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


def _image(policy: PolicyConfig, task: str) -> TrainConfig:
    # The published 3000 epochs, with 50 rollouts after every 50, in as many simulators at a time as `usual_envs` says.
    epoch = IMAGE_EPOCH[task]
    return TrainConfig(
        policy,
        f"robomimic-{task}-image-abs",
        replace(DATA),
        eval=EvalConfig(50 * epoch, 50, 10),
        steps=3000 * epoch,
        batch_size=64,
    )


def _image_dp(task: str) -> TrainConfig:
    vision = VisionConfig(crop=CROP)
    return _image(
        DiffusionConfig(network=replace(IMAGE_UNET), normalization=replace(POSES), vision=vision),
        task,
    )


def _image_dp_transformer(task: str) -> TrainConfig:
    # Its published chunks are shorter than the U-Net's. The weight decay of 1e-3 is published for the transformer
    # only; here the encoder has it too.
    policy = DiffusionConfig(
        horizon=10,
        network=TransformerConfig(dropout=0.3),
        normalization=replace(POSES),
        vision=VisionConfig(crop=CROP),
    )
    config = _image(policy, task)
    config.optim = OptimConfig(betas=(0.9, 0.95), weight_decay=1e-3, decay_vectors=False, warmup_steps=1000)
    return config


def _image_flow(task: str) -> TrainConfig:
    vision = VisionConfig(crop=CROP)
    return _image(FlowConfig(network=replace(IMAGE_UNET), normalization=replace(POSES), vision=vision), task)


def _image_beso(task: str) -> TrainConfig:
    # Published for states: here its network of block-push with what Diffusion Policy has around its own. Of a whole
    # chunk all rows see each other, as in the recipe for states.
    policy = BESOConfig(
        n_obs_steps=2,
        horizon=16,
        n_action_steps=8,
        network=GPTConfig(causal=False),
        process=BESOProcessConfig(sigma_min=0.01, sigma_max=10.0),
        sampler=GuidedSamplerConfig(steps=10, schedule="karras"),
        normalization=replace(POSES),
        vision=VisionConfig(crop=CROP),
    )
    return _image(policy, task)


def _image_carp(task: str) -> TrainConfig:
    # 400 epochs of the tokenizer, published in batches of 256, then 4000 of the transformer.
    policy = CarpConfig(
        n_obs_steps=1,
        depth=16,
        width=160,
        tokenizer=TokenizerConfig(steps=400 * IMAGE_EPOCH[task]),
        normalization=replace(POSES),
        vision=VisionConfig(crop=CROP),
    )
    config = _image(policy, task)
    config.steps = 4400 * IMAGE_EPOCH[task]
    config.optim = OptimConfig(
        2.5e-5, betas=(0.9, 0.95), weight_decay=0.05, decay_vectors=False, warmup_steps=4000, clip_norm=2.0
    )
    return config


def _image_bcrnn(task: str) -> TrainConfig:
    # 600 epochs of 500 steps. robomimic's encoder has BatchNorm and takes pictures in 0..1, ours GroupNorm and -1..1.
    config = _bcrnn_paper(task)
    config.policy = BCRNNConfig(hidden=1000, vision=VisionConfig(crop=CROP))
    config.task = f"robomimic-{task}-image"
    config.eval = EvalConfig(10_000, 50, 10)
    config.steps, config.batch_size = 300_000, 16
    return config


def _image_small(task: str) -> TrainConfig:
    policy = DiffusionConfig(
        network=UnetConfig(down_dims=(64, 128, 256), time_dim=64),
        process=EDMConfig(),
        sampler=SamplerConfig("euler", 10),
        normalization=replace(POSES),
        state_noise=0.01,
        vision=VisionConfig(crop=CROP),
    )
    config = _small(policy, f"robomimic-{task}-image-abs", steps=5000, batch_size=32)
    # Convolutions of a ResNet are large enough to share.
    config.threads = 0
    return config


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
IMAGE_METHODS: dict[str, tuple[str, Callable[[str], TrainConfig]]] = {
    "image-small": ("ResNet-18 and a small U-Net", _image_small),
    "image-dp": ("paper: Diffusion Policy U-Net (GPU)", _image_dp),
    "image-dp-transformer": ("paper: Diffusion Policy transformer (GPU)", _image_dp_transformer),
    "image-flow": ("flow matching on the paper's U-Net (GPU)", _image_flow),
    "image-beso": ("BESO without goals, published GPT (GPU)", _image_beso),
    "image-carp": ("paper: CARP's image network (GPU)", _image_carp),
    "image-bcrnn": ("paper: BC-RNN-GMM of robomimic, delta actions (GPU)", _image_bcrnn),
}
LISTED = {
    f"{{{','.join(TASKS)}}}-{name}": f"robomimic, {observed}, {about}"
    for observed, methods in (("state", METHODS), ("image", IMAGE_METHODS))
    for name, (about, _) in methods.items()
}
"""What each method is for, once for all tasks."""
ROBOMIMIC = {
    f"{task}-{name}": Recipe(f"robomimic {task}, {observed}, {about}", partial(make, task))
    for task in TASKS
    for observed, methods in (("state", METHODS), ("image", IMAGE_METHODS))
    for name, (about, make) in methods.items()
}
