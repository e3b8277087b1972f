"""Flow matching (Lipman et al. 2023; rectified flow, Liu et al. 2023) on Diffusion Policy's networks.

A chunk moves along a straight line from noise e (t = 1) to the demonstration a (t = 0), x_t = (1 - t) a + t e,
and the network learns the velocity e - a. Euler steps along the velocity sample a chunk; ten usually suffice.
Everything else is shared with `robopolicy.policies.diffusion`, of which only the process and sampler differ.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from robopolicy.policies.diffusion import (
    DiffusionConfig,
    DiffusionPolicy,
    FlowProcessConfig,
    ProcessConfig,
    SamplerConfig,
)


@dataclass
class FlowConfig(DiffusionConfig):
    """Flow matching with the published Diffusion Policy sizes and ten Euler steps."""

    kind: ClassVar[str] = "flow"
    process: ProcessConfig = field(default_factory=FlowProcessConfig)
    sampler: SamplerConfig = field(default_factory=lambda: SamplerConfig("euler", 10))


class FlowPolicy(DiffusionPolicy):
    """Diffusion Policy's encoder and networks, trained to predict the velocity of a straight flow."""

    Config = FlowConfig
