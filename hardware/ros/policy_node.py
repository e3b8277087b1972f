"""The policy on the robot: topics of a contract in, chunks of joint targets out.

    python -m robopolicy.hardware.ros.policy_node --ros-args -p robot:=ur5e -p checkpoint:=outputs/run \\
        -p contract:=ur5e_camera.yaml

Publishes `action_chunk` for the safety gate, and nothing to the robot itself. The checkpoint runs in a process of its
own; here is only what must never wait. Service `policy/reset` starts a new episode: history and chunks are forgotten,
and the noise starts from the seed, the next one each time.
"""

import math
import sys
import time
import uuid
import zlib
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.time import Time
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from robopolicy.datasets.contract import SECOND, read_contract
from robopolicy.datasets.resample import Missing
from robopolicy.errors import RobopolicyError, unknown
from robopolicy.features import FeatureSpec
from robopolicy.hardware.inference import InferenceProcess, InferenceSettings
from robopolicy.hardware.profiles import load_profile
from robopolicy.hardware.ros.messages import chunk_message
from robopolicy.hardware.ros.node import COMMAND, NodeParameters, RobotNode, option, run
from robopolicy.hardware.ros.streams import Frame, Streams
from robopolicy.inference.chunking import STRATEGIES
from robopolicy.wire import Arrays, untext

CONTRACTS = Path(__file__).parent / "contracts"
POLL_S = 0.005
"""How often ticks are looked at that no message settles."""
SILENCE_S = 5.0
"""Seconds without a first frame until the log says what for."""
RECENT = 50
"""Chunks over which latencies are judged."""


@dataclass(frozen=True)
class PolicyParameters(NodeParameters):
    """Of policy_node."""

    robot: str = option("", "robot profile, a name or a YAML file")
    checkpoint: str = option("", "folder of a checkpoint, or of a run whose last one is taken")
    contract: str = option("", "which topics are which features, a YAML file or a name; empty: the robot's")
    arm: str = option("", "YAML file with the arm's model, for policies that command end-effector poses")
    device: str = option("cpu", "device of the policy: cpu, cuda or cuda:N")
    threads: int = option(1, "CPU threads of the policy", low=1, high=256)
    strategy: str = option("receding", "how chunks follow each other", choices=STRATEGIES)
    n_action_steps: int = option(0, "steps between two chunks; 0: the checkpoint's", low=0, high=10_000)
    ensemble_decay: float = option(0.01, "of strategy ensemble: how much less a newer chunk counts", low=0.0, high=1e3)
    seed: int = option(0, "of the policy's noise; each reset takes the next one", low=0, high=2**31, runtime=True)
    warmup: int = option(3, "chunks made and timed before the first frame", low=1, high=1000)
    frozen_camera_s: float = option(
        0.0, "a camera whose picture stays exactly the same for so long is dead; 0 only counts", low=0.0, high=60.0
    )


class PolicyNode(RobotNode):
    """One policy for one robot."""

    Parameters: ClassVar[type[NodeParameters]] = PolicyParameters
    NAME = "policy_node"

    def configure(self) -> None:
        p: PolicyParameters = self.parameters
        self._process: InferenceProcess | None = None
        self._streams: Streams | None = None
        self._made: list[Any] = []
        self._cause = ""
        for name in ("robot", "checkpoint"):
            if not getattr(p, name):
                raise RobopolicyError(f"parameter {name}: not given")
        self._profile = load_profile(p.robot)
        path = contract_file(p.contract or self._profile.name)
        contract = read_contract(path)
        settings = InferenceSettings(
            p.checkpoint, str(path), p.robot, p.arm, p.device, p.threads, p.strategy, p.n_action_steps,
            p.ensemble_decay, p.seed, p.warmup,
        )  # fmt: skip
        self._guard = self.create_guard_condition(self._collect)
        self._process = InferenceProcess(settings, self._guard.trigger)
        self._facts = self._process.wait_ready()
        wanted = FeatureSpec.from_dict(self._facts["features"])
        self._streams = Streams(self, contract, wanted, self._profile, self._look, self._fail)
        self._contract_hash = contract.content_hash()
        self._chunks = self.create_publisher(JointTrajectory, "action_chunk", COMMAND)
        reset = self.create_service(Trigger, "policy/reset", self._on_reset)
        clock = Clock(clock_type=ClockType.STEADY_TIME)
        timers = [self.create_timer(POLL_S, self._look, clock=clock), self.create_timer(0.5, self._find, clock=clock)]
        self._made = [
            lambda: self.destroy_publisher(self._chunks),
            lambda: self.destroy_service(reset),
            *(lambda timer=timer: self.destroy_timer(timer) for timer in timers),
        ]
        self._counts: Counter[str] = Counter()
        self._inference_ms: deque[float] = deque(maxlen=RECENT)
        self._latency_s: deque[float] = deque(maxlen=RECENT)
        self._frame_times: deque[float] = deque(maxlen=RECENT)
        self._residual = 0.0
        self._session, self._number, self._epoch, self._resets = "", 0, 0, 0
        self._missing = ""
        self._pictures: dict[str, tuple[int, int, int]] = {}
        warm = ", ".join(f"{ms:.1f}" for ms in self._facts["warmup_ms"])
        self.get_logger().info(f"{self._facts['policy']} of {self._facts['checkpoint']}: chunks took {warm} ms")

    def activate(self) -> None:
        if self._cause:
            raise RobopolicyError(self._cause)
        self._session, self._number, self._resets = uuid.uuid4().hex[:12], 0, 0
        self._restart()
        self._complain_at, self._frames_then = self.steady() + SILENCE_S, self._counts["frames"]
        self._find()

    def deactivate(self) -> None:
        self._epoch += 1

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        # What went wrong has been said; an error here leads through `cleanup` to the state `unconfigured`.
        return TransitionCallbackReturn.ERROR if self._cause else super().on_deactivate(state)

    def cleanup(self) -> None:
        streams, self._streams = getattr(self, "_streams", None), None
        if streams is not None:
            streams.close()
        process, self._process = getattr(self, "_process", None), None
        if process is not None:
            process.close()
            self.destroy_guard_condition(self._guard)
        for undo in getattr(self, "_made", ()):
            undo()
        self._made = []

    def _restart(self) -> None:
        """A new episode from the next messages on."""
        assert self._streams is not None
        assert self._process is not None
        self._epoch += 1
        self._missing, self._pictures = "", {}
        self._frame_times.clear()
        self._streams.restart()
        self._process.submit("reset", {"seed": np.array(self.parameters.seed + self._resets)})

    def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self.state != "active":
            response.success, response.message = False, f"the node is {self.state}"
            return response
        self._resets += 1
        self._restart()
        response.success, response.message = True, f"seed {self.parameters.seed + self._resets}"
        return response

    def _after_set(self, changes: list[Any]) -> None:
        super()._after_set(changes)
        if any(change.name == "seed" for change in changes):
            self._resets = -1

    # Observations

    def _find(self) -> None:
        """Subscribes to topics as their types become known."""
        streams = self._streams
        if streams is None:
            return
        self._guarded(streams.subscribe)
        silent = self.state == "active" and self._counts["frames"] == self._frames_then
        if silent and self.steady() > self._complain_at:
            self._complain_at = math.inf
            lacking = ", ".join(streams.waiting_for) or "a frame that is complete"
            if not self.get_clock().now().nanoseconds:
                lacking = "/clock"
            heard = ", ".join(f"{count} of {topic}" for topic, count in streams.messages.items())
            self.get_logger().warning(f"no observation yet: waiting for {lacking}; messages so far: {heard}")

    def _look(self) -> None:
        """Sends the frames whose time has come."""
        if self.state == "active":
            self._guarded(self._send_frames)

    def _guarded(self, work: Any) -> None:
        try:
            work()
        except RobopolicyError as error:
            self._fail(str(error))

    def _send_frames(self) -> None:
        streams = self._streams
        assert streams is not None
        if streams.went_back():
            self._counts["clock_jumps"] += 1
            self.get_logger().warning("the clock went back: starting again")
            self._restart()
            return
        while (tick := streams.due()) is not None:
            frame = streams.frame(tick)
            if not isinstance(frame, Missing):
                frame = self._frozen(frame) or frame
            if isinstance(frame, Missing):
                self._counts["frames_missing"] += 1
                if not self._missing:
                    self.get_logger().warning(f"no observation: {frame.reason}")
                self._missing = frame.reason
                continue
            self._missing = ""
            self._submit(frame)

    def _frozen(self, frame: Frame) -> Missing | None:
        """Counts pictures that are exactly the one before; the reason when a camera is dead."""
        limit, dead = self.parameters.frozen_camera_s, None
        for key, value in frame.values.items():
            if value.ndim != 3:
                continue
            code = zlib.crc32(value.tobytes())
            before, since, count = self._pictures.get(key, (None, frame.tick, 0))
            same = code == before
            self._pictures[key] = (code, since if same else frame.tick, count + same)
            held = (frame.tick - self._pictures[key][1]) / SECOND
            if limit and held >= limit:
                dead = Missing(f"{key!r}: the same picture for {held:.3f} s")
        return dead

    def _submit(self, frame: Frame) -> None:
        assert self._process is not None
        self._counts["frames"] += 1
        self._frame_times.append(time.monotonic())
        self._process.submit(
            "frame",
            {
                "tick": np.array(frame.tick, np.int64),
                "session": np.array(self._epoch),
                "latency_steps": np.array(self.latency_steps),
                "measured": frame.measured,
                **{f"observation/{k}": v for k, v in frame.values.items()},
            },
        )

    @property
    def latency_steps(self) -> int:
        """Control steps from an observation to its chunk: 95 % of the latest ones take less.

        Rounded up for real-time chunking, which must not change what is already being executed (section 4.1 there).
        """
        if not self._latency_s:
            return 0
        steps = float(np.percentile(self._latency_s, 95)) * float(self._facts["rate_hz"])
        return int(np.ceil(steps) if self.parameters.strategy == "realtime" else np.floor(steps))

    # Chunks

    def _collect(self) -> None:
        """Publishes what the inference process has made."""
        for kind, arrays in self._process.poll() if self._process is not None else ():
            if kind == "error":
                self._fail(untext(arrays["text"]))
                return
            if self.state == "active" and int(arrays["session"]) == self._epoch:
                self._publish(arrays)

    def _publish(self, arrays: Arrays) -> None:
        stamp, rows, rate = int(arrays["tick"]), arrays["joints"], float(self._facts["rate_hz"])
        self._inference_ms.append(1e3 * float(arrays["seconds"].sum()))
        self._counts["poses_out_of_reach"] += int(arrays["unreached"] > 0)
        self._residual = float(arrays["residual"][0])
        if not len(rows):
            return
        message = chunk_message(
            Time(nanoseconds=stamp).to_msg(), self._session, self._number, self._profile.names,
            np.arange(len(rows)) / rate, rows,
        )  # fmt: skip
        self._chunks.publish(message)
        self._number += 1
        self._counts["chunks"] += 1
        latency = (self.get_clock().now().nanoseconds - stamp) / SECOND
        self._latency_s.append(max(latency, 0.0))
        if latency * rate > self._facts["max_latency_steps"]:
            self._counts["deadline_misses"] += 1

    def _fail(self, cause: str) -> None:
        """Goes to the state `unconfigured` and says why; the gate stops the robot when its chunk is over."""
        if self._cause:
            return
        self._cause = cause
        self.get_logger().fatal(cause)
        if self.state == "active":
            self.trigger_deactivate()

    def report(self) -> tuple[bytes, str, dict[str, Any]]:
        if getattr(self, "_cause", ""):
            return DiagnosticStatus.ERROR, self._cause, {}
        streams = getattr(self, "_streams", None)
        if self.state != "active" or streams is None:
            return super().report()
        level, message = DiagnosticStatus.OK, "running"
        if waiting := streams.waiting_for:
            level, message = DiagnosticStatus.WARN, f"waiting for {', '.join(waiting)}"
        elif self._missing:
            level, message = DiagnosticStatus.WARN, f"no observation: {self._missing}"
        times, facts = list(self._frame_times), self._facts
        rate = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 and times[-1] > times[0] else 0.0
        values: dict[str, Any] = {
            "rate_hz": rate / self.parameters.time_scale,
            "wanted_rate_hz": facts["rate_hz"],
            "latency_steps": self.latency_steps,
            "strategy": self.parameters.strategy,
            "session": self._session,
            "policy": facts["policy"],
            "checkpoint_hash": facts["checkpoint_hash"],
            "contract_hash": self._contract_hash,
            "device": self.parameters.device,
            "inference_pid": self._process.pid if self._process is not None else 0,
            "frames_late": streams.skipped,
            "messages_late": streams.late,
            "position_residual_m": self._residual,
        }
        names = ("frames", "frames_missing", "chunks", "deadline_misses", "clock_jumps", "poses_out_of_reach")
        values |= {name: self._counts[name] for name in names}
        for name, found in (("inference_ms", self._inference_ms), ("latency_s", self._latency_s)):
            if found:
                values |= {f"{name}_p{q}": float(np.percentile(found, q)) for q in (50, 95, 99)}
        values |= {f"age_s {topic}": age for topic, age in streams.ages().items()}
        values |= {f"identical_frames {key}": count for key, (_, _, count) in self._pictures.items()}
        return level, message, values


def contract_file(name: str) -> Path:
    """The file of a contract: a path, or the name of one that comes with the package."""
    if Path(name).suffix in (".yaml", ".yml"):
        return Path(name)
    known = sorted(p.stem for p in CONTRACTS.glob("*.yaml"))
    if name not in known:
        raise unknown("contract", name, known)
    return CONTRACTS / f"{name}.yaml"


if __name__ == "__main__":
    sys.exit(run(PolicyNode))
