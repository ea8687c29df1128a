#!/usr/bin/env bash
# mini-slurm.sh start|stop FOLDER: a Slurm of one node for tests, on 127.0.0.1, all in FOLDER. After
# `start`: export SLURM_CONF=FOLDER/slurm.conf. Its ports are fixed: one per machine at a time.
set -euo pipefail
dir=$(realpath -m "$2")
host=$(hostname -s)

write_conf() {
  local cpus memory
  cpus=$(env -u OMP_NUM_THREADS nproc)
  memory=$(awk '/^MemTotal:/ {print int($2 / 1024 * 0.8)}' /proc/meminfo)
  cat >"$dir/slurm.conf" <<EOF
ClusterName=saker
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=26817
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$dir/munge.socket
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
KillWait=5
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=26818 CPUs=$cpus RealMemory=$memory
PartitionName=test Nodes=n1 Default=YES MaxTime=INFINITE State=UP
EOF
}

start() {
  getent hosts "$host" >/dev/null || echo "127.0.0.1 $host" >>/etc/hosts # Slurm looks the name up
  mkdir -p "$dir/state" "$dir/spool" "$dir/munge"
  chmod 755 "$dir"
  chmod 700 "$dir/munge"
  (umask 077 && head -c 128 /dev/urandom >"$dir/munge/key")
  write_conf
  export SLURM_CONF="$dir/slurm.conf"
  munged --key-file="$dir/munge/key" --seed-file="$dir/munge/seed" --log-file="$dir/munge/log" \
    --socket="$dir/munge.socket" --pid-file="$dir/munged.pid" --force
  slurmctld -c
  slurmd -N n1
  for _ in $(seq 60); do
    [ "$(sinfo -h -o %T)" = idle ] && return 0
    sleep 0.5
  done
  echo "mini-slurm.sh: the node does not come up; see the logs in $dir" >&2
  return 1
}

# Exactly the daemons that start left behind, by their pid files.
stop() {
  local name
  for name in slurmd slurmctld munged; do
    [ -s "$dir/$name.pid" ] && kill "$(cat "$dir/$name.pid")" 2>/dev/null
  done
  return 0
}

case $1 in
start) start ;;
stop) stop ;;
*) echo "usage: mini-slurm.sh start|stop FOLDER" >&2; exit 2 ;;
esac
