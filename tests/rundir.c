/* rundir.c: a run's folder: creation, lock, status.json, metrics.jsonl, small files, loss.png, and what
 * is said when it cannot be had. The working directory is private. Another job is a child process: locks
 * of one process do not exclude each other, and closing any descriptor of a file drops them, so the lock
 * file is read by children as well. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "tests/folder.h"
#include "io/fsutil.h"
#include "io/run.h"
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* A file system without locks, at will. */
static bool no_locks;
int fcntl(int fd, int cmd, ...) {
  va_list ap;
  va_start(ap, cmd);
  void *arg = va_arg(ap, void *);
  va_end(ap);
  if (no_locks && cmd == F_SETLK) return errno = ENOLCK, -1;
  return (int)syscall(SYS_fcntl, fd, cmd, arg);
}

/* ---- helpers ---- */

/* Formatted text, good for the next 15 calls. */
SK_PRINTF(1, 2) static const char *str(const char *fmt, ...) {
  static char ring[16][4096];
  static int at;
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(ring[at = (at + 1) % 16], sizeof ring[0], fmt, ap);
  va_end(ap);
  return ring[at];
}

static void meet(void) { SK_MPI(MPI_Barrier(MPI_COMM_WORLD)); }

/* By rank 0, at the end of a file; "" empties it. */
static void append(const char *path, const char *text) {
  if (tap_rank != 0) return;
  FILE *f = fopen(path, text[0] ? "a" : "w");
  SK_CHECK(f && fputs(text, f) >= 0 && fclose(f) == 0, "cannot write %s", path);
}

/* Collective. A file's text on every rank, until the next call. */
static const char *text_of(const char *path) {
  static char *text;
  sk_err e = {0};
  sk_free(text);
  text = NULL;
  sk_bcast_file(MPI_COMM_WORLD, path, 1 << 20, &text, &e);
  if (e.code) tap_diag("%s", e.msg);
  return e.code ? "" : text;
}

/* Collective. How many names in a folder hold `part`. */
static int count(const char *folder, const char *part) {
  char **name;
  int64_t n;
  int hits = 0;
  sk_err e = {0};
  SK_CHECK(sk_fs_list(folder, &name, &n, &e) == SK_OK, "%s", e.msg);
  for (int64_t i = 0; i < n; i++) hits += strstr(name[i], part) != NULL;
  sk_fs_free_names(name, n);
  return hits;
}

/* Collective. The failure is there, the same on every rank, and its message has `what`. */
static bool told(const sk_err *e, const char *what) {
  static sk_err first;
  first = *e;
  SK_MPI(MPI_Bcast(&first, (int)sizeof first, MPI_BYTE, 0, MPI_COMM_WORLD));
  bool ok = e->code == SK_FAILED && !strcmp(e->msg, first.msg) && strstr(e->msg, what);
  if (!ok) tap_diag("code %d, '%s' wanted: %s", e->code, what, e->msg);
  return ok;
}

/* Collective. */
static sk_run_dir *open_run(const char *dir) {
  sk_run_dir *r = NULL;
  sk_err e = {0};
  meet();
  SK_CHECK(sk_run_open(MPI_COMM_WORLD, dir, &r, &e) == SK_OK, "%s", e.msg);
  return r;
}

/* Collective. The folder cannot be had, and all ranks are told why. */
static bool refused(const char *dir, const char *what) {
  sk_run_dir *r = NULL;
  sk_err e = {0};
  meet();
  sk_run_open(MPI_COMM_WORLD, dir, &r, &e);
  bool ok = told(&e, what) && !r;
  sk_run_close(r);
  return ok;
}

/* What a child sees, and does. */
static struct {
  int ready, holder;
  char text[1024];
} *shared;

/* Rank 0: another process looks at RUN/lock: its text and who has locked it (0: nobody). */
static void look(const char *dir) {
  const char *path = str("%s/lock", dir);
  pid_t child = fork();
  if (child == 0) {
    struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    int fd = open(path, O_RDWR);
    memset(shared, 0, sizeof *shared);
    bool ok = fd >= 0 && fcntl(fd, F_GETLK, &l) == 0 && read(fd, shared->text, 1000) >= 0;
    shared->holder = l.l_type == F_UNLCK ? 0 : (int)l.l_pid;
    _exit(!ok);
  }
  int status = 1;
  waitpid(child, &status, 0);
  SK_CHECK(status == 0, "%s cannot be read", path);
}

/* Rank 0: another job has the lock, with this text in the file, until it is killed. */
static pid_t hold(const char *dir, const char *text) {
  const char *path = str("%s/lock", dir);
  shared->ready = 0;
  pid_t child = fork();
  if (child == 0) {
    struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0666);
    bool ok = fd >= 0 && fcntl(fd, F_SETLK, &l) == 0 && write(fd, text, strlen(text)) > 0;
    __atomic_store_n(&shared->ready, ok ? 1 : -1, __ATOMIC_SEQ_CST);
    alarm(60);
    for (;;) pause();
  }
  while (!__atomic_load_n(&shared->ready, __ATOMIC_SEQ_CST)) usleep(1000);
  SK_CHECK(shared->ready == 1, "%s cannot be locked", path);
  return child;
}

static bool is_text(const json_t *o, const char *key, const char *want) {
  const char *s = json_string_value(json_object_get(o, key));
  return s && strcmp(s, want) == 0;
}

static int64_t int_of(const json_t *o, const char *key) {
  const json_t *x = json_object_get(o, key);
  return json_is_integer(x) ? json_integer_value(x) : -999;
}

/* ---- folder and small files ---- */

static void folder(void) {
  sk_err e = {0};
  sk_run_dir *r = open_run("new/deep/run");
  tap_ok(!strcmp(sk_run_path(r), "new/deep/run") && count("new/deep/run", "") == 3, "created");
  sk_say("first");
  sk_run_write(r, "deck.yaml", "run: {seed: 1}\n", &e);
  sk_run_write(r, "deck.yaml", "run: {seed: 2}\n", &e);
  tap_ok(!sk_agree(MPI_COMM_WORLD, &e) && !strcmp(text_of("new/deep/run/deck.yaml"), "run: {seed: 2}\n"),
         "deck.yaml is replaced");
  sk_run_write(r, "none/deck.yaml", "x", &e);
  tap_ok((e.code == SK_FAILED) == (tap_rank == 0), "a write that fails is rank 0's to tell");
  sk_agree(MPI_COMM_WORLD, &e);
  tap_ok(told(&e, "new/deep/run/none/deck.yaml: ") && !count("new/deep/run", ".tmp"), "named");
  sk_run_close(r);
  sk_say("not this");
  r = open_run("new/deep/run");
  sk_say("second");
  sk_run_close(r);
  tap_ok(!strcmp(text_of("new/deep/run/run.log"), "first\nsecond\n"), "run.log has what both jobs said");
  sk_run_close(NULL);
}

static void unwritable(void) {
  static const char *const c[][2] = {{"file", "file: cannot be used as a folder"},
                                     {"file/run", "file/run: cannot be created"},
                                     {"lock", "lock/lock: cannot be written"},
                                     {"metrics", "metrics/metrics.jsonl: cannot be written"},
                                     {"log", "log/run.log: cannot be written"}};
  sk_err e = {0};
  append("file", "x");
  if (tap_rank == 0) sk_fs_mkdirs("lock/lock", &e);
  if (tap_rank == 0) sk_fs_mkdirs("metrics/metrics.jsonl", &e);
  if (tap_rank == 0) sk_fs_mkdirs("log/run.log", &e);
  for (int i = 0; i < 5; i++) tap_ok(refused(c[i][0], c[i][1]), "something in the way: %s", c[i][1]);
  if (tap_rank == 0) look("log");
  tap_ok(tap_rank || shared->holder == 0, "a refused run keeps no lock");
  int able = 1, root = geteuid() == 0;
  if (tap_rank == 0) able = mkdir("closed", 0555) == 0 && (!root || seteuid(65534) == 0);
  SK_MPI(MPI_Bcast(&able, 1, MPI_INT, 0, MPI_COMM_WORLD));
  if (able) tap_ok(refused("closed/run", "closed/run: cannot be created: Permission"), "no permission");
  else tap_skip("no permission: this process cannot give up its rights");
  if (tap_rank == 0 && root && able) SK_CHECK(seteuid(0) == 0, "cannot be root again");
}

/* ---- the lock ---- */

static void lock_is_mine(void) {
  bool held = true, says = true, beats = true, released = true;
  int64_t start = (int64_t)time(NULL);
  setenv("SLURM_JOB_ID", "4711", 1);
  sk_run_dir *r = open_run("mine"), *second = NULL;
  if (tap_rank == 0) {
    look("mine");
    json_t *o = json_loads(shared->text, 0, NULL);
    held = shared->holder == (int)getpid();
    says = is_text(o, "host", sk_host()) && int_of(o, "pid") == getpid() && is_text(o, "job", "4711") &&
           int_of(o, "heartbeat") >= start && int_of(o, "heartbeat") <= time(NULL);
    json_decref(o);
    pid_t child = fork();
    if (child == 0) _exit(truncate("mine/lock", 0) != 0);
    waitpid(child, NULL, 0);
    sk_run_status(r, "running", 1, 2, NULL, NULL);
    look("mine");
    beats = strstr(shared->text, "\"heartbeat\": ") && shared->holder == (int)getpid();
  }
  tap_ok(held, "the lock is taken");
  tap_ok(says, "the file has host, pid, job and heartbeat");
  tap_ok(beats, "status refreshes it");
  long pid = (long)getpid();
  SK_MPI(MPI_Bcast(&pid, 1, MPI_LONG, 0, MPI_COMM_WORLD));
  const char *want = str("mine: in use by another job: host %s, process %ld, job 4711, last seen 20",
                         sk_host(), pid);
  sk_err e = {0};
  if (tap_rank > 0) sk_run_open(MPI_COMM_SELF, "mine", &second, &e);
  bool no = tap_rank == 0 || (e.code == SK_FAILED && strstr(e.msg, want));
  if (tap_size > 1) tap_ok(no, "a second job is refused");
  sk_run_close(r);
  unsetenv("SLURM_JOB_ID");
  if (tap_rank == 0) look("mine");
  released = tap_rank || (shared->holder == 0 && shared->text[0] == 0);
  tap_ok(released, "closing releases the lock and empties the file");
}

static void lock_is_taken(void) {
  pid_t child = 0;
  sk_run_close(open_run("taken"));
  append("taken/metrics.jsonl", "{\"step\": 1}\n{\"torn");
  if (tap_rank == 0)
    child = hold("taken", str("{\"host\": \"elsewhere\", \"pid\": 815, \"job\": \"7.x\", \"time\": \"n\"}%300s", "|"));
  tap_ok(refused("taken", "taken: in use by another job: host elsewhere, process 815, job 7.x, last seen n"),
         "another job has it: refused with host, pid, job and time");
  if (tap_rank == 0) look("taken");
  bool stays = tap_rank || (shared->holder == (int)child && strstr(shared->text, "elsewhere"));
  tap_ok(stays, "which leaves it the lock");
  tap_ok(strstr(text_of("taken/metrics.jsonl"), "{\"torn"), "and its files");
  if (tap_rank == 0) kill(child, SIGKILL), waitpid(child, NULL, 0);
  sk_run_dir *r = open_run("taken");
  if (tap_rank == 0) look("taken");
  tap_ok(tap_rank || (shared->holder == (int)getpid() && !strstr(shared->text, "elsewhere") &&
                      !strchr(shared->text, '|')),
         "killed, it has the lock no more: taken over");
  sk_run_close(r);
  if (tap_rank == 0) child = hold("taken", "\x01 no JSON");
  tap_ok(refused("taken", "in use by another job: host unknown"), "a lock without a text is a lock");
  if (tap_rank == 0) kill(child, SIGKILL), waitpid(child, NULL, 0);
}

/* The text alone, without a lock: as left by a job that died; then where there are no locks at all. */
static void stale_locks(void) {
  int64_t now = (int64_t)time(NULL);
  long live = (long)getppid(), gone = fork();
  if (gone == 0) _exit(0);
  waitpid((pid_t)gone, NULL, 0);
  const struct {
    const char *host;
    long pid;
    int64_t age;
    bool busy; /* without locks; with them all of these are free */
    const char *what;
  } c[] = {{"elsewhere", gone, 5, true, "a fresh heartbeat of another host"},
           {"elsewhere", 1, 700, false, "an old one"},
           {sk_host(), gone, 5, false, "a fresh one of this host, whose process is gone"},
           {sk_host(), live, 5, true, "a fresh one of this host, whose process lives"}};
  for (int i = 0; i < 8; i++) {
    bool without = i >= 4, ok = true;
    append("mine/lock", "");
    append("mine/lock", str("{\"host\": \"%s\", \"pid\": %ld, \"heartbeat\": %lld}\n", c[i % 4].host,
                            c[i % 4].pid, (long long)(now - c[i % 4].age)));
    no_locks = without;
    if (without && c[i % 4].busy) ok = refused("mine", "remove mine/lock");
    else sk_run_close(open_run("mine"));
    no_locks = false;
    tap_ok(ok, "%s: %s", without ? "no locks here" : "not locked", c[i % 4].what);
  }
}

/* ---- status.json ---- */

/* Collective. */
static bool status_is(const char *state, int64_t step, const char *checkpoint, const char *message) {
  struct tm tm = {0};
  const char *text = text_of("mine/status.json");
  json_t *o = json_loads(text, 0, NULL);
  const char *at = json_string_value(json_object_get(o, "time"));
  const char *end = at ? strptime(at, "%Y-%m-%dT%H:%M:%SZ", &tm) : NULL;
  bool ok = end && !*end && llabs((long long)(timegm(&tm) - time(NULL))) < 60 &&
            is_text(o, "state", state) && int_of(o, "step") == step && int_of(o, "steps") == 10 &&
            is_text(o, "checkpoint", checkpoint) && is_text(o, "message", message) &&
            is_text(o, "host", sk_host()) && (tap_rank || int_of(o, "pid") == getpid());
  if (!ok) tap_diag("%s", text);
  json_decref(o);
  return ok;
}

static void status(void) {
  static const char *const state[] = {"incomplete", "complete", "failed"};
  sk_run_dir *r = open_run("mine");
  double start = sk_now();
  sk_run_status(r, "running", 1, 10, NULL, NULL);
  sk_run_status(r, "running", 2, 10, "", NULL);
  int step = sk_now() - start < 0.5 ? 1 : 2;
  SK_MPI(MPI_Bcast(&step, 1, MPI_INT, 0, MPI_COMM_WORLD));
  tap_ok(status_is("running", step, "", ""), "running; another step at once is passed over");
  sk_run_status(r, "running", 3, 10, "c/step-3", "");
  tap_ok(status_is("running", 3, "c/step-3", ""), "a checkpoint is not");
  usleep(550000);
  sk_run_status(r, "running", 4, 10, "c/step-3", "");
  tap_ok(status_is("running", 4, "c/step-3", ""), "nor a step after half a second");
  for (int i = 0; i < 3; i++) {
    sk_run_status(r, state[i], 5, 10, "c/step-5", "say \"why\"\n\xc3\xbc");
    tap_ok(status_is(state[i], 5, "c/step-5", "say \"why\"\n\xc3\xbc"), "%s", state[i]);
  }
  sk_run_status(r, "failed", 6, 10, "\xff/x", "bad \xff byte");
  tap_ok(status_is("failed", 6, "?/x", "bad ? byte"), "text that is not UTF-8");
  tap_ok(count("mine", ".tmp") == 0, "no temporary file is left");
  meet();
  if (tap_rank == 0) unlink("mine/status.json"), mkdir("mine/status.json", 0777);
  sk_run_status(r, "complete", 7, 10, "", "");
  tap_ok(strstr(text_of("mine/run.log"), "warning: mine/status.json: "), "a failure is a warning");
  sk_run_close(r);
  if (tap_rank == 0) rmdir("mine/status.json");
}

/* ---- metrics.jsonl ---- */

static void metric(sk_run_dir *r, int64_t step, double loss) {
  sk_metric_begin(r);
  sk_metric_int(r, "step", step);
  sk_metric_num(r, "loss", loss);
  sk_metric_end(r);
}

static void metrics(void) {
  const int64_t ranks[] = {INT64_MAX, 0, INT64_MIN};
  sk_run_dir *r = open_run("metrics.d");
  sk_metric_begin(r);
  sk_metric_str(r, "event", "grid");
  sk_metric_ints(r, "ranks", ranks, 3);
  sk_metric_ints(r, "none", ranks, 0);
  sk_metric_end(r);
  metric(r, 1, 0.1);
  metric(r, 2, NAN);
  metric(r, 3, -INFINITY);
  metric(r, 4, -0.0);
  sk_metric_begin(r);
  sk_metric_end(r);
  sk_metric_begin(r);
  sk_metric_str(r, "a \"key\"", "two\nlines, \\, \xc3\xbc and \xff");
  sk_metric_end(r);
  static const char want[] = "{\"event\": \"grid\", \"ranks\": [9223372036854775807, 0, "
                             "-9223372036854775808], \"none\": []}\n"
                             "{\"step\": 1, \"loss\": 0.10000000000000001}\n"
                             "{\"step\": 2, \"loss\": null}\n"
                             "{\"step\": 3, \"loss\": null}\n"
                             "{\"step\": 4, \"loss\": -0}\n"
                             "{}\n"
                             "{\"a \\\"key\\\"\": \"two\\nlines, \\\\, ?? and ?\"}\n";
  tap_ok(!strcmp(text_of("metrics.d/metrics.jsonl"), want), "every line as it should be, at once");
  sk_run_close(r);
  r = open_run("metrics.d");
  metric(r, 5, 5);
  const char *more = str("%s{\"step\": 5, \"loss\": 5}\n", want);
  tap_ok(!strcmp(text_of("metrics.d/metrics.jsonl"), more), "a restart appends");
  sk_run_close(r);
}

/* %.17g gives every double back; a line is as long as it needs to be. */
static void numbers(void) {
  enum { N = 2000 };
  sk_run_dir *r = open_run("numbers");
  bool same = true;
  sk_metric_begin(r);
  for (int i = 0; i < N; i++) {
    uint64_t bits = sk_rand(1, (uint64_t)i);
    double x;
    memcpy(&x, &bits, sizeof x);
    sk_metric_num(r, str("%d", i), isfinite(x) ? x : 4.9406564584124654e-324);
  }
  sk_metric_end(r);
  sk_run_close(r);
  const char *text = text_of("numbers/metrics.jsonl");
  size_t n = strlen(text);
  tap_ok(n > 20 * N && strchr(text, '\n') == text + n - 1, "%d numbers in one line", N);
  for (int i = 0; i < N && same; i++) {
    uint64_t bits = sk_rand(1, (uint64_t)i);
    const char *at = strstr(text, str("\"%d\": ", i));
    double x, got = at ? strtod(strchr(at, ' '), NULL) : NAN;
    memcpy(&x, &bits, sizeof x);
    if (!isfinite(x)) x = 4.9406564584124654e-324;
    same = memcmp(&x, &got, sizeof x) == 0;
  }
  tap_ok(same, "each comes back bit for bit");
}

/* What a killed job left behind its last newline goes, and nothing else. */
static void torn_lines(void) {
  char *torn = sk_calloc(10001, 1);
  memset(torn, 'x', 10000);
  append("numbers/metrics.jsonl", "");
  append("numbers/metrics.jsonl", "{\"step\": 1}\n{\"step\": 2, \"lo");
  sk_run_close(open_run("numbers"));
  tap_ok(!strcmp(text_of("numbers/metrics.jsonl"), "{\"step\": 1}\n"), "half a line is cut off");
  sk_run_close(open_run("numbers"));
  tap_ok(!strcmp(text_of("numbers/metrics.jsonl"), "{\"step\": 1}\n"), "a whole one is not");
  append("numbers/metrics.jsonl", torn);
  sk_run_close(open_run("numbers"));
  tap_ok(!strcmp(text_of("numbers/metrics.jsonl"), "{\"step\": 1}\n"), "a long half");
  append("numbers/metrics.jsonl", "");
  append("numbers/metrics.jsonl", torn);
  sk_run_close(open_run("numbers"));
  tap_ok(text_of("numbers/metrics.jsonl")[0] == 0, "nothing but half a line");
  sk_free(torn);
}

/* A line that cannot be written leaves nothing of itself, and is told once. */
/* What a killed job left: files half written, and a process that has ended but was never waited for. */
static void left_over(void) {
  sk_run_dir *r;
  sk_err e = {0};
  if (tap_rank == 0) sk_fs_mkdirs("left", &e);
  append("left/status.json.tmp.123", "{");
  append("left/notes.tmp", "mine\n");
  meet();
  e = (sk_err){0};
  sk_run_open(MPI_COMM_WORLD, "left", &r, &e);
  tap_ok(r && sk_fs_size("left/status.json.tmp.123") < 0 && sk_fs_size("left/notes.tmp") == 5,
         "a file half written goes, another one stays");
  sk_run_close(r);
  long child = fork();
  if (child == 0) _exit(0);
  siginfo_t info;
  waitid(P_PID, (id_t)child, &info, WEXITED | WNOWAIT);
  bool zombie = sk_fs_process_gone(child);
  waitpid((pid_t)child, NULL, 0);
  tap_ok(zombie && sk_fs_process_gone(child), "a process that nobody has waited for is gone");
  tap_ok(!sk_fs_process_gone(getpid()) && !sk_fs_process_gone(1) && !sk_fs_process_gone(0), "this one and the first are not");
}

static void full_disk(void) {
  struct rlimit old, r;
  sk_run_dir *run = open_run("full");
  char *filler = sk_calloc(5001, 1);
  memset(filler, 'x', 5000); // run.log stays far below the limit
  sk_metric_begin(run);
  sk_metric_str(run, "filler", filler);
  sk_metric_end(run);
  int64_t size = sk_fs_size("full/metrics.jsonl");
  signal(SIGXFSZ, SIG_IGN);
  SK_CHECK(getrlimit(RLIMIT_FSIZE, &old) == 0, "no limit on files");
  r = old;
  r.rlim_cur = (rlim_t)size + 10;
  meet();
  if (tap_rank == 0) SK_CHECK(setrlimit(RLIMIT_FSIZE, &r) == 0, "the limit cannot be set");
  metric(run, 2, 2);
  metric(run, 3, 3);
  setrlimit(RLIMIT_FSIZE, &old);
  meet();
  tap_ok(tap_rank || sk_fs_size("full/metrics.jsonl") == size, "lines without space leave nothing");
  const char *said = strstr(text_of("full/run.log"), "warning: full/metrics.jsonl: cannot be written");
  tap_ok(said && !strstr(said + 1, "warning"), "one warning");
  metric(run, 4, 4);
  const char *end = strstr(text_of("full/metrics.jsonl"), "x\"}\n");
  tap_ok(end && !strcmp(end, "x\"}\n{\"step\": 4, \"loss\": 4}\n"), "with space the next one holds");
  sk_run_close(run);
  sk_free(filler);
}

/* ---- loss.png ---- */

/* Rank 0 has a gnuplot of its own: a shell script. "": none at all. */
static void fake_gnuplot(const char *script, const char *path) {
  if (tap_rank == 0) {
    mkdir("bin", 0777);
    unlink("bin/gnuplot");
  }
  if (script[0]) append("bin/gnuplot", str("#!/bin/sh\nd=${1%%/*}\n%s\n", script));
  if (tap_rank == 0 && script[0]) chmod("bin/gnuplot", 0755);
  setenv("PATH", path, 1);
}

static bool plotted(sk_run_dir *r) {
  int done = sk_run_plot(r), root = done;
  SK_MPI(MPI_Bcast(&root, 1, MPI_INT, 0, MPI_COMM_WORLD));
  return root && done == (tap_rank == 0);
}

static const char history[] =
    "{\"event\": \"grid\", \"step\": 9, \"loss\": 9}\n"
    "{\"step\": 1, \"loss\": 5.5, \"lr\": 0.1}\n"
    "{\"step\": 2, \"loss\": 5, \"lr\": 0.2}\n"
    "{\"event\": \"eval\", \"step\": 2, \"valid_loss\": 7}\n"
    "{\"step\": 3, \"loss\": 4, \"lr\": 0.3}\n"
    "{\"event\": \"eval\", \"step\": 3, \"valid_loss\": 6}\n"
    "no JSON\n"
    "{\"event\": \"restart\", \"step\": 2}\n"
    "{\"step\": 3, \"loss\": 3.5, \"lr\": 0.25}\n"
    "{\"step\": 4, \"loss\": null}\n"
    "{\"step\": 5, \"loss\": 2, \"lr\": 0}\n"
    "{\"event\": \"skip\", \"step\": 6, \"loss\": 9}\n";

static void drawing(void) {
  char *path = sk_strdup(getenv("PATH") ? getenv("PATH") : "/usr/bin:/bin"), *dir = getcwd(NULL, 0);
  const char *mine = str("%s/bin:%s", dir, path);
  double got[12] = {0};
  static const double want[12] = {1, 5.5, 0.1, 2, 5, 0.2, 3, 3.5, 0.25, 5, 2, 0}; // step, loss, lr
  sk_run_dir *r = open_run("it's");
  fake_gnuplot("cp $d/train $d/valid $d/script .; echo drawn >$d/loss.png", mine);
  tap_ok(!plotted(r), "nothing to draw");
  append("it's/metrics.jsonl", history);
  bool ok = plotted(r);
  tap_ok(ok && !strcmp(text_of("it's/loss.png"), "drawn\n") && !count("it's", ".plot"), "drawn");
  const char *at = text_of("train");
  for (int i = 0, n = 0; i < 4; i++, at += n)
    sscanf(at, "%lf %lf %*f %lf%n", &got[3 * i], &got[3 * i + 1], &got[3 * i + 2], &n);
  tap_ok(!memcmp(got, want, sizeof want) && !strcmp(at, "\n"), "of a step's lines the last counts");
  tap_ok(!strcmp(text_of("valid"), "2 7\n"), "validation likewise");
  const char *script = text_of("script");
  tap_ok(strstr(script, "'it''s'") && strstr(script, "from 2, graph 0"), "title and restart mark");
  fake_gnuplot("echo other >$d/loss.png; exit 1", mine);
  ok = plotted(r);
  tap_ok(!ok && !strcmp(text_of("it's/loss.png"), "drawn\n"), "gnuplot fails: the picture stays");
  fake_gnuplot("", "/nowhere");
  ok = plotted(r);
  tap_ok(!ok && !count("it's", ".plot"), "no gnuplot: no picture, no error");
  setenv("PATH", path, 1);
  sk_run_close(r);
  sk_free(path);
  free(dir);
}

static void gnuplot(void) {
  static const char png[] = "\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x04\xb0\0\0\x03\x20"; // 1200 x 800
  char head[24] = "";
  if (system("command -v gnuplot >/dev/null 2>&1") != 0) {
    tap_skip("loss.png: no gnuplot here");
    return;
  }
  sk_run_dir *r = open_run("it's");
  bool ok = plotted(r);
  meet();
  FILE *f = fopen("it's/loss.png", "rb");
  ok = f && fread(head, 1, sizeof head, f) == sizeof head && ok;
  if (f) fclose(f);
  tap_ok(ok && !memcmp(head, png, sizeof head), "gnuplot draws loss.png");
  sk_run_close(r);
}

int main(int argc, char **argv) {
  static void (*const test[])(void) = {folder, unwritable, lock_is_mine, lock_is_taken, stale_locks,
                                       status, metrics, numbers, torn_lines, left_over, full_disk, drawing, gnuplot};
  tap_init(&argc, &argv);
  folder_enter("rundir");
  shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  SK_CHECK(shared != MAP_FAILED, "no shared memory");
  for (size_t i = 0; i < sizeof test / sizeof *test; i++) test[i]();
  folder_remove();
  return tap_done();
}
