"""Reading the probe of an earlier result: what it may be in, and what is said of another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from reconstruction.earlier import OURS, read_earlier

PROBE = (np.arange(32).reshape(2, 4, 4) * (1 + 2j)).astype(np.complex64)


def written(path: Path, **values: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, value in values.items():
            file[OURS.get(name, name) if path.suffix == ".cxi" else name] = value
    return path


def test_ours_is_in_counts_and_cdtools_is_not(tmp_path: Path) -> None:
    background = np.ones((2, 2))
    ours = read_earlier(written(tmp_path / "a.cxi", probe=PROBE, background=background))
    theirs = read_earlier(written(tmp_path / "a.h5", probe=PROBE, background=background))
    assert (ours.in_counts, theirs.in_counts) == (True, False)
    for earlier in (ours, theirs):
        assert np.array_equal(earlier.probe, PROBE)
        assert earlier.background is not None
        assert np.array_equal(earlier.background, background)


def test_one_mode_and_no_background(tmp_path: Path) -> None:
    earlier = read_earlier(written(tmp_path / "a.h5", probe=PROBE[0]))
    assert earlier.probe.shape == (1, 4, 4)
    assert earlier.background is None


def test_the_inner_part_is_the_probe_without_oversampling(tmp_path: Path) -> None:
    earlier = read_earlier(written(tmp_path / "a.h5", probe=PROBE))
    assert np.array_equal(earlier.inner((2, 2)), PROBE[0, 1:3, 1:3])
    assert np.array_equal(earlier.inner((4, 4)), PROBE[0])


def test_other_sizes_are_refused(tmp_path: Path) -> None:
    earlier = read_earlier(written(tmp_path / "a.h5", probe=PROBE, background=np.ones((2, 2))))
    earlier.check((2, 2), 2)
    with pytest.raises(ValueError, match=r"its probe has \(4, 4\) pixels and this scan's \(2, 2\)"):
        earlier.check((2, 2), 1)
    with pytest.raises(ValueError, match=r"its background has \(2, 2\) pixels and a frame \(4, 4\)"):
        earlier.check((4, 4), 1)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "holds no probe"),
        ({"probe": np.ones(3)}, "holds no probe"),
        ({"probe": np.bytes_("no")}, "holds no probe"),
    ],
)
def test_a_file_without_a_probe_is_named(tmp_path: Path, values: dict[str, Any], said: str) -> None:
    path = written(tmp_path / "a.h5", **values)
    with pytest.raises(ValueError, match=said) as refused:
        read_earlier(path)
    assert str(path) in str(refused.value)


def test_what_is_no_result_at_all(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"missing\.h5: there is no such file"):
        read_earlier(tmp_path / "missing.h5")
    text = tmp_path / "text.cxi"
    text.write_text("no")
    with pytest.raises(ValueError, match="neither HDF5"):
        read_earlier(text)
