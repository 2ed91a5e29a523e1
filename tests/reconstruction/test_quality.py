"""What the last error says of the picture."""

from __future__ import annotations

import pytest

from reconstruction.errors import ScanError
from reconstruction.quality import judge
from reconstruction.scan import Scan


def test_a_run_that_explains_nothing_has_failed(scan: Scan) -> None:
    for error in (1.01, float("nan"), float("inf")):
        with pytest.raises(ScanError, match=r"failed: it ended with an error of .* No result was written"):
            judge(scan, error, refined=True)


def test_an_error_far_above_the_noise_is_a_warning(scan: Scan) -> None:
    (warning,) = judge(scan, 0.3, refined=True)
    assert "The picture is probably wrong" in warning
    assert "refine less often" in warning
    assert judge(scan, 0.05, refined=True) == ()


def test_without_refinement_the_advice_is_to_refine(scan: Scan) -> None:
    (warning,) = judge(scan, 0.3, refined=False)
    assert "run it again with period_illu_refine=1, period_bg_refine=1 and use_illu_mask=true" in warning
    assert "refine less often" not in warning
