#!/usr/bin/env bash
# Slurm's HealthCheckProgram: drains an idle node that is sick, and returns it when it is well. In slurm.conf:
#   HealthCheckProgram=/etc/slurm/slurm_health.sh
#   HealthCheckInterval=600
#   HealthCheckNodeState=IDLE
# Slurm ignores its exit code: the script drains by itself. It touches only nodes that it drained.
set -u
# A node without a GPU is none of its business: it looks at NVIDIA's devices, or their driver, under ROOT (a test's).
grep -qs '^0x10de' "${ROOT:-}"/sys/bus/pci/devices/*/vendor || [ -e "${ROOT:-}/proc/driver/nvidia/version" ] || exit 0
PARLAUNCH=${PARLAUNCH:-/opt/parlaunch/bin/parlaunch}
NODE=${SLURMD_NODENAME:-$(hostname -s)}
# For no job: what would break a job of one node is a FAIL, and so is a node none of whose rails works.
said=$(timeout 50 "$PARLAUNCH" doctor 2>&1)
code=$?
reason=$(scontrol show node "$NODE" | sed -n 's/^ *Reason=//p')
case $code in
  1)
    # A Python that does not find its packages ends with 1 too, and says nothing of the node.
    fail=$(printf '%s\n' "$said" | grep -m 1 '^FAIL ')
    [ -z "$fail" ] || [ -n "$reason" ] || scontrol update NodeName="$NODE" State=DRAIN Reason="parlaunch: $(printf '%s\n' "$fail" | cut -c 7-120)"
    ;;
  0)
    case $reason in parlaunch:*) scontrol update NodeName="$NODE" State=RESUME ;; esac
    ;;
esac
exit 0
