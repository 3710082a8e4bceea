#!/usr/bin/env bash
# Installs what the build and the tests need and this host lacks: Debian
# packages by apt-get, the Rust toolchain by rustup. Silent when nothing is
# missing. Arguments name more of them: program=package.
set -euo pipefail

# program=package; a program that is there is never installed again.
needs=(
	"$@"
	cc=gcc
	strip=binutils
	ld=binutils
	curl=curl
	git=git
	busybox=busybox-static
	cpio=cpio
	debootstrap=debootstrap
	docker-registry=docker-registry
	dpkg-deb=dpkg
	ip=iproute2
	jq=jq
	ldd=libc-bin
	mkfs.ext4=e2fsprogs
	nft=nftables
	qemu-system-x86_64=qemu-system-x86
	script=bsdutils
	skopeo=skopeo
	strace=strace
	tar=tar
	unshare=util-linux
	xz=xz-utils
	zstd=zstd
)

PATH=$PATH:/usr/sbin:/sbin:$HOME/.cargo/bin
missing=()
for need in "${needs[@]}"; do
	command -v "${need%%=*}" >/dev/null || missing+=("${need#*=}")
done
# The static library of libc comes with its headers.
[ -e /usr/lib/x86_64-linux-gnu/libc.a ] || missing+=(libc6-dev)
# Protocol names, which nft prints.
[ -e /etc/protocols ] || missing+=(netbase)
# A dynamic busybox is no use in an image.
if command -v busybox >/dev/null && ldd "$(command -v busybox)" >/dev/null 2>&1; then
	missing+=(busybox-static)
fi

if [ ${#missing[@]} -gt 0 ]; then
	echo "installing: ${missing[*]}"
	if [ "$(id -u)" -ne 0 ]; then
		echo "tests/install-deps.sh: run as root, or install these packages first" >&2
		exit 1
	fi
	export DEBIAN_FRONTEND=noninteractive
	apt-get -qq update
	apt-get -qq install -y --no-install-recommends ca-certificates "${missing[@]}" >/dev/null
fi

if ! command -v cargo >/dev/null; then
	echo "installing: the Rust toolchain (rustup)"
	curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs |
		sh -s -- -y -q --no-modify-path --profile minimal --component rustfmt --component clippy >/dev/null
fi
