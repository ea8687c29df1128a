#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "io/run.h"
#include "io/fsutil.h"
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { HEARTBEAT_SECONDS = 600, LOCK_TEXT = 1024 };

/* The batch system's name for this job; "" outside of one. */
static const char *job_id(void) {
  static const char *const name[] = {"SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "FLUX_JOB_ID", "COBALT_JOBID",
                                     "JOB_ID"};
  for (size_t i = 0; i < sizeof name / sizeof *name; i++) {
    const char *s = getenv(name[i]);
    if (s && s[0]) return s;
  }
  return "";
}

static void utc(char out[32]) {
  time_t now = time(NULL);
  struct tm tm;
  strftime(out, 32, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &tm));
}

/* ---- lock ---- */

typedef struct holder {
  char host[256], job[128], time[32];
  int64_t pid, heartbeat;
} holder;

static void copy_text(char *out, size_t cap, const json_t *o, const char *key) {
  const char *s = json_string_value(json_object_get(o, key));
  snprintf(out, cap, "%s", s ? s : "");
}

/* What the file says; false when it says nothing (released, or being written). */
static bool read_holder(int fd, holder *h) {
  char text[LOCK_TEXT];
  ssize_t n = pread(fd, text, sizeof text, 0);
  json_t *o = n > 0 ? json_loadb(text, (size_t)n, JSON_DISABLE_EOF_CHECK, NULL) : NULL;
  memset(h, 0, sizeof *h);
  if (!o) return false;
  copy_text(h->host, sizeof h->host, o, "host");
  copy_text(h->job, sizeof h->job, o, "job");
  copy_text(h->time, sizeof h->time, o, "time");
  h->pid = json_integer_value(json_object_get(o, "pid"));
  h->heartbeat = json_integer_value(json_object_get(o, "heartbeat"));
  json_decref(o);
  return true;
}

/* Writes me into the lock file, through the descriptor that holds the lock: closing any other one of this
 * file would drop it. */
static void beat(int fd) {
  char now[32], text[LOCK_TEXT];
  utc(now);
  json_t *o = json_pack("{s:s, s:i, s:s, s:s, s:I}", "host", sk_host(), "pid", (int)getpid(), "job",
                        job_id(), "time", now, "heartbeat", (json_int_t)time(NULL));
  size_t n = o ? json_dumpb(o, text, sizeof text - 1, 0) : 0;
  json_decref(o);
  if (n == 0 || n >= sizeof text) return;
  text[n++] = '\n';
  if (pwrite(fd, text, n, 0) == (ssize_t)n && ftruncate(fd, (off_t)n) != 0) return; // a hint only
}

static int refuse(const char *dir, const holder *h, sk_err *e) {
  return sk_fail(e, SK_FAILED, "%s: in use by another job: host %s, process %lld%s%s, last seen %s.\n"
                 "Wait until it ends, stop it, or choose another run.dir.", dir,
                 h->host[0] ? h->host : "unknown", (long long)h->pid, h->job[0] ? ", job " : "", h->job,
                 h->time[0] ? h->time : "at an unknown time");
}

/* The file system has no locks: the heartbeat must do. */
static int check_heartbeat(const char *dir, const holder *h, sk_err *e) {
  bool gone = strcmp(h->host, sk_host()) == 0 && sk_fs_process_gone((long)h->pid);
  if (gone || time(NULL) - h->heartbeat > HEARTBEAT_SECONDS) return SK_OK;
  refuse(dir, h, e);
  size_t n = strlen(e->msg);
  snprintf(e->msg + n, sizeof e->msg - n, "\nIf it is certainly gone, remove %s/lock.", dir);
  return e->code;
}

static void take_lock(sk_run_dir *r, sk_err *e) {
  char *path = sk_strf("%s/lock", r->path);
  struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
  holder h;
  r->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (r->lock < 0) {
    sk_fs_fail(e, path, "written", errno);
  } else if (fcntl(r->lock, F_SETLK, &whole) != 0) {
    int err = errno;
    bool said = read_holder(r->lock, &h);
    if (err == EACCES || err == EAGAIN) refuse(r->path, &h, e);
    else if (said) check_heartbeat(r->path, &h, e);
  }
  if (!e->code) beat(r->lock);
  else if (r->lock >= 0) {
    close(r->lock);
    r->lock = -1;
  }
  sk_free(path);
}

/* ---- opening ---- */

/* Cuts off what follows the last newline: a killed run's half line. */
static int cut_torn(int fd) {
  char buf[4096];
  off_t end = lseek(fd, 0, SEEK_END), at = end;
  while (at > 0) {
    off_t from = at > (off_t)sizeof buf ? at - (off_t)sizeof buf : 0;
    ssize_t n = pread(fd, buf, (size_t)(at - from), from);
    if (n != at - from) return n < 0 ? errno : EIO;
    char *newline = memrchr(buf, '\n', (size_t)n);
    at = newline ? from + (newline - buf) + 1 : from;
    if (newline) break;
  }
  return at < end && ftruncate(fd, at) != 0 ? errno : 0;
}

/* Files half written by a job that was killed; this one holds the lock. */
static void remove_left_over(sk_run_dir *r) {
  char **name;
  int64_t n;
  sk_err e = {0};
  if (sk_fs_list(r->path, &name, &n, &e) != SK_OK) return;
  for (int64_t i = 0; i < n; i++) {
    char *path = sk_strf("%s/%s", r->path, name[i]);
    if (fnmatch("*.tmp.[0-9]*", name[i], 0) == 0) unlink(path);
    sk_free(path);
  }
  sk_fs_free_names(name, n);
}

static void open_metrics(sk_run_dir *r, sk_err *e) {
  char *path = sk_strf("%s/metrics.jsonl", r->path);
  r->metrics = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  int err = r->metrics < 0 ? errno : cut_torn(r->metrics);
  if (err) sk_fs_fail(e, path, "written", err);
  sk_free(path);
}

int sk_run_open(MPI_Comm comm, const char *dir, sk_run_dir **out, sk_err *e) {
  int rank;
  MPI_Comm_rank(comm, &rank);
  sk_run_dir *r = sk_calloc(1, sizeof *r);
  *out = NULL;
  r->path = sk_strdup(dir);
  r->lock = r->metrics = -1;
  if (rank == 0 && sk_fs_mkdirs(dir, e) == SK_OK) {
    take_lock(r, e);
    if (!e->code) remove_left_over(r);
    if (!e->code) open_metrics(r, e);
    char *log = sk_strf("%s/run.log", dir);
    if (!e->code && sk_log_file(log) != SK_OK) sk_fs_fail(e, log, "written", errno);
    sk_free(log);
  }
  if (sk_agree(comm, e) == SK_OK) *out = r;
  else sk_run_close(r);
  return e->code;
}

void sk_run_close(sk_run_dir *r) {
  if (!r) return;
  if (r->metrics >= 0) {
    close(r->metrics);
    sk_log_file(NULL);
  }
  if (r->lock >= 0) {
    if (ftruncate(r->lock, 0) != 0) sk_warn("%s/lock: cannot be emptied", r->path);
    close(r->lock);
  }
  sk_events_close(r->events);
  sk_free(r->last_status);
  sk_free(r->line);
  sk_free(r->path);
  sk_free(r);
}

int sk_run_tensorboard(sk_run_dir *r, MPI_Comm comm, sk_err *e) {
  if (r->lock >= 0) r->events = sk_events_open(r->path, e);
  return sk_agree(comm, e);
}

const char *sk_run_path(const sk_run_dir *r) { return r->path; }

/* ---- small files ---- */

int sk_run_write(sk_run_dir *r, const char *name, const char *text, sk_err *e) {
  if (r->lock < 0) return SK_OK;
  char *path = sk_strf("%s/%s", r->path, name);
  sk_fs_write(path, text, strlen(text), true, e);
  sk_free(path);
  return e->code;
}

/* Text from outside that may not be UTF-8. */
static json_t *safe_string(const char *s) {
  json_t *o = json_string(s ? s : "");
  if (o) return o;
  char *copy = sk_strdup(s);
  for (char *p = copy; *p; p++)
    if ((unsigned char)*p >= 128) *p = '?';
  o = json_string(copy);
  sk_free(copy);
  return o;
}

void sk_run_status(sk_run_dir *r, const char *state, int64_t step, int64_t steps, const char *checkpoint,
                   const char *message) {
  if (r->lock < 0) return;
  char *key = sk_strf("%s\n%lld\n%s\n%s", state, (long long)steps, checkpoint ? checkpoint : "",
                      message ? message : "");
  bool changed = !r->last_status || strcmp(key, r->last_status) != 0;
  sk_free(r->last_status);
  r->last_status = key;
  if (!changed && sk_now() - r->last_status_at < 0.5) return;
  r->last_status_at = sk_now();
  beat(r->lock);
  char now[32];
  utc(now);
  json_t *o = json_pack("{s:s, s:I, s:I, s:o, s:o, s:s, s:s, s:i, s:s}", "state", state, "step",
                        (json_int_t)step, "steps", (json_int_t)steps, "checkpoint", safe_string(checkpoint),
                        "message", safe_string(message), "time", now, "host", sk_host(), "pid",
                        (int)getpid(), "job", job_id());
  char *json = o ? json_dumps(o, JSON_INDENT(1)) : NULL, *text = json ? sk_strf("%s\n", json) : NULL;
  char *path = sk_strf("%s/status.json", r->path);
  sk_err e = {0};
  // The running state is written often and synced to disk by the system in its own time.
  if (text && sk_fs_write(path, text, strlen(text), strcmp(state, "running") != 0, &e) != SK_OK)
    sk_warn("%s", e.msg);
  sk_free(path);
  sk_free(text);
  free(json);
  json_decref(o);
}
