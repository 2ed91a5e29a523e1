#!/bin/bash
# Reconstructs a scan with CDTools: FILE.cxi, then twelve arguments, "none" where one is not given:
#   run_split_reconstructions n_modes oversampling_factor propagation_distance simulate_probe_translation
#   n_init_rounds n_init_iter n_final_iter translation_randomization probe_initialization init_background
#   probe_support_radius
# Results: $COSMIC_OUTPUT.{cxi,h5,png,json}, or beside the scan.
# Whose positions the scan holds: $COSMIC_POSITIONS (probe, sample); distance from the focus: $COSMIC_DEFOCUS (METERS@EV).
set -euo pipefail

here="$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")"
# shellcheck source=/dev/null
source "$here/interpreters.sh" || { echo "cdtools: error: $here is not an installation; run install." >&2; exit 1; }
[[ -z "$COSMIC_IMAGE" ]] || exec "$here/in_image" "$COSMIC_RUNTIME" "$COSMIC_IMAGE" gpu cdtools_reconstruction.sh "$@"
if [[ -z "$COSMIC_CDTOOLS_PYTHON" ]]; then
    echo "cdtools: error: CDTools is not installed here; run install with --cdtools-python." >&2
    exit 1
fi

export PYTHONPATH="$here/lib" PYTHONDONTWRITEBYTECODE=1
# Threads that wait give their CPU to others: jobs that share a node slow each other down less.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
exec "$COSMIC_CDTOOLS_PYTHON" -P -m reconstruction.cdtools_engine "$@"
