#!/bin/bash
# One parlaunch a node under Open MPI: `examples/mpirun.sh HOSTFILE --recipe NAME ...`, one host a line in HOSTFILE.
# The node's number comes from OMPI_COMM_WORLD_RANK; the nodes meet at the first host of the file.
set -euo pipefail
hostfile=${1:?give a host file}
shift
first=$(awk 'NF && $1 !~ /^#/ { print $1; exit }' "$hostfile")

# What the nodes know each other by. mpirun hands on the name, and takes the value from here.
export PARLAUNCH_SECRET="${PARLAUNCH_SECRET:-$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')}"

# ppr:1:node: one process a node, torchrun starts the ranks. --bind-to none: or all of them share one core.
exec mpirun --hostfile "$hostfile" --map-by ppr:1:node --bind-to none \
    -x PATH -x LD_LIBRARY_PATH -x MASTER_ADDR="$first" -x PARLAUNCH_SECRET \
    parlaunch "$@"
