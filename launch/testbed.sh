#!/usr/bin/env bash
# Several hosts on one machine, to try a multi-host run or `ds-train doctor` without a cluster: network
# namespaces on a bridge, each with its own host name, /etc/hosts, /dev/shm and sshd, and ssh between all
# of them without a password. Nothing leaves the namespaces: the bridge is in one too, and the user's
# ~/.ssh, the machine's own sshd and /etc/hosts are not touched.
#
#   launch/testbed.sh up [NUMBER]          makes the hosts node-0, node-1, ... (3); prints their hostfile
#   launch/testbed.sh status               a line for each host
#   launch/testbed.sh exec HOST COMMAND    runs a command on a host, in the folder that one is in
#   launch/testbed.sh down                 ends every process of the hosts and removes everything
#
# needs root, and the Debian packages iproute2, openssh-server, openssh-client; pdsh for the launcher.
# TESTBED=NAME (default tb) tells several of them apart; their files lie in $TESTBED_DIR, else
# $TMPDIR/ds-train-testbed-NAME. Exit codes: 0 done, 2 can't be done here, 1 the rest.
set -euo pipefail

NAME=${TESTBED:-tb}
DIR=${TESTBED_DIR:-${TMPDIR:-/tmp}/ds-train-testbed-$NAME}
SUBNET=10.213.7

refuse() { echo "testbed: $1" >&2; exit 2; }

check() {
    [[ $NAME =~ ^[a-z0-9]{1,6}$ ]] || refuse "TESTBED=$NAME: use one to six of a-z and 0-9."
    [[ $EUID -eq 0 ]] || refuse "needs root, to make network namespaces."
    local program
    for program in ip nsenter unshare ssh ssh-keygen; do
        command -v "$program" >/dev/null || refuse "there is no $program; install iproute2, util-linux, openssh-client."
    done
    [[ -x /usr/sbin/sshd ]] || refuse "there is no /usr/sbin/sshd; install openssh-server."
}

space() { echo "$NAME-$1"; }      # namespace of a host; the bridge is in `switch`
hosts() { cut -d' ' -f1 "$DIR/hostfile"; }
is_up() { [[ -f $DIR/hostfile ]]; }

keys() {
    ssh-keygen -q -t ed25519 -N '' -C testbed -f "$DIR/client_key"
    ssh-keygen -q -t ed25519 -N '' -C testbed -f "$DIR/host_key"
    cp "$DIR/client_key.pub" "$DIR/authorized_keys"
    local key
    key=$(cut -d' ' -f1,2 "$DIR/host_key.pub")
    echo "* $key" >"$DIR/known_hosts"
}

# Bound over the machine's own files inside each host's mount namespace, so that plain `ssh node-1`, and
# what DeepSpeed and pdsh make of it, need no option and no variable.
settings() {
    cat >"$DIR/ssh_config" <<END
Host *
    IdentityFile $DIR/client_key
    IdentitiesOnly yes
    UserKnownHostsFile $DIR/known_hosts
    StrictHostKeyChecking yes
    ConnectTimeout 5
END
}

# SetEnv lines added to a host's file, and SIGHUP to its sshd, change what its commands find.
sshd_settings() {
    cat >"$DIR/$1.sshd" <<END
HostKey $DIR/host_key
AuthorizedKeysFile $DIR/authorized_keys
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
MaxStartups 100
MaxSessions 100
PidFile none
END
}

add_host() {
    local index=$1 host="node-$1" net
    net=$(space "$index")
    sshd_settings "$host"
    ip netns add "$net"
    ip -n "$(space switch)" link add "port$index" type veth peer name eth0 netns "$net"
    ip -n "$(space switch)" link set "port$index" master bridge up
    ip -n "$net" link set lo up
    ip -n "$net" address add "$SUBNET.$((index + 1))/24" dev eth0
    ip -n "$net" link set eth0 up
    ip netns exec "$net" unshare --uts --mount --propagation private setsid \
        "$0" _host "$host" </dev/null >"$DIR/$host.log" 2>&1 &
    echo $! >"$DIR/$host.pid"
}

# What a host is: this process becomes its sshd, whose children have its names, files and network.
become_host() {
    hostname "$1"
    mount -t tmpfs -o mode=755 run /run
    mount -t tmpfs -o mode=1777 shm /dev/shm
    mkdir /run/sshd
    mount --bind "$DIR/hosts" /etc/hosts
    mkdir -p /etc/ssh && touch -a /etc/ssh/ssh_config
    mount --bind "$DIR/ssh_config" /etc/ssh/ssh_config
    exec /usr/sbin/sshd -D -e -f "$DIR/$1.sshd"
}

up() {
    local number=${1:-3} index
    if ! [[ $number =~ ^[1-9][0-9]?$ ]] || ((number > 64)); then refuse "up $number: give 1 to 64 hosts."; fi
    ! is_up || refuse "is up already, in $DIR; end it with: $0 down"
    # what a run that was killed half-way has left
    remove
    mkdir -p "$DIR"
    chmod 700 "$DIR"
    trap 'echo "testbed: could not be made; see the lines above" >&2; remove' EXIT
    keys
    settings
    echo "127.0.0.1 localhost" >"$DIR/hosts"
    for ((index = 0; index < number; index++)); do
        echo "$SUBNET.$((index + 1)) node-$index" >>"$DIR/hosts"
        echo "node-$index slots=1" >>"$DIR/hostfile.new"
    done
    ip netns add "$(space switch)" || refuse "network namespaces are not permitted here."
    ip -n "$(space switch)" link add bridge type bridge || refuse "bridges are not permitted here."
    ip -n "$(space switch)" link set bridge up
    for ((index = 0; index < number; index++)); do add_host "$index"; done
    wait_for_ssh "$number"
    mv "$DIR/hostfile.new" "$DIR/hostfile"
    trap - EXIT
    echo "$DIR/hostfile"
}

wait_for_ssh() {
    local index host tries
    for ((index = 0; index < $1; index++)); do
        host="node-$index"
        for ((tries = 0; tries < 100; tries++)); do
            if grep -q 'Server listening' "$DIR/$host.log"; then continue 2; fi
            kill -0 "$(<"$DIR/$host.pid")" || break
            sleep 0.1
        done
        echo "testbed: sshd of $host does not listen:" >&2
        cat "$DIR/$host.log" >&2
        return 1
    done
}

on_host() {
    is_up || refuse "is not up; make it with: $0 up"
    local host=$1
    shift
    [[ -f $DIR/$host.pid ]] || refuse "there is no host $host; there are $(hosts | paste -sd' ')."
    # shellcheck disable=SC2016  # the inner shell expands these
    exec nsenter --target "$(<"$DIR/$host.pid")" --net --uts --mount \
        sh -c 'cd "$1" && shift && exec "$@"' sh "$PWD" "$@"
}

status() {
    if ! is_up; then
        echo "testbed $NAME is not up"
        return
    fi
    local host state
    while read -r host; do
        state="no sshd"
        if kill -0 "$(<"$DIR/$host.pid")" 2>/dev/null; then state="sshd $(<"$DIR/$host.pid")"; fi
        echo "$host $(grep " $host\$" "$DIR/hosts" | cut -d' ' -f1)" \
            "$state, $(ip netns pids "$(space "${host#node-}")" | wc -l) processes"
    done < <(hosts)
    echo "hostfile $DIR/hostfile"
}

remove() {
    local net pids
    while read -r net; do
        mapfile -t pids < <(ip netns pids "$net")
        ((${#pids[@]} == 0)) || kill -KILL "${pids[@]}" 2>/dev/null || true
        ip netns delete "$net"
    done < <(ip netns list | cut -d' ' -f1 | grep -E "^$NAME-([0-9]+|switch)\$" || true)
    rm -rf "$DIR"
}

check
case ${1:-} in
    up) up "${2:-3}" ;;
    down) remove ;;
    status) status ;;
    exec)
        (($# >= 3)) || refuse "exec: name a host and a command."
        on_host "${@:2}"
        ;;
    _host) become_host "$2" ;;
    *) refuse "say up [NUMBER], status, exec HOST COMMAND, or down." ;;
esac
