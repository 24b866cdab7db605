"""Models of a body on a course: gymnasium's robot, and boxes that are moved as mocap bodies.

Boxes of the world's own body cannot be moved: MuJoCo compiles a hierarchy of bounding boxes for it, and geoms that have left their place
are missed without a word. A mocap body can be moved at any time, its position is part of the state, and all environments share the model.
The sizes of the boxes are fixed, since growing one needs other bounds too.
"""

from __future__ import annotations

import functools
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import gymnasium
import mujoco

from rlx.envs.mujoco.course_settings import CourseSettings
from rlx.envs.mujoco.courses import Course

_ASSETS = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"
CAMERA = "course"
"""Name of the camera that follows the body."""


@functools.cache
def course_model(xml: str, kind: str, body: str) -> Any:
    """The MjModel of a body and the boxes of a kind of course, compiled once for each process.

    The boxes are the last bodies, so that the numbers of all others are those of the robot alone. They have the floor's friction, touch
    the robot and nothing else, and have no mass, so that they do not count in its centre of mass.
    """
    course = Course(kind, CourseSettings(body=body))
    root = ET.parse(_ASSETS / xml).getroot()
    world, floor, torso = (_found(root, path) for path in ("worldbody", ".//geom[@name='floor']", ".//body[@name='torso']"))
    floor.set("pos", f"0 0 {course.floor}")
    floor.set("size", "0 0 1")  # drawn without end
    like_floor = {name: value for name in ("friction", "condim") if (value := floor.get(name))}
    properties = {"type": "box", "contype": "0", "conaffinity": "1", "mass": "0", "rgba": "0.35 0.45 0.6 1", **like_floor}
    for number, half in enumerate(course.half):
        box = ET.SubElement(world, "body", name=f"box_{number}", mocap="true", pos="0 0 -10")
        ET.SubElement(box, "geom", properties, name=f"box_{number}", size=" ".join(map(str, half)))
    ET.SubElement(torso, "camera", name=CAMERA, mode="trackcom", pos="0 -6 2", xyaxes="1 0 0 0 0.316 0.949")
    return mujoco.MjModel.from_xml_string(ET.tostring(root, encoding="unicode"))


def _found(root: ET.Element, path: str) -> ET.Element:
    found = root.find(path)
    if found is None:
        raise RuntimeError(f"gymnasium's model of the robot has no {path}")
    return found
