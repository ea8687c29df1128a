#!/usr/bin/env bash
# mini-slurm.sh start|stop FOLDER [NODES]: a Slurm for tests, on 127.0.0.1, all in FOLDER. After `start`:
# export SLURM_CONF=FOLDER/slurm.conf. It takes the first free ports from 26817 on; two that start in the same
# second may still collide. Several nodes n1, n2, ... are all this machine; where the kernel lets us, each has its
# name as its host name.
set -euo pipefail
dir=$(realpath -m "$2")
nodes=${3:-1}
host=$(hostname -s)

free_ports() { # the first port of as many in a row as are needed, on which nobody listens
  local first port
  for first in $(seq 26817 10 26997); do
    for port in $(seq "$first" $((first + nodes))); do
      ! (exec 3<>/dev/tcp/127.0.0.1/"$port") 2>/dev/null || continue 2
    done
    break
  done
  echo "$first"
}

write_conf() {
  local cpus memory port
  port=$(free_ports)
  cpus=$(env -u OMP_NUM_THREADS nproc)
  memory=$(awk -v n="$nodes" '/^MemTotal:/ {print int($2 / 1024 * 0.8 / n)}' /proc/meminfo)
  cat >"$dir/slurm.conf" <<EOF
ClusterName=saker
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$dir/munge.socket
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool.%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.%n.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
KillWait=5
NodeName=n[1-$nodes] NodeHostname=$host NodeAddr=127.0.0.1 Port=[$((port + 1))-$((port + nodes))] CPUs=$cpus RealMemory=$memory
PartitionName=test Nodes=n[1-$nodes] Default=YES MaxTime=INFINITE State=UP
EOF
}

# In a name space of its own where it has its name, and where all nodes' names are known.
start_node() { # start_node NAME
  mkdir -p "$dir/spool.$1"
  if [ "$nodes" -gt 1 ] && unshare --uts --mount mount --bind "$dir/hosts" /etc/hosts 2>/dev/null; then
    # shellcheck disable=SC2016 # its own arguments
    unshare --uts --mount sh -c 'hostname "$1" && mount --bind "$2" /etc/hosts && exec slurmd -N "$1"' sh "$1" "$dir/hosts"
  else
    slurmd -N "$1"
  fi
}

start() {
  getent hosts "$host" >/dev/null || echo "127.0.0.1 $host" >>/etc/hosts # Slurm looks the name up
  mkdir -p "$dir/state" "$dir/munge"
  chmod 755 "$dir"
  chmod 700 "$dir/munge"
  (umask 077 && head -c 128 /dev/urandom >"$dir/munge/key")
  write_conf
  export SLURM_CONF="$dir/slurm.conf"
  munged --key-file="$dir/munge/key" --seed-file="$dir/munge/seed" --log-file="$dir/munge/log" \
    --socket="$dir/munge.socket" --pid-file="$dir/munged.pid" --force
  slurmctld -c
  (cat /etc/hosts && seq -f '127.0.0.1 n%g' "$nodes") >"$dir/hosts"
  for i in $(seq "$nodes"); do start_node "n$i"; done
  for _ in $(seq 60); do
    [ "$(sinfo -h -t idle -o %D)" = "$nodes" ] && return 0
    sleep 0.5
  done
  echo "mini-slurm.sh: not all nodes come up; see the logs in $dir" >&2
  return 1
}

# The jobs, whose steps would outlive the daemons; then exactly the daemons that start left behind, by their pid
# files (munged may be about to write its own).
stop() {
  local pid
  export SLURM_CONF="$dir/slurm.conf"
  if [ -s "$dir/slurmctld.pid" ]; then
    timeout 10 scancel --user="$(id -un)" 2>/dev/null || true
    for _ in $(seq 40); do
      [ -n "$(timeout 5 squeue -h 2>/dev/null)" ] || break
      sleep 0.5
    done
  fi
  for _ in $(seq 20); do
    [ ! -s "$dir/munged.pid" ] || break
    sleep 0.1
  done
  for pid in "$dir"/slurmd.*.pid "$dir/slurmctld.pid" "$dir/munged.pid"; do
    [ -s "$pid" ] && kill "$(cat "$pid")" 2>/dev/null
  done
  return 0
}

case $1 in
start) start ;;
stop) stop ;;
*) echo "usage: mini-slurm.sh start|stop FOLDER [NODES]" >&2; exit 2 ;;
esac
