#!/bin/bash
# Reconstructs a scan with ptychocam: [-i ITERATIONS] [-r PERIOD] [-T PERIOD] [-M] FILE.cxi
# Results: $COSMIC_OUTPUT.{cxi,h5,png,json}, or beside the scan.
# Whose positions the scan holds: $COSMIC_POSITIONS (probe, sample); distance from the focus: $COSMIC_DEFOCUS (METERS@EV).
set -euo pipefail

here="$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")"
# shellcheck source=/dev/null
source "$here/interpreters.sh" || { echo "ptychocam: error: $here is not an installation; run install." >&2; exit 1; }
[[ -z "$COSMIC_IMAGE" ]] || exec "$here/in_image" "$COSMIC_RUNTIME" "$COSMIC_IMAGE" gpu ptychocam_reconstruction.sh "$@"

export PYTHONPATH="$here/lib" PYTHONDONTWRITEBYTECODE=1
exec "$COSMIC_PYTHON" -P -m reconstruction.ptychocam "$@"
