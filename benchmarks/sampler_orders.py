"""Prints the measured order of convergence of each sampler, and its largest difference to diffusers' scheduler.

Usage: python benchmarks/sampler_orders.py
"""

import sys
from pathlib import Path

import torch

from robopolicy.diffusion.samplers import SAMPLERS

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "diffusion"))
STEPS = (8, 16, 32, 64, 128)


def main() -> None:
    """Both tables."""
    from oracles import PARITY_CASES, diffusers_difference, errors_by_steps, fitted_order

    torch.set_num_threads(1)
    print("Mean error at sigma 0.005 from sigma 1, exact two-mode mixture, float64, exponential schedule; order is")
    print("the slope over 32..128 steps")
    print(f"{'sampler':<16}" + "".join(f"{n:>10}" for n in STEPS) + f"{'order':>8}")
    for name, sample in SAMPLERS.items():
        if name == "ddpm":  # always stochastic
            continue
        options = {"eta": 0.0} if name in ("euler_ancestral", "dpmpp_2m_sde") else {}
        errors = errors_by_steps(lambda *a, s=sample, o=options: s(*a, **o), STEPS)
        order = fitted_order(STEPS[2:], errors[2:])
        print(f"{name:<16}" + "".join(f"{e:>10.1e}" for e in errors) + f"{order:>8.2f}")

    print("\nLargest difference of the noisy chunk to diffusers over all steps; float64 widens its tables too")
    print(f"{'sampler':<12}{'steps':>6}{'betas':>19}{'prediction':>12}{'clip':>6}{'float32':>10}{'float64':>10}")
    for kind, prediction, clip, n, betas in PARITY_CASES:
        case = (kind, prediction, clip, n, betas)
        single, double = (diffusers_difference(*case, dtype) for dtype in (torch.float32, torch.float64))
        print(f"{kind:<12}{n:>6}{betas:>19}{prediction:>12}{clip or '-':>6}{single:>10.1e}{double:>10.1e}")


if __name__ == "__main__":
    main()
