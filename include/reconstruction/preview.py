"""The preview, amplitude and phase of an object side by side, and the thumbnail: small PNGs."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from reconstruction.arrays import Bool, Complex, Real
from reconstruction.frc import mean_gradient, ramp

MAX_BYTES = 290_000
MAX_SIDE = 480  # of a panel, pixels
THUMBNAIL_BYTES = 15_000
THUMBNAIL_SIDE = 160
MARGIN, HEAD, FOOT = 12, 30, 34

Panel = tuple[Image.Image, float, float]  # picture, and the values that are black and white


def flattened(obj: Complex, well_lit: Bool) -> Complex:
    """The object without the ramp of its phase, which the probe can undo, and with a mean phase of zero.

    :param obj: complex, (rows, columns).
    :param well_lit: like obj, the part that counts.
    """
    flat = obj * ramp(obj.shape, -mean_gradient(obj * well_lit))
    turned: Complex = flat * np.exp(-1j * np.angle(flat[well_lit].sum()))
    return turned


def render(flat: Complex, well_lit: Bool, pixel: Real, title: str) -> bytes:
    """PNG of at most `MAX_BYTES`.

    :param flat: complex, (rows, columns), what is to be seen of the object, `flattened`.
    :param well_lit: like flat, the part that sets the range of greys; noise at the rim would wash it out.
    :param pixel: meters, (rows, columns).
    """
    side = MAX_SIDE
    while True:
        panels = [_panel(values, well_lit, pixel, side) for values in (np.abs(flat), np.angle(flat))]
        image = _page(panels, meters=float(flat.shape[1] * pixel[1]), title=title)
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        if buffer.tell() <= MAX_BYTES or side <= 64:
            return buffer.getvalue()
        side = side * 3 // 4


def thumbnail(flat: Complex, well_lit: Bool, pixel: Real) -> bytes:
    """PNG of the amplitude, at most `THUMBNAIL_SIDE` wide and high and smaller than `THUMBNAIL_BYTES`."""
    side = THUMBNAIL_SIDE
    while True:
        image, _, _ = _panel(np.abs(flat), well_lit, pixel, side)
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        if buffer.tell() < THUMBNAIL_BYTES or side <= 32:
            return buffer.getvalue()
        side = side * 3 // 4


def _page(panels: list[Panel], *, meters: float, title: str) -> Image.Image:
    """The two panels with their names, greys and scale; `meters` is the width of one."""
    width, height = panels[0][0].size
    page = Image.new("L", (2 * width + 3 * MARGIN, height + HEAD + FOOT), 255)
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(size=13)
    draw.text((MARGIN, 7), title, fill=0, font=font)
    for index, (name, unit) in enumerate((("amplitude", ""), ("phase", " rad"))):
        panel, low, high = panels[index]
        left = MARGIN + index * (width + MARGIN)
        page.paste(panel, (left, HEAD))
        draw.text((left, HEAD + height + 8), f"{name}, {low:.2f} to {high:.2f}{unit}", fill=0, font=font)
    _scale_bar(draw, font, right=2 * width + 2 * MARGIN, top=HEAD + height, meters=meters / width)
    return page


def _panel(values: Real, well_lit: Bool, pixel: Real, side: int) -> Panel:
    low, high = (float(v) for v in np.percentile(values[well_lit], (0.5, 99.5)))
    gray = np.clip((values - low) / max(high - low, 1e-12), 0.0, 1.0) * 255
    height, width = np.array(values.shape) * pixel
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = Image.fromarray(gray.astype(np.uint8))
    return image.resize(size, Image.Resampling.BICUBIC), low, high


def _scale_bar(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    *,
    right: int,
    top: int,
    meters: float,
) -> None:
    """A bar of a round length under the right panel; `meters` is the size of a pixel of the page."""
    wanted = 90 * meters
    power = 10.0 ** np.floor(np.log10(wanted))
    length = max(k * power for k in (1.0, 2.0, 5.0) if k * power <= wanted)
    text = f"{length * 1e6:g} um" if length >= 1e-6 else f"{length * 1e9:g} nm"
    width = length / meters
    draw.rectangle((right - width, top + 5, right, top + 8), fill=0)
    draw.text((right, top + 12), text, fill=0, font=font, anchor="ra")
