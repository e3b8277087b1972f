"""The cube of robosuite's Lift, whose size differs between episodes: drawn, set without compiling, read from MJCF."""

import math
import re
import xml.etree.ElementTree as ElementTree
from typing import Any

import numpy as np

from robopolicy.errors import DataError

BODY, GEOM, VISUAL = "cube_main", "cube_g0", "cube_g0_vis"
SMALLEST, LARGEST = 0.020, 0.022
"""Half-edges between which robosuite draws each of three, m."""
MAX_MODEL_SIZE = 16 * 2**20


class LiftCube:
    """The cube of one Lift environment that is compiled once and reset without compiling."""

    def __init__(self, env: Any) -> None:
        scene = ElementTree.fromstring(env.model.get_xml())
        root = ElementTree.Element("mujoco")
        # The options of the scene that matter for mass and bounds.
        root.extend(e for name in ("compiler", "option", "size") if (e := scene.find(name)) is not None)
        cube = scene.find(f".//body[@name='{BODY}']")
        assert cube is not None
        for geom in cube.iter("geom"):
            geom.attrib.pop("material", None)
        ElementTree.SubElement(root, "worldbody").append(cube)
        self._alone, self._env = root, env

    def draw(self) -> None:
        """A new size, by the numbers that robosuite's Lift draws first from numpy's global generator."""
        self.set(np.array([np.random.uniform(SMALLEST, LARGEST) for _ in range(3)]))  # noqa: NPY002

    def set(self, size: np.ndarray) -> None:
        """Half-edges [3] in m, as if the scene had been compiled with them."""
        import mujoco

        cube = mujoco.MjModel.from_xml_string(_with_size(self._alone, size))
        model = self._env.sim.model._model
        body = model.body(BODY).id
        for name in (GEOM, VISUAL):
            ours, theirs = model.geom(name).id, cube.geom(name).id
            for field in ("geom_size", "geom_aabb", "geom_rbound"):
                getattr(model, field)[ours] = getattr(cube, field)[theirs]
        for field in ("body_mass", "body_inertia"):
            getattr(model, field)[body] = getattr(cube, field)[1]
        dofs, boxes = int(model.body_dofadr[body]), int(model.body_bvhadr[body])
        model.dof_length[dofs : dofs + 6] = cube.dof_length
        count = int(model.body_bvhnum[body])
        model.bvh_aabb[boxes : boxes + count] = cube.bvh_aabb[cube.body_bvhadr[1] :][:count]
        # What follows from all masses, computed with data of its own.
        mujoco.mj_setConst(model, mujoco.MjData(model))
        # Where the cube may stand on the table follows from its size.
        self._env.cube.size = size

    def write(self, xml: str) -> str:
        """The MJCF of the scene with the present size."""
        return _with_size(ElementTree.fromstring(xml), self._env.cube.size)


def _with_size(root: ElementTree.Element, size: np.ndarray) -> str:
    for name in (GEOM, VISUAL):
        geom = root.find(f".//geom[@name='{name}']")
        assert geom is not None
        geom.set("size", " ".join(str(float(v)) for v in size))
    return ElementTree.tostring(root, encoding="unicode")


def recorded_size(xml: str) -> np.ndarray:
    """Half-edges [3] in m from the MJCF that a recording keeps as `model_file`. Raises DataError for another scene."""
    # Only this one attribute is needed of a text that may name any file.
    found = re.search(rf'<geom\b[^<>]*\bname="{GEOM}"[^<>]*>', xml[:MAX_MODEL_SIZE])
    size = re.search(r'\bsize="([^"]*)"', found[0]) if found else None
    try:
        values = np.array([float(v) for v in size[1].split()]) if size else np.empty(0)
    except ValueError:
        values = np.empty(0)
    if values.shape != (3,) or not all(math.isfinite(v) and 1e-3 < v < 1 for v in values):
        raise DataError(f"model_file: expected the three half-edges of geom {GEOM!r}, found {size and size[1]!r}")
    return values
