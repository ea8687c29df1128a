/* ckpt_hash.c: the slabs of a save, hashed by whoever has time for it: threads of its own, or those that compute, a little
 * at a time. */
#include "io/ckpt_job.h"
#include <stdlib.h>

typedef struct unit {
  sk_ckpt_part *part;
  int slab;
  int64_t bytes;
} unit;

typedef struct worker {
  pthread_mutex_t lock; /* its own, but for who finishes its slab */
  sk_ckpt_digest digest;
  sk_hash *hash;
} worker;

struct sk_ckpt_hasher {
  unit *unit;
  int n, workers;
  atomic_int next, left; /* unit to be taken; units that are not hashed */
  worker *worker;        /* [workers], and one that finishes */
};

static int largest_first(const void *a, const void *b) {
  const unit *x = a, *y = b;
  if (x->bytes != y->bytes) return x->bytes < y->bytes ? 1 : -1;
  return (x->part > y->part) - (x->part < y->part) + 2 * ((x->slab > y->slab) - (x->slab < y->slab)) * (x->part == y->part);
}

sk_ckpt_hasher *sk_ckpt_hasher_open(int n_part, sk_ckpt_part *part, int workers) {
  sk_ckpt_hasher *h = sk_calloc(1, sizeof *h);
  int most = 0;
  for (int k = 0; k < n_part; k++) most += part[k].file->n_slab;
  h->unit = sk_calloc((size_t)most, sizeof *h->unit);
  for (int k = 0; k < n_part; k++)
    for (int i = 0; i < part[k].file->n_slab; i++) {
      const sk_slab *s = &part[k].file->slab[i];
      const int64_t count = sk_slab_count(s, part[k].file->dset[s->dset].rank);
      if (count > 0 && s->data) h->unit[h->n++] = (unit){&part[k], i, count * (int64_t)sizeof(float)};
    }
  if (h->n > 0) qsort(h->unit, (size_t)h->n, sizeof *h->unit, largest_first);
  atomic_init(&h->next, 0);
  atomic_init(&h->left, h->n);
  h->workers = workers;
  h->worker = sk_calloc((size_t)workers + 1, sizeof *h->worker);
  for (int i = 0; i <= workers; i++) {
    pthread_mutex_init(&h->worker[i].lock, NULL);
    h->worker[i].hash = sk_hash_new();
  }
  return h;
}

void sk_ckpt_hasher_close(sk_ckpt_hasher *h) {
  if (!h) return;
  for (int i = 0; i <= h->workers; i++) {
    pthread_mutex_destroy(&h->worker[i].lock);
    sk_hash_free(h->worker[i].hash);
  }
  sk_free(h->worker);
  sk_free(h->unit);
  sk_free(h);
}

static bool take(sk_ckpt_hasher *h, sk_ckpt_digest *d) {
  const int i = atomic_fetch_add(&h->next, 1);
  if (i >= h->n) return atomic_store(&h->next, h->n), false;
  const unit *u = &h->unit[i];
  *d = (sk_ckpt_digest){.part = u->part, .slab = u->slab, .data = (const char *)u->part->file->slab[u->slab].data};
  return true;
}

/* At most n bytes, of one slab after the other. */
static void work_on(sk_ckpt_hasher *h, worker *w, int64_t n) {
  while (n > 0 && (w->digest.part || take(h, &w->digest))) {
    if (!sk_ckpt_digest_add(&w->digest, w->hash, &n)) break;
    w->digest.part = NULL;
    atomic_fetch_sub(&h->left, 1);
  }
}

bool sk_ckpt_hasher_some(sk_ckpt_hasher *h, int number, int64_t n) {
  worker *w = &h->worker[number];
  pthread_mutex_lock(&w->lock);
  work_on(h, w, n);
  const bool more = w->digest.part != NULL;
  pthread_mutex_unlock(&w->lock);
  return more || atomic_load(&h->next) < h->n;
}

bool sk_ckpt_hasher_done(const sk_ckpt_hasher *h) { return atomic_load(&h->left) == 0; }

void sk_ckpt_hasher_finish(sk_ckpt_hasher *h) {
  while (sk_ckpt_hasher_some(h, h->workers, INT64_MAX)) continue;
  for (int i = 0; i < h->workers; i++) {
    worker *w = &h->worker[i];
    int64_t all = INT64_MAX;
    pthread_mutex_lock(&w->lock);
    if (w->digest.part && sk_ckpt_digest_add(&w->digest, w->hash, &all)) {
      w->digest.part = NULL;
      atomic_fetch_sub(&h->left, 1);
    }
    pthread_mutex_unlock(&w->lock);
  }
}
