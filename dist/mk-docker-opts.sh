#!/bin/sh
# Turns the subnet file that flanneld writes into options for the docker daemon.

set -u

flannel_env=/run/flannel/subnet.env
docker_env=/run/docker_opts.env
combined_key=DOCKER_OPTS
individual=
combined=
ipmasq=yes

usage() {
	cat <<EOF
usage: ${0##*/} [-f FILE] [-d FILE] [-i] [-c] [-m] [-k NAME]

Reads the subnet file of flanneld and writes options for the docker daemon.

  -f FILE   the subnet file ($flannel_env)
  -d FILE   the file to write ($docker_env)
  -i        write one variable for each option
  -c        write one variable with all options; with neither, both
  -k NAME   the name of that variable ($combined_key); what it holds in
            the environment is kept in front of the options
  -m        leave --ip-masq out
  -h        this text
EOF
}

fail() {
	printf '%s: %s\n' "${0##*/}" "$*" >&2
	exit 1
}

while getopts f:d:ick:mh opt; do
	case $opt in
	f) flannel_env=$OPTARG ;;
	d) docker_env=$OPTARG ;;
	i) individual=yes ;;
	c) combined=yes ;;
	k) combined_key=$OPTARG ;;
	m) ipmasq= ;;
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

if [ -z "$individual$combined" ]; then
	individual=yes
	combined=yes
fi

# It is given to eval below, so nothing but a name will do.
case $combined_key in
'' | [0-9]* | *[!A-Za-z0-9_]*) fail "-k '$combined_key' is not a variable's name" ;;
esac

[ -f "$flannel_env" ] || fail "$flannel_env does not exist: see that flanneld runs and what its log says"
[ -r "$flannel_env" ] || fail "$flannel_env cannot be read"

# The file is read, not run. A last line without its end may have been cut off anywhere, so that only a word
# that can be told to be whole is taken from it.
subnet=
mtu=
masq=
cut=
while IFS= read -r line || { cut=yes && [ -n "$line" ]; }; do
	value=${line#*=}
	value=${value#\"}
	value=${value%\"}
	case $cut$line in
	FLANNEL_SUBNET=*) subnet=$value ;;
	FLANNEL_MTU=*) mtu=$value ;;
	FLANNEL_IPMASQ=* | yesFLANNEL_IPMASQ=*) masq=$value ;;
	esac
done <"$flannel_env"

missing=
[ -n "$subnet" ] || missing="$missing FLANNEL_SUBNET"
[ -n "$mtu" ] || missing="$missing FLANNEL_MTU"
[ -n "$masq" ] || [ -z "$ipmasq" ] || missing="$missing FLANNEL_IPMASQ"
[ -z "$missing" ] || fail "$flannel_env lacks$missing: it is not flanneld's or was cut off; restart flanneld to have it written anew"

# What goes to the daemon's command line must be what it says it is.
case $subnet in
*[!0-9./]* | */*/* | /* | */) fail "$flannel_env: FLANNEL_SUBNET=$subnet is not an IPv4 address with its length" ;;
*.*.*.*/*) ;;
*) fail "$flannel_env: FLANNEL_SUBNET=$subnet is not an IPv4 address with its length" ;;
esac
case $mtu in
*[!0-9]*) fail "$flannel_env: FLANNEL_MTU=$mtu is not a number" ;;
esac

bip_opt=--bip=$subnet
mtu_opt=--mtu=$mtu
masq_opt=
if [ -n "$ipmasq" ]; then
	# One of the two masquerades, never both.
	case $masq in
	true) masq_opt=--ip-masq=false ;;
	false) masq_opt=--ip-masq=true ;;
	*) fail "$flannel_env: FLANNEL_IPMASQ=$masq is neither true nor false" ;;
	esac
fi

# The value of a variable as both a shell and systemd read it between double quotes.
quoted() {
	printf '%s' "$1" | sed 's/[\\"$`]/\\&/g'
}

output() {
	if [ -n "$individual" ]; then
		printf 'DOCKER_OPT_BIP="%s"\n' "$bip_opt"
		[ -z "$masq_opt" ] || printf 'DOCKER_OPT_IPMASQ="%s"\n' "$masq_opt"
		printf 'DOCKER_OPT_MTU="%s"\n' "$mtu_opt"
	fi
	if [ -n "$combined" ]; then
		eval "held=\${$combined_key-}"
		printf '%s="%s"\n' "$combined_key" "$(quoted "$held") $bip_opt${masq_opt:+ $masq_opt} $mtu_opt"
	fi
}

[ ! -d "$docker_env" ] || fail "$docker_env is a directory"
case $docker_env in
/dev/*)
	# Not a file that could be replaced, such as /dev/stdout.
	output >"$docker_env" || fail "$docker_env cannot be written"
	exit 0
	;;
esac
[ ! -L "$docker_env" ] || docker_env=$(readlink -f "$docker_env") || fail "the link $docker_env leads nowhere"

# A file beside it, then a rename: a reader sees the old one or the new one, whole.
case $docker_env in
*/*) dir=${docker_env%/*}/ ;;
*) dir=./ ;;
esac
new=
trap '[ -z "$new" ] || rm -f "$new"' EXIT
trap 'exit 1' HUP INT TERM
mkdir -p "$dir" || fail "the directory of $docker_env cannot be made"
new=$(mktemp "${dir}.docker_opts.XXXXXX") || fail "$docker_env cannot be written"
output >"$new" && chmod 0644 "$new" && mv -f "$new" "$docker_env" || fail "$docker_env cannot be written"
new=
