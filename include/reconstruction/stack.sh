#!/bin/bash
# Makes one aligned stack of energies for each region of a scan: [-e ENGINE] [-n ENERGIES] FOLDER/SCAN
# Results: FOLDER/<SCAN>_<engine>_stack_<region>.nxs
set -euo pipefail

here="$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")"
# shellcheck source=/dev/null
source "$here/interpreters.sh" || { echo "stack: error: $here is not an installation; run install." >&2; exit 1; }
[[ -z "$COSMIC_IMAGE" ]] || exec "$here/in_image" "$COSMIC_RUNTIME" "$COSMIC_IMAGE" cpu stack.sh "$@"

export PYTHONPATH="$here/lib" PYTHONDONTWRITEBYTECODE=1
exec "$COSMIC_PYTHON" -P -m reconstruction.stack "$@"
