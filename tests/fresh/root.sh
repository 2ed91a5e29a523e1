#!/usr/bin/env bash
# Runs commands on a machine that has nothing: a bare Debian root (Python 3.11, make, git) with a clone of this
# checkout's commit, which is removed at the end. Prints how long each command took; the first that fails is the
# last. From this machine it takes how pip and apt reach their registries, and folders it is asked to show, or to keep:
# what the commands write there stays here.
#   bash tests/fresh/root.sh [--show FOLDER TARGET]... [--keep FOLDER TARGET]... COMMAND...
set -euo pipefail

SUITE=bookworm
CLONE=/root/bundle
PARENT=${TMPDIR:-/var/tmp}

fail() {
    echo "make fresh: $*" >&2
    exit 1
}

# ---- On this machine: the folder that holds the root. What runs in the root holds the folder's lock with it.

outside() {
    [ "$(id -u)" = 0 ] || fail "only root can make a Debian root and enter it. Run it as root."
    need_debootstrap
    local parent lock
    exec {parent}<"$PARENT"
    flock "$parent"
    remove_abandoned
    FOLDER=$(mktemp -d "$PARENT/cosmic-fresh.XXXXXX")
    exec {lock}<"$FOLDER"
    flock "$lock"
    exec {parent}<&-

    # Only a process in the background can be waited for and stopped by a trap.
    PORT=$((20000 + $$ % 10000)) setpriv --pdeathsig KILL \
        unshare --mount --pid --fork --kill-child bash "$0" --inside "$FOLDER" "$@" </dev/null &
    exec {lock}<&-
    trap 'kill -KILL "$!" 2>/dev/null || true; remove "$FOLDER"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    wait "$!"
}

need_debootstrap() {
    command -v debootstrap >/dev/null && return
    command -v apt-get >/dev/null || fail "debootstrap is missing, and there is no apt-get to install it with."
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends debootstrap debian-archive-keyring
}

# Folders of runs that were killed outright. Their mounts are gone: they ended with the run's last process.
remove_abandoned() {
    local folder
    for folder in "$PARENT"/cosmic-fresh.*; do
        if [ -d "$folder" ] && [ -O "$folder" ] && [ ! -L "$folder" ]; then remove "$folder" --nonblock; fi
    done
}

# Once the folder's lock is free, nothing in the root runs any more. The options are those of flock.
remove() {
    local lock
    exec {lock}<"$1"
    if flock "${@:2}" "$lock"; then rm -rf --one-file-system "$1"; fi
    exec {lock}<&-
}

# ---- In mount and process namespaces of its own, which take all mounts and processes with them.

inside() {
    ROOT=$1/root
    shift
    TIMES=()
    trap report EXIT
    begin "the bare root"
    make_root
    while [ "${1:-}" = --show ] || [ "${1:-}" = --keep ]; do
        "${1#--}" "$2" "$3"
        shift 3
    done
    clone
    end
    local command
    for command; do
        begin "$command"
        in_root "$CLONE" "$command"
        end
    done
}

begin() {
    STEP=$1 BEGUN=$SECONDS
    printf '\n==== %s\n' "$STEP"
}

end() {
    TIMES+=("$((SECONDS - BEGUN))" "$STEP")
    STEP=
}

report() {
    printf '\n'
    [ ${#TIMES[@]} = 0 ] || printf '%6d s  %s\n' "${TIMES[@]}"
    [ -z "$STEP" ] || printf 'failed after %d s: %s\n' "$((SECONDS - BEGUN))" "$STEP"
}

make_root() {
    local mirror
    mirror=$(sources | awk -v suite=$SUITE '$3 == suite && !found++ { print $2 }')
    mkdir -p "$ROOT/etc/dpkg/dpkg.cfg.d"
    echo force-unsafe-io >"$ROOT/etc/dpkg/dpkg.cfg.d/this-root-is-thrown-away" # without an fsync a file
    quietly debootstrap --force-check-gpg --variant=minbase --include=ca-certificates \
        $SUITE "$ROOT" ${mirror:+"$mirror"}
    mount --bind "$ROOT" "$ROOT" # "/" must be a mount for what makes namespaces or asks for free space in it
    mount -t proc proc "$ROOT/proc"
    mount -t sysfs -o ro sysfs "$ROOT/sys"
    mount -t devpts -o newinstance,ptmxmode=0666 devpts "$ROOT/dev/pts"
    mount -t tmpfs -o mode=1777 tmpfs "$ROOT/dev/shm"
    printf '#!/bin/sh\nexit 101\n' >"$ROOT/usr/sbin/policy-rc.d" # packages start no services
    chmod 755 "$ROOT/usr/sbin/policy-rc.d"
    network_settings
    quietly in_root / "update-ca-certificates && apt-get update -q && \
        apt-get install -y -q --no-install-recommends python3.11 python3.11-venv make git"
}

# Run a command; show the end of what it says only if it fails.
quietly() {
    "$@" >"$ROOT.log" 2>&1 || { tail -n 20 "$ROOT.log" >&2; return 1; }
}

# This machine's sources of packages, where it has the same Debian as the root.
sources() {
    command -v apt-get >/dev/null || return 0
    apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
        awk -v suite=$SUITE '$3 == suite || index($3, suite "-") == 1' | sort -u
}

# How this machine reaches registries: names, certificates, and the settings of apt and pip.
network_settings() {
    local found path
    cp -L /etc/resolv.conf /etc/hosts "$ROOT/etc/"
    copy /usr/local/share/ca-certificates
    found=$(sources)
    [ -z "$found" ] || printf '%s\n' "$found" >"$ROOT/etc/apt/sources.list"
    if command -v apt-config >/dev/null; then
        apt-config dump | grep '^Acquire::' >"$ROOT/etc/apt/apt.conf.d/90this-machine"
    fi
    for path in /etc/apt/auth.conf /etc/apt/auth.conf.d /etc/apt/trusted.gpg.d /etc/pip.conf /etc/xdg/pip; do
        copy "$path"
    done
    copy ~/.config/pip /root/.config/pip
    copy ~/.pip /root/.pip
    # Bundles of certificates and folders of packages that these settings name.
    { printf '%s\n' "${SETTINGS[@]}"; cat "$ROOT"/etc/pip.conf "$ROOT"/etc/xdg/pip/* "$ROOT"/root/.config/pip/* \
        "$ROOT"/root/.pip/* "$ROOT"/etc/apt/apt.conf.d/90this-machine 2>/dev/null || true; } |
        grep -oE '/[^[:space:],";]+' | sed -E 's|^/+|/|; s|/simple/?$||' | sort -u |
        while read -r path; do
            if [ -e "$ROOT$path" ]; then :; elif [ -d "$path" ]; then show "$path" "$path"; else copy "$path"; fi
        done
}

# Copy a file or folder of this machine, when there is one, to its path in the root.
copy() {
    local target=$ROOT${2:-$1}
    if [ -d "$1" ]; then
        mkdir -p "$target"
        cp -rL "$1/." "$target"
    elif [ -f "$1" ]; then
        mkdir -p "${target%/*}"
        cp -L "$1" "$target"
    fi
}

# Let the root see a folder of this machine, which it cannot write to.
show() {
    mkdir -p "$ROOT$2"
    mount --bind "$1" "$ROOT$2"
    mount -o remount,bind,ro "$ROOT$2"
}

# Let the root write into a folder of this machine.
keep() {
    mkdir -p "$ROOT$2"
    mount --bind "$1" "$ROOT$2"
}

clone() {
    local commit config=$ROOT.gitconfig
    printf '[safe]\n\tdirectory = *\n' >"$config" # the checkout may belong to somebody else
    export GIT_CONFIG_GLOBAL=$config
    commit=$(git -C "$CHECKOUT" rev-parse HEAD)
    git clone -q --no-hardlinks --no-checkout "$CHECKOUT" "$ROOT$CLONE"
    git -C "$ROOT$CLONE" checkout -q --detach "$commit"
    git -C "$ROOT$CLONE" log -1 --format='The clone is of %h: %s'
    [ -z "$(git -C "$CHECKOUT" status --porcelain)" ] || echo "What is not committed in $CHECKOUT is not in it."
}

# Run a shell command in a folder of the root, in the environment of somebody who has just logged in.
in_root() {
    chroot "$ROOT" env -i -C "$1" --default-signal HOME=/root TERM="${TERM:-dumb}" DEBIAN_FRONTEND=noninteractive \
        PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "${SETTINGS[@]}" bash -c "$2"
}

CHECKOUT=$(cd "$(dirname "$0")/../.." && pwd)
# A run's demonstration has a port of its own: several share this machine's loopback.
mapfile -t SETTINGS < <(env | grep -E '^(PORT|(https?|ftp|all|no)_proxy|(HTTPS?|FTP|ALL|NO)_PROXY|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|PIP_(INDEX_URL|EXTRA_INDEX_URL|NO_INDEX|FIND_LINKS|CERT|CLIENT_CERT|PROXY|TRUSTED_HOST|DEFAULT_TIMEOUT|TIMEOUT|RETRIES|CONSTRAINT|CONFIG_FILE))=')
if [ "${1:-}" = --inside ]; then
    inside "${@:2}"
else
    outside "$@"
fi
