#!/bin/sh
# Installs what the demo and the tests need beside Go, git and make: e2fsprogs, and a C
# compiler for the race detector. As root on Debian or Ubuntu it installs them; elsewhere
# it says what to install.
set -eu
PATH="$PATH:/usr/sbin:/sbin"
missing=""
for tool in mke2fs e2fsck debugfs; do
	command -v "$tool" >/dev/null || { missing="e2fsprogs"; break; }
done
command -v cc >/dev/null || command -v gcc >/dev/null || missing="$missing gcc libc6-dev"
[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
	apt-get update -qq
	# shellcheck disable=SC2086
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing
	exit 0
fi
echo "missing: $missing; install it with your system's package manager" >&2
exit 1
