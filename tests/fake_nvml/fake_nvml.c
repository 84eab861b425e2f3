/* A stand-in for libnvidia-ml.so.1: the real nvidia-ml-py (pynvml) runs on it where there is no GPU. Contains no
 * NVIDIA code; layouts and codes are those of the public nvml.h.
 *   gcc -O1 -Wall -Wextra -shared -fPIC -Wl,-soname,libnvidia-ml.so.1 -o libnvidia-ml.so.1 fake_nvml.c
 *
 * FAKE_NVML_MACHINE  description files, colon-separated, read again at each first nvmlInit (refcount 0 -> 1)
 * FAKE_NVML_VISIBLE  1,3: what a device cgroup leaves; the others vanish, the rest are renumbered
 * FAKE_NVML_LOG      a file that gets one line per call: function, GPU (-1: none)
 *
 * One directive a line, # starts a comment:
 *   driver V | nvml V | cuda N          versions (cuda as 12040)
 *   default k=v ... | set GPUS k=v ...  attributes of the gpu lines that follow | of GPUs already there
 *   gpu BUSID k=v ...                   a GPU, in NVML order; in a text value _ stands for a space, %FF for a byte
 *   mig G k=v ...                       a MIG device of GPU G
 *   nvpair A B N                        N direct links between GPU A and GPU B
 *   nvswitch GPUS N BUS[,BUS...]        N links from each GPU, dealt over the switches; BUS may be -
 *   nvfar GPUS N TYPE BUS               N active links whose far end is of TYPE (0 GPU, 255 unknown) at BUS
 *   nvidle GPUS N | nvdown GPUS LINKS   N links with nothing behind them | those links are down
 *   topo GPUS GPUS LEVEL                INTERNAL PIX PXB PHB NODE SYS (symmetric; the last rule wins)
 *   p2p GPUS GPUS STATUS [CAPS]         status number for the cap indices CAPS (default 0,1,3,4)
 *   missing FN                          as if the driver lacked the symbol
 *   fail GPUS ERR [FN [after=N] [until=N]]   GPUS * also covers calls without a device, nvmlInit too
 *   delay FN MS [GPUS] | crash FN [GPUS]     a slow or hung call | the process dies in it
 * GPUS, LINKS, CAPS: * or 0-3,6. FN: a glob (default *). ERR: a name below or a number. A value "-"
 * or an absent key answers NOT_SUPPORTED; "!ERR" answers that error.
 *
 * Keys of a GPU (lists are comma-separated):
 *   name uuid serial minor vbios arch cc=MAJ,MIN pstate pm cmode
 *   mem=TOTAL,RESERVED,USED MiB     procs=PID:MiB,...     ecc=CUR,PENDING    mig=CUR,PENDING
 *   eccerr=corrVol,corrAgg,uncVol,uncAgg   eccloc2 (DRAM) eccloc7 (SRAM) likewise   retpend
 *   remap=corr,unc,pending,failed   power=LIMIT,ENFORCED,DEFAULT,USAGE mW   powerrange=MIN,MAX   temp=C
 *   clk maxclk appclk = GRAPHICS,SM,MEM,VIDEO MHz         thr=mask (clocks event reasons)
 *   pcie=CURGEN,CURWIDTH,MAXGEN,MAXWIDTH   cpus=0-55,112-167 (affinity)   node=0 (memory affinity)
 *   cores (CUDA cores)   buswidth (bits)   virt (nvmlGpuVirtualizationMode_t)
 *   gpunuma=N  only where the GPU itself is a NUMA node (nvmlDeviceGetNumaNodeId)
 *   nvlver (nvmlNvlinkVersion_t) nvlmbps nvlerr=5 counters   fiN=value of field id N
 *   fab=STATE,STATUS,CLIQUE,HEALTHMASK,HEALTHSUMMARY   fabuuid=32 hex   fabafter=polls in progress first
 *   fabmax=2  the driver knows no v3 struct
 *   mig lines: name uuid gi ci cc mem slices=SM,GI,CI */
#include <fnmatch.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

typedef int R;
typedef unsigned U;
typedef unsigned long long ULL;
typedef uint8_t B;
enum {
  OK = 0,
  UNINIT = 1,
  BADARG = 2,
  UNSUP = 3,
  NOTFOUND = 6,
  TOOSMALL = 7,
  NODRIVER = 9,
  NOFUNC = 13,
  BADVER = 25,
  UNKNOWN = 999
};
static const struct Name {
  int code;
  const char *name;
} ERRS[] = {{0, "SUCCESS"},
            {1, "UNINITIALIZED"},
            {2, "INVALID_ARGUMENT"},
            {3, "NOT_SUPPORTED"},
            {4, "NO_PERMISSION"},
            {6, "NOT_FOUND"},
            {7, "INSUFFICIENT_SIZE"},
            {8, "INSUFFICIENT_POWER"},
            {9, "DRIVER_NOT_LOADED"},
            {10, "TIMEOUT"},
            {11, "IRQ_ISSUE"},
            {13, "FUNCTION_NOT_FOUND"},
            {14, "CORRUPTED_INFOROM"},
            {15, "GPU_IS_LOST"},
            {16, "RESET_REQUIRED"},
            {17, "OPERATING_SYSTEM"},
            {18, "LIB_RM_VERSION_MISMATCH"},
            {19, "IN_USE"},
            {20, "MEMORY"},
            {23, "INSUFFICIENT_RESOURCES"},
            {25, "ARGUMENT_VERSION_MISMATCH"},
            {27, "NOT_READY"},
            {999, "UNKNOWN"}},
  LEVELS[] = {{0, "INTERNAL"}, {10, "PIX"}, {20, "PXB"}, {30, "PHB"}, {40, "NODE"}, {50, "SYS"}};
/* ABI structures (public field layouts) */
typedef struct {
  char legacy[16];
  U domain, bus, device, dev_id, subsys;
  char bus_id[32];
} Pci;
typedef struct {
  ULL total, free, used;
} Mem1;
typedef struct {
  U version;
  ULL total, reserved, free, used;
} Mem2;
typedef struct {
  B uuid[16];
  int status;
  U clique;
  B state;
} Fab1;
typedef struct {
  U version;
  B uuid[16];
  int status;
  U clique;
  B state;
  U mask;
  B health;
} Fab3; /* v2: without health */
typedef struct {
  B uuid[16];
  int status;
  struct {
    B type;
    U id;
  } c[64];
  U n;
  B state;
  U mask;
  B health;
} Fab4;
typedef struct {
  U pid;
  ULL mem;
  U gi, ci;
} Proc;
typedef struct {
  uint32_t id, scope;
  int64_t ts, lat;
  int type, ret;
  union {
    double d;
    U ui;
    ULL ull;
  } v;
} Field;
typedef struct {
  U sm, ce, dec, enc, jpeg, ofa, gi, ci;
  ULL mb;
} Attr;

enum { MAXG = 64, MAXM = 128, MAXK = 96, MAXL = 36, MAXR = 256 };
typedef struct {
  int up, type;
  char bus[32];
} Link;
typedef struct Dev {
  char kv[MAXK][2][160];
  int nkv, idx, nlink, polls;
  Link link[MAXL];
  struct Dev *parent;
} Dev;
typedef struct {
  char a[64], b[64], fn[64];
  int kind, val, after, until, hits;
} Rule;
enum { TOPO, P2P, MISSING, FAIL, DELAY, CRASH };
static Dev gpu[MAXG], mig[MAXM], dflt, *seen[MAXG];
static Rule rule[MAXR];
static int ngpu, nmig, nseen, nrule, refs;
static char sys_ver[3][80];

#define END(array) ((array) + sizeof(array) / sizeof *(array))
static int code_in(const struct Name *t, const struct Name *end, const char *s) {
  while (t < end && strcasecmp(s, t->name))
    t++;
  return t < end ? t->code : atoi(s);
}
static int err_code(const char *s) { return code_in(ERRS, END(ERRS), s); }
static int in_set(const char *spec, int i) { /* "*" or "0-3,6" */
  for (const char *p = spec; *p;) {
    if (*p == '*')
      return 1;
    char *e;
    int lo = strtol(p, &e, 10), hi = lo;
    if (e == p)
      return 0;
    if (*e == '-')
      hi = strtol(e + 1, &e, 10);
    if (i >= lo && i <= hi)
      return 1;
    p = *e == ',' ? e + 1 : "";
  }
  return 0;
}
static const char *attr(const Dev *d, const char *k) {
  for (int i = d->nkv - 1; i >= 0; i--)
    if (!strcmp(d->kv[i][0], k))
      return d->kv[i][1];
  return NULL;
}
static int set_kv(Dev *d, const char *k, const char *v) {
  return v && d->nkv < MAXK && snprintf(d->kv[d->nkv][0], 160, "%s", k) &&
         snprintf(d->kv[d->nkv++][1], 160, "%s", v) >= 0;
}
static int set_all(Dev *d, char **w, int n) { /* k=v words; 0 when one has no = */
  for (int i = 0; i < n; i++) {
    char k[64];
    size_t at = strcspn(w[i], "=");
    snprintf(k, sizeof k, "%.*s", (int)at, w[i]);
    if (!w[i][at] || !set_kv(d, k, w[i] + at + 1))
      return 0;
  }
  return 1;
}
static void add_link(Dev *d, int up, int type, const char *bus) {
  if (d->nlink == MAXL)
    return;
  Link *l = &d->link[d->nlink++];
  l->up = up;
  l->type = type;
  snprintf(l->bus, sizeof l->bus, "%s", strcmp(bus, "-") ? bus : "");
}
static int add_rule(int kind, const char *a, const char *b, const char *fn, int val) {
  if (nrule == MAXR)
    return 0;
  Rule *r = &rule[nrule++];
  *r = (Rule){.kind = kind, .val = val};
  snprintf(r->a, 64, "%s", a);
  snprintf(r->b, 64, "%s", b);
  snprintf(r->fn, 64, "%s", fn);
  return 1;
}
static int directive(char **w, int n) { /* 0: not understood */
  char *save = NULL, *sw[16];
  int ns = 0, a = n > 1 ? atoi(w[1]) : 0, b = n > 2 ? atoi(w[2]) : 0;
#define IS(word, need) (!strcmp(w[0], word) && n > (need))
  if (IS("driver", 1) || IS("nvml", 1) || IS("cuda", 1))
    return snprintf(sys_ver[*w[0] == 'c' ? 2 : *w[0] == 'n'], 80, "%s", w[1]);
  if (IS("default", 1))
    return set_all(&dflt, w + 1, n - 1);
  if (IS("gpu", 1) && ngpu < MAXG) {
    Dev *d = &gpu[ngpu];
    *d = dflt;
    d->idx = ngpu++;
    return set_kv(d, "bus", w[1]) && set_all(d, w + 2, n - 2);
  }
  if (IS("mig", 1) && nmig < MAXM && a < ngpu) {
    Dev *d = &mig[nmig++];
    d->parent = &gpu[a];
    for (Dev *m = mig; m < d; m++)
      d->idx += m->parent == d->parent;
    return set_all(d, w + 2, n - 2);
  }
  if (IS("nvpair", 3) && a < ngpu && b < ngpu) {
    for (int i = 0; i < atoi(w[3]); i++) {
      add_link(&gpu[a], 1, 0, attr(&gpu[b], "bus"));
      add_link(&gpu[b], 1, 0, attr(&gpu[a], "bus"));
    }
    return 1;
  }
  if (IS("nvswitch", 3))
    for (char *t = strtok_r(w[3], ",", &save); t && ns < 16; t = strtok_r(NULL, ",", &save))
      sw[ns++] = t;
  if (IS("nvswitch", 3) || IS("nvidle", 2) || IS("nvdown", 2) || IS("set", 2)) {
    for (int g = 0; g < ngpu; g++) {
      if (!in_set(w[1], g))
        continue;
      if (*w[0] == 's' && !set_all(&gpu[g], w + 2, n - 2))
        return 0;
      if (ns)
        for (int i = 0; i < b; i++)
          add_link(&gpu[g], 1, 2, sw[i % ns]);
      else if (w[0][2] == 'i')
        for (int i = 0; i < b; i++)
          add_link(&gpu[g], 0, 0xFF, "");
      else
        for (int i = 0; *w[0] == 'n' && i < gpu[g].nlink; i++)
          if (in_set(w[2], i))
            gpu[g].link[i].up = 0;
    }
    return 1;
  }
  if (IS("topo", 3))
    return add_rule(TOPO, w[1], w[2], "", code_in(LEVELS, END(LEVELS), w[3]));
  if (IS("p2p", 3))
    return add_rule(P2P, w[1], w[2], n > 4 ? w[4] : "0,1,3,4", atoi(w[3]));
  if (IS("missing", 1))
    return add_rule(MISSING, "*", "", w[1], NOFUNC);
  if (IS("delay", 2))
    return add_rule(DELAY, n > 3 ? w[3] : "*", "", w[1], b);
  if (IS("crash", 1))
    return add_rule(CRASH, n > 2 ? w[2] : "*", "", w[1], 0);
  if (IS("nvfar", 4)) {
    for (int g = 0; g < ngpu; g++)
      for (int i = 0; in_set(w[1], g) && i < b; i++)
        add_link(&gpu[g], 1, atoi(w[3]), w[4]);
    return 1;
  }
  if (!IS("fail", 2) || !add_rule(FAIL, w[1], "", n > 3 ? w[3] : "*", err_code(w[2])))
    return 0;
  for (int i = 4; i < n; i++) {
    sscanf(w[i], "after=%d", &rule[nrule - 1].after);
    sscanf(w[i], "until=%d", &rule[nrule - 1].until);
  }
  return 1;
}
static R load(void) {
  char list[4096], line[4096], *next = NULL;
  const char *vis = getenv("FAKE_NVML_VISIBLE"), *env = getenv("FAKE_NVML_MACHINE");
  memset(gpu, 0, sizeof gpu);
  memset(mig, 0, sizeof mig);
  memset(&dflt, 0, sizeof dflt);
  ngpu = nmig = nseen = nrule = 0;
  snprintf(list, sizeof list, "%s", env ? env : "/nowhere");
  for (char *path = strtok_r(list, ":", &next); path; path = strtok_r(NULL, ":", &next)) {
    FILE *f = fopen(path, "r");
    if (!f)
      return NODRIVER;
    for (int no = 1; fgets(line, sizeof line, f); no++) {
      char *w[64], *save = NULL;
      int n = 0;
      line[strcspn(line, "#\r\n")] = 0;
      for (char *t = strtok_r(line, " \t", &save); t && n < 64; t = strtok_r(NULL, " \t", &save))
        w[n++] = t;
      if (!n || directive(w, n))
        continue;
      fprintf(stderr, "fake_nvml: %s:%d: cannot use '%s'\n", path, no, w[0]);
      return fclose(f), UNKNOWN;
    }
    fclose(f);
  }
  for (int g = 0; g < ngpu; g++)
    if (!vis || in_set(vis, g))
      seen[nseen++] = &gpu[g];
  return OK;
}
static R rules(const char *fn, const Dev *d) { /* d NULL: a call without a device */
  const char *log = getenv("FAKE_NVML_LOG");
  int g = d ? (d->parent ? d->parent : d)->idx : -1;
  FILE *f = log ? fopen(log, "a") : NULL;
  if (f) {
    fprintf(f, "%s %d\n", fn, g);
    fclose(f);
  }
  for (Rule *r = rule; r < rule + nrule; r++) {
    if (r->kind < MISSING || fnmatch(r->fn, fn, 0))
      continue;
    int mine = d ? in_set(r->a, g) : !strcmp(r->a, "*");
    if (r->kind == DELAY) {
      if (mine)
        usleep((useconds_t)r->val * 1000);
    } else if (r->kind == CRASH) {
      if (mine)
        abort();
    } else if (mine) {
      int hit = ++r->hits;
      if (hit > r->after && (!r->until || hit <= r->until))
        return r->val;
    }
  }
  return OK;
}
static R sys_gate(const char *fn) { return refs ? rules(fn, NULL) : UNINIT; }
static R gate(const char *fn, const Dev *d) {
  if (!refs)
    return UNINIT;
  return (d >= gpu && d < gpu + ngpu) || (d >= mig && d < mig + nmig) ? rules(fn, d) : BADARG;
}
static R num(const Dev *d, const char *k, int i, ULL *out) { /* number i of the comma list under k */
  const char *v = attr(d, k);
  if (v && *v == '!')
    return err_code(v + 1);
  for (; v && i > 0; i--) {
    v = strchr(v, ',');
    if (v)
      v++;
  }
  if (!v || !*v || *v == '-' || *v == ',')
    return UNSUP;
  *out = strtoull(v, NULL, 0);
  return OK;
}
static R nums(const char *fn, const Dev *d, const char *k, int i, int n, U **out) {
  ULL v;
  R r = gate(fn, d);
  for (int j = 0; !r && j < n; j++) {
    r = out[j] ? num(d, k, i + j, &v) : BADARG;
    if (!r)
      *out[j] = (U)v;
  }
  return r;
}
static R wide(const char *fn, const Dev *d, const char *k, int i, ULL *o) {
  R r = gate(fn, d);
  return r ? r : num(d, k, i, o);
}
static R text(const char *fn, const Dev *d, const char *k, char *out, U len) {
  R r = gate(fn, d);
  const char *v = r ? NULL : attr(d, k);
  if (!v || !strcmp(v, "-"))
    return r ? r : UNSUP;
  if (*v == '!')
    return err_code(v + 1);
  if (strlen(v) + 1 > len)
    return TOOSMALL;
  for (U byte; *v; v++) {
    if (*v == '%' && sscanf(v + 1, "%2x", &byte) == 1) {
      *out++ = (char)byte;
      v += 2;
    } else
      *out++ = *v == '_' ? ' ' : *v;
  }
  *out = 0;
  return OK;
}
static R fill_pci(Pci *p, const char *bus) {
  memset(p, 0, sizeof *p);
  snprintf(p->bus_id, 32, "%s", bus);
  sscanf(bus, "%x:%x:%x", &p->domain, &p->bus, &p->device);
  snprintf(p->legacy, 16, "%04X:%02X:%02X.0", p->domain & 0xFFFF, p->bus & 0xFF, p->device & 0xFF);
  return OK;
}
/* ---- library and handles ---- */
R nvmlInitWithFlags(U flags) {
  R r = refs ? OK : load();
  if (!r)
    r = rules(__func__, NULL);
  if (!r)
    refs++;
  return flags & ~7u ? BADARG : r;
}
R nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
R nvmlInit(void) { return nvmlInitWithFlags(0); }
R nvmlShutdown(void) { return refs ? (refs--, OK) : UNINIT; }
const char *nvmlErrorString(R r) {
  const struct Name *t = ERRS;
  while (t->code != r && t->code != UNKNOWN)
    t++;
  return t->name;
}
static R sys_text(const char *fn, int i, char *out, U len) {
  R r = sys_gate(fn);
  return r ? r : strlen(sys_ver[i]) + 1 > len ? TOOSMALL : (strcpy(out, sys_ver[i]), OK);
}
R nvmlSystemGetDriverVersion(char *o, U n) { return sys_text(__func__, 0, o, n); }
R nvmlSystemGetNVMLVersion(char *o, U n) { return sys_text(__func__, 1, o, n); }
R nvmlSystemGetCudaDriverVersion_v2(int *o) {
  *o = atoi(sys_ver[2]);
  return sys_gate(__func__);
}
R nvmlSystemGetCudaDriverVersion(int *o) { return nvmlSystemGetCudaDriverVersion_v2(o); }
R nvmlDeviceGetCount_v2(U *o) {
  *o = nseen;
  return sys_gate(__func__);
}
R nvmlDeviceGetCount(U *o) { return nvmlDeviceGetCount_v2(o); }
static R give(const char *fn, Dev *d, Dev **o) {
  R r = rules(fn, d);
  if (!r)
    *o = d;
  return r;
}
R nvmlDeviceGetHandleByIndex_v2(U i, Dev **o) {
  return !refs ? UNINIT : i >= (U)nseen ? BADARG : give(__func__, seen[i], o);
}
R nvmlDeviceGetHandleByIndex(U i, Dev **o) { return nvmlDeviceGetHandleByIndex_v2(i, o); }
R nvmlDeviceGetHandleByPciBusId_v2(const char *s, Dev **o) {
  Pci a, b;
  fill_pci(&a, s);
  for (int i = 0; refs && i < nseen; i++) {
    fill_pci(&b, attr(seen[i], "bus"));
    if (a.domain == b.domain && a.bus == b.bus && a.device == b.device)
      return give(__func__, seen[i], o);
  }
  return refs ? NOTFOUND : UNINIT;
}
R nvmlDeviceGetHandleByPciBusId(const char *s, Dev **o) { return nvmlDeviceGetHandleByPciBusId_v2(s, o); }
R nvmlDeviceGetHandleByUUID(const char *s, Dev **o) {
  for (int i = 0; refs && i < nseen + nmig; i++) {
    Dev *d = i < nseen ? seen[i] : &mig[i - nseen];
    const char *u = attr(d, "uuid");
    if (u && !strcmp(u, s))
      return give(__func__, d, o);
  }
  return refs ? NOTFOUND : UNINIT;
}
R nvmlDeviceGetIndex(Dev *d, U *o) {
  R r = gate(__func__, d);
  if (!r) {
    *o = d->idx;
    for (int i = 0; i < nseen; i++)
      if (seen[i] == d)
        *o = i;
  }
  return r;
}
R nvmlDeviceGetPciInfo_v3(Dev *d, Pci *o) {
  R r = gate(__func__, d);
  return r ? r : fill_pci(o, attr(d->parent ? d->parent : d, "bus"));
}
/* ---- text, numbers ---- */
#define TEXT(f, k)                                                                                           \
  R f(Dev *d, char *o, U n) { return text(#f, d, k, o, n); }
#define NUM(f, k, i)                                                                                         \
  R f(Dev *d, U *o) { return nums(#f, d, k, i, 1, &o); }
#define PAIR(f, k)                                                                                           \
  R f(Dev *d, U *a, U *b) {                                                                                  \
    U *o[] = {a, b};                                                                                         \
    return nums(#f, d, k, 0, 2, o);                                                                          \
  }
#define KIND(f, k)                                                                                           \
  R f(Dev *d, int t, U *o) { return nums(#f, d, k, t, 1, &o); }
#define WIDE(f, k)                                                                                           \
  R f(Dev *d, ULL *o) { return wide(#f, d, k, 0, o); }
TEXT(nvmlDeviceGetName, "name")
TEXT(nvmlDeviceGetUUID, "uuid") TEXT(nvmlDeviceGetSerial, "serial") TEXT(nvmlDeviceGetVbiosVersion, "vbios")
    NUM(nvmlDeviceGetMinorNumber, "minor", 0) NUM(nvmlDeviceGetNumGpuCores, "cores", 0)
        NUM(nvmlDeviceGetMemoryBusWidth, "buswidth", 0) NUM(nvmlDeviceGetVirtualizationMode, "virt", 0) NUM(nvmlDeviceGetArchitecture, "arch",
                                                  0) NUM(nvmlDeviceGetNumaNodeId, "gpunuma",
                                                         0) NUM(nvmlDeviceGetPersistenceMode, "pm", 0)
        NUM(nvmlDeviceGetComputeMode, "cmode", 0) NUM(nvmlDeviceGetPerformanceState, "pstate",
                                                      0) NUM(nvmlDeviceGetPowerManagementLimit, "power", 0)
            NUM(nvmlDeviceGetEnforcedPowerLimit, "power", 1) NUM(nvmlDeviceGetPowerManagementDefaultLimit,
                                                                 "power",
                                                                 2) NUM(nvmlDeviceGetPowerUsage, "power", 3)
                NUM(nvmlDeviceGetCurrPcieLinkGeneration, "pcie",
                    0) NUM(nvmlDeviceGetCurrPcieLinkWidth, "pcie",
                           1) NUM(nvmlDeviceGetMaxPcieLinkGeneration, "pcie",
                                  2) NUM(nvmlDeviceGetMaxPcieLinkWidth, "pcie",
                                         3) NUM(nvmlDeviceGetRetiredPagesPendingStatus, "retpend", 0)
                    NUM(nvmlDeviceGetGpuInstanceId, "gi", 0) NUM(nvmlDeviceGetComputeInstanceId, "ci", 0)
                        PAIR(nvmlDeviceGetPowerManagementLimitConstraints, "powerrange")
                            PAIR(nvmlDeviceGetEccMode, "ecc") PAIR(nvmlDeviceGetMigMode, "mig")
                                PAIR(nvmlDeviceGetCudaComputeCapability, "cc")
                                    KIND(nvmlDeviceGetTemperature, "temp") KIND(nvmlDeviceGetClockInfo, "clk")
                                        KIND(nvmlDeviceGetMaxClockInfo, "maxclk")
                                            KIND(nvmlDeviceGetApplicationsClock, "appclk")
                                                WIDE(nvmlDeviceGetCurrentClocksEventReasons, "thr")
                                                    WIDE(nvmlDeviceGetCurrentClocksThrottleReasons, "thr") R
    nvmlDeviceGetRemappedRows(Dev *d, U *c, U *u, U *p, U *f) {
  U *o[] = {c, u, p, f};
  return nums(__func__, d, "remap", 0, 4, o);
}
R nvmlDeviceGetTotalEccErrors(Dev *d, int type, int ctr, ULL *o) {
  return wide(__func__, d, "eccerr", type * 2 + ctr, o);
} /* corrVol,corrAgg,uncVol,uncAgg */
R nvmlDeviceGetMemoryErrorCounter(Dev *d, int type, int ctr, int loc,
                                  ULL *o) { /* eccloc2 (DRAM), eccloc7 (SRAM) */
  char k[16];
  snprintf(k, sizeof k, "eccloc%d", loc);
  return wide(__func__, d, k, type * 2 + ctr, o);
}
/* ---- memory (mem = total,reserved,used MiB), processes (procs = pid:MiB,...), affinity ---- */
static R mem(const char *fn, Dev *d, ULL m[3], int version_ok) {
  R r = gate(fn, d);
  if (!r && !version_ok)
    r = BADVER;
  for (int i = 0; !r && i < 3; i++) {
    r = num(d, "mem", i, &m[i]);
    m[i] <<= 20;
  }
  return r;
}
R nvmlDeviceGetMemoryInfo(Dev *d, Mem1 *o) { /* v1 counts the reserved memory as used */
  ULL m[3] = {0};
  R r = mem(__func__, d, m, 1);
  return r ? r : (*o = (Mem1){m[0], m[0] - m[1] - m[2], m[1] + m[2]}, OK);
}
R nvmlDeviceGetMemoryInfo_v2(Dev *d, Mem2 *o) {
  ULL m[3] = {0};
  R r = mem(__func__, d, m, o->version == 0x02000028);
  return r ? r : (*o = (Mem2){o->version, m[0], m[1], m[0] - m[1] - m[2], m[2]}, OK);
}
R nvmlDeviceGetComputeRunningProcesses_v3(Dev *d, U *n, Proc *o) {
  R r = gate(__func__, d);
  U have = 0;
  for (const char *p = r ? NULL : attr(d, "procs"); p && *p; p = strchr(p, ','), p = p ? p + 1 : p, have++)
    if (o && have < *n) {
      o[have] = (Proc){0, 0, ~0u, ~0u};
      sscanf(p, "%u:%llu", &o[have].pid, &o[have].mem);
      o[have].mem <<= 20;
    }
  if (!r) {
    r = have > *n ? TOOSMALL : OK;
    *n = have;
  }
  return r;
}
static R bits(const char *fn, Dev *d, const char *k, U n, unsigned long *o) {
  R r = gate(fn, d);
  const char *v = r ? NULL : attr(d, k);
  if (!v || *v == '-')
    return r ? r : UNSUP;
  memset(o, 0, n * sizeof *o);
  for (U i = 0; i < n * 64; i++)
    if (in_set(v, (int)i))
      o[i / 64] |= 1ul << (i % 64);
  return OK;
}
R nvmlDeviceGetCpuAffinity(Dev *d, U n, unsigned long *o) { return bits(__func__, d, "cpus", n, o); }
R nvmlDeviceGetMemoryAffinity(Dev *d, U n, unsigned long *o, U scope) {
  return scope > 1 ? BADARG : bits(__func__, d, "node", n, o);
}
/* ---- NVLink ---- */
static R link_of(const char *fn, Dev *d, U l, Link **o) {
  R r = gate(fn, d);
  *o = d && !r ? &d->link[l % MAXL] : NULL;
  return r                  ? r
         : !d->nlink        ? UNSUP
         : l >= (U)d->nlink ? BADARG
                            : OK; /* no NVLink at all; past the last link */
}
#define LINK(f, expr)                                                                                        \
  R f(Dev *d, U l, U *o) {                                                                                   \
    Link *k;                                                                                                 \
    R r = link_of(#f, d, l, &k);                                                                             \
    if (!r)                                                                                                  \
      *o = (expr);                                                                                           \
    return r;                                                                                                \
  }
LINK(nvmlDeviceGetNvLinkState, k->up)
LINK(nvmlDeviceGetNvLinkRemoteDeviceType, k->type)
R nvmlDeviceGetNvLinkCapability(Dev *d, U l, U cap, U *o) {
  Link *k;
  R r = link_of(__func__, d, l, &k);
  if (!r)
    *o = cap <= 5 && k->up;
  return r;
}
R nvmlDeviceGetNvLinkRemotePciInfo_v2(Dev *d, U l, Pci *o) {
  Link *k;
  R r = link_of(__func__, d, l, &k);
  return r ? r : k->up && *k->bus ? fill_pci(o, k->bus) : UNSUP;
}
R nvmlDeviceGetNvLinkRemotePciInfo(Dev *d, U l, Pci *o) {
  return nvmlDeviceGetNvLinkRemotePciInfo_v2(d, l, o);
}
R nvmlDeviceGetNvLinkVersion(Dev *d, U l, U *o) {
  Link *k;
  ULL v = 0;
  R r = link_of(__func__, d, l, &k);
  if (!r)
    r = num(d, "nvlver", 0, &v);
  *o = (U)v;
  return r;
}
R nvmlDeviceGetNvLinkErrorCounter(Dev *d, U l, U c, ULL *o) {
  Link *k;
  R r = link_of(__func__, d, l, &k);
  *o = 0;
  if (!r)
    num(d, "nvlerr", (int)c, o);
  return r;
}
R nvmlDeviceGetFieldValues(Dev *d, int n,
                           Field *f) { /* any field N from key fiN; links answered from the model */
  R r = gate(__func__, d);
  for (int i = 0; !r && i < n; i++, f++) {
    char k[16];
    ULL v = 0;
    int per_link = f->id == 164 || f->id == 165;
    snprintf(k, sizeof k, "fi%u", f->id);
    if (f->id == 91 || per_link)
      f->ret = !d->nlink ? UNSUP : per_link && f->scope >= (U)d->nlink ? BADARG : OK;
    else
      f->ret = num(d, f->id == 90 ? "nvlmbps" : k, 0, &v);
    if (!f->ret && f->id == 91)
      v = d->nlink; /* NVLINK_LINK_COUNT */
    if (!f->ret && f->id == 165)
      v = d->link[f->scope].up; /* NVLINK_GET_STATE */
    if (!f->ret && f->id == 164)
      num(d, "nvlmbps", 0, &v); /* NVLINK_GET_SPEED */
    f->type = 1;
    f->v.ull = v;
  }
  return r;
}
/* ---- pairs of GPUs ---- */
static int pair_rule(int kind, int a, int b, int cap, int v) {
  for (Rule *r = rule; r < rule + nrule; r++)
    if (r->kind == kind && (kind == TOPO || in_set(r->fn, cap)) &&
        ((in_set(r->a, a) && in_set(r->b, b)) || (in_set(r->a, b) && in_set(r->b, a))))
      v = r->val;
  return v;
}
R nvmlDeviceGetTopologyCommonAncestor(Dev *a, Dev *b, U *o) {
  R r = gate(__func__, a);
  if (!r)
    r = gate(__func__, b);
  if (!r)
    *o = a == b ? 0 : pair_rule(TOPO, a->idx, b->idx, 0, 50);
  return r;
}
R nvmlDeviceGetP2PStatus(Dev *a, Dev *b, U cap, U *o) {
  int direct = 0, sa = 0, sb = 0;
  R r = gate(__func__, a);
  if (!r)
    r = cap > 4 ? BADARG : gate(__func__, b);
  if (r)
    return r;
  for (Link *l = a->link; l < a->link + a->nlink; l++)
    if (l->up) {
      sa |= l->type == 2;
      direct |= !strcmp(l->bus, attr(b, "bus"));
    }
  for (Link *l = b->link; l < b->link + b->nlink; l++)
    if (l->up)
      sb |= l->type == 2;
  *o = pair_rule(P2P, a->idx, b->idx, (int)cap, cap != 2 || direct || (sa && sb) ? 0 : 5); /* 2: NVLINK */
  return OK;
}
/* ---- fabric: fab = state,status,clique,mask,health; fabuuid = 32 hex digits; fabafter = N polls in
 * progress first; fabmax = 2 for a driver that knows no v3 struct ---- */
static R fabric(const char *fn, Dev *d, int need, B uuid[16], int *status, U *clique, B *state, U *mask,
                B *health) {
  ULL v[5] = {0}, after = 0, max = 4;
  R r = gate(fn, d);
  if (!r) {
    num(d, "fabmax", 0, &max);
    r = need > (int)max ? BADVER : num(d, "fab", 0, &v[0]);
  }
  if (r)
    return r;
  for (int i = 1; i < 5; i++)
    if (num(d, "fab", i, &v[i]))
      v[i] = 0;
  if (!num(d, "fabafter", 0, &after) && d->polls++ < (int)after)
    v[0] = 2;
  const char *h = v[0] == 3 ? attr(d, "fabuuid") : NULL;
  memset(uuid, 0, 16);
  for (int i = 0; h && i < 16; i++)
    sscanf(h + 2 * i, "%2hhx", &uuid[i]);
  *state = (B)v[0];
  *status = (int)v[1];
  *clique = v[0] == 3 ? (U)v[2] : 0;
  *mask = (U)v[3];
  *health = (B)v[4];
  return OK;
}
R nvmlDeviceGetGpuFabricInfo(Dev *d, Fab1 *o) {
  U m;
  B h;
  return fabric(__func__, d, 1, o->uuid, &o->status, &o->clique, &o->state, &m, &h);
}
R nvmlDeviceGetGpuFabricInfoV(Dev *d, Fab3 *o) {
  int need = o->version == 0x03000028 ? 3 : o->version == 0x02000024 ? 2 : 99;
  B skip;
  return fabric(__func__, d, need, o->uuid, &o->status, &o->clique, &o->state, &o->mask,
                need == 3 ? &o->health : &skip);
}
R nvmlDeviceGetGpuFabricInfo_v4(Dev *d, Fab4 *o) {
  R r = fabric(__func__, d, 4, o->uuid, &o->status, &o->c[0].id, &o->state, &o->mask, &o->health);
  return r ? r : (o->c[0].type = 0, o->n = o->state == 3, OK);
}
/* ---- MIG: mig = current,pending on the GPU; slices = sm,gi,ci on the MIG device ---- */
R nvmlDeviceIsMigDeviceHandle(Dev *d, U *o) {
  R r = gate(__func__, d);
  if (!r)
    *o = d->parent != NULL;
  return r;
}
R nvmlDeviceGetMaxMigDeviceCount(Dev *d, U *o) {
  ULL on = 0;
  R r = gate(__func__, d);
  if (!r) {
    num(d, "mig", 0, &on);
    *o = on ? 7 : 0;
  }
  return r;
}
R nvmlDeviceGetMigDeviceHandleByIndex(Dev *d, U i, Dev **o) {
  R r = gate(__func__, d);
  ULL on = 0;
  if (!r && (num(d, "mig", 0, &on) || !on))
    r = UNSUP;
  for (int m = 0; !r && m < nmig; m++)
    if (mig[m].parent == d && (U)mig[m].idx == i) {
      *o = &mig[m];
      return OK;
    }
  return r ? r : NOTFOUND;
}
R nvmlDeviceGetDeviceHandleFromMigDeviceHandle(Dev *d, Dev **o) {
  R r = gate(__func__, d);
  if (!r && !d->parent)
    r = BADARG;
  if (!r)
    *o = d->parent;
  return r;
}
R nvmlDeviceGetAttributes_v2(Dev *d, Attr *o) {
  memset(o, 0, sizeof *o);
  U *s[] = {&o->sm, &o->gi, &o->ci};
  R r = nums(__func__, d, "slices", 0, 3, s);
  return r ? r : num(d, "mem", 0, &o->mb);
}
