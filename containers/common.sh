# Sourced by the scripts here: what they share.
# shellcheck shell=bash

fail() { echo "$(basename "$0"): $*" >&2; exit 1; }

# need PROGRAM PACKAGE: stops with the way to get a program that is missing.
need() {
    command -v "$1" > /dev/null || fail "'$1' is missing; on Debian and Ubuntu: apt-get install $2"
}

# restricted: whether this is root without the capability to raise limits, as within many sandboxes.
restricted() {
    [ "$(id -u)" -eq 0 ] && (( (0x$(awk '/^CapEff/ {print $2}' /proc/self/status) >> 24 & 1) == 0 ))
}

# settle_podman: gives podman the settings with which it runs on such a machine; changes nothing elsewhere.
settle_podman() {
    if restricted && [ -z "${CONTAINERS_CONF:-}" ]; then
        need runc runc
        CONTAINERS_CONF="$(dirname "$(realpath "${BASH_SOURCE[0]}")")/containers.conf"
        export CONTAINERS_CONF
    fi
}

# settle_apptainer: puts an apptainer on PATH, fetching one if need be.
settle_apptainer() {
    command -v apptainer > /dev/null && return
    local prefix
    prefix=$("$(dirname "$(realpath "${BASH_SOURCE[0]}")")/get_apptainer.sh")
    export PATH="$prefix/bin:$PATH"
}
