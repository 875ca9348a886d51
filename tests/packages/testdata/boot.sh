#!/bin/sh
# Turns into the systemd of a copy of this system: an overlay in memory, in namespaces and
# a control group of its own. $1 is an empty directory, $2 the one that is /packages.
# It is called in a mount namespace first, and by itself in the others.
set -e
if [ "${3:-}" = "" ]; then
	mount --make-rprivate /
	mkdir "$1/cgroup"
	mount -t cgroup2 cgroup2 "$1/cgroup"
	own=$1/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup)/drover-packages-$$
	mkdir "$own"
	echo $$ >"$own/cgroup.procs"
	exec unshare --pid --fork --kill-child --uts --ipc --cgroup /bin/sh "$0" "$1" "$2" inside
fi
mkdir "$1/copy"
mount -t tmpfs tmpfs "$1/copy"
mkdir "$1/copy/upper" "$1/copy/work" "$1/copy/root"
root=$1/copy/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/copy/upper,workdir=$1/copy/work" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t bpf bpf "$root/sys/fs/bpf" || true
mount -t tracefs tracefs "$root/sys/kernel/tracing" || true
mount --rbind /dev "$root/dev"
for dir in run tmp home; do
	mount -t tmpfs tmpfs "$root/$dir"
done
mkdir -p "$root/etc/systemd/system"
for unit in systemd-udevd systemd-udev-trigger systemd-resolved systemd-timesyncd systemd-logind systemd-networkd dbus \
	networking systemd-modules-load systemd-sysctl systemd-tmpfiles-setup-dev systemd-remount-fs cron ssh; do
	ln -sf /dev/null "$root/etc/systemd/system/$unit.service"
done
ln -sf /dev/null "$root/etc/systemd/system/getty.target"
rm -f "$root/usr/sbin/policy-rc.d" # containers forbid services to start
rm -rf "$root/etc/drover" "$root/var/lib/drover"
mkdir "$root/packages" "$root/old"
mount --bind "$2" "$root/packages"
cd "$root"
pivot_root . old
umount -l /old
: >/packages/ready
exec env -i container=drover PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --unit=multi-user.target --log-target=null --show-status=no
