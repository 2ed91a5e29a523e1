#!/usr/bin/env bash
# Debian's Slurm, munge and MariaDB, when they are missing. Their system services stay off: the tests start
# daemons of their own (support/slurm_cluster.py). Ends with 3, and says why, where they cannot be had.
set -euo pipefail

not_tested() {
    echo "NOT TESTED: $*" >&2
    exit 3
}
[ "$(id -u)" = 0 ] || not_tested "only root can start a Slurm cluster; run make slurm-test as root."

missing=$(for program in slurmctld slurmd slurmdbd sacctmgr munged mariadbd mariadb-install-db; do
    command -v "$program" >/dev/null || echo "$program"
done)
[ -n "$missing" ] || exit 0
command -v apt-get >/dev/null || not_tested "Slurm is not installed, and there is no apt-get to install it with."

# Where packages start their services when they are installed, these must not.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
echo "Installing Slurm, munge and MariaDB (about a minute, once)"
if ! { apt-get update -q && apt-get install -y -q --no-install-recommends \
    slurm-wlm slurmdbd munge mariadb-server-core mariadb-client-core; } >"$log" 2>&1; then
    tail -n 5 "$log" >&2
    not_tested "Slurm cannot be installed here; the whole of apt-get's log is $log."
fi
rm -f "$log"
