# From a node's network to a machine's worth of namespaces: joins the node's cgroups, then leaves.
# usage: sh -c THIS enter BOOT-SCRIPT CGROUPS NAME; in a mount namespace of its own
set -eu
boot=$1 cgroups=$2 name=$3
mount -t tmpfs -o mode=755 cgroups /sys/fs/cgroup
for place in $cgroups; do
	controllers=${place%%:*}
	dir=/sys/fs/cgroup/${controllers:-unified}
	mkdir "$dir"
	case $controllers in
	'') mount -t cgroup2 cgroup2 "$dir" ;;
	name=*) mount -t cgroup -o "none,$controllers" cgroup "$dir" ;;
	*) mount -t cgroup -o "$controllers" cgroup "$dir" ;;
	esac
	echo $$ >"$dir${place#*:}/cgroup.procs"
done
exec unshare --pid --fork --kill-child --mount-proc --cgroup --uts --ipc sh -c "$boot" boot "$cgroups" "$name"
