#!/usr/bin/env bash
# A real Slurm cluster of several nodes on one Debian machine, for tests.
#
# slurmctld, munged, slurmdbd with a MariaDB of its own, and one slurmd a node. Each node has its own host name, process
# tree and network (an address on a bridge), so that it can die and be cut off alone. All files lie in one state folder.
# `down` ends only the processes that `up` recorded, by their number and the kernel's start time. Nothing is real of
# GPUs (character devices like /dev/null), of energy counters (files that grow), of core and memory limits (no cgroups).
set -euo pipefail
umask 022

usage() {
    cat <<END
usage:
  testbed.sh install              the packages, by apt-get
  testbed.sh up DIR [options]     start; wait until all nodes are idle
  testbed.sh down DIR [--purge]   stop what \`up\` recorded; --purge removes DIR
  testbed.sh status DIR           daemons and nodes; 0 if every part is up
  testbed.sh env DIR              the line that points Slurm's commands here: eval "\$(testbed.sh env DIR)"
  testbed.sh crash DIR NAME       kill -9 a node and all in it, or munged, slurmctld, slurmdbd, mariadbd
  testbed.sh start DIR NAME       start it again
  testbed.sh in DIR NODE CMD...   run a command in the node's network and with its mounts
  testbed.sh cut DIR NODE         cut the node's network; heal DIR NODE ends it

options of up:
  --nodes N            nodes, 1 to 39 (2)
  --cpus N             CPUs that each node advertises (2)
  --mem MB             memory that each node advertises (4000)
  --gpus N             false GPUs per node (2)
  --watts W            power of each node in ConsumedEnergy (100)
  --prefix NAME        nodes are NAME1..NAMEn (node)
  --port-base N        first of a block of 20 ports (28000; the next free block where it is taken)
  --slurmd-timeout S   seconds until a silent node is DOWN (15; below a ping round's 11 healthy nodes go DOWN with it)
  --conf LINE          one more line of slurm.conf; may be given several times
END
}

say() { printf 'testbed.sh: %s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

# ---------------------------------------------------------------- processes

proc_start() { # PID -> kernel start time; fails where the process is gone or a zombie
    local stat fields
    { stat=$(<"/proc/$1/stat"); } 2>/dev/null || return 1
    read -ra fields <<<"${stat##*) }"
    [[ ${fields[0]} != [ZX] ]] || return 1
    printf '%s\n' "${fields[19]}"
}

pid_of() { # NAME -> its process, only while that very process lives
    local pid start
    [[ -f $DIR/pids/$1 ]] || return 1
    read -r pid start <"$DIR/pids/$1" || return 1
    [[ $(proc_start "$pid") == "$start" ]] || return 1
    printf '%s\n' "$pid"
}

gone() { ! pid_of "$1" >/dev/null; }

wait_for() { # SECONDS COMMAND...
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < end)) || return 1
        sleep 0.1
    done
}

stop_one() { # NAME SECONDS: TERM, after that long KILL
    local pid
    if pid=$(pid_of "$1"); then
        kill -TERM "$pid" 2>/dev/null || true
        wait_for "$2" gone "$1" || kill -KILL "$pid" 2>/dev/null || true
        wait_for 2 gone "$1" || true
    fi
    rm -f "$DIR/pids/$1"
}

launch() { # NAME COMMAND...: in the background, in a session of its own, nothing inherited but a path
    local name=$1 log=$DIR/log/$1.out pid start
    shift
    setsid env -i PATH="$PATH" HOME="${HOME:-/}" LANG=C.UTF-8 SLURM_CONF="$DIR/slurm.conf" BED="$DIR" \
        "$@" </dev/null >>"$log" 2>&1 8>&- 9>&- &
    pid=$!
    disown "$pid" 2>/dev/null || true
    start=$(proc_start "$pid") || { tail -n 5 "$log" >&2; die "$name did not start (log: $log)"; }
    printf '%s %s\n' "$pid" "$start" >"$DIR/pids/$name"
}

# ---------------------------------------------------------------- packages

install() {
    local needed=(munge slurmctld slurmd slurm-client slurmdbd slurm-wlm-mysql-plugin mariadb-server libeatmydata1
        util-linux procps iproute2 hostname) missing=() name guard=/usr/sbin/policy-rc.d log
    for name in "${needed[@]}"; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null) == installed ]] || missing+=("$name")
    done
    ((${#missing[@]})) || return 0
    say "installing ${missing[*]}"
    log=$(mktemp)
    if [[ -e $guard ]]; then guard=''; else # a package must not start its own daemons
        printf '#!/bin/sh\nexit 101\n' >"$guard"
        chmod 755 "$guard"
    fi
    if ! { apt-get -o DPkg::Lock::Timeout=120 update -q && DEBIAN_FRONTEND=noninteractive \
        apt-get -o DPkg::Lock::Timeout=120 install -q -y --no-install-recommends "${missing[@]}"; } \
        </dev/null >"$log" 2>&1; then
        [[ -z $guard ]] || rm -f "$guard"
        tail -n 30 "$log" >&2
        die "apt-get failed (log: $log)"
    fi
    [[ -z $guard ]] || rm -f "$guard"
    rm -f "$log"
}

# ---------------------------------------------------------------- ports, addresses, names

in_use() { # another testbed's folder: does any part of it live, or is someone at work on it?
    local file DIR=$1
    [[ -f $DIR/settings ]] || return 1
    for file in "$DIR"/pids/*; do
        if pid_of "${file##*/}" >/dev/null; then return 0; fi
    done
    ! flock -n "$DIR/lock" true
}

machine_lock() { exec 8>/run/slurm-testbed.lock; flock -w 60 8 || die "/run/slurm-testbed.lock is held"; }
machine_unlock() { exec 8>&-; }

port_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

claim_ports() { # a block that no living testbed has; its number is the network's too
    local owner try claims=/run/slurm-testbed.ports
    mkdir -p "$claims"
    for ((try = 0; try < 30; try++, PORT_BASE += 20)); do
        owner=$(cat "$claims/$PORT_BASE" 2>/dev/null || true)
        if [[ -n $owner && $owner != "$DIR" ]] && in_use "$owner"; then continue; fi
        if ! { port_free "$PORT_BASE" && port_free $((PORT_BASE + 1)) && port_free $((PORT_BASE + 2)); }; then continue; fi
        printf '%s\n' "$DIR" >"$claims/$PORT_BASE"
        NET=$(((PORT_BASE / 20) % 250))
        return 0
    done
    die "no free block of ports below $PORT_BASE"
}

address() { printf '10.66.%s.%s' "$NET" "$1"; } # of node number $1; 254: the controller
bridge() { printf 'bed%s' "$NET"; }
controller() { printf 'bed%s-ctl' "$NET"; }

number() { # NODE -> its number
    local found=${1#"$PREFIX"}
    if [[ $1 != "$PREFIX"* || ! $found =~ ^[0-9]+$ ]] || ((found < 1 || found > NODES)); then die "no node $1"; fi
    printf '%s' "$found"
}

# Slurm looks up a peer's name at each message. An address that is in no hosts file costs a time-out of the name server
# each time: then nodes flap and credentials expire.
name_hosts() { # take this testbed's block, and those of dead ones, out of /etc/hosts; with "add", put ours in
    local copy other i
    copy=$(mktemp /etc/hosts.testbed.XXXXXX)
    cp -p /etc/hosts "$copy"
    while read -r other; do
        if [[ $other != "$DIR" ]] && in_use "$other"; then continue; fi
        awk -v from="# testbed begin $other" -v to="# testbed end $other" \
            '$0 == from {skip = 1} !skip {print} $0 == to {skip = 0}' "$copy" >"$copy.less"
        cat "$copy.less" >"$copy"
        rm -f "$copy.less"
    done < <(sed -n 's/^# testbed begin //p' /etc/hosts)
    if [[ ${1:-} == add ]]; then
        if awk -v name="${PREFIX}1" '!/^#/ {for (i = 2; i <= NF; i++) if ($i == name) found = 1} END {exit !found}' "$copy"; then
            rm -f "$copy"
            die "the name ${PREFIX}1 is in /etc/hosts already: pass another --prefix"
        fi
        {
            echo "# testbed begin $DIR"
            echo "$(address 254) $(controller)"
            for ((i = 1; i <= NODES; i++)); do echo "$(address "$i") $PREFIX$i"; done
            echo "# testbed end $DIR"
        } >>"$copy"
    fi
    # by rename, since others read it meanwhile; in a container it may be a mount
    mv -T "$copy" /etc/hosts 2>/dev/null || { cat "$copy" >/etc/hosts; rm -f "$copy"; }
}

net_up() {
    local i space
    net_down
    ip link add "$(bridge)" type bridge
    ip addr add "$(address 254)/24" dev "$(bridge)"
    ip link set "$(bridge)" up
    for ((i = 1; i <= NODES; i++)); do
        space=$(bridge)-$PREFIX$i
        ip netns add "$space"
        ip link add "$(bridge).$i" type veth peer name eth0 netns "$space"
        ip link set "$(bridge).$i" master "$(bridge)" up
        ip -n "$space" link set lo up
        ip -n "$space" addr add "$(address "$i")/24" dev eth0
        ip -n "$space" link set eth0 up
        ip -n "$space" route add default via "$(address 254)"
    done
}

net_down() { # also what a killed testbed of the same number left
    local name
    for name in $(ip netns list 2>/dev/null | awk -v p="$(bridge)-" 'index($1, p) == 1 {print $1}'); do
        ip netns del "$name" 2>/dev/null || true
    done
    for name in $(ip -o link show 2>/dev/null | awk -F'[ :@]+' -v b="$(bridge)" '$2 == b || index($2, b ".") == 1 {print $2}'); do
        ip link del "$name" 2>/dev/null || true
    done
}

# ---------------------------------------------------------------- configuration

write_conf() {
    local i gres='' last=$((GPUS - 1))
    {
        cat <<END
ClusterName=testbed
SlurmctldHost=$(controller)($(address 254))
SlurmctldPort=$PORT_BASE
CommunicationParameters=NoCtldInAddrAny
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
# cred_expire is also how long a requeued job waits before it may start again (120 where nothing is said)
AuthInfo=socket=$DIR/munge.sock,cred_expire=5
StateSaveLocation=$DIR/ctld
SlurmdSpoolDir=$DIR/spool/%n
SlurmctldPidFile=$DIR/run/slurmctld.pid
SlurmdPidFile=$DIR/run/slurmd-%n.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd-%n.log
MailProg=$DIR/bin/mail
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=$((MEM / CPUS / 2))
SlurmctldTimeout=10
SlurmdTimeout=$SLURMD_TIMEOUT
MessageTimeout=5
TCPTimeout=2
BatchStartTimeout=10
InactiveLimit=0
KillWait=10
CompleteWait=0
MinJobAge=300
UnkillableStepTimeout=120
ReturnToService=2
JobRequeue=1
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0,batch_sched_delay=0
PriorityType=priority/multifactor
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1,energy=1
AcctGatherEnergyType=acct_gather_energy/pm_counters
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=$(address 254)
AccountingStoragePort=$((PORT_BASE + 1))
# towards slurmdbd this socket is used, not AuthInfo's
AccountingStoragePass=$DIR/munge.sock
AccountingStoreFlags=job_comment,job_env,job_script,job_extra
END
        if ((GPUS > 0)); then
            gres="Gres=gpu:$GPUS"
            printf '%s\n' AccountingStorageTRES=gres/gpu GresTypes=gpu
        fi
        for ((i = 1; i <= NODES; i++)); do
            echo "NodeName=$PREFIX$i NodeHostname=$PREFIX$i NodeAddr=$(address "$i") Port=$((PORT_BASE + 10))" \
                "CPUs=$CPUS RealMemory=$MEM TmpDisk=1000 $gres State=UNKNOWN"
        done
        echo "PartitionName=main Nodes=ALL Default=YES DefaultTime=10 MaxTime=1-0 OverSubscribe=NO State=UP"
        ((${#CONF[@]} == 0)) || printf '%s\n' "${CONF[@]}"
    } >"$DIR/slurm.conf"
    echo CgroupPlugin=disabled >"$DIR/cgroup.conf"
    if ((GPUS > 0)); then # with File= Slurm numbers them and sets CUDA_VISIBLE_DEVICES; with a bare Count= it does not
        mkdir -p "$DIR/dev"
        for ((i = 0; i < GPUS; i++)); do mknod -m 666 "$DIR/dev/nvidia$i" c 1 3; done
        echo "Name=gpu File=$DIR/dev/nvidia$( ((last)) && echo "[0-$last]" || echo 0)" >"$DIR/gres.conf"
    fi
    cat >"$DIR/slurmdbd.conf" <<END
DbdHost=$(controller)
DbdAddr=$(address 254)
DbdPort=$((PORT_BASE + 1))
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$DIR/munge.sock
CommunicationParameters=NoInAddrAny
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$((PORT_BASE + 2))
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct
LogFile=$DIR/log/slurmdbd.log
PidFile=$DIR/run/slurmdbd.pid
END
    chmod 600 "$DIR/slurmdbd.conf"
    echo "options timeout:1 attempts:1" >"$DIR/resolv.conf" # no name server is reached from a node
    cat >"$DIR/bin/mail" <<END
#!/bin/sh
{ printf '%s |' "\$(date +%FT%T)"; printf ' %s' "\$@"; echo; } >>"$DIR/log/mail.log"
cat >/dev/null
END
    cat >"$DIR/bin/node" <<'END'
#!/bin/bash
# process 1 of a node: host name, /sys with this network and these counters, slurmd; reaps orphans
set -u
hostname "$1"
mount --bind "$BED/resolv.conf" /etc/resolv.conf
mount -t sysfs sysfs /sys
mkdir -p "$BED/sys"
mount --rbind /sys "$BED/sys" && mount -t tmpfs none /sys
for folder in "$BED"/sys/*; do
    mkdir "/sys/${folder##*/}" && mount --rbind "$folder" "/sys/${folder##*/}"
done
mkdir -p /sys/cray/pm_counters && mount --bind "$BED/energy/$1" /sys/cray/pm_counters
mount -t tmpfs none "$BED/unshared" # a folder that each node sees empty
slurmd -D -N "$1" -f "$SLURM_CONF" &
child=$!
trap 'kill -TERM $child 2>/dev/null' TERM INT
while kill -0 $child 2>/dev/null; do wait $child; status=$?; done
exit "${status:-0}"
END
    chmod 755 "$DIR/bin/mail" "$DIR/bin/node"
}

# ---------------------------------------------------------------- the parts

start_munged() {
    gone munged || return 0
    [[ -s $DIR/munge.key ]] || (umask 077; head -c 128 /dev/urandom >"$DIR/munge.key")
    rm -f "$DIR/munge.sock" "$DIR/munge.sock.lock"
    # --force: a parent folder that only its owner reads is a warning, not an error
    launch munged munged --foreground --force --key-file="$DIR/munge.key" --socket="$DIR/munge.sock" \
        --pid-file="$DIR/run/munged.pid" --log-file="$DIR/log/munged.log" --seed-file="$DIR/munge.seed" \
        --origin=127.0.0.1 --num-threads=4
    wait_for 60 munge -n -S "$DIR/munge.sock" || die "munged does not answer (log: $DIR/log/munged.log)"
}

sql() { mariadb --no-defaults -u root --socket="$DIR/mysql.sock" -e "$1"; }

install_database() { # OPTION...
    rm -rf "${DIR:?}/mysql"
    env LD_PRELOAD=libeatmydata.so mariadb-install-db --no-defaults --user=root --datadir="$DIR/mysql" --skip-test-db \
        --auth-root-authentication-method=normal --skip-name-resolve "$@" >"$DIR/log/mariadb-install.log" 2>&1
}

start_mariadbd() { # a database for tests needs no fsync, which is most of what its first start costs
    gone mariadbd || return 0
    local size=(--innodb-log-file-size=16M --innodb-buffer-pool-size=64M)
    # It failed once in many runs, on a busy machine.
    [[ -d $DIR/mysql/mysql ]] || install_database "${size[@]}" || install_database "${size[@]}" ||
        die "mariadb-install-db failed twice: $(tail -n 15 "$DIR/log/mariadb-install.log")"
    launch mariadbd env LD_PRELOAD=libeatmydata.so mariadbd --no-defaults --user=root --datadir="$DIR/mysql" \
        --socket="$DIR/mysql.sock" --bind-address=127.0.0.1 --port=$((PORT_BASE + 2)) --pid-file="$DIR/run/mariadbd.pid" \
        --skip-name-resolve "${size[@]}" --innodb-lock-wait-timeout=900 --innodb-flush-log-at-trx-commit=0 \
        --performance-schema=OFF --skip-log-bin
    wait_for 180 sql 'select 1' || die "mariadbd does not answer (log: $DIR/log/mariadbd.out)"
    sql "CREATE DATABASE IF NOT EXISTS slurm_acct; CREATE USER IF NOT EXISTS slurm@'127.0.0.1' IDENTIFIED BY 'slurm';
        GRANT ALL ON slurm_acct.* TO slurm@'127.0.0.1';"
}

as_controller() { # NAME COMMAND...: under the controller's host name, whose address it then listens on
    local name=$1
    shift
    # shellcheck disable=SC2016
    launch "$name" unshare --uts sh -c 'hostname "$0" && exec "$@"' "$(controller)" "$@"
}

start_slurmdbd() {
    gone slurmdbd || return 0
    as_controller slurmdbd slurmdbd -D
    wait_for 180 sacctmgr -n show cluster || die "slurmdbd does not answer (log: $DIR/log/slurmdbd.log)"
}

start_slurmctld() {
    gone slurmctld || return 0
    as_controller slurmctld slurmctld -D -f "$DIR/slurm.conf"
    wait_for 120 sh -c 'scontrol ping | grep -q "is UP"' || die "slurmctld does not answer (log: $DIR/log/slurmctld.log)"
}

start_energy() { # renamed into place: a read that found the file empty would count as minus its value
    local i
    for ((i = 1; i <= NODES; i++)); do
        mkdir -p "$DIR/energy/$PREFIX$i"
        echo "1000 J" >"$DIR/energy/$PREFIX$i/energy"
        echo "$WATTS W" >"$DIR/energy/$PREFIX$i/power"
    done
    # shellcheck disable=SC2016
    launch energy bash -c 'start=$EPOCHSECONDS
        while sleep 0.5; do for folder in "$BED"/energy/*/; do
            echo "$((1000 + (EPOCHSECONDS - start) * $1)) J" >"$folder/.new" && mv "$folder/.new" "$folder/energy"
        done; done' energy "$WATTS"
}

start_node() { # NUMBER
    local name=$PREFIX$1
    gone "$name" || return 0
    mkdir -p "$DIR/spool/$name"
    rm -rf "$DIR/spool/$name"/job[0-9]* # left by a crash: slurmd would log about them for ever
    launch "$name" nsenter --net="/run/netns/$(bridge)-$name" \
        unshare --mount --uts --pid --fork --kill-child --mount-proc "$DIR/bin/node" "$name"
}

stop_node() { # NAME: unshare does not pass TERM on, so process 1 of the node gets it
    local pid
    if pid=$(pid_of "$1"); then
        pid=$(ps -o pid= --ppid "$pid" | head -n 1 | tr -d ' ')
        [[ -z $pid ]] || kill -TERM "$pid" 2>/dev/null || true
        wait_for 3 gone "$1" || true
    fi
    stop_one "$1" 1
}

parts() {
    local i
    printf '%s\n' munged mariadbd slurmdbd slurmctld energy
    for ((i = 1; i <= NODES; i++)); do echo "$PREFIX$i"; done
}

all_idle() { # a node has a line for each of its partitions
    [[ $(sinfo -h -N -o '%N %T' | sort -u | grep -cE ' (idle|mixed|allocated)$') == "$NODES" ]]
}

# ---------------------------------------------------------------- commands

lock() { exec 9>"$DIR/lock"; flock -w 120 9 || die "another testbed.sh works in $DIR"; }

up() {
    local begun=$SECONDS i
    [[ $(id -u) == 0 ]] || die "must run as root: slurmd becomes the jobs' users"
    ((${#DIR} <= 80)) || die "too long for the sockets in it: $DIR"
    ((NODES >= 1 && NODES <= 39)) || die "--nodes is from 1 to 39"
    [[ ! -f $DIR/settings ]] || die "$DIR: there is one already; stop it with: testbed.sh down $DIR"
    mkdir -p "$DIR"/{pids,run,log,bin,ctld,spool,unshared}
    chmod 755 "$DIR"
    lock
    trap 'say "stopping what was started"; stop_all || true' EXIT
    machine_lock
    claim_ports
    for i in NODES CPUS MEM GPUS WATTS PREFIX PORT_BASE NET; do printf '%s=%q\n' "$i" "${!i}"; done >"$DIR/settings"
    name_hosts add
    machine_unlock
    write_conf
    net_up
    start_munged
    start_energy
    start_mariadbd
    start_slurmdbd
    sacctmgr -i add cluster testbed >/dev/null 2>&1 || true
    sacctmgr -i add account tests Description=tests Organization=tests >/dev/null
    sacctmgr -i add user root DefaultAccount=tests >/dev/null
    start_slurmctld
    for ((i = 1; i <= NODES; i++)); do start_node "$i"; done
    if ! wait_for 300 all_idle; then
        sinfo -N -l >&2 || true
        tail -n 15 "$DIR/log/slurmctld.log" >&2 || true
        die "the nodes are not idle after 300 s (logs: $DIR/log)"
    fi
    trap - EXIT
    say "up: $NODES nodes ${PREFIX}1..$PREFIX$NODES in $((SECONDS - begun)) s"
}

stop_all() {
    local name
    if ! gone slurmctld; then
        for name in PENDING RUNNING SUSPENDED; do timeout 10 scancel --quiet --state="$name" >/dev/null 2>&1 || true; done
    fi
    for ((name = 1; name <= NODES; name++)); do stop_node "$PREFIX$name" & done
    wait
    stop_one slurmctld 10
    stop_one slurmdbd 10
    stop_one energy 2
    stop_one mariadbd 20
    stop_one munged 5
    net_down
    machine_lock
    name_hosts
    [[ $(cat "/run/slurm-testbed.ports/$PORT_BASE" 2>/dev/null) != "$DIR" ]] || rm -f "/run/slurm-testbed.ports/$PORT_BASE"
    machine_unlock
    rm -f "$DIR/settings"
}

down() {
    if [[ -f $DIR/settings ]]; then
        lock
        read_settings
        stop_all
        say "down: $DIR"
    fi
    [[ $PURGE == 1 && -d $DIR ]] || return 0
    [[ -d $DIR/ctld || -z $(ls -A "$DIR") ]] || die "$DIR does not look like a testbed's folder: not removed"
    rm -rf --one-file-system "$DIR"
}

status() {
    local name bad=0
    for name in $(parts); do
        if gone "$name"; then echo "$name DOWN"; bad=1; else echo "$name up (process $(pid_of "$name"))"; fi
    done
    timeout 15 sinfo -N -o '%N %T %C %m %G %E' | sort -u || bad=1
    all_idle || bad=1
    return "$bad"
}

crash() { # NAME; with unshare dies process 1 of a node (--kill-child), and with that all in it
    local pid
    case $1 in munged | mariadbd | slurmdbd | slurmctld) ;; *) number "$1" >/dev/null ;; esac
    lock
    pid=$(pid_of "$1") || die "$1 is not running"
    kill -KILL "$pid"
    wait_for 5 gone "$1" || true
    rm -f "$DIR/pids/$1"
}

start() { # NAME
    local node
    lock
    case $1 in
        munged | mariadbd | slurmdbd | slurmctld) "start_$1" ;;
        *) node=$(number "$1"); start_node "$node" ;;
    esac
}

link() { # NODE up|down
    local node
    node=$(number "$1")
    ip link set "$(bridge).$node" "$2"
}

inside() { # NODE COMMAND...
    local pid
    number "$1" >/dev/null
    pid=$(pid_of "$1") || die "$1 is not running"
    shift
    exec nsenter --target "$pid" --mount --net "$@"
}

read_settings() {
    [[ -f $DIR/settings ]] || die "no testbed in $DIR"
    # shellcheck disable=SC1091
    . "$DIR/settings"
}

main() {
    NODES=2 CPUS=2 MEM=4000 GPUS=2 WATTS=100 PREFIX=node PORT_BASE=28000 SLURMD_TIMEOUT=15 PURGE=0 NET=0 CONF=()
    local words=() name
    while (($#)); do
        if [[ ${words[0]:-} == in ]]; then words+=("$@"); break; fi # the command's own options
        case $1 in
            --nodes) NODES=$2; shift ;;
            --cpus) CPUS=$2; shift ;;
            --mem) MEM=$2; shift ;;
            --gpus) GPUS=$2; shift ;;
            --watts) WATTS=$2; shift ;;
            --prefix) PREFIX=$2; shift ;;
            --port-base) PORT_BASE=$2; shift ;;
            --slurmd-timeout) SLURMD_TIMEOUT=$2; shift ;;
            --conf) CONF+=("$2"); shift ;;
            --purge) PURGE=1 ;;
            -h | --help) usage; return ;;
            -*) die "no option $1" ;;
            *) words+=("$1") ;;
        esac
        shift
    done
    PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
    # settings of a job around us must not steer the commands used here
    for name in $(compgen -e | grep -E '^(SLURM|SBATCH|SRUN|SALLOC|SACCT|SQUEUE|SINFO|SCANCEL)_' || true); do unset "$name"; done
    case ${words[0]:-} in
        install) install; return ;;
        up | down | status | env | crash | start | cut | heal | in) ;;
        *) usage; exit 2 ;;
    esac
    [[ -n ${words[1]:-} ]] || die "${words[0]} needs a state folder"
    DIR=$(realpath -m "${words[1]}")
    [[ $DIR != / && $DIR != *[[:space:]%,\#]* ]] || die "unfit state folder: $DIR"
    export SLURM_CONF=$DIR/slurm.conf
    case ${words[0]} in
        up) up; return ;;
        down) down; return ;;
    esac
    read_settings
    case ${words[0]} in
        status) status ;;
        env) printf 'export SLURM_CONF=%q\n' "$SLURM_CONF" ;;
        crash) crash "${words[2]:-}" ;;
        start) start "${words[2]:-}" ;;
        cut) link "${words[2]:-}" down ;;
        heal) link "${words[2]:-}" up ;;
        in) inside "${words[@]:2}" ;;
    esac
}

main "$@"
