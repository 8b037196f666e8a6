# Holds a cgroup for a node in every hierarchy that this machine has, and removes them in the end,
# whatever the end is: the far side of our standard input is held by the lab's process alone.
# usage: sh -c THIS hold NAME; in a mount namespace of its own
set -eu
name=$1
top=/mnt
mount -t tmpfs -o mode=755 cgroups $top

# One line each: its controllers (nothing for cgroup v2), and where we are in it. The root of cgroup v2 is the only
# place in it where processes and controllers may be together, so a node's cgroup is just below that.
hierarchies() { sed -n 's/^[0-9]*:\([^:]*\):\(.*\)/\1:\2/p' /proc/self/cgroup; }
v2_only() { [ "$(hierarchies | wc -l)" = 1 ]; }

places=
for line in $(hierarchies); do
	controllers=${line%%:*} own=${line#*:}
	dir=$top/${controllers:-unified}
	mkdir "$dir"
	case $controllers in
	'') mount -t cgroup2 cgroup2 "$dir" && { ! v2_only || own=/; } ;;
	name=*) mount -t cgroup -o "none,$controllers" cgroup "$dir" ;;
	*) mount -t cgroup -o "$controllers" cgroup "$dir" ;;
	esac
	cgroup=$dir${own%/}/$name
	if [ "$dir" = $top/unified ] && v2_only; then
		for controller in cpuset cpu io memory hugetlb pids; do
			echo +$controller >"$dir/cgroup.subtree_control" 2>/dev/null || true
		done
	fi
	mkdir "$cgroup"
	# Without these nothing can be put into it.
	if [ -e "$cgroup/cpuset.cpus" ] && ! [ "$dir" = $top/unified ]; then
		cat "${cgroup%/*}/cpuset.cpus" >"$cgroup/cpuset.cpus"
		cat "${cgroup%/*}/cpuset.mems" >"$cgroup/cpuset.mems"
		echo 1 >"$cgroup/cgroup.clone_children"
	fi
	places="$places $controllers:${own%/}/$name"
done
echo "${places# }"
read -r _ || true

# The node's processes are being killed; a cgroup can go once they are buried.
for place in $places; do
	dir=${place%%:*}
	cgroup=$top/${dir:-unified}${place#*:}
	tries=0
	while [ -d "$cgroup" ] && [ $tries -lt 600 ]; do
		find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null || sleep 0.05
		tries=$((tries + 1))
	done
	[ ! -d "$cgroup" ] || echo "$cgroup is still in use" >&2
done
