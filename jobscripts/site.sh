# shellcheck shell=bash disable=SC2034
# site.sh: what differs between computing centres, in one place. All job scripts read it. Change it here, or name
# another file: SAKER_SITE=~/mysite.sh. Each setting can also come from the environment.

# module load openmpi hdf5-parallel                      # the modules that saker was built with
# export NCCL_SOCKET_IFNAME=hsn0                         # NCCL: the network to start over; none is set by default

saker=${SAKER:-build/saker}                              # the program
command -v "$saker" >/dev/null || saker=saker            # not built here: the installed one in PATH
launcher=${SAKER_LAUNCHER:-auto}                         # srun, mpirun, or auto: srun where it speaks PMIx
gpus=${SAKER_GPUS:-}                                     # GPUs of a node that Slurm is asked to show every rank
again=${SAKER_AGAIN:-requeue}                            # how to go on: requeue this job, or follow: submit another
submit=${SAKER_SUBMIT:-}                                 # options of that other job beyond those in its script
tries=${SAKER_TRIES:-3}                                  # jobs in a row without a new checkpoint: then give up
