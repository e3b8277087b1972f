"""Share of raw mujoco.rollout speed that is left with observations, rewards and resets.

python benchmarks/quadruped_env.py --envs 256 --threads 2

Raw is one call of `mujoco.rollout` for each control step, as any closed loop needs it, with nothing between the calls.
The environment does the rest too: delays, forces, observations with noise, all reward terms, time-outs, falls and
resets. Both sides take turns; the raw side repeats exactly the physics that the environment just did, from the same
states and with the same inputs.
"""

import argparse
import time

import numpy as np
import torch
from ledger import record

from robopolicy.evaluation.statistics import bootstrap_mean
from robopolicy.progress import progress_bar
from robopolicy.sim.quadruped.config import QuadrupedConfig
from robopolicy.sim.quadruped.env import QuadrupedEnv


def raw_seconds(env: QuadrupedEnv, controls: np.ndarray, states: np.ndarray) -> float:
    """Seconds of `mujoco.rollout` for controls [T, N, S, C], each step from its states [T, N, D]."""
    import mujoco
    from mujoco.rollout import Rollout

    batch = env.batch
    datas = [mujoco.MjData(env.model) for _ in range(batch.threads)]
    out, sensors = np.zeros_like(batch.states), np.zeros_like(batch.sensors)
    spec = mujoco.mjtState.mjSTATE_CTRL.value | mujoco.mjtState.mjSTATE_XFRC_APPLIED.value
    with Rollout(nthread=batch.threads if batch.threads > 1 else 0) as pool:
        begin = time.perf_counter()
        for control, state in zip(controls, states, strict=True):
            pool.rollout(
                batch.models,
                datas,
                state,
                control,
                control_spec=spec,
                skip_checks=True,
                nstep=batch.substeps,
                state=out,
                sensordata=sensors,
            )
        return time.perf_counter() - begin


def env_seconds(
    env: QuadrupedEnv, moves: torch.Tensor, wrenches: torch.Tensor, controls: np.ndarray, states: np.ndarray
) -> float:
    """Seconds of the environment for moves [T, N, 12]; keeps what reached the physics in `controls`, `states`."""
    seconds = 0.0
    for move, wrench, control, state in zip(moves, wrenches, controls, states, strict=True):
        state[:] = env.batch.present
        begin = time.perf_counter()
        env.step(move, wrench)
        seconds += time.perf_counter() - begin
        control[:] = env.batch.controls
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--robot", default="aliengo")
    parser.add_argument("--terrain", default="flat")
    parser.add_argument("--envs", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=100, help="control steps of a round")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--no-record", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = QuadrupedConfig(robot=options.robot, terrain=options.terrain, threads=options.threads)
    env = QuadrupedEnv(config, options.envs)
    env.reset(0)
    generator = torch.Generator().manual_seed(0)
    controls = np.zeros((options.steps, *env.batch.controls.shape))
    states = np.zeros((options.steps, *env.batch.present.shape))
    ratios, speeds = [], []
    steps = options.steps * options.envs
    for number in progress_bar(iterable=range(options.rounds + 1), desc="rounds"):
        moves = 0.3 * torch.randn(options.steps, options.envs, 12, generator=generator)
        wrenches = 10 * torch.randn(options.steps, options.envs, 3, generator=generator)
        with_layer = env_seconds(env, moves, wrenches, controls, states)
        raw = raw_seconds(env, controls, states)
        if number:  # The first round warms up.
            ratios.append(raw / with_layer)
            speeds.append((steps / with_layer, steps / raw))
    interval = bootstrap_mean(ratios)
    layer, raw_speed = np.median(speeds, axis=0)
    print(f"environment {layer:.0f}, raw rollout {raw_speed:.0f} control steps/s; ratio {interval}")
    if not options.no_record:
        record(
            "quadruped_env_ratio",
            f"python benchmarks/quadruped_env.py --robot {options.robot} --terrain {options.terrain} "
            f"--envs {options.envs} --threads {options.threads}",
            interval.value,
            interval.low,
            interval.high,
            "share of raw mujoco.rollout control steps/s",
            len(ratios),
            seeds=[0],
            peer="mujoco.rollout",
            note=f"{layer:.0f} against {raw_speed:.0f} control steps/s (medians; 4 physics steps each), "
            f"{options.threads} threads; {__doc__.splitlines()[0]}",
            ratios=ratios,
        )


if __name__ == "__main__":
    main()
