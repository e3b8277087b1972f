"""robopolicy ros env: what a shell needs so that `ros2 launch robopolicy ...` finds this installation."""

import site
import sys
from pathlib import Path

from robopolicy.errors import RobopolicyError, unknown

VERBS = {"env": 'export lines for a shell: eval "$(robopolicy ros env)"'}
MARKER = Path("share/ament_index/resource_index/packages/robopolicy")


def run(arguments: list[str]) -> None:
    """Dispatches; there is one verb."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: robopolicy ros VERB\n")
        for verb, about in VERBS.items():
            print(f"  {verb:<5}{about}")
        return
    if arguments[0] not in VERBS:
        raise unknown("verb of 'robopolicy ros'", arguments[0], VERBS)
    if arguments[1:]:
        raise RobopolicyError(f"robopolicy ros env takes no arguments, found {arguments[1]!r}")
    print(environment_line(installation_prefix()))


def installation_prefix() -> Path:
    """Where the launch files of this installation are, as ROS 2 looks for them."""
    places = [Path(sys.prefix), Path(site.getuserbase())]
    for place in places:
        if (place / MARKER).is_file():
            return place
    raise RobopolicyError(
        f"no ROS 2 package robopolicy under {' or '.join(map(str, places))}: install robopolicy with pip into this "
        "environment, or build the folder launch with colcon"
    )


def environment_line(prefix: Path) -> str:
    """For `eval` in sh, bash or zsh; what is set already stays."""
    import shlex

    return f"export AMENT_PREFIX_PATH={shlex.quote(str(prefix))}${{AMENT_PREFIX_PATH:+:$AMENT_PREFIX_PATH}}"
