#!/bin/bash
# A reconstruction that does at once what the first line of its scan says. For tests of the orchestration;
# the real programs are in include/reconstruction and have tests of their own.
#   ok           write the results
#   old          write those of an older release: four files, and few figures
#   hold         the same, once FILE.go exists
#   fail N       complain and end with code N
#   half N       the same, but for ptychocam, which writes its results
#   nothing      succeed without results
#   empty        succeed with an empty result
#   text         succeed with a preview that is no image
set -euo pipefail
for file; do case $file in *.cxi) break ;; esac; done
read -r what code < "$file" || true
echo "reconstructing $file: $what"
case $what in
    hold)
        exec {never}<> <(:) # nothing is ever read from it: a wait that starts no process, for fifty at once
        until [ -e "$file.go" ]; do read -rt 0.1 -u "$never" || true; done
        ;;
    fail) echo "cannot allocate the probe: see line 17" >&2; exit "$code" ;;
    half) [[ $0 == */ptychocam* ]] || { echo "the probe has no support" >&2; exit "$code"; } ;;
    nothing) exit 0 ;;
esac
cp "$(dirname "$0")/preview.png" "$COSMIC_OUTPUT.png"
[ "$what" != text ] || echo "not an image" > "$COSMIC_OUTPUT.png"
printf '%s\n' "$@" > "$COSMIC_OUTPUT.cxi"
echo model > "$COSMIC_OUTPUT.h5"
[ "$what" != empty ] || : > "$COSMIC_OUTPUT.cxi"
if [ "$what" != old ] && [ -e "$(dirname "$0")/figures.json" ]; then
    cp "$(dirname "$0")/view_amplitude.gz" "${COSMIC_OUTPUT}_view_amplitude.gz"
    cp "$(dirname "$0")/view_phase.gz" "${COSMIC_OUTPUT}_view_phase.gz"
    cp "$(dirname "$0")/figures.json" "$COSMIC_OUTPUT.json"
    exit 0
fi
printf '{"frames": 4, "iterations": 10, "final_error": 0.25, "pixel_size_m": [1e-8, 1e-8], "warnings": ["<b>bold</b>"]}' > "$COSMIC_OUTPUT.json"
