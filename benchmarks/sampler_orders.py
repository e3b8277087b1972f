"""Prints the measured order of convergence of each sampler, and its largest difference to diffusers' scheduler.

Usage: python benchmarks/sampler_orders.py
"""

import sys
from pathlib import Path

import torch
from ledger import record

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
    orders = {}
    for name, sample in SAMPLERS.items():
        if name == "ddpm":  # always stochastic
            continue
        options = {"eta": 0.0} if name in ("euler_ancestral", "dpmpp_2m_sde") else {}
        errors = errors_by_steps(lambda *a, s=sample, o=options: s(*a, **o), STEPS)
        order = orders[name] = fitted_order(STEPS[2:], errors[2:])
        print(f"{name:<16}" + "".join(f"{e:>10.1e}" for e in errors) + f"{order:>8.2f}")

    print("\nLargest difference of the noisy chunk to diffusers over all steps; float64 widens its tables too")
    print(f"{'sampler':<12}{'steps':>6}{'betas':>19}{'prediction':>12}{'clip':>6}{'float32':>10}{'float64':>10}")
    worst: dict[str, list[float]] = {"float32": [], "float64": []}
    for kind, prediction, clip, n, betas in PARITY_CASES:
        case = (kind, prediction, clip, n, betas)
        single, double = (diffusers_difference(*case, dtype) for dtype in (torch.float32, torch.float64))
        print(f"{kind:<12}{n:>6}{betas:>19}{prediction:>12}{clip or '-':>6}{single:>10.1e}{double:>10.1e}")
        worst["float32"].append(single)
        worst["float64"].append(double)

    listed = ", ".join(f"{k} {v:.2f}" for k, v in orders.items())
    first = [orders[k] for k in ("ddim", "euler", "euler_ancestral")]
    second = [orders[k] for k in ("heun", "dpm2", "dpmpp_2s", "dpmpp_2m", "dpmpp_2m_sde")]
    command = "python benchmarks/sampler_orders.py"
    for name, values in (("sampler_order_first", first), ("sampler_order_second", second)):
        middle = sum(values) / len(values)
        note = f"Exact-score two-mode mixture, slope of the error over 32..128 steps; range over samplers. {listed}."
        record(name, command, middle, min(values), max(values), "order of convergence", len(values), note=note)
    for precision, differences in worst.items():
        over = sum(d > 1e-5 for d in differences)
        note = (
            "DDPM, DDIM, DPM-Solver++ 2M and 2M-SDE; epsilon, sample and v; clipped and not; both betas. Largest "
            f"difference of the noisy chunk over all steps; {over} of {len(differences)} cases exceed 1e-5. The "
            "float64 run widens the schedulers' float32 tables, which are where the float32 excess comes from."
        )
        value = max(differences)
        record(
            f"diffusers_parity_{precision}",
            command,
            value,
            min(differences),
            value,
            "max |difference|",
            len(differences),
            peer="diffusers 0.42.1 schedulers",
            note=note,
        )


if __name__ == "__main__":
    main()
