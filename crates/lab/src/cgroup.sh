# Holds a cgroup for a machine or a docker and removes it in the end, whatever the end is: the far side of our
# standard input is held by the lab's process alone. usage: sh -c THIS cgroup NAME
# Runs in a mount namespace of its own.
set -eu
mount -t cgroup2 cgroup2 /sys/fs/cgroup
own=$(sed -n 's/^0:://p' /proc/self/cgroup)
cgroup=/sys/fs/cgroup${own%/}/$1
mkdir "$cgroup"
echo "${own%/}/$1"
read -r _ || true
# Its processes are being killed; a cgroup can go once they are buried.
tries=0
while [ -d "$cgroup" ] && [ $tries -lt 600 ]; do
	echo 1 >"$cgroup/cgroup.kill" 2>/dev/null || true
	find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null || sleep 0.05
	tries=$((tries + 1))
done
[ ! -d "$cgroup" ] || { echo "$cgroup is still in use" >&2; exit 1; }
