"""robopolicy eval-locomotion RUN: how a legged policy walks, and what pushes and terrains it survives."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from robopolicy.errors import RobopolicyError

FRAMES_HZ = 25
VIDEO_S = 6.0


@dataclass
class EvalLocomotionArgs:
    """Scores a legged policy: tracking, cost of transport, survival of pushes, terrains and a fresh adversary.

    Writes locomotion.json, one PNG per chart, report.html and a video.
    """

    checkpoint: tyro.conf.Positional[Path]
    """A checkpoint of reinforcement learning, or a run whose last checkpoint is taken."""
    episodes: int = 64
    """Robots in every trial."""
    speed: float = 0.5
    """m/s, commanded straight ahead."""
    sudden: tuple[float, ...] = ()
    """Strengths of a push of 0.2 s in N; default: seven up to 1.2 times the robot's weight."""
    continuous: tuple[float, ...] = ()
    """Strengths of lasting pushes in N; default: seven up to 0.6 times the weight."""
    terrains: tuple[str, ...] = ("slope", "rough", "stairs", "blocks")
    levels: tuple[int, ...] = (0, 4)
    """Of every terrain, 0 to 9."""
    adversary_iterations: int = 50
    """Training of a fresh disturber against the frozen policy; 0 leaves it out."""
    adversary_force: float = 0.0
    """Its largest force in N; 0 takes the one the policy was trained with."""
    pybullet: int = 0
    """Episodes in PyBullet (extra `pybullet`) and as many in MuJoCo, at four strengths of push; 0 leaves them out."""
    video: bool = True
    seed: int = 0
    """Draws robots, directions and moments; never those of training."""
    output: Path | None = None
    """Folder; default outputs/<date>_locomotion."""
    threads: int | None = None
    """Physics threads; default: one per processor."""


def run(arguments: list[str]) -> None:
    """Measures, writes the folder and prints the main numbers."""
    args = tyro.cli(EvalLocomotionArgs, args=arguments, prog="robopolicy eval-locomotion")
    import json

    import torch

    from robopolicy.evaluation.locomotion import Protocol, measure
    from robopolicy.evaluation.locomotion_report import as_json, build_page, charts, picture
    from robopolicy.evaluation.result import write_folder

    output = args.output or Path("outputs") / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_locomotion"
    if output.exists():
        raise RobopolicyError(f"{output}: exists already; choose another --output")
    # The networks are too small to share among threads.
    torch.set_num_threads(1)
    policy, config, eta = locomotion_policy(args.checkpoint)
    config.threads = args.threads
    protocol = Protocol(
        args.episodes,
        args.speed,
        args.sudden or None,
        args.continuous or None,
        args.terrains,
        args.levels,
        args.seed,
        args.adversary_iterations,
        args.adversary_force,
        args.pybullet,
    )
    found = measure(config, policy.raw, protocol, eta)
    video = film(config, policy.raw, args.speed, args.seed) if args.video else None
    about = {
        "checkpoint": str(args.checkpoint),
        "command": "robopolicy eval-locomotion " + " ".join(arguments),
        "environment": str(config),
    }
    files = {"locomotion.json": (json.dumps(as_json(found), indent=1) + "\n").encode()}
    drawings = charts(found)
    files |= {name: picture(draw, heading) for name, (heading, _, draw) in drawings.items()}
    files["report.html"] = build_page(found, str(args.checkpoint), video, about).encode()
    if video is not None:
        files["walk.mp4"] = video
    write_folder(output, files)
    print(f"forward error {found.forward_error} m/s, share of the task reward {found.task_reward}")
    print(f"survival without pushes {found.survival}")
    for kind in ("sudden", "continuous"):
        area = found.area(getattr(found, kind))
        if area is not None:
            print(f"mean survival of {kind} pushes {area}")
    if found.adversary is not None:
        print("adversary: " + ", ".join(f"{name} {value}" for name, value in found.adversary.items()))
    print(f"report: {output / 'report.html'}")


def locomotion_policy(folder: Path) -> tuple[Any, Any, float | None]:
    """The policy, the quadrupeds it was trained with, `max_force` being that of its game, and its eta if it had one.

    Raises CheckpointError or RobopolicyError for what is no checkpoint of a quadruped.
    """
    from robopolicy.configs import from_dict
    from robopolicy.registry import environment_config
    from robopolicy.rl.actor import ActorPolicy
    from robopolicy.training import checkpoint

    policy, about = checkpoint.load(folder)
    settings = about["provenance"].get("environment")
    if not isinstance(policy, ActorPolicy) or not isinstance(settings, dict) or settings.get("kind") != "quadruped":
        raise RobopolicyError(f"{folder}: a checkpoint of {about['task']!r}; eval-locomotion needs one of a quadruped")
    config = from_dict(environment_config("quadruped"), settings, str(folder))
    eta, force = _game(Path(about["path"]).parent.parent / "train_config.json")
    config.max_force = force or config.max_force
    return policy, config, eta


def _game(run: Path) -> tuple[float | None, float]:
    """The bound on the cost per newton that a run was trained with, None without one, and the largest force of its
    game in N, 0 where that was the environment's."""
    import json

    try:
        game = json.loads(run.read_text())["config"]["game"]
        bounded = game["constrained"] and game["disturbance"] == "learned"
        return float(game["eta"]) if bounded else None, float(game["max_force"])
    except (OSError, ValueError, KeyError, TypeError):
        # A checkpoint copied out of its run.
        return None, 0.0


def film(config: Any, actor: Any, speed: float, seed: int) -> bytes:
    """MP4 of the nominal robot walking, and pushed from the side by a third of its weight for 0.2 s."""
    from dataclasses import replace

    import mujoco
    import torch

    from robopolicy.evaluation.locomotion import GRAVITY, PULSE_S, trial_config
    from robopolicy.evaluation.video import encode_mp4
    from robopolicy.sim.quadruped.config import NoiseConfig, RandomisationConfig
    from robopolicy.sim.quadruped.robots import CONTROL_DT
    from robopolicy.sim.rendering import Quality, Renderer

    config = replace(
        trial_config(config, speed, VIDEO_S, seed), randomisation=RandomisationConfig.none(), noise=NoiseConfig.none()
    )
    env = config.make(1)
    model, data = env.batch.models[0], mujoco.MjData(env.batch.models[0])
    renderer = Renderer(model, 640, 400, Quality(samples=4), {4: False})
    force = torch.tensor([[0.0, env.robot.mass * GRAVITY / 3, 0.0]])
    frames = []
    every = round(1 / (FRAMES_HZ * CONTROL_DT))
    observations = env.reset(seed)
    for step in range(round(VIDEO_S / CONTROL_DT)):
        pushed = VIDEO_S / 2 <= step * CONTROL_DT < VIDEO_S / 2 + PULSE_S
        with torch.no_grad():
            result = env.step(actor(observations["policy"]), force * pushed)
        observations = result.observations
        if step % every == 0:
            mujoco.mj_setState(model, data, env.batch.present[0], mujoco.mjtState.mjSTATE_FULLPHYSICS)
            mujoco.mj_forward(model, data)
            frames.append(renderer(data, "side"))
        if result.terminated.any():
            break
    renderer.close()
    env.close()
    return encode_mp4(frames, FRAMES_HZ)
