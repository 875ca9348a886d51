#!/bin/sh
# Installs what the demo and the tests need beside Go, git and make: e2fsprogs, and a C
# compiler for the race detector. With the word "test" it also gets what only tests need:
# QEMU, xfsprogs, btrfs-progs, fio, PostgreSQL, systemd, rpm and sshd, the kernel of the guest that QEMU boots, which is unpacked to
# build/guest and not installed, and Azurite (tests/azurite/package-lock.json) in build/azurite. As root on Debian or Ubuntu it installs them; elsewhere it
# says what to install, and tests whose tools are missing are skipped.
set -eu
PATH="$PATH:/usr/sbin:/sbin"
cd "$(dirname "$0")/.."
guest=build/guest

can_install() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }

get() {
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"
}

# get_kernel unpacks Debian's kernel for cloud machines, with the modules that tests use.
get_kernel() {
	apt-get update -qq
	package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
	[ -n "$package" ] || return 0
	rm -rf "$guest.part"
	mkdir -p "$guest.part"
	(cd "$guest.part" && apt-get download -qq -o APT::Sandbox::User=root "$package")
	dpkg-deb --fsys-tarfile "$guest.part"/*.deb | tar -x -C "$guest.part" --wildcards './boot/vmlinuz-*' \
		'./lib/modules/*/kernel/drivers/virtio/*' './lib/modules/*/kernel/drivers/block/*' './lib/modules/*/kernel/drivers/nvme/*' \
		'./lib/modules/*/kernel/fs/xfs/*' './lib/modules/*/kernel/lib/*' './lib/modules/*/kernel/crypto/*'
	rm -f "$guest.part"/*.deb
	rm -rf "$guest"
	mv "$guest.part" "$guest"
}

# get_azurite installs the emulator of Azure Storage as the lock file says, with nothing else's scripts run.
get_azurite() {
	rm -rf build/azurite.part
	mkdir -p build/azurite.part
	cp tests/azurite/package.json tests/azurite/package-lock.json build/azurite.part/
	(cd build/azurite.part && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
	rm -rf build/azurite
	mv build/azurite.part build/azurite
}

missing=""
for tool in mke2fs e2fsck debugfs; do
	command -v "$tool" >/dev/null || { missing="e2fsprogs"; break; }
done
command -v cc >/dev/null || command -v gcc >/dev/null || missing="$missing gcc libc6-dev"
if [ -n "$missing" ]; then
	if ! can_install; then
		echo "missing: $missing; install it with your system's package manager" >&2
		exit 1
	fi
	# shellcheck disable=SC2086
	get $missing
fi

[ "${1:-}" = test ] && can_install || exit 0
command -v qemu-system-x86_64 >/dev/null || get qemu-system-x86
command -v qemu-img >/dev/null || get qemu-utils
command -v mkfs.xfs >/dev/null || get xfsprogs
command -v mkfs.btrfs >/dev/null || get btrfs-progs
command -v fio >/dev/null || get fio
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || get postgresql
[ -x /lib/systemd/systemd ] || get systemd
command -v rpm >/dev/null || get rpm
[ -x /usr/sbin/sshd ] || get openssh-server
[ -d "$guest" ] || get_kernel
command -v node >/dev/null || get nodejs
command -v npm >/dev/null || get npm
cmp -s tests/azurite/package-lock.json build/azurite/package-lock.json || get_azurite
