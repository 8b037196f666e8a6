# The machine's first process: lays out its files, takes its root, and becomes systemd.
# usage: sh -c THIS boot ROOT NAME; in new mount, process, cgroup, host name and IPC namespaces
set -eu
lower=$1 name=$2
hostname "$name"

# Whatever is written goes to memory, and with the last process of the machine.
top=/mnt
mount -t tmpfs -o mode=755 machine $top
mkdir $top/upper $top/work $top/root
root=$top/root
mount -t overlay -o "lowerdir=$lower,upperdir=$top/upper,workdir=$top/work" machine $root

mount -t proc -o nosuid,nodev,noexec proc $root/proc
# What is the whole computer's is not this machine's to change; its network is.
mount --bind $root/proc/sys $root/proc/sys
mount -o remount,bind,ro $root/proc/sys
mount --bind $root/proc/sys/net $root/proc/sys/net
mount -o remount,bind,rw $root/proc/sys/net
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs $root/sys
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 $root/sys/fs/cgroup
mount -t tmpfs -o mode=755,nosuid tmpfs $root/dev
for device in null zero full random urandom tty; do
	: >$root/dev/$device
	mount --bind /dev/$device $root/dev/$device
done
mkdir $root/dev/pts $root/dev/shm $root/dev/net
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts $root/dev/pts
ln -s pts/ptmx $root/dev/ptmx
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs $root/dev/shm
[ ! -e /dev/net/tun ] || { : >$root/dev/net/tun; mount --bind /dev/net/tun $root/dev/net/tun; }
for link in fd:/proc/self/fd stdin:/proc/self/fd/0 stdout:/proc/self/fd/1 stderr:/proc/self/fd/2; do
	ln -s "${link#*:}" "$root/dev/${link%%:*}"
done
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs $root/run
mkdir -p $root/run/lab
mount --rbind /run/lab $root/run/lab

tr -d - </proc/sys/kernel/random/uuid >$root/etc/machine-id
echo "$name" >$root/etc/hostname
printf '127.0.0.1 localhost\n::1 localhost\n127.0.1.1 %s\n' "$name" >$root/etc/hosts

cd $root
mkdir -p run/old
pivot_root . run/old
cd /
umount -l /run/old
rmdir /run/old
# Nothing of the computer's own: no modules, no clock, no raw hardware.
exec env -i container=flannel-lab PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
	setpriv --bounding-set=-sys_module,-sys_time,-sys_rawio,-syslog,-mac_admin,-mac_override,-wake_alarm \
	/lib/systemd/systemd
