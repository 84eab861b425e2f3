#!/bin/bash
# A real Slurm of several nodes (munge, slurmctld, N slurmd) on one machine, for tests. Needs root, and Debian's packages
# munge slurmctld slurmd slurm-client iproute2. Every node has its own network, host name and mounts: gpu01 = 10.77.1.11 and
# so on, the login node = 10.77.0.1; the host's own network is not touched.
#
#   slurm_cluster.sh start  -w DIR [options]     start, or reuse one that is healthy; stdout: shell lines to eval
#   slurm_cluster.sh exec   -w DIR [--on NODE] -- CMD...   run CMD on the login node, or on NODE
#   slurm_cluster.sh crash  -w DIR NODE          SIGKILL everything on NODE (power loss)
#   slurm_cluster.sh boot   -w DIR NODE          bring a crashed NODE back
#   slurm_cluster.sh netdown|netup -w DIR NODE   cut, or restore, NODE's network
#   slurm_cluster.sh stop   -w DIR               stop all of it; kills only what it started
#
# options of start:
#   -n, --nodes N        number of nodes (default 4): gpu01 .. gpuNN
#   -g, --gres N         GPUs a node: stand-ins made of /dev/null (default 8)
#   -c, --cpus N         CPUs claimed by each node, whatever the host has (default 16)
#   -x, --set KEY=VALUE  a line of slurm.conf, added or instead of ours (repeatable)
#   -T, --topology FILE  topology.conf; put TopologyPlugin=topology/tree with it
#   -H, --hook FILE      run in each node before its slurmd: FILE NODENAME INDEX WORKDIR (mounts made there are the node's)
#   -t, --timeout SEC    how long to wait for all nodes to be idle (default 30)
set -u
umask 022

PROG=${0##*/}
say()  { echo "$PROG: $*" >&2; }
die()  { say "error: $*"; exit 1; }
usage(){ sed -n '2,20p' "$0" | sed 's/^# \{0,1\}//' >&2; exit 2; }

CMD=${1:-}; [ -n "$CMD" ] || usage; shift
W=${SLURM_CLUSTER_DIR:-/tmp/slurm_cluster}
NODES=4 GRES=8 CPUS=16 TIMEOUT=30 HOOK= TOPOLOGY= ON=login
declare -a EXTRA=() ARGS=()
while [ $# -gt 0 ]; do
  case $1 in
    -w|--workdir) W=$2; shift 2;;   -n|--nodes) NODES=$2; shift 2;;
    -g|--gres) GRES=$2; shift 2;;   -c|--cpus) CPUS=$2; shift 2;;
    -x|--set) EXTRA+=("$2"); shift 2;; -H|--hook) HOOK=$(readlink -f "$2"); shift 2;;
    -T|--topology) TOPOLOGY=$(readlink -f "$2"); shift 2;;
    -t|--timeout) TIMEOUT=$2; shift 2;; --on) ON=$2; shift 2;;
    --) shift; ARGS+=("$@"); break;;
    -h|--help) usage;;
    -*) die "unknown option $1";;
    *) ARGS+=("$1"); shift;;
  esac
done
W=$(readlink -m "$W")
RUN=$W/run            # one file per process we started: "pid starttime"
export SLURM_CONF=$W/slurm.conf
# another cluster's client shims on the PATH would send our own calls to that cluster
P=; IFS=:; for d in $PATH; do [ -e "$d/.slurm_cluster" ] || P=$P${P:+:}$d; done; unset IFS
PATH=$P:/usr/sbin:/sbin
# daemons from a surrounding job must not inherit its SLURM_* variables
for v in $(compgen -e | grep -E '^(SLURM_|SLURMD_|SBATCH_|SALLOC_)' | grep -vE '^SLURM_(CONF|CLUSTER_DIR)$'); do
  [ "$CMD" = exec ] || unset "$v"
done

# ---------------------------------------------------------------- processes
starttime() {  # of a live, non-zombie pid; empty otherwise (PID 1 here may not reap at once)
  local s; s=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  s=${s##*) }; set -- $s
  [ "$1" = Z ] || [ "$1" = X ] || echo "${20}"
}
alive() {      # name -> prints the pid if the very process we started still lives
  local p t; [ -r "$RUN/$1" ] || return 1
  read -r p t < "$RUN/$1" || return 1
  [ -n "$p" ] && [ "$(starttime "$p")" = "$t" ] && echo "$p"
}
record()  { local t; t=$(starttime "$2"); echo "$2 ${t:-0}" > "$RUN/$1"; }
reap() {       # signal grace-seconds name...   TERM, wait, then KILL
  local sig=$1 grace=$2 n p i; shift 2
  for n in "$@"; do p=$(alive "$n") && kill -"$sig" "$p" 2>/dev/null; done
  for ((i = 0; i < grace * 20; i++)); do
    local any=; for n in "$@"; do alive "$n" >/dev/null && any=1; done
    [ -n "$any" ] || break; sleep 0.05
  done
  for n in "$@"; do
    if p=$(alive "$n"); then say "$n (pid $p) ignored SIG$sig, killing"; kill -KILL "$p" 2>/dev/null; fi
    rm -f "$RUN/$n"
  done
}
holders()  { local f; for f in "$RUN"/ns-*; do [ -e "$f" ] && basename "$f"; done; }
slurmds()  { local f; for f in "$RUN"/slurmd-*; do [ -e "$f" ] && basename "$f"; done; }
node_pids() {  # every process in the UTS namespace of NODE, its holder excepted
  local h ns p; h=$(alive "ns-$1") || return 0
  ns=$(readlink "/proc/$h/ns/uts"); ns=${ns//[!0-9]/}
  [ -n "$ns" ] && [ "uts:[$ns]" != "$(readlink /proc/self/ns/uts)" ] || return 0
  for p in $(find /proc/[0-9]*/ns/uts -maxdepth 0 -lname "uts:\\[$ns\\]" 2>/dev/null); do
    p=${p#/proc/}; p=${p%/ns/uts}; [ "$p" = "$h" ] || echo "$p"
  done
}
kill_node_procs() {
  local i p ps; for i in 1 2 3 4 5; do
    ps=$(node_pids "$1"); [ -n "$ps" ] || return 0
    for p in $ps; do kill -KILL "$p" 2>/dev/null; done; sleep 0.05
  done
}

# ---------------------------------------------------------------- names, addresses, namespaces
node_name() { printf 'gpu%02d' "$1"; }
node_addr() { echo "10.77.1.$((10 + $1))"; }
# slurm.conf says gpu01.invalid: a name that only /etc/hosts inside the namespaces knows, so that a client started
# outside without the shims fails to resolve it and sends nothing to 10.77.x.x by the host's route
enter() {      # NODE CMD... : run inside NODE's namespaces, keeping the working directory
  local n=$1 h; shift
  h=$(alive "ns-$n") || { say "no node $n"; return 1; }
  nsenter -t "$h" -u -m -n -- \
    /bin/sh -c 'cd "$1" 2>/dev/null || cd /; shift; exec "$@"' sh "$PWD" "$@"
}
INTR=; go_on() { [ -z "$INTR" ] || { say "interrupted"; exit 130; }; }
make_ns() {    # NODE: a process that holds the namespaces open
  local n=$1 p
  setsid unshare -u -m -n --propagation slave \
    /bin/bash -c 'hostname "$1" && mount --bind "$2/hosts" /etc/hosts \
      && mount -t tmpfs -o mode=1777 tmpfs /dev/shm; : > "$2/run/.ready-$1"; exec -a "slurm_cluster:$1" sleep infinity' \
    bash "$n" "$W" >"$W/log/ns-$n.out" 2>&1 </dev/null 9>&- &
  p=$!; record "ns-$n" "$p"
  local deadline=$((SECONDS + TIMEOUT))
  while [ ! -e "$RUN/.ready-$n" ] && [ $SECONDS -le $deadline ] && alive "ns-$n" >/dev/null; do sleep 0.02; done
  go_on
  [ -e "$RUN/.ready-$n" ] || die "cannot make namespaces for $n: $(cat "$W/log/ns-$n.out")"
  rm -f "$RUN/.ready-$n"
  # the host's own network is never touched: no interface is made before this has been seen
  [ "$(readlink "/proc/$p/ns/net")" != "$(readlink /proc/self/ns/net)" ] \
    || die "$n has no network namespace of its own"
}
net_login() { enter login ip link set lo up && enter login ip link add br0 type bridge \
  && enter login ip addr add 10.77.0.1/16 dev br0 && enter login ip link set br0 up; }
net_node() {   # NODE INDEX
  local h; h=$(alive "ns-$1")
  enter login ip link add "v$2" type veth peer name eth0 netns "$h" &&
  enter login ip link set "v$2" master br0 up &&
  enter "$1" sh -c "ip link set lo up && ip addr add $(node_addr "$2")/16 dev eth0 && ip link set eth0 up"
}
start_slurmd() {  # NODE INDEX
  local n=$1
  [ -z "$HOOK" ] || enter "$n" "$HOOK" "$n" "$2" "$W" >>"$W/log/hook-$n.out" 2>&1 \
    || die "hook failed on $n: $(tail -3 "$W/log/hook-$n.out")"
  local h; h=$(alive "ns-$n") || die "no namespace for $n"
  # foreground (-D) so that $! is the daemon itself; its log goes to log/slurmd-NODE.log
  setsid nsenter -t "$h" -u -m -n -- slurmd -D -N "$n" \
    >"$W/log/slurmd-$n.out" 2>&1 </dev/null 9>&- &
  record "slurmd-$n" $!
}

# ---------------------------------------------------------------- configuration
write_conf() {
  local base=6817 i n g='' lines='' hosts=''
  rm -rf "$W/dev"; mkdir -p "$W/dev"
  if [ "$GRES" -gt 0 ]; then
    # File= must be a character device or a link to one, and CUDA_VISIBLE_DEVICES comes from
    # the number in its name.  Count= without File= makes slurmd report 0 gpus.
    for ((i = 0; i < GRES; i++)); do
      mknod -m 666 "$W/dev/nvidia$i" c 1 3 2>/dev/null || ln -s /dev/null "$W/dev/nvidia$i"
    done
    g="Gres=gpu:$GRES"
    { echo AutoDetect=off
      echo "Name=gpu File=$W/dev/nvidia[0-$((GRES - 1))]"; } > "$W/gres.conf"
  else echo "# none" > "$W/gres.conf"; fi
  hosts="127.0.0.1 localhost"$'\n'"::1 localhost ip6-localhost"$'\n'
  hosts+="10.77.0.1 login login.invalid"$'\n'
  for ((i = 1; i <= NODES; i++)); do
    n=$(node_name $i); hosts+="$(node_addr $i) $n $n.invalid"$'\n'
    lines+="NodeName=$n NodeHostname=$n NodeAddr=$n.invalid Port=$((base + i)) CPUs=$CPUS Sockets=1 CoresPerSocket=$CPUS ThreadsPerCore=1 RealMemory=4000 $g State=UNKNOWN"$'\n'
    mkdir -p "$W/spool/$n"
  done
  echo -n "$hosts" > "$W/hosts"
  echo "CgroupAutomount=no" > "$W/cgroup.conf"
  if [ -n "$TOPOLOGY" ]; then cp "$TOPOLOGY" "$W/topology.conf"; fi
  { # a key given with -x replaces the default line
    local line k skip e
    while IFS= read -r line; do
      k=${line%%=*}; skip=; for e in ${EXTRA[@]+"${EXTRA[@]}"}; do [ "${e%%=*}" = "$k" ] && skip=1; done
      [ -n "$skip" ] || echo "$line"
    done <<EOF
ClusterName=testcluster
SlurmctldHost=login(login.invalid)
SlurmctldPort=$base
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$W/munge/sock,cred_expire=12
CredType=cred/munge
StateSaveLocation=$W/state
SlurmdSpoolDir=$W/spool/%n
SlurmctldPidFile=$W/run/.slurmctld.pid
SlurmdPidFile=$W/run/.slurmd-%n.pid
SlurmctldLogFile=$W/log/slurmctld.log
SlurmdLogFile=$W/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$W/log/jobcomp.log
MpiDefault=none
SwitchType=switch/none
MailProg=/bin/true
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1,batch_sched_delay=0
SlurmctldTimeout=30
SlurmdTimeout=10
KillWait=5
UnkillableStepTimeout=30
BatchStartTimeout=10
MinJobAge=86400
EOF
    for e in ${EXTRA[@]+"${EXTRA[@]}"}; do echo "$e"; done
    echo -n "$lines"
    echo "PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO"
  } > "$W/slurm.conf"
  # client shims: from outside they step onto the login node; inside a node they are transparent
  rm -rf "$W/bin"; mkdir -p "$W/bin"; : > "$W/bin/.slurm_cluster"
  local c real
  for c in srun sbatch salloc squeue scancel scontrol sinfo sattach sbcast sstat sprio sdiag; do
    real=$(command -v $c) || continue
    cat > "$W/bin/$c" <<EOF
#!/bin/bash
if [ "\$(readlink /proc/self/ns/net)" = "$(readlink /proc/self/ns/net)" ]; then
  export SLURM_CONF=$W/slurm.conf
  read -r h _ < "$RUN/ns-login" || { echo "$c: the test cluster is not running" >&2; exit 1; }
  exec nsenter -t "\$h" -u -m -n -- /bin/sh -c 'cd "\$1" 2>/dev/null || cd /; shift; exec "\$@"' sh "\$PWD" $real "\$@"
fi
exec $real "\$@"
EOF
    chmod 755 "$W/bin/$c"
  done
}
print_env() {
  echo "export SLURM_CONF=$W/slurm.conf"
  echo "export PATH=$W/bin:\$PATH"
  echo "export SLURM_CLUSTER_DIR=$W"
}
params()      { declare -p NODES GRES CPUS HOOK TOPOLOGY EXTRA | sed 's/^declare /declare -g /'; }
save_params() { params > "$W/params"; }
load_params() { [ -r "$W/params" ] && . "$W/params"; }   # our own file, in our own directory
states() { enter login timeout 60 sinfo -h -N -o '%N %T' 2>/dev/null; }
healthy() {    # every daemon of ours lives and every node is usable
  local n i; alive munged >/dev/null && alive slurmctld >/dev/null || return 1
  for ((i = 1; i <= NODES; i++)); do alive "slurmd-$(node_name $i)" >/dev/null || return 1; done
  local s; s=$(states); [ "$(echo "$s" | grep -cE ' (idle|mixed|allocated|completing)$')" -eq "$NODES" ]
}
lock() { mkdir -p "$W" || die "cannot make $W"; exec 9>"$W/.lock"; flock -w 120 9 || die "another $PROG holds $W/.lock"; }
explain() { local f; for f in "$W"/log/*.out "$W"/log/munged.log "$W"/log/slurmctld.log "$W"/log/slurmd-*.log; do
  [ -s "$f" ] && { echo "== $f"; grep -viE 'pmix|mpi:' "$f" | tail -n 8; } >&2; done; }

# ---------------------------------------------------------------- commands
do_stop() {
  [ -d "$RUN" ] || return 0
  local n i busy=1
  rm -rf "$W/bin"      # a shell that still has it on its PATH finds the plain commands again
  if alive slurmctld >/dev/null; then
    enter login timeout 5 scancel -f -u root >/dev/null 2>&1
    busy=1
    for ((i = 0; i < 60; i++)); do   # let slurmstepds end by themselves, 3 s at most
      [ -z "$(enter login timeout 2 squeue -h 2>/dev/null)" ] && { busy=; break; }; sleep 0.05
    done
  fi
  # jobs that are still there ignored SIGTERM; a slurmd waits for them when it is told to end
  if [ -n "$busy" ]; then
    for n in $(holders); do [ "$n" = ns-login ] || kill_node_procs "${n#ns-}"; done
  fi
  reap TERM 5 $(slurmds)
  reap TERM 5 slurmctld
  for n in $(holders); do kill_node_procs "${n#ns-}"; done
  reap TERM 2 munged
  reap KILL 1 $(holders)
  rm -rf "$RUN"
}
do_start() {
  local i n t0; t0=$(date +%s%N)
  [ "$(id -u)" = 0 ] || die "needs root"
  [ "$NODES" -ge 1 ] && [ "$NODES" -le 99 ] 2>/dev/null || die "nodes: 1 to 99"
  [ ${#W} -le 60 ] || die "workdir '$W' is over 60 characters: Slurm's and munge's unix sockets would not fit in 108"
  local c; for c in munged slurmctld slurmd sinfo; do command -v $c >/dev/null || die "$c is missing"; done
  lock
  if [ -r "$W/params" ] && [ "$(cat "$W/params")" = "$(params)" ] && healthy; then
    say "already running in $W"; print_env; return 0
  fi
  if [ -d "$RUN" ]; then ( load_params; do_stop ); fi      # leftovers, or other parameters
  mkdir -p "$RUN" "$W/munge" "$W/state" "$W/spool" "$W/log"
  trap 'do_stop' EXIT                     # a start that fails leaves nothing behind
  trap 'INTR=1' INT TERM HUP              # acted upon between two steps, so that every process is recorded
  chmod 755 "$W" "$W/munge"; rm -rf "$W"/state/* "$W"/spool/* "$W"/log/*
  write_conf; save_params
  [ -s "$W/munge/key" ] || { dd if=/dev/urandom of="$W/munge/key" bs=128 count=1 2>/dev/null; chmod 400 "$W/munge/key"; }
  rm -f "$W/munge/sock" "$W/munge/sock.lock" "$W/munge/pid"
  # --force: a CI checkout may lie under a directory that another uid owns
  setsid munged --foreground --force --num-threads=4 --key-file="$W/munge/key" --socket="$W/munge/sock" \
    --pid-file="$W/munge/pid" --seed-file="$W/munge/seed" --log-file="$W/log/munged.log" \
    >"$W/log/munged.out" 2>&1 </dev/null 9>&- &
  record munged $!
  make_ns login; net_login || die "network of login"
  for ((i = 1; i <= NODES; i++)); do
    n=$(node_name $i); make_ns "$n"; net_node "$n" $i || die "network of $n"
  done
  # a limit on each try is for one that hangs: on a busy machine a client that is cut off too soon never answers
  local deadline=$((SECONDS + TIMEOUT))
  while [ ! -S "$W/munge/sock" ] && [ $SECONDS -le $deadline ] && alive munged >/dev/null; do sleep 0.02; done
  setsid nsenter -t "$(alive ns-login)" -u -m -n -- slurmctld -D -c >"$W/log/slurmctld.out" 2>&1 </dev/null 9>&- &
  record slurmctld $!
  # a slurmd that is up before slurmctld registers a second later, so wait for the controller
  while [ $SECONDS -le $deadline ]; do
    go_on; enter login timeout 60 scontrol ping 2>/dev/null | grep -q UP && break
    alive munged >/dev/null || { explain; die "munged died"; }
    alive slurmctld >/dev/null || { explain; die "slurmctld died"; }; sleep 0.02
  done
  for ((i = 1; i <= NODES; i++)); do start_slurmd "$(node_name $i)" $i; done
  while [ $SECONDS -le $deadline ]; do
    go_on; [ "$(states | grep -c ' idle$')" -eq "$NODES" ] && break; sleep 0.05
  done
  if ! healthy; then explain; states >&2; die "the cluster did not come up in $TIMEOUT s"; fi
  trap - EXIT INT TERM HUP
  say "$NODES nodes up in $(( ($(date +%s%N) - t0) / 1000000 )) ms in $W"
  print_env
}

case $CMD in
  start) do_start ;;
  stop) [ -d "$W" ] || exit 0; load_params || { say "nothing in $W"; exit 0; }; lock; do_stop; say "stopped" ;;
  exec)
    load_params || die "nothing in $W"; [ ${#ARGS[@]} -gt 0 ] || usage
    PATH=$W/bin:$PATH
    enter "$ON" "${ARGS[@]}" ;;
  crash|boot|netdown|netup)
    load_params || die "nothing in $W"; lock; n=${ARGS[0]:-}; idx=
    for ((i = 1; i <= NODES; i++)); do [ "$(node_name $i)" = "$n" ] && idx=$i; done
    [ -n "$idx" ] || die "no node '$n'"
    case $CMD in
      crash) kill_node_procs "$n"; rm -f "$RUN/slurmd-$n" ;;
      boot) alive "slurmd-$n" >/dev/null || start_slurmd "$n" "$idx" ;;
      *) enter login ip link set "v$idx" "$([ $CMD = netup ] && echo up || echo down)" ;;
    esac ;;
  *) usage ;;
esac
