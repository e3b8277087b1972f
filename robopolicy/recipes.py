"""Named training runs. `paper` recipes are the published hyper-parameters; `small` ones are made for two CPU cores.

Every recipe is a function that returns a fresh `TrainConfig`; the command line overrides any field of it.
"""

from dataclasses import replace

from robopolicy.errors import unknown
from robopolicy.nn.vq import TokenizerConfig
from robopolicy.policies.base import NormalizationConfig
from robopolicy.policies.bc import BCConfig
from robopolicy.policies.beso import BESOConfig, BESOProcessConfig, GPTConfig, GuidedSamplerConfig
from robopolicy.policies.carp import CarpConfig
from robopolicy.policies.diffusion import (
    DiffusionConfig,
    EDMConfig,
    MLPConfig,
    SamplerConfig,
    TransformerConfig,
    UnetConfig,
    VPConfig,
)
from robopolicy.policies.flow import FlowConfig
from robopolicy.recipes_robomimic import IMAGE_UNET, ROBOMIMIC
from robopolicy.training.config import DataConfig, EvalConfig, OptimConfig, Recipe, TrainConfig
from robopolicy.training.ema import EMAConfig

# The published PushT runs train on 90 of the 206 human episodes.
PAPER_DATA = DataConfig(max_episodes=90)
TRANSFORMER_OPTIM = OptimConfig(betas=(0.9, 0.95), weight_decay=0.1, decay_vectors=False, warmup_steps=1000)
SMALL_OPTIM = OptimConfig(lr=5e-4, betas=(0.9, 0.999), weight_decay=1e-6, warmup_steps=200, clip_norm=1.0)
SMALL_EMA = EMAConfig(max_decay=0.999, warmup="ratio")
PIXELS = NormalizationConfig(state="bounds", action="bounds")


def _pusht_unet() -> TrainConfig:
    return TrainConfig(
        DiffusionConfig(), "pusht-keypoints", replace(PAPER_DATA), eval=EvalConfig(10_000, 50, 50), steps=200_000
    )


def _pusht_transformer() -> TrainConfig:
    policy = DiffusionConfig(network=TransformerConfig())
    return TrainConfig(
        policy,
        "pusht-keypoints",
        replace(PAPER_DATA),
        replace(TRANSFORMER_OPTIM),
        eval=EvalConfig(10_000, 50, 50),
        steps=320_000,
    )


def _pusht_flow() -> TrainConfig:
    return TrainConfig(
        FlowConfig(), "pusht-keypoints", replace(PAPER_DATA), eval=EvalConfig(10_000, 50, 50), steps=200_000
    )


def _pusht_image_unet() -> TrainConfig:
    policy = DiffusionConfig(network=replace(IMAGE_UNET))
    return TrainConfig(
        policy, "pusht-image", replace(PAPER_DATA), eval=EvalConfig(20_000, 50, 50), steps=500_000, batch_size=64
    )


def _pusht_image_transformer() -> TrainConfig:
    policy = DiffusionConfig(network=TransformerConfig(dropout=0.3))
    return TrainConfig(
        policy,
        "pusht-image",
        replace(PAPER_DATA),
        OptimConfig(betas=(0.9, 0.95), weight_decay=1e-3, decay_vectors=False, warmup_steps=1000),
        eval=EvalConfig(20_000, 50, 50),
        steps=500_000,
        batch_size=64,
    )


def _small(policy: DiffusionConfig | BCConfig | CarpConfig, task: str = "pusht", steps: int = 14_000) -> TrainConfig:
    return TrainConfig(
        policy,
        task,
        optim=replace(SMALL_OPTIM),
        ema=replace(SMALL_EMA),
        eval=EvalConfig(0, 20, 20),
        steps=steps,
        validate_every=2000,
        save_every=2000,
    )


def _pusht_small() -> TrainConfig:
    policy = DiffusionConfig(
        network=MLPConfig(),
        process=EDMConfig(),
        sampler=SamplerConfig("euler", 10),
        normalization=replace(PIXELS),
        state_noise=0.01,
    )
    config = _small(policy, steps=20_000)
    config.data.mirror = True
    # One thread: the layers are too small to share, and a second job on the machine would slow two threads tenfold.
    config.precision, config.threads = "auto", 1
    return config


def _pusht_small_flow() -> TrainConfig:
    standardised = NormalizationConfig(state="mean_std", action="mean_std")
    config = _small(FlowConfig(network=MLPConfig(), normalization=standardised), steps=9000)
    config.optim.lr = 1e-3
    config.precision, config.threads = "auto", 1
    return config


def _pusht_small_unet() -> TrainConfig:
    network = UnetConfig(down_dims=(64, 128, 256), time_dim=64)
    return _small(DiffusionConfig(network=network, sampler=SamplerConfig("ddim", 10), normalization=replace(PIXELS)))


def _pusht_small_transformer() -> TrainConfig:
    network = TransformerConfig(layers=4, width=128)
    config = _small(DiffusionConfig(network=network, sampler=SamplerConfig("ddim", 10), normalization=replace(PIXELS)))
    config.precision = "auto"
    return config


def _pusht_small_image() -> TrainConfig:
    network = UnetConfig(down_dims=(64, 128, 256), time_dim=64)
    policy = DiffusionConfig(network=network, process=EDMConfig(), sampler=SamplerConfig("euler", 10))
    config = _small(policy, "pusht-image", steps=5000)
    config.batch_size = 32
    return config


CARP_OPTIM = OptimConfig(betas=(0.9, 0.95), weight_decay=0.05, decay_vectors=False, warmup_steps=4000, clip_norm=2.0)


def _pusht_carp() -> TrainConfig:
    # The published rate of the tokenizer is made for 40,000 steps; after 2000 of them it is off by 15 px.
    tokenizer = TokenizerConfig(steps=3000, lr=1e-2)
    # Half the published depth sees twice the samples in the same time. The most likely tokens often say stay; a draw
    # from a few gets the agent going again.
    policy = CarpConfig(tokenizer=tokenizer, depth=4, top_k=5, normalization=replace(PIXELS), state_noise=0.01)
    config = _small(policy, steps=16_000)
    config.optim = replace(CARP_OPTIM, lr=1e-3, warmup_steps=200)
    config.data.mirror = True
    config.precision, config.threads = "auto", 1
    return config


def _pusht_carp_paper() -> TrainConfig:
    policy = CarpConfig(tokenizer=TokenizerConfig(steps=18_000))
    return TrainConfig(
        policy,
        "pusht-keypoints",
        replace(PAPER_DATA),
        replace(CARP_OPTIM),
        eval=EvalConfig(10_000, 50, 50),
        steps=200_000,
    )


def _pusht_carp_image() -> TrainConfig:
    policy = CarpConfig(n_obs_steps=1, depth=16, width=160, tokenizer=TokenizerConfig(steps=70_000))
    return TrainConfig(
        policy,
        "pusht-image",
        replace(PAPER_DATA),
        replace(CARP_OPTIM, lr=2.5e-5),
        eval=EvalConfig(20_000, 50, 50),
        steps=500_000,
        batch_size=64,
    )


def _pusht_bc() -> TrainConfig:
    return _small(BCConfig(normalization=replace(PIXELS)))


def _blocks_beso_paper() -> TrainConfig:
    return TrainConfig(
        BESOConfig(process=BESOProcessConfig(sigma_min=0.05), sampler=GuidedSamplerConfig(sigma_min=0.1)),
        "blocks",
        DataConfig(scripted_episodes=1000, validation_fraction=0.05),
        OptimConfig(betas=(0.9, 0.999), weight_decay=0.0, decay="step", warmup_steps=0),
        replace(SMALL_EMA),
        EvalConfig(4000, 50, 50),
        steps=60_000,
        batch_size=1024,
    )


def _blocks(policy: BESOConfig) -> TrainConfig:
    # The published network, but minutes of training instead of 61 million windows: more play, no dropout,
    # smaller batches, ten times the rate.
    policy.network = GPTConfig(attention_dropout=0.0, residual_dropout=0.0)
    return TrainConfig(
        policy,
        "blocks",
        DataConfig(scripted_episodes=2500),
        OptimConfig(lr=1e-3, betas=(0.9, 0.999), weight_decay=0.0, warmup_steps=200, clip_norm=1.0),
        replace(SMALL_EMA),
        EvalConfig(0, 20, 20),
        steps=8000,
        batch_size=64,
        precision="auto",
        threads=1,
        validate_every=2000,
        save_every=2000,
    )


def _blocks_beso(goal_dropout: float = 0.0, guidance: float = 1.0) -> TrainConfig:
    sampler = GuidedSamplerConfig(guidance=guidance)
    return _blocks(BESOConfig(process=BESOProcessConfig(sigma_min=0.05), sampler=sampler, goal_dropout=goal_dropout))


def _blocks_beso_cfg() -> TrainConfig:
    return _blocks_beso(goal_dropout=0.1, guidance=2.0)


def _blocks_ddpm() -> TrainConfig:
    return _blocks(BESOConfig(process=VPConfig(), sampler=GuidedSamplerConfig("ddpm", 100, "native")))


def _pusht_goal_beso() -> TrainConfig:
    policy = BESOConfig(
        n_obs_steps=2,
        horizon=16,
        n_action_steps=8,
        network=MLPConfig(),
        process=BESOProcessConfig(sigma_min=0.01, sigma_max=10.0),
        sampler=GuidedSamplerConfig(steps=10, schedule="karras"),
        normalization=replace(PIXELS),
        state_noise=0.01,
    )
    config = _small(policy, "pusht-goal", steps=20_000)
    # Goals at evaluation are where demonstrations end.
    config.data.goals.choice = "tail"
    config.data.mirror = True
    config.precision, config.threads = "auto", 1
    return config


RECIPES: dict[str, Recipe] = {
    "pusht-small": Recipe("state, EDM denoiser with a residual MLP; minutes on two cores", _pusht_small),
    "pusht-small-flow": Recipe("state, flow matching with the same MLP; what the demo trains", _pusht_small_flow),
    "pusht-small-unet": Recipe("state, DDPM with a small U-Net", _pusht_small_unet),
    "pusht-small-transformer": Recipe("state, DDPM with a small transformer", _pusht_small_transformer),
    "pusht-small-image": Recipe("image, ResNet-18 and a small U-Net", _pusht_small_image),
    "pusht-carp": Recipe("state, CARP: coarse-to-fine tokens in four passes", _pusht_carp),
    "pusht-carp-paper": Recipe("paper: CARP's state network, keypoints (GPU)", _pusht_carp_paper),
    "pusht-carp-image": Recipe("paper: CARP's image network, image (GPU)", _pusht_carp_image),
    "pusht-goal-beso": Recipe("goal-conditioned PushT: BESO with chunks; needs --data.path", _pusht_goal_beso),
    "blocks-beso": Recipe("two blocks, goals from play: BESO, 3 steps", _blocks_beso),
    "blocks-beso-paper": Recipe("paper: BESO block-push (GPU)", _blocks_beso_paper),
    "blocks-beso-cfg": Recipe("the same with goal dropout, for classifier-free guidance", _blocks_beso_cfg),
    "blocks-ddpm": Recipe("the same network as a 100-step DDPM", _blocks_ddpm),
    "pusht-bc": Recipe("state, behaviour-cloning MLP: the floor", _pusht_bc),
    "pusht-diffusion": Recipe("paper: Diffusion Policy U-Net, keypoints (GPU)", _pusht_unet),
    "pusht-diffusion-transformer": Recipe("paper: Diffusion Policy transformer, keypoints (GPU)", _pusht_transformer),
    "pusht-flow": Recipe("flow matching on the paper's U-Net, keypoints (GPU)", _pusht_flow),
    "pusht-image-diffusion": Recipe("paper: Diffusion Policy U-Net, image (GPU)", _pusht_image_unet),
    "pusht-image-diffusion-transformer": Recipe("paper: transformer, image (GPU)", _pusht_image_transformer),
    **ROBOMIMIC,
}


def recipe(name: str) -> TrainConfig:
    """A fresh configuration of the recipe `name`; an unknown name is an error with a did-you-mean."""
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return RECIPES[name].make()
