"""What a scan's file leaves open: whose positions it holds, and how far from the focus the sample is.

The frames alone cannot tell: with all positions negated, the object turned by 180 degrees and conjugated,
and a probe turned and conjugated likewise, give the same frames. The probe's curvature then changes its
sign, and with it the distance from the focus. So the site's settings say both, and each checks the other.

>>> Defocus.parse("15e-06@700").at(1400.0)
3e-05
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from reconstruction.arrays import Complex
from reconstruction.geometry import (
    Magnification,
    far_field,
    far_field_pixel,
    focus_to_sample,
    inverse_far_field,
    propagate,
)
from reconstruction.scan import Scan

POSITIONS_VARIABLE = "COSMIC_POSITIONS"  # probe (or unset), sample
DEFOCUS_VARIABLE = "COSMIC_DEFOCUS"  # METERS@EV; unset: `COSMIC`
Positions = Literal["probe", "sample"]


@dataclass(frozen=True, kw_only=True)
class Defocus:
    """Distance from the focus to the sample; a zone plate's focal length, and so this, follows the energy.

    :param distance: meters, at `energy_ev`; positive when the sample is behind the focus.
    """

    distance: float
    energy_ev: float

    def at(self, energy_ev: float) -> float:
        """The distance at another energy, meters."""
        return self.distance * energy_ev / self.energy_ev

    @classmethod
    def parse(cls, text: str) -> Defocus:
        """From `METERS@EV`.

        :raises ValueError: the text is none.
        """
        distance, _, energy = text.partition("@")
        try:
            read = cls(distance=float(distance), energy_ev=float(energy))
        except ValueError:
            read = cls(distance=np.nan, energy_ev=np.nan)
        if not (abs(read.distance) <= 0.01 and 1 < read.energy_ev < 1e6):
            raise ValueError(
                f"{text!r} is no distance at an energy; it takes meters and electronvolts such as 15e-6@700"
            )
        return read


COSMIC = Defocus(distance=15e-6, energy_ev=700.0)


def expected_defocus() -> Defocus:
    """The site's, from the environment.

    :raises ValueError: naming the variable.
    """
    text = os.environ.get(DEFOCUS_VARIABLE, "").strip()
    try:
        return Defocus.parse(text) if text else COSMIC
    except ValueError as error:
        raise ValueError(f"{DEFOCUS_VARIABLE}: {error}.") from error


def positions_in_file() -> Positions:
    """Whose positions the files hold, from the environment; COSMIC's hold the probe's.

    :raises ValueError: naming the variable.
    """
    text = os.environ.get(POSITIONS_VARIABLE, "").strip().lower()
    if text in ("", "probe"):
        return "probe"
    if text == "sample":
        return "sample"
    raise ValueError(f"{POSITIONS_VARIABLE} is {text!r}; it takes probe or sample.")


def sample_moves(scan: Scan, positions: Positions) -> Scan:
    """The scan with the translations of the sample, as CXI has them, from those that its file holds."""
    return replace(scan, translations=-scan.translations) if positions == "probe" else scan


def mirrored(probe: Complex) -> Complex:
    """Conjugated and turned by 180 degrees: the probe that fits the negated positions."""
    turned: Complex = inverse_far_field(far_field(probe).conj())
    return turned


def sign_warning(
    scan: Scan, probe: Complex, distance: float, measured: Magnification, positions: Positions
) -> tuple[str, ...]:
    """A warning when the sample is on the other side of the focus than `distance` says.

    Asked are the probe that was found, and the movement of the sample's shadow over the frames.

    :param probe: (rows, columns).
    :param distance: meters, given by a person or by the site; 0 says nothing.
    """
    side = _side_of_focus(scan, probe, abs(distance))
    how = "the illumination that was found"
    if side * distance >= 0 and measured.reliable:
        side = float(np.sign(focus_to_sample(scan, measured.value)))
        how = f"the movement of the frames' shadows (correlation {measured.correlation:.2f})"
    if side * distance >= 0:
        return ()
    where = "before" if distance > 0 else "behind"
    other = "sample" if positions == "probe" else "probe"
    return (
        f"By {how} the sample is {where} the focus; a distance of {distance * 1e6:.3g} um says the contrary. "
        f"Either the positions in the file are the {other}'s, and the picture is turned by 180 degrees and "
        f"conjugated (then set positions to {other}), or the distance has the wrong sign.",
    )


def _side_of_focus(scan: Scan, probe: Complex, distance: float) -> float:
    """1 behind the focus, -1 before it, 0 where a probe does not show it."""
    focus = inverse_far_field(np.abs(far_field(probe)).astype(np.complex64))
    pixel = far_field_pixel(scan)
    before, behind = (
        # The maximum over all shifts: a probe need not be centered.
        np.abs(np.fft.ifft2(np.fft.fft2(probe) * np.fft.fft2(ideal).conj())).max()
        for ideal in (
            propagate(focus, pixel=pixel, wavelength=scan.wavelength, distance=sign * distance)
            for sign in (-1, 1)
        )
    )
    return 0.0 if abs(behind - before) < 0.05 * max(behind, before) else float(np.sign(behind - before))
