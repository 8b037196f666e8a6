# From a node's network to a machine of its own: joins the cgroup, then leaves for new namespaces.
# usage: sh -c THIS enter BOOT-SCRIPT CGROUP ROOT NAME; in a mount namespace of its own
set -eu
boot=$1 cgroup=$2
shift 2
mount -t cgroup2 cgroup2 /sys/fs/cgroup
echo $$ >"/sys/fs/cgroup$cgroup/cgroup.procs"
exec unshare --pid --fork --kill-child --cgroup --uts --ipc sh -c "$boot" boot "$@"
