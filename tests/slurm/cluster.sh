#!/usr/bin/env bash
# cluster.sh up FOLDER | down FOLDER: a Slurm cluster of two nodes on this machine's loopback address, for tests.
#
# From Debian's packages, unchanged; FOLDER holds everything but two links in /etc/slurm, which `down` removes again. Node n1
# has four TPUs that are only counted. Needs root; refuses a machine that is part of a cluster already.
set -euo pipefail

fail() { echo "cluster.sh: $*" >&2; exit 1; }

[ $# -eq 2 ] || fail "say 'up FOLDER' or 'down FOLDER'"
mkdir -p "$2"
folder=$(realpath "$2")

stop() {
    local file pid
    if [ -s "$folder/run/slurmctld.pid" ]; then
        timeout 20 squeue --noheader --format %i 2> /dev/null | xargs --no-run-if-empty timeout 20 scancel 2> /dev/null || true
        sleep 2
    fi
    for file in slurmd.n1 slurmd.n2 slurmctld munged; do
        [ -s "$folder/run/$file.pid" ] || continue
        pid=$(cat "$folder/run/$file.pid")
        kill "$pid" 2> /dev/null || true
        for _ in $(seq 100); do
            kill -0 "$pid" 2> /dev/null || break
            sleep 0.1
        done
    done
    for file in slurm.conf gres.conf; do
        [ "$(readlink "/etc/slurm/$file")" != "$folder/$file" ] || rm "/etc/slurm/$file"
    done
    rmdir /etc/slurm 2> /dev/null || true
}

start() {
    local host program missing=()
    [ "$(id -u)" -eq 0 ] || fail "Slurm's daemons start jobs for others, which wants root"
    for program in munged slurmctld slurmd sbatch; do
        command -v "$program" > /dev/null || missing+=("$program")
    done
    [ ${#missing[@]} -eq 0 ] || fail "missing: ${missing[*]}; on Debian and Ubuntu: apt-get install --no-install-recommends" \
        "slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge"
    if [ -e /etc/slurm/slurm.conf ] || [ -L /etc/slurm/slurm.conf ]; then
        fail "/etc/slurm/slurm.conf is there already: this machine belongs to a cluster, or 'down' was not called"
    fi
    host=$(hostname -s)
    mkdir -p "$folder"/{log,munge,run,spool.n1,spool.n2,state} /etc/slurm
    head -c 1024 /dev/urandom > "$folder/munge/key"
    chmod 700 "$folder/munge"
    chmod 400 "$folder/munge/key"
    cat > "$folder/slurm.conf" << END
ClusterName=jaxinterp
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool.%n
SlurmctldPidFile=$folder/run/slurmctld.pid
SlurmdPidFile=$folder/run/slurmd.%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=2,sched_min_interval=100000
PropagateResourceLimits=NONE
ReturnToService=2
# There is no accounting database: what became of a job is known as long as the controller remembers it.
MinJobAge=43200
SlurmdParameters=config_overrides
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
GresTypes=tpu
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=17001 CPUs=2 RealMemory=12000 Gres=tpu:4 State=UNKNOWN
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=17002 CPUs=2 RealMemory=12000 State=UNKNOWN
PartitionName=cpu Nodes=n1,n2 Default=YES MaxTime=60 State=UP
PartitionName=tpu Nodes=n1 MaxTime=60 State=UP
END
    echo "NodeName=n1 Name=tpu Count=4" > "$folder/gres.conf"
    trap 'stop; fail "the cluster did not come up; its logs are in $folder/log"' ERR
    # Slurm's own variable for this file does not reach the inner srun of a job: it must lie at the usual place.
    ln -s "$folder/slurm.conf" /etc/slurm/slurm.conf
    ln -s "$folder/gres.conf" /etc/slurm/gres.conf
    munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" --log-file="$folder/log/munged.log" \
        --pid-file="$folder/run/munged.pid" --seed-file="$folder/munge/seed" 2>> "$folder/log/munged.log"
    slurmctld -c -i
    slurmd -N n1
    slurmd -N n2
    for _ in $(seq 60); do
        [ "$(sinfo --noheader --Node --partition cpu --states idle --format %N | sort -u | wc -l)" -lt 2 ] || break
        sleep 0.5
    done
    [ "$(sinfo --noheader --Node --partition cpu --states idle --format %N | sort -u | wc -l)" -eq 2 ]
    trap - ERR
    sinfo --Node >&2
}

case "$1" in
    up) start ;;
    down) stop ;;
    *) fail "say 'up FOLDER' or 'down FOLDER'" ;;
esac
