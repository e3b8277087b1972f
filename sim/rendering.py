"""Pictures of MuJoCo models without a display: EGL where it works, else OSMesa.

MUJOCO_GL=egl or MUJOCO_GL=osmesa asks for one of them. MuJoCo's shadow map of 4096 pixels a side costs three times the
frames of one of 1024 whatever the size of the picture, so it is set before the first frame, together with the samples
per pixel; both change pixels and therefore belong to the fingerprint of what is rendered.
"""

import importlib.util
import os
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from robopolicy.errors import RobopolicyError, one_line

PACKAGES = {"egl": "libegl1", "osmesa": "libosmesa6"}
"""Debian packages of the libraries."""


@dataclass(frozen=True)
class Quality:
    """What decides pixels besides the model and the driver."""

    shadow_size: int = 1024
    """Pixels a side of the shadow map; MuJoCo's default is 4096."""
    samples: int = 0
    """Samples per pixel against jagged edges; MuJoCo's default is 4."""

    def __str__(self) -> str:
        return f"shadow map {self.shadow_size}, {self.samples} samples"


def asked_for() -> str:
    """The value of MUJOCO_GL in lower case, empty when it is not set."""
    return os.environ.get("MUJOCO_GL", "").lower()


def backend() -> str:
    """The name of the library that draws in this process: egl or osmesa. Raises RobopolicyError when none works."""
    return _context()[0]


class Renderer:
    """Draws the cameras of one compiled model; `close` frees its memory."""

    def __init__(self, model: Any, width: int, height: int, quality: Quality, groups: dict[int, bool]) -> None:
        """`groups` says which geometry groups are visible, where it differs from MuJoCo's choice."""
        import mujoco

        _, context = _context()
        context.make_current()
        # These are read when the context below is built, and cannot be changed afterwards.
        model.vis.quality.shadowsize, model.vis.quality.offsamples = quality.shadow_size, quality.samples
        model.vis.global_.offwidth, model.vis.global_.offheight = width, height
        self._gl, self._model = context, model
        self._pixels = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        self._scene = mujoco.MjvScene(model, maxgeom=10_000)
        self._options, self._camera = mujoco.MjvOption(), mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        for group, visible in groups.items():
            self._options.geomgroup[group] = visible
        self._viewport = mujoco.MjrRect(0, 0, width, height)

    def __call__(self, data: Any, camera: str) -> np.ndarray:
        """The picture [height, width, 3] uint8 RGB of the camera of this name. Raises RobopolicyError for another."""
        import mujoco

        number = mujoco.mj_name2id(self._model, mujoco.mjtObj.mjOBJ_CAMERA, camera)
        if number < 0:
            names = ", ".join(self._model.camera(i).name for i in range(self._model.ncam))
            raise RobopolicyError(f"no camera {camera!r} in the scene; there are {names}")
        self._gl.make_current()
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._pixels)
        self._camera.fixedcamid = number
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(self._model, data, self._options, None, self._camera, everything, self._scene)
        mujoco.mjr_render(self._viewport, self._scene, self._pixels)
        picture = np.empty((self._viewport.height, self._viewport.width, 3), np.uint8)
        mujoco.mjr_readPixels(picture, None, self._viewport, self._pixels)
        # OpenGL's first row is the lowest.
        return picture[::-1].copy()

    def close(self) -> None:
        self._gl.make_current()
        self._pixels.free()


_current: tuple[str, Any] | None = None
"""The one OpenGL context of this process: all renderers share it."""


def _context() -> tuple[str, Any]:
    global _current
    if _current is None:
        _current = _new_context()
    return _current


def _new_context() -> tuple[str, Any]:
    asked = asked_for()
    names = [asked] if asked in PACKAGES else [] if asked in ("disable", "disabled", "off", "0") else list(PACKAGES)
    reasons = []
    for name in names:
        try:
            return name, _open(name)
        except Exception as error:  # Missing libraries and devices surface as errors of any type.
            reasons.append(f"{name}: {one_line(error)}")
            _forget_platform()
    if not names:
        raise RobopolicyError(f"pictures need OpenGL, which MUJOCO_GL={asked} switches off; unset it or set it to egl")
    packages = " or ".join(f"{PACKAGES[name]} for MUJOCO_GL={name}" for name in names)
    raise RobopolicyError(
        f"cannot draw without a display ({'; '.join(reasons)}); install the Debian package {packages}"
    )


def _open(name: str) -> Any:
    # Mesa's software renderer and triton, which parts of torch import late, both bring an LLVM. Loaded after Mesa's,
    # triton's ends the process.
    if importlib.util.find_spec("triton") is not None:
        importlib.import_module("triton")
    if name == "egl":
        from mujoco.egl import GLContext
    else:
        from mujoco.osmesa import GLContext
    # OSMesa draws into a buffer of this size; MuJoCo draws into its own.
    context = GLContext(64, 64)
    context.make_current()
    return context


def _forget_platform() -> None:
    """Lets PyOpenGL, which decides on a library when it is imported, decide anew."""
    os.environ.pop("PYOPENGL_PLATFORM", None)
    for module in [
        m for m in sys.modules if m.split(".")[0] == "OpenGL" or m.startswith(("mujoco.egl", "mujoco.osm"))
    ]:
        del sys.modules[module]
