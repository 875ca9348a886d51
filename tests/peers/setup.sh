#!/bin/sh
# Installs the tools that make peers measures beside: as root on Debian or Ubuntu from the
# system's packages; elsewhere it says what is missing.
set -eu
PATH="$PATH:/usr/sbin:/sbin"
missing=""
for pair in zstd:zstd ssh:openssh-client sshd:openssh-server nbdkit:nbdkit nbdcopy:libnbd-bin rsync:rsync mke2fs:e2fsprogs; do
	command -v "${pair%%:*}" >/dev/null || missing="$missing ${pair#*:}"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
	apt-get update -qq
	# shellcheck disable=SC2086
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing
	exit 0
fi
echo "missing:$missing; install them with your system's package manager" >&2
exit 1
