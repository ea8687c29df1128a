/* ckpt_keep.c: which checkpoints there are: publication, choice of the newest whole one, pruning, left-overs,
 * failing disks. */
#include "tests/ckpt_case.h"
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

/* Collective. Whether a folder holds exactly these names, in byte order. */
static bool has(const char *folder, const char *want) {
  char **name, got[2000] = "";
  int64_t n;
  sk_err e = {0};
  meet();
  if (tap_rank == 0 && sk_fs_list(folder, &name, &n, &e) == SK_OK) {
    for (int64_t i = 0; i < n; i++) snprintf(got, sizeof got, "%s%s ", str("%s", got), name[i]);
    sk_fs_free_names(name, n);
  }
  bool ok = tap_rank || strcmp(got, want) == 0;
  if (!ok) tap_diag("%s has %s", folder, got);
  return ok;
}

/* Collective. sk_ckpt_find gives RUN/checkpoints/NAME ("": none) on every rank. */
static bool finds(const char *run, const char *name) {
  char path[1200];
  const char *want = name[0] ? str("%s/checkpoints/%s", run, name) : "";
  sk_err e = {0};
  meet();
  bool ok = sk_ckpt_find(MPI_COMM_WORLD, run, path, sizeof path, &e) == SK_OK && !strcmp(path, want);
  if (!ok) tap_diag("found '%s', wanted '%s' %s", path, want, e.msg);
  return ok;
}

static void newest(void) {
  size_t n;
  char path[1200];
  sk_err e = {0};
  tap_ok(finds("r", ""), "no run folder: no checkpoint, no error");
  for (int step = 1; step <= 3; step++) must_save("r", step, UNEVEN, step);
  tap_ok(finds("r", "step-00000003"), "the newest of three");
  char *hint = slurp("r/checkpoints/latest", &n);
  tap_ok(!strcmp(hint, "step-00000003\n"), "`latest` names it");
  sk_free(hint);
  if (tap_rank == 0) spill("r/checkpoints/latest", "step-00000001\n", 14);
  tap_ok(finds("r", "step-00000003"), "a wrong `latest` changes nothing");
  if (tap_rank == 0) {
    unlink("r/checkpoints/latest");
    copy(whole, "r/checkpoints/step-00000009.tmp.elsewhere-1");
    copy(whole, "r/checkpoints/step-9");
  }
  tap_ok(finds("r", "step-00000003"), "without `latest`, beside a tmp folder and a foreign name");
  if (tap_rank == 0) hurt("r/checkpoints/step-00000003/model.h5", MIDDLE_BIT);
  sk_log_file("log");
  tap_ok(finds("r", "step-00000002"), "a damaged newer one is passed over");
  sk_log_file(NULL);
  char *log = slurp("log", &n);
  tap_ok(strstr(log, "warning: ") && strstr(log, "step-00000003/model.h5: damaged"), "a warning names it");
  sk_free(log);
  if (tap_rank == 0) rename("r/checkpoints/step-00000002", "r/checkpoints/step-00000002.old.elsewhere-1");
  tap_ok(finds("r", "step-00000002.old.elsewhere-1"), "one that was being replaced at a kill");
  sk_ckpt_find(MPI_COMM_WORLD, "r", path, 20, &e);
  tap_ok(told(&e, "too long") && !path[0], "a path longer than the buffer is refused");
}

static void none_whole(void) {
  char path[1200];
  sk_err e = {0};
  if (tap_rank == 0) {
    unlink("r/checkpoints/step-00000002.old.elsewhere-1/optimizer.h5");
    hurt("r/checkpoints/step-00000001/manifest.json", SHORTER);
  }
  meet();
  sk_ckpt_find(MPI_COMM_WORLD, "r", path, sizeof path, &e);
  tap_ok(told(&e, "r/checkpoints: ") && !path[0] && strstr(e.msg, "step-00000003/model.h5: ") &&
             strstr(e.msg, "step-00000002.old.elsewhere-1/optimizer.h5: missing") &&
             strstr(e.msg, "step-00000001/manifest.json: "), "none whole: failed, and each is named");
  if (tap_rank == 0) sk_fs_remove("r/checkpoints"), copy(whole, "r/checkpoints/step-00000009.tmp.elsewhere-1");
  tap_ok(finds("r", ""), "nothing but a left-over tmp folder: no checkpoint, no error");
}

static void publication(void) {
  sk_err e = {0};
  if (tap_rank == 0) {
    const char *tmp = str("pub/checkpoints/step-00000001.tmp.%s-%ld", sk_host(), (long)getpid());
    sk_fs_mkdirs(tmp, &e);
    spill(str("%s/junk", tmp), "x", 1);
  }
  must_save("pub", 1, UNEVEN, 1);
  bool ok = has("pub/checkpoints", "latest step-00000001 ");
  tap_ok(has("pub/checkpoints/step-00000001", "manifest.json model.h5 optimizer.h5 ") && ok,
         "a save over its own left-over tmp folder leaves the checkpoint and `latest`, nothing else");
  must_save("pub", 1, UNEVEN, 2);
  ok = has("pub/checkpoints", "latest step-00000001 ");
  tap_ok(holds("pub/checkpoints/step-00000001", COLUMNS, 2) && ok, "the same step again replaces it");
  if (tap_rank == 0) spill("pub/checkpoints/step-00000002", "x", 1);
  meet();
  save("pub", 2, BOTH, UNEVEN, 1, deck, &e);
  ok = told(&e, "pub/checkpoints/step-00000002: ");
  tap_ok(has("pub/checkpoints", "latest step-00000001 step-00000002 ") && ok,
         "a file where the folder should go is not touched");
}

static void prune(const char *run, int64_t keep, int64_t keep_every) {
  meet();
  if (tap_rank == 0) sk_ckpt_prune(run, keep, keep_every);
}

static void pruning(void) {
  prune("p", 2, 0); // no checkpoints: nothing to do
  must_save("p", 8, UNEVEN, 1);
  for (int step = 1; step < 8 && tap_rank == 0; step++) copy(whole, str("p/checkpoints/step-%08d", step));
  prune("p", 3, 3);
  tap_ok(has("p/checkpoints", "latest step-00000003 step-00000006 step-00000007 step-00000008 "),
         "keep 3, keep_every 3: 8, 7, 6 and 3 of 1 .. 8");
  prune("p", 1, 0);
  tap_ok(has("p/checkpoints", "latest step-00000007 step-00000008 "), "keep 1: still two");
  if (tap_rank == 0) {
    copy(whole, "p/checkpoints/step-00000006");
    copy(whole, "p/checkpoints/step-00000009");
    hurt("p/checkpoints/step-00000009/model.h5", SHORTER);
  }
  prune("p", 2, 0);
  tap_ok(has("p/checkpoints", "latest step-00000007 step-00000008 step-00000009 "),
         "a damaged one does not count: two whole ones stay");
}

/* Whose tmp and old folders go: those of processes that are gone. */
static void left_overs(void) {
  const struct timespec old[2] = {{.tv_sec = 1000000000}, {.tv_sec = 1000000000}};
  long me = (long)getpid(), gone = fork();
  if (gone == 0) _exit(0);
  waitpid((pid_t)gone, NULL, 0);
  const char *name[] = {str("step-00000002.tmp.%s-%ld", sk_host(), me), "step-00000004.tmp.elsewhere-1",
                        str("step-00000003.tmp.%s-%ld-1", sk_host(), gone), // of the host HOST-GONE
                        "step-00000005.tmp.elsewhere-1", str("step-00000006.tmp.%s-%ld", sk_host(), gone),
                        str("step-00000001.old.%s-%ld", sk_host(), gone)};
  must_save("l.tmp.x", 1, UNEVEN, 1);
  for (int i = 0; i < 6 && tap_rank == 0; i++) copy(whole, str("l.tmp.x/checkpoints/%s", name[i]));
  SK_CHECK(tap_rank || utimensat(AT_FDCWD, str("l.tmp.x/checkpoints/%s", name[3]), old, 0) == 0, "utimensat");
  prune("l.tmp.x", 2, 0);
  tap_ok(has("l.tmp.x/checkpoints", str("latest step-00000001 %s %s %s ", name[0], name[2], name[1])),
         "tmp and old folders go when their process is gone or, of another host, after an hour");
}

/* On one rank no file may grow beyond `bytes`; RLIM_INFINITY lifts the limit. */
static void limit_files(int rank, rlim_t bytes) {
  struct rlimit r;
  SK_CHECK(getrlimit(RLIMIT_FSIZE, &r) == 0, "no limit on files");
  r.rlim_cur = bytes < r.rlim_max ? bytes : r.rlim_max;
  SK_CHECK(tap_rank != rank || setrlimit(RLIMIT_FSIZE, &r) == 0, "the limit on files cannot be set");
}

static void failing_disks(void) {
  const int rank[] = {0, tap_size - 1, 0};
  const rlim_t bytes[] = {4096, 64, 2 << 20};
  // Both files are too large for the second one's rank, and both are written at once: either may be named.
  static const char *const name[] = {"model.h5: cannot be laid out", ".h5: cannot be ", "manifest.json: cannot"};
  char *text = sk_calloc((3 << 20) + 1, 1);
  sk_err e = {0};
  signal(SIGXFSZ, SIG_IGN);
  save("log", 1, BOTH, UNEVEN, 1, deck, &e);
  tap_ok(told(&e, "log/checkpoints: cannot be created"), "a file where the run folder should be");
  must_save("full", 1, UNEVEN, 1);
  memset(text, 'x', 3 << 20); // a deck of 3 MiB
  for (int i = 0; i < 3; i++) {
    e = (sk_err){0};
    limit_files(rank[i], bytes[i]);
    save("full", 2, BOTH, UNEVEN, 2, text, &e);
    limit_files(rank[i], RLIM_INFINITY);
    tap_ok(told(&e, name[i]), "no space on rank %d: %s", rank[i], name[i]);
    bool ok = has("full/checkpoints", "latest step-00000001 ");
    tap_ok(holds("full/checkpoints/step-00000001", DEAL, 1) && ok, "nothing is left, the older one holds");
  }
  must_save("full", 2, UNEVEN, 2);
  tap_ok(finds("full", "step-00000002"), "with space again the next save succeeds");
  sk_free(text);
}

int main(int argc, char **argv) {
  static void (*const test[])(void) = {newest, none_whole, publication, pruning, left_overs, failing_disks};
  return run_all(argc, argv, (int)(sizeof test / sizeof *test), test);
}
