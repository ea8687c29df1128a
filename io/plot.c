/* loss.png by gnuplot, from metrics.jsonl. Data and script go to a folder of their own inside the run's,
 * gnuplot is started on the script without a shell, and the finished picture is renamed into place. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "io/fsutil.h"
#include "io/run.h"
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

enum { GNUPLOT_SECONDS = 60 };

/* ---- reading metrics.jsonl ---- */

typedef struct point {
  int64_t step;
  double y, lr;
} point;

typedef struct curve {
  point *at;
  int64_t n, cap;
} curve;

/* Steps ascend: a step that comes again after a restart replaces itself and all that followed. */
static void add_point(curve *c, point p) {
  while (c->n > 0 && c->at[c->n - 1].step >= p.step) c->n--;
  if (c->n == c->cap) c->at = sk_realloc(c->at, (size_t)(c->cap = 2 * c->cap + 256) * sizeof *c->at);
  c->at[c->n++] = p;
}

typedef struct curves {
  curve train, valid, restart;
} curves;

static void read_line(curves *c, const json_t *o) {
  const char *event = json_string_value(json_object_get(o, "event"));
  const json_t *step = json_object_get(o, "step"), *loss = json_object_get(o, "loss");
  const json_t *valid = json_object_get(o, "valid_loss"), *lr = json_object_get(o, "lr");
  point p = {.step = json_integer_value(step), .lr = json_is_number(lr) ? json_number_value(lr) : NAN};
  if (!json_is_integer(step)) return;
  if (event && strcmp(event, "restart") == 0) {
    add_point(&c->restart, p);
  } else if (event && strcmp(event, "eval") == 0 && json_is_number(valid)) {
    p.y = json_number_value(valid);
    add_point(&c->valid, p);
  } else if (!event && json_is_number(loss)) {
    p.y = json_number_value(loss);
    add_point(&c->train, p);
    while (c->valid.n > 0 && c->valid.at[c->valid.n - 1].step >= p.step) c->valid.n--; // follows its step
  }
}

static bool read_metrics(const sk_run_dir *r, curves *c) {
  char *path = sk_strf("%s/metrics.jsonl", r->path), *line = NULL;
  size_t cap = 0;
  FILE *f = fopen(path, "r");
  sk_free(path);
  if (!f) return false;
  for (ssize_t n; (n = getline(&line, &cap, f)) > 0;) {
    json_t *o = json_loadb(line, (size_t)n, 0, NULL);
    if (o) read_line(c, o);
    json_decref(o);
  }
  free(line);
  fclose(f);
  return c->train.n > 0;
}

/* ---- writing what gnuplot reads ---- */

/* An exponential mean over about a sixtieth of the run to both sides, so that it does not lag behind. */
static double *smooth(const curve *c) {
  double *mean = sk_calloc((size_t)c->n, sizeof *mean), *weight = sk_calloc((size_t)c->n, sizeof *weight);
  double span = fmin(100, fmax(1, (double)c->n / 60)), keep = 1 - 1 / span, sum = 0, all = 0;
  for (int64_t i = 0; i < c->n; i++) {
    mean[i] = sum = keep * sum + c->at[i].y;
    weight[i] = all = keep * all + 1;
  }
  sum = all = 0; /* of the points behind i */
  for (int64_t i = c->n - 1; i >= 0; i--) {
    mean[i] = (mean[i] + sum) / (weight[i] + all);
    sum = keep * (sum + c->at[i].y);
    all = keep * (all + 1);
  }
  sk_free(weight);
  return mean;
}

/* Columns: step, loss, smoothed loss, learning rate. */
static bool write_train(const char *path, const curve *c) {
  FILE *f = fopen(path, "w");
  if (!f) return false;
  double *mean = smooth(c);
  for (int64_t i = 0; i < c->n; i++)
    fprintf(f, "%lld %.9g %.9g %.9g\n", (long long)c->at[i].step, c->at[i].y, mean[i], c->at[i].lr);
  sk_free(mean);
  return fclose(f) == 0;
}

static bool write_valid(const char *path, const curve *c) {
  FILE *f = fopen(path, "w");
  if (!f) return false;
  for (int64_t i = 0; i < c->n; i++) fprintf(f, "%lld %.9g\n", (long long)c->at[i].step, c->at[i].y);
  return fclose(f) == 0;
}

/* 'text' as gnuplot quotes it: nothing is expanded inside, a quote is doubled. */
static void quoted(FILE *f, const char *s) {
  fputc('\'', f);
  for (; *s; s++) {
    if (*s == '\'') fputc('\'', f);
    fputc(*s == '\n' ? ' ' : *s, f);
  }
  fputc('\'', f);
}

static void write_marks(FILE *f, const curve *restart) {
  for (int64_t i = 0; i < restart->n; i++) {
    long long s = (long long)restart->at[i].step;
    fprintf(f, "set arrow from %lld, graph 0 to %lld, graph 1 nohead dt 2 lw 1 lc rgb '#999999' back\n", s,
            s);
  }
}

static bool positive(const curve *c, double *ratio) {
  double lo = INFINITY, hi = 0;
  for (int64_t i = 0; i < c->n; i++) {
    lo = fmin(lo, c->at[i].y);
    hi = fmax(hi, c->at[i].y);
  }
  *ratio = lo > 0 ? hi / lo : 0;
  return lo > 0;
}

static void write_body(FILE *f, const curves *c, const char *title) {
  double ratio;
  long long first = (long long)c->train.at[0].step - 1, last = (long long)c->train.at[c->train.n - 1].step;
  fputs("if (strstrt(GPVAL_TERMINALS, 'pngcairo')) { set terminal pngcairo size 1200,800 font 'sans,12' }"
        " else { set terminal png size 1200,800 }\n"
        "set output 'loss.png'\nset multiplot\nset grid lc rgb '#dddddd' lw 1 lt 1\n"
        "set border 3 lc rgb '#555555'\nset tics nomirror\n"
        "set lmargin at screen 0.09\nset rmargin at screen 0.97\n", f);
  fprintf(f, "set xrange [%lld:%lld]\n", first, last > first ? last : first + 1);
  write_marks(f, &c->restart);
  fputs("set tmargin at screen 0.92\nset bmargin at screen 0.34\nset format x ''\n"
        "set ylabel 'loss (nats per token)'\nset key top right\nset title ", f);
  quoted(f, title);
  fputs(" noenhanced font ',15'\n", f);
  if (positive(&c->train, &ratio) && ratio > 10) fputs("set logscale y\n", f);
  fputs("plot 'train' using 1:2 with lines lw 1 lc rgb '#9ecae1' title 'training', \\\n"
        "  'train' using 1:3 with lines lw 2.5 lc rgb '#08519c' title 'training, smoothed'", f);
  if (c->valid.n)
    fputs(", \\\n  'valid' using 1:2 with linespoints pt 7 ps 1.1 lw 1.5 lc rgb '#d94801' "
          "title 'validation'", f);
  if (c->restart.n) fputs(", \\\n  NaN with lines dt 2 lw 1 lc rgb '#999999' title 'restart'", f);
  fputs("\nunset logscale y\nunset title\nunset key\nset format x '%g'\n"
        "set tmargin at screen 0.28\nset bmargin at screen 0.09\nset xlabel 'step'\n"
        "set ylabel 'learning rate'\nset yrange [0:*]\nset ytics autofreq\n"
        "set format y '%.1e'\n", f);
  fputs("plot 'train' using 1:4 with lines lw 2 lc rgb '#238b45'\nunset multiplot\n", f);
}

static bool write_script(const char *path, const char *dir, const curves *c, const char *title) {
  FILE *f = fopen(path, "w");
  if (!f) return false;
  fputs("cd ", f);
  quoted(f, dir);
  fputc('\n', f);
  write_body(f, c, title);
  return fclose(f) == 0;
}

/* ---- running it ---- */

/* True when gnuplot ran and was content; killed when it takes too long. */
static bool run_gnuplot(const char *script) {
  char *const argv[] = {(char *)(uintptr_t) "gnuplot", (char *)(uintptr_t)script, NULL};
  posix_spawn_file_actions_t files;
  posix_spawnattr_t attr;
  sigset_t none;
  pid_t pid;
  sigemptyset(&none);
  posix_spawn_file_actions_init(&files);
  for (int fd = 0; fd < 3; fd++)
    posix_spawn_file_actions_addopen(&files, fd, "/dev/null", fd ? O_WRONLY : O_RDONLY, 0);
  posix_spawnattr_init(&attr);
  posix_spawnattr_setsigmask(&attr, &none);
  posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK);
  int err = posix_spawnp(&pid, "gnuplot", &files, &attr, argv, environ);
  posix_spawn_file_actions_destroy(&files);
  posix_spawnattr_destroy(&attr);
  if (err) return false;
  int status = 0;
  double start = sk_now();
  for (pid_t got; (got = waitpid(pid, &status, WNOHANG)) != pid;) {
    if (got < 0 && errno != EINTR) return false;
    if (sk_now() - start > GNUPLOT_SECONDS) kill(pid, SIGKILL);
    nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
  }
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static const char *base_name(const char *path) {
  const char *slash = strrchr(path, '/');
  return slash && slash[1] ? slash + 1 : path;
}

bool sk_run_plot(sk_run_dir *r) {
  curves c = {0};
  bool done = false;
  if (r->lock < 0) return false;
  char *dir = sk_strf("%s/.plot.XXXXXX", r->path);
  if (read_metrics(r, &c) && mkdtemp(dir)) {
    char *train = sk_strf("%s/train", dir), *valid = sk_strf("%s/valid", dir);
    char *script = sk_strf("%s/script", dir), *made = sk_strf("%s/loss.png", dir);
    char *final = sk_strf("%s/loss.png", r->path);
    done = write_train(train, &c.train) && write_valid(valid, &c.valid) &&
           write_script(script, dir, &c, base_name(r->path)) && run_gnuplot(script) &&
           sk_fs_size(made) > 0 && rename(made, final) == 0;
    sk_free(train);
    sk_free(valid);
    sk_free(script);
    sk_free(made);
    sk_free(final);
    sk_fs_remove(dir);
  }
  sk_free(dir);
  sk_free(c.train.at);
  sk_free(c.valid.at);
  sk_free(c.restart.at);
  return done;
}
