# Runs a program among the node's own processes: in its cgroups. usage: sh -c THIS join PROGRAM...
set -eu
for list in /sys/fs/cgroup/*/cgroup.procs; do
	case $list in
	# cgroup v2: what is beside it is not for processes.
	/sys/fs/cgroup/system/*) echo $$ >"$list" ;;
	*) [ -e /sys/fs/cgroup/cgroup.controllers ] || echo $$ >"$list" ;;
	esac
done
exec "$@"
