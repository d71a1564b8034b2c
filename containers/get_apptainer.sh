#!/usr/bin/env bash
# get_apptainer.sh: brings a working apptainer to Debian 12, which has none, and prints the folder that holds it.
#
# Only for a machine whose PATH has no apptainer: elsewhere install your system's package. The packages of Debian
# unstable (apptainer, squashfuse) and of Debian 13 (the C library they need) are fetched with this machine's apt and its
# own mirror, checked by apt with Debian's keys, and unpacked into ~/.cache/jaxinterp/apptainer (JAXINTERP_APPTAINER says
# elsewhere). No package of the machine changes. If anything is not as expected it stops; nothing stands in for apptainer.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
# shellcheck source=containers/common.sh
. "$here/common.sh"

prefix=$(realpath -m "${JAXINTERP_APPTAINER:-${XDG_CACHE_HOME:-$HOME/.cache}/jaxinterp/apptainer}")
if [ -x "$prefix/bin/apptainer" ] && "$prefix/bin/apptainer" --version > /dev/null; then
    echo "$prefix"
    exit
fi
[ "$(uname -m)" = x86_64 ] || fail "this recipe knows x86_64 only; install apptainer from your system's packages"
keys=/usr/share/keyrings/debian-archive-keyring.gpg
[ -s "$keys" ] || fail "$keys is missing: is this Debian? Elsewhere install apptainer from your system's packages"
need apt-get apt
need patchelf patchelf
need mksquashfs squashfs-tools
# shellcheck disable=SC2016 # apt fills the name in
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' | head -n 1)
[ -n "$mirror" ] || fail "apt knows no Debian mirror; run 'apt-get update' once"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{lists/partial,cache/archives/partial,debs,root,parts}
for suite in trixie sid; do echo "deb [signed-by=$keys] $mirror $suite main"; done > "$work/sources.list"
: > "$work/status"
options=(-o "Dir::Etc::SourceList=$work/sources.list" -o Dir::Etc::SourceParts=/dev/null -o Dir::Etc::Preferences=/dev/null
    -o "Dir::Etc::PreferencesParts=$work/parts" -o "Dir::State::Lists=$work/lists" -o "Dir::State::Status=$work/status"
    -o "Dir::Cache=$work/cache" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o Acquire::Languages=none
    -o APT::Sandbox::User=root)
apt-get "${options[@]}" --quiet=2 update >&2 || fail "the mirror $mirror cannot be read"
(cd "$work/debs" && apt-get "${options[@]}" --quiet=2 download apptainer/sid libc6/trixie >&2) ||
    fail "the mirror has no apptainer in Debian unstable, or no libc6 in Debian 13"
for package in "$work"/debs/*.deb; do dpkg-deb --extract "$package" "$work/root"; done

root=$work/root
libraries=$root/usr/lib/x86_64-linux-gnu
if ! [ -x "$root/usr/bin/apptainer" ] || ! [ -x "$libraries/apptainer/bin/starter" ]; then
    fail "Debian's apptainer has another layout than this recipe knows: $(cd "$work/debs" && ls)"
fi
rm -rf "$prefix"
mkdir -p "$prefix"/{bin,glibc,lib/x86_64-linux-gnu,var/lib/apptainer/mnt/session}
cp -a "$root/etc" "$prefix/etc"
cp -a "$root/usr/bin/apptainer" "$prefix/bin/"
cp -a "$libraries/apptainer" "$prefix/lib/x86_64-linux-gnu/"
libc=$libraries
[ -e "$libc/ld-linux-x86-64.so.2" ] || libc=$root/lib/x86_64-linux-gnu
cp -a "$libc"/* "$prefix/glibc/"
rm -rf "$prefix/glibc/apptainer"
ln -s ../etc "$prefix/lib/etc"
ln -s ../var "$prefix/lib/var"
for program in "$prefix/bin/apptainer" "$prefix/lib/x86_64-linux-gnu/apptainer/bin/starter"; do
    patchelf --force-rpath --set-rpath "$prefix/glibc:/usr/lib/x86_64-linux-gnu" \
        --set-interpreter "$prefix/glibc/ld-linux-x86-64.so.2" "$program"
done
if restricted; then
    sed -i 's/^root default capabilities = .*/root default capabilities = no/' "$prefix/etc/apptainer/apptainer.conf"
fi
"$prefix/bin/apptainer" --version >&2 || fail "the apptainer that was unpacked into $prefix does not start"
echo "$prefix"
