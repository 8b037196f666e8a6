# Makes the root directory that machines start from, once. usage: sh -c THIS root CODENAME DIRECTORY PACKAGE...
# Runs in a mount namespace of its own, so that debootstrap's mounts cannot stay.
set -eu
codename=$1 dir=$2
shift 2
mkdir -p "${dir%/*}"
exec 9>"$dir.lock"
flock 9
[ ! -d "$dir" ] || exit 0

# From where this machine's own packages come, should that not be the default: a mirror has all releases.
# The $ are for apt-get.
# shellcheck disable=SC2016
mirror=$(apt-get indextargets --format '$(ORIGIN) $(COMPONENT) $(CODENAME) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
	awk '$1 == "Debian" && $2 == "main" && $3 !~ /-/ { print $4; exit }')
new=$dir.new
rm -rf "$new"
trap 'rm -rf "$new"' EXIT
trap 'exit 1' INT TERM HUP
# Several words on purpose.
# shellcheck disable=SC2086
debootstrap --variant=minbase --include="$(echo "$@" | tr ' ' ,)" $codename "$new" $mirror >"$dir.log" 2>&1 || {
	tail -n 20 "$dir.log" >&2
	exit 1
}
# What has no place in a machine of a test: consoles, hardware, and jobs that would start by themselves.
for unit in console-getty.service getty-static.service getty@.service systemd-udevd.service systemd-udev-trigger.service \
	systemd-udevd-control.socket systemd-udevd-kernel.socket apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
	e2scrub_all.timer fstrim.timer; do
	ln -sf /dev/null "$new/etc/systemd/system/$unit"
done
rm -f "$new"/etc/systemd/system/multi-user.target.wants/ssh.service "$new"/etc/systemd/system/sshd.service
ln -sf /lib/systemd/system/multi-user.target "$new/etc/systemd/system/default.target"
rm -rf "$new"/var/cache/apt/archives/*.deb "$new"/var/cache/apt/*.bin "$new"/etc/machine-id "$new"/etc/resolv.conf
mv "$new" "$dir"
