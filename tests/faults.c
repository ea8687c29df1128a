/* faults.c: thousands of seeded faults in the files of a run: system calls that fail, lie or are the last ones of a
 * killed process while a job opens its folder, writes metrics and status and saves; and files that are damaged
 * afterwards. After each the next job starts on the same folder. Never may it use wrong values, or believe in a
 * checkpoint that was not saved (silent); always must it find a whole checkpoint and be able to save (usable).
 * SAKER_FAULTS=N: how many (CI: 200; make check-faults: 10000 in all); SAKER_FAULTS_SEED=S: others. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "tests/tap.h"
#include "io/ckpt.h"
#include "io/fsutil.h"
#include "io/run.h"
#include "tests/faults_shim.h"
#include <fcntl.h>
#include <glob.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SETS = 4, FLOATS = 16384, FILES = 2, PAGE = 4096 };

static const sk_dset set[FILES][SETS] = {
    {{"params/a", 2, {70, 60}, {0}}, {"params/b", 1, {7}, {0}}, {"params/c", 3, {6, 1, 4}, {0}}, {"params/d", 1, {1}, {0}}},
    {{"m/a", 2, {70, 60}, {0}}, {"m/b", 1, {7}, {0}}, {"v/a", 2, {30, 20}, {30, 20}}, {"v/b", 1, {7}, {0}}}};
static const char *const file_name[FILES] = {"model.h5", "optimizer.h5"};

/* Faults at rest, after those of the shim. */
enum { FLIP = SHIM_KINDS, CUT, GROW, GONE, OTHER_STEP, SWAPPED, ALL_KINDS };
static const char *const rest_name[] = {"bit flipped on the disk", "cut short", "grown", "file gone",
                                        "file of another step", "files swapped"};
static const char *name_of(int kind) { return kind < SHIM_KINDS ? shim_name[kind] : rest_name[kind - SHIM_KINDS]; }

/* harmless: the save is whole; reported: the job was told; passed over: the next job saw the damage itself. */
enum { HARMLESS, REPORTED, PASSED_OVER, SILENT, UNUSABLE, OUTCOMES };
static const char *const outcome_name[OUTCOMES] = {"harmless", "reported", "passed over", "SILENT", "UNUSABLE"};
static int64_t table[ALL_KINDS][OUTCOMES];

/* ---- the run ---- */

static const char run[] = "run";
static struct {
  int n;
  sk_slab slab[SETS];
  float data[FLOATS];
} part[FILES];
static sk_ckpt_file file[FILES];
static sk_ckpt_form *form;
static int64_t version[1 << 20]; /* what a checkpoint of that step must hold; 0: there is none */

/* This rank's rows of every dataset. */
static void cut(void) {
  for (int k = 0; k < FILES; k++) {
    for (int i = 0; i < SETS; i++) {
      const sk_dset *d = &set[k][i];
      sk_slab *s = &part[k].slab[part[k].n++];
      *s = (sk_slab){.dset = i, .data = part[k].data};
      memcpy(s->count, d->dim, sizeof s->count);
      s->start[0] = d->dim[0] * tap_rank / tap_size;
      s->count[0] = d->dim[0] * (tap_rank + 1) / tap_size - s->start[0];
    }
    file[k] = (sk_ckpt_file){file_name[k], SETS, part[k].n, set[k], part[k].slab, NULL, NULL};
  }
}

/* Every other time as in the files, page by page, so that pages go past the page cache where the file system can. */
static void place(bool as_in_files) {
  for (int k = 0; k < FILES; k++) {
    char *at = (char *)part[k].data;
    for (int i = 0; i < SETS; i++) {
      sk_slab *s = &part[k].slab[i];
      if (as_in_files && sk_slab_count(s, set[k][i].rank) > 0)
        at += (sk_ckpt_form_place(form, k, &file[k], i) - (int64_t)(uintptr_t)at) & (PAGE - 1);
      s->data = (float *)(void *)at;
      at += sk_slab_count(s, set[k][i].rank) * (int64_t)sizeof(float);
    }
    SK_CHECK(at <= (char *)(part[k].data + FLOATS), "no room");
  }
}

static float value(int k, const sk_slab *s, int64_t i, int64_t v) {
  uint64_t key = sk_rand((uint64_t)v, (uint64_t)(100 * k + 10 * s->dset) + 1000 * (uint64_t)s->start[0]);
  return (float)sk_uniform(key, (uint64_t)i);
}

static void fill(int64_t v) {
  for (int k = 0; k < FILES; k++)
    for (int i = 0; i < part[k].n; i++) {
      const sk_slab *s = &part[k].slab[i];
      for (int64_t j = 0; j < sk_slab_count(s, set[k][s->dset].rank); j++) s->data[j] = value(k, s, j, v);
    }
}

static bool filled(int64_t v) {
  bool ok = true;
  for (int k = 0; k < FILES; k++)
    for (int i = 0; i < part[k].n; i++) {
      const sk_slab *s = &part[k].slab[i];
      for (int64_t j = 0; j < sk_slab_count(s, set[k][s->dset].rank); j++) ok = ok && s->data[j] == value(k, s, j, v);
    }
  return ok;
}

/* Collective. What a job does with its folder, around one save; the code of the save (or of the opening). */
static int job(int64_t step, int64_t v, sk_err *e) {
  sk_run_dir *r = NULL;
  sk_ckpt_result result;
  sk_ckpt_meta meta = {.run_id = "faults", .step = step, .grid = {1, tap_size, 1, 1}, .deck = (char *)(uintptr_t)"run: {}"};
  if (sk_run_open(MPI_COMM_WORLD, run, &r, e) != SK_OK) return e->code;
  sk_run_write(r, "deck.yaml", "run: {}\n", e);
  if (sk_agree(MPI_COMM_WORLD, e) == SK_OK) {
    sk_run_status(r, "running", step, step, "", "");
    fill(v);
    sk_ckpt_job *save = sk_ckpt_begin(MPI_COMM_WORLD, run, &meta, form, file, step % 2 == 1, 2, 0);
    sk_ckpt_end(save, &result, e);
    sk_metric_begin(r);
    sk_metric_int(r, "step", step);
    sk_metric_end(r);
    sk_run_status(r, e->code ? "failed" : "complete", step, step, "", e->msg);
  }
  sk_run_close(r);
  return e->code;
}

/* ---- the next job ---- */

static bool good_lines(void) {
  char line[1024], path[64];
  snprintf(path, sizeof path, "%s/metrics.jsonl", run);
  FILE *f = fopen(path, "r");
  bool ok = f != NULL;
  while (ok && fgets(line, sizeof line, f)) {
    json_t *o = json_loads(line, 0, NULL);
    ok = o != NULL;
    json_decref(o);
  }
  if (f) fclose(f);
  if (truncate(path, 0) != 0) return false;
  return ok;
}

/* Collective. The step of the newest whole checkpoint, whose values are those of its version; 0: none can be used, -1:
 * the values are wrong. */
static int64_t newest(sk_err *e) {
  char path[1024];
  sk_ckpt_meta meta = {0};
  sk_run_dir *r = NULL;
  int64_t step = 0;
  if (sk_run_open(MPI_COMM_WORLD, run, &r, e) != SK_OK) return 0;
  sk_run_close(r);
  int lines = tap_rank != 0 || good_lines();
  SK_MPI(MPI_Bcast(&lines, 1, MPI_INT, 0, MPI_COMM_WORLD));
  if (!lines) return sk_fail(e, SK_FAILED, "metrics.jsonl is no list of objects"), 0;
  if (sk_ckpt_find(MPI_COMM_WORLD, run, path, sizeof path, e) != SK_OK || !path[0]) return 0;
  if (sk_ckpt_open(MPI_COMM_WORLD, path, &meta, NULL, e) != SK_OK) return 0;
  step = meta.step;
  sk_ckpt_meta_free(&meta);
  for (int k = 0; k < FILES; k++) memset(part[k].data, 0xff, sizeof part[k].data);
  for (int k = 0; k < FILES && !e->code; k++) sk_ckpt_read(MPI_COMM_WORLD, path, &file[k], e);
  if (e->code) return 0;
  int ok = step > 0 && filled(version[step]), all;
  SK_MPI(MPI_Allreduce(&ok, &all, 1, MPI_INT, MPI_LAND, MPI_COMM_WORLD));
  return all ? step : -1;
}

/* ---- damage at rest, by rank 0 ---- */

/* A file of the checkpoint of that step. Killed between two renames a job leaves it under the name with .old, where the
 * next one finds it. */
static char *path_of(int64_t step, const char *name) {
  char *dir = sk_strf("%s/checkpoints/step-%08lld", run, (long long)step), *old = sk_strf("%s.old.*", dir), *path;
  glob_t found = {0};
  const bool aside = access(dir, F_OK) != 0 && glob(old, 0, NULL, &found) == 0;
  path = sk_strf("%s/%s", aside ? found.gl_pathv[0] : dir, name);
  globfree(&found);
  sk_free(old);
  sk_free(dir);
  return path;
}

static void change(const char *path, int kind, uint64_t pick) {
  int64_t size = sk_fs_size(path);
  int fd = open(path, O_RDWR);
  char byte = 0;
  SK_CHECK(fd >= 0 && size > 0, "%s", path);
  int64_t at = (int64_t)(pick / 64 % (uint64_t)size);
  if (kind == FLIP) {
    SK_CHECK(pread(fd, &byte, 1, at) == 1, "%s", path);
    byte ^= (char)(1 << pick % 8);
    SK_CHECK(pwrite(fd, &byte, 1, at) == 1, "%s", path);
  } else if (kind == CUT) {
    const int64_t length[] = {0, 1, 96, size - 1, at, at / 4096 * 4096};
    SK_CHECK(ftruncate(fd, length[pick % 6] < size ? length[pick % 6] : size - 1) == 0, "%s", path);
  } else {
    SK_CHECK(pwrite(fd, &byte, 1, size + (int64_t)(pick % 2 * 4095)) == 1, "%s", path);
  }
  close(fd);
}

static void damage(int kind, int64_t step, int64_t before, uint64_t pick) {
  static const char *const name[] = {"model.h5", "optimizer.h5", "manifest.json"};
  const char *which = name[pick % 3];
  char *path = path_of(step, which), *other = kind == SWAPPED ? path_of(step, name[(pick + 1) % 3]) : path_of(before, which);
  char *tmp = path_of(step, "tmp");
  if (kind <= GROW) {
    change(path, kind, pick / 3);
  } else if (kind == GONE) {
    unlink(path);
  } else if (kind == OTHER_STEP) {
    unlink(path);
    SK_CHECK(link(other, path) == 0, "%s", path);
  } else {
    SK_CHECK(rename(path, tmp) == 0 && rename(other, path) == 0 && rename(tmp, other) == 0, "%s", path);
  }
  sk_free(tmp);
  sk_free(other);
  sk_free(path);
}

/* ---- one case ---- */

static int64_t last, seed, calls; /* newest step that was saved in order; calls of a job that can fail */

/* Without a fault; the folder must serve. */
static bool clean_save(sk_err *e) {
  bool hit;
  version[last + 1] = last + 1;
  shim_begin(run, SHIM_NONE, 0, 0);
  job(last + 1, last + 1, e);
  calls = shim_end(&hit);
  if (e->code) return false;
  return newest(e) == ++last;
}

static int at_rest(int kind, uint64_t pick, sk_err *e) {
  SK_MPI(MPI_Barrier(MPI_COMM_WORLD));
  if (tap_rank == 0) damage(kind, last, last - 1, pick);
  SK_MPI(MPI_Barrier(MPI_COMM_WORLD));
  int64_t got = newest(e);
  version[last] = 0;
  return got == last - 1 ? PASSED_OVER : got == 0 ? UNUSABLE : SILENT;
}

/* The save is of the next step or of the newest one once more; rank `who` has the fault. */
static int in_a_call(int kind, int64_t nth, uint64_t pick, int who, bool again, bool *hit, sk_err *e) {
  sk_err told = {0};
  int64_t step = again ? last : last + 1, v = step + (again ? 1000000 : 0), old = version[step];
  shim_begin(run, tap_rank == who ? (shim_kind)kind : SHIM_NONE, nth, pick);
  job(step, v, &told);
  shim_end(hit);
  SK_MPI(MPI_Allreduce(MPI_IN_PLACE, hit, 1, MPI_C_BOOL, MPI_LOR, MPI_COMM_WORLD));
  bool killed = kind == SHIM_DEAD || kind == SHIM_TORN;
  version[step] = v;
  int64_t got = newest(e);
  if (got == -1 && old) { /* the one before stays where the new one did not come through */
    version[step] = old;
    got = newest(e);
    if (got == step && !told.code && !killed) return SILENT;
    if (got == step) return REPORTED;
  }
  if (got == step) {
    last = step;
    return told.code && !killed ? SILENT : HARMLESS;
  }
  version[step] = old;
  if (got == 0) return UNUSABLE;
  if (got != last) return SILENT;
  return told.code ? REPORTED : killed ? PASSED_OVER : SILENT;
}

static void new_form(void) {
  static int64_t made;
  sk_err e = {0};
  sk_ckpt_form_free(form);
  SK_CHECK(sk_ckpt_form_make(MPI_COMM_WORLD, run, "faults", FILES, file, &form, &e) == SK_OK, "%s", e.msg);
  sk_ckpt_form_set_workers(form, 1 + (int)(made % 4), false); /* one thread to four, on any machine */
  place(made++ % 2 == 0);
}

/* Whether there was a fault: not every call can suffer each of them. */
static bool one(int64_t i) {
  uint64_t key = sk_rand((uint64_t)seed, (uint64_t)i);
  int kind = 1 + (int)(sk_rand(key, 0) % (ALL_KINDS - 1)), who = (int)(sk_rand(key, 1) % (uint64_t)tap_size);
  int64_t nth = 1 + (int64_t)(sk_rand(key, 2) % (uint64_t)calls); /* of this rank's calls */
  bool again = sk_rand(key, 3) % 4 == 0;
  bool hit = true;
  sk_err e = {0};
  int outcome = kind < SHIM_KINDS ? in_a_call(kind, nth, sk_rand(key, 4), who, again, &hit, &e)
                                  : at_rest(kind, sk_rand(key, 4), &e);
  if (outcome == HARMLESS || outcome == REPORTED || outcome == PASSED_OVER) {
    sk_err next = {0};
    if (kind == SHIM_DEAD || kind == SHIM_TORN) new_form(); // as every job does at its start
    if (!clean_save(&next)) outcome = UNUSABLE, e = next;
    else if (kind >= SHIM_KINDS && !clean_save(&next)) outcome = UNUSABLE, e = next;
  }
  if (hit || outcome == SILENT || outcome == UNUSABLE) table[kind][outcome]++;
  if (outcome != SILENT && outcome != UNUSABLE) return hit;
  tap_diag("case %lld, seed %lld: %s, call %lld of rank %d%s: %s %s", (long long)i, (long long)seed, name_of(kind),
           (long long)nth, who, again ? ", saved again" : "", outcome_name[outcome], e.msg);
  return true;
}

/* ---- all ---- */

/* Warnings by the thousand are not for anyone to read. */
static void mute(bool on) {
  static int keep = -1;
  if (on) {
    int null = open("/dev/null", O_WRONLY);
    keep = dup(2);
    dup2(null, 2);
    close(null);
  } else {
    dup2(keep, 2);
    close(keep);
  }
}

static int64_t number(const char *name, int64_t otherwise) {
  const char *text = getenv(name);
  return text && text[0] ? strtoll(text, NULL, 10) : otherwise;
}

static void print_table(void) {
  tap_diag("%-26s %9s %9s %12s %7s %9s", "fault", outcome_name[0], outcome_name[1], outcome_name[2], outcome_name[3],
           outcome_name[4]);
  for (int k = 1; k < ALL_KINDS; k++)
    tap_diag("%-26s %9lld %9lld %12lld %7lld %9lld", name_of(k), (long long)table[k][0], (long long)table[k][1],
             (long long)table[k][2], (long long)table[k][3], (long long)table[k][4]);
}

int main(int argc, char **argv) {
  char dir[512];
  sk_err e = {0};
  bool ready = true;
  tap_init(&argc, &argv);
  const char *tmp = getenv("TMPDIR"), *fast = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
  int64_t cases = number("SAKER_FAULTS", 200), silent = 0, unusable = 0;
  seed = number("SAKER_FAULTS_SEED", 1);
  snprintf(dir, sizeof dir, "%s/saker-faults-XXXXXX", tmp && tmp[0] ? tmp : fast);
  if (tap_rank == 0) SK_CHECK(mkdtemp(dir), "cannot make a temporary folder");
  SK_MPI(MPI_Bcast(dir, sizeof dir, MPI_CHAR, 0, MPI_COMM_WORLD));
  SK_CHECK(chdir(dir) == 0, "cannot enter %s", dir);
  cut();
  new_form();
  for (int i = 0; i < 3; i++) ready = clean_save(&e) && ready;
  tap_ok(ready, "three saves without a fault, %lld calls each that can fail %s", (long long)calls, e.msg);
  mute(true);
  for (int64_t i = 0, done = 0; done < cases; i++) done += one(i);
  mute(false);
  for (int k = 0; k < ALL_KINDS; k++) silent += table[k][SILENT], unusable += table[k][UNUSABLE];
  print_table();
  tap_ok(silent == 0, "%lld faults, %lld of them silent", (long long)cases, (long long)silent);
  int left = 0;
  char **name;
  int64_t n;
  SK_CHECK(sk_fs_list("run/checkpoints", &name, &n, &e) == SK_OK, "%s", e.msg);
  for (int64_t i = 0; i < n; i++) left += strncmp(name[i], "step-", 5) == 0;
  sk_fs_free_names(name, n);
  tap_ok(left <= 4, "%d folders are left of %lld saves", left, (long long)last);
  tap_ok(unusable == 0, "%lld faults, %lld unusable folders", (long long)cases, (long long)unusable);
  sk_ckpt_form_free(form);
  SK_MPI(MPI_Barrier(MPI_COMM_WORLD));
  if (tap_rank == 0) sk_fs_remove(dir);
  return tap_done();
}
