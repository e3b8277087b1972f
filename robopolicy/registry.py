"""Names of tasks, experts and policies, resolved when they are asked for.

Other packages add theirs through the entry-point groups `robopolicy.tasks`, `robopolicy.experts`,
`robopolicy.policies` and `robopolicy.environments`; each entry is `name = "module:attribute"`.
"""

from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from robopolicy.errors import RobopolicyError, unknown

ROBOMIMIC = {"lift": "Lift", "can": "Can", "square": "Square", "transport": "Transport", "tool_hang": "ToolHang"}
TASKS = {
    "blocks": "robopolicy.sim.blocks:Blocks",
    "kitchen": "robopolicy.sim.kitchen:Kitchen",
    "pusht": "robopolicy.sim.pusht:PushTState",
    "pusht-goal": "robopolicy.sim.pusht_goal:PushTGoal",
    "pusht-keypoints": "robopolicy.sim.pusht:PushTKeypoints",
    "pusht-image": "robopolicy.sim.pusht:PushTImage",
    "pusht-state-image": "robopolicy.sim.pusht:PushTStateImage",
} | {
    f"robomimic-{task}{suffix}": f"robopolicy.sim.robomimic:{cls}{variant}"
    for task, cls in ROBOMIMIC.items()
    for suffix, variant in (("", ""), ("-abs", "Abs"), ("-image", "Image"), ("-image-abs", "ImageAbs"))
}
EXPERTS = {
    "blocks": {"scripted": "robopolicy.sim.blocks_player:BlocksPlayer"},
    "pusht": {"scripted": "robopolicy.sim.pusht_expert:PushTExpert"},
    "pusht-goal": {},  # the expert of the other variants knows the fixed goal only
} | {
    f"robomimic-{task}": {
        "scripted": "robopolicy.sim.robomimic_experts:ProficientExpert",
        "proficient": "robopolicy.sim.robomimic_experts:ProficientExpert",
        "mixed": "robopolicy.sim.robomimic_experts:MixedExpert",
    }
    for task in ("lift", "can", "square")
}
POLICIES = {
    "diffusion": "robopolicy.policies.diffusion:DiffusionPolicy",
    "flow": "robopolicy.policies.flow:FlowPolicy",
    "bc": "robopolicy.policies.bc:BCPolicy",
    "bc_rnn": "robopolicy.policies.bc_rnn:BCRNNPolicy",
    "carp": "robopolicy.policies.carp:CarpPolicy",
    "beso": "robopolicy.policies.beso:BESOPolicy",
    "composed": "robopolicy.policies.composed:ComposedPolicy",
    "actor": "robopolicy.rl.actor:ActorPolicy",
}
ENVIRONMENTS = {
    "scalar": "robopolicy.sim.plants:ScalarConfig",
    "pointmass": "robopolicy.sim.plants:PointMassConfig",
    "quadruped": "robopolicy.sim.quadruped.config:QuadrupedConfig",
}


def _load(target: str) -> Any:
    module, attribute = target.split(":")
    return getattr(import_module(module), attribute)


def _table(group: str, builtin: dict[str, str]) -> dict[str, str]:
    return {e.name: e.value for e in entry_points(group=f"robopolicy.{group}")} | builtin


def task_names() -> list[str]:
    return sorted(_table("tasks", TASKS))


def task_class(name: str) -> Any:
    """The Task subclass registered as `name`; calling it with no arguments makes an environment."""
    table = _table("tasks", TASKS)
    if name not in table:
        raise unknown("task", name, table)
    return _load(table[name])


def expert_class(task: str, expert: str) -> Any:
    """The scripted expert of a task. A variant of a task, named with a suffix, shares its experts or has its own."""
    words = task.split("-")
    bases = ["-".join(words[:n]) for n in range(len(words), 0, -1)]
    table = next((EXPERTS[b] for b in bases if b in EXPERTS), {}) | {
        e.name.split("/")[1]: e.value
        for e in entry_points(group="robopolicy.experts")
        if e.name.split("/")[0] in bases
    }
    if not table:
        raise RobopolicyError(f"task {task!r} has no scripted expert")
    if expert not in table:
        raise unknown(f"expert for task {task!r}:", expert, table)
    return _load(table[expert])


def policy_class(name: str) -> Any:
    """The Policy subclass registered as `name`; its `Config` attribute is the matching dataclass."""
    table = _table("policies", POLICIES)
    if name not in table:
        raise unknown("policy", name, table)
    return _load(table[name])


def environment_config(kind: str) -> Any:
    """The configuration class of a vectorised environment for reinforcement learning."""
    table = _table("environments", ENVIRONMENTS)
    if kind not in table:
        raise unknown("environment", kind, table)
    return _load(table[kind])
