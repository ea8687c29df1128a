/* ckpt_side.c: what a checkpoint's meta data own: texts, and the side files that go along. */
#include "io/ckpt.h"
#include "io/fsutil.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>

void sk_ckpt_meta_free(sk_ckpt_meta *m) {
  sk_free(m->deck);
  sk_free(m->hf_json);
  for (int k = 0; k < m->n_side; k++) sk_free(m->side[k].data);
  sk_free(m->side);
  m->deck = m->hf_json = NULL;
  m->side = NULL;
  m->n_side = 0;
}

/* Takes `data` over. */
static void add(sk_ckpt_meta *m, const char *name, char *data, size_t n) {
  SK_CHECK(m->n_side < SK_CKPT_MAX_SIDES && strlen(name) < sizeof m->side->name, "side file %s", name);
  m->side = sk_realloc(m->side, (size_t)(m->n_side + 1) * sizeof *m->side);
  sk_ckpt_side *s = &m->side[m->n_side++];
  snprintf(s->name, sizeof s->name, "%s", name);
  s->data = data;
  s->size = n;
}

void sk_ckpt_side_add(sk_ckpt_meta *m, const char *name, const void *data, size_t n) {
  char *copy = sk_malloc(n + 1);
  memcpy(copy, data, n);
  add(m, name, copy, n);
}

int sk_ckpt_side_read(sk_ckpt_meta *m, const char *path, const char *name, sk_err *e) {
  int64_t size = sk_fs_size(path);
  if (size < 0) return sk_fail(e, SK_FAILED, "%s: not a regular file", path);
  if (size > SK_CKPT_MAX_SIDE_BYTES || m->n_side == SK_CKPT_MAX_SIDES)
    return sk_fail(e, SK_FAILED, "%s: %s to go along with a model: at most %d files of %s", path,
                   size > SK_CKPT_MAX_SIDE_BYTES ? "too large" : "one file too many", SK_CKPT_MAX_SIDES,
                   sk_bytes(SK_CKPT_MAX_SIDE_BYTES));
  FILE *f = fopen(path, "rb");
  if (!f) return sk_fs_fail(e, path, "read", errno);
  char *data = sk_malloc((size_t)size + 1);
  size_t n = fread(data, 1, (size_t)size, f);
  fclose(f);
  if (n == (size_t)size) return add(m, name, data, n), SK_OK;
  sk_free(data);
  return sk_fs_fail(e, path, "read", EIO);
}

const sk_ckpt_side *sk_ckpt_side_find(const sk_ckpt_meta *m, const char *name) {
  for (int k = 0; k < m->n_side; k++)
    if (strcmp(m->side[k].name, name) == 0) return &m->side[k];
  return NULL;
}

void sk_ckpt_sides_move(sk_ckpt_meta *to, sk_ckpt_meta *from) {
  SK_CHECK(to->n_side == 0, "%d side files are there already", to->n_side);
  to->side = from->side;
  to->n_side = from->n_side;
  from->side = NULL;
  from->n_side = 0;
}
