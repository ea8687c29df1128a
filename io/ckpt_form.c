/* ckpt_form.c: what all saves of a run have in common: the structure of the files, the folder, who writes. */
#include "io/ckpt_job.h"
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* What an earlier process of this very host and number has left (in a container numbers come again soon). */
static void remove_left_over(const char *dir, const char *prefix, const char *who) {
  char **name, *end = sk_strf(".tmp.%s", who);
  int64_t n;
  sk_err e = {0};
  sk_fs_list(dir, &name, &n, &e);
  for (int64_t i = 0; i < n; i++) {
    size_t len = strlen(name[i]), tail = strlen(end);
    if (len <= tail || strncmp(name[i], prefix, strlen(prefix)) != 0 || strcmp(name[i] + len - tail, end) != 0) continue;
    char *path = sk_strf("%s/%s", dir, name[i]);
    sk_fs_remove(path);
    sk_free(path);
  }
  sk_fs_free_names(name, n);
  sk_free(end);
}

/* Every rank must find the folder that rank 0 has made. */
static int check_shared(MPI_Comm comm, const char *dir, const char *prefix, const sk_ckpt_form *form, sk_err *e) {
  int rank;
  MPI_Comm_rank(comm, &rank);
  char *probe = sk_strf("%s/probe.%s", dir, form->who);
  if (rank == 0 && sk_fs_mkdirs(dir, e) == SK_OK) {
    remove_left_over(dir, prefix, form->who);
    sk_fs_write(probe, "", 0, false, e);
  }
  sk_agree(comm, e);
  if (!e->code && access(probe, F_OK) != 0)
    sk_fail(e, SK_FAILED, "%s: rank %d on %s does not see what rank 0 writes there; it must be on a file system "
            "that all nodes share", dir, rank, sk_host());
  sk_agree(comm, e);
  if (rank == 0) unlink(probe);
  sk_free(probe);
  return e->code;
}

int sk_ckpt_form_at(MPI_Comm comm, const char *dir, const char *prefix, const char *run_id, int n_file,
                    const sk_ckpt_file *file, sk_ckpt_form **out, sk_err *e) {
  const char *const attrs[] = {"format", "saker-checkpoint", "run_id", run_id[0] ? run_id : "-", NULL};
  int rank;
  MPI_Comm_rank(comm, &rank);
  SK_CHECK(n_file > 0 && n_file <= SK_CKPT_MAX_FILES, "%d files in a checkpoint", n_file);
  sk_ckpt_form *form = sk_calloc(1, sizeof *form);
  *out = NULL;
  form->n_file = n_file;
  form->waiting = form->behind = sk_ckpt_threads_beside(comm, 0);
  form->file = sk_calloc((size_t)n_file, sizeof *form->file);
  snprintf(form->who, sizeof form->who, "%s-%ld", sk_host(), (long)getpid());
  SK_MPI(MPI_Bcast(form->who, sizeof form->who, MPI_CHAR, 0, comm));
  for (int k = 0; rank == 0 && k < n_file && !e->code; k++)
    sk_h5_form_make(file[k].name, file[k].n_dset, file[k].dset, attrs, &form->file[k], e);
  if (sk_agree(comm, e) == SK_OK && check_shared(comm, dir, prefix, form, e) == SK_OK) {
    for (int k = 0; k < n_file; k++) {
      sk_h5_form *f = &form->file[k];
      if (rank != 0) sk_h5_form_empty(file[k].n_dset, file[k].dset, f);
      SK_MPI(MPI_Bcast(&f->size, 1, MPI_INT64_T, 0, comm));
      SK_MPI(MPI_Bcast(f->offset, f->first[file[k].n_dset], MPI_INT64_T, 0, comm));
    }
    *out = form;
  } else {
    sk_ckpt_form_free(form);
  }
  return e->code;
}

int sk_ckpt_form_make(MPI_Comm comm, const char *run_dir, const char *run_id, int n_file, const sk_ckpt_file *file,
                      sk_ckpt_form **out, sk_err *e) {
  char *dir = sk_strf("%s/checkpoints", run_dir);
  sk_ckpt_form_at(comm, dir, "step-", run_id, n_file, file, out, e);
  sk_free(dir);
  return e->code;
}

void sk_ckpt_form_free(sk_ckpt_form *form) {
  if (!form) return;
  for (int k = 0; k < form->n_file; k++) sk_h5_form_free(&form->file[k]);
  sk_free(form->file);
  sk_free(form);
}

int64_t sk_ckpt_form_bytes(const sk_ckpt_form *form, int k) { return form->file[k].size; }

int64_t sk_ckpt_form_place(const sk_ckpt_form *form, int k, const sk_ckpt_file *file, int slab) {
  return sk_ckpt_place(file, &form->file[k], slab, NULL);
}

void sk_ckpt_form_beside(MPI_Comm comm, sk_ckpt_form *form, int threads) {
  form->behind = sk_ckpt_threads_beside(comm, threads);
}

bool sk_ckpt_form_gives_way(const sk_ckpt_form *form) { return form->behind.give_way; }

int sk_ckpt_form_workers(const sk_ckpt_form *form, bool behind) {
  return behind ? form->behind.workers : form->waiting.workers;
}

void sk_ckpt_form_set_workers(sk_ckpt_form *form, int n, bool crowded) {
  SK_CHECK(n > 0 && n <= SK_CKPT_WORKERS, "%d threads to write", n);
  form->waiting = form->behind = (sk_ckpt_threads){.workers = n, .share = 1};
  form->behind.crowded = crowded;
}
