"""Episodes per second of an evaluation on robomimic's Lift from states: ours against robomimic's own rollout loop.

    python benchmarks/robomimic_eval.py [--episodes 50] [--rounds 3] [--workers 2] [--record]

Both run the same seeds with the same network, an MLP of two layers of 1024 that is asked at every step; its weights
are drawn, so that no episode succeeds early and all last 400 steps. robomimic's loop is `run_rollout` on its
EnvRobosuite in this process; ours is `evaluate` with worker processes, whose start counts. The two take turns; a
round gives one ratio. In a benchmark robomimic 0.3 gets a stand-in for mujoco_py, which it imports for one exception.
"""

import argparse
import sys
import time
import types
from typing import Any

import numpy as np

# Worker processes import this file again, and have no use for torch, which is therefore imported in functions.

STATE = ("object", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
HORIZON = 400


def network() -> Any:
    """From 19 numbers of state to 7 of action in [-1, 1], the same weights in every process."""
    import torch

    torch.manual_seed(0)
    layers = [torch.nn.Linear(19, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 1024), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(1024, 7), torch.nn.Tanh()).eval()


def our_policy() -> Any:
    """The network as a policy of ours that executes one action per observation."""
    import torch

    from robopolicy.nn.normalizer import Normalizer
    from robopolicy.policies.base import Policy, PolicyConfig
    from robopolicy.sim.robomimic import Lift

    class Network(Policy):
        def __init__(self) -> None:
            super().__init__(PolicyConfig(1, 1, 1), Lift.features, Normalizer(()))
            self.network = network()

        def loss(self, batch: Any, generator: Any) -> Any:
            raise NotImplementedError

        def predict(self, observation: dict[str, Any], generator: Any) -> Any:
            state = torch.cat([observation[f"observation.{k}"][:, -1] for k in STATE], dim=-1)
            with torch.no_grad():
                return 0.2 * self.network(state)[:, None]

    return Network()


def ours(seeds: list[int], workers: int) -> tuple[float, int]:
    """(seconds, environment steps)."""
    from robopolicy.evaluation.rollout import evaluate

    policy = our_policy()
    begin = time.perf_counter()
    options: dict[str, Any] = {"record_video": 0, "pictures": 0}
    result = evaluate(policy, "robomimic-lift", seeds, workers=workers, **options)
    print({k: v for k, v in result.info.timing.items() if k.endswith("_s")}, flush=True)
    return time.perf_counter() - begin, sum(e.steps for e in result.episodes)


def theirs(seeds: list[int]) -> tuple[float, int]:
    """(seconds, environment steps) of robomimic's loop; making its environment does not count."""
    shim = types.ModuleType("mujoco_py")
    shim.builder = types.SimpleNamespace(MujocoException=RuntimeError)  # type: ignore[attr-defined]
    sys.modules.setdefault("mujoco_py", shim)
    import torch
    from robomimic.algo import RolloutPolicy
    from robomimic.utils import env_utils, obs_utils
    from robomimic.utils.train_utils import run_rollout

    from robopolicy.sim.robosuite_env import default_env_args, load_robosuite

    obs_utils.initialize_obs_utils_with_obs_specs([{"obs": {"low_dim": list(STATE), "rgb": []}}])
    env_args = default_env_args("Lift", 1, False, load_robosuite("robomimic-lift").__version__)
    env = env_utils.create_env_from_metadata(env_meta=env_args, render=False)

    class Network(RolloutPolicy):
        def __init__(self) -> None:
            self.network = network()

        def start_episode(self) -> None:
            pass

        def __call__(self, ob: dict[str, np.ndarray], goal: Any = None) -> np.ndarray:
            state = torch.from_numpy(np.concatenate([ob[k] for k in STATE])).float()[None]
            with torch.no_grad():
                return 0.2 * self.network(state)[0].numpy()

    policy, steps = Network(), 0
    begin = time.perf_counter()
    for seed in seeds:
        np.random.seed(seed)  # noqa: NPY002
        steps += run_rollout(policy, env, HORIZON, terminate_on_success=True)["Horizon"]
    return time.perf_counter() - begin, steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    seeds = list(range(100_000, 100_000 + args.episodes))
    theirs(seeds[:1])  # Compiles and caches what numba compiles.
    rounds = []
    for number in range(args.rounds):
        mine, my_steps = ours(seeds, args.workers)
        peer, peer_steps = theirs(seeds)
        rounds.append({"ours_s": round(mine, 2), "robomimic_s": round(peer, 2), "ratio": round(peer / mine, 3)})
        print(
            f"round {number}: ours {args.episodes / mine:.3f} episodes/s ({my_steps} steps), robomimic "
            f"{args.episodes / peer:.3f} ({peer_steps} steps), ratio {peer / mine:.2f}",
            flush=True,
        )
    ratios = [r["ratio"] for r in rounds]
    print(f"ratio {np.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}] over {args.rounds} rounds")
    if args.record:
        from ledger import record

        record(
            "robomimic_eval_ratio",
            "python benchmarks/robomimic_eval.py --record",
            float(np.median(ratios)),
            min(ratios),
            max(ratios),
            "x episodes/s",
            args.rounds,
            seeds=[seeds[0], seeds[-1]],
            peer="robomimic 0.3 run_rollout",
            note=f"{args.episodes} episodes of Lift, state, {args.workers} workers; interval is the range of rounds",
            rounds=rounds,
        )


if __name__ == "__main__":
    main()
