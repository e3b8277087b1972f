"""Drawing beside torch in one process."""

import subprocess
import sys

import pytest

DRAW = """
import sys
import mujoco
from robopolicy.errors import RobopolicyError
from robopolicy.sim.rendering import Quality, Renderer, backend
try:
    backend()
except RobopolicyError:
    sys.exit(77)
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='.1'/></worldbody></mujoco>")
Renderer(model, 64, 64, Quality(), {})
import torch._dynamo
"""


def test_torch_may_be_completed_after_drawing_began() -> None:
    """torch imports triton late, whose LLVM ends a process that has already drawn with Mesa's."""
    code = subprocess.run([sys.executable, "-c", DRAW], capture_output=True, check=False).returncode
    if code == 77:
        pytest.skip("neither libegl1 nor libosmesa6 is installed")
    assert code == 0
