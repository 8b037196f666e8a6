#!/bin/sh
# Turns the subnet file that flanneld writes into options for the docker daemon.

set -u

# The variable of -k may have any name, so the script's own ones have a prefix.
mdo_flannel_env=/run/flannel/subnet.env
mdo_docker_env=/run/docker_opts.env
mdo_combined_key=DOCKER_OPTS
mdo_individual=
mdo_combined=
mdo_ipmasq=yes

usage() {
	cat <<EOF
usage: ${0##*/} [-f FILE] [-d FILE] [-i] [-c] [-m] [-k NAME]

Reads the subnet file of flanneld and writes options for the docker daemon.

  -f FILE   the subnet file ($mdo_flannel_env)
  -d FILE   the file to write ($mdo_docker_env)
  -i        write one variable for each option
  -c        write one variable with all options; with neither, both
  -k NAME   the name of that variable ($mdo_combined_key); what it holds in
            the environment is kept in front of the options
  -m        leave --ip-masq out
  -h        this text
EOF
}

warn() {
	printf '%s: %s\n' "${0##*/}" "$*" >&2
}

fail() {
	warn "$@"
	exit 1
}

while getopts f:d:ick:mh mdo_opt; do
	case $mdo_opt in
	f) mdo_flannel_env=$OPTARG ;;
	d) mdo_docker_env=$OPTARG ;;
	i) mdo_individual=yes ;;
	c) mdo_combined=yes ;;
	k) mdo_combined_key=$OPTARG ;;
	m) mdo_ipmasq= ;;
	h)
		usage
		exit 0
		;;
	*)
		usage >&2
		exit 1
		;;
	esac
done
shift $((OPTIND - 1))
[ $# -eq 0 ] || fail "unexpected argument '$1'; -h lists the options"

if [ -z "$mdo_individual$mdo_combined" ]; then
	mdo_individual=yes
	mdo_combined=yes
fi

# It is given to eval below, so nothing but a name will do.
case $mdo_combined_key in
'' | [0-9]* | *[!A-Za-z0-9_]*) fail "-k '$mdo_combined_key' is not a variable's name" ;;
esac
eval "mdo_held=\${$mdo_combined_key-}"

[ -f "$mdo_flannel_env" ] || fail "$mdo_flannel_env does not exist: see that flanneld runs and what its log says"
[ -r "$mdo_flannel_env" ] || fail "$mdo_flannel_env cannot be read"

# The file is read, not run. A last line without its end may have been cut off anywhere, so that only a word
# that can be told to be whole is taken from it.
mdo_subnet=
mdo_subnet6=
mdo_mtu=
mdo_masq=
mdo_cut=
while IFS= read -r mdo_line || { [ -n "$mdo_line" ] && mdo_cut=yes; }; do
	# A comment, a carriage return and blanks at the end, quotes, and "export" mean to a shell what they mean here.
	mdo_line=${mdo_line%%[[:space:]]#*}
	mdo_line=${mdo_line%"${mdo_line##*[![:space:]]}"}
	mdo_line=${mdo_line#export }
	mdo_value=${mdo_line#*=}
	case $mdo_value in
	\"*\" | \'*\')
		mdo_value=${mdo_value#?}
		mdo_value=${mdo_value%?}
		;;
	esac
	if [ -n "$mdo_cut" ]; then
		case $mdo_line in
		FLANNEL_IPMASQ=true | FLANNEL_IPMASQ=false) ;;
		F | FL*) fail "$mdo_flannel_env is cut off at '$mdo_line'; restart flanneld to have it written again" ;;
		esac
	fi
	case $mdo_line in
	FLANNEL_SUBNET=*) mdo_subnet=$mdo_value ;;
	FLANNEL_IPV6_SUBNET=*) mdo_subnet6=$mdo_value ;;
	FLANNEL_MTU=*) mdo_mtu=$mdo_value ;;
	FLANNEL_IPMASQ=*) mdo_masq=$mdo_value ;;
	esac
	[ -z "$mdo_cut" ] || break
done <"$mdo_flannel_env"

[ -n "$mdo_subnet$mdo_subnet6" ] || fail "$mdo_flannel_env lacks FLANNEL_SUBNET: it is not flanneld's or was cut off; restart flanneld to have it written again"
[ -n "$mdo_subnet" ] || warn "$mdo_flannel_env has no FLANNEL_SUBNET, only IPv6: --bip is left out"
[ -n "$mdo_mtu" ] || warn "$mdo_flannel_env has no FLANNEL_MTU: --mtu is left out"
[ -n "$mdo_masq" ] || [ -z "$mdo_ipmasq" ] || warn "$mdo_flannel_env has no FLANNEL_IPMASQ: --ip-masq is left out"

# Succeeds if $1 is a number of at most $3 digits, without a leading zero, and not above $2.
is_number() {
	case $1 in
	'' | *[!0-9]* | 0?*) return 1 ;;
	esac
	[ ${#1} -le "$3" ] && [ "$1" -le "$2" ]
}

# Succeeds if $1 is an IPv4 address with its prefix length.
is_subnet() {
	(
		case $1 in
		*[!0-9./]* | */*/* | *.) exit 1 ;;
		*/*) ;;
		*) exit 1 ;;
		esac
		is_number "${1#*/}" 32 2 || exit 1
		# The character class above leaves nothing that a shell would expand.
		IFS=.
		address=${1%/*}
		case $address in *.) exit 1 ;; esac
		set -- $address
		[ $# -eq 4 ] || exit 1
		for byte; do
			is_number "$byte" 255 3 || exit 1
		done
	)
}

# What goes to the daemon's command line must be what it says it is.
[ -z "$mdo_subnet" ] || is_subnet "$mdo_subnet" || fail "$mdo_flannel_env: FLANNEL_SUBNET=$mdo_subnet is not an IPv4 address with its length"
[ -z "$mdo_mtu" ] || is_number "$mdo_mtu" 65535 5 || fail "$mdo_flannel_env: FLANNEL_MTU=$mdo_mtu is not a number from 0 to 65535"

# An option under a name of this kind that the environment holds is written as well; the file's own ones count more.
mdo_names=$(env | sed -n 's/^\(DOCKER_OPT_[A-Za-z0-9_]*\)=.*/\1/p')
if [ -n "$mdo_subnet" ]; then
	DOCKER_OPT_BIP=--bip=$mdo_subnet
	mdo_names="$mdo_names DOCKER_OPT_BIP"
fi
if [ -n "$mdo_mtu" ]; then
	DOCKER_OPT_MTU=--mtu=$mdo_mtu
	mdo_names="$mdo_names DOCKER_OPT_MTU"
fi
if [ -n "$mdo_ipmasq" ] && [ -n "$mdo_masq" ]; then
	# One of the two masquerades, never both.
	case $mdo_masq in
	true) DOCKER_OPT_IPMASQ=--ip-masq=false ;;
	false) DOCKER_OPT_IPMASQ=--ip-masq=true ;;
	*) fail "$mdo_flannel_env: FLANNEL_IPMASQ=$mdo_masq is neither true nor false" ;;
	esac
	mdo_names="$mdo_names DOCKER_OPT_IPMASQ"
fi
# shellcheck disable=SC2086 # names, one a word
mdo_names=$(printf '%s\n' $mdo_names | LC_ALL=C sort -u)

# The value of a variable as both a shell and systemd read it between double quotes.
quoted() {
	printf '%s' "$1" | sed 's/[\\"$`]/\\&/g'
}

output() {
	mdo_all=$(quoted "$mdo_held")${mdo_held:+ }
	for mdo_name in $mdo_names; do
		eval "mdo_value=\$$mdo_name"
		mdo_value=$(quoted "$mdo_value")
		[ -z "$mdo_individual" ] || printf '%s="%s"\n' "$mdo_name" "$mdo_value"
		mdo_all="$mdo_all $mdo_value"
	done
	if [ -n "$mdo_combined" ]; then
		printf '%s="%s"\n' "$mdo_combined_key" "$mdo_all"
	fi
}

# Succeeds unless something else is on the way to this node's subnet: docker's bridge would not get its packets.
route_is_free() {
	[ -n "$mdo_subnet" ] && command -v ip >/dev/null || return 0
	mdo_last=${mdo_subnet%/*}
	mdo_net=${mdo_last%.*}.$((${mdo_last##*.} - 1))/${mdo_subnet#*/}
	mdo_route=$(ip route show 2>/dev/null | sed -n "s/[[:space:]]*$//; /^${mdo_net%%/*}\/${mdo_net#*/} via /p")
	[ -z "$mdo_route" ] || fail "there is a route to this node's own subnet already: '$mdo_route'; delete it, or find out who makes it"
}

[ ! -d "$mdo_docker_env" ] || fail "$mdo_docker_env is a directory"
in_place() {
	output >"$mdo_docker_env" || fail "$mdo_docker_env cannot be written"
	route_is_free
	exit
}

# Not a file that could be replaced, such as a FIFO or /dev/stdout.
case $mdo_docker_env in
/dev/*) in_place ;;
esac
[ ! -e "$mdo_docker_env" ] || [ -f "$mdo_docker_env" ] || in_place
[ ! -L "$mdo_docker_env" ] || mdo_docker_env=$(readlink -f "$mdo_docker_env") || fail "the link $mdo_docker_env leads nowhere"

# A file beside it, then a rename: a reader sees the old one or the new one, whole.
case $mdo_docker_env in
*/*) mdo_dir=${mdo_docker_env%/*}/ ;;
*) mdo_dir=./ ;;
esac
mdo_new=
trap '[ -z "$mdo_new" ] || rm -f "$mdo_new"' EXIT
trap 'exit 1' HUP INT TERM
mkdir -p "$mdo_dir" || fail "the directory of $mdo_docker_env cannot be made"
if ! mdo_new=$(mktemp "${mdo_dir}.docker_opts.XXXXXX" 2>/dev/null); then
	[ -f "$mdo_docker_env" ] || fail "$mdo_docker_env cannot be written: no file can be made in $mdo_dir"
	in_place
fi
output >"$mdo_new" && chmod 0644 "$mdo_new" || fail "$mdo_docker_env cannot be written"
if mv -f "$mdo_new" "$mdo_docker_env" 2>/dev/null; then
	mdo_new=
	route_is_free
else
	# A file that is mounted by itself, as into a container, cannot be replaced.
	in_place
fi
