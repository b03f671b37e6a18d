import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from scenes import TURN, Pictures, png, scene, seen_again


@pytest.fixture
def pictures():
    """Three scenes asked for, each seen twice in the gallery and one of them broken, besides two others."""
    found = {f"q{i}": png(scene(i)) for i in range(3)}
    found |= {f"a{i}": png(seen_again(scene(i))) for i in range(3)}
    found |= {f"b{i}": png(seen_again(scene(i), TURN @ TURN)) for i in range(3)}
    found |= {"x0": png(scene(20)), "x1": png(scene(21)), "broken": b"no picture"}
    return Pictures(found)
