"""robopolicy deploy CHECKPOINT --robot NAME: robot, safety gate, policy and recorder as processes, without `ros2`."""

import json
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

import tyro

from robopolicy.errors import RobopolicyError
from robopolicy.hardware.graph import GraphSettings, environment, nodes
from robopolicy.hardware.profiles import load_profile
from robopolicy.hardware.supervisor import Supervisor
from robopolicy.progress import progress_bar

if TYPE_CHECKING:
    from robopolicy.hardware.ros.session import EpisodeOutcome, Session


@dataclass
class DeployArgs:
    """Runs a checkpoint on a robot behind the safety gate, until Ctrl-C; on a simulated one, for some episodes.

    The same processes as those of `ros2 launch robopolicy manipulator.launch.py`. When one of them ends, all end.
    """

    checkpoint: tyro.conf.Positional[Path]
    """A checkpoint, or a run whose last checkpoint is taken."""
    robot: str
    """Robot profile: a name such as sim_pusht or ur5e, or a YAML file."""
    contract: str = ""
    """YAML file that says which topics are which features, or the name of one that is here; default: the robot's name,
    of which sim_pusht, sim_a1 and unitree_a1 have one."""
    record: Path | None = None
    """Folder for recordings, which `robopolicy data convert` makes a dataset of."""
    episodes: int = 10
    """Episodes of a simulated robot; 0 runs until Ctrl-C, as on a real one."""
    first_seed: int | None = None
    """Seed of the first episode; default: the first test seed."""
    dry_run: bool = False
    """The gate does everything but send: look at its topic `setpoint`."""
    device: str = "cpu"
    """Of the policy: cpu, cuda or cuda:N."""
    namespace: str = ""
    """Of all topics and nodes, for several robots."""
    driver: Literal["ros", "direct"] = "ros"
    """ros: the robot's ROS 2 driver is running; direct: the vendor's Python package, needs --robot-ip."""
    robot_ip: str = ""
    """Address of the robot, for --driver direct."""
    mode: Literal["real_time", "stepped"] = "real_time"
    """Of a simulated robot; stepped: time advances one control period per command."""
    time_scale: float = 1.0
    """Seconds of simulation per second."""
    camera_hz: float = 0.0
    """Rate of a simulated robot's pictures, 0 for none."""
    params: Path | None = None
    """ROS parameter file in the place of the package's own; keys /**/<node>."""
    output: Path | None = None
    """JSON file for the results of the episodes."""
    episode_timeout: float = 600.0
    """Seconds after which an episode that does not end is an error."""
    quiet: bool = False
    """Do not show what the nodes say."""


def run(arguments: list[str]) -> None:
    """Checks everything that can be checked before anything starts, then runs the graph."""
    args = tyro.cli(DeployArgs, args=arguments, prog="robopolicy deploy", config=(tyro.conf.FlagConversionOff,))
    print(deploy(args))


def deploy(args: DeployArgs) -> str:
    """Runs the graph and returns what to print at its end. RobopolicyError when a process ends by itself."""
    from robopolicy.sim.task import TEST_SEEDS
    from robopolicy.training import checkpoint

    profile = load_profile(args.robot)
    require_rclpy()
    if args.episodes < 0:
        raise RobopolicyError(f"--episodes {args.episodes}: should not be negative")
    if args.params is not None and not args.params.is_file():
        raise RobopolicyError(f"--params {args.params}: no such file")
    if args.output is not None and args.output.exists():
        raise RobopolicyError(f"--output {args.output}: exists already")
    from robopolicy.hardware.ros.policy_node import contract_file

    contract = contract_file(args.contract or profile.name)
    if not contract.is_file():
        raise RobopolicyError(f"--contract {contract}: no such file")
    episodes = args.episodes if profile.simulated and not args.dry_run else 0
    settings = GraphSettings(
        args.robot,
        str(checkpoint.resolve(args.checkpoint)),
        contract=args.contract,
        device=args.device,
        namespace=args.namespace,
        dry_run=args.dry_run,
        record=str(args.record) if args.record else "",
        record_at_once=not episodes,
        mode=args.mode,
        time_scale=args.time_scale,
        camera_hz=args.camera_hz,
        driver=args.driver,
        robot_ip=args.robot_ip,
        **({"params_file": str(args.params)} if args.params else {}),
    )
    processes = nodes(settings)
    first = TEST_SEEDS if args.first_seed is None else args.first_seed
    with tempfile.TemporaryDirectory(prefix="robopolicy_") as folder, _terminated_as_interrupted():
        programs = [p.program(settings, Path(folder)) for p in processes]
        with progress_bar(total=episodes or None, desc=profile.name, unit="episode", disable=not episodes) as bar:

            def say(line: str) -> None:
                if not args.quiet:
                    bar.write(line, file=sys.stderr)

            with Supervisor(programs, say, environment()) as supervisor:
                outcomes = _watch(settings, supervisor, [p.executable for p in processes], episodes, first, args, bar)
    if args.output is not None:
        args.output.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
    return summary(profile.name, outcomes)


def _watch(
    settings: GraphSettings,
    supervisor: Supervisor,
    executables: list[str],
    episodes: int,
    first: int,
    args: DeployArgs,
    bar: Any,
) -> "list[EpisodeOutcome]":
    from robopolicy.hardware.ros.session import Session

    outcomes: list[EpisodeOutcome] = []
    with Session(settings.namespace, supervisor.check, record=bool(settings.record)) as session:
        try:
            session.wait_active(executables, patience=args.episode_timeout)
            if not episodes:
                print(f"{settings.robot}: active; Ctrl-C ends it", file=sys.stderr)
                _until_interrupted(session)
            for outcome in session.episodes(range(first, first + episodes), args.episode_timeout):
                outcomes.append(outcome)
                mean = sum(o.score for o in outcomes) / len(outcomes)
                faults = f", gate: {', '.join(outcome.faults)}" if outcome.faults else ""
                bar.set_postfix_str(f"mean score {mean:.3f}{faults}")
                bar.update()
        finally:
            session.finish()
    return outcomes


def _until_interrupted(session: "Session") -> None:
    """Says what the gate says, when it changes."""
    said = ""
    while True:
        session.spin(0.1)
        if session.gate is not None and session.gate.message != said:
            said = session.gate.message
            print(f"gate: {said}", file=sys.stderr)


def summary(robot: str, outcomes: "list[EpisodeOutcome]") -> str:
    """One line: mean score and success rate with their intervals."""
    from robopolicy.evaluation.statistics import bootstrap_mean, wilson

    if not outcomes:
        return f"{robot}: ended"
    score = bootstrap_mean([o.score for o in outcomes])
    success = wilson(sum(o.success for o in outcomes), len(outcomes))
    faults = sum(bool(o.faults) for o in outcomes)
    names = dict.fromkeys(name for o in outcomes for name in o.details)
    means = {n: bootstrap_mean([o.details[n] for o in outcomes if n in o.details]) for n in names}
    details = "".join(f", {name} {mean}" for name, mean in means.items())
    seeds = f"seeds {outcomes[0].seed}..{outcomes[-1].seed}"
    ends = f"{len(outcomes)} episodes, {seeds}, {faults} with faults of the gate"
    return f"{robot}: score {score}, success {success}{details}, {ends}"


def require_rclpy() -> None:
    """RobopolicyError naming the extra when there is no ROS 2 in this Python."""
    if find_spec("rclpy") is None:
        raise RobopolicyError(
            "rclpy is not installed: pip install -c constraints.txt 'robopolicy[ros2]', or source a ROS 2 installation"
        )


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM, as from systemd or a container's stop, ends the graph in order too."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
