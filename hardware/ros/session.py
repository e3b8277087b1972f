"""A graph of nodes seen from outside: are they active, what does the gate say, episodes of a simulated robot."""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions
from std_srvs.srv import SetBool, Trigger

from robopolicy.errors import RobopolicyError
from robopolicy.hardware.ros.node import LATCHED

PATIENCE_S = 60.0
"""Seconds until a service or a state is missed."""
COMMON = ("episode_seed", "score", "success", "steps")
"""Values of every result."""
FINISH_S = 3.0
"""Seconds that a robot gets to come to rest before its processes are stopped."""


@dataclass(frozen=True)
class EpisodeOutcome:
    """What a simulated robot says at the end of an episode."""

    seed: int
    score: float
    success: bool
    steps: int
    details: dict[str, float] = field(default_factory=dict)
    """What else the robot measured, by name and unit."""
    faults: tuple[str, ...] = field(default=())
    """What the gate latched meanwhile."""


class Session:
    """Talks to the nodes of one robot; `check` is called all the time and raises when one of them is gone."""

    def __init__(self, namespace: str, check: Callable[[], None], record: bool = False) -> None:
        self._check, self._record = check, record
        self._context = rclpy.Context()
        rclpy.init(context=self._context, signal_handler_options=SignalHandlerOptions.NO)
        name = f"session_{os.getpid()}"
        self._node = rclpy.create_node(name, namespace=namespace or None, context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._clients: dict[str, Any] = {}
        self._result: DiagnosticStatus | None = None
        self.gate: DiagnosticStatus | None = None
        """The newest status of the gate."""
        self.troubles: dict[str, str] = {}
        """Nodes whose diagnostics report an error, and which."""
        self._node.create_subscription(DiagnosticStatus, "gate/status", self._on_gate, LATCHED)
        self._node.create_subscription(DiagnosticStatus, "sim/result", self._on_result, LATCHED)
        self._node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown()
        self._node.destroy_node()
        self._context.try_shutdown()

    def spin(self, seconds: float) -> None:
        """Lets messages in for so long, or until the first one."""
        self._check()
        self._executor.spin_once(timeout_sec=seconds)

    def wait_active(self, nodes: Iterable[str], patience: float = PATIENCE_S) -> None:
        """Until all `nodes` are active; a checkpoint may take its time to load."""
        for node in nodes:
            deadline = time.monotonic() + patience
            while self._call(GetState, f"{node}/get_state", patience).current_state.id != State.PRIMARY_STATE_ACTIVE:
                if time.monotonic() > deadline:
                    raise RobopolicyError(f"{node} did not become active in {patience:g} s")
                self._pause(0.1)

    def episodes(self, seeds: Iterable[int], patience: float) -> Iterator[EpisodeOutcome]:
        """Runs one episode per seed of a simulated robot, each in at most `patience` seconds."""
        for seed in seeds:
            yield self._episode(seed, patience)

    def _episode(self, seed: int, patience: float) -> EpisodeOutcome:
        # Nothing moves and nothing is remembered between two episodes: the robot of the next one is somewhere else.
        # The gate first: one that still follows would miss the policy.
        self._enable(False)
        self._change("policy_node", Transition.TRANSITION_DEACTIVATE)
        self._set("sim_node", "episode_seed", seed)
        self._trigger("sim/reset")
        self._trigger("gate/clear")
        self._result, faults = None, dict[str, None]()
        if self._record:
            self._trigger("recorder/start")
        # The noise of the policy is that of the episode's seed, as in an evaluation.
        self._set("policy_node", "seed", seed)
        self._enable(True)
        self._change("policy_node", Transition.TRANSITION_ACTIVATE)
        deadline = time.monotonic() + patience
        while self._result is None or int(_values(self._result)["episode_seed"]) != seed:
            if time.monotonic() > deadline:
                raise RobopolicyError(f"episode {seed} did not end in {patience:g} s: {self._state()}")
            if self.troubles:
                raise RobopolicyError(f"episode {seed}: {self._troubles()}")
            faults.update(dict.fromkeys(self.faults))
            self.spin(0.1)
        if self._record:
            self._trigger("recorder/stop")
        values = _values(self._result)
        score, success, steps = float(values["score"]), values["success"] == "true", int(values["steps"])
        details = {name: float(value) for name, value in values.items() if name not in COMMON}
        return EpisodeOutcome(seed, score, success, steps, details, tuple(faults))

    @property
    def faults(self) -> list[str]:
        """Names of the faults that the gate has latched."""
        names = _values(self.gate).get("faults", "") if self.gate else ""
        return [name.strip() for name in names.split(",") if name.strip()]

    def _state(self) -> str:
        return f"gate: {self.gate.message}" if self.gate else "no word from the gate"

    def _on_gate(self, message: DiagnosticStatus) -> None:
        self.gate = message

    def _on_result(self, message: DiagnosticStatus) -> None:
        self._result = message

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        inside = self._node.get_namespace().rstrip("/") + "/"
        for status in message.status:
            # Those of the gate come by its own topic, and faults there are no end of the session.
            if status.name.startswith(inside) and not status.name.endswith("/gate_node"):
                if status.level == DiagnosticStatus.ERROR:
                    self.troubles[status.name] = status.message
                else:
                    self.troubles.pop(status.name, None)

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.spin(left)

    def finish(self) -> None:
        """Brings the robot to rest before anything ends, so that the end of the policy is no fault of the gate."""
        # Whatever goes wrong here, the processes are about to be stopped anyway.
        with contextlib.suppress(RobopolicyError):
            self._enable(False, FINISH_S)

    def _enable(self, on: bool, patience: float = PATIENCE_S) -> None:
        """The gate starts to send only when it has fresh joint states, and stops only at rest: waits until it has."""
        answer = self._call(SetBool, "gate/enable", patience, data=on)
        if not answer.success:
            raise RobopolicyError(f"gate/enable {str(on).lower()}: {answer.message}")
        deadline = time.monotonic() + patience
        while self.gate is None or _values(self.gate).get("active") != str(on).lower():
            if time.monotonic() > deadline:
                raise RobopolicyError(f"gate/enable {str(on).lower()} has no effect: {self._state()}")
            self.spin(0.05)

    def _change(self, node: str, transition: int) -> None:
        """A transition of a node's life cycle."""
        request = Transition(id=transition)
        if not self._call(ChangeState, f"{node}/change_state", transition=request).success:
            raise RobopolicyError(f"{node} did not change its state: {self._troubles()}")

    def _troubles(self) -> str:
        return "; ".join(f"{node}: {trouble}" for node, trouble in self.troubles.items()) or "no error reported"

    def _trigger(self, service: str) -> None:
        answer = self._call(Trigger, service)
        if not answer.success:
            raise RobopolicyError(f"{service}: {answer.message}")

    def _set(self, node: str, name: str, value: int) -> None:
        parameter = Parameter(name=name)
        parameter.value = ParameterValue(type=ParameterType.PARAMETER_INTEGER, integer_value=value)
        (result,) = self._call(SetParameters, f"{node}/set_parameters", parameters=[parameter]).results
        if not result.successful:
            raise RobopolicyError(f"{node}: parameter {name}: {result.reason}")

    def _call(self, kind: Any, service: str, patience: float = PATIENCE_S, **request: Any) -> Any:
        """The response of a service."""
        client = self._clients.get(service)
        if client is None:
            client = self._clients[service] = self._node.create_client(kind, service)
        deadline = time.monotonic() + patience
        while not client.service_is_ready():
            if time.monotonic() > deadline:
                raise RobopolicyError(f"service {service} is not there after {patience:g} s")
            self.spin(0.05)
        future = client.call_async(kind.Request(**request))
        while not future.done():
            if time.monotonic() > deadline:
                raise RobopolicyError(f"service {service} did not answer in {patience:g} s")
            self.spin(0.05)
        return future.result()


def _values(status: DiagnosticStatus) -> dict[str, str]:
    return {pair.key: pair.value for pair in status.values}
