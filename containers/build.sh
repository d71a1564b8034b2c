#!/usr/bin/env bash
# build.sh cpu|cuda13|tpu [options]: builds the image, an OCI archive of it and the SIF that the workflow names.
#
#   --base IMAGE       base image; by default the one that Containerfile names, from your registry
#   --debian           a base from Debian's packages instead (base.sh), where no registry can be reached
#   --mirror URL       with --debian: the archive to take them from
#   --builder PROGRAM  podman (default where there is one) or docker
#   --output FOLDER    where the files go; by default containers/images
#   --no-sif           only the image in the builder's own store
#
# pip's configuration and the certificates of this machine (PIP_CONFIG_FILE or /etc/pip.conf; PIP_CERT or SSL_CERT_FILE)
# are lent to the build as secrets, and are not in the image.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
# shellcheck source=containers/common.sh
. "$here/common.sh"
cd "$here/.."

accelerator=${1:-}
case "$accelerator" in
    cpu | cuda13 | tpu) shift ;;
    *) fail "say which image: build.sh cpu, build.sh cuda13 or build.sh tpu" ;;
esac
base='' debian=no mirror=() output=$here/images sif=yes
builder=$(command -v podman > /dev/null && echo podman || echo docker)
while [ $# -gt 0 ]; do
    case "$1" in
        --base) base=${2:?} && shift 2 ;;
        --debian) debian=yes && shift ;;
        --mirror) mirror=("${2:?}") && shift 2 ;;
        --builder) builder=${2:?} && shift 2 ;;
        --output) output=${2:?} && shift 2 ;;
        --no-sif) sif=no && shift ;;
        *) fail "there is no option '$1'; the first lines of this file list them" ;;
    esac
done
[ ${#mirror[@]} -eq 0 ] || [ "$debian" = yes ] || fail "--mirror belongs to --debian"
need "$builder" podman
[ "$builder" != podman ] || settle_podman
[ "$debian" = no ] || base=$("$here/base.sh" "${mirror[@]}")

version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
commit=$(git describe --always --dirty --abbrev=40 --exclude='*' 2> /dev/null || echo unknown)
source=$(git remote get-url origin 2> /dev/null | sed -n 's#^https://\([^/]*@\)\{0,1\}#https://#p' || true)

name=localhost/jaxinterp:$version-$accelerator
arguments=(--file containers/Containerfile --tag "$name")
arguments+=(--build-arg "ACCELERATOR=$accelerator" --build-arg "VERSION=$version")
arguments+=(--build-arg "COMMIT=$commit" --build-arg "SOURCE=${source:-unknown}")
[ -z "$base" ] || arguments+=(--build-arg "BASE=$base")
! restricted || arguments+=(--network host)
pip_settings=${PIP_CONFIG_FILE:-/etc/pip.conf}
certificates=${PIP_CERT:-${SSL_CERT_FILE:-}}
[ ! -s "$pip_settings" ] || arguments+=(--secret "id=pip,src=$pip_settings")
[ -z "$certificates" ] || arguments+=(--secret "id=certificates,src=$certificates")
echo "build.sh: $name with $builder, base ${base:-as in Containerfile}" >&2
"$builder" build "${arguments[@]}" . >&2

[ "$sif" = yes ] || exit 0
settle_apptainer
need mksquashfs squashfs-tools
mkdir -p "$output"
stem=$output/jaxinterp-$accelerator
"$builder" run --rm --network none "$name" cat /etc/jaxinterp-image.json > "$stem.json"
rm -f "$stem.oci.tar"
if [ "$builder" = podman ]; then
    podman save --quiet --format oci-archive --output "$stem.oci.tar" "$name"
    archive=oci-archive:$stem.oci.tar
else
    docker save --output "$stem.oci.tar" "$name"
    archive=docker-archive:$stem.oci.tar
fi
apptainer --quiet build --force --mksquashfs-args "-processors $(nproc) -comp zstd -Xcompression-level 1" "$stem.sif" "$archive" >&2
ls -sh "$stem.oci.tar" "$stem.sif" >&2
echo "$stem.sif"
