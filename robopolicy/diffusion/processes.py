"""Noise processes: how a clean chunk is noised, and what a network's output says about it.

All of them meet in the variance-exploding frame x = a + sigma * e, with a the clean chunk and e ~ N(0, I). There a
denoiser is one function, the posterior mean D(x, sigma) of a, whatever the network was trained to output:

    D(x, sigma) = c_skip(sigma) x + c_out(sigma) network(c_in(sigma) x, time(sigma))

| process    | c_in             | c_skip          | c_out              | network learns         | time        |
|------------|------------------|-----------------|--------------------|------------------------|-------------|
| EDM        | 1/sqrt(s^2+sd^2) | sd^2/(s^2+sd^2) | s sd/sqrt(s^2+sd^2)| (a - c_skip x) / c_out | ln(s) / 4   |
| VP epsilon | 1/sqrt(1+s^2)    | 1               | -s                 | e                      | step 0..T-1 |
| VP sample  | 1/sqrt(1+s^2)    | 0               | 1                  | a                      | step 0..T-1 |
| VP v       | 1/sqrt(1+s^2)    | 1/(1+s^2)       | -s/sqrt(1+s^2)     | alpha e - alpha s a    | step 0..T-1 |
| Flow       | 1/(1+s)          | 1/(1+s)         | -s/(1+s)           | e - a                  | 1000 t      |

with s = sigma, sd = sigma_data, alpha = 1/sqrt(1+s^2) = sqrt(abar) and t = s/(1+s).
`c_in x` is the process's own noisy chunk: alpha a + sqrt(1 - alpha^2) e for VP, (1 - t) a + t e for flow.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from robopolicy.diffusion.noise import Generators, rand, randn
from robopolicy.diffusion.schedules import karras
from robopolicy.diffusion.sigma import LogNormal, SigmaDistribution
from robopolicy.errors import RobopolicyError, unknown

Network = Callable[[Tensor, Tensor], Tensor]
"""(scaled noisy chunk [B, ...], time [B]) to an output [B, ...]."""


@dataclass
class TrainingSample:
    """One noised batch; the loss is mean (network(input, time) - target)^2."""

    input: Tensor
    """Noisy chunk as the network reads it, [B, ...]."""
    time: Tensor
    """[B] float32."""
    target: Tensor
    """What the network should output, [B, ...]."""
    sigma: Tensor
    """Noise level of each row in the frame x = a + sigma * e, [B]."""


class NoiseProcess(ABC):
    """One row of the table above. Noise levels are 0-dim or [B] tensors, chunks [B, ...]."""

    sigma_min: float
    """Smallest positive noise level it is meant to be sampled at."""
    sigma_max: float
    """Noise level that sampling starts from."""
    time_scale: float = 1.0
    """What `time` is multiplied by before a sinusoidal embedding whose highest frequency is 1."""

    @abstractmethod
    def preconditioning(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """c_in, c_skip and c_out, each of sigma's shape."""

    @abstractmethod
    def time(self, sigma: Tensor) -> Tensor:
        """What the network is told about the noise level, of sigma's shape."""

    @abstractmethod
    def target(self, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """What the network should output for clean + sigma * noise; sigma broadcasts against the chunks."""

    @abstractmethod
    def training_sigmas(self, batch: int, generator: torch.Generator, device: torch.device) -> Tensor:
        """[B] noise levels drawn from the training distribution."""

    @abstractmethod
    def sigmas(self, n: int) -> Tensor:
        """The process's own schedule: n positive decreasing float64 noise levels, then 0, on the CPU."""

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """Weight that turns the mean of (D - clean)^2 into the loss on the network's output, 1 / c_out^2."""
        return self.preconditioning(sigma)[2] ** -2

    def training_sample(self, clean: Tensor, generator: torch.Generator) -> TrainingSample:
        """Noises a clean chunk [B, ...] at one random level per row."""
        sigma = self.training_sigmas(len(clean), generator, clean.device)
        noise = randn(clean.shape, generator, clean.device).to(clean.dtype)
        column = _column(sigma, clean)
        c_in = self.preconditioning(column)[0]
        noisy = c_in * clean + (c_in * column) * noise
        return TrainingSample(noisy, self.time(sigma), self.target(clean, noise, column), sigma)

    def denoise(self, network: Network, x: Tensor, sigma: Tensor | float) -> Tensor:
        """D(x, sigma): the clean chunk expected behind x [B, ...]; sigma is positive, 0-dim or [B]."""
        sigma = torch.as_tensor(sigma, device=x.device).to(torch.promote_types(x.dtype, torch.float32))
        c_in, c_skip, c_out = self.preconditioning(_column(sigma, x))
        output = network(c_in * x, self.time(sigma).expand(len(x)))
        return c_skip * x + c_out * output.to(x.dtype)

    def initial(
        self, shape: Sequence[int], sigma_max: float, generator: Generators, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Where sampling starts, x of `shape` [B, ...]: the process's own noisy chunk is N(0, I)."""
        c_in = self.preconditioning(torch.tensor(sigma_max, dtype=torch.float64))[0]
        return randn(shape, generator, device) / float(c_in)


class EDM(NoiseProcess):
    """Preconditioned denoiser with continuous noise levels (Karras et al. 2022, table 1, column "ours").

    For clean chunks of standard deviation `sigma_data` the network's inputs and targets have unit variance at every
    level. Levels are log-normal while training unless `training` is given; `sigmas` is their schedule with rho.
    """

    time_scale = 100.0

    def __init__(
        self,
        sigma_data: float = 0.5,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        p_mean: float = -1.2,
        p_std: float = 1.2,
        training: SigmaDistribution | None = None,
        rho: float = 7.0,
    ) -> None:
        self.sigma_data = sigma_data
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max
        self.training = training or LogNormal(p_mean, p_std)
        self.rho = rho

    def preconditioning(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c_in = (sigma**2 + self.sigma_data**2).rsqrt()
        return c_in, (self.sigma_data * c_in) ** 2, sigma * self.sigma_data * c_in

    def time(self, sigma: Tensor) -> Tensor:
        return sigma.log() / 4

    def target(self, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        # (clean - c_skip x) / c_out with the division done: the quotient loses digits at both ends.
        c_in = self.preconditioning(sigma)[0]
        return (c_in * sigma / self.sigma_data) * clean - (c_in * self.sigma_data) * noise

    def training_sigmas(self, batch: int, generator: torch.Generator, device: torch.device) -> Tensor:
        return self.training.sample(batch, generator, device)

    def sigmas(self, n: int) -> Tensor:
        return karras(n, self.sigma_min, self.sigma_max, self.rho)

    def initial(
        self, shape: Sequence[int], sigma_max: float, generator: Generators, device: torch.device | str = "cpu"
    ) -> Tensor:
        """sigma_max * e, as published; it ignores the spread of the data, so sigma_max should be well above it."""
        return sigma_max * randn(shape, generator, device)


def squared_cosine_betas(steps: int) -> Tensor:
    """abar(t) = cos^2((t + 0.008) / 1.008 pi / 2), betas capped at 0.999 (Nichol & Dhariwal 2021, eq. 17)."""

    def abar(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    return torch.tensor([min(1 - abar((i + 1) / steps) / abar(i / steps), 0.999) for i in range(steps)])


def linear_betas(steps: int) -> Tensor:
    """1e-4 to 0.02 (Ho et al. 2020; made for 1000 steps, fewer end far from pure noise)."""
    return torch.linspace(1e-4, 0.02, steps)


BETAS: dict[str, Callable[[int], Tensor]] = {"squaredcos_cap_v2": squared_cosine_betas, "linear": linear_betas}
PREDICTIONS = ("epsilon", "sample", "v")
SPACINGS = ("leading", "linspace", "trailing")


class VP(NoiseProcess):
    """Discrete variance-preserving diffusion, DDPM (Ho et al. 2020): sigma_t = sqrt((1 - abar_t) / abar_t).

    The network's time is the step number, exactly whole at the T noise levels it was trained at, and interpolated
    linearly in ln(sigma), that is in log-SNR, between them. `clip` limits the predicted clean chunk, and with it the
    direction of the next step: as diffusers' DDPM does, and its DDIM with `use_clipped_model_output=True`. Its DDIM by
    default leaves the direction alone, which takes a denoiser that does not clip and `clip` of our sampler `ddim`.
    `spacing` picks the n of T levels in `sigmas` (Lin et al. 2024, table 2); all T when n = T.
    """

    def __init__(
        self,
        train_steps: int = 100,
        betas: Literal["squaredcos_cap_v2", "linear"] = "squaredcos_cap_v2",
        prediction: Literal["epsilon", "sample", "v"] = "epsilon",
        clip: float | None = 1.0,
        spacing: Literal["leading", "linspace", "trailing"] = "leading",
    ) -> None:
        for what, name, known in (
            ("betas", betas, BETAS),
            ("prediction", prediction, PREDICTIONS),
            ("spacing", spacing, SPACINGS),
        ):
            if name not in known:
                raise unknown(what, name, known)
        if train_steps < 2:
            raise RobopolicyError(f"train_steps must be at least 2, is {train_steps}")
        self.train_steps = train_steps
        self.prediction = prediction
        self.clip = clip
        self.spacing = spacing
        # The products are rounded to float32 because published networks were trained and sampled with such tables:
        # 1 - 0.999 alone moves the last level by 3e-5 of its value.
        abar = (1 - BETAS[betas](train_steps).float()).cumprod(0).double()
        self.levels = ((1 - abar) / abar).sqrt()
        self.sigma_min = float(self.levels[0])
        self.sigma_max = float(self.levels[-1])
        self._log_levels = self.levels.log()

    def preconditioning(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        alpha = (1 + sigma**2).rsqrt()
        if self.prediction == "epsilon":
            return alpha, torch.ones_like(sigma), -sigma
        if self.prediction == "sample":
            return alpha, torch.zeros_like(sigma), torch.ones_like(sigma)
        return alpha, alpha**2, -alpha * sigma

    def time(self, sigma: Tensor) -> Tensor:
        if self._log_levels.device != sigma.device or self._log_levels.dtype != sigma.dtype:
            self._log_levels = self.levels.log().to(sigma.dtype).to(sigma.device)
        grid = self._log_levels
        log_sigma = torch.minimum(torch.maximum(sigma.log(), grid[0]), grid[-1])
        upper = torch.searchsorted(grid, log_sigma).clamp(1, self.train_steps - 1)
        low, high = grid[upper - 1], grid[upper]
        step = upper - 1 + (log_sigma - low) / (high - low)
        whole = step.round()
        # A level of the grid that went through float32 must come back as its whole step.
        return torch.where((step - whole).abs() < 1e-3, whole, step)

    def target(self, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "sample":
            return clean
        alpha = (1 + sigma**2).rsqrt()
        return alpha * noise - (alpha * sigma) * clean

    def training_sigmas(self, batch: int, generator: torch.Generator, device: torch.device) -> Tensor:
        steps = torch.randint(self.train_steps, (batch,), generator=generator, device=generator.device)
        return self.levels.float().to(steps.device)[steps].to(device)

    def denoise(self, network: Network, x: Tensor, sigma: Tensor | float) -> Tensor:
        denoised = super().denoise(network, x, sigma)
        return denoised if self.clip is None else denoised.clamp(-self.clip, self.clip)

    def timesteps(self, n: int) -> Tensor:
        """The n trained steps, descending [n] int64, that `sigmas` visits."""
        total = self.train_steps
        if not 1 <= n <= total:
            raise RobopolicyError(f"sampler steps must be in 1..{total}, the process's train_steps; found {n}")
        if self.spacing == "leading":
            return torch.arange(n - 1, -1, -1) * (total // n)
        if self.spacing == "linspace":
            return torch.linspace(0, total - 1, n, dtype=torch.float64).round().long().flip(0)
        return (total - torch.arange(n, dtype=torch.float64) * (total / n)).round().long() - 1

    def sigmas(self, n: int) -> Tensor:
        return torch.cat([self.levels[self.timesteps(n)], self.levels.new_zeros(1)])


class Flow(NoiseProcess):
    """Rectified flow: tau = (1 - t) a + t e with velocity e - a (Liu et al. 2023, Lipman et al. 2023).

    sigma = t / (1 - t), which is infinite at pure noise, so levels stop at `t_max`: 1e-4 of the data is then
    mistaken for noise. The network's time is 1000 t, the clock diffusers' flow schedulers use. Euler steps over
    `sigmas` (t evenly spaced) are exactly Euler steps of the flow. Training draws t uniformly, or
    t = sigmoid(N(logit_mean, logit_std^2)) (Esser et al. 2024, eq. 19).
    """

    def __init__(
        self,
        times: Literal["uniform", "logit_normal"] = "uniform",
        logit_mean: float = 0.0,
        logit_std: float = 1.0,
        t_min: float = 1e-3,
        t_max: float = 0.9999,
    ) -> None:
        if times not in ("uniform", "logit_normal"):
            raise unknown("distribution of times", times, ("uniform", "logit_normal"))
        self.times = times
        self.logit_mean = logit_mean
        self.logit_std = logit_std
        self.t_max = t_max
        self.sigma_min = t_min / (1 - t_min)
        self.sigma_max = t_max / (1 - t_max)

    def preconditioning(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rest = 1 / (1 + sigma)
        return rest, rest, -sigma * rest

    def time(self, sigma: Tensor) -> Tensor:
        return 1000 * (sigma / (1 + sigma))

    def target(self, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        return noise - clean

    def training_sigmas(self, batch: int, generator: torch.Generator, device: torch.device) -> Tensor:
        if self.times == "uniform":
            t = rand((batch,), generator, device)
        else:
            t = (self.logit_mean + self.logit_std * randn((batch,), generator, device)).sigmoid()
        t = t.clamp(max=self.t_max)
        return t / (1 - t)

    def sigmas(self, n: int) -> Tensor:
        if n < 1:
            raise RobopolicyError(f"sampler steps must be at least 1, is {n}")
        t = self.t_max * torch.linspace(1, 0, n + 1, dtype=torch.float64)
        return t / (1 - t)


def _column(sigma: Tensor, x: Tensor) -> Tensor:
    """Sigma [B] as [B, 1, ...] beside x [B, ...]; a 0-dim sigma as it is."""
    return sigma if sigma.ndim == 0 else sigma.view(-1, *(1,) * (x.ndim - 1))
