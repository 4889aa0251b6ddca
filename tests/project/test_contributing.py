"""CONTRIBUTING.md says of the rooms what holds."""

import re
from pathlib import Path

from tests.project.test_layering import MAY_IMPORT

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|$", re.MULTILINE)


def test_its_table_of_rooms_is_the_one_that_the_code_is_held_to():
    page = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    shown = {room: set() if rooms == "nothing of ours" else set(rooms.split(", ")) for room, rooms in ROW.findall(page)}
    assert shown == {room: set(rooms) for room, rooms in MAY_IMPORT.items()}
