#!/usr/bin/env bash
# Slurm's Prolog: looks at each node before a job starts on it. In slurm.conf:
#   Prolog=/etc/slurm/slurm_prolog.sh
#   PrologFlags=Alloc
# A Prolog that fails has the node drained and the job queued again, so it fails for what would break the job (exit code 1
# of doctor, and a line of FAIL) and never because doctor itself could not run: 2, 3, 124 when it took too long, and a Python that
# does not find its packages ends with 1 too. Slurm sets CUDA_VISIBLE_DEVICES here:
# on a shared node the GPUs of other jobs are left alone.
set -u
# A node without a GPU is none of its business: it looks at NVIDIA's devices, or their driver, under ROOT (a test's).
grep -qs '^0x10de' "${ROOT:-}"/sys/bus/pci/devices/*/vendor || [ -e "${ROOT:-}/proc/driver/nvidia/version" ] || exit 0
PARLAUNCH=${PARLAUNCH:-/opt/parlaunch/bin/parlaunch}
said=$(timeout 60 "$PARLAUNCH" doctor 2>&1)
code=$?
if [ "$code" -eq 1 ] && printf '%s\n' "$said" | grep -q '^FAIL '; then
  printf '%s\n' "$said" | logger -t parlaunch
  exit 1
fi
exit 0
