"""What all nodes share: checked parameters, life cycle with refusals in words, clean exits, diagnostics.

A node is a frozen dataclass of parameters that derives from `NodeParameters`, a `RobotNode` that overrides
`configure`, `activate`, `deactivate` and `cleanup`, and `sys.exit(run(ThatNode))`. One thread runs everything.
"""

import ctypes
import os
import signal
import sys
import threading
import time
import traceback
import types
import typing
from collections.abc import Callable
from dataclasses import Field, dataclass, field, fields
from typing import Any, ClassVar, TypeVar

try:
    import rclpy
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "the nodes need rclpy: pip install 'robopolicy[ros2]', or source a ROS 2 installation"
    ) from error
from builtin_interfaces.msg import Time as Stamp
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.executors import Executor, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.time import Time

from robopolicy.errors import RobopolicyError, did_you_mean, one_line
from robopolicy.hardware.ros.ports import past_the_dead
from robopolicy.hardware.supervisor import PARENT

T = TypeVar("T")
SENSOR = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
"""State and images: the newest sample, from publishers of either reliability."""
COMMAND = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
"""Status and results: a late subscriber gets the last one. Both sides must ask for it."""
FROM_ROS = ("use_sim_time", "start_type_description_service", "qos_overrides.")
"""Parameters that rclpy itself declares."""
ARRAYS = {str: Parameter.Type.STRING_ARRAY, float: Parameter.Type.DOUBLE_ARRAY, int: Parameter.Type.INTEGER_ARRAY}
PR_SET_PDEATHSIG = 1


def option(
    default: T,
    description: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    runtime: bool = False,
) -> T:
    """A field of a parameter class; `runtime` ones may change after configuration, the others may not."""
    metadata = {"description": description, "low": low, "high": high, "choices": choices, "runtime": runtime}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class NodeParameters:
    """Parameters of every node. Fields are bool, int, float, str or tuples of the last three."""

    autostart: bool = option(True, "configure and activate without being asked to")
    die_with_parent: bool = option(True, "end when the process that started this one ends")
    time_scale: float = option(
        1.0, "seconds of the control clock per second; other than 1 only for simulated robots", low=0.01, high=1000.0
    )


class RobotNode(LifecycleNode):
    """A lifecycle node of one thread.

    Subclasses set `Parameters` and `NAME` and override `configure`, `activate`, `deactivate`, `cleanup` and `report`.
    A RobopolicyError from one of them refuses the transition with its message; anything else is a defect and ends in
    the state `unconfigured` after `cleanup`.
    """

    Parameters: ClassVar[type[NodeParameters]] = NodeParameters
    NAME: ClassVar[str] = "robot_node"

    def __init__(self) -> None:
        super().__init__(self.NAME, automatically_declare_parameters_from_overrides=True)
        self.state = "unconfigured"
        self.refused = ""
        """Why the latest transition was refused."""
        self.parameters: Any = self._declared()
        _check_time(self.parameters, self.get_parameter("use_sim_time").value)
        self.add_on_set_parameters_callback(self._on_set)
        self.add_post_set_parameters_callback(self._after_set)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # On the steady clock: a simulation that stands still must not silence them.
        self.create_timer(1.0, self._diagnose, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self._before = {id(entity) for _, entity in self._entities()}
        self._clocks_before: tuple[int, float] | None = None

    # What a node does

    def configure(self) -> None:
        """Loads and checks everything; RobopolicyError showing both sides where something does not fit."""

    def activate(self) -> None:
        """Starts work."""

    def deactivate(self) -> None:
        """Ends work."""

    def cleanup(self) -> None:
        """Gives back what `configure` made; also called after a failure in the middle of it, and before the end.

        Publishers, subscriptions, services and timers that were made since are destroyed without it.
        """

    def report(self) -> tuple[bytes, str, dict[str, Any]]:
        """Level of diagnostic_msgs/DiagnosticStatus, one line, and values: published once per second."""
        level = DiagnosticStatus.OK if self.state == "active" else DiagnosticStatus.WARN
        return level, self.state, {}

    def spin(self, executor: Executor, stop: threading.Event) -> None:
        """Runs callbacks until `stop` is set."""
        while not stop.is_set():
            executor.spin_once(timeout_sec=0.05)

    # Time

    def steady(self) -> float:
        """Seconds of the clock of watchdogs and control periods: steady, times `time_scale`."""
        return time.monotonic() * self.parameters.time_scale

    def clock_jump(self, limit_s: float) -> float | None:
        """Seconds by which the ROS clock jumped since the last call: back, or by more than `limit_s` (times
        `time_scale`) beyond the steady one. None for one that stands still, as that of a simulation on a busy machine.
        """
        before, self._clocks_before = self._clocks_before, (self.get_clock().now().nanoseconds, self.steady())
        if before is None or before[0] == 0:
            return None
        passed = (self._clocks_before[0] - before[0]) * 1e-9
        ahead = passed - (self._clocks_before[1] - before[1])
        return ahead if passed < 0 or ahead > limit_s * max(1.0, self.parameters.time_scale) else None

    def age(self, stamp: Stamp) -> float:
        """Seconds from `stamp` to now on the ROS clock, negative for a stamp from the future."""
        now: int = self.get_clock().now().nanoseconds
        return (now - (stamp.sec * 10**9 + stamp.nanosec)) * 1e-9

    def stamp(self, age: float = 0.0) -> Stamp:
        """The ROS time of `age` seconds ago as a message."""
        now: int = self.get_clock().now().nanoseconds
        return Time(nanoseconds=max(now - round(age * 1e9), 0)).to_msg()

    # Parameters

    def _declared(self) -> Any:
        """Declares the fields of `Parameters` with the values given at start; unknown ones are refused."""
        given = {k: p.value for k, p in self.get_parameters_by_prefix("").items() if not k.startswith(FROM_ROS)}
        hints = typing.get_type_hints(self.Parameters)
        known = {f.name: f for f in fields(self.Parameters)}
        for name in given:
            if name not in known:
                raise RobopolicyError(f"unknown parameter {name!r}.{did_you_mean(name, known)}")
            self.undeclare_parameter(name)
        values = {n: _checked(f, hints[n], given.get(n, f.default)) for n, f in known.items()}
        parameters = self.Parameters(**values)
        for name, one in known.items():
            self.declare_parameter(name, _outside(hints[name], values[name]), _descriptor(one), ignore_override=True)
        return parameters

    def _changed(self, changes: list[Parameter[Any]]) -> Any:
        hints = typing.get_type_hints(self.Parameters)
        known = {f.name: f for f in fields(self.Parameters)}
        values = {n: getattr(self.parameters, n) for n in known}
        for change in changes:
            if change.name in known:
                values[change.name] = _checked(known[change.name], hints[change.name], change.value)
        return self.Parameters(**values)

    def _on_set(self, changes: list[Parameter[Any]]) -> SetParametersResult:
        runtime = {f.name for f in fields(self.Parameters) if f.metadata["runtime"]}
        for change in changes:
            mine = change.name in {f.name for f in fields(self.Parameters)}
            if mine and change.name not in runtime and self.state != "unconfigured":
                reason = f"{change.name} is read when the node is configured, which is {self.state}"
                return SetParametersResult(successful=False, reason=reason)
        sim_time = next(
            (c.value for c in changes if c.name == "use_sim_time"), self.get_parameter("use_sim_time").value
        )
        try:
            _check_time(self._changed(changes), sim_time)
        except RobopolicyError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _after_set(self, changes: list[Parameter[Any]]) -> None:
        self.parameters = self._changed(changes)

    # Life cycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._before = {id(entity) for _, entity in self._entities()}
        done = self._transition(self.configure, "inactive")
        if done != TransitionCallbackReturn.SUCCESS:
            self._clean()
        return done

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition(self.activate, "active")

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition(self.deactivate, "inactive")

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition(self._clean, "unconfigured")

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        if self.state == "active" and self.on_deactivate(state) != TransitionCallbackReturn.SUCCESS:
            # Leads through `on_error` to `cleanup`.
            return TransitionCallbackReturn.ERROR
        return self._transition(self._clean, "finalized")

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition(self._clean, "unconfigured")

    def _clean(self) -> None:
        self.cleanup()
        for destroy, entity in self._entities():
            if id(entity) not in self._before:
                destroy(entity)

    def _entities(self) -> list[tuple[Callable[[Any], Any], Any]]:
        """What this node has made of ROS, each with what destroys it."""
        return [
            *((self.destroy_timer, e) for e in self.timers),
            *((self.destroy_service, e) for e in self.services),
            *((self.destroy_client, e) for e in self.clients),
            *((self.destroy_subscription, e) for e in self.subscriptions),
            *((self.destroy_publisher, e) for e in self.publishers),
        ]

    def _transition(self, work: Callable[[], None], state: str) -> TransitionCallbackReturn:
        try:
            work()
        except RobopolicyError as error:
            self.refused = str(error)
            self.get_logger().error(self.refused)
            return TransitionCallbackReturn.FAILURE
        except Exception as error:
            self.refused = one_line(error)
            self.get_logger().fatal(f"{state} not reached: {traceback.format_exc()}")
            return TransitionCallbackReturn.ERROR
        self.state, self.refused = state, ""
        return TransitionCallbackReturn.SUCCESS

    def start(self) -> bool:
        """Configures and activates; whether both succeeded."""
        return all(
            step() == TransitionCallbackReturn.SUCCESS for step in (self.trigger_configure, self.trigger_activate)
        )

    # Diagnostics

    def status(self, level: bytes, message: str, values: dict[str, Any]) -> DiagnosticStatus:
        """A status message under this node's full name; numbers with six digits, lists with commas."""
        pairs = [KeyValue(key=k, value=_text(v)) for k, v in values.items()]
        name = self.get_fully_qualified_name()
        return DiagnosticStatus(level=level, name=name, hardware_id=name, message=message, values=pairs)

    def _diagnose(self) -> None:
        self._diagnostics.publish(_array(self.stamp(), self.status(*self.report())))


def _array(stamp: Stamp, status: DiagnosticStatus) -> DiagnosticArray:
    array = DiagnosticArray(status=[status])
    array.header.stamp = stamp
    return array


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(_text(v) for v in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _checked(one: "Field[Any]", hint: Any, value: Any) -> Any:
    """The value of a parameter in its annotated type; whole numbers are taken for real ones."""
    items = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        if isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
            raise RobopolicyError(f"parameter {one.name}: expected a list, found {value!r}")
        return tuple(_checked(one, items[0], v) for v in value)
    if isinstance(hint, types.UnionType) or hint not in (bool, int, float, str):
        raise TypeError(f"{one.name}: parameters of type {hint} are not supported")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise RobopolicyError(f"parameter {one.name}: expected {hint.__name__}, found {value!r}")
    low, high, choices = (one.metadata[k] for k in ("low", "high", "choices"))
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        raise RobopolicyError(f"parameter {one.name}: expected {low} to {high}, found {value!r}")
    if choices and value not in choices:
        raise RobopolicyError(f"parameter {one.name}: unknown value {value!r}.{did_you_mean(str(value), choices)}")
    return value


def _check_time(parameters: NodeParameters, sim_time: Any) -> None:
    if parameters.time_scale != 1 and sim_time is not True:
        raise RobopolicyError(f"time_scale is {parameters.time_scale}: only with use_sim_time:=true")


def _outside(hint: Any, value: Any) -> Any:
    """As ROS wants it: a list, and for an empty one its type, which ROS cannot infer."""
    if isinstance(value, tuple):
        return list(value) or ARRAYS[typing.get_args(hint)[0]]
    return value


def _descriptor(one: "Field[Any]") -> ParameterDescriptor:
    low, high, choices = (one.metadata[k] for k in ("low", "high", "choices"))
    text = one.metadata["description"] + (f"; one of {', '.join(choices)}" if choices else "")
    descriptor = ParameterDescriptor(description=text)
    # A range of ROS has two ends; where one is open the check here is the only one.
    if low is not None and high is not None:
        if isinstance(one.default, int):
            descriptor.integer_range = [IntegerRange(from_value=int(low), to_value=int(high))]
        elif isinstance(one.default, float):
            descriptor.floating_point_range = [FloatingPointRange(from_value=float(low), to_value=float(high))]
    return descriptor


def end_with_parent() -> None:
    """Asks the kernel for SIGTERM when the thread that started this process ends, as `ros2 launch` leaves orphans.

    One that has ended before is seen by the variable `PARENT`; without it only from now on.
    """
    parent = os.environ.get(PARENT, str(os.getppid()))
    refused = ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if refused or str(os.getppid()) != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def run(node_class: type[RobotNode], arguments: list[str] | None = None) -> int:
    """The main function of a node: runs it until SIGINT or SIGTERM.

    Exit code 0 after a clean end, 1 when it could not be configured (one line on stderr says why) or failed later.
    """
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        with past_the_dead():
            # The handlers of rclpy end one process in six with an error when they race with a callback.
            rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
            node = node_class()
    except (RobopolicyError, RuntimeError) as error:
        print(f"{node_class.NAME}: {one_line(error)}", file=sys.stderr)
        rclpy.try_shutdown()
        return 1
    code = 0
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        if node.parameters.die_with_parent:
            end_with_parent()
        if not stop.is_set() and node.parameters.autostart and not node.start():
            code = 1
        else:
            node.spin(executor, stop)
    except Exception:
        node.get_logger().fatal(traceback.format_exc())
        code = 1
    if node.state != "finalized" and node.trigger_shutdown() != TransitionCallbackReturn.SUCCESS:
        code = 1
    executor.shutdown()
    node.destroy_node()
    rclpy.try_shutdown()
    for number in (signal.SIGINT, signal.SIGTERM):
        # Ctrl-C reaches a node from the terminal and once more from `ros2 launch`. While the interpreter closes,
        # Python has given up its handlers, and the second one would be an abnormal end.
        signal.signal(number, signal.SIG_IGN)
    return code
