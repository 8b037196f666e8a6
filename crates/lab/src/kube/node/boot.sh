# A node's first process: arranges its files so that every default path of kubelet, containerd and
# manifests is the node's own, and then only buries orphans.
# usage: sh -c THIS boot CGROUPS NAME; in new mount, process, cgroup, host name and IPC namespaces
set -eu
cgroups=$1 name=$2
hostname "$name"

# /run and /var/lib are the node's own already. What else may be written to goes to memory too.
own=/run/own
for dir in /etc /opt; do
	mkdir -p $own$dir $own/work$dir
	mount -t overlay -o "lowerdir=$dir,upperdir=$own$dir,workdir=$own/work$dir" node $dir
done
for dir in /var/log /tmp; do
	mkdir -p $own$dir
	mount --bind $own$dir $dir
done
rm -rf /etc/cni /etc/kubernetes /opt/cni
mkdir -p /etc/cni/net.d /etc/kubernetes /opt/cni/bin /run/lock /run/netns
cp /usr/lib/cni/* /opt/cni/bin/
rm -f /opt/cni/bin/flannel
echo "$name" >/etc/hostname
# Nobody answers there; but kubelet wants one.
echo 'nameserver 127.0.0.1' >/etc/kubernetes/resolv.conf

# The devices and cgroups as this node's network and cgroup namespace show them.
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs /sys
if [ "${cgroups%%:*}" = '' ] && [ "${cgroups#* }" = "$cgroups" ]; then
	mount -t cgroup2 cgroup2 /sys/fs/cgroup
	# Processes and controllers may not be together in one cgroup.
	mkdir /sys/fs/cgroup/system
	echo $$ >/sys/fs/cgroup/system/cgroup.procs
	for controller in cpuset cpu io memory hugetlb pids; do
		echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control 2>/dev/null || true
	done
else
	mount -t tmpfs -o mode=755 cgroups /sys/fs/cgroup
	for place in $cgroups; do
		controllers=${place%%:*}
		case $controllers in
		'') continue ;;
		name=*) dir=${controllers#name=} options=none,$controllers ;;
		*) dir=$controllers options=$controllers ;;
		esac
		mkdir "/sys/fs/cgroup/$dir"
		mount -t cgroup -o "$options" cgroup "/sys/fs/cgroup/$dir"
	done
fi

# kubelet sets some of the whole machine's parameters: show it what it wants to see, so that it changes nothing.
mkdir -p $own/sys
while read -r key value; do
	[ -e "/proc/sys/$key" ] || continue
	file=$own/sys/${key##*/}
	echo "$value" >"$file"
	mount --bind "$file" "/proc/sys/$key"
done <<END
vm/overcommit_memory 1
vm/panic_on_oom 0
kernel/panic 10
kernel/panic_on_oops 1
kernel/keys/root_maxkeys 1000000
kernel/keys/root_maxbytes 25000000
END

# The rest is the machine's own: nothing may be left in it.
mount -o remount,bind,ro /
# Mounts of pods must reach those whom they are for.
mount --make-rshared /
# Ignored, a child's end is dealt with by the kernel; so are those of all orphans, which come to us.
trap '' CHLD
exec sleep infinity
