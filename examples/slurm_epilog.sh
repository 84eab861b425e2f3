#!/usr/bin/env bash
# Slurm's Epilog: looks at each node after a job has ended on it. In slurm.conf:
#   Epilog=/etc/slurm/slurm_epilog.sh
# A node whose Epilog fails is drained: one that the job broke, or where it left something on a GPU, gets no other. It fails for
# that (exit code 1 of doctor, and a line of FAIL) and never because doctor itself could not run. Processes of the
# job may take a moment to let go of their GPUs, so what is wrong is looked at twice.
set -u
# A node without a GPU is none of its business: it looks at NVIDIA's devices, or their driver, under ROOT (a test's).
grep -qs '^0x10de' "${ROOT:-}"/sys/bus/pci/devices/*/vendor || [ -e "${ROOT:-}/proc/driver/nvidia/version" ] || exit 0
PARLAUNCH=${PARLAUNCH:-/opt/parlaunch/bin/parlaunch}
for wait in 5 0; do
  said=$(timeout 60 "$PARLAUNCH" doctor 2>&1)
  code=$?
  [ "$code" -eq 1 ] && printf '%s\n' "$said" | grep -q '^FAIL ' || exit 0
  sleep "$wait"
done
printf '%s\n' "$said" | logger -t parlaunch
exit 1
