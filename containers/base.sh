#!/usr/bin/env bash
# base.sh [MIRROR]: a base image from Debian 12's packages, where no registry can be reached. Prints its name.
#
# MIRROR is an archive of Debian's packages; that of a fixed day gives the same base again. Without it mmdebstrap's
# default is taken, and what then differs from locks/debian.txt is printed: the marker in the image tells bases apart.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
# shellcheck source=containers/common.sh
. "$here/common.sh"
need podman podman
need mmdebstrap mmdebstrap
settle_podman

name=localhost/jaxinterp-base:bookworm
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mmdebstrap --quiet --variant=minbase --include=python3,python3-venv,ca-certificates,procps \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    bookworm "$work/base.tar" "$@" >&2
podman import --quiet "$work/base.tar" "$name" > /dev/null

podman run --rm --network none "$name" dpkg-query --show --showformat '${Package} ${Version}\n' > "$work/debian.txt"
if ! diff "$here/locks/debian.txt" "$work/debian.txt" > "$work/changes"; then
    echo "base.sh: the mirror's packages are others than locks/debian.txt names (< then, > now):" >&2
    grep '^[<>]' "$work/changes" >&2
fi
echo "$name"
