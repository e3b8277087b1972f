"""Our PPO against rsl-rl-lib's: equal advantages and losses, then return and time on the same environment.

    python -m venv PEER; PEER/bin/pip install -c constraints.txt -e . 'rsl-rl-lib>=5.5,<6'
    PEER/bin/python benchmarks/ppo_vs_rsl_rl.py --equal
    PEER/bin/python benchmarks/ppo_vs_rsl_rl.py --recipe a1-flat-ppo --iterations 50 --rounds 3 --record

Both train the environment of a recipe of ours, with networks, rates, epochs and minibatches of that recipe, the same
number of samples and one thread; they take turns, and a round gives one ratio of times. The time is that of the whole
run, logs and checkpoints of both libraries included. The return is the mean reward per step of the mean action, on
the same fresh environment. rsl_rl values a time-out by the state before it, ours by the state after it; for the
comparison of advantages, ours is given their value.
"""

import argparse
import contextlib
import io
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ledger import record
from rsl_rl.env import VecEnv as PeerEnv
from rsl_rl.runners import OnPolicyRunner
from tensordict import TensorDict

from robopolicy.recipes_locomotion import LOCOMOTION
from robopolicy.rl.buffer import gae
from robopolicy.rl.nets import NetConfig
from robopolicy.rl.ppo import policy_loss, standardise, value_loss
from robopolicy.rl.trainer import RLConfig, RLTrainer
from robopolicy.rl.vec import VecEnv
from robopolicy.training import checkpoint


class Adapter(PeerEnv):  # type: ignore[misc]
    """An environment of ours as rsl_rl takes it."""

    def __init__(self, env: VecEnv) -> None:
        self.env, self.cfg = env, {}
        self.num_envs, self.num_actions, self.device = env.n_envs, env.action_dim, env.device
        self.max_episode_length = 10**9
        self.episode_length_buf = torch.zeros(env.n_envs, dtype=torch.long, device=env.device)

    def _groups(self, observations: dict[str, torch.Tensor]) -> TensorDict:
        groups = {g: observations[g].clone() for g in ("policy", "critic")}
        return TensorDict(groups, batch_size=[self.num_envs], device=self.device)

    def get_observations(self) -> TensorDict:
        return self._groups(self.env.observe())

    def step(self, actions: torch.Tensor) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        result = self.env.step(actions)
        done = (result.terminated | result.timeout).long()
        return self._groups(result.observations), result.reward, done, {"time_outs": result.timeout}


def peer_runner(config: RLConfig, env: VecEnv, folder: str | None) -> OnPolicyRunner:
    """rsl_rl's runner with the numbers of `config`."""
    ppo = config.ppo

    def model(net: NetConfig) -> dict[str, Any]:
        return {
            "class_name": "MLPModel",
            "hidden_dims": list(net.hidden),
            "activation": net.activation,
            "obs_normalization": config.normalise,
        }

    spread = {"class_name": "GaussianDistribution", "init_std": config.actor.initial_std, "std_type": "log"}
    settings = {
        "num_steps_per_env": config.rollout_steps,
        "save_interval": config.save_every,
        "obs_groups": {"actor": ["policy"], "critic": ["critic"]},
        "actor": model(config.actor) | {"distribution_cfg": spread},
        "critic": model(config.critic),
        "algorithm": {
            "class_name": "PPO",
            "num_learning_epochs": ppo.epochs,
            "num_mini_batches": ppo.minibatches,
            "clip_param": ppo.clip,
            "gamma": ppo.gamma,
            "lam": ppo.lam,
            "value_loss_coef": ppo.value_coef,
            "use_clipped_value_loss": ppo.value_clip > 0,
            "entropy_coef": ppo.entropy_coef,
            "learning_rate": ppo.lr,
            "max_grad_norm": ppo.grad_norm,
            "schedule": ppo.schedule,
            "desired_kl": ppo.kl_target,
        },
        "logger": "tensorboard",
        "run_name": "",
    }
    return OnPolicyRunner(Adapter(env), settings, folder, str(env.device))


def equal(config: RLConfig) -> dict[str, float]:
    """Largest differences of advantages, returns, values and losses on one rollout of theirs."""
    config.ppo.epochs = config.ppo.minibatches = 1
    config.normalise = False
    # Losses of the value are compared with clipping.
    config.ppo.value_clip, config.ppo.clip = 0.2, 0.2
    env = config.env.make(config.n_envs)
    env.reset(0)
    with tempfile.TemporaryDirectory() as folder:
        trainer = RLTrainer(config, Path(folder))
    game, runner = trainer.game, peer_runner(config, env, None)
    peer: Any = runner.alg
    # Theirs has one value head.
    game.critic.network[-1] = torch.nn.Linear(config.critic.hidden[-1], 1)
    peer.actor.mlp.load_state_dict(game.actor.network.state_dict())
    peer.critic.mlp.load_state_dict(game.critic.network.state_dict())
    with torch.no_grad():
        peer.actor.distribution.log_std_param.copy_(game.actor.log_std)
    observations = runner.env.get_observations()
    time_outs = []
    with torch.inference_mode():
        for _ in range(config.rollout_steps):
            action = peer.act(observations)
            observations, reward, done, extras = runner.env.step(action)
            time_outs.append(extras["time_outs"].clone())
            peer.process_env_step(observations, reward, done, extras)
        peer.compute_returns(observations)
    store = peer.storage
    values, ended, timeout = store.values.clone(), store.dones.squeeze(-1).bool(), torch.stack(time_outs)
    # Their rewards hold gamma V(s_t) of the time-outs already.
    rewards = store.rewards - config.ppo.gamma * values * timeout.unsqueeze(-1)
    with torch.no_grad():
        last = game.critic(observations["critic"])
    following = torch.cat([values[1:], last[None]]).masked_fill((ended & ~timeout).unsqueeze(-1), 0.0)
    following = torch.where(timeout.unsqueeze(-1), values, following)
    advantages, returns = gae(rewards, values, following, ended, config.ppo.gamma, config.ppo.lam)
    ours = standardise(advantages)
    found = {
        "time-outs": float(timeout.sum()),
        "returns": float((returns - store.returns).abs().max()),
        "advantages": float((ours - store.advantages).abs().max()),
    }
    # Away from the policy of the rollout, where ratios and clipping matter.
    torch.manual_seed(1)
    with torch.no_grad():
        for mine, theirs in (
            (game.actor.network, peer.actor.mlp),
            (game.critic.network, peer.critic.mlp),
        ):
            for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
                a += 0.05 * torch.randn_like(a)
                b.copy_(a)
    flat = store.observations.flatten(0, 1)
    with torch.no_grad():
        mean = game.actor(flat["policy"])
        log_prob = game.actor.log_prob(mean, store.actions.flatten(0, 1))
        old = store.actions_log_prob.flatten()
        surrogate, ratio = policy_loss(log_prob, old, ours.flatten(), config.ppo.clip)
        new_values = game.critic(flat["critic"])
        error = value_loss(new_values, values.flatten(0, 1), returns.flatten(0, 1), config.ppo.value_clip)
    their = peer.update()
    found["ratios beyond the clip"] = float(((ratio - 1).abs() > config.ppo.clip).float().mean())
    found["policy loss"] = abs(float(surrogate) - their["surrogate"])
    found["value loss"] = abs(float(error[0]) - their["value"])
    found["entropy"] = abs(float(game.actor.entropy().detach()) - their["entropy"])
    return found


def mean_reward(config: RLConfig, act: Any, steps: int) -> float:
    """Mean reward per step of a policy without noise, over `steps` from a fresh start."""
    env = config.env.make(config.n_envs)
    observations = env.reset(10_000 + config.seed)
    total = 0.0
    with torch.no_grad():
        for _ in range(steps):
            result = env.step(act(observations["policy"]))
            total += float(result.reward.mean())
            observations = result.observations
    env.close()
    return total / steps


def ours(config: RLConfig, steps: int) -> tuple[float, float]:
    """(seconds, mean reward)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        folder.mkdir()
        begin = time.perf_counter()
        RLTrainer(config, folder).run()
        seconds = time.perf_counter() - begin
        policy: Any = checkpoint.load(folder)[0]
    return seconds, mean_reward(config, policy.raw, steps)


def theirs(config: RLConfig, steps: int) -> tuple[float, float]:
    """(seconds, mean reward)."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        begin = time.perf_counter()
        torch.manual_seed(config.seed)
        env = config.env.make(config.n_envs)
        env.reset(config.seed)
        runner = peer_runner(config, env, folder)
        runner.learn(config.iterations)
        seconds = time.perf_counter() - begin
        env.close()
    policy = runner.get_inference_policy()
    return seconds, mean_reward(config, lambda o: policy(TensorDict({"policy": o}, batch_size=[len(o)])), steps)


def main() -> None:
    """Compares and, if asked, records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--equal", action="store_true", help="advantages and losses on the same tensors")
    parser.add_argument("--recipe", default="pointmass-ppo", choices=[n for n in LOCOMOTION if n.endswith("-ppo")])
    parser.add_argument("--iterations", type=int, default=0, help="default: the recipe's")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=500, help="control steps of the final evaluation")
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.equal:
        for name, value in equal(LOCOMOTION[args.recipe].make()).items():
            print(f"{name}: {value:.3g}")
        return
    rounds = []
    for seed in range(args.rounds):
        numbers = {}
        for who, run in (("ours", ours), ("rsl_rl", theirs)):
            config = LOCOMOTION[args.recipe].make()
            config.seed, config.iterations = seed, args.iterations or config.iterations
            numbers[who] = run(config, args.steps)
        rounds.append(numbers)
        print(f"round {seed}: " + ", ".join(f"{k} {s:.1f} s, reward {r:.4f}" for k, (s, r) in numbers.items()))
    ratios = [r["ours"][0] / r["rsl_rl"][0] for r in rounds]
    print(f"time ratio {np.median(ratios):.3f} [{min(ratios):.3f}, {max(ratios):.3f}]")
    if args.record:
        rewards = {k: [round(r[k][1], 4) for r in rounds] for k in ("ours", "rsl_rl")}
        record(
            "ppo_vs_rsl_rl_time_ratio",
            f"python benchmarks/ppo_vs_rsl_rl.py --recipe {args.recipe} --iterations {config.iterations} "
            f"--rounds {args.rounds} --record",
            float(np.median(ratios)),
            min(ratios),
            max(ratios),
            "ours / peer, seconds",
            args.rounds,
            seeds=list(range(args.rounds)),
            peer="rsl-rl-lib OnPolicyRunner",
            note=f"{args.recipe}, {config.iterations} iterations of {config.n_envs} x {config.rollout_steps} steps, "
            f"one thread, in turn; median and range of rounds. Mean reward per step of the mean action after equal "
            f"samples: ours {rewards['ours']}, rsl_rl {rewards['rsl_rl']}.",
            rounds=rounds,
        )


if __name__ == "__main__":
    main()
