"""What can be wrong with a scan's file: each changes a file that `standin.synthetic_scan.make_scan` wrote."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import h5py
import numpy as np

from reconstruction.scan import DATA, DETECTOR, GEOMETRY, SOURCE

Edit = Callable[[h5py.File], None]
FRAMES = f"{DETECTOR}/data"
TRANSLATIONS = f"{GEOMETRY}/translation"
BITSHUFFLE = 32008  # a filter of hdf5plugin, which is not among what the programs need


def replace(file: h5py.File, name: str, value: Any) -> None:
    """Put other data in the place of a data set; links to it hold."""
    if name in file:
        del file[name]
    file[name] = value


def scaled(factor: float, *names: str) -> Edit:
    """In other units."""

    def edit(file: h5py.File) -> None:
        for name in names:
            replace(file, name, file[name][()] * factor)

    return edit


def frames_where(change: Callable[[np.random.Generator, Any], Any]) -> Edit:
    """The frames after `change(rng, frames)`, which returns others or None when it changed them in place."""

    def edit(file: h5py.File) -> None:
        frames = file[FRAMES][()]
        changed = change(np.random.default_rng(1), frames)
        replace(file, FRAMES, frames if changed is None else changed)

    return edit


def empty_frames(share: float) -> Edit:
    """The shutter missed some: nothing but readout noise."""

    def change(rng: np.random.Generator, frames: Any) -> None:
        which = rng.permutation(len(frames))[: round(share * len(frames))]
        noise = rng.normal(scale=0.1, size=(len(which), *frames.shape[1:]))
        frames[which] = np.maximum(noise, 0.0)

    return frames_where(change)


def hot_pixels(count: int, level: float) -> Edit:
    """Some pixels are bright in every frame."""

    def change(rng: np.random.Generator, frames: Any) -> None:
        rows, columns = rng.integers(0, frames.shape[1:], size=(count, 2)).T
        frames[:, rows, columns] = level + rng.normal(size=(len(frames), count))

    return frames_where(change)


def not_numbers(where: Any) -> Edit:
    """NaN in a part of the frames."""

    def change(_: np.random.Generator, frames: Any) -> None:
        frames[where] = np.nan

    return frames_where(change)


def brighter(factor: float, where: Any) -> Edit:
    """Some frames had another exposure."""

    def change(_: np.random.Generator, frames: Any) -> None:
        frames[where] *= factor

    return frames_where(change)


def saturated(share: float) -> Edit:
    """Clipped at a share of the highest value."""
    return frames_where(lambda _, frames: np.minimum(frames, share * frames.max()))


def dimmed(share: float) -> Edit:
    """A share of the exposure."""
    return frames_where(lambda rng, frames: rng.poisson(share * frames).astype(np.float32))


def random_bytes(dtype: str) -> Edit:
    """Bytes from anywhere."""

    def change(rng: np.random.Generator, frames: Any) -> Any:
        count = frames.size * np.dtype(dtype).itemsize
        return np.frombuffer(rng.bytes(count), dtype=dtype).reshape(frames.shape)

    return frames_where(change)


def dark_frames_kept(file: h5py.File) -> None:
    """The dark frames are in the file, and were subtracted from the frames."""
    file[f"{DETECTOR}/data_dark"] = np.full((5, *file[FRAMES].shape[1:]), 20.0, dtype=np.float32)


def inverted(name: str, *, bad: int = 0) -> Edit:
    """A mask whose values mean the contrary, after `bad` of its pixels were marked."""

    def edit(file: h5py.File) -> None:
        file[name][0, :bad] = 1
        mask = file[name][()]
        replace(file, name, (1 - mask.astype(np.int64)).astype(mask.dtype))

    return edit


def centered_mask(file: h5py.File) -> None:
    """The illumination mask in the order of the frames, as other programs write it."""
    place = f"{DETECTOR}/probe_mask"
    replace(file, place, np.fft.fftshift(file[place][()]))


def as_it_is(_: h5py.File) -> None:
    """Nothing wrong."""


def illumination(change: Callable[[Any], Any]) -> Edit:
    """Another first guess of the probe."""
    place = f"{SOURCE}/illumination"

    def edit(file: h5py.File) -> None:
        replace(file, place, change(file[place][()]))

    return edit


def one_lit_pixel(probe: Any) -> Any:
    """A probe that is a point."""
    point = np.zeros_like(probe)
    point[len(point) // 2, len(point) // 2] = 1.0
    return point


def mask_off_the_beam(file: h5py.File) -> None:
    """An illumination mask of some other scan."""
    place = f"{DETECTOR}/probe_mask"
    mask = np.zeros_like(file[place][()])
    mask[: len(mask) // 3, len(mask) // 3 : len(mask) // 2] = 1
    replace(file, place, mask)


def only(*, frames: int | None = None, positions: int | None = None) -> Edit:
    """The first of them."""

    def edit(file: h5py.File) -> None:
        if frames is not None:
            replace(file, FRAMES, file[FRAMES][:frames])
        if positions is not None:
            replace(file, TRANSLATIONS, file[TRANSLATIONS][:positions])

    return edit


def shuffled_positions(file: h5py.File) -> None:
    """Each frame at another's place."""
    replace(file, TRANSLATIONS, np.random.default_rng(0).permutation(file[TRANSLATIONS][()]))


def one_position(file: h5py.File) -> None:
    """The stage did not move."""
    replace(file, TRANSLATIONS, np.repeat(file[TRANSLATIONS][:1], len(file[TRANSLATIONS]), axis=0))


def without_frames(file: h5py.File) -> None:
    """What ACME leaves of a scan that was aborted before its first frame."""
    for name in (f"{DATA}/data", f"{DATA}/translation", f"{DETECTOR}/translation", FRAMES, TRANSLATIONS):
        del file[name]
    for name in (f"{SOURCE}/illumination", f"{DETECTOR}/probe_mask", f"{DETECTOR}/mask"):
        del file[name]


def energy_in_metadata_alone(file: h5py.File) -> None:
    """What ACME writes when the energy in eV is a whole number."""
    replace(file, f"{SOURCE}/energy", 0)


def virtual_frames(file: h5py.File, *, missing: int | None = None) -> None:
    """Frames that are kept in four other files; `missing` of them are not there (None: all)."""
    frames = file[FRAMES][()]
    layout = h5py.VirtualLayout(shape=frames.shape, dtype=frames.dtype)
    parts = np.array_split(np.arange(len(frames)), 4)
    folder = file.filename.rpartition("/")[0]
    for index, part in enumerate(parts):
        name = f"part_{index}.h5"
        if missing is not None and index >= missing:
            with h5py.File(f"{folder}/{name}", "w") as other:
                other["frames"] = frames[part]
        source = h5py.VirtualSource(name, "frames", shape=(len(part), *frames.shape[1:]))
        layout[part[0] : part[-1] + 1] = source
    del file[FRAMES]
    file.create_virtual_dataset(FRAMES, layout)


def external_frames(file: h5py.File) -> None:
    """The frames are a link to another file, which was left behind."""
    del file[FRAMES]
    file[FRAMES] = h5py.ExternalLink("frames.h5", "/frames")


def filtered_frames(file: h5py.File) -> None:
    """Compressed with a filter that is not installed."""
    frames = file[FRAMES][()]
    del file[FRAMES]
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((1, *frames.shape[1:]))
    properties.set_filter(BITSHUFFLE, h5py.h5z.FLAG_OPTIONAL, (0, 2))
    space = h5py.h5s.create_simple(frames.shape)
    dataset = h5py.h5d.create(file[DETECTOR].id, b"data", h5py.h5t.IEEE_F32LE, space, properties)
    for index, frame in enumerate(frames):
        dataset.write_direct_chunk((index, 0, 0), frame.tobytes(), filter_mask=0)
