"""The report's colours: text stands out in light and dark, and no arm's colour is another's to a colour-blind reader."""

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

import rlhf_bench.report
from rlhf_bench.core.plot_style import PALETTE
from rlhf_bench.report.plots.style import MARKERS

STYLE = (Path(rlhf_bench.report.__file__).parent / "report.html.j2").read_text("utf-8")
LIGHT, DARK = (dict(re.findall(r"--(\w+): (#\w{6})", found)) for found in re.findall(r":root \{([^}]*)\}", STYLE))
LIMITED = {  # Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB
    "none": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear(colour):
    """sRGB as #rrggbb -> linear red, green and blue."""
    value = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    """The contrast ratio of WCAG 2."""
    bright = sorted((linear(colour) @ (0.2126, 0.7152, 0.0722) for colour in (one, other)), reverse=True)
    return (bright[0] + 0.05) / (bright[1] + 0.05)


def lab(rgb):
    """CIE L*a*b* under D65 of linear RGB."""
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ rgb.clip(0, 1)
    x, y, z = (np.cbrt(v) if v > 0.008856 else 7.787 * v + 16 / 116 for v in xyz / (0.9505, 1.0, 1.089))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_the_ratio_is_that_of_the_standard():
    assert contrast("#000000", "#ffffff") == pytest.approx(21) and contrast("#777777", "#ffffff") == pytest.approx(
        4.48, abs=0.01
    )


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_stands_out_from_every_ground(scheme):
    for ink in ("ink", "soft"):
        for ground in ("paper", "panel"):
            assert contrast(scheme[ink], scheme[ground]) >= 4.5


@pytest.mark.parametrize("sight", LIMITED)
def test_no_two_arms_look_alike(sight):
    seen = {colour: lab(np.array(LIMITED[sight]) @ linear(colour)) for colour in PALETTE}
    apart = {pair: float(np.linalg.norm(seen[pair[0]] - seen[pair[1]])) for pair in combinations(PALETTE, 2)}
    assert min(apart.values()) > 10, apart
    assert len(set(MARKERS)) == len(MARKERS) > len(PALETTE)  # and a marker each, for whom colours say nothing
