"""Lagrange multipliers: the price of a violated constraint, found by dual ascent."""

from dataclasses import dataclass

from robopolicy.errors import RobopolicyError


@dataclass
class MultiplierConfig:
    """A multiplier and how fast it follows the constraint."""

    initial: float = 1.0
    rate: float = 0.05
    maximum: float = 20.0


class Multiplier:
    """lambda for a constraint g >= 0: it falls where there is slack, rises where g < 0, and stays in [0, maximum]."""

    def __init__(self, config: MultiplierConfig) -> None:
        if not (0 <= config.initial <= config.maximum and config.rate > 0):
            raise RobopolicyError(
                f"multiplier: expected 0 <= initial <= maximum and rate > 0, found initial {config.initial:g}, "
                f"maximum {config.maximum:g}, rate {config.rate:g}"
            )
        self.config, self.value = config, config.initial

    def step(self, slack: float) -> float:
        """One step of dual ascent with the measured slack g, made dimensionless by the caller; returns lambda."""
        self.value = min(max(self.value - self.config.rate * slack, 0.0), self.config.maximum)
        return self.value
